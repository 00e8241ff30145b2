//! How an owner goes on with a log, pure: one batch in flight, used only once it is confirmed.
//!
//! ```text
//!   Idle ──begin──▶ Writing ──durable──▶ Confirming ──confirmed──▶ committed ──nothing to change──▶ Idle
//!    ▲                │ certainly not stored                          │ its entries change rows
//!    ├────────────────┘                                               ▼
//!    └──confirmed── ConfirmingOverwrites ◀──durable────────────── Overwriting
//!   any ──found fenced──▶ Fenced, for good
//! ```
//!
//! A confirmation is a quorum read of this node's own fence that *began* after what it confirms was durable and found
//! nothing. The caller begins it when [`Commit::durable`] says so, never earlier.

use std::sync::Arc;

use convoke_protocol::id::Seq;

use super::{Overwrite, Row, last_changes};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage<R> {
    Idle,
    Writing(Arc<[R]>),
    Confirming(Arc<[R]>),
    Overwriting,
    ConfirmingOverwrites,
    Fenced,
}

/// What a confirmation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confirmed<R: Row> {
    /// Nothing waited for one.
    Nothing,
    /// This owner is fenced, for good: nothing may be used any more.
    Fenced,
    /// These rows are facts. Where `overwrites` is not empty, write them now, and report by [`Commit::durable`]; who sent
    /// those changes is answered when they are confirmed too.
    Committed {
        /// The rows.
        rows: Arc<[R]>,
        /// What they change.
        overwrites: Vec<Overwrite<R::Change>>,
    },
    /// The rows that the last batch changed are confirmed.
    Overwritten,
}

/// The line between what is written and what is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Commit<R: Row> {
    head: (Seq, R::Id),
    /// The highest seq that is confirmed, overwrites included: behind the head while rows are being changed.
    base: (Seq, R::Id),
    stage: Stage<R>,
}

impl<R: Row> Commit<R> {
    /// Goes on from a head that was recovered (and so is confirmed, with all it changes); zero and [`Row::NO_ID`] in an
    /// empty log.
    pub fn new(head: Seq, id: R::Id) -> Self {
        Self { head: (head, id), base: (head, id), stage: Stage::Idle }
    }

    /// The highest fact and its id.
    pub fn head(&self) -> (Seq, R::Id) {
        self.head
    }

    /// What rows written now carry as their base, and its id: what a hint may name.
    pub fn base(&self) -> (Seq, R::Id) {
        self.base
    }

    /// Whether a batch may begin.
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// Whether this owner was found fenced.
    pub fn is_fenced(&self) -> bool {
        self.stage == Stage::Fenced
    }

    /// Whether a confirmation is waited for.
    pub fn is_confirming(&self) -> bool {
        matches!(self.stage, Stage::Confirming(_) | Stage::ConfirmingOverwrites)
    }

    /// These rows are being written. Until they are durable, or certainly not stored, they may only be written again as
    /// they are, with the same stamp.
    ///
    /// # Panics
    /// If a batch is in flight, or the rows do not follow on the head.
    pub fn begin(&mut self, rows: Arc<[R]>) {
        assert!(self.is_idle(), "one batch of a conversation is in flight");
        let follows =
            rows.first().is_some_and(|row| row.seq() == self.head.0.next() && row.prev() == self.head.1);
        assert!(follows, "a batch follows on the head");
        self.stage = Stage::Writing(rows);
    }

    /// What is being written is durable; says whether to begin a confirmation now.
    pub fn durable(&mut self) -> bool {
        let (stage, begins) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Writing(rows) => (Stage::Confirming(rows), true),
            Stage::Overwriting => (Stage::ConfirmingOverwrites, true),
            other => (other, false),
        };
        self.stage = stage;
        begins
    }

    /// The batch being written certainly is not stored and never will be: its numbers are given again.
    pub fn not_stored(&mut self) {
        if matches!(self.stage, Stage::Writing(_)) {
            self.stage = Stage::Idle;
        }
    }

    /// A confirmation that began after [`Self::durable`] asked for it has ended.
    pub fn confirmed(&mut self, still_owner: bool) -> Confirmed<R> {
        if !still_owner {
            self.stage = Stage::Fenced;
            return Confirmed::Fenced;
        }
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Confirming(rows) => {
                if let Some(last) = rows.last() {
                    self.head = (last.seq(), last.id());
                }
                let overwrites = last_changes(&rows);
                if overwrites.is_empty() {
                    self.base = self.head;
                } else {
                    self.stage = Stage::Overwriting;
                }
                Confirmed::Committed { rows, overwrites }
            }
            Stage::ConfirmingOverwrites => {
                self.base = self.head;
                Confirmed::Overwritten
            }
            other => {
                self.stage = other;
                Confirmed::Nothing
            }
        }
    }
}
