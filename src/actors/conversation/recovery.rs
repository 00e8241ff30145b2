//! How an owner begins with a conversation, pure: adopt, rewrite, confirm, load the dedup window.
//!
//! From the hint upwards a row is adopted while it is there and its `prev` is the id just adopted; an id names its whole
//! past, so no read needs to be atomic. All above the first that is not adopted is a ghost: never acknowledged, to be
//! overwritten. The adopted rows above the highest `base` seen are written again with this owner's stamp and confirmed
//! before anything is answered or shown.

use std::sync::Arc;

use convoke_protocol::id::{ConversationId, Seq};

use super::core::Head;
use super::dedup::{DedupWindow, Place};
use crate::clock::Now;
use crate::storage::{Epoch, Hint, LogRow};

/// Rows asked for at a time.
pub const ROWS_PER_READ: usize = 1_000;

/// What a recovery needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read the rows `from..=to`, at most [`ROWS_PER_READ`] of them; report by [`Recovery::rows`].
    Read(Seq, Seq),
    /// Write these rows with this owner's stamp, then confirm; report by [`Recovery::rewritten`].
    Rewrite(Arc<[LogRow]>),
    /// The conversation may begin.
    Done,
}

/// Why a conversation cannot be begun by this owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// Somebody wrote with a later epoch: this owner is not one any more.
    #[error("row {seq} has epoch {found}, but this owner has {own}", found = .found.0, own = .own.0)]
    LaterEpoch {
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
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Adopting,
    Rewriting,
    LoadingWindow { next: Seq },
    Done,
}

/// The beginning of one conversation.
#[derive(Debug, Clone)]
pub struct Recovery {
    conversation: ConversationId,
    epoch: Epoch,
    hint: Option<Hint>,
    phase: Phase,
    /// Adopted rows above the hint.
    adopted: Vec<LogRow>,
    head: Head,
    /// The highest `base` seen: what is at or below it needs no rewrite.
    base: Seq,
    window: Seq,
    dedup: DedupWindow,
    loaded: usize,
}

impl Recovery {
    /// Begins from the hint that the store has.
    pub fn new(conversation: ConversationId, epoch: Epoch, hint: Option<Hint>) -> (Self, Step) {
        let base = hint.map_or(Seq::ZERO, |hint| hint.base);
        let recovery = Self {
            conversation,
            epoch,
            hint,
            phase: Phase::Adopting,
            adopted: Vec::new(),
            head: Head::EMPTY,
            base,
            window: Seq(1),
            dedup: DedupWindow::new(),
            loaded: 0,
        };
        let from = Seq(base.0.max(1));
        (recovery, Step::Read(from, Seq(u64::MAX)))
    }

    /// The conversation.
    pub fn conversation(&self) -> &ConversationId {
        &self.conversation
    }

    /// Takes the rows that were asked for.
    ///
    /// # Errors
    /// [`RecoveryError`]: this owner must not begin.
    pub fn rows(&mut self, rows: Vec<LogRow>, now: Now) -> Result<Step, RecoveryError> {
        match self.phase {
            Phase::LoadingWindow { .. } => Ok(self.load(&rows, now)),
            _ => self.adopt(rows, now),
        }
    }

    fn adopt(&mut self, rows: Vec<LogRow>, now: Now) -> Result<Step, RecoveryError> {
        let full = rows.len() >= ROWS_PER_READ;
        let mut chain_ends = rows.is_empty();
        for row in rows {
            if row.epoch > self.epoch {
                return Err(RecoveryError::LaterEpoch { seq: row.seq, found: row.epoch, own: self.epoch });
            }
            let is_hint = self.head.seq == Seq::ZERO && self.hint.is_some_and(|hint| hint.base == row.seq);
            if is_hint {
                if self.hint.is_none_or(|hint| hint.id != row.id) {
                    return Err(RecoveryError::HintBroken { seq: row.seq });
                }
            } else if row.seq != self.head.seq.next() || row.prev != self.head.id {
                chain_ends = true;
                break;
            }
            self.base = self.base.max(row.base);
            self.window = row.window;
            self.head = Head::of(&row);
            if !is_hint {
                self.adopted.push(row);
            }
        }
        if let Some(hint) = self.hint
            && self.head.seq < hint.base
        {
            return Err(RecoveryError::HintBroken { seq: hint.base });
        }
        if full && !chain_ends {
            return Ok(Step::Read(self.head.seq.next(), Seq(u64::MAX)));
        }
        let unconfirmed: Vec<_> = self.adopted.iter().filter(|row| row.seq > self.base).cloned().collect();
        if unconfirmed.is_empty() {
            return Ok(self.begin_window(now));
        }
        self.phase = Phase::Rewriting;
        Ok(Step::Rewrite(unconfirmed.into()))
    }

    /// The rewritten rows are durable and confirmed.
    pub fn rewritten(&mut self, now: Now) -> Step {
        self.begin_window(now)
    }

    fn begin_window(&mut self, now: Now) -> Step {
        self.adopted = Vec::new();
        self.phase = Phase::LoadingWindow { next: self.window };
        self.next_of_window(now)
    }

    fn load(&mut self, rows: &[LogRow], now: Now) -> Step {
        for row in rows {
            let place = Place { seq: row.seq, id: row.id, time: row.entry.time };
            self.dedup.commit(row.entry.sender.clone(), row.entry.client_id, place, now.monotonic);
            self.phase = Phase::LoadingWindow { next: row.seq.next() };
            self.loaded += 1;
        }
        if rows.is_empty() {
            self.phase = Phase::LoadingWindow { next: self.head.seq.next() };
        }
        self.next_of_window(now)
    }

    fn next_of_window(&mut self, now: Now) -> Step {
        match self.phase {
            Phase::LoadingWindow { next } if next <= self.head.seq => Step::Read(next, self.head.seq),
            _ => {
                if self.dedup.was_cut(self.loaded) {
                    self.dedup.cut(now.monotonic);
                }
                self.phase = Phase::Done;
                Step::Done
            }
        }
    }

    /// What the conversation begins with. Meaningful once a step was [`Step::Done`].
    pub fn finish(self) -> (Head, DedupWindow) {
        debug_assert_eq!(self.phase, Phase::Done, "a recovery is used before its end");
        (self.head, self.dedup)
    }
}
