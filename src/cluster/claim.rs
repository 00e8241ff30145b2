//! Who owns one shard, pure: what one incarnation reads, claims, serves and gives back.
//!
//! ```text
//!   Unknown ──read──▶ Known ──released, or its owner's fence is durable──▶ Deciding ──applied──▶ Known, mine: start
//!      ▲                │ mine, not wanted ──▶ Closing ──closed──▶ Deciding (release)              │
//!      └────────────────┴───────────────── unknown, or not applied ◀──────────────────────────────┘
//! ```
//!
//! Ownership changes only by conditional statements (LWT) on the exact value that was read, and each claim raises the
//! epoch, so no value ever comes back. A statement without a certain "applied" may still apply at any later time. So
//! nothing is concluded from it: the row is read again (SERIAL), and what it shows is what counts. A row that names this
//! incarnation with an epoch whose gate was never closed is a claim that did apply; one whose gate was closed is a release
//! that did not, or not yet, and is sent again. A gate that was closed never opens.

use super::membership::Incarnation;
use crate::storage::Epoch;

/// The value of a shard's row. One that does not exist is released with epoch 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ShardRow {
    /// Whose it is; `None` if it is released.
    pub owner: Option<Incarnation>,
    /// How often it was claimed.
    pub epoch: Epoch,
}

/// How a conditional statement ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It was applied, for certain.
    Applied,
    /// The condition did not hold for this attempt; an earlier one may have applied, or may apply later.
    NotApplied,
    /// It may have been applied, or may be later.
    Unknown,
}

/// What is to be done for a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Todo {
    /// Read the row at SERIAL; report by [`ShardClaim::read`].
    Read,
    /// Write `then` if the row has exactly the value `expected`; report by [`ShardClaim::decided`].
    Decide {
        /// What was read.
        expected: ShardRow,
        /// What it becomes: claimed by this incarnation, or released.
        then: ShardRow,
    },
    /// The claim is known applied: serve the shard in this epoch. Its gate is open.
    Start(Epoch),
    /// Stop answering, pushing and writing for good; report by [`ShardClaim::closed`].
    Close(Epoch),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Unknown,
    Reading,
    Known(ShardRow),
    Deciding { expected: ShardRow, then: ShardRow },
    Closing(ShardRow),
}

/// One shard, as one incarnation sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ShardClaim {
    me: Incarnation,
    stage: Stage,
    /// The epoch in which it is served here.
    open: Option<Epoch>,
    /// The gates of this epoch and all before it are closed for good.
    closed: Epoch,
    /// What another said meanwhile: that it released the shard in this epoch. The read that is under way may have been before.
    heard: Option<Epoch>,
    /// A statement on this value was sent and did not certainly end. It may still apply while the row has that value.
    unsettled: Option<ShardRow>,
}

impl ShardClaim {
    /// Nothing is known of the shard.
    pub fn new(me: Incarnation) -> Self {
        Self { me, stage: Stage::Unknown, open: None, closed: Epoch(0), heard: None, unsettled: None }
    }

    /// The row, if it is known.
    pub fn row(&self) -> Option<ShardRow> {
        match self.stage {
            Stage::Known(row) => Some(row),
            _ => None,
        }
    }

    /// The epoch whose gate is open: in which answers, pushes and new writes may leave.
    pub fn open(&self) -> Option<Epoch> {
        self.open
    }

    /// What the row was when the shard was told to close, while it does.
    pub fn closing(&self) -> Option<ShardRow> {
        match self.stage {
            Stage::Closing(row) => Some(row),
            _ => None,
        }
    }

    /// Whether a statement of this incarnation may have been applied, or may be later, without its knowing.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.is_some()
    }

    /// Whether a statement is under way.
    pub fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::Reading | Stage::Deciding { .. } | Stage::Closing(_))
    }

    /// Whether it is on its way from this incarnation to whoever comes next: closed, and not certainly released.
    pub fn is_being_given_back(&self) -> bool {
        let mine = |row: ShardRow| row.owner == Some(self.me) && row.epoch <= self.closed;
        match self.stage {
            Stage::Closing(_) => true,
            Stage::Known(row) | Stage::Deciding { expected: row, .. } => mine(row),
            Stage::Unknown | Stage::Reading => self.unsettled.is_some_and(mine),
        }
    }

    /// Whether nothing is left to give back.
    pub fn is_given_back(&self) -> bool {
        let others = self.row().is_none_or(|row| row.owner != Some(self.me));
        self.open.is_none() && !self.is_busy() && self.unsettled.is_none() && others
    }

    /// Somebody else may have changed the row: it is read again.
    pub fn doubt(&mut self) {
        if matches!(self.stage, Stage::Known(_)) {
            self.stage = Stage::Unknown;
        }
    }

    /// Somebody says that it released the shard, having had it in this epoch. It need not be read first: a claim applies only if it
    /// is so.
    pub fn released(&mut self, epoch: Epoch) {
        match self.stage {
            Stage::Reading => self.heard = self.heard.max(Some(epoch)),
            // What is unsettled is settled by a read alone; and who serves it does not go by hearsay.
            _ if self.unsettled.is_some() || self.open.is_some() => self.doubt(),
            Stage::Known(row) if row.epoch > epoch => {}
            Stage::Known(_) | Stage::Unknown => self.stage = Stage::Known(ShardRow { owner: None, epoch }),
            Stage::Deciding { .. } | Stage::Closing(_) => {}
        }
    }

    /// What to do next, if nothing is under way. `may_take` says whether an incarnation's fence is known durable.
    pub fn next(&mut self, wanted: bool, may_take: impl Fn(Incarnation) -> bool) -> Option<Todo> {
        let row = match self.stage {
            Stage::Unknown => {
                self.stage = Stage::Reading;
                return Some(Todo::Read);
            }
            Stage::Known(row) => row,
            Stage::Reading | Stage::Deciding { .. } | Stage::Closing(_) => return None,
        };
        let mine = row.owner == Some(self.me);
        if let Some(epoch) = self.open {
            if mine && row.epoch == epoch && wanted {
                return None;
            }
            // Not wanted here any more; or taken by another, which is possible only after a fence.
            self.stage = Stage::Closing(row);
            return Some(Todo::Close(epoch));
        }
        if mine && row.epoch > self.closed {
            if wanted {
                self.open = Some(row.epoch);
                return Some(Todo::Start(row.epoch));
            }
            self.closed = row.epoch;
        }
        if mine {
            return Some(self.decide(row, ShardRow { owner: None, epoch: row.epoch }));
        }
        let free = row.owner.is_none_or(may_take);
        // A claim that may still apply is sent again although nobody wants it any more: once it has certainly applied it can
        // be given back, and until then the shard could fall to a node that does not know.
        let wanted = wanted || self.unsettled == Some(row);
        (wanted && free)
            .then(|| self.decide(row, ShardRow { owner: Some(self.me), epoch: Epoch(row.epoch.0 + 1) }))
    }

    fn decide(&mut self, expected: ShardRow, then: ShardRow) -> Todo {
        self.stage = Stage::Deciding { expected, then };
        Todo::Decide { expected, then }
    }

    /// The row that was asked for; `None` if it could not be read.
    pub fn read(&mut self, row: Option<ShardRow>) {
        if self.stage == Stage::Reading {
            self.stage = row.map_or(Stage::Unknown, Stage::Known);
            // No value comes back: what waited for another one than this can never apply.
            self.unsettled = self.unsettled.filter(|expected| row.is_none_or(|row| row == *expected));
            if let Some(epoch) = self.heard.take() {
                self.released(epoch);
            }
        }
    }

    /// The conditional statement has ended.
    pub fn decided(&mut self, decision: Decision) {
        if let Stage::Deciding { expected, then } = self.stage {
            let applied = decision == Decision::Applied;
            self.stage = if applied { Stage::Known(then) } else { Stage::Unknown };
            self.unsettled = (!applied).then_some(expected);
        }
    }

    /// The shard does not answer, push or write any more in the epoch that was to be closed.
    pub fn closed(&mut self) {
        if let Stage::Closing(row) = self.stage {
            self.shut();
            self.stage = Stage::Known(row);
        }
    }

    /// The node is dead: whatever is under way, nothing is served any more. Returns the epoch that was.
    pub fn shut(&mut self) -> Option<Epoch> {
        let open = self.open.take();
        self.closed = self.closed.max(open.unwrap_or_default());
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Incarnation = Incarnation(uuid::Uuid::from_u128(1));
    const OTHER: Incarnation = Incarnation(uuid::Uuid::from_u128(2));

    fn row(owner: Option<Incarnation>, epoch: u64) -> ShardRow {
        ShardRow { owner, epoch: Epoch(epoch) }
    }

    fn decide(expected: ShardRow, then: ShardRow) -> Option<Todo> {
        Some(Todo::Decide { expected, then })
    }

    fn known(row: ShardRow) -> ShardClaim {
        let mut claim = ShardClaim::new(ME);
        assert_eq!(claim.next(true, |_| false), Some(Todo::Read));
        claim.read(Some(row));
        claim
    }

    #[test]
    fn a_shard_is_claimed_served_and_given_back() {
        let mut claim = known(row(None, 0));
        assert_eq!(claim.next(true, |_| false), decide(row(None, 0), row(Some(ME), 1)));
        assert_eq!((claim.next(true, |_| false), claim.open()), (None, None));
        claim.decided(Decision::Applied);
        assert_eq!(claim.next(true, |_| false), Some(Todo::Start(Epoch(1))));
        assert_eq!((claim.next(true, |_| false), claim.open()), (None, Some(Epoch(1))));
        assert_eq!(claim.next(false, |_| false), Some(Todo::Close(Epoch(1))));
        claim.closed();
        assert_eq!(claim.open(), None);
        assert_eq!(claim.next(false, |_| false), decide(row(Some(ME), 1), row(None, 1)));
        claim.decided(Decision::Applied);
        assert_eq!(claim.next(false, |_| false), None);
        assert!(claim.is_given_back());
    }

    #[test]
    fn a_foreign_shard_is_taken_only_behind_a_durable_fence() {
        let mut claim = known(row(Some(OTHER), 4));
        assert_eq!(claim.next(true, |_| false), None);
        assert_eq!(claim.next(true, |dead| dead == OTHER), decide(row(Some(OTHER), 4), row(Some(ME), 5)));
    }

    #[test]
    fn a_claim_of_unknown_outcome_counts_once_it_is_seen() {
        let mut claim = known(row(None, 3));
        claim.next(true, |_| false);
        claim.decided(Decision::Unknown);
        assert_eq!(claim.next(true, |_| false), Some(Todo::Read));
        // Not applied so far: it may be later, so the same statement goes out again, and nothing starts.
        claim.read(Some(row(None, 3)));
        assert_eq!(claim.next(true, |_| false), decide(row(None, 3), row(Some(ME), 4)));
        claim.decided(Decision::NotApplied);
        assert_eq!(claim.next(true, |_| false), Some(Todo::Read));
        claim.read(Some(row(Some(ME), 4)));
        assert_eq!(claim.next(true, |_| false), Some(Todo::Start(Epoch(4))));
    }

    #[test]
    fn a_claim_that_may_still_apply_is_settled_before_it_is_forgotten() {
        let mut claim = known(row(None, 3));
        claim.next(true, |_| false);
        claim.decided(Decision::Unknown);
        claim.next(false, |_| false);
        claim.read(Some(row(None, 3)));
        assert!(!claim.is_given_back());
        assert_eq!(claim.next(false, |_| false), decide(row(None, 3), row(Some(ME), 4)));
        claim.decided(Decision::Applied);
        assert_eq!(claim.next(false, |_| false), decide(row(Some(ME), 4), row(None, 4)));
        claim.decided(Decision::Unknown);
        claim.next(false, |_| false);
        claim.read(Some(row(Some(OTHER), 5)));
        assert_eq!((claim.next(false, |_| false), claim.is_given_back()), (None, true));
    }

    #[test]
    fn a_release_that_was_not_applied_is_sent_again_and_nothing_goes_on() {
        let mut claim = known(row(Some(ME), 2));
        assert_eq!(claim.next(true, |_| false), Some(Todo::Start(Epoch(2))));
        claim.next(false, |_| false);
        claim.closed();
        claim.next(false, |_| false);
        for decision in [Decision::Unknown, Decision::NotApplied] {
            claim.decided(decision);
            assert_eq!(claim.next(true, |_| false), Some(Todo::Read));
            claim.read(Some(row(Some(ME), 2)));
            // Wanted again: it is given back first all the same, and claimed anew.
            assert_eq!(claim.next(true, |_| false), decide(row(Some(ME), 2), row(None, 2)));
        }
        claim.decided(Decision::Applied);
        assert_eq!(claim.next(true, |_| false), decide(row(None, 2), row(Some(ME), 3)));
    }

    #[test]
    fn what_is_said_to_be_released_is_claimed_without_a_read() {
        let released = |before: ShardRow, epoch| {
            let mut claim = known(before);
            claim.released(Epoch(epoch));
            claim.next(true, |_| false)
        };
        let claims = |epoch| decide(row(None, epoch), row(Some(ME), epoch + 1));
        assert_eq!(released(row(Some(OTHER), 4), 4), claims(4));
        assert_eq!(released(row(Some(OTHER), 4), 6), claims(6));
        assert_eq!(released(row(Some(OTHER), 5), 4), None, "an old word");
        // Heard while it was read: the read may have been before.
        for (read, expected) in
            [(row(Some(OTHER), 4), claims(4)), (row(None, 4), claims(4)), (row(Some(OTHER), 5), None)]
        {
            let mut claim = ShardClaim::new(ME);
            claim.next(true, |_| false);
            claim.released(Epoch(4));
            claim.read(Some(read));
            assert_eq!(claim.next(true, |_| false), expected, "{read:?}");
        }
        // A claim that may still apply is settled by a read, and a shard that is served is not given up for a word.
        let mut claim = known(row(None, 3));
        claim.next(true, |_| false);
        claim.decided(Decision::Unknown);
        claim.released(Epoch(4));
        assert_eq!(claim.next(true, |_| false), Some(Todo::Read));
        let mut claim = known(row(Some(ME), 2));
        claim.next(true, |_| false);
        claim.released(Epoch(5));
        assert_eq!((claim.next(true, |_| false), claim.open()), (Some(Todo::Read), Some(Epoch(2))));
    }

    #[test]
    fn a_shard_that_another_took_is_closed() {
        let mut claim = known(row(Some(ME), 2));
        claim.next(true, |_| false);
        claim.doubt();
        assert_eq!(claim.next(true, |_| false), Some(Todo::Read));
        claim.read(Some(row(Some(OTHER), 3)));
        assert_eq!(claim.next(true, |_| false), Some(Todo::Close(Epoch(2))));
    }
}
