//! What other nodes have lately committed for this one, pure.
//!
//! An owner answers before everybody it pushes to is found: a directory may be away for a moment. If the owner dies meanwhile,
//! the sender has its answer, and who was not a listener yet is told by nobody. So whoever passed the send on remembers it for
//! a while, and sees to it that the next owner begins with the conversation: it tells who is online up to where the log goes.

use std::collections::HashSet;
use std::time::Duration;

use convoke_protocol::id::ConversationId;

/// For how long a conversation is remembered at least: longer than it takes to find that a node is gone, and to take over from it.
const KEPT: Duration = Duration::from_secs(15);

/// Conversations in one half; with more the older half goes earlier.
const AT_MOST: usize = 32_768;

/// Two halves: the newer one is written, the older one goes as a whole.
#[derive(Debug, Default)]
pub(super) struct Recent {
    newer: HashSet<ConversationId>,
    older: HashSet<ConversationId>,
    /// When the newer half was begun, on the monotonic clock.
    begun: Duration,
}

impl Recent {
    /// Something was committed there.
    pub(super) fn note(&mut self, conversation: &ConversationId, now: Duration) {
        self.turn(now);
        if !self.newer.contains(conversation) {
            self.newer.insert(conversation.clone());
        }
    }

    /// Those of which `wanted` says so.
    pub(super) fn find(
        &mut self,
        now: Duration,
        wanted: impl Fn(&ConversationId) -> bool,
    ) -> Vec<ConversationId> {
        self.turn(now);
        let only_older = self.older.iter().filter(|conversation| !self.newer.contains(*conversation));
        self.newer.iter().chain(only_older).filter(|conversation| wanted(conversation)).cloned().collect()
    }

    fn turn(&mut self, now: Duration) {
        let age = now.saturating_sub(self.begun);
        if age < KEPT && self.newer.len() < AT_MOST {
            return;
        }
        self.older = std::mem::take(&mut self.newer);
        if age >= KEPT * 2 {
            self.older.clear();
        }
        self.begun = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(n: usize) -> ConversationId {
        ConversationId::new(&format!("g:{n}")).expect("valid")
    }

    fn all(recent: &mut Recent, now: Duration) -> Vec<ConversationId> {
        let mut all = recent.find(now, |_| true);
        all.sort();
        all
    }

    #[test]
    fn what_was_noted_is_found_for_as_long_as_it_is_kept_and_not_for_ever() {
        let (mut recent, begun) = (Recent::default(), Duration::from_secs(1_000));
        recent.note(&conversation(1), begun);
        recent.note(&conversation(2), begun + KEPT / 2);
        assert_eq!(all(&mut recent, begun + KEPT / 2), [conversation(1), conversation(2)]);
        // The second is noted again in the newer half, and is there once.
        recent.note(&conversation(3), begun + KEPT);
        recent.note(&conversation(2), begun + KEPT);
        assert_eq!(all(&mut recent, begun + KEPT), (1..=3).map(conversation).collect::<Vec<_>>());
        assert_eq!(recent.find(begun + KEPT, |one| *one == conversation(3)), [conversation(3)]);
        assert_eq!(all(&mut recent, begun + KEPT * 2), [conversation(2), conversation(3)]);
        assert_eq!(all(&mut recent, begun + KEPT * 4), []);
    }

    #[test]
    fn however_many_there_are_not_more_than_two_halves_are_held() {
        let (mut recent, now) = (Recent::default(), Duration::ZERO);
        for n in 0..AT_MOST * 3 {
            recent.note(&conversation(n), now);
        }
        let held = recent.find(now, |_| true).len();
        assert!((AT_MOST..=2 * AT_MOST).contains(&held), "{held}");
        assert_eq!(recent.find(now, |one| *one == conversation(AT_MOST * 3 - 1)).len(), 1);
    }
}
