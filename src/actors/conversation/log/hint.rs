//! Where the next owner may begin to read, and up to where the log may be trimmed, pure.
//!
//! ```text
//!   Settled ──propose──▶ Writing ──durable──▶ Confirming ──confirmed──▶ Settled, with the new hint
//! ```
//!
//! A hint names a confirmed base, never more. A trim reaches at most a hint that is itself durable and confirmed: an owner
//! that began with an older one could otherwise find its first row missing and take the log for empty.

use convoke_protocol::id::Seq;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage<I> {
    Settled,
    Writing(Seq, I),
    Confirming(Seq, I),
    Fenced,
}

/// The hint of one conversation, as its owner keeps it. `I` is what ids of rows are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HintLine<I> {
    /// The hint that is durable and confirmed.
    settled: Seq,
    stage: Stage<I>,
}

impl<I: Copy> HintLine<I> {
    /// An owner begins: whatever hint it read, it has confirmed none itself.
    pub fn new() -> Self {
        Self { settled: Seq::ZERO, stage: Stage::Settled }
    }

    /// The hint to write now, if the confirmed base (of [`super::commit::Commit::base`]) is above the last one. Written
    /// with a fresh stamp; repeated with the same one.
    pub fn propose(&mut self, base: (Seq, I)) -> Option<(Seq, I)> {
        let (seq, id) = base;
        if !matches!(self.stage, Stage::Settled) || seq <= self.settled {
            return None;
        }
        self.stage = Stage::Writing(seq, id);
        Some(base)
    }

    /// How many rows a new owner would read beyond the confirmed hint.
    pub fn lag(&self, base: Seq) -> u64 {
        base.0.saturating_sub(self.settled.0)
    }

    /// The hint may not have been kept: a later one is proposed anew.
    pub fn give_up(&mut self) {
        if matches!(self.stage, Stage::Writing(..)) {
            self.stage = Stage::Settled;
        }
    }

    /// The hint is durable; says whether to begin a confirmation now.
    pub fn durable(&mut self) -> bool {
        let Stage::Writing(seq, id) = self.stage else { return false };
        self.stage = Stage::Confirming(seq, id);
        true
    }

    /// A confirmation that began after [`Self::durable`] asked for it has ended.
    pub fn confirmed(&mut self, still_owner: bool) {
        if !still_owner {
            self.stage = Stage::Fenced;
        } else if let Stage::Confirming(seq, _) = self.stage {
            self.settled = seq;
            self.stage = Stage::Settled;
        }
    }

    /// Rows below this may be deleted, if retention asks for it: those below the dedup window and below a settled hint.
    /// The row that the hint names stays, since the next owner begins with it.
    pub fn trim_below(&self, window: Seq) -> Seq {
        self.settled.min(window)
    }
}

impl<I: Copy> Default for HintLine<I> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_trimmed_before_the_hint_is_confirmed() {
        let mut hints = HintLine::new();
        assert_eq!(hints.propose((Seq::ZERO, 0)), None);
        assert_eq!(hints.propose((Seq(3), 33)), Some((Seq(3), 33)));
        assert_eq!((hints.propose((Seq(4), 44)), hints.trim_below(Seq(9))), (None, Seq::ZERO));
        assert!(hints.durable() && !hints.durable());
        assert_eq!(hints.trim_below(Seq(9)), Seq::ZERO);
        hints.confirmed(true);
        assert_eq!([hints.trim_below(Seq(9)), hints.trim_below(Seq(2))], [Seq(3), Seq(2)]);
        assert_eq!(hints.propose((Seq(3), 33)), None);
        assert_eq!([hints.lag(Seq(7)), hints.lag(Seq(3)), hints.lag(Seq::ZERO)], [4, 0, 0]);
    }

    #[test]
    fn an_owner_that_is_fenced_trims_nothing_more() {
        let mut hints = HintLine::new();
        hints.propose((Seq(3), 33));
        hints.durable();
        hints.confirmed(false);
        hints.confirmed(true);
        assert_eq!((hints.trim_below(Seq(9)), hints.propose((Seq(4), 44))), (Seq::ZERO, None));
    }
}
