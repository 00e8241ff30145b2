//! What can go wrong, and the two questions that matter: did it happen, and may I retry?

use std::time::Duration;

use convoke_protocol::error_code::{ErrorCode, Outcome, RequestError};

use crate::connection::ConnectionError;

/// Why a request of the SDK failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The server's final answer; what is worth repeating was repeated already.
    #[error("refused: {0}")]
    Refused(RequestError),
    /// The deadline passed without a final answer.
    #[error("no answer in time{}", last.as_ref().map(|e| format!("; the last one was: {e}")).unwrap_or_default())]
    Overdue {
        /// Whether an attempt may have had its effect.
        outcome: Outcome,
        /// What the server answered last, if it did.
        last: Option<RequestError>,
    },
    /// As many requests wait as may; nothing was queued.
    #[error("too many requests are waiting")]
    QueueFull,
    /// The session is over.
    #[error("the session is closed{}", reason.map(|code| format!(": {code}")).unwrap_or_default())]
    Closed {
        /// Why, if the server or a logout said so.
        reason: Option<ErrorCode>,
        /// Whether an attempt may have had its effect.
        outcome: Outcome,
    },
    /// No session could be begun.
    #[error("cannot connect: {0}")]
    Connect(ConnectionError),
    /// The application's token source failed.
    #[error("no token: {0}")]
    Token(String),
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// The server answered with something that is no answer to the request.
    #[error("the server answered with {0}")]
    Unexpected(&'static str),
}

impl ClientError {
    /// Whether the request may have had its effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(error) => error.outcome,
            Self::Overdue { outcome, .. } | Self::Closed { outcome, .. } => *outcome,
            Self::Unexpected(_) => Outcome::UNKNOWN,
            Self::QueueFull | Self::Connect(_) | Self::Token(_) | Self::Config(_) => Outcome::NOT_DONE,
        }
    }

    /// Whether the same request, made anew, can succeed and cannot double anything.
    ///
    /// A new request has a new client id: where the outcome is unknown only a look at the conversation tells.
    pub fn may_retry(&self) -> bool {
        match self {
            Self::Refused(error) => {
                error.outcome == Outcome::NOT_DONE && is_passing(error.code, error.retry_after_ms)
            }
            Self::Overdue { outcome, .. } => *outcome == Outcome::NOT_DONE,
            Self::QueueFull | Self::Connect(_) | Self::Token(_) => true,
            Self::Closed { .. } | Self::Config(_) | Self::Unexpected(_) => false,
        }
    }

    /// When to try again, if the server said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(error) | Self::Overdue { last: Some(error), .. } => {
                error.retry_after_ms.map(|ms| Duration::from_millis(ms.into()))
            }
            _ => None,
        }
    }
}

/// Whether an error with this code, or this advice, passes by itself.
pub(crate) fn is_passing(code: ErrorCode, retry_after_ms: Option<u32>) -> bool {
    retry_after_ms.is_some()
        || matches!(code, ErrorCode::BUSY | ErrorCode::UNAVAILABLE | ErrorCode::RATE_LIMITED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_is_never_said_to_be_safe() {
        let cases = [
            (RequestError::not_done(ErrorCode::BUSY, "").retry_after(5), true),
            (RequestError::not_done(ErrorCode::NOT_PERMITTED, ""), false),
            (RequestError::unknown(ErrorCode::UNAVAILABLE, "").retry_after(5), false),
            (RequestError::unknown(ErrorCode::STALE_RETRY, ""), false),
        ];
        for (error, may_retry) in cases {
            assert_eq!(ClientError::Refused(error.clone()).may_retry(), may_retry, "{error:?}");
            let overdue = ClientError::Overdue { outcome: error.outcome, last: None };
            assert_eq!(overdue.may_retry(), error.outcome == Outcome::NOT_DONE);
        }
    }
}
