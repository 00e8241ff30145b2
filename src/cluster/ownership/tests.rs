//! A few nodes on simulated time over a simulated store that is slow, forgets to answer, and applies statements late.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::*;
use crate::cluster::membership::Addresses;

const SHARDS: u32 = 12;
const STEP_MS: u64 = 50;

type Ticket = (ShardId, Epoch);

enum Event {
    /// The store does it.
    Run(usize, Output<Ticket>),
    Tell(usize, Input<Ticket>),
    /// A statement that was answered with "unknown" applies.
    Late(ShardId, ShardRow, ShardRow),
}

struct Node {
    core: Ownership<Ticket>,
    incarnation: Incarnation,
    id: NodeId,
    /// Gets nothing before then; what arrives meanwhile waits.
    paused_until: u64,
    over: Option<DeadReason>,
    /// What the owners of which epochs had begun to read when the read of the own fence was run.
    fence_read: BTreeMap<ShardId, Epoch>,
    confirmed: usize,
}

struct Cluster {
    rng: SmallRng,
    now_ms: u64,
    events: BTreeMap<(u64, u64), Event>,
    made: u64,
    nodes: Vec<Node>,
    rows: BTreeMap<Incarnation, PeerRow>,
    fences: BTreeSet<Incarnation>,
    shards: Vec<ShardRow>,
    /// The highest epoch in which a shard was started.
    started: BTreeMap<ShardId, Epoch>,
    epochs: BTreeSet<(ShardId, Epoch)>,
    /// Out of a hundred statements, so many have an unknown outcome.
    unknown: u32,
    store_answers: bool,
}

impl Cluster {
    fn new(seed: u64, nodes: u128, unknown: u32) -> Self {
        let mut cluster = Self {
            rng: SmallRng::seed_from_u64(seed),
            now_ms: 0,
            events: BTreeMap::new(),
            made: 0,
            nodes: Vec::new(),
            rows: BTreeMap::new(),
            fences: BTreeSet::new(),
            shards: vec![ShardRow::default(); SHARDS as usize],
            started: BTreeMap::new(),
            epochs: BTreeSet::new(),
            unknown,
            store_answers: true,
        };
        for n in 0..nodes {
            cluster.join(n + 1, &format!("node-{n}"));
        }
        cluster
    }

    fn moment(&self) -> Moment {
        let now = Duration::from_millis(self.now_ms);
        Moment { monotonic: now, boot_time: now }
    }

    fn join(&mut self, incarnation: u128, id: &str) {
        let (incarnation, id) = (Incarnation(Uuid::from_u128(incarnation)), NodeId(id.to_owned()));
        let map = ShardMap::new(SHARDS);
        let core = Ownership::new(incarnation, id.clone(), map, LeaseTimes::default(), self.moment());
        let (over, fence_read) = (None, BTreeMap::new());
        self.nodes.push(Node { core, incarnation, id, paused_until: 0, over, fence_read, confirmed: 0 });
    }

    fn after(&mut self, event: Event) {
        let delay = self.rng.random_range(1..40);
        self.made += 1;
        self.events.insert((self.now_ms + delay, self.made), event);
    }

    fn tell(&mut self, at: usize, input: Input<Ticket>) {
        if self.nodes[at].paused_until > self.now_ms {
            self.made += 1;
            let due = (self.nodes[at].paused_until, self.made);
            self.events.insert(due, Event::Tell(at, input));
            return;
        }
        let mut outputs = Vec::new();
        let moment = self.moment();
        self.nodes[at].core.apply(input, moment, &mut outputs);
        for output in outputs {
            self.perform(at, output);
        }
    }

    fn perform(&mut self, at: usize, output: Output<Ticket>) {
        match output {
            Output::Start(shard, epoch) => {
                assert!(self.epochs.insert((shard, epoch)), "{shard:?} is started twice in {epoch:?}");
                let highest = self.started.entry(shard).or_default();
                *highest = epoch.max(*highest);
                self.tell(at, Input::Durable(shard, epoch, (shard, epoch)));
            }
            Output::Close(shard, epoch) => {
                assert_ne!(
                    self.nodes[at].over,
                    Some(DeadReason::Fenced),
                    "{shard:?} {epoch:?} was closed before"
                );
                self.after(Event::Tell(at, Input::ShardClosed(shard)));
            }
            Output::Confirmed(tickets) => {
                for (shard, epoch) in tickets {
                    let scanned = self.nodes[at].fence_read.get(&shard).copied().unwrap_or_default();
                    assert!(
                        scanned <= epoch,
                        "I4: {shard:?} is confirmed in {epoch:?} after the scan of {scanned:?}"
                    );
                    self.nodes[at].confirmed += 1;
                }
            }
            Output::Dead(reason) => self.nodes[at].over = Some(reason),
            statement => self.after(Event::Run(at, statement)),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "an output is handed over once, as the core gives it")]
    fn run(&mut self, at: usize, output: Output<Ticket>) {
        let answer = match output {
            _ if !self.store_answers => failed(&output),
            Output::WriteBeat { beat, draining } => {
                let Node { incarnation, id, .. } = &self.nodes[at];
                let row = PeerRow {
                    incarnation: *incarnation,
                    node: id.clone(),
                    beat,
                    draining,
                    addresses: Addresses::default(),
                };
                self.rows.insert(*incarnation, row);
                Input::BeatWritten(true)
            }
            Output::ReadPeers => {
                let rows = Some(self.rows.values().cloned().collect());
                Input::PeersRead { began: self.moment().monotonic, rows }
            }
            Output::WriteFence(incarnation) => {
                self.fences.insert(incarnation);
                Input::FenceWritten(incarnation, true)
            }
            Output::ReadFence => {
                self.nodes[at].fence_read = self.started.clone();
                let found = self.fences.contains(&self.nodes[at].incarnation);
                Input::FenceRead(if found { FenceRead::Fenced } else { FenceRead::Nothing })
            }
            Output::ReadShard(shard) => Input::ShardRead(shard, Some(self.shards[shard.0 as usize])),
            Output::Decide { shard, expected, then } => self.decide(shard, expected, then),
            Output::Start(..) | Output::Close(..) | Output::Confirmed(_) | Output::Dead(_) => return,
        };
        self.after(Event::Tell(at, answer));
    }

    fn decide(&mut self, shard: ShardId, expected: ShardRow, then: ShardRow) -> Input<Ticket> {
        let unknown = self.rng.random_range(0..100) < self.unknown;
        if unknown && self.rng.random() {
            self.after(Event::Late(shard, expected, then));
            return Input::ShardDecided(shard, Decision::Unknown);
        }
        let row = &mut self.shards[shard.0 as usize];
        let applies = *row == expected;
        if applies {
            *row = then;
        }
        if applies && then.owner.is_none() {
            // A word that comes, or does not, or to the one who has just given it back.
            for at in 0..self.nodes.len() {
                if self.rng.random() {
                    self.after(Event::Tell(at, Input::Released(shard, Some(then.epoch))));
                }
            }
        }
        let decision = match (unknown, applies) {
            (true, _) => Decision::Unknown,
            (false, true) => Decision::Applied,
            (false, false) => Decision::NotApplied,
        };
        Input::ShardDecided(shard, decision)
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            let next_tick = (self.now_ms / STEP_MS + 1) * STEP_MS;
            while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= next_tick) {
                self.now_ms = self.now_ms.max(entry.key().0);
                match entry.remove() {
                    Event::Run(at, output) => self.run(at, output),
                    Event::Tell(at, input) => self.tell(at, input),
                    Event::Late(shard, expected, then) => {
                        let row = &mut self.shards[shard.0 as usize];
                        *row = if *row == expected { then } else { *row };
                    }
                }
            }
            self.now_ms = next_tick;
            for at in 0..self.nodes.len() {
                if self.nodes[at].paused_until <= self.now_ms {
                    self.tell(at, Input::Tick);
                }
            }
        }
    }

    /// How many shards each node serves; every shard by one node at most that is not over.
    fn loads(&self) -> Vec<usize> {
        let serves = |node: &Node, shard| node.core.open(ShardId(shard)).is_some();
        self.nodes.iter().map(|node| (0..SHARDS).filter(|shard| serves(node, *shard)).count()).collect()
    }
}

/// The answer of a store that has no quorum.
fn failed(output: &Output<Ticket>) -> Input<Ticket> {
    match output {
        Output::WriteBeat { .. } => Input::BeatWritten(false),
        Output::ReadPeers => Input::PeersRead { began: Duration::ZERO, rows: None },
        Output::WriteFence(incarnation) => Input::FenceWritten(*incarnation, false),
        Output::ReadShard(shard) => Input::ShardRead(*shard, None),
        Output::Decide { shard, .. } => Input::ShardDecided(*shard, Decision::Unknown),
        _ => Input::FenceRead(FenceRead::Failed),
    }
}

#[test]
fn nodes_share_the_shards_and_what_they_write_is_confirmed() {
    let mut cluster = Cluster::new(1, 3, 0);
    cluster.pass(8_000);
    assert_eq!(cluster.loads(), [4, 4, 4]);
    assert!(cluster.nodes.iter().all(|node| node.confirmed >= 4 && node.over.is_none()));
}

#[test]
fn shards_of_a_dead_node_are_served_again_within_lease_margin_and_a_second() {
    let mut cluster = Cluster::new(2, 3, 0);
    cluster.pass(8_000);
    cluster.nodes[0].paused_until = u64::MAX;
    cluster.pass(3_000 + 1_000 + 1_000 + 2 * 1_000);
    assert_eq!(cluster.loads()[1..], [6, 6]);
}

#[test]
fn a_node_whose_process_is_seen_to_be_gone_is_not_waited_for_that_long() {
    let mut cluster = Cluster::new(9, 3, 0);
    cluster.pass(8_000);
    let (gone, other) = (cluster.nodes[0].incarnation, cluster.nodes[2].incarnation);
    cluster.nodes[0].paused_until = u64::MAX;
    for at in [1, 2] {
        cluster.tell(at, Input::Gone(gone));
        // One that is alive shows that it is.
        cluster.tell(3 - at, Input::Gone(other));
    }
    // A beat and a half, and what reads, fence and claims take.
    cluster.pass(2_200);
    assert_eq!(cluster.loads()[1..], [6, 6]);
    cluster.pass(4_000);
    assert!(cluster.nodes[1..].iter().all(|node| node.over.is_none()));
}

#[test]
fn a_node_that_slept_is_over_before_it_does_anything() {
    let mut cluster = Cluster::new(3, 2, 0);
    cluster.pass(6_000);
    cluster.nodes[0].paused_until = cluster.now_ms + 9_000;
    let confirmed = cluster.nodes[0].confirmed;
    cluster.pass(12_000);
    assert_eq!((cluster.nodes[0].over, cluster.nodes[0].confirmed), (Some(DeadReason::LeaseOver), confirmed));
    assert_eq!(cluster.loads(), [0, 12]);
    // Its next life fences nobody but its former one, and gets its share.
    cluster.join(9, "node-0");
    cluster.pass(12_000);
    assert_eq!(cluster.loads(), [0, 6, 6]);
    assert_eq!(cluster.nodes[1].over, None);
}

#[test]
fn a_node_that_restarts_does_not_wait_for_its_own_lease() {
    let mut cluster = Cluster::new(4, 1, 0);
    cluster.pass(3_000);
    cluster.nodes[0].paused_until = u64::MAX;
    cluster.join(9, "node-0");
    cluster.pass(3_500);
    assert_eq!(cluster.loads()[1], 12);
}

#[test]
fn a_shard_whose_stamps_are_used_up_is_claimed_anew() {
    let mut cluster = Cluster::new(7, 2, 30);
    cluster.pass(10_000);
    let worn = (0..SHARDS).map(ShardId).find(|shard| cluster.nodes[0].core.open(*shard).is_some());
    let worn = worn.expect("it has some");
    let epoch = cluster.nodes[0].core.open(worn).expect("open");
    cluster.tell(0, Input::Renew(worn));
    cluster.pass(10_000);
    assert!(cluster.nodes[0].core.open(worn).is_some_and(|renewed| renewed > epoch));
    assert_eq!(cluster.loads(), [6, 6]);
    assert!(cluster.nodes.iter().all(|node| node.over.is_none()));
    // One that is not served here has nothing to renew.
    let other = (0..SHARDS).map(ShardId).find(|shard| cluster.nodes[1].core.open(*shard).is_some());
    cluster.tell(0, Input::Renew(other.expect("it has some")));
    cluster.pass(2_000);
    assert_eq!(cluster.loads(), [6, 6]);
}

#[test]
fn a_shard_goes_where_an_operator_puts_it_and_back_when_that_node_is_gone() {
    let mut cluster = Cluster::new(8, 3, 30);
    cluster.pass(10_000);
    let shard = (0..SHARDS).map(ShardId).find(|shard| cluster.nodes[0].core.open(*shard).is_some());
    let shard = shard.expect("it has some");
    for at in 0..3 {
        cluster.tell(at, Input::Pin(shard, Some(NodeId("node-2".to_owned()))));
    }
    cluster.pass(5_000);
    assert!(cluster.nodes[2].core.open(shard).is_some());
    assert_eq!(cluster.loads(), [3, 4, 5]);
    for at in 0..3 {
        cluster.tell(at, Input::Pin(shard, None));
    }
    cluster.pass(5_000);
    assert_eq!(cluster.loads(), [4, 4, 4]);
    for at in 0..3 {
        cluster.tell(at, Input::Pin(shard, Some(NodeId("node-2".to_owned()))));
    }
    cluster.tell(2, Input::Drain);
    cluster.pass(10_000);
    assert!(cluster.nodes[2].core.is_drained());
    assert_eq!(cluster.loads(), [6, 6, 0]);
}

#[test]
fn a_drained_node_gives_back_all_and_dies_of_nothing() {
    let mut cluster = Cluster::new(5, 3, 30);
    cluster.pass(10_000);
    cluster.tell(1, Input::Drain);
    cluster.pass(10_000);
    assert!(cluster.nodes[1].core.is_drained());
    assert_eq!(cluster.loads(), [6, 0, 6]);
    assert!(cluster.nodes.iter().all(|node| node.over.is_none()));
}

#[test]
fn few_shards_are_without_an_owner_at_a_time() {
    let mut cluster = Cluster::new(10, 1, 30);
    cluster.pass(6_000);
    assert_eq!(cluster.loads(), [12]);
    cluster.join(7, "node-1");
    cluster.tell(0, Input::Drain);
    let mut most = 0;
    while !cluster.nodes[0].core.is_drained() {
        assert!(cluster.now_ms < 60_000, "it takes an end");
        cluster.pass(STEP_MS);
        let all = cluster.nodes[0].core.shards.iter();
        most = most.max(all.filter(|shard| shard.is_being_given_back()).count());
    }
    assert!((2..=MAX_HANDOVERS).contains(&most), "{most}");
    cluster.pass(5_000);
    assert_eq!(cluster.loads(), [0, 12]);
}

/// A node alone among many shards, that has begun to look at the first of them.
fn looking(shards: u32) -> (Ownership<Ticket>, Moment, Vec<Output<Ticket>>) {
    let now = Moment { monotonic: Duration::from_secs(1), boot_time: Duration::from_secs(1) };
    let (me, map) = (Incarnation(Uuid::from_u128(1)), ShardMap::new(shards));
    let mut core = Ownership::new(me, NodeId("node".to_owned()), map, LeaseTimes::default(), now);
    let mut outputs = Vec::new();
    for input in [
        Input::Tick,
        Input::BeatWritten(true),
        Input::PeersRead { began: now.monotonic, rows: Some(Vec::new()) },
    ] {
        outputs.clear();
        core.apply(input, now, &mut outputs);
    }
    (core, now, outputs)
}

#[test]
fn a_shard_that_somebody_waits_for_is_claimed_before_others() {
    let (mut core, now, outputs) = looking(200);
    let first: Vec<_> = (0..).map(ShardId).take(MAX_STATEMENTS).map(Output::ReadShard).collect();
    assert_eq!(outputs, first);
    let waited_for = ShardId(150);
    let mut outputs = Vec::new();
    core.apply(Input::Wanted(waited_for), now, &mut outputs);
    assert_eq!(outputs, [], "as many statements are under way as may be");
    core.apply(Input::ShardRead(ShardId(3), Some(ShardRow::default())), now, &mut outputs);
    assert_eq!(outputs, [Output::ReadShard(waited_for)]);
    outputs.clear();
    core.apply(Input::ShardRead(waited_for, Some(ShardRow::default())), now, &mut outputs);
    assert!(matches!(outputs[..], [Output::Decide { shard, .. }] if shard == waited_for), "{outputs:?}");
    outputs.clear();
    core.apply(Input::ShardDecided(waited_for, Decision::Applied), now, &mut outputs);
    assert_eq!(outputs, [Output::Start(waited_for, Epoch(1))]);
}

#[test]
fn a_node_that_is_told_of_a_shard_that_it_does_not_want_looks_who_is_there() {
    let (mut core, now, _) = looking(8);
    let elsewhere = Some(NodeId("elsewhere".to_owned()));
    let row = |incarnation, node: &str| PeerRow {
        incarnation: Incarnation(Uuid::from_u128(incarnation)),
        node: NodeId(node.to_owned()),
        beat: 1,
        draining: false,
        addresses: Addresses::default(),
    };
    let mut outputs = Vec::new();
    core.apply(
        Input::PeersRead { began: now.monotonic, rows: Some(vec![row(2, "elsewhere")]) },
        now,
        &mut outputs,
    );
    core.apply(Input::Pin(ShardId(3), elsewhere), now, &mut outputs);
    let released = |core: &mut Ownership<Ticket>, after_ms| {
        let mut outputs = Vec::new();
        let now = Moment { monotonic: now.monotonic + Duration::from_millis(after_ms), ..now };
        core.apply(Input::Released(ShardId(3), Some(Epoch(4))), now, &mut outputs);
        outputs.contains(&Output::ReadPeers)
    };
    assert!(!released(&mut core, 50), "it has just looked");
    assert!(released(&mut core, 150));
    assert!(!released(&mut core, 300), "it is looking");
    outputs.clear();
    // The other one goes: what it gave back is claimed, although a read from before shows that it has it.
    let goes = PeerRow { draining: true, ..row(2, "elsewhere") };
    core.apply(Input::PeersRead { began: now.monotonic, rows: Some(vec![goes]) }, now, &mut outputs);
    let had = ShardRow { owner: Some(Incarnation(Uuid::from_u128(2))), epoch: Epoch(4) };
    core.apply(Input::ShardRead(ShardId(3), Some(had)), now, &mut outputs);
    let claims = |output: &Output<Ticket>| matches!(output, Output::Decide { shard: ShardId(3), .. });
    assert!(outputs.iter().any(claims), "{outputs:?}");
}

#[test]
fn what_operators_want_is_there_for_the_next_life() {
    let (mut core, now, mut outputs) = looking(8);
    let elsewhere = || Some(NodeId("elsewhere".to_owned()));
    for input in [
        Input::Pin(ShardId(3), elsewhere()),
        Input::Pin(ShardId(4), elsewhere()),
        Input::Pin(ShardId(3), None),
    ] {
        core.apply(input, now, &mut outputs);
    }
    // The process slept for longer than a lease.
    let late = Moment { boot_time: now.boot_time + Duration::from_secs(60), ..now };
    core.apply(Input::Tick, late, &mut outputs);
    assert!(outputs.contains(&Output::Dead(DeadReason::LeaseOver)));
    assert_eq!(core.into_pins().collect::<Vec<_>>(), [(ShardId(4), NodeId("elsewhere".to_owned()))]);
}

#[test]
fn without_a_quorum_for_a_lease_every_node_is_over() {
    let mut cluster = Cluster::new(6, 2, 0);
    cluster.pass(6_000);
    cluster.store_answers = false;
    cluster.pass(3_500);
    assert!(cluster.nodes.iter().all(|node| node.over == Some(DeadReason::LeaseOver)));
    assert_eq!(cluster.loads(), [0, 0]);
}
