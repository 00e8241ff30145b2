//! Random sends, edits, recalls, deletions, reactions, retries, store outcomes and crashes: I1, I2, I3 and I5 hold after
//! every step, and whenever all is written the rows say what the entries say, one after the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::error_code::{Outcome, RequestError};
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::Retry;
use proptest::prelude::*;

use super::change::{self, ChangeCommand, ReactionState, Targets};
use super::core::{
    Act, ActCommand, Beginning, ConversationCore, CoreLimits, Effect, Head, IdSource, LoadTarget, SendCommand,
};
use super::dedup::{Loading, Place};
use super::group::Asking;
use super::log::recovery::{OwnRows, Recovery, Step};
use crate::auth::Role;
use crate::clock::Now;
use crate::storage::row::OUTDATED;
use crate::storage::{AppendError, Change, Epoch, Hint, LogRow, LogStart, Projection, WriteStamp};

struct Counter(u128);

impl IdSource for Counter {
    fn message_id(&mut self, time: Timestamp) -> MessageId {
        self.0 += 1;
        MessageId(uuid::Uuid::from_u128(u128::from(time.0) << 80 | self.0))
    }

    fn write_stamp(&mut self) -> WriteStamp {
        self.0 += 1;
        WriteStamp::new(Epoch(1), u64::try_from(self.0).expect("small"))
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
    /// Changes the message that this names, in the way that this names, as this user.
    Change(u64, u8, bool),
    Load(bool),
    Project(Fate),
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
        5 => (0..8u64, 0..6u8, any::<bool>()).prop_map(|(target, how, bob)| Action::Change(target, how, bob)),
        5 => prop::bool::weighted(0.9).prop_map(Action::Load),
        6 => fate.clone().prop_map(Action::Project),
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
    change: Option<(ChangeCommand, &'static str)>,
    /// There was nothing to change.
    unneeded: bool,
}

fn user_named(name: &str) -> UserId {
    UserId::new(name).expect("valid")
}

fn outcome(fate: Fate) -> Result<(), AppendError> {
    match fate {
        Fate::Stored => Ok(()),
        Fate::NotStored => Err(AppendError::NotStored("injected".into())),
        Fate::Overloaded => Err(AppendError::Overloaded),
        Fate::UnknownStored | Fate::UnknownNotStored => Err(AppendError::Unknown("injected".into())),
    }
}

/// What of a row changes make different.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    content: Content,
    edited: bool,
    recalled: bool,
    deleted: bool,
    outdated: bool,
}

fn shown(row: &LogRow) -> Shown {
    Shown {
        content: row.entry.content.clone(),
        edited: row.entry.edited_at.is_some(),
        recalled: row.entry.recalled_at.is_some(),
        deleted: row.entry.deleted_at.is_some(),
        outdated: row.entry.flags & OUTDATED != 0,
    }
}

#[derive(Default)]
struct Naive {
    rows: BTreeMap<Seq, Shown>,
    givers: BTreeSet<(Seq, String, UserId)>,
}

struct World {
    core: ConversationCore<usize>,
    ids: Counter,
    now: Now,
    activation: u64,
    in_flight: Option<Arc<[LogRow]>>,
    durable: BTreeMap<Seq, LogRow>,
    /// The rows as they were published or adopted: before anything was written over them.
    original: BTreeMap<Seq, LogRow>,
    loading: Option<Vec<LoadTarget>>,
    projecting: Option<Arc<Projection>>,
    /// The first entry of the batch that was published last, and of the batch that is being projected.
    batch_from: Seq,
    projecting_from: Seq,
    /// Whether what is projected is not known to be written yet: it may be, or not.
    unsettled: bool,
    counts: BTreeMap<(Seq, String), u32>,
    givers: BTreeSet<(Seq, String, UserId)>,
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
        let core = ConversationCore::new(conversation(), limits(), Epoch(1), stamp, Beginning::empty());
        Self {
            core,
            ids: Counter(0),
            now: Now { monotonic: Duration::from_secs(1000), wall: Timestamp(1) },
            activation: 0,
            in_flight: None,
            durable: BTreeMap::new(),
            original: BTreeMap::new(),
            loading: None,
            projecting: None,
            batch_from: Seq(1),
            projecting_from: Seq(1),
            unsettled: false,
            counts: BTreeMap::new(),
            givers: BTreeSet::new(),
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
        let device = DeviceId::new("phone").expect("valid");
        let mut effects = Vec::new();
        if let Some((change, user)) = sent.change.clone() {
            let asking = Asking { user: user_named(user), role: Role::User };
            let command = ActCommand { asking, device, retry, act: Act::Change(change) };
            self.core.act(command, n, self.now, &mut self.ids, &mut effects);
            return self.perform(effects);
        }
        let command = SendCommand {
            sender: user_named("alice"),
            role: Role::User,
            device,
            retry,
            kind: MessageKind::USER,
            priority: Priority::NORMAL,
            content: Content::text(n.to_string()),
            reply_to: None,
            previous: None,
        };
        self.core.send(command, n, self.now, &mut self.ids, &mut effects);
        self.perform(effects);
    }

    fn change(&mut self, target: u64, how: u8, bob: bool) {
        let seq = Seq(target + 1);
        let n = self.sent.len();
        let change = match how {
            0 => ChangeCommand::Recall { seq },
            1 => ChangeCommand::Delete { seq, hard: false },
            2 | 3 => ChangeCommand::Edit { seq, content: Content::text(format!("edit {n}")) },
            _ => ChangeCommand::React { seq, kind: "like".into(), give: how == 4 },
        };
        self.sent.push(Sent {
            client_id: ClientId(uuid::Uuid::from_u128(1 << 100 | n as u128)),
            first_at: self.now.monotonic,
            attempts: 0,
            place: None,
            change: Some((change, if bob { "bob" } else { "alice" })),
            unneeded: false,
        });
        self.send(n);
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
                Effect::Load(targets) => {
                    assert!(
                        self.loading.is_none() && self.projecting.is_none(),
                        "loaded while changes are written"
                    );
                    self.loading = Some(targets);
                }
                Effect::Project(projection) => {
                    assert!(self.projecting.is_none(), "two projections in flight");
                    self.projecting = Some(projection);
                    self.projecting_from = self.batch_from;
                    self.unsettled = true;
                }
                // Hints only ever shorten what a recovery looks at.
                Effect::Hint(..) => self.core.hinted(Some(true)),
                Effect::Publish(rows) => {
                    self.batch_from = rows.first().expect("a batch has rows").seq;
                    for row in rows.iter() {
                        // I5: pushes rise without a gap and are durable.
                        assert_eq!(row.seq, self.published.next());
                        assert_eq!(self.durable.get(&row.seq), Some(row));
                        self.published = row.seq;
                        self.original.insert(row.seq, row.clone());
                    }
                }
            }
        }
    }

    fn answered(&mut self, n: usize, result: Result<Option<Place>, RequestError>) {
        if result == Ok(None) {
            assert!(self.sent[n].change.is_some() && self.sent[n].place.is_none());
            self.sent[n].unneeded = true;
            return;
        }
        let Ok(Some(place)) = result else {
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
        if let Some(change) = &row.entry.change {
            // What was acknowledged is what readers find.
            let touched: Vec<_> = Targets::of(change).collect();
            // What is committed above it and still being written is not acknowledged yet: a retry of this one may be
            // answered meanwhile.
            let head = self.core.head().seq;
            let written = if self.unsettled { Seq(self.projecting_from.0 - 1) } else { head };
            assert!(row.seq <= written, "{} was acknowledged before what it changes was written", row.seq);
            // A write of which nobody knows whether it happened may already show.
            let (before, after) = (self.naive(written), self.naive(head));
            for seq in touched {
                let found = shown(&self.durable[&seq]);
                let perhaps = self.unsettled && after.rows.get(&seq) == Some(&found);
                assert!(perhaps || found == before.rows[&seq], "{seq} after {}: {found:?}", row.seq);
            }
        }
        assert_eq!((row.id, row.entry.client_id), (place.id, self.sent[n].client_id));
        // I1: it keeps its place for ever; I3: a retry gets the same one.
        if let Some(before) = self.sent[n].place {
            assert_eq!(before.seq, place.seq);
        }
        self.sent[n].place = Some(place);
    }

    /// What the entries up to this one say, one after the other.
    fn naive(&self, upto: Seq) -> Naive {
        let mut naive = Naive::default();
        for row in self.original.values().filter(|row| row.seq <= upto) {
            naive.rows.insert(row.seq, shown(row));
            let last = |naive: &mut Naive, seq: &Option<Seq>| {
                if let Some(seq) = seq {
                    naive.rows.get_mut(seq).expect("an earlier row").outdated = true;
                }
            };
            match &row.entry.change {
                Some(Change::Edit { target, last_edit }) => {
                    last(&mut naive, last_edit);
                    let target = naive.rows.get_mut(target).expect("an earlier row");
                    (target.content, target.edited) = (row.entry.content.clone(), true);
                }
                Some(Change::Recall { target, last_edit }) => {
                    last(&mut naive, last_edit);
                    naive.rows.get_mut(target).expect("an earlier row").recalled = true;
                }
                Some(Change::Delete { target, last_edit, .. }) => {
                    last(&mut naive, last_edit);
                    naive.rows.get_mut(target).expect("an earlier row").deleted = true;
                }
                Some(Change::React { target, kind, user, given, .. }) => {
                    let key = (*target, kind.clone(), user.clone());
                    if *given {
                        naive.givers.insert(key)
                    } else {
                        naive.givers.remove(&key)
                    };
                }
                _ => {}
            }
        }
        naive
    }

    fn load(&mut self, works: bool) {
        let Some(wanted) = self.loading.take() else { return };
        let mut targets = Targets::default();
        for LoadTarget { seq, reactions } in wanted {
            let row = self.durable[&seq].clone();
            if let Some(last) = row.entry.last_edit {
                targets.rows.insert(last, self.durable[&last].clone());
            }
            targets.rows.insert(seq, row);
            let of =
                |((at, kind), count): (&(Seq, String), &u32)| (*at == seq).then(|| (kind.clone(), *count));
            let mut state =
                ReactionState { counts: self.counts.iter().filter_map(of).collect(), ..Default::default() };
            for (user, kind) in reactions {
                let given = self.givers.contains(&(seq, kind.clone(), user.clone()));
                state.given.insert((user, kind), given);
            }
            targets.reactions.insert(seq, state);
        }
        let targets = if works { Ok(targets) } else { Err("injected".to_owned()) };
        let mut effects = Vec::new();
        self.core.loaded(targets, self.now, &mut self.ids, &mut effects);
        self.perform(effects);
    }

    fn store(&mut self, projection: &Projection) {
        self.durable.extend(projection.rows.iter().map(|row| (row.seq, row.clone())));
        for reaction in &projection.reactions {
            let key = (reaction.target, reaction.kind.clone());
            match reaction.count {
                0 => drop(self.counts.remove(&key)),
                count => drop(self.counts.insert(key, count)),
            }
            let key = (reaction.target, reaction.kind.clone(), reaction.user.clone());
            if reaction.given {
                self.givers.insert(key)
            } else {
                self.givers.remove(&key)
            };
        }
    }

    fn project(&mut self, fate: Fate) {
        let Some(projection) = self.projecting.take() else { return };
        if matches!(fate, Fate::Stored | Fate::UnknownStored) {
            self.store(&projection);
        }
        let stored = outcome(fate).is_ok();
        self.unsettled &= !stored;
        let mut effects = Vec::new();
        self.core.projected(stored, self.now, &mut effects);
        self.perform(effects);
    }

    fn write(&mut self, fate: Fate) {
        let Some(rows) = self.in_flight.take() else { return };
        if matches!(fate, Fate::Stored | Fate::UnknownStored) {
            self.durable.extend(rows.iter().map(|row| (row.seq, row.clone())));
        }
        let mut effects = Vec::new();
        self.core.written(outcome(fate), self.now, &mut self.ids, &mut effects);
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
        (self.in_flight, self.loading, self.projecting) = (None, None, None);
        self.unsettled = false;
        self.activation += 1;
        let epoch = Epoch(1 + self.activation);
        let stamp = WriteStamp::new(epoch, 0);
        let hint = Hint::told_by(self.durable.values().rev());
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
                Step::Overwrite(overwrites) => {
                    let entries: Vec<LogRow> = overwrites.iter().map(|one| (*one.change.0).clone()).collect();
                    let targets = Targets { rows: self.durable.clone(), ..Targets::default() };
                    let stamp = self.ids.write_stamp();
                    self.store(&change::projection(&conversation(), &entries, targets, stamp));
                    recovery.durable()
                }
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
        let beginning = Beginning { head, dedup, start: LogStart::default(), group: None, told: head.seq };
        self.core = ConversationCore::new(conversation(), limits(), epoch, stamp, beginning);
        let published = self.published;
        let adopted = self.durable.iter().filter(|(seq, _)| published < **seq && **seq <= head.seq);
        self.original.extend(adopted.map(|(seq, row)| (*seq, row.clone())));
        self.check_projections();
        // Adopted messages are read, not pushed, by sessions that come back.
        self.published = head.seq;
    }

    /// Everything is written: the rows say what the entries say.
    fn check_projections(&self) {
        let naive = self.naive(self.core.head().seq);
        let head = self.core.head().seq;
        for row in self.durable.values().filter(|row| row.seq <= head) {
            assert_eq!(shown(row), naive.rows[&row.seq], "row {}", row.seq);
        }
        assert_eq!(self.givers, naive.givers);
        let mut counts: BTreeMap<(Seq, String), u32> = BTreeMap::new();
        for (seq, kind, _) in &naive.givers {
            *counts.entry((*seq, kind.clone())).or_default() += 1;
        }
        assert_eq!(self.counts, counts);
    }

    fn check(&self) {
        // I2: 1…head without a gap, each naming the one before it.
        let head = self.core.head();
        let log: Vec<_> = self.durable.values().filter(|row| row.seq <= head.seq).collect();
        assert_eq!(log.len() as u64, head.seq.0);
        let mut before: Option<&LogRow> = None;
        if self.core.is_idle() {
            self.check_projections();
        }
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
                    world.sent.push(Sent {
                        client_id,
                        first_at,
                        attempts: 0,
                        place: None,
                        change: None,
                        unneeded: false,
                    });
                    world.send(world.sent.len() - 1);
                }
                Action::Change(target, how, bob) => world.change(target, how, bob),
                Action::Load(works) => world.load(works),
                Action::Project(fate) => world.project(fate),
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
            world.load(true);
            world.write(Fate::Stored);
            world.project(Fate::Stored);
            if world.core.is_idle() {
                break;
            }
        }
        prop_assert!(world.core.is_idle());
        world.check_projections();
        for n in 0..world.sent.len() {
            let age = world.now.monotonic - world.sent[n].first_at;
            if age < Duration::from_secs(110) {
                world.send(n);
                while !world.core.is_idle() {
                    world.load(true);
                    world.write(Fate::Stored);
                    world.project(Fate::Stored);
                }
                let is_change = world.sent[n].change.is_some();
                prop_assert!(is_change || world.sent[n].place.is_some());
            }
        }
        world.check();
    }
}
