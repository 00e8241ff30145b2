//! What was sent, answered, pushed and read, and what is wrong with it: pure, and outside the servers.
//!
//! It is told everything as it happens, and in the end what the servers have of each conversation. What they have in the end
//! is compared with every word that they gave before: an acknowledged message is there, once, under the number and id that was
//! told; whatever was pushed or read under a number is what has it in the end; numbers are 1 to the last without a gap.

use std::collections::{BTreeMap, HashMap};

use convoke_protocol::id::{ClientId, MessageId, Seq};

/// A message as whoever got it saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) seq: Seq,
    pub(super) id: MessageId,
    pub(super) client_id: ClientId,
}

/// What became of a send, as far as its sender was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nobody knows.
    Unknown,
    /// It certainly did not happen.
    Refused,
    Acked(Seq, MessageId),
}

/// One conversation.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    sends: HashMap<ClientId, Fate>,
    /// What was told of each number, in pushes, pages and answers.
    told: BTreeMap<Seq, (MessageId, ClientId)>,
    found: Found,
}

/// What is wrong, and how much there was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Sends that were acknowledged.
    pub(super) acked: u64,
    /// Sends that were refused for good.
    pub(super) refused: u64,
    /// Sends of which nobody was told what became of them, and that the end settles: there, or not.
    pub(super) unknown_settled: u64,
    /// Messages that were pushed.
    pub(super) pushed: u64,
    /// Acknowledged and not there; or pushed or read, and not there.
    pub(super) lost: u64,
    /// More than once in the log, or pushed twice to one session.
    pub(super) duplicated: u64,
    /// Pushed to one session after a later one.
    pub(super) out_of_order: u64,
    /// Numbers that are missing in the end.
    pub(super) gaps: u64,
    /// Under another number or id than was told.
    pub(super) renumbered: u64,
    /// There although it was refused, or although nobody sent it.
    pub(super) invented: u64,
}

impl Found {
    pub(super) fn add(&mut self, other: &Self) {
        self.acked += other.acked;
        self.refused += other.refused;
        self.unknown_settled += other.unknown_settled;
        self.pushed += other.pushed;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.gaps += other.gaps;
        self.renumbered += other.renumbered;
        self.invented += other.invented;
    }
}

/// The pushes of one session, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct SessionPushes {
    highest: Seq,
    had: std::collections::HashSet<Seq>,
}

/// How often a lower number follows a higher one.
fn falls(seen: &[Seen]) -> u64 {
    seen.windows(2).filter(|two| two[1].seq < two[0].seq).count() as u64
}

impl Ledger {
    /// A send begins, or is repeated.
    pub(super) fn sent(&mut self, client_id: ClientId) {
        self.sends.entry(client_id).or_insert(Fate::Unknown);
    }

    /// It is answered with its place. An answer that contradicts a former one counts.
    pub(super) fn acked(&mut self, client_id: ClientId, seq: Seq, id: MessageId) {
        match self.sends.insert(client_id, Fate::Acked(seq, id)) {
            Some(Fate::Acked(before, id_before)) if (before, id_before) != (seq, id) => {
                self.found.renumbered += 1;
            }
            _ => {}
        }
        self.tell(Seen { seq, id, client_id });
    }

    /// It certainly did not happen, and is not tried again.
    pub(super) fn refused(&mut self, client_id: ClientId) {
        self.sends.insert(client_id, Fate::Refused);
    }

    /// A push came to a session.
    pub(super) fn pushed(&mut self, session: &mut SessionPushes, seen: Seen) {
        self.found.pushed += 1;
        if !session.had.insert(seen.seq) {
            self.found.duplicated += 1;
        } else if seen.seq < session.highest {
            self.found.out_of_order += 1;
        }
        session.highest = seen.seq.max(session.highest);
        self.tell(seen);
    }

    /// A page came: rising numbers.
    pub(super) fn page(&mut self, page: &[Seen]) {
        self.found.out_of_order += falls(page);
        page.iter().for_each(|seen| self.tell(*seen));
    }

    fn tell(&mut self, seen: Seen) {
        let Seen { seq, id, client_id } = seen;
        let told = *self.told.entry(seq).or_insert((id, client_id));
        if told != (id, client_id) {
            self.found.renumbered += 1;
        }
    }

    /// What the servers have in the end, in the order of their pages.
    pub(super) fn conclude(mut self, log: &[Seen]) -> Found {
        let mut by_client_id: HashMap<ClientId, Seen> = HashMap::new();
        let mut by_seq: HashMap<Seq, Seen> = HashMap::new();
        for seen in log {
            let twice = by_client_id.insert(seen.client_id, *seen).is_some();
            if by_seq.insert(seen.seq, *seen).is_some() || twice {
                self.found.duplicated += 1;
            }
        }
        self.found.out_of_order += falls(log);
        let last = log.iter().map(|seen| seen.seq.0).max().unwrap_or(0);
        self.found.gaps += last - by_seq.len() as u64;
        for (client_id, fate) in &self.sends {
            let there = by_client_id.get(client_id);
            match fate {
                Fate::Acked(seq, id) => {
                    self.found.acked += 1;
                    match there {
                        None => self.found.lost += 1,
                        Some(seen) if (seen.seq, seen.id) != (*seq, *id) => self.found.renumbered += 1,
                        Some(_) => {}
                    }
                }
                Fate::Refused => {
                    self.found.refused += 1;
                    self.found.invented += u64::from(there.is_some());
                }
                Fate::Unknown => self.found.unknown_settled += 1,
            }
        }
        for (seq, (id, client_id)) in &self.told {
            match by_seq.get(seq) {
                // An acknowledged one is counted above.
                None if !matches!(self.sends.get(client_id), Some(Fate::Acked(..))) => self.found.lost += 1,
                Some(seen) if (seen.id, seen.client_id) != (*id, *client_id) => self.found.renumbered += 1,
                _ => {}
            }
        }
        let unheard_of = by_client_id.keys().filter(|client_id| !self.sends.contains_key(client_id));
        self.found.invented += unheard_of.count() as u64;
        self.found
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};
    use uuid::Uuid;

    use super::*;

    const MESSAGES: u64 = 10_000;

    fn seen(n: u64) -> Seen {
        let client_id = ClientId(Uuid::from_u128(u128::from(n)));
        Seen { seq: Seq(n), id: MessageId(Uuid::from_u128(u128::from(n) << 64)), client_id }
    }

    /// What a server does to one message in ten thousand.
    #[derive(Debug, Clone, Copy)]
    enum Fault {
        None,
        /// It acknowledges it and forgets it.
        Drops,
        /// It stores it twice.
        Doubles,
        /// It pushes it twice.
        PushesTwice,
        /// It pushes it after the next one.
        Reorders,
        /// It stores it after the next one.
        StoresLater,
        /// It gives two messages each other's numbers after it told them.
        Renumbers,
        /// It pushes something else under the number.
        PushesAnother,
        /// It leaves a number out.
        Skips,
        /// It refuses it and stores it all the same.
        StoresWhatItRefused,
        /// It stores what nobody sent.
        Invents,
    }

    const FAULTS: [Fault; 10] = [
        Fault::Drops,
        Fault::Doubles,
        Fault::PushesTwice,
        Fault::Reorders,
        Fault::StoresLater,
        Fault::Renumbers,
        Fault::PushesAnother,
        Fault::Skips,
        Fault::StoresWhatItRefused,
        Fault::Invents,
    ];

    /// A server that does one thing wrong, once.
    fn run(fault: Fault, at: u64) -> Found {
        let mut ledger = Ledger::default();
        let mut session = SessionPushes::default();
        let mut log: Vec<Seen> = (1..=MESSAGES).map(seen).collect();
        let mut pushes = log.clone();
        let place = at as usize - 1;
        let refuses = matches!(fault, Fault::StoresWhatItRefused);
        for message in &log {
            ledger.sent(message.client_id);
            if refuses && message.seq.0 == at {
                ledger.refused(message.client_id);
            } else {
                ledger.acked(message.client_id, message.seq, message.id);
            }
        }
        match fault {
            Fault::None | Fault::StoresWhatItRefused => {}
            Fault::Drops => drop(log.remove(place)),
            Fault::Doubles => log.push(Seen { seq: Seq(MESSAGES + 1), ..log[place] }),
            Fault::PushesTwice => pushes.insert(place + 1, log[place]),
            Fault::Reorders => pushes.swap(place, place + 1),
            Fault::StoresLater => log.swap(place, place + 1),
            Fault::Renumbers => {
                let (one, other) = (log[place], log[place + 1]);
                log[place] = Seen { seq: one.seq, ..other };
                log[place + 1] = Seen { seq: other.seq, ..one };
            }
            Fault::PushesAnother => pushes[place].id = MessageId(Uuid::from_u128(7)),
            Fault::Skips => {
                for message in &mut log[place..] {
                    message.seq = message.seq.next();
                }
            }
            Fault::Invents => log.push(seen(MESSAGES + 1)),
        }
        for push in pushes {
            ledger.pushed(&mut session, push);
        }
        ledger.conclude(&log)
    }

    #[test]
    fn a_server_without_fault_is_found_without_fault() {
        let good = Found { acked: MESSAGES, pushed: MESSAGES, ..Found::default() };
        assert_eq!(run(Fault::None, 1), good);
    }

    #[test]
    fn one_message_in_ten_thousand_is_caught_wherever_it_is() {
        let mut rng = SmallRng::seed_from_u64(1);
        for fault in FAULTS {
            for _ in 0..20 {
                let at = rng.random_range(1..MESSAGES - 1);
                let found = run(fault, at);
                let Found { lost, duplicated, out_of_order, gaps, renumbered, invented, .. } = found;
                let wrong = lost + duplicated + out_of_order + gaps + renumbered + invented;
                assert!(wrong > 0, "{fault:?} at {at} is not caught");
            }
        }
    }

    #[test]
    fn each_fault_is_called_by_its_name() {
        let at = 5_000;
        assert_eq!((run(Fault::Drops, at).lost, run(Fault::Drops, at).gaps), (1, 1));
        assert_eq!(run(Fault::Doubles, at).duplicated, 1);
        assert_eq!(run(Fault::PushesTwice, at).duplicated, 1);
        assert_eq!(run(Fault::Reorders, at).out_of_order, 1);
        assert_eq!(run(Fault::StoresLater, at).out_of_order, 1);
        assert!(run(Fault::Renumbers, at).renumbered >= 2);
        assert!(run(Fault::PushesAnother, at).renumbered >= 1);
        assert_eq!(run(Fault::Skips, at).gaps, 1);
        assert_eq!(run(Fault::StoresWhatItRefused, at).invented, 1);
        assert_eq!(run(Fault::Invents, at).invented, 1);
    }

    #[test]
    fn what_nobody_was_told_of_is_settled_by_the_end() {
        let mut ledger = Ledger::default();
        ledger.sent(seen(1).client_id);
        ledger.sent(seen(2).client_id);
        // The one that is there may have been pushed before its sender learned of it.
        ledger.pushed(&mut SessionPushes::default(), seen(1));
        let found = ledger.conclude(&[seen(1)]);
        assert_eq!(found, Found { unknown_settled: 2, pushed: 1, ..Found::default() });
    }

    #[test]
    fn two_answers_to_one_send_must_agree() {
        let mut ledger = Ledger::default();
        ledger.acked(seen(1).client_id, Seq(1), seen(1).id);
        ledger.acked(seen(1).client_id, Seq(2), seen(2).id);
        assert!(ledger.conclude(&[seen(1), seen(2)]).renumbered >= 1);
    }
}
