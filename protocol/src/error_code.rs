//! Every error and every reason for closing, numbered once and for all. A number is never used twice.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::open_enum::open_enum;

open_enum! {
    /// Whether a request that failed may have had its effect.
    Outcome {
        /// It did not happen and will not.
        NOT_DONE = 0 "not_done",
        /// It may have happened. A retry with the same client id is safe while the server's dedup window lasts.
        UNKNOWN = 1 "unknown",
    }
}

/// The number of an error or of a closing reason; numbers that a reader does not know are possible.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub u16);

macro_rules! codes {
    ($( $(#[$doc:meta])* $konst:ident = $num:literal $text:literal ),* $(,)?) => {
        impl ErrorCode {
            $( $(#[$doc])* pub const $konst: Self = Self($num); )*

            /// Every code there is, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$konst),*];

            /// The code's name in documents, logs and metrics.
            pub const fn name(self) -> &'static str {
                match self.0 { $( $num => $text, )* _ => "unknown_code" }
            }
        }
    };
}

codes! {
    /// The bytes are not a frame.
    MALFORMED_FRAME = 1 "malformed_frame",
    /// The frame is longer than `limits.max_frame_bytes`; before the login, than what is left of the bytes that a
    /// connection has for it.
    FRAME_TOO_LARGE = 2 "frame_too_large",
    /// This server does not know that type of request.
    UNSUPPORTED = 3 "unsupported",
    /// This server does not speak that version of the protocol.
    UNSUPPORTED_VERSION = 4 "unsupported_version",
    /// The request does not fit the state of the connection.
    OUT_OF_ORDER = 5 "out_of_order",
    /// The body of the request cannot be read, or a field is out of its bounds.
    INVALID_REQUEST = 6 "invalid_request",
    /// The token cannot be verified.
    BAD_TOKEN = 20 "bad_token",
    /// The token's time is over.
    TOKEN_EXPIRED = 21 "token_expired",
    /// The token's role may not do this.
    WRONG_ROLE = 22 "wrong_role",
    /// The device is logged in elsewhere and the server's policy keeps the older session.
    DEVICE_IN_USE = 23 "device_in_use",
    /// The user, or the class of device, has as many sessions as the server allows.
    TOO_MANY_SESSIONS = 24 "too_many_sessions",
    /// No login within the time that a connection has for it.
    LOGIN_OVERDUE = 25 "login_overdue",
    /// The node holds as many connections as it may.
    TOO_MANY_CONNECTIONS = 40 "too_many_connections",
    /// The address holds as many connections as it may.
    TOO_MANY_FROM_ADDRESS = 41 "too_many_from_address",
    /// More requests per second than allowed.
    RATE_LIMITED = 42 "rate_limited",
    /// A queue is at its bound; try again after the time given.
    BUSY = 43 "busy",
    /// The body is longer than `limits.max_body_bytes`.
    BODY_TOO_LARGE = 44 "body_too_large",
    /// There is no such thing, or it is not yours to see.
    NOT_FOUND = 60 "not_found",
    /// You may see it but not do this.
    NOT_PERMITTED = 61 "not_permitted",
    /// The first attempt is older than the dedup window, so a retry could double the message: look it up instead.
    STALE_RETRY = 62 "stale_retry",
    /// The client id was used before for something else.
    CLIENT_ID_REUSED = 63 "client_id_reused",
    /// A group of that id exists already.
    GROUP_EXISTS = 64 "group_exists",
    /// The group would have more members than allowed.
    GROUP_FULL = 65 "group_full",
    /// The group was disbanded.
    GROUP_ENDED = 66 "group_ended",
    /// The sender, or everybody but the admins, may not speak for now.
    MUTED = 67 "muted",
    /// The time in which this could be done is over.
    TOO_LATE = 68 "too_late",
    /// The server's configuration switches this off.
    SWITCHED_OFF = 69 "switched_off",
    /// The message was recalled or deleted.
    MESSAGE_GONE = 70 "message_gone",
    /// A rule of the application refused it.
    REFUSED = 71 "refused",
    /// As many as the server allows: wait until some are gone.
    TOO_MANY = 72 "too_many",
    /// The store or the owner cannot be reached; try again.
    UNAVAILABLE = 80 "unavailable",
    /// A fault of the server; it is in its log.
    INTERNAL = 81 "internal",
    /// The session logged out.
    LOGGED_OUT = 100 "logged_out",
    /// The same device logged in again and took this session's place.
    DEVICE_REPLACED = 101 "device_replaced",
    /// The user closed the session from another one.
    CLOSED_BY_USER = 102 "closed_by_user",
    /// An operator closed the session.
    CLOSED_BY_OPERATOR = 103 "closed_by_operator",
    /// Pushes stayed unacknowledged for too long.
    ACKS_OVERDUE = 104 "acks_overdue",
    /// The client does not read what it is sent.
    SLOW_CONSUMER = 105 "slow_consumer",
    /// Nothing was heard from the client for too long.
    IDLE = 106 "idle",
    /// The node is being drained or stopped.
    SHUTDOWN = 107 "shutdown",
    /// The connection ended without a word.
    DISCONNECTED = 108 "disconnected",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The answer to a request that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct RequestError {
    /// What went wrong.
    pub code: ErrorCode,
    /// The same for a person; never to be parsed.
    pub message: String,
    /// Whether the request may have had its effect.
    pub outcome: Outcome,
    /// When to try again, in milliseconds; absent when trying again will not help.
    pub retry_after_ms: Option<u32>,
}

impl RequestError {
    /// An error of a request that had no effect and is not worth repeating as it is.
    pub fn not_done(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), outcome: Outcome::NOT_DONE, retry_after_ms: None }
    }

    /// An error of a request that may have had its effect.
    pub fn unknown(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), outcome: Outcome::UNKNOWN, retry_after_ms: None }
    }

    /// The same error with the advice to try again after `ms` milliseconds.
    #[must_use]
    pub fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers as released. A line may be added; none may change.
    #[test]
    fn codes_keep_their_numbers() {
        let golden = include_str!("../golden/error_codes.txt");
        let now: String = ErrorCode::ALL.iter().map(|code| format!("{} {}\n", code.0, code.name())).collect();
        assert_eq!(now, golden);
    }
}
