//! How far users have read, and what the number of unread messages is made of.
//!
//! Unread are the messages of other users, neither recalled nor deleted, above the user's mark. Each row counts the
//! users' messages up to it (its ordinal), so that number is
//!
//! ```text
//!   ordinal(head) − ordinal(mark) − own messages between them − recalled messages between them
//! ```
//!
//! Sending implies reading: an append that holds a message of a user moves that user's mark to it, in the same write.
//! So there are no own messages above a mark, and the third term is always 0. The fourth is an index of rows that the
//! same writes keep, as long as what was recalled above the mark. Nothing is written per member of a conversation.

use convoke_protocol::id::{ConversationId, Seq, UserId};
use convoke_protocol::message::MessageKind;
use futures_util::future::BoxFuture;

use super::{LogRow, ReadError, WriteError};

/// How far a user has read a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ReadMark {
    /// The last message that counts as read; 0 before the first.
    pub seq: Seq,
    /// The ordinal of its row. Kept, because the row may be trimmed.
    pub ordinal: u64,
}

/// Whose mark, and where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MarkKey {
    /// The user.
    pub user: UserId,
    /// The conversation.
    pub conversation: ConversationId,
}

/// Rows above `after`, up to and including `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsAbove {
    /// The conversation.
    pub conversation: ConversationId,
    /// The row before the first.
    pub after: Seq,
    /// The last row.
    pub to: Seq,
}

/// The marks of users.
///
/// Appends keep them too: `MessageLog::append` moves the mark of each row's sender to the row if
/// [`LogRow::moves_mark`], durable together with the row.
pub trait ReadMarkStore: Send + Sync + 'static {
    /// Keeps marks; one that is lower than what is kept changes nothing. `Ok` once readable by [`Self::marks`];
    /// durability may lag behind (after a crash a user may have to read again what was read in the last seconds).
    fn put_marks<'a>(&'a self, marks: &'a [(MarkKey, ReadMark)]) -> BoxFuture<'a, Result<(), WriteError>>;

    /// The marks, in the order of the keys: the higher of what was put and what was sent; the default if neither was.
    fn marks<'a>(&'a self, of: &'a [MarkKey]) -> BoxFuture<'a, Result<Vec<ReadMark>, ReadError>>;

    /// How many rows of each range do not count although their ordinals do ([`LogRow::is_uncounted`]), in the order of
    /// the ranges.
    fn uncounted<'a>(&'a self, ranges: &'a [RowsAbove]) -> BoxFuture<'a, Result<Vec<u64>, ReadError>>;
}

impl LogRow {
    /// Whether writing this row moves its sender's mark to it: it is a message of a user, written for the first time. A
    /// row that is written over because of a later entry shows that in its times or in its flags.
    pub fn moves_mark(&self) -> bool {
        let entry = &self.entry;
        entry.kind == MessageKind::USER
            && entry.flags == 0
            && entry.edited_at.is_none()
            && entry.recalled_at.is_none()
            && entry.deleted_at.is_none()
    }

    /// Whether the row does not count as unread although its ordinal counts it: what it said is gone.
    pub fn is_uncounted(&self) -> bool {
        let entry = &self.entry;
        entry.kind == MessageKind::USER && (entry.recalled_at.is_some() || entry.deleted_at.is_some())
    }

    /// The mark of somebody who has read up to this row.
    pub fn mark(&self) -> ReadMark {
        ReadMark { seq: self.seq, ordinal: self.entry.ordinal }
    }
}

/// The marks that an append of these rows moves: each sender's, to the last of its rows.
pub(crate) fn moved_by(rows: &[LogRow]) -> Vec<(&UserId, ReadMark)> {
    let mut moved: Vec<(&UserId, ReadMark)> = Vec::new();
    for row in rows.iter().rev().filter(|row| row.moves_mark()) {
        // A batch has few senders.
        if moved.iter().all(|(user, _)| **user != row.entry.sender) {
            moved.push((&row.entry.sender, row.mark()));
        }
    }
    moved
}

/// The number of unread messages.
pub fn unread(head_ordinal: u64, mark: ReadMark, uncounted: u64) -> u64 {
    // A mark that was read after the head may be above it.
    head_ordinal.saturating_sub(mark.ordinal).saturating_sub(uncounted)
}
