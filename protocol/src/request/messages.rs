//! Saying something, and reading what was said.

use serde::{Deserialize, Serialize};

use crate::error_code::RequestError;
use crate::id::{ConversationId, GroupId, MessageId, Seq, Timestamp, UserId};
use crate::message::{Content, Cursor, Message, Priority};
use crate::request::Retry;

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The direct conversation with this user; oneself for notes.
    User(UserId),
    /// This group.
    Group(GroupId),
}

impl Target {
    /// The conversation in which `sender` reaches the target.
    pub fn conversation(&self, sender: &UserId) -> ConversationId {
        match self {
            Self::User(user) => ConversationId::direct(sender, user),
            Self::Group(group) => ConversationId::group(group),
        }
    }
}

/// Says something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Send {
    /// What makes a retry safe.
    pub retry: Retry,
    /// Whom it is for.
    pub target: Target,
    /// What is said; the body has at most `limits.max_body_bytes`.
    pub content: Content,
    /// The message it answers; at most the conversation's head.
    pub reply_to: Option<Seq>,
    /// The last message of the conversation that the sender had seen; at most its head.
    pub previous: Option<Seq>,
    /// Its lane. `system` is for services.
    #[serde(default)]
    pub priority: Priority,
}

/// The answer to [`Send`]: the message is durable under this number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Where it was said.
    pub conversation: ConversationId,
    /// Its number there.
    pub seq: Seq,
    /// Its global id.
    pub message_id: MessageId,
    /// When the server numbered it.
    pub time: Timestamp,
}

/// Part of a conversation, both ends included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRange {
    /// The conversation.
    pub conversation: ConversationId,
    /// The first number wanted; at least 1.
    pub from: Seq,
    /// The last number wanted; at least `from`. Beyond the head is allowed.
    pub to: Seq,
}

/// Reads ranges of several conversations, each in rising order; the answer is bounded as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// What is wanted; at most `limits.max_ranges`.
    pub ranges: Vec<PullRange>,
}

/// A bounded part of one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its messages in rising order; none that were trimmed.
    pub messages: Vec<Message>,
    /// The first number there is (what was before it was trimmed); 1 in an empty conversation.
    pub first: Seq,
    /// The head when the page was read.
    pub head: Seq,
    /// Where to go on if the page's bound cut the range short.
    pub next: Option<Seq>,
    /// Why this range could not be read; then the rest is empty.
    pub error: Option<RequestError>,
}

/// The answer to [`Pull`]: one page per range, in the order of the ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// The pages.
    pub pages: Vec<Page>,
}

/// Where a [`History`] begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryFrom {
    /// At the first message there is.
    First,
    /// At the head.
    Last,
    /// At this number, included.
    Seq(Seq),
    /// At the first message that is not older than this time (towards newer), or the last that is not newer (towards
    /// older).
    Time(Timestamp),
}

/// Which way a [`History`] goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Towards the head.
    Newer,
    /// Towards the first message.
    Older,
}

/// Reads one page of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The conversation.
    pub conversation: ConversationId,
    /// Where to begin.
    pub from: HistoryFrom,
    /// Which way to go.
    pub direction: Direction,
    /// At most so many messages; at least 1, cut to `limits.max_page_messages`.
    pub limit: u32,
}

/// The answer to [`History`]. The messages rise whatever the direction; `page.next` is where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryPage {
    /// The page.
    pub page: Page,
}

/// Tells what arrived, delayed and batched as TCP does it: a client sends it when 64 pushes, or 1 s, have gathered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// How many `Push` events this connection has received since its login.
    pub pushes: u64,
    /// How far this device has everything; the server keeps them for `Sync`. At most `limits.max_ranges`.
    #[serde(default)]
    pub cursors: Vec<Cursor>,
}

/// The answer to [`Ack`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {}
