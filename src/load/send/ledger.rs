//! Who sent what, what was acknowledged and what arrived: the load test's check of its own work.
//!
//! A conversation has two sides, each on one connection. A side numbers its sends 1, 2, 3 … (its *counter*), and for
//! each conversation the server numbers all of them (their *seq*). A side sees every seq exactly once: as the answer to
//! its own send, or as a push. So no table of messages is needed; a side is a handful of numbers, whatever it sends.
//!
//! # What is checked
//! - Every send is acked once, under a seq that rises with the counter.
//! - Every acked send is pushed to the other side once, in the order of seqs and of counters, and under the seq of the ack.
//! - Each side's seqs (acks and pushes together) are 1 to the conversation's head, none twice.

use crate::load::client::SideId;
use crate::load::client::seen::{Seen, Standing};
use crate::load::report::Verdict;

/// A message by the numbers that its sender and the server gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbered {
    /// Which of its sender's sends to the conversation it is, from 1.
    pub(super) counter: u32,
    /// Which of the conversation's messages it is, from 1.
    pub(super) seq: u64,
}

impl Numbered {
    /// Two sums of these are equal only if the same messages have the same numbers in both (but for chance).
    fn digest(self) -> u64 {
        let mixed = self.seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(self.counter);
        mixed.wrapping_mul(0xd6e8_feb8_6659_fd93)
    }
}

/// The highest numbers of a stream in which both rise.
#[derive(Debug, Default)]
struct Rising {
    counter: u32,
    seq: u64,
}

impl Rising {
    /// Whether both numbers are above all that came before.
    fn take(&mut self, message: Numbered) -> bool {
        let rises = message.counter > self.counter && message.seq > self.seq;
        self.counter = self.counter.max(message.counter);
        self.seq = self.seq.max(message.seq);
        rises
    }
}

/// What happened to the sends of one side, and on its connection.
#[derive(Debug, Default)]
struct Side {
    sent: u32,
    /// Of its sends up to this one some were sent twice: a later one may have been carried out before.
    repeated: u32,
    acked: u32,
    acks: Rising,
    acks_digest: u64,
    /// Of the other side's sends.
    pushed: u32,
    pushes: Rising,
    pushes_digest: u64,
    /// Seqs, of acks and pushes.
    seen: Seen,
    standing: Standing,
    found: Verdict,
}

/// The sides of many conversations. Conversations are new when it begins: their first seq is 1.
#[derive(Debug)]
pub(super) struct Ledger {
    sides: Vec<Side>,
    sent: u64,
    acked: u64,
    pushed: u64,
}

impl Ledger {
    pub(super) fn new(conversations: u32) -> Self {
        let sides = (0..2 * conversations).map(|_| Side::default()).collect();
        Self { sides, sent: 0, acked: 0, pushed: 0 }
    }

    /// A side sends; the counter of the message.
    pub(super) fn send(&mut self, side: SideId) -> u32 {
        self.sent += 1;
        let side = &mut self.sides[side.index()];
        side.sent += 1;
        side.sent
    }

    /// What the side sent so far may be sent again.
    pub(super) fn repeats(&mut self, side: SideId) {
        let side = &mut self.sides[side.index()];
        side.repeated = side.sent;
    }

    /// Whether this send of the side may have been sent again.
    pub(super) fn was_repeated(&self, side: SideId, counter: u32) -> bool {
        counter <= self.sides[side.index()].repeated
    }

    /// Whether this side has the message with this number.
    pub(super) fn knows(&self, side: SideId, seq: u64) -> bool {
        self.sides[side.index()].seen.contains(seq)
    }

    /// A side's send was acknowledged. (That it was asked and not yet answered, the caller knows from the request.)
    pub(super) fn acked(&mut self, side: SideId, message: Numbered) {
        self.acked += 1;
        let side = &mut self.sides[side.index()];
        side.acked += 1;
        side.acks_digest = side.acks_digest.wrapping_add(message.digest());
        let rises = side.acks.take(message) || message.counter <= side.repeated;
        if !side.seen.insert(message.seq) {
            side.found.duplicated += 1;
        } else if !rises {
            side.found.out_of_order += 1;
        }
    }

    /// An answer came to nothing that waited for one.
    pub(super) fn acked_again(&mut self, side: SideId) {
        self.sides[side.index()].found.duplicated += 1;
    }

    /// A message of the other side was pushed to this side.
    pub(super) fn pushed(&mut self, side: SideId, message: Numbered) {
        let repeated = self.sides[side.other().index()].repeated;
        let one = &mut self.sides[side.index()];
        let rises = one.pushes.take(message) || message.counter <= repeated;
        if !self.missed(side, message) {
            self.sides[side.index()].found.duplicated += 1;
        } else if !rises {
            self.sides[side.index()].found.out_of_order += 1;
        }
    }

    /// A message of the other side came to this side in whatever order. Whether it is new.
    pub(super) fn missed(&mut self, side: SideId, message: Numbered) -> bool {
        let side = &mut self.sides[side.index()];
        let new = side.seen.insert(message.seq);
        if new {
            self.pushed += 1;
            side.pushed += 1;
            side.pushes_digest = side.pushes_digest.wrapping_add(message.digest());
        }
        new
    }

    /// The seq up to which this side has everything.
    pub(super) fn cursor(&self, side: SideId) -> u64 {
        self.sides[side.index()].seen.upto
    }

    /// Whether a gap of this side stays; each is said once.
    pub(super) fn is_gap_standing(&mut self, side: SideId) -> bool {
        let Side { seen, standing, .. } = &mut self.sides[side.index()];
        standing.look(seen)
    }

    /// How many sends were acknowledged.
    pub(super) fn total_acked(&self) -> u64 {
        self.acked
    }

    /// How many messages were pushed, each counted once.
    pub(super) fn total_pushed(&self) -> u64 {
        self.pushed
    }

    /// Whether nothing is on its way any more.
    pub(super) fn is_settled(&self) -> bool {
        self.acked == self.sent && self.pushed == self.sent
    }

    /// What is wrong, if nothing more comes.
    pub(super) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for pair in self.sides.chunks_exact(2) {
            let [one, other] = pair else { continue };
            let head = one.seen.highest().max(other.seen.highest());
            for (sender, receiver) in [(one, other), (other, one)] {
                verdict.add(sender.found);
                verdict.lost += u64::from(sender.sent.saturating_sub(sender.acked));
                verdict.lost += u64::from(sender.acked.saturating_sub(receiver.pushed));
                verdict.gaps += sender.seen.missing_up_to(head);
                // All there, and yet not the same: something was acked under a number that is another message's.
                if sender.acked == receiver.pushed && sender.acks_digest != receiver.pushes_digest {
                    verdict.lost += 1;
                }
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SideId = SideId(0);
    const B: SideId = SideId(1);

    /// What a side is told.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Told {
        Ack(SideId, Numbered),
        Push(SideId, Numbered),
        AckAgain(SideId),
    }
    use Told::{Ack, AckAgain, Push};

    fn numbered(counter: u32, seq: u64) -> Numbered {
        Numbered { counter, seq }
    }

    /// A and B send by turns, three messages each; all that a server without fault tells.
    fn faultless() -> Vec<Told> {
        (1..=3)
            .flat_map(|counter| {
                let (a, b) = (
                    numbered(counter, u64::from(counter) * 2 - 1),
                    numbered(counter, u64::from(counter) * 2),
                );
                [Ack(A, a), Push(B, a), Push(A, b), Ack(B, b)]
            })
            .collect()
    }

    fn judge(told: &[Told]) -> Verdict {
        let mut ledger = Ledger::new(1);
        for _ in 0..3 {
            ledger.send(A);
            ledger.send(B);
        }
        for told in told {
            match *told {
                Ack(side, message) => ledger.acked(side, message),
                Push(side, message) => ledger.pushed(side, message),
                AckAgain(side) => ledger.acked_again(side),
            }
        }
        ledger.verdict()
    }

    #[test]
    fn a_faultless_run_is_clean() {
        assert!(judge(&faultless()).is_clean());
        // Acks and pushes of different messages may overtake each other.
        let mut other = faultless();
        other.sort_by_key(|told| matches!(told, Push(..)));
        assert!(judge(&other).is_clean());
    }

    #[test]
    fn each_fault_is_found_for_what_it_is() {
        let (first, last) = (numbered(1, 1), numbered(3, 5));
        type Fault = fn(&mut Vec<Told>);
        let drop_where = |told: &mut Vec<Told>, what: Told| told.retain(|told| *told != what);
        let mut without_ack = faultless();
        drop_where(&mut without_ack, Ack(A, last));
        let found = judge(&without_ack);
        assert_eq!((found.lost, found.gaps, found.duplicated, found.out_of_order), (1, 1, 0, 0), "no ack");

        for message in [first, last] {
            let mut without_push = faultless();
            drop_where(&mut without_push, Push(B, message));
            let found = judge(&without_push);
            assert_eq!((found.lost, found.gaps), (1, 1), "no push of {message:?}");
            assert_eq!((found.duplicated, found.out_of_order), (0, 0));
        }

        let cases: [(&str, Fault, Verdict); 5] = [
            (
                "a push twice",
                |told| told.push(Push(B, numbered(2, 3))),
                Verdict { duplicated: 1, ..Verdict::default() },
            ),
            (
                "an own message pushed as well",
                |told| told.push(Push(A, numbered(3, 5))),
                Verdict { duplicated: 1, ..Verdict::default() },
            ),
            (
                "an answer twice",
                |told| told.push(AckAgain(A)),
                Verdict { duplicated: 1, ..Verdict::default() },
            ),
            (
                "pushes in the wrong order",
                |told| told.swap(1, 5),
                Verdict { out_of_order: 1, ..Verdict::default() },
            ),
            (
                "acks in the wrong order",
                |told| told.swap(0, 4),
                Verdict { out_of_order: 1, ..Verdict::default() },
            ),
        ];
        for (what, fault, expected) in cases {
            let mut told = faultless();
            fault(&mut told);
            assert_eq!(judge(&told), expected, "{what}");
        }
    }

    #[test]
    fn a_seq_that_is_left_out_is_a_gap_on_both_sides() {
        let mut told = faultless();
        for told in &mut told {
            let (Ack(_, message) | Push(_, message)) = told else { continue };
            if message.seq >= 4 {
                message.seq += 1;
            }
        }
        assert_eq!(judge(&told), Verdict { gaps: 2, ..Verdict::default() });
    }

    #[test]
    fn a_push_under_another_number_than_its_ack_is_found() {
        // Each side hears that its own last message is number 5 and the other's number 6: every count is right.
        let mut told = faultless();
        for told in &mut told {
            match told {
                Ack(B, message) if message.seq == 6 => message.seq = 5,
                Push(B, message) if message.seq == 5 => message.seq = 6,
                _ => {}
            }
        }
        assert!(!judge(&told).is_clean());
    }

    #[test]
    fn the_cursor_stops_before_a_gap() {
        let mut ledger = Ledger::new(1);
        for counter in [1, 2, 4] {
            ledger.pushed(A, numbered(counter, u64::from(counter)));
        }
        assert_eq!(ledger.cursor(A), 2);
        ledger.pushed(A, numbered(3, 3));
        assert_eq!(ledger.cursor(A), 4);
    }
}
