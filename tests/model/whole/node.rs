//! One process: the ownership core, and the conversations it has active, driven as the actors around them do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use convoke::actors::conversation::change::Targets;
use convoke::actors::conversation::core::{
    ActCommand, Beginning, ConversationCore, CoreLimits, Effect, Head, IdSource, LoadTarget, SendCommand,
};
use convoke::actors::conversation::dedup::{Loading, Place};
use convoke::actors::conversation::log::recovery::{OwnRows, ROWS_PER_READ, Recovery, RecoveryError, Step};
use convoke::actors::conversation::log::{Overwrite, Stamps};
use convoke::actors::conversation::{change, log};
use convoke::clock::Now;
use convoke::cluster::lease::LeaseTimes;
use convoke::cluster::membership::{Incarnation, NodeId};
use convoke::cluster::ownership::{Input, Moment, Ownership};
use convoke::cluster::shard_map::{ShardId, ShardMap};
use convoke::storage::{AppendError, Epoch, Hint, LogRow, LogStart, WriteStamp};
use convoke_protocol::error_code::RequestError;
use convoke_protocol::id::{ClientId, MessageId, Timestamp};
use uuid::Uuid;

use super::store::{Cell, Key};
use super::{Cheat, Event, SHARDS, World};

/// Who is told the answer: a client, and to which of its requests.
pub(crate) type Caller = (usize, ClientId);

/// What a client asks.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    Send(Box<SendCommand>),
    Act(Box<ActCommand>),
}

/// What waits for a confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    conversation: usize,
    activation: u64,
    of_hint: bool,
}

/// How something that a conversation began has ended.
#[derive(Debug, Clone)]
pub(crate) enum Done {
    Settled,
    Written(Result<(), AppendError>),
    Projected(bool),
    HintKept(bool),
    Rewritten(bool),
    Read(Option<Vec<LogRow>>),
    HintRead(Result<Option<Hint>, ()>),
    Loaded(Result<Targets, String>),
    Wake,
}

pub(crate) struct Activation {
    pub(crate) number: u64,
    pub(crate) shard: ShardId,
    epoch: Epoch,
    stamp: WriteStamp,
    phase: Phase,
    waiting: Vec<(Asked, Caller)>,
}

enum Phase {
    Settling,
    ReadingHint,
    Recovering(Box<Recovering>),
    Serving(Box<ConversationCore<Caller>>),
}

struct Recovering {
    recovery: Recovery<LogRow>,
    window: Loading,
    doing: Step<LogRow>,
}

pub(crate) struct Node {
    pub(crate) core: Ownership<Ticket>,
    pub(crate) incarnation: Incarnation,
    pub(crate) id: NodeId,
    /// Gets nothing before then; what arrives meanwhile waits.
    pub(crate) paused_until: u64,
    /// Does not reach the store before then.
    pub(crate) cut_until: u64,
    /// The process is gone.
    pub(crate) gone: bool,
    wall_offset_ms: i64,
    pub(crate) open: BTreeMap<ShardId, Epoch>,
    stamps: BTreeMap<ShardId, Stamps>,
    crashed: BTreeSet<ShardId>,
    pub(crate) active: BTreeMap<usize, Activation>,
    /// Writes of each conversation that have not ended for the process.
    pub(crate) under_way: BTreeMap<usize, usize>,
    /// The highest epoch of each shard whose owner had begun when the read of the own fence was run.
    pub(crate) scanned: BTreeMap<ShardId, Epoch>,
}

struct Ids<'a> {
    made: &'a mut u64,
    stamps: &'a mut Stamps,
}

impl IdSource for Ids<'_> {
    fn message_id(&mut self, time: Timestamp) -> MessageId {
        *self.made += 1;
        MessageId(Uuid::from_u128(u128::from(time.0) << 80 | u128::from(*self.made)))
    }

    fn write_stamp(&mut self) -> WriteStamp {
        self.stamps.fresh().expect("an epoch has more than a simulation uses")
    }
}

impl Node {
    pub(crate) fn new(id: NodeId, incarnation: Incarnation, now_ms: u64, wall_offset_ms: i64) -> Self {
        let now = Duration::from_millis(now_ms);
        let moment = Moment { monotonic: now, boot_time: now };
        let map = ShardMap::new(SHARDS);
        let core = Ownership::new(incarnation, id.clone(), map, LeaseTimes::default(), moment);
        Self {
            core,
            incarnation,
            id,
            paused_until: 0,
            cut_until: 0,
            gone: false,
            wall_offset_ms,
            open: BTreeMap::new(),
            stamps: BTreeMap::new(),
            crashed: BTreeSet::new(),
            active: BTreeMap::new(),
            under_way: BTreeMap::new(),
            scanned: BTreeMap::new(),
        }
    }

    /// This life is over; the process goes on with another.
    pub(crate) fn is_born_again(&mut self, incarnation: Incarnation, now_ms: u64) {
        assert!(self.open.is_empty(), "a life ended with open gates");
        let next = Self::new(self.id.clone(), incarnation, now_ms, self.wall_offset_ms);
        self.core = next.core;
        self.incarnation = incarnation;
    }

    pub(crate) fn opens(&mut self, shard: ShardId, epoch: Epoch) {
        self.open.insert(shard, epoch);
        self.stamps.insert(shard, Stamps::new(epoch));
    }

    pub(crate) fn closes(&mut self, shard: ShardId) {
        self.open.remove(&shard);
        self.crashed.insert(shard);
        self.active.retain(|_, activation| activation.shard != shard);
    }

    /// An actor panics: what it knew is gone.
    pub(crate) fn crash(&mut self, conversation: usize) {
        if let Some(activation) = self.active.remove(&conversation) {
            self.crashed.insert(activation.shard);
        }
    }

    fn now(&self, now_ms: u64) -> Now {
        let wall = i64::try_from(now_ms).unwrap_or(0) + 1_000_000_000 + self.wall_offset_ms;
        Now { monotonic: Duration::from_millis(now_ms), wall: Timestamp(u64::try_from(wall).unwrap_or(0)) }
    }
}

impl World {
    /// A request reaches a node; `false` if it does not serve the conversation.
    pub(crate) fn asked(&mut self, at: usize, conversation: usize, asked: Asked, caller: Caller) -> bool {
        let shard = self.shard_of(conversation);
        let Some(epoch) = self.nodes[at].open.get(&shard).copied() else { return false };
        let node = &mut self.nodes[at];
        if let Some(activation) = node.active.get_mut(&conversation) {
            activation.waiting.push((asked, caller));
        } else {
            self.made += 1;
            let takes_again = self.cheat == Some(Cheat::TakesAStampAgain);
            let fresh =
                node.stamps.get_mut(&shard).and_then(Stamps::fresh).expect("an open shard has stamps");
            let stamp = if takes_again { WriteStamp::new(epoch, 0) } else { fresh };
            let (number, waiting) = (self.made, vec![(asked, caller)]);
            let phase = Phase::Settling;
            let activation = Activation { number, shard, epoch, stamp, phase, waiting };
            let settled = !node.crashed.contains(&shard)
                || node.under_way.get(&conversation).copied().unwrap_or(0) == 0
                || takes_again;
            node.active.insert(conversation, activation);
            if settled {
                self.done(at, conversation, number, Done::Settled);
            }
            return true;
        }
        self.serve_waiting(at, conversation);
        true
    }

    /// Writes of a conversation ended: an activation that waits for that begins.
    pub(crate) fn write_ended(&mut self, at: usize, conversation: usize) {
        let node = &mut self.nodes[at];
        let under_way = node.under_way.entry(conversation).or_default();
        *under_way -= 1;
        if *under_way == 0
            && let Some(activation) = node.active.get(&conversation)
            && matches!(activation.phase, Phase::Settling)
        {
            let number = activation.number;
            self.done(at, conversation, number, Done::Settled);
        }
    }

    pub(crate) fn done(&mut self, at: usize, conversation: usize, number: u64, done: Done) {
        let Some(activation) = self.nodes[at].active.get_mut(&conversation) else { return };
        if activation.number != number {
            return;
        }
        match (&mut activation.phase, done) {
            (Phase::Settling, Done::Settled) => {
                activation.phase = Phase::ReadingHint;
                self.read_hint(at, conversation, number);
            }
            (Phase::ReadingHint, Done::HintRead(Ok(hint))) => {
                let hint = hint.map(|hint| (hint.base, hint.id));
                let (recovery, doing) =
                    Recovery::new(activation.epoch, OwnRows::Possible, hint, ROWS_PER_READ);
                let window = Loading::new();
                activation.phase = Phase::Recovering(Box::new(Recovering { recovery, window, doing }));
                self.step(at, conversation);
            }
            (Phase::Recovering(_), done) => self.recover(at, conversation, done),
            (Phase::Serving(_), Done::HintKept(true)) => self.confirm(at, conversation, true),
            (Phase::Serving(_), done) => {
                self.drive(at, conversation, |core, now, ids, effects| match done {
                    Done::Written(outcome) => core.written(outcome, now, ids, effects),
                    Done::Projected(stored) => core.projected(stored, now, effects),
                    Done::HintKept(_) => core.hinted(None),
                    Done::Loaded(targets) => core.loaded(targets, now, ids, effects),
                    Done::Wake => core.tick(now, ids, effects),
                    other => panic!("a conversation that serves did not ask for {other:?}"),
                });
            }
            (Phase::ReadingHint, Done::HintRead(Err(()))) => self.give_up(at, conversation),
            (_, Done::Wake) => {}
            (_, other) => panic!("a conversation that begins did not ask for {other:?}"),
        }
    }

    /// What the ownership core confirmed.
    pub(crate) fn confirmed(&mut self, at: usize, ticket: Ticket) {
        let scanned = self.nodes[at].scanned.get(&ticket.shard).copied().unwrap_or_default();
        assert!(scanned <= ticket.epoch, "I4: {ticket:?} is confirmed after the scan of {scanned:?}");
        let Ticket { conversation, activation: number, of_hint, .. } = ticket;
        let Some(activation) = self.nodes[at].active.get_mut(&conversation) else { return };
        if activation.number != number {
            return;
        }
        match &mut activation.phase {
            Phase::Recovering(recovering) => {
                recovering.doing = recovering.recovery.confirmed(true).expect("it is an owner");
                self.step(at, conversation);
            }
            Phase::Serving(_) => self.drive(at, conversation, |core, now, ids, effects| {
                if of_hint {
                    core.hinted(Some(true));
                } else {
                    core.confirmed(true, now, ids, effects);
                }
            }),
            Phase::Settling | Phase::ReadingHint => {}
        }
    }

    pub(crate) fn confirm(&mut self, at: usize, conversation: usize, of_hint: bool) {
        let Some(activation) = self.nodes[at].active.get(&conversation) else { return };
        let Activation { shard, epoch, number, .. } = *activation;
        let ticket = Ticket { shard, epoch, conversation, activation: number, of_hint };
        if self.cheat == Some(Cheat::ConfirmsAtOnce) {
            return self.after(0, Event::Confirmed(at, ticket));
        }
        self.tell(at, Input::Durable(shard, epoch, ticket));
    }

    fn recover(&mut self, at: usize, conversation: usize, done: Done) {
        let now = self.nodes[at].now(self.now_ms);
        let Some(activation) = self.nodes[at].active.get_mut(&conversation) else { return };
        let Phase::Recovering(recovering) = &mut activation.phase else { return };
        let Recovering { recovery, window, doing } = &mut **recovering;
        *doing = match (&*doing, done) {
            (Step::Read(_), Done::Read(Some(rows))) => {
                match recovery.rows(rows) {
                    Ok(step) => step,
                    // It slept, and others go on with the log: it will learn that it is over.
                    Err(RecoveryError::NotOurs { .. }) => return self.give_up(at, conversation),
                    Err(error) => panic!("I1: {error}"),
                }
            }
            (Step::Load(..), Done::Read(Some(rows))) => {
                if self.cheat != Some(Cheat::ForgetsTheWindow) {
                    window.take(&rows, now.monotonic);
                }
                recovery.loaded(&rows)
            }
            (Step::Read(_) | Step::Load(..), Done::Read(None)) => return self.give_up(at, conversation),
            (Step::Rewrite(_) | Step::Overwrite(_), Done::Rewritten(true)) => recovery.durable(),
            (Step::Rewrite(rows), Done::Rewritten(false)) => Step::Rewrite(rows.clone()),
            (Step::Overwrite(changes), Done::Rewritten(false)) => Step::Overwrite(changes.clone()),
            (Step::Overwrite(_), Done::Loaded(targets)) => return self.overwrite(at, conversation, targets),
            (_, Done::Wake) => return,
            (step, done) => panic!("{done:?} while it is to {step:?}"),
        };
        self.step(at, conversation);
    }

    /// Does what the recovery of a conversation needs next.
    fn step(&mut self, at: usize, conversation: usize) {
        let Some(activation) = self.nodes[at].active.get(&conversation) else { return };
        let (number, stamp) = (activation.number, activation.stamp.0);
        let Phase::Recovering(recovering) = &activation.phase else { return };
        match recovering.doing.clone() {
            Step::Read(from) => self.read_rows(at, conversation, number, (from.0, u64::MAX)),
            Step::Load(from, to) => self.read_rows(at, conversation, number, (from.0, to.0)),
            Step::Rewrite(rows) => {
                let cells = cells(conversation, &rows);
                self.write(at, conversation, cells, stamp, move |result| {
                    (number, Done::Rewritten(result.is_ok()))
                });
            }
            Step::Confirm => self.confirm(at, conversation, false),
            Step::Overwrite(overwrites) => {
                let named =
                    overwrites.iter().filter_map(|overwrite| overwrite.change.0.entry.change.as_ref());
                let named = named.flat_map(Targets::of).map(|seq| seq.0).collect();
                self.read_targets(at, conversation, number, named);
            }
            Step::Done => self.begin(at, conversation),
        }
    }

    fn overwrite(&mut self, at: usize, conversation: usize, targets: Result<Targets, String>) {
        let id = self.conversations[conversation].clone();
        let Some(activation) = self.nodes[at].active.get(&conversation) else { return };
        let (number, shard) = (activation.number, activation.shard);
        let Phase::Recovering(recovering) = &activation.phase else { return };
        let Step::Overwrite(overwrites) = &recovering.doing else { return };
        let Ok(targets) = targets else { return self.give_up(at, conversation) };
        let entries: Vec<LogRow> =
            overwrites.iter().map(|Overwrite { change: log::Changing(row), .. }| (**row).clone()).collect();
        let stamp = self.nodes[at].stamps.get_mut(&shard).and_then(Stamps::fresh).expect("enough stamps");
        let projection = change::projection(&id, &entries, targets, stamp);
        let cells = cells(conversation, &projection.rows);
        self.write(at, conversation, cells, stamp.0, move |result| (number, Done::Rewritten(result.is_ok())));
    }

    fn begin(&mut self, at: usize, conversation: usize) {
        let id = self.conversations[conversation].clone();
        let now = self.nodes[at].now(self.now_ms);
        let Some(activation) = self.nodes[at].active.get_mut(&conversation) else { return };
        let before = std::mem::replace(&mut activation.phase, Phase::Settling);
        let Phase::Recovering(recovering) = before else { return };
        let Recovering { recovery, window, .. } = *recovering;
        let head = recovery.finish().map_or(Head::EMPTY, |row| Head::of(&row));
        let dedup = window.finish(now.monotonic);
        let beginning = Beginning { head, dedup, start: LogStart::default(), group: None, told: head.seq };
        let limits =
            CoreLimits { answer_within: Duration::from_secs(2), max_batch: 3, ..CoreLimits::default() };
        let core = ConversationCore::new(id, limits, activation.epoch, activation.stamp, beginning);
        activation.phase = Phase::Serving(Box::new(core));
        let is_newest = self.started.get(&activation.shard) == Some(&activation.epoch);
        self.ledger.begin(conversation, head.seq.0, is_newest, &self.store);
        self.serve_waiting(at, conversation);
    }

    fn serve_waiting(&mut self, at: usize, conversation: usize) {
        let Some(activation) = self.nodes[at].active.get_mut(&conversation) else { return };
        if !matches!(activation.phase, Phase::Serving(_)) {
            return;
        }
        for (asked, caller) in std::mem::take(&mut activation.waiting) {
            self.drive(at, conversation, |core, now, ids, effects| match asked {
                Asked::Send(command) => core.send(*command, caller, now, ids, effects),
                Asked::Act(command) => core.act(*command, caller, now, ids, effects),
            });
        }
    }

    /// Keeps a hint, or lets the conversation sleep if nothing waits there.
    pub(crate) fn rest(&mut self, at: usize, conversation: usize, sleeps: bool) {
        let Some(activation) = self.nodes[at].active.get(&conversation) else { return };
        let Phase::Serving(core) = &activation.phase else { return };
        if sleeps && core.is_idle() {
            self.nodes[at].active.remove(&conversation);
        } else {
            self.drive(at, conversation, |core, _, ids, effects| core.propose_hint(ids, effects));
        }
    }

    fn give_up(&mut self, at: usize, conversation: usize) {
        let Some(activation) = self.nodes[at].active.remove(&conversation) else { return };
        for (_, caller) in activation.waiting {
            self.answer(caller, Answered::Refused);
        }
    }

    fn drive(
        &mut self,
        at: usize,
        conversation: usize,
        act: impl FnOnce(&mut ConversationCore<Caller>, Now, &mut Ids<'_>, &mut Vec<Effect<Caller>>),
    ) {
        let now = self.nodes[at].now(self.now_ms);
        let node = &mut self.nodes[at];
        let Some(activation) = node.active.get_mut(&conversation) else { return };
        let Phase::Serving(core) = &mut activation.phase else { return };
        let Some(stamps) = node.stamps.get_mut(&activation.shard) else { return };
        let mut effects = Vec::new();
        act(core, now, &mut Ids { made: &mut self.made, stamps }, &mut effects);
        let number = activation.number;
        for effect in effects {
            self.effect(at, conversation, number, effect);
        }
    }

    fn effect(&mut self, at: usize, conversation: usize, number: u64, effect: Effect<Caller>) {
        match effect {
            Effect::Append { rows, stamp } => {
                let cells = cells(conversation, &rows);
                self.write(at, conversation, cells, stamp.0, move |result| (number, Done::Written(result)));
            }
            Effect::Wake(after) => {
                let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                self.after(ms, Event::Done(at, conversation, number, Done::Wake));
            }
            Effect::Confirm => self.confirm(at, conversation, false),
            Effect::Answer { to, result } => self.answer(to, Answered::from(result)),
            Effect::Load(targets) => {
                let named = targets.into_iter().map(|LoadTarget { seq, .. }| seq.0).collect();
                self.read_targets(at, conversation, number, named);
            }
            Effect::Project(projection) => {
                let cells = cells(conversation, &projection.rows);
                let done = move |result: Result<(), AppendError>| (number, Done::Projected(result.is_ok()));
                self.write(at, conversation, cells, projection.stamp.0, done);
            }
            Effect::Hint(hint, _) => {
                // The highest that was ever confirmed stays, in whatever order they are written.
                let cells = vec![(Key::Hint(conversation), Cell::Hint(hint))];
                let done = move |result: Result<(), AppendError>| (number, Done::HintKept(result.is_ok()));
                self.write(at, conversation, cells, hint.base.0, done);
            }
            Effect::Publish(rows) => {
                for row in rows.iter() {
                    self.ledger.expose(conversation, row);
                }
            }
        }
    }
}

/// What a client is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answered {
    Place(Place),
    /// There was nothing to do.
    Nothing,
    /// It did not happen, or perhaps: ask again.
    Refused,
    /// It never will happen.
    Invalid,
}

impl From<Result<Option<Place>, RequestError>> for Answered {
    fn from(result: Result<Option<Place>, RequestError>) -> Self {
        match result {
            Ok(Some(place)) => Self::Place(place),
            Ok(None) => Self::Nothing,
            Err(error) if error.retry_after_ms.is_some() => Self::Refused,
            Err(_) => Self::Invalid,
        }
    }
}

fn cells(conversation: usize, rows: &[LogRow]) -> Vec<(Key, Cell)> {
    rows.iter().map(|row| (Key::Row(conversation, row.seq.0), Cell::Row(Arc::new(row.clone())))).collect()
}
