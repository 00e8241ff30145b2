//! Catching up after an absence.

use serde::{Deserialize, Serialize};

use crate::id::{ConversationId, Seq};
use crate::message::Cursor;
use crate::request::messages::Page;

/// Asks what is missing in every conversation of the user, in bounded pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    /// How far the client has everything; at most `limits.max_ranges`. A conversation that is not named starts at the
    /// device's cursor if `use_device_cursors`, else at its head (only the head is told).
    #[serde(default)]
    pub cursors: Vec<Cursor>,
    /// Use the cursors that this device acknowledged earlier.
    #[serde(default)]
    pub use_device_cursors: bool,
    /// Where the former page ended: its `next`.
    pub after: Option<ConversationId>,
}

/// A conversation in a [`Synced`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncedConversation {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its head; pushes above it follow by themselves.
    pub head: Seq,
    /// The cursor that the answer started from; absent when neither side had one.
    pub cursor: Option<Seq>,
    /// How far the user has read, on whatever device.
    pub read: Seq,
    /// How many messages are unread above that.
    pub unread: u64,
}

/// The answer to [`Sync`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// The conversations of this page, in the order of their ids.
    pub conversations: Vec<SyncedConversation>,
    /// What they are missing, each in rising order; where `next` is set, `Pull` the rest.
    pub pages: Vec<Page>,
    /// Ask again with this as `after`; absent at the end.
    pub next: Option<ConversationId>,
}

/// Asks what is missing in the conversations that changed since an earlier answer, in bounded pages: what a login costs follows
/// what happened meanwhile, not how many conversations there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSince {
    /// The token of the last walk that came to its end; absent the first time, and then every conversation is told.
    pub since: Option<String>,
    /// As in [`Sync`].
    #[serde(default)]
    pub cursors: Vec<Cursor>,
    /// As in [`Sync`].
    #[serde(default)]
    pub use_device_cursors: bool,
    /// Where the former page ended: its `next`.
    pub after: Option<ConversationId>,
}

/// The longest token, in bytes.
pub const MAX_SYNC_TOKEN_BYTES: usize = 64;

/// The answer to [`SyncSince`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncedSince {
    /// What to give as `since` the next time, if this is the first page of the walk: keep it when the walk has come to its end.
    /// Absent where the server keeps no account of changes; then every walk tells all conversations.
    pub token: Option<String>,
    /// Whether every conversation is told: no token was given, or one that the server does not know (any more).
    pub all: bool,
    /// Conversations that changed, and all groups, in the order of their ids; those of this page.
    pub conversations: Vec<SyncedConversation>,
    /// As in [`Synced`].
    pub pages: Vec<Page>,
    /// Ask again with this as `after`; absent at the end.
    pub next: Option<ConversationId>,
}
