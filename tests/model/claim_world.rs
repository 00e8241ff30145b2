//! One shard, the incarnations that want it, and a store whose conditional statements apply late.
//!
//! Each incarnation runs the cores of `convoke::cluster`: its claims, its fences, its confirmations. Anyone may take anyone
//! for dead at any time, which covers every way in which clocks and pauses may mislead; a node that is paused is one whose
//! steps come late, and one that crashed is one that does nothing more.

use convoke::cluster::claim::{Decision, ShardClaim, ShardRow, Todo};
use convoke::cluster::confirm::{ConfirmLine, FenceRead};
use convoke::cluster::fence::Fences;
use convoke::cluster::membership::Incarnation;
use convoke::storage::Epoch;
use stateright::{Model, Property};
use uuid::Uuid;

/// What a broken node does differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClaimMutation {
    None,
    /// It claims when the fence was sent.
    ClaimBeforeFenceDurable,
    /// It takes an unknown outcome of a claim for applied.
    UnknownIsApplied,
    /// A release that was not applied, so far: it goes on as the owner.
    GoesOnAfterRelease,
    /// It closes the gate when the release is known applied.
    ClosesAfterRelease,
    /// A confirmation that was under way when the gate closed is used.
    IgnoresGate,
    /// Its fence is read from one replica.
    ConfirmsAtOne,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimModel {
    pub(crate) nodes: u8,
    pub(crate) epochs: u64,
    pub(crate) mutation: ClaimMutation,
    /// Also what changes nothing but costs states: fences of nodes that own nothing, fences that take time or that a
    /// confirmation finds although it might not, doubts for no reason.
    pub(crate) fine: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Cell {
    Nothing,
    Begun,
    Durable,
}

/// A read of a node's own fence that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reading {
    /// The fence was durable when it began.
    must_find: bool,
    /// A later epoch's owner had begun to read when it began.
    late: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Node {
    claim: ShardClaim,
    fences: Fences,
    confirm: ConfirmLine<Epoch>,
    statement: Option<(ShardRow, ShardRow)>,
    reading: Option<Reading>,
    /// What became durable while the fence was being read.
    queued: Option<Epoch>,
    dead: bool,
    /// Mutations only: the epoch in which it goes on against the rules.
    goes_on: Option<Epoch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClaimWorld {
    row: ShardRow,
    nodes: Vec<Node>,
    fences: Vec<Cell>,
    /// Statements that were answered with "unknown" and may still apply.
    late: Vec<(ShardRow, ShardRow)>,
    /// The highest epoch whose owner has begun to read logs.
    scanned: Epoch,
    confirmed: Epoch,
    /// Something was confirmed in an epoch after the scan of a later one.
    broken: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// A node goes on, wanting the shard or not.
    Next(usize, bool),
    Read(usize),
    Doubt(usize),
    /// A statement ends; if its outcome is not certain it may have been applied, or wait.
    Applied(usize),
    NotApplied(usize),
    UnknownApplied(usize),
    UnknownLate(usize),
    Late(usize),
    Closed(usize),
    /// A node takes another for dead.
    Judge(usize, usize),
    FenceDurable(usize, usize),
    /// Something of an owner is durable.
    Durable(usize),
    ConfirmEnds(usize, FenceRead),
}

fn incarnation(node: usize) -> Incarnation {
    Incarnation(Uuid::from_u128(node as u128 + 1))
}

impl Node {
    /// The epoch in which it uses what is confirmed.
    fn serves(&self) -> Option<Epoch> {
        self.goes_on.or(self.claim.open())
    }
}

impl ClaimModel {
    fn next(&self, world: &mut ClaimWorld, at: usize, wanted: bool) -> Option<()> {
        let mutation = self.mutation;
        let Node { claim, fences, .. } = &mut world.nodes[at];
        let open = claim.open();
        let todo = claim.next(wanted, |owner| match mutation {
            ClaimMutation::ClaimBeforeFenceDurable => fences.is_demanded(owner),
            _ => fences.is_durable(owner),
        })?;
        match todo {
            Todo::Read => {}
            Todo::Decide { expected, then } => {
                if then.epoch.0 > self.epochs {
                    return None;
                }
                world.nodes[at].statement = Some((expected, then));
            }
            Todo::Start(epoch) => {
                world.nodes[at].goes_on = None;
                world.scanned = world.scanned.max(epoch);
            }
            Todo::Close(_) => {
                if self.mutation == ClaimMutation::ClosesAfterRelease {
                    world.nodes[at].goes_on = open;
                }
            }
        }
        Some(())
    }

    fn decided(&self, world: &mut ClaimWorld, at: usize, decision: Decision, applies: bool) -> Option<()> {
        let node = &mut world.nodes[at];
        let (expected, then) = node.statement.take()?;
        if applies != (world.row == expected) && decision != Decision::Unknown {
            return None;
        }
        if applies {
            if world.row != expected {
                return None;
            }
            world.row = then;
        } else if decision == Decision::Unknown {
            // Only a statement whose value is still there can apply; no value comes back.
            if world.row == expected {
                world.late.push((expected, then));
                world.late.sort_unstable();
                world.late.dedup();
            }
        }
        let release = then.owner.is_none();
        let told = match (self.mutation, release) {
            (ClaimMutation::UnknownIsApplied, false) => Decision::Applied,
            _ => decision,
        };
        node.claim.decided(told);
        node.goes_on = match self.mutation {
            ClaimMutation::GoesOnAfterRelease if release && decision != Decision::Applied => Some(then.epoch),
            ClaimMutation::ClosesAfterRelease if release && decision != Decision::Applied => node.goes_on,
            _ => None,
        };
        Some(())
    }

    fn begin_read(&self, world: &mut ClaimWorld, at: usize, epoch: Epoch) {
        let found = world.fences[at] == Cell::Durable && self.mutation != ClaimMutation::ConfirmsAtOne;
        world.nodes[at].reading = Some(Reading { must_find: found, late: world.scanned > epoch });
    }

    fn durable(&self, world: &mut ClaimWorld, at: usize) -> Option<()> {
        let epoch = world.nodes[at].serves()?;
        if world.nodes[at].confirm.durable(epoch) {
            self.begin_read(world, at, epoch);
        } else {
            world.nodes[at].queued = Some(epoch);
        }
        Some(())
    }

    fn confirm_ends(&self, world: &mut ClaimWorld, at: usize, read: FenceRead) -> Option<()> {
        let node = &mut world.nodes[at];
        let reading = node.reading.take()?;
        let ended = node.confirm.ended(read);
        if read == FenceRead::Fenced {
            node.claim.shut();
            (node.dead, node.goes_on, node.statement, node.queued) = (true, None, None, None);
            return Some(());
        }
        let serves = node.serves();
        for epoch in ended.confirmed {
            if serves == Some(epoch) || self.mutation == ClaimMutation::IgnoresGate {
                world.broken |= reading.late;
                world.confirmed = world.confirmed.max(epoch);
            }
        }
        if ended.begin
            && let Some(epoch) = world.nodes[at].queued.take()
        {
            self.begin_read(world, at, epoch);
        }
        Some(())
    }

    fn node_actions(&self, world: &ClaimWorld, at: usize, actions: &mut Vec<Action>) {
        let node = &world.nodes[at];
        if let Some((expected, _)) = node.statement {
            if world.row == expected {
                actions.extend([Action::Applied(at), Action::UnknownApplied(at), Action::UnknownLate(at)]);
            } else {
                actions.extend([Action::NotApplied(at), Action::UnknownLate(at)]);
            }
        } else if node.claim.closing().is_some() {
            actions.push(Action::Closed(at));
        } else if node.claim.is_busy() {
            actions.push(Action::Read(at));
        } else {
            actions.extend([Action::Next(at, true), Action::Next(at, false)]);
            if self.fine || node.claim.row().is_some_and(|row| row != world.row) {
                actions.push(Action::Doubt(at));
            }
        }
        for other in (0..world.nodes.len()).filter(|other| *other != at) {
            let owns = node.claim.row().is_some_and(|row| row.owner == Some(incarnation(other)));
            if !node.fences.is_demanded(incarnation(other)) && (owns || self.fine) {
                actions.push(Action::Judge(at, other));
            } else if node.fences.is_demanded(incarnation(other))
                && !node.fences.is_durable(incarnation(other))
            {
                actions.push(Action::FenceDurable(at, other));
            }
        }
        match node.reading {
            None if node.serves().is_some() => actions.push(Action::Durable(at)),
            None => {}
            Some(reading) => {
                if node.queued.is_none() && node.serves().is_some() {
                    actions.push(Action::Durable(at));
                }
                if !reading.must_find {
                    actions.push(Action::ConfirmEnds(at, FenceRead::Nothing));
                }
                if reading.must_find || (self.fine && world.fences[at] > Cell::Nothing) {
                    actions.push(Action::ConfirmEnds(at, FenceRead::Fenced));
                }
            }
        }
    }
}

impl Model for ClaimModel {
    type State = ClaimWorld;
    type Action = Action;

    fn init_states(&self) -> Vec<ClaimWorld> {
        let node = |at: u8| Node {
            claim: ShardClaim::new(incarnation(usize::from(at))),
            fences: Fences::new(),
            confirm: ConfirmLine::new(),
            statement: None,
            reading: None,
            queued: None,
            dead: false,
            goes_on: None,
        };
        vec![ClaimWorld {
            row: ShardRow::default(),
            nodes: (0..self.nodes).map(node).collect(),
            fences: vec![Cell::Nothing; usize::from(self.nodes)],
            late: Vec::new(),
            scanned: Epoch(0),
            confirmed: Epoch(0),
            broken: false,
        }]
    }

    fn actions(&self, world: &ClaimWorld, actions: &mut Vec<Action>) {
        if world.broken {
            return;
        }
        for at in (0..world.nodes.len()).filter(|at| !world.nodes[*at].dead) {
            self.node_actions(world, at, actions);
        }
        actions.extend((0..world.late.len()).map(Action::Late));
    }

    fn next_state(&self, last: &ClaimWorld, action: Action) -> Option<ClaimWorld> {
        let mut world = last.clone();
        match action {
            Action::Next(at, wanted) => self.next(&mut world, at, wanted)?,
            Action::Read(at) => world.nodes[at].claim.read(Some(last.row)),
            Action::Doubt(at) => world.nodes[at].claim.doubt(),
            Action::Applied(at) => self.decided(&mut world, at, Decision::Applied, true)?,
            Action::NotApplied(at) => self.decided(&mut world, at, Decision::NotApplied, false)?,
            Action::UnknownApplied(at) => self.decided(&mut world, at, Decision::Unknown, true)?,
            Action::UnknownLate(at) => self.decided(&mut world, at, Decision::Unknown, false)?,
            Action::Late(at) => {
                let (expected, then) = world.late.remove(at);
                if world.row == expected {
                    world.row = then;
                }
            }
            Action::Closed(at) => world.nodes[at].claim.closed(),
            Action::Judge(at, other) => {
                world.nodes[at].fences.demand(incarnation(other));
                world.fences[other] = world.fences[other].max(Cell::Begun);
                if !self.fine && self.mutation != ClaimMutation::ClaimBeforeFenceDurable {
                    world.nodes[at].fences.written(incarnation(other), true);
                    world.fences[other] = Cell::Durable;
                }
            }
            Action::FenceDurable(at, other) => {
                world.nodes[at].fences.written(incarnation(other), true);
                world.fences[other] = Cell::Durable;
            }
            Action::Durable(at) => self.durable(&mut world, at)?,
            Action::ConfirmEnds(at, read) => self.confirm_ends(&mut world, at, read)?,
        }
        // What waits for a value that the row does not have any more can never apply.
        let row = world.row;
        world.late.retain(|(expected, _)| *expected == row);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "I4: nothing is confirmed in an epoch after the scan of a later one",
                |_, world: &ClaimWorld| !world.broken,
            ),
            Property::always("I4: an epoch has one owner", |_, world: &ClaimWorld| {
                let mut epochs: Vec<_> = world.nodes.iter().filter_map(Node::serves).collect();
                let all = epochs.len();
                epochs.sort_unstable();
                epochs.dedup();
                epochs.len() == all
            }),
            Property::sometimes("the last epoch confirms", |model: &Self, world: &ClaimWorld| {
                world.confirmed.0 == model.epochs
            }),
            Property::sometimes("a claim applies late", |_, world: &ClaimWorld| {
                let late = |node: &Node| node.claim.open().is_none() && node.statement.is_none();
                world.row.epoch > world.scanned && world.nodes.iter().all(late) && world.late.is_empty()
            }),
        ]
    }
}
