//! Changing what was said: recall, edit, delete, react, hide; and for how long it is kept.
//!
//! All but hiding and retention are numbered entries of the conversation, durable before they are answered, and carry the
//! message that they change as their `target`.

use serde::{Deserialize, Serialize};

use crate::id::{ConversationId, MessageId, Seq, Timestamp, UserId};
use crate::message::{Content, Priority};
use crate::request::Retry;

/// The longest kind of a reaction, in bytes; it has at least 1.
pub const MAX_REACTION_KIND_BYTES: usize = 64;

/// The most kinds of reactions to one message.
pub const MAX_REACTION_KINDS: usize = 64;

/// The most messages in one [`Hide`].
pub const MAX_HIDDEN_PER_REQUEST: usize = 100;

/// Takes a message back: it stays in its place and says nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// What makes a retry safe.
    pub retry: Retry,
    /// The conversation.
    pub conversation: ConversationId,
    /// The message.
    pub seq: Seq,
}

/// Replaces what a message says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// What makes a retry safe.
    pub retry: Retry,
    /// The conversation.
    pub conversation: ConversationId,
    /// The message.
    pub seq: Seq,
    /// What it says from now on; the body has at most `limits.max_body_bytes`.
    pub content: Content,
}

/// Deletes a message for all: its place stays, its body is gone for every reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// What makes a retry safe.
    pub retry: Retry,
    /// The conversation.
    pub conversation: ConversationId,
    /// The message.
    pub seq: Seq,
    /// Take the body out of the store too, where a soft deletion leaves it for services. For services.
    #[serde(default)]
    pub hard: bool,
}

/// Gives a message a reaction, or takes it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct React {
    /// What makes a retry safe.
    pub retry: Retry,
    /// The conversation.
    pub conversation: ConversationId,
    /// The message.
    pub seq: Seq,
    /// Which reaction, 1–[`MAX_REACTION_KIND_BYTES`] bytes, often one emoji.
    pub kind: String,
    /// `true` gives it, `false` takes it back.
    pub give: bool,
}

macro_rules! changed {
    ($( $(#[$doc:meta])* $name:ident ),* $(,)?) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            /// The conversation.
            pub conversation: ConversationId,
            /// The entry that says so; absent if there was nothing to change.
            pub seq: Option<Seq>,
        }
    )* };
}

changed! {
    /// The answer to [`Recall`].
    Recalled,
    /// The answer to [`Edit`].
    Edited,
    /// The answer to [`Delete`].
    Deleted,
    /// The answer to [`React`].
    Reacted,
}

/// The body of an entry of kind `reaction`, as JSON in both codecs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReactionChanged {
    /// Which reaction.
    pub kind: String,
    /// Whether it was given or taken back.
    pub given: bool,
    /// How many users give it now.
    pub count: u32,
}

/// Deletes messages for the asking user alone, on all devices: they read as if deleted, for nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hide {
    /// What makes a retry safe; hiding is idempotent by itself.
    pub retry: Retry,
    /// The conversation.
    pub conversation: ConversationId,
    /// These messages; at most [`MAX_HIDDEN_PER_REQUEST`].
    #[serde(default)]
    pub seqs: Vec<Seq>,
    /// All messages up to this one: the history is cleared.
    #[serde(default)]
    pub up_to: Option<Seq>,
}

/// The answer to [`Hide`]: it is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden {
    /// The conversation.
    pub conversation: ConversationId,
}

/// Asks who gave a message a reaction, in pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reactions {
    /// The conversation.
    pub conversation: ConversationId,
    /// The message.
    pub seq: Seq,
    /// Which reaction.
    pub kind: String,
    /// Where the former page ended: its `next`.
    pub after: Option<UserId>,
    /// At most so many; at least 1, cut to `limits.max_page_messages`.
    pub limit: u32,
}

/// The answer to [`Reactions`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReactionsPage {
    /// The users of this page, in the order of their ids.
    pub users: Vec<UserId>,
    /// Ask again with this as `after`; absent at the end.
    pub next: Option<UserId>,
}

/// Says something as the system, or in the name of a user. For services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendAs {
    /// What makes a retry safe.
    pub retry: Retry,
    /// In whose name; absent: the system's, as an entry of kind `system`.
    pub sender: Option<UserId>,
    /// Where. A user in whose name it is said is one of it.
    pub conversation: ConversationId,
    /// What is said.
    pub content: Content,
    /// The message it answers; at most the conversation's head.
    pub reply_to: Option<Seq>,
    /// Its lane.
    #[serde(default)]
    pub priority: Priority,
}

/// The answer to [`SendAs`]: the message is durable under this number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentAs {
    /// Where it was said.
    pub conversation: ConversationId,
    /// Its number there.
    pub seq: Seq,
    /// Its global id.
    pub message_id: MessageId,
    /// When the server numbered it.
    pub time: Timestamp,
}

/// For how long the messages of a conversation are kept. What both say is gone goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retention {
    /// Messages older than so many milliseconds go; absent: none for their age.
    pub max_age_ms: Option<u64>,
    /// Of more than so many messages the oldest go; absent: none for their number.
    pub max_messages: Option<u64>,
}

/// Says for how long a conversation is kept. For the owner of a group, and services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRetention {
    /// What makes a retry safe; setting is idempotent by itself.
    pub retry: Retry,
    /// The conversation.
    pub conversation: ConversationId,
    /// For how long; absent: as the server's configuration says.
    pub retention: Option<Retention>,
}

/// The answer to [`SetRetention`]: it is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionSet {
    /// The conversation.
    pub conversation: ConversationId,
}
