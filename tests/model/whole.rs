//! Whole nodes without their sockets: ownership cores and conversations' cores of three to five nodes together, on simulated
//! time, network and store. What everybody may rely on ([`ledger`]) is asserted where it happens.
//!
//! A seed decides everything: which write reaches which replica when, which statement has an unknown outcome, which node
//! pauses, is cut off the store, or is killed, which actor panics, what clients ask whom and how often.

mod clients;
mod ledger;
mod node;
mod store;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use convoke::actors::conversation::change::Targets;
use convoke::cluster::claim::{Decision, ShardRow};
use convoke::cluster::confirm::FenceRead;
use convoke::cluster::membership::{Addresses, Incarnation, NodeId, PeerRow};
use convoke::cluster::ownership::{DeadReason, Input, Moment, Output};
use convoke::cluster::shard_map::{ShardId, ShardMap};
use convoke::storage::{AppendError, Epoch};
use convoke_protocol::id::{ClientId, ConversationId, UserId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use self::clients::Client;
use self::ledger::Ledger;
use self::node::{Answered, Asked, Caller, Done, Node, Ticket};
use self::store::{Cell, Delivery, Key, Store};

const SHARDS: u32 = 6;
const CONVERSATIONS: usize = 4;
const CLIENTS: usize = 5;
const TICK_MS: u64 = 250;
/// After this a writer does not wait any more; what it wrote may still arrive.
const WRITE_DEADLINE_MS: u64 = 1_000;

/// What a node does that it must not: a simulation that does not find it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cheat {
    /// It uses what it wrote without asking whether it was fenced.
    ConfirmsAtOnce,
    /// It reads from one replica.
    ReadsOneReplica,
    /// A new owner knows no sends of the former one.
    ForgetsTheWindow,
    /// It takes what was just sent for durable.
    AnswersBeforeDurable,
    /// An actor that begins anew writes with the stamp of its predecessor.
    TakesAStampAgain,
}

enum Event {
    /// The store does it.
    Statement(usize, Incarnation, Output<Ticket>),
    /// Its answer arrives.
    Happened(usize, Incarnation, Input<Ticket>),
    /// A conditional statement whose outcome was unknown applies.
    Late(ShardId, ShardRow, ShardRow),
    Deliver(Box<Delivery>),
    /// What a conversation's activation began has ended.
    Done(usize, usize, u64, Done),
    WriteEnded(usize, usize),
    Confirmed(usize, Ticket),
    Tick(usize),
    Begins(usize),
    Ask(usize, usize, Asked, Caller),
    Answered(Caller, Answered),
    Impatient(usize, ClientId, u32),
}

impl Event {
    /// The process that takes it.
    fn taken_by(&self) -> Option<usize> {
        match self {
            Self::Happened(at, ..)
            | Self::Done(at, ..)
            | Self::WriteEnded(at, _)
            | Self::Confirmed(at, _)
            | Self::Tick(at)
            | Self::Ask(at, ..) => Some(*at),
            _ => None,
        }
    }
}

struct World {
    rng: SmallRng,
    now_ms: u64,
    events: BTreeMap<(u64, u64), Event>,
    made: u64,
    incarnations: u128,
    nodes: Vec<Node>,
    store: Store,
    ledger: Ledger,
    clients: Vec<Client>,
    conversations: Vec<ConversationId>,
    /// The highest epoch of each shard whose owner was started.
    started: BTreeMap<ShardId, Epoch>,
    /// Of a hundred statements, so many have an unknown outcome.
    unknown: u32,
    cheat: Option<Cheat>,
}

impl World {
    fn new(seed: u64, cheat: Option<Cheat>) -> Self {
        let user = |n: usize| UserId::new(&format!("user-{n}")).expect("valid");
        let conversations = (0..CONVERSATIONS).map(|n| ConversationId::direct(&user(n), &user(n + 1)));
        let mut world = Self {
            rng: SmallRng::seed_from_u64(seed),
            now_ms: 0,
            events: BTreeMap::new(),
            made: 0,
            incarnations: 0,
            nodes: Vec::new(),
            store: Store::new(),
            ledger: Ledger::new(CONVERSATIONS),
            clients: (0..CLIENTS).map(|n| Client::new(user(n))).collect(),
            conversations: conversations.collect(),
            started: BTreeMap::new(),
            unknown: 15,
            cheat,
        };
        for n in 0..3 + seed % 3 {
            world.join(NodeId(format!("node-{n}")));
        }
        for who in 0..CLIENTS {
            world.after(0, Event::Begins(who));
        }
        world
    }

    fn incarnation(&mut self) -> Incarnation {
        self.incarnations += 1;
        Incarnation(Uuid::from_u128(self.incarnations))
    }

    fn join(&mut self, id: NodeId) {
        let incarnation = self.incarnation();
        let offset = self.rng.random_range(-300_000..300_000);
        self.nodes.push(Node::new(id, incarnation, self.now_ms, offset));
        self.after(0, Event::Tick(self.nodes.len() - 1));
    }

    fn shard_of(&self, conversation: usize) -> ShardId {
        ShardMap::new(SHARDS).of_conversation(&self.conversations[conversation])
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.made += 1;
        self.events.insert((self.now_ms + ms, self.made), event);
    }

    fn delay(&mut self) -> u64 {
        match self.rng.random_range(0..100) {
            0..85 => self.rng.random_range(1..15),
            85..97 => self.rng.random_range(15..300),
            _ => self.rng.random_range(300..3_000),
        }
    }

    fn tell(&mut self, at: usize, input: Input<Ticket>) {
        let now = Duration::from_millis(self.now_ms);
        let mut outputs = Vec::new();
        self.nodes[at].core.apply(input, Moment { monotonic: now, boot_time: now }, &mut outputs);
        for output in outputs {
            self.perform(at, output);
        }
    }

    fn perform(&mut self, at: usize, output: Output<Ticket>) {
        match output {
            Output::Start(shard, epoch) => {
                let highest = self.started.entry(shard).or_default();
                assert!(*highest != epoch, "{shard:?} is started twice in {epoch:?}");
                *highest = epoch.max(*highest);
                self.nodes[at].opens(shard, epoch);
            }
            Output::Close(shard, _) => {
                self.nodes[at].closes(shard);
                let incarnation = self.nodes[at].incarnation;
                self.after(0, Event::Happened(at, incarnation, Input::ShardClosed(shard)));
            }
            Output::Confirmed(tickets) => {
                for ticket in tickets {
                    self.confirmed(at, ticket);
                }
            }
            Output::Dead(reason) => {
                assert!(!matches!(reason, DeadReason::Replaced(_)), "{reason:?} without a fence");
                let incarnation = self.incarnation();
                let now_ms = self.now_ms;
                self.nodes[at].is_born_again(incarnation, now_ms);
            }
            statement => {
                let delay = self.delay();
                let incarnation = self.nodes[at].incarnation;
                self.after(delay, Event::Statement(at, incarnation, statement));
            }
        }
    }

    fn is_cut(&self, at: usize) -> bool {
        self.nodes[at].cut_until > self.now_ms
    }

    #[expect(clippy::needless_pass_by_value, reason = "an output is handed over once, as the core gives it")]
    fn statement(&mut self, at: usize, incarnation: Incarnation, output: Output<Ticket>) {
        let fails = self.is_cut(at) || self.rng.random_range(0..50) == 0;
        let answer = match output {
            Output::WriteFence(fenced) => {
                let cells = vec![(Key::Fence(fenced), Cell::Fence)];
                let (durable, ms) = self.spread(at, cells, 1);
                return self
                    .after(ms, Event::Happened(at, incarnation, Input::FenceWritten(fenced, durable)));
            }
            Output::Decide { shard, expected, then } => {
                Input::ShardDecided(shard, self.decide(at, shard, expected, then))
            }
            Output::WriteBeat { .. } if fails => Input::BeatWritten(false),
            Output::ReadPeers if fails => Input::PeersRead { began: Duration::ZERO, rows: None },
            Output::ReadShard(shard) if fails => Input::ShardRead(shard, None),
            Output::ReadFence if fails => Input::FenceRead(FenceRead::Failed),
            Output::WriteBeat { beat, draining } => {
                let row = PeerRow {
                    incarnation,
                    node: self.nodes[at].id.clone(),
                    beat,
                    draining,
                    addresses: Addresses::default(),
                };
                self.store.nodes.insert(incarnation, row);
                Input::BeatWritten(true)
            }
            Output::ReadPeers => {
                let rows = Some(self.store.nodes.values().cloned().collect());
                Input::PeersRead { began: Duration::from_millis(self.now_ms), rows }
            }
            Output::ReadShard(shard) => Input::ShardRead(shard, Some(self.store.shard(shard))),
            Output::ReadFence => {
                self.nodes[at].scanned = self.started.clone();
                let found = self.read(Key::Fence(incarnation));
                Input::FenceRead(if found.is_some() { FenceRead::Fenced } else { FenceRead::Nothing })
            }
            Output::Start(..) | Output::Close(..) | Output::Confirmed(_) | Output::Dead(_) => return,
        };
        let delay = self.delay();
        self.after(delay, Event::Happened(at, incarnation, answer));
    }

    fn decide(&mut self, at: usize, shard: ShardId, expected: ShardRow, then: ShardRow) -> Decision {
        let unknown = self.is_cut(at) || self.rng.random_range(0..100) < self.unknown;
        if unknown && self.rng.random() {
            let ms = self.rng.random_range(1..4_000);
            self.after(ms, Event::Late(shard, expected, then));
            return Decision::Unknown;
        }
        let decision = self.store.decide(shard, expected, then);
        if unknown { Decision::Unknown } else { decision }
    }

    fn read(&mut self, key: Key) -> Option<Cell> {
        let one_replica = self.cheat == Some(Cheat::ReadsOneReplica);
        let (found, repairs) = self.store.read(key, one_replica, &mut self.rng);
        for repair in repairs {
            let ms = self.rng.random_range(1..2_000);
            self.after(ms, Event::Deliver(Box::new(repair)));
        }
        found
    }

    /// Sends cells to all replicas; says whether a quorum has all in time, and when the writer knows.
    fn spread(&mut self, at: usize, cells: Vec<(Key, Cell)>, stamp: u64) -> (bool, u64) {
        let mut durable_ms = 0;
        let cut = self.is_cut(at);
        for (key, cell) in cells {
            let mut arrivals = [0; 3];
            for (replica, arrival) in arrivals.iter_mut().enumerate() {
                let ms = match self.rng.random_range(0..100) {
                    _ if cut => u64::MAX,
                    0..75 => self.rng.random_range(1..15),
                    75..88 => self.rng.random_range(15..300),
                    88..97 => self.rng.random_range(300..15_000),
                    _ => u64::MAX,
                };
                *arrival = ms;
                if ms < u64::MAX {
                    let delivery = Delivery { replica, key, stamp, cell: cell.clone() };
                    self.after(ms, Event::Deliver(Box::new(delivery)));
                }
            }
            arrivals.sort_unstable();
            durable_ms = arrivals[1].max(durable_ms);
        }
        let known = durable_ms <= WRITE_DEADLINE_MS && self.rng.random_range(0..40) > 0;
        if known { (true, durable_ms + self.delay()) } else { (false, WRITE_DEADLINE_MS) }
    }

    /// A conversation writes cells; how that ends is told to its activation.
    fn write(
        &mut self,
        at: usize,
        conversation: usize,
        cells: Vec<(Key, Cell)>,
        stamp: u64,
        done: impl FnOnce(Result<(), AppendError>) -> (u64, Done),
    ) {
        *self.nodes[at].under_way.entry(conversation).or_default() += 1;
        let (result, ms) = if self.rng.random_range(0..50) == 0 {
            (Err(AppendError::NotStored("the queue is full".to_owned())), 1)
        } else {
            let (durable, ms) = self.spread(at, cells, stamp);
            let unknown = || AppendError::Unknown("no answer in time".to_owned());
            (if durable { Ok(()) } else { Err(unknown()) }, ms)
        };
        let ms = if self.cheat == Some(Cheat::AnswersBeforeDurable) { 0 } else { ms };
        let result = if self.cheat == Some(Cheat::AnswersBeforeDurable) { Ok(()) } else { result };
        let (number, done) = done(result);
        self.after(ms, Event::Done(at, conversation, number, done));
        self.after(ms, Event::WriteEnded(at, conversation));
    }

    fn reads_fail(&mut self, at: usize) -> bool {
        self.is_cut(at) || self.rng.random_range(0..30) == 0
    }

    fn read_hint(&mut self, at: usize, conversation: usize, number: u64) {
        let hint = match self.reads_fail(at) {
            true => Err(()),
            false => Ok(self.read(Key::Hint(conversation)).and_then(|cell| match cell {
                Cell::Hint(hint) => Some(hint),
                _ => None,
            })),
        };
        let delay = self.delay();
        self.after(delay, Event::Done(at, conversation, number, Done::HintRead(hint)));
    }

    fn read_row(&mut self, conversation: usize, seq: u64) -> Option<convoke::storage::LogRow> {
        match self.read(Key::Row(conversation, seq))? {
            Cell::Row(row) => Some((*row).clone()),
            _ => None,
        }
    }

    fn read_rows(&mut self, at: usize, conversation: usize, number: u64, (from, to): (u64, u64)) {
        let to = self.store.highest(conversation).min(to);
        let fails = self.reads_fail(at);
        let rows = (!fails).then(|| (from..=to).filter_map(|seq| self.read_row(conversation, seq)).collect());
        let delay = self.delay();
        self.after(delay, Event::Done(at, conversation, number, Done::Read(rows)));
    }

    /// Reads messages that commands name, and the entries that edited them last.
    fn read_targets(&mut self, at: usize, conversation: usize, number: u64, named: Vec<u64>) {
        let mut targets = Targets::default();
        for seq in named {
            let row = self.read_row(conversation, seq);
            let last_edit = row.as_ref().and_then(|row| row.entry.last_edit);
            let last_edit = last_edit.and_then(|seq| self.read_row(conversation, seq.0));
            targets.rows.extend(row.into_iter().chain(last_edit).map(|row| (row.seq, row)));
        }
        let fails = self.reads_fail(at);
        let targets = if fails { Err("no quorum".to_owned()) } else { Ok(targets) };
        let delay = self.delay();
        self.after(delay, Event::Done(at, conversation, number, Done::Loaded(targets)));
    }

    fn happen(&mut self, event: Event) {
        if let Some(at) = event.taken_by() {
            let node = &self.nodes[at];
            if node.gone {
                return;
            }
            if node.paused_until > self.now_ms {
                self.made += 1;
                self.events.insert((node.paused_until, self.made), event);
                return;
            }
        }
        match event {
            Event::Statement(at, incarnation, output) => self.statement(at, incarnation, output),
            Event::Happened(at, incarnation, input) => {
                if self.nodes[at].incarnation == incarnation {
                    self.tell(at, input);
                }
            }
            Event::Late(shard, expected, then) => {
                self.store.decide(shard, expected, then);
            }
            Event::Deliver(delivery) => self.store.deliver(*delivery),
            Event::Done(at, conversation, number, done) => self.done(at, conversation, number, done),
            Event::WriteEnded(at, conversation) => self.write_ended(at, conversation),
            Event::Confirmed(at, ticket) => self.confirmed(at, ticket),
            Event::Tick(at) => {
                self.tell(at, Input::Tick);
                self.after(TICK_MS, Event::Tick(at));
                let conversation = self.rng.random_range(0..CONVERSATIONS);
                let sleeps = self.rng.random_range(0..4) == 0;
                self.rest(at, conversation, sleeps);
            }
            Event::Begins(who) => self.client_begins(who),
            Event::Ask(at, conversation, asked, caller) => {
                if !self.asked(at, conversation, asked, caller) {
                    self.answer(caller, Answered::Refused);
                }
            }
            Event::Answered(caller, answered) => self.answered(caller, answered),
            Event::Impatient(who, client_id, attempt) => self.impatient(who, client_id, attempt),
        }
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= end) {
            self.now_ms = self.now_ms.max(entry.key().0);
            let event = entry.remove();
            self.happen(event);
        }
        self.now_ms = end;
    }

    fn something_fails(&mut self) {
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|at| !self.nodes[*at].gone).collect();
        let at = alive[self.rng.random_range(0..alive.len())];
        let until = self.now_ms + self.rng.random_range(0..8_000);
        match self.rng.random_range(0..7) {
            0 | 1 => self.nodes[at].paused_until = until,
            2 => self.nodes[at].cut_until = until,
            3 => {
                self.nodes[at].gone = true;
                let id = self.nodes[at].id.clone();
                self.join(id);
            }
            // Rightly or not.
            4 => {
                let doubted = self.nodes[self.rng.random_range(0..self.nodes.len())].incarnation;
                self.tell(at, Input::Gone(doubted));
            }
            5 => {
                let conversation = self.rng.random_range(0..CONVERSATIONS);
                for node in &mut self.nodes {
                    node.crash(conversation);
                }
            }
            _ => {
                let shard = ShardId(self.rng.random_range(0..SHARDS));
                self.tell(at, Input::Renew(shard));
            }
        }
    }

    /// Faults, then quiet: everything is served again, and everybody who waits is answered.
    fn run(&mut self) {
        for _ in 0..10 {
            self.something_fails();
            let ms = self.rng.random_range(1..40) * 200;
            self.pass(ms);
        }
        self.unknown = 0;
        for client in &mut self.clients {
            client.stopped = true;
        }
        self.pass(45_000);
        for conversation in 0..CONVERSATIONS {
            self.ledger.check(conversation, &self.store);
        }
        let waiting = self.clients.iter().filter(|client| !client.is_done()).count();
        assert_eq!(waiting, 0, "clients are not answered although all is well");
    }
}

/// How many seeds, and from which on.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    match number("CONVOKE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CONVOKE_SIM_SEEDS").unwrap_or(count),
    }
}

/// Prints how to run the seed again that a panic ends.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "replay: CONVOKE_SIM_SEED={seed} cargo test --test model whole::whatever -- --nocapture"
            );
        }
    }
}

#[test]
fn whatever_happens_whole_nodes_keep_what_they_promise() {
    let begun = Instant::now();
    let (mut acks, mut heads) = (0, 0);
    for seed in seeds(2_000) {
        let replay = Replay(seed);
        let mut world = World::new(seed, None);
        world.run();
        acks += world.ledger.acks;
        heads += (0..CONVERSATIONS).map(|conversation| world.ledger.head(conversation)).sum::<u64>();
        drop(replay);
    }
    eprintln!("whole nodes: {acks} answers about {heads} entries, {:.1?}", begun.elapsed());
    assert!(acks > 0);
}

fn is_found(cheat: Cheat) {
    let broken = (0..2_000).find_map(|seed| {
        let run = std::panic::catch_unwind(|| World::new(seed, Some(cheat)).run());
        let said = run.err()?;
        Some((seed, said.downcast_ref::<String>().cloned().unwrap_or_default()))
    });
    let (seed, said) = broken.unwrap_or_else(|| panic!("{cheat:?} breaks nothing"));
    eprintln!("{cheat:?}: seed {seed}: {said}");
}

#[test]
fn what_is_used_without_confirmation_is_found() {
    is_found(Cheat::ConfirmsAtOnce);
}

#[test]
fn what_is_read_from_one_replica_is_found() {
    is_found(Cheat::ReadsOneReplica);
}

#[test]
fn a_new_owner_that_knows_no_former_sends_is_found() {
    is_found(Cheat::ForgetsTheWindow);
}

#[test]
fn what_is_used_before_it_is_durable_is_found() {
    is_found(Cheat::AnswersBeforeDurable);
}

#[test]
fn a_stamp_that_is_taken_again_is_found() {
    is_found(Cheat::TakesAStampAgain);
}
