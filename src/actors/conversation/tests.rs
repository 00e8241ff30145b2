//! Random sends, retries, store outcomes and crashes: I1, I2, I3 and I5 hold after every step.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::error_code::{Outcome, RequestError};
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::Retry;
use proptest::prelude::*;

use super::core::{ConversationCore, CoreLimits, Effect, Head, IdSource, SendCommand};
use super::dedup::{DedupWindow, Loading, Place};
use super::log::recovery::{OwnRows, Recovery, Step};
use crate::clock::Now;
use crate::storage::{AppendError, Epoch, Hint, LogRow, WriteStamp};

struct Counter(u128);

impl IdSource for Counter {
    fn message_id(&mut self, _: Timestamp) -> MessageId {
        self.0 += 1;
        MessageId(uuid::Uuid::from_u128(self.0))
    }
}

/// What happens to the write in flight.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Stored,
    NotStored,
    UnknownStored,
    UnknownNotStored,
    Overloaded,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Send,
    /// Repeats one of the sends made so far, answered or not.
    Retry(usize),
    Write(Fate),
    Tick(u64),
    Crash,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let fate = prop_oneof![
        6 => Just(Fate::Stored),
        1 => Just(Fate::NotStored),
        1 => Just(Fate::UnknownStored),
        1 => Just(Fate::UnknownNotStored),
        1 => Just(Fate::Overloaded),
    ];
    let action = prop_oneof![
        6 => Just(Action::Send),
        3 => (0..1000usize).prop_map(Action::Retry),
        8 => fate.prop_map(Action::Write),
        2 => (1..7000u64).prop_map(Action::Tick),
        1 => Just(Action::Crash),
    ];
    prop::collection::vec(action, 1..200)
}

/// One client request and what its client knows of it.
#[derive(Debug, Clone)]
struct Sent {
    client_id: ClientId,
    first_at: Duration,
    attempts: u32,
    place: Option<Place>,
}

struct World {
    core: ConversationCore<usize>,
    ids: Counter,
    now: Now,
    activation: u64,
    in_flight: Option<Arc<[LogRow]>>,
    durable: BTreeMap<Seq, LogRow>,
    sent: Vec<Sent>,
    published: Seq,
}

fn conversation() -> ConversationId {
    ConversationId::new("d:alice:bob").expect("valid")
}

fn limits() -> CoreLimits {
    CoreLimits { max_batch: 3, max_pending: 20, ..CoreLimits::default() }
}

impl World {
    fn new() -> Self {
        let stamp = WriteStamp::new(Epoch(1), 0);
        let core =
            ConversationCore::new(conversation(), limits(), Epoch(1), stamp, Head::EMPTY, DedupWindow::new());
        Self {
            core,
            ids: Counter(0),
            now: Now { monotonic: Duration::from_secs(1000), wall: Timestamp(1) },
            activation: 0,
            in_flight: None,
            durable: BTreeMap::new(),
            sent: Vec::new(),
            published: Seq::ZERO,
        }
    }

    fn send(&mut self, n: usize) {
        let sent = &mut self.sent[n];
        sent.attempts += 1;
        let age = self.now.monotonic.saturating_sub(sent.first_at);
        let retry = Retry {
            client_id: sent.client_id,
            attempt: sent.attempts,
            age_ms: u64::try_from(age.as_millis()).expect("small"),
        };
        let command = SendCommand {
            sender: UserId::new("alice").expect("valid"),
            device: DeviceId::new("phone").expect("valid"),
            retry,
            kind: MessageKind::USER,
            priority: Priority::NORMAL,
            content: Content::text(n.to_string()),
            reply_to: None,
            previous: None,
        };
        let mut effects = Vec::new();
        self.core.send(command, n, self.now, &mut self.ids, &mut effects);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect<usize>>) {
        for effect in effects {
            match effect {
                Effect::Append { rows, .. } => {
                    assert!(self.in_flight.is_none(), "two writes in flight");
                    self.in_flight = Some(rows);
                }
                Effect::Wake(_) => {}
                Effect::Confirm => {
                    let mut effects = Vec::new();
                    self.core.confirmed(true, self.now, &mut self.ids, &mut effects);
                    self.perform(effects);
                }
                Effect::Answer { to, result } => self.answered(to, result),
                Effect::Publish(rows) => {
                    for row in rows.iter() {
                        // I5: pushes rise without a gap and are durable.
                        assert_eq!(row.seq, self.published.next());
                        assert_eq!(self.durable.get(&row.seq), Some(row));
                        self.published = row.seq;
                    }
                }
            }
        }
    }

    fn answered(&mut self, n: usize, result: Result<Place, RequestError>) {
        let Ok(place) = result else {
            let error = result.expect_err("just checked");
            if error.outcome == Outcome::NOT_DONE {
                let done = self.durable.values().any(|row| row.entry.client_id == self.sent[n].client_id);
                // "Not done" may be said only of what is not in the log (a ghost of a dead write may remain above it).
                let head = self.core.head().seq;
                let committed = self
                    .durable
                    .values()
                    .any(|row| row.seq <= head && row.entry.client_id == self.sent[n].client_id);
                assert!(!done || !committed, "{} is in the log", n);
            }
            return;
        };
        let row = self.durable.get(&place.seq).expect("acknowledged before it was durable");
        assert_eq!((row.id, row.entry.client_id), (place.id, self.sent[n].client_id));
        // I1: it keeps its place for ever; I3: a retry gets the same one.
        if let Some(before) = self.sent[n].place {
            assert_eq!(before.seq, place.seq);
        }
        self.sent[n].place = Some(place);
    }

    fn write(&mut self, fate: Fate) {
        let Some(rows) = self.in_flight.take() else { return };
        if matches!(fate, Fate::Stored | Fate::UnknownStored) {
            self.durable.extend(rows.iter().map(|row| (row.seq, row.clone())));
        }
        let outcome = match fate {
            Fate::Stored => Ok(()),
            Fate::NotStored => Err(AppendError::NotStored("injected".into())),
            Fate::Overloaded => Err(AppendError::Overloaded),
            Fate::UnknownStored | Fate::UnknownNotStored => Err(AppendError::Unknown("injected".into())),
        };
        let mut effects = Vec::new();
        self.core.written(outcome, self.now, &mut self.ids, &mut effects);
        self.perform(effects);
    }

    fn tick(&mut self, ms: u64) {
        self.now.monotonic += Duration::from_millis(ms);
        self.now.wall = Timestamp(self.now.wall.0 + ms);
        let mut effects = Vec::new();
        self.core.tick(self.now, &mut self.ids, &mut effects);
        self.perform(effects);
    }

    /// The process dies and a new one recovers from what is durable.
    fn crash(&mut self) {
        self.in_flight = None;
        self.activation += 1;
        let epoch = Epoch(1 + self.activation);
        let stamp = WriteStamp::new(epoch, 0);
        let hint = self.durable.values().next_back().map(|row| Hint { base: row.seq, id: row.id });
        let hint = hint.map(|hint| (hint.base, hint.id));
        let (mut recovery, mut step) = Recovery::new(epoch, OwnRows::None, hint, 2);
        let mut window = Loading::new();
        loop {
            step = match step {
                Step::Read(from) => {
                    let rows = self.durable.range(from..).map(|(_, row)| row.clone()).take(2).collect();
                    recovery.rows(rows).expect("recoverable")
                }
                Step::Rewrite(rows) => {
                    self.durable.extend(rows.iter().map(|row| (row.seq, row.clone())));
                    recovery.durable()
                }
                Step::Confirm => recovery.confirmed(true).expect("not fenced"),
                Step::Overwrite(overwrites) => panic!("nothing is changed here: {overwrites:?}"),
                Step::Load(from, to) => {
                    let rows: Vec<_> = self.durable.range(from..=to).map(|(_, row)| row.clone()).collect();
                    window.take(&rows, self.now.monotonic);
                    recovery.loaded(&rows)
                }
                Step::Done => break,
            }
        }
        let head = recovery.finish().map_or(Head::EMPTY, |row| Head::of(&row));
        let dedup = window.finish(self.now.monotonic);
        self.core = ConversationCore::new(conversation(), limits(), epoch, stamp, head, dedup);
        // Adopted messages are read, not pushed, by sessions that come back.
        self.published = head.seq;
    }

    fn check(&self) {
        // I2: 1…head without a gap, each naming the one before it.
        let head = self.core.head();
        let log: Vec<_> = self.durable.values().filter(|row| row.seq <= head.seq).collect();
        assert_eq!(log.len() as u64, head.seq.0);
        let mut before: Option<&LogRow> = None;
        for row in &log {
            assert_eq!(row.seq.0, before.map_or(0, |one| one.seq.0) + 1);
            assert_eq!(row.prev, before.map_or(crate::storage::row::NO_MESSAGE, |one| one.id));
            assert!(row.base < row.seq && row.window <= row.seq);
            before = Some(row);
        }
        // I3: one row per client id.
        let mut seen = HashMap::new();
        for row in &log {
            assert_eq!(
                seen.insert(row.entry.client_id, row.seq),
                None,
                "{} is there twice",
                row.entry.client_id
            );
        }
        // I1: every acknowledged message is where it was acknowledged.
        for sent in self.sent.iter().filter(|sent| sent.place.is_some()) {
            assert_eq!(seen.get(&sent.client_id), sent.place.map(|place| place.seq).as_ref());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_is_lost_or_doubled(actions in actions()) {
        let mut world = World::new();
        for action in actions {
            match action {
                Action::Send => {
                    let client_id = ClientId(uuid::Uuid::from_u128(1 << 100 | world.sent.len() as u128));
                    let first_at = world.now.monotonic;
                    world.sent.push(Sent { client_id, first_at, attempts: 0, place: None });
                    world.send(world.sent.len() - 1);
                }
                Action::Retry(n) if !world.sent.is_empty() => world.send(n % world.sent.len()),
                Action::Retry(_) => {}
                Action::Write(fate) => world.write(fate),
                Action::Tick(ms) => world.tick(ms),
                Action::Crash => world.crash(),
            }
            world.check();
        }
        // Once the store works again everything settles: every client that asks again learns its place.
        for _ in 0..1000 {
            world.tick(60);
            world.write(Fate::Stored);
            if world.core.is_idle() {
                break;
            }
        }
        prop_assert!(world.core.is_idle());
        for n in 0..world.sent.len() {
            let age = world.now.monotonic - world.sent[n].first_at;
            if age < Duration::from_secs(110) {
                world.send(n);
                while world.in_flight.is_some() {
                    world.write(Fate::Stored);
                }
                prop_assert!(world.sent[n].place.is_some());
            }
        }
        world.check();
    }
}
