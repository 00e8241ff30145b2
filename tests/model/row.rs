//! Rows of a few bytes, for the rules that know them only as `log::Row`.

use convoke::actors::conversation::log::Row;
use convoke::storage::Epoch;
use convoke_protocol::id::Seq;

/// Names a row: who made it (epoch, activation) and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Id {
    pub(crate) stamp: u64,
    pub(crate) seq: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SmallRow {
    pub(crate) seq: u8,
    pub(crate) id: Id,
    pub(crate) prev: Id,
    pub(crate) epoch: u8,
    pub(crate) base: u8,
    pub(crate) window: u8,
    /// The client id of the send.
    pub(crate) client: u8,
    /// The row that this entry changes; 0 for a plain message.
    pub(crate) target: u8,
    /// The entry whose change was written into this row last.
    pub(crate) version: Id,
}

impl SmallRow {
    /// What of a row never changes, whoever writes it again.
    pub(crate) fn identity(&self) -> (u8, Id, Id, u8, u8) {
        (self.seq, self.id, self.prev, self.client, self.target)
    }
}

impl Row for SmallRow {
    type Id = Id;
    type Change = Id;

    const NO_ID: Id = Id { stamp: 0, seq: 0 };

    fn seq(&self) -> Seq {
        Seq(u64::from(self.seq))
    }

    fn id(&self) -> Id {
        self.id
    }

    fn prev(&self) -> Id {
        self.prev
    }

    fn epoch(&self) -> Epoch {
        Epoch(u64::from(self.epoch))
    }

    fn base(&self) -> Seq {
        Seq(u64::from(self.base))
    }

    fn window(&self) -> Seq {
        Seq(u64::from(self.window))
    }

    fn change(&self) -> Option<(Seq, Id)> {
        (self.target > 0).then_some((Seq(u64::from(self.target)), self.id))
    }
}
