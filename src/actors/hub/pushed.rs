//! Up to where the listeners of a conversation were pushed what was said, pure.

use convoke_protocol::id::Seq;

/// What a hub has pushed of one conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pushed {
    /// The highest; zero if nothing was since it is listened to.
    last: Seq,
    /// Something below it was not, and nobody was told.
    broken: bool,
}

impl Pushed {
    /// These are to be pushed; says whether they still are. A former owner's last words may come after the first of the next
    /// one: who needs them sees a gap and fetches them.
    pub(super) fn next(&mut self, first: Seq, head: Seq) -> bool {
        let is_late = first <= self.last;
        if !is_late {
            self.broken |= first != self.last.next();
            self.last = head;
        }
        !is_late
    }

    /// Whether everything up to the head was pushed.
    pub(super) fn is_whole(self, head: Seq) -> bool {
        self.last >= head && !self.broken
    }

    /// Everybody who may have missed something was told up to where it goes.
    pub(super) fn told(&mut self) {
        self.broken = false;
    }

    /// The head is this; says whether the listeners have less, and are to be told.
    pub(super) fn catch_up(&mut self, head: Seq) -> bool {
        let have_less = self.last < head;
        if have_less {
            *self = Self { last: head, broken: false };
        }
        have_less
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(parts: &[(u64, u64)]) -> Pushed {
        let mut pushed = Pushed::default();
        for (first, head) in parts {
            pushed.next(Seq(*first), Seq(*head));
        }
        pushed
    }

    #[test]
    fn what_was_pushed_without_a_gap_is_whole() {
        assert!(Pushed::default().is_whole(Seq::ZERO));
        assert!(!Pushed::default().is_whole(Seq(1)));
        let whole = pushed(&[(1, 1), (2, 5), (6, 6)]);
        assert!(whole.is_whole(Seq(6)) && whole.is_whole(Seq(3)) && !whole.is_whole(Seq(7)));
        // Whether the first was missed by somebody is not known here.
        assert!(!pushed(&[(4, 4)]).is_whole(Seq(4)));
        assert!(!pushed(&[(1, 2), (4, 4)]).is_whole(Seq(4)));
    }

    #[test]
    fn what_was_told_is_no_gap_any_more() {
        let mut gap = pushed(&[(1, 2), (4, 4)]);
        gap.told();
        assert!(gap.is_whole(Seq(4)));
        let mut behind = pushed(&[(1, 2), (4, 4)]);
        assert!(!behind.catch_up(Seq(4)) && !behind.is_whole(Seq(4)));
        assert!(behind.catch_up(Seq(9)) && behind.is_whole(Seq(9)));
        assert!(behind.next(Seq(10), Seq(10)) && behind.is_whole(Seq(10)));
    }

    #[test]
    fn last_words_that_come_late_are_left_out() {
        let mut pushed = pushed(&[(1, 2), (4, 4)]);
        assert!(!pushed.next(Seq(3), Seq(3)) && !pushed.next(Seq(4), Seq(6)));
        assert!(pushed.next(Seq(5), Seq(6)) && !pushed.is_whole(Seq(6)));
    }
}
