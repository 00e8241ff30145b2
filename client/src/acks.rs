//! When to tell the server what arrived: batched and delayed, as TCP acknowledges.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::message::Cursor;
use convoke_protocol::request::messages::Ack;

/// So many pushes are acknowledged at once.
const BATCH: u64 = 64;

/// An acknowledgement waits no longer than this.
pub(crate) const DELAY: Duration = Duration::from_secs(1);

/// What is to be acknowledged on one connection, and the cursors across connections.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    received: u64,
    told: u64,
    cursors: BTreeMap<ConversationId, Seq>,
    in_flight: Option<Vec<Cursor>>,
    due: Option<Instant>,
}

impl Acks {
    /// The count begins anew; cursors whose acknowledgement was not answered are told again.
    pub(crate) fn connected(&mut self, now: Instant) {
        self.received = 0;
        self.told = 0;
        self.due = None;
        self.failed(now);
        if !self.cursors.is_empty() {
            self.due = Some(now);
        }
    }

    /// A push arrived, whether or not it was of use.
    pub(crate) fn received(&mut self, now: Instant) {
        self.received += 1;
        let due = if self.received - self.told >= BATCH { now } else { now + DELAY };
        self.due = Some(self.due.map_or(due, |at| at.min(due)));
    }

    /// The application has a conversation up to `seq`.
    pub(crate) fn had(&mut self, conversation: ConversationId, seq: Seq, now: Instant) {
        let known = self.cursors.entry(conversation).or_default();
        *known = seq.max(*known);
        self.due.get_or_insert(now + DELAY);
    }

    /// When [`Acks::next`] has something.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.in_flight.is_none())
    }

    /// The acknowledgement to write now; one is in flight at a time. With `flush` it does not wait for its time.
    pub(crate) fn next(&mut self, max_cursors: usize, flush: bool, now: Instant) -> Option<Ack> {
        if self.in_flight.is_some() && !flush {
            return None;
        }
        let news = self.received > self.told || !self.cursors.is_empty();
        if !news || (!flush && self.due.is_none_or(|at| at > now)) {
            return None;
        }
        let mut cursors = Vec::new();
        while cursors.len() < max_cursors
            && let Some((conversation, seq)) = self.cursors.pop_first()
        {
            cursors.push(Cursor { conversation, seq });
        }
        self.told = self.received;
        self.due = (!self.cursors.is_empty()).then_some(now);
        self.in_flight.get_or_insert_default().extend(cursors.iter().cloned());
        Some(Ack { pushes: self.received, cursors })
    }

    /// The server has it.
    pub(crate) fn answered(&mut self) {
        self.in_flight = None;
    }

    /// The server refused it, or nobody knows.
    pub(crate) fn failed(&mut self, now: Instant) {
        for Cursor { conversation, seq } in self.in_flight.take().unwrap_or_default() {
            let known = self.cursors.entry(conversation).or_default();
            *known = seq.max(*known);
            self.due.get_or_insert(now + DELAY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(n: u8) -> ConversationId {
        ConversationId::new(&format!("g:{n}")).expect("valid")
    }

    #[test]
    fn a_batch_is_told_at_once_and_the_rest_after_a_second() {
        let now = Instant::now();
        let mut acks = Acks::default();
        acks.connected(now);
        acks.received(now);
        assert_eq!(acks.next(9, false, now), None);
        assert_eq!(acks.due(), Some(now + DELAY));
        assert_eq!(acks.next(9, false, now + DELAY).map(|ack| ack.pushes), Some(1));
        (0..BATCH).for_each(|_| acks.received(now));
        assert_eq!(acks.next(9, false, now), None, "one in flight at a time");
        acks.answered();
        assert_eq!(acks.next(9, false, now).map(|ack| ack.pushes), Some(BATCH + 1));
    }

    #[test]
    fn cursors_are_bounded_per_ack_and_told_until_answered() {
        let now = Instant::now();
        let mut acks = Acks::default();
        (0..5).for_each(|n| acks.had(conversation(n), Seq(7), now));
        let mut told = Vec::new();
        let mut at = now + DELAY;
        for _ in 0..3 {
            let ack = acks.next(2, false, at).expect("more to tell");
            told.extend(ack.cursors);
            acks.answered();
            at = acks.due().unwrap_or(at);
        }
        assert_eq!((told.len(), acks.due()), (5, None));
        acks.had(conversation(1), Seq(8), now);
        let lost = acks.next(9, true, now).expect("told");
        acks.had(conversation(1), Seq(9), now);
        acks.connected(now);
        let again = acks.next(9, false, now).expect("told again");
        assert_eq!((lost.cursors[0].seq, again.cursors[0].seq, again.pushes), (Seq(8), Seq(9), 0));
    }
}
