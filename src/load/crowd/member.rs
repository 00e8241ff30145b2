//! What one client of a crowd has seen of the group.

use convoke_protocol::message::Cursor;

use crate::load::client::seen::{Seen, Standing};
use crate::load::report::Verdict;

/// What one client knows.
#[derive(Debug, Default)]
pub(super) struct Member {
    /// Numbers of the group above its base, as pushes or as answers to its own.
    pub(super) seen: Seen,
    standing: Standing,
    last_push: u64,
    /// The highest number that was pulled, if anything was: a push of what is below may come after it.
    pub(super) pulled: u64,
    /// Whether its connection was lost and came back.
    pub(super) returned: bool,
    found: Verdict,
    /// How far it has its conversations, to be told at its next login.
    pub(super) cursors: Vec<Cursor>,
    /// Of the last time it had caught up.
    pub(super) token: Option<String>,
    /// What becomes that when it has caught up this time.
    pub(super) next_token: Option<String>,
    /// When its connection was begun.
    pub(super) opened_us: u64,
}

impl Member {
    /// A message was pushed; whether it is new.
    pub(super) fn pushed(&mut self, number: u64) -> bool {
        let new = self.seen.insert(number);
        if !new {
            self.found.duplicated += 1;
        } else if number < self.last_push {
            self.found.out_of_order += 1;
        }
        self.last_push = self.last_push.max(number);
        new
    }

    /// Whether a gap stays; each is said once.
    pub(super) fn is_gap_standing(&mut self) -> bool {
        self.standing.look(&self.seen)
    }

    /// Its own message has this number.
    pub(super) fn acked(&mut self, number: u64) {
        if !self.seen.insert(number) {
            self.found.duplicated += 1;
        }
    }

    /// What is wrong if the last number is `head` and nothing more comes.
    pub(super) fn verdict(&self, head: u64) -> Verdict {
        let above = self.seen.highest().saturating_sub(head);
        Verdict { lost: self.seen.missing_up_to(head.max(self.seen.highest())), gaps: above, ..self.found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_doubled_late_or_too_high_is_found() {
        let verdict = |pushes: &[u64], head| {
            let mut member = Member::default();
            member.acked(2);
            pushes.iter().for_each(|number| {
                member.pushed(*number);
            });
            let Verdict { lost, duplicated, out_of_order, gaps } = member.verdict(head);
            (lost, duplicated, out_of_order, gaps)
        };
        assert_eq!(verdict(&[1, 3, 4], 4), (0, 0, 0, 0));
        assert_eq!(verdict(&[1, 3], 4), (1, 0, 0, 0));
        assert_eq!(verdict(&[1, 2, 3, 3, 4], 4), (0, 2, 0, 0));
        assert_eq!(verdict(&[3, 1, 4], 4), (0, 0, 1, 0));
        assert_eq!(verdict(&[1, 3, 4, 5], 4), (0, 0, 0, 1));
    }
}
