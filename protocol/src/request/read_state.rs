//! What a user has read, and signals that are said and forgotten.

use serde::{Deserialize, Serialize};

use crate::id::{ConversationId, Seq, UserId};
use crate::message::Content;
use crate::request::Retry;
use crate::request::messages::Target;

/// The longest kind of a signal, in bytes.
pub const MAX_SIGNAL_KIND_BYTES: usize = 64;

/// The longest body of a signal, in bytes.
pub const MAX_SIGNAL_BODY_BYTES: usize = 1_024;

/// The user has read a conversation up to here, on whatever device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// What makes a retry safe.
    pub retry: Retry,
    /// The conversation.
    pub conversation: ConversationId,
    /// The last message that was read. Cut to the head; one that is lower than the mark changes nothing.
    pub seq: Seq,
}

/// The answer to [`Read`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDone {
    /// The conversation.
    pub conversation: ConversationId,
    /// The user's mark as it is now.
    pub seq: Seq,
    /// How many messages are unread above it.
    pub unread: u64,
}

/// The user has read every conversation up to its head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkAllRead {
    /// What makes a retry safe.
    pub retry: Retry,
}

/// The answer to [`MarkAllRead`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllRead {
    /// In how many conversations the mark moved.
    pub moved: u32,
}

/// Asks how far the members of a conversation have read, in pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadMarks {
    /// The conversation.
    pub conversation: ConversationId,
    /// Where the former page ended: its `next`.
    pub after: Option<UserId>,
    /// At most so many members; at least 1, cut to `limits.max_page_messages`.
    pub limit: u32,
}

/// How far one user has read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRead {
    /// The user.
    pub user: UserId,
    /// The user's mark; 0 if there is none.
    pub seq: Seq,
}

/// The answer to [`ReadMarks`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadMarksPage {
    /// The members of this page, in the order of their ids.
    pub marks: Vec<UserRead>,
    /// Ask again with this as `after`; absent at the end.
    pub next: Option<UserId>,
}

/// Tells something that is worth knowing only now, such as that somebody is typing. It has no number, is not kept, and
/// may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Whom it is for.
    pub target: Target,
    /// What it is, 1–[`MAX_SIGNAL_KIND_BYTES`] bytes: `typing`, or whatever an application makes of it.
    pub kind: String,
    /// What goes with it; the body has at most [`MAX_SIGNAL_BODY_BYTES`].
    pub content: Content,
}

/// The answer to [`Signal`]: it was passed on to those who are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalTaken {}
