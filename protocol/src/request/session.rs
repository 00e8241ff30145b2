//! From the first byte to the end of a session.

use serde::{Deserialize, Serialize};

use crate::event::NodeAddress;
use crate::id::{DeviceId, SessionId, Timestamp, UserId};
use crate::open_enum::open_enum;
use crate::request::Retry;

open_enum! {
    /// What kind of device a session runs on; limits and conflict policy may depend on it.
    DeviceClass {
        /// None of the others.
        OTHER = 0 "other",
        /// A desktop program.
        DESKTOP = 1 "desktop",
        /// A telephone.
        MOBILE = 2 "mobile",
        /// A tablet.
        TABLET = 3 "tablet",
        /// A page in a browser.
        WEB = 4 "web",
        /// A program without a person.
        SERVICE = 5 "service",
    }
}

/// The first frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol's version that the client speaks: [`crate::PROTOCOL_VERSION`].
    pub protocol: u16,
    /// The client's name; at most 128 bytes.
    pub app: String,
    /// The client's version; at most 128 bytes.
    pub version: String,
    /// The operating system; at most 128 bytes.
    pub os: String,
    /// Optional features the client understands; at most 32 of at most 64 bytes. None are defined yet.
    #[serde(default)]
    pub features: Vec<String>,
}

/// What this server bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The longest frame, in bytes after the length prefix.
    pub max_frame_bytes: u32,
    /// The longest message body, in bytes.
    pub max_body_bytes: u32,
    /// Requests without an answer at one time; more are not read until an answer leaves.
    pub max_in_flight: u32,
    /// Messages in one page.
    pub max_page_messages: u32,
    /// Bytes of message bodies in one page (at least one message is always in it).
    pub max_page_bytes: u32,
    /// Ranges in one `Pull`, and cursors in one `Ack` or `Sync`.
    pub max_ranges: u32,
    /// For how long a retry is recognised, in milliseconds since the first attempt.
    pub dedup_window_ms: u64,
    /// How long pushes may stay unacknowledged before the session is closed, in milliseconds.
    pub ack_deadline_ms: u32,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol's version that the server will speak on this connection.
    pub protocol: u16,
    /// The server's own version.
    pub version: String,
    /// The id of the node.
    pub node: String,
    /// Features of the client that the server will use.
    pub features: Vec<String>,
    /// Send a `Heartbeat` after this many milliseconds without another request; the server closes the session after
    /// three times as long without one.
    pub heartbeat_ms: u32,
    /// What this server bounds.
    pub limits: Limits,
    /// The server's clock.
    pub server_time: Timestamp,
    /// Where else clients may connect.
    pub nodes: Vec<NodeAddress>,
}

/// Says who this is. The second frame of a connection.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// A JWT; at most 3,000 bytes.
    pub token: String,
    /// Which of the user's devices this is.
    pub device: DeviceId,
    /// What kind of device it is.
    pub device_class: DeviceClass,
}

impl std::fmt::Debug for Login {
    // A token opens the account: it appears in no log, not even by accident.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("device", &self.device)
            .field("device_class", &self.device_class)
            .finish()
    }
}

/// The answer to [`Login`]: the session is live and pushes may follow at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedIn {
    /// Who the token says this is.
    pub user: UserId,
    /// The id of the session.
    pub session: SessionId,
    /// When the token ends. The session may go on; the next login needs a new one.
    pub token_expires: Timestamp,
}

/// Ends the session; the server closes the connection after the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logout {}

/// The answer to [`Logout`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedOut {}

/// "I am here": needed only when nothing else was sent for `heartbeat_ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {}

/// The answer to [`Heartbeat`]. A client that does not get it reconnects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// The server's clock.
    pub server_time: Timestamp,
}

/// Asks for the user's own live sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSessions {}

/// One of the user's sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its id.
    pub session: SessionId,
    /// Its device.
    pub device: DeviceId,
    /// What kind of device it is.
    pub device_class: DeviceClass,
    /// The client's name and version.
    pub app: String,
    /// The node it is connected to.
    pub node: String,
    /// When it logged in.
    pub since: Timestamp,
    /// Whether it is the one that asks.
    pub current: bool,
}

/// The answer to [`ListSessions`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// The user's sessions, oldest first.
    pub sessions: Vec<SessionInfo>,
}

/// Closes one of the user's own sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseSession {
    /// What makes a retry safe; closing is idempotent by itself.
    pub retry: Retry,
    /// Which one.
    pub session: SessionId,
}

/// The answer to [`CloseSession`]: the session is being closed, or was closed already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionClosed {}
