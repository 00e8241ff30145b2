//! The user's list of conversations.

use serde::{Deserialize, Serialize};

use crate::id::{ConversationId, Seq};
use crate::message::Message;
use crate::request::Retry;

/// The longest label of a conversation, in bytes.
pub const MAX_LABEL_BYTES: usize = 128;

/// The most conversations of one user that a list looks at.
pub const MAX_LISTED: usize = 5_000;

/// Asks for the user's conversations, the one with the newest message first, in pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversations {
    /// Where the former page ended: its `next`.
    pub after: Option<String>,
    /// At most so many conversations; at least 1, cut to `limits.max_page_messages`.
    pub limit: u32,
    /// The version of the list that the client has: if it is still the same, and this is the first page, the answer
    /// says so and no more.
    pub known_version: Option<u64>,
}

/// What a list shows of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedGroup {
    /// Its name.
    pub name: String,
    /// Its avatar.
    pub avatar: String,
    /// Whether the user is no member any more, or the group was disbanded: what was said before can still be read.
    pub ended: bool,
}

/// A conversation in a [`ConversationList`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedConversation {
    /// The conversation.
    pub conversation: ConversationId,
    /// The name the user gave it.
    pub label: Option<String>,
    /// Whether the user wants no notices of it.
    pub muted: bool,
    /// Whether the user wants it on top.
    pub pinned: bool,
    /// What it is, if it is a group.
    pub group: Option<ListedGroup>,
    /// The first message there is for the user.
    pub first: Seq,
    /// Its head; for who left, the last message there is for them.
    pub head: Seq,
    /// How far the user has read.
    pub read: Seq,
    /// How many messages are unread above that.
    pub unread: u64,
    /// Its last message.
    pub last: Option<Message>,
}

/// The answer to [`Conversations`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversationList {
    /// What the list is: which conversations, with which label, mute and pin. Equal lists have equal versions; versions
    /// have no order. Below 2^53.
    pub version: u64,
    /// The client has this version: the rest is empty.
    pub not_modified: bool,
    /// The conversations of this page.
    pub conversations: Vec<ListedConversation>,
    /// How many messages are unread in all conversations together.
    pub unread: u64,
    /// Whether the user has more than [`MAX_LISTED`] conversations: those beyond, by id, are in no page and no sum.
    pub cut: bool,
    /// Ask again with this as `after`; absent at the end.
    pub next: Option<String>,
}

/// Says how the user wants a conversation; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetConversation {
    /// What makes a retry safe.
    pub retry: Retry,
    /// The conversation; it has at least one message.
    pub conversation: ConversationId,
    /// A name of at most [`MAX_LABEL_BYTES`] bytes; an empty one takes it away.
    pub label: Option<String>,
    /// Whether the user wants no notices of it.
    pub muted: Option<bool>,
    /// Whether the user wants it on top.
    pub pinned: Option<bool>,
}

/// The answer to [`SetConversation`]: it is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversationSet {
    /// The version of the list as it is now.
    pub version: u64,
}
