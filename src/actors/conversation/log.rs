//! The rules by which rows of a log become facts, pure and apart from what rows say.
//!
//! [`recovery`] is how an owner begins with a conversation, [`commit`] how it goes on, [`hint`] what it may tell a later
//! one and what it may trim. They see a row only through [`Row`], so that the conversation and the model checker (which
//! needs rows of a few bytes) drive the same code. `docs/ownership.md` has the rules and why each is needed.

pub mod commit;
pub mod hint;
pub mod recovery;

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use convoke_protocol::id::{MessageId, Seq};

use crate::storage::row::NO_MESSAGE;
use crate::storage::{Epoch, LogRow, WriteStamp};

/// What the rules need to see of a row.
pub trait Row: Clone + Debug + PartialEq + Eq {
    /// Names a row and its whole past.
    type Id: Copy + Debug + PartialEq + Eq + Hash;
    /// What an entry does to an earlier row.
    type Change: Clone + Debug + PartialEq + Eq + Hash;

    /// The `prev` of the first row.
    const NO_ID: Self::Id;

    /// Its number.
    fn seq(&self) -> Seq;
    /// Its id.
    fn id(&self) -> Self::Id;
    /// The id of the row before it.
    fn prev(&self) -> Self::Id;
    /// The epoch of its writer.
    fn epoch(&self) -> Epoch;
    /// The highest seq that its writer knew to be confirmed, with the rows that it changes.
    fn base(&self) -> Seq;
    /// The lowest seq in its writer's dedup window.
    fn window(&self) -> Seq;
    /// The earlier row that this entry changes, and how.
    fn change(&self) -> Option<(Seq, Self::Change)>;
}

/// An entry that changes something, as a change: what several of them change is put together when it is written
/// ([`super::change::projection`]), and written once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changing(pub Arc<LogRow>);

impl Hash for Changing {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl Row for LogRow {
    type Id = MessageId;
    type Change = Changing;

    const NO_ID: MessageId = NO_MESSAGE;

    fn seq(&self) -> Seq {
        self.seq
    }

    fn id(&self) -> MessageId {
        self.id
    }

    fn prev(&self) -> MessageId {
        self.prev
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn base(&self) -> Seq {
        self.base
    }

    fn window(&self) -> Seq {
        self.window
    }

    fn change(&self) -> Option<(Seq, Changing)> {
        self.entry.change.as_ref().map(|_| (self.seq, Changing(Arc::new(self.clone()))))
    }
}

/// A committed change of a row that is to be written into it: read the row, change it, write it with a stamp of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Overwrite<C> {
    /// The row to change.
    pub target: Seq,
    /// How.
    pub change: C,
}

/// What the changes of `rows` leave to be done: for each target the last one only. An earlier one, written again, would
/// for a while take back what readers have seen.
fn last_changes<R: Row>(rows: &[R]) -> Vec<Overwrite<R::Change>> {
    let mut last: Vec<Overwrite<R::Change>> = Vec::new();
    for (target, change) in rows.iter().filter_map(Row::change) {
        last.retain(|overwrite| overwrite.target != target);
        last.push(Overwrite { target, change });
    }
    last
}

/// The write stamps of one owner of a shard in one epoch: each activation of a conversation and each overwrite of a row
/// takes one, so that no stamp of one row ever has two contents.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stamps {
    epoch: Epoch,
    next: u64,
}

impl Stamps {
    /// The stamps of an epoch that was just claimed.
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, next: 0 }
    }

    /// A stamp that nobody had; `None` when they are used up and the shard must be claimed again.
    pub fn fresh(&mut self) -> Option<WriteStamp> {
        let n = self.next;
        (n < WriteStamp::PER_EPOCH).then(|| {
            self.next += 1;
            WriteStamp::new(self.epoch, n)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_rise_end_and_follow_the_epoch() {
        let mut stamps = Stamps::new(Epoch(3));
        let (first, second) = (stamps.fresh().expect("new"), stamps.fresh().expect("new"));
        assert!(first < second && second < Stamps::new(Epoch(4)).fresh().expect("new"));
        stamps.next = WriteStamp::PER_EPOCH - 1;
        assert!(stamps.fresh().is_some() && stamps.fresh().is_none());
    }
}
