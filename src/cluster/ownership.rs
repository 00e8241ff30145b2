//! The ownership core of one node, pure: store answers, timers and commands in; statements and shards' starts and stops out.
//!
//! # Lifecycle
//! ```text
//!   Joining ──first beat durable──▶ Live ──drain──▶ Draining ──all given back──▶ drained
//!      └──────────┴─────────────────┴── no beat for a lease, or found fenced ──▶ Dead (the process starts a new one)
//! ```
//!
//! # Invariants
//! - A shard is started only after its claim is known applied, and a claim that takes it from another incarnation is sent
//!   only after that one's fence is known durable.
//! - Before a release is sent the shard was closed; a dead node has closed all.
//! - What is durable is confirmed only by a read of the own fence that began afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::claim::{Decision, ShardClaim, ShardRow, Todo};
use super::confirm::{ConfirmLine, FenceRead};
use super::fence::Fences;
use super::lease::{LeaseTimes, OwnBeats, Peers};
use super::membership::{Incarnation, NodeId, PeerRow};
use super::rendezvous;
use super::shard_map::{ShardId, ShardMap};
use crate::storage::Epoch;

/// Statements about shards that are under way at once.
pub const MAX_STATEMENTS: usize = 64;

/// Shards that are given back at once: few, so that each is served by the next owner a moment after it was closed. The more
/// statements run beside each other, the longer each shard is without an owner.
pub const MAX_HANDOVERS: usize = 8;

/// Between two reads of the other nodes, however often somebody hints that they changed.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// The two clocks that ownership goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic: by it others are judged.
    pub monotonic: Duration,
    /// Monotonic, and counting suspension: by it this node judges itself.
    pub boot_time: Duration,
}

/// What happens to a node. `T` names what waits for a confirmation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input<T> {
    /// Time went by. Wanted several times per lease.
    Tick,
    /// The write of the own beat has ended; `false` if it may have failed.
    BeatWritten(bool),
    /// The read of all nodes has ended, which began then; `None` if it failed.
    PeersRead {
        /// When it began, on the monotonic clock.
        began: Duration,
        /// What it found.
        rows: Option<Vec<PeerRow>>,
    },
    /// The write of a fence has ended; `false` if it may have failed.
    FenceWritten(Incarnation, bool),
    /// The read of the own fence has ended.
    FenceRead(FenceRead),
    /// The SERIAL read of a shard has ended; `None` if it failed.
    ShardRead(ShardId, Option<ShardRow>),
    /// The conditional statement on a shard has ended.
    ShardDecided(ShardId, Decision),
    /// A shard has closed, as it was told to.
    ShardClosed(ShardId),
    /// This was written in a shard's epoch, is durable, and wants a confirmation.
    Durable(ShardId, Epoch, T),
    /// The write stamps of the shard's epoch are nearly used up: it is given back and claimed anew.
    Renew(ShardId),
    /// The process of this incarnation seems to be gone: nobody listens where it did.
    Gone(Incarnation),
    /// Somebody says that it gave this shard back, having had it in this epoch (older nodes do not say in which): if it is wanted
    /// here, it is claimed at once.
    Released(ShardId, Option<Epoch>),
    /// Somebody waits for this shard: if it is wanted here, it is read and claimed before others.
    Wanted(ShardId),
    /// An operator wants this shard to be on this node, as long as it is there; or, without one, where it would be.
    Pin(ShardId, Option<NodeId>),
    /// Give everything back.
    Drain,
}

/// What a node is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<T> {
    /// Write the own row with this beat.
    WriteBeat {
        /// The beat.
        beat: u64,
        /// Whether others should take this node's shards.
        draining: bool,
    },
    /// Read the rows of all nodes.
    ReadPeers,
    /// Insert this incarnation's row into the fences.
    WriteFence(Incarnation),
    /// Read the own incarnation's row of the fences, beginning now.
    ReadFence,
    /// Read a shard's row at SERIAL.
    ReadShard(ShardId),
    /// Write `then` if the row is exactly `expected`. Never marked idempotent.
    Decide {
        /// The shard.
        shard: ShardId,
        /// The condition.
        expected: ShardRow,
        /// The new value.
        then: ShardRow,
    },
    /// Serve the shard.
    Start(ShardId, Epoch),
    /// Close the gate of the shard's epoch for good: no answer, push or new write.
    Close(ShardId, Epoch),
    /// These may be used: they are confirmed, and the gates of their epochs are open.
    Confirmed(Vec<T>),
    /// This incarnation is over. All its shards were closed by outputs before this one.
    Dead(DeadReason),
}

/// Why an incarnation is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// It could not write its beat for a lease: others may have taken it for dead.
    LeaseOver,
    /// It found its own fence.
    Fenced,
    /// A shard that it served belongs to another, which is possible only behind a fence.
    Replaced(ShardId),
}

/// One incarnation of a node.
#[derive(Debug, Clone)]
pub struct Ownership<T> {
    me: Incarnation,
    node: NodeId,
    beats: OwnBeats,
    peers: Peers,
    fences: Fences,
    confirm: ConfirmLine<(ShardId, Epoch, T)>,
    shards: Vec<ShardClaim>,
    /// Whether this node should own the shard.
    wanted: Vec<bool>,
    /// Shards that operators have put somewhere else than they would be.
    pins: BTreeMap<ShardId, NodeId>,
    /// Shards that are given back although they are wanted, to be claimed anew.
    renewing: BTreeSet<ShardId>,
    /// Shards that somebody waits for, to be claimed before others.
    urgent: BTreeSet<ShardId>,
    joined: bool,
    draining: bool,
    /// When it begins to give back: by then the others have seen that it drains, and want what it has.
    gives_back_at: Option<Duration>,
    dead: bool,
    reading_peers: bool,
    /// Owners that had no row as a node when the read of the nodes began.
    suspects: BTreeSet<Incarnation>,
    interval: Duration,
    next_look: Duration,
    /// When it last began to read the other nodes.
    looked: Duration,
}

impl<T> Ownership<T> {
    /// A node that starts now.
    pub fn new(me: Incarnation, node: NodeId, map: ShardMap, times: LeaseTimes, now: Moment) -> Self {
        let shards = map.shards() as usize;
        Self {
            me,
            node,
            beats: OwnBeats::new(times, now.boot_time),
            peers: Peers::new(times),
            fences: Fences::new(),
            confirm: ConfirmLine::new(),
            shards: vec![ShardClaim::new(me); shards],
            wanted: vec![false; shards],
            pins: BTreeMap::new(),
            renewing: BTreeSet::new(),
            urgent: BTreeSet::new(),
            joined: false,
            draining: false,
            gives_back_at: None,
            dead: false,
            reading_peers: false,
            suspects: BTreeSet::new(),
            interval: times.interval(),
            next_look: now.monotonic,
            looked: Duration::ZERO,
        }
    }

    /// The epoch in which a shard is served here, if it is: nothing may leave without looking here.
    pub fn open(&self, shard: ShardId) -> Option<Epoch> {
        self.shards.get(shard.0 as usize).and_then(ShardClaim::open)
    }

    /// The epoch in which a shard was last served, if it is known to be nobody's.
    pub fn free(&self, shard: ShardId) -> Option<Epoch> {
        let row = self.shards.get(shard.0 as usize)?.row()?;
        row.owner.is_none().then_some(row.epoch)
    }

    /// Whether this node should serve a shard, as far as it knows.
    pub fn wants(&self, shard: ShardId) -> bool {
        self.wanted.get(shard.0 as usize).copied().unwrap_or_default()
    }

    /// How many shards this node should serve, as far as it knows; 0 before it has seen the others.
    pub fn wanted(&self) -> usize {
        self.wanted.iter().filter(|wanted| **wanted).count()
    }

    /// Where operators have put shards, for the next life of the node.
    pub fn into_pins(self) -> impl Iterator<Item = (ShardId, NodeId)> {
        self.pins.into_iter()
    }

    /// The other nodes that look alive.
    pub fn alive(&self) -> impl Iterator<Item = &PeerRow> {
        let (me, fences) = (self.me, &self.fences);
        self.peers.rows().filter(move |row| row.incarnation != me && !fences.is_demanded(row.incarnation))
    }

    /// Whether everything was given back after [`Input::Drain`].
    pub fn is_drained(&self) -> bool {
        self.draining && self.gives_back_at.is_none() && self.shards.iter().all(ShardClaim::is_given_back)
    }

    /// Takes one input.
    pub fn apply(&mut self, input: Input<T>, now: Moment, outputs: &mut Vec<Output<T>>) {
        if self.dead {
            return;
        }
        // Whatever it was that came: a node that slept for too long must not act on it.
        if self.beats.is_over(now.boot_time) && !matches!(input, Input::BeatWritten(true)) {
            return self.die(DeadReason::LeaseOver, outputs);
        }
        match input {
            Input::Tick => self.tick(now, outputs),
            Input::BeatWritten(succeeded) => self.beat_written(succeeded, now, outputs),
            Input::PeersRead { began, rows } => self.peers_read(began, rows, now, outputs),
            Input::FenceWritten(incarnation, succeeded) => self.fences.written(incarnation, succeeded),
            // Each confirmation takes one, and no shard is another by it.
            Input::FenceRead(read) => return self.fence_read(read, outputs),
            Input::ShardRead(shard, row) => self.shards[shard.0 as usize].read(row),
            Input::ShardDecided(shard, decision) => self.shards[shard.0 as usize].decided(decision),
            Input::ShardClosed(shard) => self.shards[shard.0 as usize].closed(),
            Input::Durable(shard, epoch, what) => {
                if self.open(shard) == Some(epoch) && self.confirm.durable((shard, epoch, what)) {
                    outputs.push(Output::ReadFence);
                }
                return;
            }
            Input::Renew(shard) => {
                if self.open(shard).is_some() {
                    self.renewing.insert(shard);
                }
            }
            Input::Gone(incarnation) => {
                self.peers.doubt(incarnation);
                self.next_look = self.next_look.min(now.monotonic);
            }
            Input::Released(shard, epoch) => {
                let Some(claim) = self.shards.get_mut(shard.0 as usize) else { return };
                match epoch {
                    Some(epoch) => claim.released(epoch),
                    None => claim.doubt(),
                }
                self.look_if_unwanted(shard, now, outputs);
            }
            Input::Wanted(shard) => {
                if self.wanted.get(shard.0 as usize) == Some(&true) && self.open(shard).is_none() {
                    self.shards[shard.0 as usize].doubt();
                    self.urgent.insert(shard);
                }
                self.look_if_unwanted(shard, now, outputs);
            }
            Input::Pin(shard, node) => {
                match node {
                    Some(node) if (shard.0 as usize) < self.shards.len() => self.pins.insert(shard, node),
                    _ => self.pins.remove(&shard),
                };
                self.want();
            }
            Input::Drain => {
                self.draining = true;
                if self.alive().next().is_some() {
                    // They look once an interval, and what they find is at most one interval old.
                    self.gives_back_at = Some(now.monotonic + self.interval * 2 + self.interval / 4);
                } else {
                    self.wanted.fill(false);
                }
            }
        }
        self.go_on(outputs);
    }

    fn tick(&mut self, now: Moment, outputs: &mut Vec<Output<T>>) {
        if let Some(beat) = self.beats.due(now.boot_time) {
            outputs.push(Output::WriteBeat { beat, draining: self.draining });
        }
        if self.gives_back_at.is_some_and(|at| at <= now.monotonic) {
            self.gives_back_at = None;
            self.wanted.fill(false);
        }
        if self.peers.is_doubting() {
            // Each moment counts: what it served waits.
            self.look_at_peers(now, outputs);
        }
        if now.monotonic < self.next_look {
            return;
        }
        self.next_look = now.monotonic + self.interval;
        outputs.extend(self.fences.retry().into_iter().map(Output::WriteFence));
        // A node with nothing to confirm learns of its fence too, or it would go on telling an old head.
        if self.confirm.look() {
            outputs.push(Output::ReadFence);
        }
        self.look_at_peers(now, outputs);
        for (shard, wanted) in self.shards.iter_mut().zip(&self.wanted) {
            if (*wanted && shard.open().is_none()) || shard.is_unsettled() {
                shard.doubt();
            }
        }
    }

    fn look_at_peers(&mut self, now: Moment, outputs: &mut Vec<Output<T>>) {
        if !self.reading_peers {
            self.reading_peers = true;
            self.looked = now.monotonic;
            self.suspect();
            outputs.push(Output::ReadPeers);
        }
    }

    /// A shard that others think should move, and this node does not want: perhaps a node came or goes that it has not seen yet.
    fn look_if_unwanted(&mut self, shard: ShardId, now: Moment, outputs: &mut Vec<Output<T>>) {
        let unwanted = self.wanted.get(shard.0 as usize) == Some(&false);
        if unwanted && self.joined && !self.draining && now.monotonic >= self.looked + LOOK_PAUSE {
            self.look_at_peers(now, outputs);
        }
    }

    fn beat_written(&mut self, succeeded: bool, now: Moment, outputs: &mut Vec<Output<T>>) {
        self.beats.written(succeeded);
        self.joined |= succeeded;
        if self.beats.is_over(now.boot_time) {
            self.die(DeadReason::LeaseOver, outputs);
        }
    }

    fn peers_read(
        &mut self,
        began: Duration,
        rows: Option<Vec<PeerRow>>,
        now: Moment,
        outputs: &mut Vec<Output<T>>,
    ) {
        self.reading_peers = false;
        let Some(rows) = rows else { return };
        let mut dead = self.peers.observe(rows, began, now.monotonic);
        // Incarnations are made in the order of time: a lower one of this very node is a former life.
        let former = |row: &&PeerRow| row.node == self.node && row.incarnation < self.me;
        dead.extend(self.peers.rows().filter(former).map(|row| row.incarnation));
        let known = |owner: &Incarnation| self.peers.rows().any(|row| row.incarnation == *owner);
        dead.extend(std::mem::take(&mut self.suspects).into_iter().filter(|owner| !known(owner)));
        for incarnation in dead {
            if incarnation != self.me {
                self.fence(incarnation, outputs);
            }
        }
        self.want();
    }

    /// Owners of wanted shards that have no row as a node. A node has one before it claims, and its row lasts for long, so
    /// one that a read beginning now does not show is dead, and perhaps nobody else knows.
    fn suspect(&mut self) {
        let wanted = self.shards.iter().zip(&self.wanted).filter(|(_, wanted)| **wanted);
        let owners = wanted.filter_map(|(shard, _)| shard.row().and_then(|row| row.owner));
        let known = |owner: &Incarnation| self.peers.rows().any(|row| row.incarnation == *owner);
        let suspects = owners.filter(|owner| *owner != self.me && !known(owner)).collect();
        self.suspects = suspects;
    }

    fn fence(&mut self, incarnation: Incarnation, outputs: &mut Vec<Output<T>>) {
        if self.fences.demand(incarnation) {
            outputs.push(Output::WriteFence(incarnation));
        }
    }

    /// Who should own what, by those that look alive.
    fn want(&mut self) {
        if self.draining || !self.joined {
            return;
        }
        let alive = |row: &&PeerRow| !self.fences.is_demanded(row.incarnation) && !row.draining;
        let mut nodes: Vec<_> = self.peers.rows().filter(alive).map(|row| row.node.clone()).collect();
        nodes.push(self.node.clone());
        nodes.sort_unstable();
        nodes.dedup();
        let shards = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        for (wanted, owner) in self.wanted.iter_mut().zip(rendezvous::assign(shards, &nodes)) {
            *wanted = nodes[owner] == self.node;
        }
        for (shard, node) in self.pins.iter().filter(|(_, node)| nodes.contains(node)) {
            self.wanted[shard.0 as usize] = *node == self.node;
        }
    }

    fn fence_read(&mut self, read: FenceRead, outputs: &mut Vec<Output<T>>) {
        let ended = self.confirm.ended(read);
        if read == FenceRead::Fenced {
            return self.die(DeadReason::Fenced, outputs);
        }
        let mut confirmed = ended.confirmed;
        confirmed.retain(|(shard, epoch, _)| self.open(*shard) == Some(*epoch));
        if !confirmed.is_empty() {
            outputs.push(Output::Confirmed(confirmed.into_iter().map(|(_, _, what)| what).collect()));
        }
        if ended.begin {
            outputs.push(Output::ReadFence);
        }
    }

    fn go_on(&mut self, outputs: &mut Vec<Output<T>>) {
        if self.dead || !self.joined {
            return;
        }
        let mut running = self.shards.iter().filter(|shard| shard.is_busy()).count();
        let mut handovers = self.shards.iter().filter(|shard| shard.is_being_given_back()).count();
        let (wanted, shards) = (&self.wanted, &self.shards);
        self.urgent.retain(|shard| wanted[shard.0 as usize] && shards[shard.0 as usize].open().is_none());
        let urgent: Vec<ShardId> = self.urgent.iter().copied().collect();
        let all = (0..).map(ShardId).take(self.shards.len());
        for shard in urgent.into_iter().chain(all) {
            if running >= MAX_STATEMENTS {
                break;
            }
            let index = shard.0 as usize;
            let mut renewing = !self.renewing.is_empty() && self.renewing.contains(&shard);
            if renewing && self.shards[index].is_given_back() {
                self.renewing.remove(&shard);
                renewing = false;
            }
            let wanted = self.wanted[index] && !renewing;
            if !wanted && (!self.is_concerned(index) || self.must_wait(index, handovers)) {
                continue;
            }
            let Some(todo) = self.shards[index].next(wanted, |owner| self.fences.is_durable(owner)) else {
                continue;
            };
            running += 1;
            match todo {
                Todo::Read => outputs.push(Output::ReadShard(shard)),
                Todo::Decide { expected, then } => outputs.push(Output::Decide { shard, expected, then }),
                Todo::Start(epoch) => outputs.push(Output::Start(shard, epoch)),
                Todo::Close(epoch) => {
                    if self.is_replaced(index) {
                        return self.die(DeadReason::Replaced(shard), outputs);
                    }
                    handovers += 1;
                    outputs.push(Output::Close(shard, epoch));
                }
            }
        }
    }

    /// Whether a shard that is served here, and should not be, stays open until others were given back.
    fn must_wait(&self, index: usize, handovers: usize) -> bool {
        let is_mine = |row: ShardRow| row.owner == Some(self.me);
        let shard = &self.shards[index];
        handovers >= MAX_HANDOVERS && shard.open().is_some() && shard.row().is_some_and(is_mine)
    }

    /// Whether a shard that is not wanted may still name this incarnation.
    fn is_concerned(&self, index: usize) -> bool {
        let shard = &self.shards[index];
        shard.open().is_some()
            || shard.row().is_some_and(|row| row.owner == Some(self.me))
            || shard.is_unsettled()
    }

    fn is_replaced(&self, index: usize) -> bool {
        self.shards[index].closing().is_some_and(|row| row.owner != Some(self.me))
    }

    fn die(&mut self, reason: DeadReason, outputs: &mut Vec<Output<T>>) {
        self.dead = true;
        for (index, shard) in (0..).zip(&mut self.shards) {
            if let Some(epoch) = shard.shut() {
                outputs.push(Output::Close(ShardId(index), epoch));
            }
        }
        outputs.push(Output::Dead(reason));
    }
}

#[cfg(test)]
mod tests;
