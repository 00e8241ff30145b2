//! A node's part in its cluster: the shell around `cluster::ownership`, which decides.
//!
//! It writes beats, reads the other nodes, fences the dead, claims shards and gives them back, and confirms what
//! conversations wrote. Statements run beside each other; what they answer comes back as messages, marked with the life of
//! the node in which they were sent: a life that is over takes no more answers.
//!
//! # Supervision
//! Linked to the node's actor. When it panics, no confirmation is given any more, so nothing is acknowledged; the node ends with
//! an error ([`Membership::ended`]), for whoever watches it to start it again.
//!
//! # Lifecycle
//! A life that is over (no beat for a lease, or fenced) closes all gates, and another begins at once, with another
//! incarnation.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, oneshot, watch};

use crate::actors::shard::Conversations;
use crate::clock::Clock;
use crate::cluster::claim::Decision;
use crate::cluster::lease::LeaseTimes;
use crate::cluster::membership::{Addresses, Incarnation, NodeId, PeerId, PeerRow};
use crate::cluster::owner::{Gates, WantsConfirmation};
use crate::cluster::ownership::{Input, Moment, Output, Ownership};
use crate::cluster::shard_map::{ShardId, ShardMap};
use crate::cluster::store::{Beat, OwnershipStore};
use crate::storage::Epoch;
use crate::telemetry::cluster::ClusterTimes;

/// How often time is told to the core.
const TICK: Duration = Duration::from_millis(250);
/// After this a node that is gone has no row any more.
const BEAT_TTL: Duration = Duration::from_secs(60);

type Waiter = oneshot::Sender<()>;

enum Message {
    Tick,
    Happened(Incarnation, Input<Waiter>),
    Wants(WantsConfirmation),
    /// What this node, its peers or operators want of the core.
    Asked(Vec<Input<Waiter>>),
    Doubt(PeerId),
    Drain,
    /// The own row is gone, or that was not possible: it goes by itself.
    Left,
}

/// What a node shows of its part in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Shards that it serves.
    pub open: usize,
    /// Shards that it should serve; 0 before it has seen the others.
    pub wanted: usize,
    /// Whether it has given everything back, as it was told to.
    pub drained: bool,
    /// How many of its lives are over.
    pub deaths: u64,
}

/// What it works with.
pub struct MembershipSetup {
    /// The node's name.
    pub node: String,
    /// Where others reach it.
    pub addresses: Addresses,
    /// Where beats, fences and shards are kept.
    pub store: Arc<dyn OwnershipStore>,
    /// The shards.
    pub map: ShardMap,
    /// Their gates.
    pub gates: Arc<Gates>,
    /// Those who wait for confirmations.
    pub wanted: mpsc::Receiver<WantsConfirmation>,
    /// What is closed with a gate.
    pub conversations: Conversations,
    /// Told of what is served here, and of the other nodes.
    pub observer: Arc<dyn ClusterObserver>,
    /// Where it is counted how long shards move.
    pub cluster_times: ClusterTimes,
    /// How long a node may go without a beat.
    pub times: LeaseTimes,
    /// The clocks.
    pub clock: Clock,
}

/// Who is told how the cluster changes. Every method returns at once.
pub trait ClusterObserver: Send + Sync + 'static {
    /// A shard is served here now.
    fn opened(&self, shard: ShardId, epoch: Epoch);
    /// It is not served here any more: its gate is closed.
    fn closed(&self, shard: ShardId, epoch: Epoch);
    /// It was given back: whoever should serve it may take it at once.
    fn released(&self, shard: ShardId, epoch: Epoch);
    /// These other nodes look alive.
    fn peers(&self, peers: Vec<PeerRow>);
}

/// Reaches it. Cheap to clone.
#[derive(Clone)]
pub struct Membership {
    actor: ActorRef<Message>,
    standing: watch::Receiver<Standing>,
}

impl Membership {
    /// Starts it: from now on it joins, claims and confirms.
    ///
    /// # Errors
    /// The actor cannot be started.
    pub async fn start(setup: MembershipSetup, supervisor: &ActorCell) -> Result<Self, ractor::SpawnErr> {
        let (show, standing) = watch::channel(Standing::default());
        let (actor, _) =
            Actor::spawn_linked(None, MembershipActor, (setup, show), supervisor.clone()).await?;
        Ok(Self { actor, standing })
    }

    /// How it stands now.
    pub fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    /// Waits until all shards are served that should be, at most so long; says whether they are.
    pub async fn serves_its_share(&self, within: Duration) -> bool {
        let mut standing = self.standing.clone();
        let there = standing.wait_for(|standing| standing.wanted > 0 && standing.open >= standing.wanted);
        matches!(tokio::time::timeout(within, there).await, Ok(Ok(_)))
    }

    /// Waits until it is over: it was stopped, or it panicked.
    pub async fn ended(&self) {
        let mut standing = self.standing.clone();
        // It alone shows how it stands.
        while standing.changed().await.is_ok() {}
    }

    /// The write stamps of these shards are nearly used up: they are claimed anew, in a later epoch.
    pub fn renew(&self, shards: impl IntoIterator<Item = ShardId>) {
        for shard in shards {
            tracing::info!(
                shard = shard.0,
                "a shard is claimed anew, for its write stamps are nearly used up"
            );
            self.ask(vec![Input::Renew(shard)]);
        }
    }

    /// Somebody gave these shards back: those that should be served here are claimed at once.
    pub fn released(&self, shards: Vec<(ShardId, Option<Epoch>)>) {
        self.ask(shards.into_iter().map(|(shard, epoch)| Input::Released(shard, epoch)).collect());
    }

    /// Somebody waits for these shards: those that should be served here are claimed before others.
    pub fn hurry(&self, wanted: Vec<ShardId>) {
        self.ask(wanted.into_iter().map(Input::Wanted).collect());
    }

    /// Operators want these shards to be on these nodes; or, without one, where they would be.
    pub fn pin(&self, pins: Vec<(ShardId, Option<NodeId>)>) {
        self.ask(pins.into_iter().map(|(shard, node)| Input::Pin(shard, node)).collect());
    }

    fn ask(&self, inputs: Vec<Input<Waiter>>) {
        let _ = self.actor.cast(Message::Asked(inputs));
    }

    /// This process seems to be gone: nobody listens where it did.
    pub fn doubt(&self, process: PeerId) {
        let _ = self.actor.cast(Message::Doubt(process));
    }

    /// Begins to give everything back.
    pub fn begin_drain(&self) {
        let _ = self.actor.cast(Message::Drain);
    }

    /// Gives everything back, and waits until that is done, at most so long; says whether it is.
    pub async fn drain(&self, within: Duration) -> bool {
        let _ = self.actor.cast(Message::Drain);
        let mut standing = self.standing.clone();
        let drained = standing.wait_for(|standing| standing.drained);
        let drained = matches!(tokio::time::timeout(within, drained).await, Ok(Ok(_)));
        self.actor.stop(None);
        drained
    }
}

struct MembershipActor;

/// Since when shards move, on the monotonic clock.
struct Moving {
    /// Closed here, and not known to be free yet.
    closed: HashMap<ShardId, Duration>,
    /// Said to be free, and not served here yet.
    free: HashMap<ShardId, Duration>,
    counted: ClusterTimes,
}

impl Moving {
    fn given(&mut self, shard: ShardId, now: Duration) {
        if let Some(since) = self.closed.remove(&shard) {
            self.counted.given.observe(now.saturating_sub(since).as_secs_f64());
        }
    }

    fn taken(&mut self, shard: ShardId, now: Duration) {
        if let Some(since) = self.free.remove(&shard) {
            self.counted.taken.observe(now.saturating_sub(since).as_secs_f64());
        }
    }
}

struct State {
    node: NodeId,
    addresses: Addresses,
    store: Arc<dyn OwnershipStore>,
    map: ShardMap,
    gates: Arc<Gates>,
    conversations: Conversations,
    observer: Arc<dyn ClusterObserver>,
    /// As they were told of last, whatever their beats.
    peers: Vec<PeerRow>,
    times: LeaseTimes,
    clock: Clock,
    show: watch::Sender<Standing>,
    moving: Moving,
    me: Incarnation,
    core: Ownership<Waiter>,
    deaths: u64,
    draining: bool,
    leaving: bool,
    left: bool,
}

fn moment(clock: Clock) -> Moment {
    Moment { monotonic: clock.monotonic(), boot_time: Clock::boot_time() }
}

fn new_life() -> Incarnation {
    Incarnation(uuid::Uuid::now_v7())
}

impl Actor for MembershipActor {
    type Msg = Message;
    type State = State;
    type Arguments = (MembershipSetup, watch::Sender<Standing>);

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        (setup, show): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let MembershipSetup { node, addresses, store, map, gates, .. } = setup;
        let MembershipSetup { mut wanted, conversations, observer, cluster_times, times, clock, .. } = setup;
        let (me, node) = (new_life(), NodeId(node));
        let core = Ownership::new(me, node.clone(), map, times, moment(clock));
        let asks = myself.clone();
        tokio::spawn(async move {
            while let Some(wants) = wanted.recv().await {
                // One that is not taken is dropped, and so told.
                if asks.cast(Message::Wants(wants)).is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if myself.cast(Message::Tick).is_err() {
                    return;
                }
            }
        });
        let moving = Moving { closed: HashMap::new(), free: HashMap::new(), counted: cluster_times };
        let (deaths, draining, leaving, left) = (0, false, false, false);
        Ok(State {
            node,
            addresses,
            store,
            map,
            gates,
            conversations,
            observer,
            peers: Vec::new(),
            times,
            clock,
            show,
            moving,
            me,
            core,
            deaths,
            draining,
            leaving,
            left,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let input = match message {
            // It gives no more signs of life.
            Message::Tick if state.leaving => return Ok(()),
            Message::Tick => Input::Tick,
            Message::Happened(incarnation, input) if incarnation == state.me => input,
            // An answer to a life that is over.
            Message::Happened(..) => return Ok(()),
            Message::Wants(WantsConfirmation { shard, epoch, tell }) => Input::Durable(shard, epoch, tell),
            Message::Asked(inputs) => {
                for input in inputs {
                    state.take(&myself, input);
                }
                return Ok(());
            }
            Message::Doubt(process) => {
                let lives = state.core.alive().filter(|row| row.addresses.process == process);
                let lives: Vec<Incarnation> = lives.map(|row| row.incarnation).collect();
                for incarnation in lives {
                    state.take(&myself, Input::Gone(incarnation));
                }
                return Ok(());
            }
            Message::Drain => {
                state.draining = true;
                Input::Drain
            }
            Message::Left => {
                state.left = true;
                state.show_standing();
                return Ok(());
            }
        };
        let shows_peers = matches!(input, Input::PeersRead { .. });
        state.take(&myself, input);
        if shows_peers {
            state.show_peers();
            // Somebody else is to serve those now: how long it takes is not this node's to count.
            let core = &state.core;
            state.moving.free.retain(|shard, _| core.wants(*shard));
        }
        if state.draining && state.core.is_drained() && !state.leaving {
            state.leave(&myself);
        }
        state.show_standing();
        Ok(())
    }
}

impl State {
    fn take(&mut self, myself: &ActorRef<Message>, input: Input<Waiter>) {
        let released = match &input {
            Input::ShardDecided(shard, Decision::Applied) if self.core.open(*shard).is_none() => Some(*shard),
            _ => None,
        };
        if let Input::Released(shard, _) = &input
            && self.core.wants(*shard)
            && self.core.open(*shard).is_none()
        {
            self.moving.free.insert(*shard, self.clock.monotonic());
        }
        let mut outputs = Vec::new();
        self.core.apply(input, moment(self.clock), &mut outputs);
        for output in outputs {
            self.perform(myself, output);
        }
        // Applied, and not served: it was a release.
        if let Some((shard, epoch)) = released.and_then(|shard| Some((shard, self.core.free(shard)?))) {
            self.observer.released(shard, epoch);
            self.moving.given(shard, self.clock.monotonic());
        }
    }

    fn show_peers(&mut self) {
        let peers: Vec<PeerRow> = self.core.alive().map(|row| PeerRow { beat: 0, ..row.clone() }).collect();
        if peers != self.peers {
            self.peers.clone_from(&peers);
            self.observer.peers(peers);
        }
    }

    fn show_standing(&self) {
        let (open, wanted) = (self.gates.count_open(), self.core.wanted());
        let standing = Standing { open, wanted, drained: self.left, deaths: self.deaths };
        self.show.send_if_modified(|shown| std::mem::replace(shown, standing) != standing);
    }

    fn leave(&mut self, myself: &ActorRef<Message>) {
        self.leaving = true;
        let (store, me, myself) = (self.store.clone(), self.me, myself.clone());
        tokio::spawn(async move {
            if let Err(error) = store.leave(me).await {
                tracing::warn!(%error, "the node's row could not be taken away; it goes by itself");
            }
            let _ = myself.cast(Message::Left);
        });
    }

    /// Runs a statement beside the actor; its answer comes back as a message.
    fn run(
        &self,
        myself: &ActorRef<Message>,
        statement: impl Future<Output = Input<Waiter>> + Send + 'static,
    ) {
        let (me, myself) = (self.me, myself.clone());
        tokio::spawn(async move {
            let input = statement.await;
            // An actor that stopped needs no answer.
            let _ = myself.cast(Message::Happened(me, input));
        });
    }

    fn perform(&mut self, myself: &ActorRef<Message>, output: Output<Waiter>) {
        let (store, clock, me) = (self.store.clone(), self.clock, self.me);
        match output {
            Output::WriteBeat { beat, draining } => {
                let (node, addresses) = (self.node.clone(), self.addresses.clone());
                let row = PeerRow { incarnation: me, node, beat, draining, addresses };
                let beat = Beat { row, ttl: BEAT_TTL };
                self.run(myself, async move {
                    let written = store.write_beat(&beat).await;
                    if let Err(error) = &written {
                        tracing::warn!(%error, "a beat could not be written");
                    }
                    Input::BeatWritten(written.is_ok())
                });
            }
            Output::ReadPeers => self.run(myself, async move {
                let began = clock.monotonic();
                Input::PeersRead { began, rows: store.read_peers().await.ok() }
            }),
            Output::WriteFence(incarnation) => {
                tracing::warn!(incarnation = %incarnation.0, "a node is dead: it is fenced");
                self.run(myself, async move {
                    Input::FenceWritten(incarnation, store.write_fence(incarnation).await.is_ok())
                });
            }
            Output::ReadFence => {
                self.run(myself, async move { Input::FenceRead(store.read_fence(me).await) });
            }
            Output::ReadShard(shard) => {
                self.run(myself, async move { Input::ShardRead(shard, store.read_shard(shard).await.ok()) });
            }
            Output::Decide { shard, expected, then } => self.run(myself, async move {
                Input::ShardDecided(shard, store.decide(shard, expected, then).await)
            }),
            Output::Start(shard, epoch) => {
                self.conversations.begin_epoch(shard);
                self.gates.open(shard, epoch);
                self.observer.opened(shard, epoch);
                self.moving.taken(shard, clock.monotonic());
            }
            Output::Close(shard, epoch) => {
                self.gates.close(shard);
                self.moving.closed.insert(shard, clock.monotonic());
                self.observer.closed(shard, epoch);
                // Its conversations cannot do anything any more; that they go is tidiness.
                self.conversations.close_shard(shard);
                self.run(myself, async move { Input::ShardClosed(shard) });
            }
            Output::Confirmed(waiters) => {
                for waiter in waiters {
                    // Who died meanwhile waits for nothing.
                    let _ = waiter.send(());
                }
            }
            Output::Dead(reason) => {
                tracing::error!(?reason, incarnation = %me.0, "this life of the node is over; another begins");
                self.deaths += 1;
                self.moving.closed.clear();
                self.moving.free.clear();
                self.me = new_life();
                let now = moment(self.clock);
                let next = Ownership::new(self.me, self.node.clone(), self.map, self.times, now);
                let former = std::mem::replace(&mut self.core, next);
                // What operators want of the node holds for its next life, too.
                let pins = former.into_pins().map(|(shard, node)| Input::Pin(shard, Some(node)));
                let mut outputs = Vec::new();
                for input in pins.chain(self.draining.then_some(Input::Drain)) {
                    self.core.apply(input, now, &mut outputs);
                }
            }
        }
    }
}
