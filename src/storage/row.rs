//! A row of a conversation's log.

use bytes::Bytes;
use convoke_protocol::id::{ClientId, DeviceId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, Message, MessageKind, Priority};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Change;

/// How often a shard was claimed: each claim raises it. The embedded store's one owner has epoch 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// The write timestamp of a row: `epoch · 2^24 + n`. The higher of two writes of one row stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WriteStamp(pub u64);

impl WriteStamp {
    /// How many numbers one epoch has.
    pub const PER_EPOCH: u64 = 1 << 24;

    /// The stamp with number `n` of an epoch.
    ///
    /// # Panics
    /// If `n` is not below [`Self::PER_EPOCH`]: an owner claims again before that.
    pub fn new(epoch: Epoch, n: u64) -> Self {
        assert!(n < Self::PER_EPOCH, "the epoch's write stamps are used up");
        Self(epoch.0 * Self::PER_EPOCH + n)
    }
}

/// One value beside its keys (conversation, seq): a write replaces all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRow {
    /// Its number.
    pub seq: Seq,
    /// Its global id.
    pub id: MessageId,
    /// The id of the row before it; nil for the first. An id names its whole past.
    pub prev: MessageId,
    /// The epoch of its writer.
    pub epoch: Epoch,
    /// The highest seq that its writer knew to be confirmed.
    pub base: Seq,
    /// The lowest seq in its writer's dedup window: who goes on from this row loads the window from here.
    pub window: Seq,
    /// What it says.
    pub entry: Entry,
}

/// The `prev` of a conversation's first row.
pub const NO_MESSAGE: MessageId = MessageId(Uuid::nil());

/// The content of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who sent it.
    pub sender: UserId,
    /// From which device.
    pub device: DeviceId,
    /// The id the sender chose.
    pub client_id: ClientId,
    /// When it was numbered.
    pub time: Timestamp,
    /// What kind of entry it is.
    pub kind: MessageKind,
    /// Bits for what has no field of its own: [`OUTDATED`].
    pub flags: u32,
    /// Its lane.
    pub priority: Priority,
    /// What it says.
    pub content: Content,
    /// The message it answers.
    pub reply_to: Option<Seq>,
    /// What its sender had seen.
    pub previous: Option<Seq>,
    /// How many messages up to and including this one count as unread for others.
    pub ordinal: u64,
    /// When it was last edited.
    pub edited_at: Option<Timestamp>,
    /// When it was recalled.
    pub recalled_at: Option<Timestamp>,
    /// When it was deleted for all.
    pub deleted_at: Option<Timestamp>,
    /// The entry that edited it last.
    pub last_edit: Option<Seq>,
    /// What it changes.
    pub change: Option<Change>,
}

/// Flag of an entry: what it says was replaced, recalled or deleted by a later one, so that readers are not told it.
pub const OUTDATED: u32 = 1;

impl Entry {
    /// Whether readers may still be told what it says.
    pub fn is_gone(&self) -> bool {
        self.recalled_at.is_some() || self.deleted_at.is_some() || self.flags & OUTDATED != 0
    }
}

impl LogRow {
    /// The row as its readers see it: without what it said, if that is gone.
    pub fn to_message(&self) -> Message {
        let content = if self.entry.is_gone() {
            Content { content_type: self.entry.content.content_type.clone(), body: Bytes::new() }
        } else {
            self.entry.content.clone()
        };
        self.with_content(content)
    }

    /// The row as a service sees it that moderates: with what it said, as long as the store has it.
    pub fn to_moderated_message(&self) -> Message {
        self.with_content(self.entry.content.clone())
    }

    fn with_content(&self, content: Content) -> Message {
        let entry = &self.entry;
        Message {
            seq: self.seq,
            message_id: self.id,
            sender: entry.sender.clone(),
            device: entry.device.clone(),
            client_id: entry.client_id,
            time: entry.time,
            kind: entry.kind,
            priority: entry.priority,
            content,
            reply_to: entry.reply_to,
            previous: entry.previous,
            target: entry.change.as_ref().and_then(Change::target),
            edited_at: entry.edited_at,
            recalled_at: entry.recalled_at,
            deleted_at: entry.deleted_at,
            reactions: Vec::new(),
        }
    }
}
