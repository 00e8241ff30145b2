//! A row of a conversation's log.

use convoke_protocol::id::{ClientId, DeviceId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, Message, MessageKind, Priority};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Bits for what has no field of its own; none are defined yet.
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
}

impl LogRow {
    /// The row as its readers see it.
    pub fn to_message(&self) -> Message {
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
            content: entry.content.clone(),
            reply_to: entry.reply_to,
            previous: entry.previous,
            edited_at: entry.edited_at,
            recalled_at: entry.recalled_at,
            deleted_at: entry.deleted_at,
            reactions: Vec::new(),
        }
    }
}
