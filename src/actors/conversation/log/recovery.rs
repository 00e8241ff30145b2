//! How an owner begins with a log, pure: adopt, write again, confirm, repeat changes, load the dedup window.
//!
//! From the hint upwards a row is adopted while it is there and its `prev` is the id just adopted; an id names its whole
//! past, so no read needs to be atomic. All above the first that is not adopted is a ghost: never acknowledged, to be
//! overwritten.
//!
//! ```text
//!   Adopting ──▶ Rewriting ──▶ Confirming ──▶ Overwriting ──▶ ConfirmingOverwrites ──▶ LoadingWindow ──▶ Done
//!       └─nothing above base─────▲   └──nothing to change───────────────────────────────▲
//! ```
//!
//! The first confirmation is asked for even when nothing had to be written again: what is at or below a base seen is a
//! fact either way, but a fenced node must not begin to answer from a log that others go on with.

use std::sync::Arc;

use convoke_protocol::id::Seq;

use super::{Overwrite, Row, last_changes};
use crate::storage::Epoch;

/// Rows asked for at a time.
pub const ROWS_PER_READ: usize = 1_000;

/// Whether the log may have rows that this owner itself wrote in its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OwnRows {
    /// It has not had this conversation since it claimed: a row of its epoch is somebody else's.
    None,
    /// An earlier activation in the same epoch may have written, with a lower stamp.
    Possible,
}

/// What a recovery needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<R: Row> {
    /// Read the rows from this one on, at most as many as were agreed; report by [`Recovery::rows`].
    Read(Seq),
    /// Write these rows, as they are, with this activation's stamp; report by [`Recovery::durable`].
    Rewrite(Arc<[R]>),
    /// Begin a confirmation now; report by [`Recovery::confirmed`].
    Confirm,
    /// Write these changes into their rows, each with a fresh stamp; report by [`Recovery::durable`].
    Overwrite(Vec<Overwrite<R::Change>>),
    /// Read the rows `from..=to` into the dedup window; report by [`Recovery::loaded`].
    Load(Seq, Seq),
    /// The conversation may begin.
    Done,
}

/// Why a conversation cannot be begun by this owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RecoveryError {
    /// Somebody else wrote with this epoch or a later one: this owner is not one any more.
    #[error("row {seq} has epoch {found}, but this owner has {own}", found = .found.0, own = .own.0)]
    NotOurs {
        /// The row.
        seq: Seq,
        /// Its epoch.
        found: Epoch,
        /// The epoch of this owner.
        own: Epoch,
    },
    /// The row that the hint names is missing or another.
    #[error("the log does not have the row {seq} that its hint names")]
    HintBroken {
        /// The hint's base.
        seq: Seq,
    },
    /// This owner was fenced meanwhile.
    #[error("the node was fenced while the conversation began")]
    Fenced,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Adopting,
    Rewriting,
    Confirming,
    Overwriting,
    ConfirmingOverwrites,
    LoadingWindow { next: Seq },
    Done,
}

/// The beginning of one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recovery<R: Row> {
    epoch: Epoch,
    own_rows: OwnRows,
    rows_per_read: usize,
    hint: Option<(Seq, R::Id)>,
    phase: Phase,
    /// Adopted rows above the highest base seen.
    unconfirmed: Vec<R>,
    head: Option<R>,
    base: Seq,
}

impl<R: Row> Recovery<R> {
    /// Begins from the hint that the store has; reads at most so many rows at a time.
    pub fn new(
        epoch: Epoch,
        own_rows: OwnRows,
        hint: Option<(Seq, R::Id)>,
        rows_per_read: usize,
    ) -> (Self, Step<R>) {
        let base = hint.map_or(Seq::ZERO, |(seq, _)| seq);
        let recovery = Self {
            epoch,
            own_rows,
            rows_per_read,
            hint,
            phase: Phase::Adopting,
            unconfirmed: Vec::new(),
            head: None,
            base,
        };
        (recovery, Step::Read(Seq(base.0.max(1))))
    }

    fn head_seq(&self) -> Seq {
        self.head.as_ref().map_or(Seq::ZERO, Row::seq)
    }

    /// The highest row adopted so far.
    pub fn head(&self) -> Option<&R> {
        self.head.as_ref()
    }

    /// Takes the rows that were asked for.
    ///
    /// # Errors
    /// [`RecoveryError`]: this owner must not begin.
    pub fn rows(&mut self, rows: Vec<R>) -> Result<Step<R>, RecoveryError> {
        let full = rows.len() >= self.rows_per_read;
        let mut chain_ends = rows.is_empty();
        for row in rows {
            if !self.adopt(row)? {
                chain_ends = true;
                break;
            }
        }
        if let Some((base, _)) = self.hint
            && self.head_seq() < base
        {
            return Err(RecoveryError::HintBroken { seq: base });
        }
        let base = self.base;
        self.unconfirmed.retain(|row| row.seq() > base);
        if full && !chain_ends {
            return Ok(Step::Read(self.head_seq().next()));
        }
        if self.unconfirmed.is_empty() {
            self.phase = Phase::Confirming;
            return Ok(Step::Confirm);
        }
        self.phase = Phase::Rewriting;
        Ok(Step::Rewrite(self.unconfirmed.clone().into()))
    }

    fn adopt(&mut self, row: R) -> Result<bool, RecoveryError> {
        let (seq, found, own) = (row.seq(), row.epoch(), self.epoch);
        if found > own || (found == own && self.own_rows == OwnRows::None) {
            return Err(RecoveryError::NotOurs { seq, found, own });
        }
        match (&self.head, self.hint) {
            (None, Some((base, id))) => {
                if seq != base || row.id() != id {
                    return Err(RecoveryError::HintBroken { seq: base });
                }
            }
            (head, _) => {
                let before = head.as_ref().map_or(R::NO_ID, Row::id);
                if seq != self.head_seq().next() || row.prev() != before {
                    return Ok(false);
                }
                self.unconfirmed.push(row.clone());
            }
        }
        self.base = self.base.max(row.base());
        self.head = Some(row);
        Ok(true)
    }

    /// What was to be written is durable.
    pub fn durable(&mut self) -> Step<R> {
        self.phase = match self.phase {
            Phase::Overwriting => Phase::ConfirmingOverwrites,
            _ => Phase::Confirming,
        };
        Step::Confirm
    }

    /// The confirmation that was asked for has ended.
    ///
    /// # Errors
    /// [`RecoveryError::Fenced`], if it found this node fenced.
    pub fn confirmed(&mut self, still_owner: bool) -> Result<Step<R>, RecoveryError> {
        if !still_owner {
            return Err(RecoveryError::Fenced);
        }
        if self.phase == Phase::Confirming {
            let overwrites = last_changes(&self.unconfirmed);
            if !overwrites.is_empty() {
                self.phase = Phase::Overwriting;
                return Ok(Step::Overwrite(overwrites));
            }
        }
        self.unconfirmed = Vec::new();
        let next = self.head.as_ref().map_or(Seq(1), Row::window);
        Ok(self.load(next))
    }

    fn load(&mut self, next: Seq) -> Step<R> {
        let head = self.head_seq();
        if next <= head {
            self.phase = Phase::LoadingWindow { next };
            return Step::Load(next, head);
        }
        self.phase = Phase::Done;
        Step::Done
    }

    /// The dedup window has these rows of the part that was asked for.
    pub fn loaded(&mut self, rows: &[R]) -> Step<R> {
        match (&self.phase, rows.last()) {
            (Phase::LoadingWindow { next }, Some(last)) => {
                let next = last.seq().next().max(*next);
                self.load(next)
            }
            _ => {
                self.phase = Phase::Done;
                Step::Done
            }
        }
    }

    /// The head row that the conversation begins with; `None` if it is empty. Meaningful once a step was [`Step::Done`].
    pub fn finish(self) -> Option<R> {
        debug_assert_eq!(self.phase, Phase::Done, "a recovery is used before its end");
        self.head
    }
}
