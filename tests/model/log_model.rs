//! The steps of a [`World`] and what must hold after each.

use convoke::actors::conversation::log::Row;
use stateright::{Model, Property};

use crate::log_world::{Bounds, Phase, Wait, World, small};
use crate::mutation::Mutation;
use crate::row::{Id, SmallRow};

#[derive(Debug, Clone, Copy)]
pub(crate) struct LogModel {
    pub(crate) bounds: Bounds,
    pub(crate) mutation: Mutation,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// The owner before the next one has a durable fence, and the next one's claim is known applied.
    Claim,
    /// A fence that a claim did not wait for becomes durable.
    FenceDurable,
    ReadHint(usize, Option<(u8, Id)>),
    ReadRow(usize, Option<SmallRow>),
    /// An owner sends these clients' messages to the store.
    Batch(usize, Vec<u8>),
    /// What an owner writes is durable, and the confirmation that begins then finds nothing.
    Confirm(usize),
    /// The same in its parts.
    Durable(usize),
    ConfirmBegins(usize),
    ConfirmEnds(usize),
    /// The confirmation finds the fence.
    FoundFenced(usize),
    /// A confirmation begins before there is anything to confirm.
    ConfirmEarly(usize),
    /// An owner reads the row that it has to change, and sends it changed.
    Overwrite(usize, Option<SmallRow>),
    /// An actor is started again within its epoch.
    Restart(usize),
    WriteHint(usize),
    ConfirmHint(usize),
    Trim(usize),
    /// A client stops repeating its send.
    GiveUp(u8),
    /// A replica gets a write: (seq, or 0 for the hint; which write; which replica).
    Deliver(u8, usize, usize),
}

impl LogModel {
    fn owner_actions(&self, world: &World, owner: usize, actions: &mut Vec<Action>) {
        match &world.owners[owner].phase {
            Phase::ReadingHint => {
                actions.extend(world.hint.quorum(None).into_iter().map(|read| Action::ReadHint(owner, read)));
            }
            Phase::Recovering { wait: Wait::Row { seq, .. }, .. } => {
                let reads = match self.mutation {
                    Mutation::ReadsAtOne => world.rows[usize::from(*seq) - 1].any_one(),
                    _ => world.readable(*seq),
                };
                actions.extend(reads.into_iter().map(|read| Action::ReadRow(owner, read)));
            }
            Phase::Recovering { wait: Wait::Changes { left, .. }, .. } => {
                let reads = left.first().map(|(target, _)| world.readable(*target)).unwrap_or_default();
                actions.extend(reads.into_iter().map(|read| Action::Overwrite(owner, read)));
            }
            Phase::Recovering { wait: Wait::Writes(_), .. } => {
                self.confirm_actions(world, owner, Mutation::ConfirmBeforeRewriteDurable, actions);
            }
            Phase::Serving(serving) => {
                if let Some((target, _)) = serving.changes.first() {
                    let reads = world.readable(*target);
                    actions.extend(reads.into_iter().map(|read| Action::Overwrite(owner, read)));
                }
                let overwritten = serving.changes.is_empty() || !serving.in_flight.is_empty();
                if !serving.writes.is_empty() && overwritten {
                    self.confirm_actions(world, owner, Mutation::ConfirmBeforeDurable, actions);
                }
                if serving.commit.is_idle() {
                    self.batches(world, owner, &mut Vec::new(), actions);
                }
                self.hint_actions(world, owner, actions);
            }
            Phase::Absent | Phase::Stopped => return,
        }
        if world.restarts < self.bounds.restarts && !matches!(world.owners[owner].phase, Phase::ReadingHint) {
            actions.push(Action::Restart(owner));
        }
    }

    fn confirm_actions(&self, world: &World, owner: usize, early: Mutation, actions: &mut Vec<Action>) {
        let sees_no_fence = owner >= usize::from(world.fenced) || self.mutation.misses_fences();
        let it = &world.owners[owner];
        if self.mutation == early && sees_no_fence && !it.confirming {
            actions.push(Action::ConfirmEarly(owner));
        }
        if !self.bounds.fine {
            if sees_no_fence || it.confirming {
                actions.push(Action::Confirm(owner));
            }
        } else if !it.durable {
            actions.push(Action::Durable(owner));
        } else if it.confirming {
            actions.push(Action::ConfirmEnds(owner));
        } else if sees_no_fence {
            actions.push(Action::ConfirmBegins(owner));
        } else {
            actions.push(Action::FoundFenced(owner));
        }
    }

    /// Every batch that clients may make an owner write, each client's first send after that of the like one before it.
    fn batches(&self, world: &World, owner: usize, chosen: &mut Vec<u8>, actions: &mut Vec<Action>) {
        let Phase::Serving(serving) = &world.owners[owner].phase else { return };
        let head = small(serving.commit.head().0);
        let room = usize::from(self.bounds.seqs) - usize::from(head);
        if chosen.len() >= self.bounds.batch.min(room) {
            return;
        }
        for client in 0..u8::try_from(self.bounds.sends.len()).expect("few") {
            let sends = self.bounds.sends;
            let target = sends[usize::from(client)];
            let known = chosen.contains(&client) || serving.dedup.iter().any(|(other, _)| *other == client);
            let is_next = |other: u8| {
                world.used & (1 << other) != 0
                    || chosen.contains(&other)
                    || sends[usize::from(other)] != target
            };
            if known || target > head || world.given_up & (1 << client) != 0 || !(0..client).all(is_next) {
                continue;
            }
            chosen.push(client);
            actions.push(Action::Batch(owner, chosen.clone()));
            self.batches(world, owner, chosen, actions);
            chosen.pop();
        }
    }

    fn hint_actions(&self, world: &World, owner: usize, actions: &mut Vec<Action>) {
        let Phase::Serving(serving) = &world.owners[owner].phase else { return };
        if world.hints < self.bounds.hints && serving.hint_stamp.is_none() {
            actions.push(Action::WriteHint(owner));
        }
        if serving.hint_stamp.is_some() && owner >= usize::from(world.fenced) {
            actions.push(Action::ConfirmHint(owner));
        }
        if world.trims.len() < usize::from(self.bounds.trims) {
            actions.push(Action::Trim(owner));
        }
    }

    fn write_hint(&self, world: &mut World, owner: usize) -> Option<()> {
        let it = &mut world.owners[owner];
        let Phase::Serving(serving) = &mut it.phase else { return None };
        let base = match (self.mutation, serving.in_flight.last()) {
            (Mutation::HintBeforeConfirmation, Some(row)) => (row.seq(), row.id),
            _ => serving.commit.base(),
        };
        let (seq, id) = serving.hints.propose(base)?;
        let stamp = it.stamps.fresh().expect("few are used").0;
        serving.hint_stamp = Some(stamp);
        world.hint.begin(stamp, (small(seq), id));
        world.hints += 1;
        Some(())
    }

    fn confirm_hint(world: &mut World, owner: usize) -> Option<()> {
        let Phase::Serving(serving) = &mut world.owners[owner].phase else { return None };
        let stamp = serving.hint_stamp?;
        if !world.hint.acknowledge(stamp) {
            return None;
        }
        serving.hint_stamp = None;
        serving.hints.durable();
        serving.hints.confirmed(true);
        Some(())
    }

    fn trim(&self, world: &mut World, owner: usize) -> Option<()> {
        let given_up = world.given_up;
        let it = &mut world.owners[owner];
        let Phase::Serving(serving) = &mut it.phase else { return None };
        forget(&mut serving.dedup, given_up);
        let window = serving.dedup.first().map_or(serving.commit.head().0.next(), |(_, seq)| seq_of(*seq));
        let mut hints = serving.hints.clone();
        if self.mutation == Mutation::TrimBeforeConfirmation
            && let Some(stamp) = serving.hint_stamp
        {
            // As if the hint that is durable were confirmed as well.
            world.hint.acknowledge(stamp);
            hints.durable();
            hints.confirmed(true);
        }
        let below = small(hints.trim_below(window));
        if below <= 1 || world.trims.iter().any(|(_, other)| *other >= below) {
            return None;
        }
        world.trims.push((it.stamps.fresh().expect("few are used").0, below));
        Some(())
    }
}

/// Whoever gave up is forgotten, from the oldest on.
fn forget(dedup: &mut Vec<(u8, u8)>, given_up: u16) {
    while dedup.first().is_some_and(|(client, _)| given_up & (1 << client) != 0) {
        dedup.remove(0);
    }
}

fn seq_of(seq: u8) -> convoke_protocol::id::Seq {
    convoke_protocol::id::Seq(u64::from(seq))
}

/// Where the log begins, for those who read it.
fn first(world: &World) -> usize {
    world.trims.iter().map(|(_, below)| usize::from(*below)).max().unwrap_or(1)
}

/// Any quorum read at or below an exposed head returns exactly what was committed.
fn reads_are_facts(world: &World) -> bool {
    world.facts.iter().skip(first(world) - 1).all(|fact| {
        let reads = world.readable(fact.seq);
        !reads.is_empty()
            && reads.iter().all(|read| {
                read.is_some_and(|row| row.identity() == fact.identity() && shows_a_fact(world, &row))
            })
    })
}

/// The change that a row shows was committed, and none that readers were promised is missing from it.
fn shows_a_fact(world: &World, row: &SmallRow) -> bool {
    let promised = world.projected[usize::from(row.seq) - 1];
    let is_fact = |change: Id| {
        change == SmallRow::NO_ID
            || world.facts.iter().any(|fact| fact.id == change && fact.target == row.seq)
    };
    is_fact(row.version) && row.version.seq >= promised.seq
}

fn no_client_twice(world: &World) -> bool {
    let clients = world.facts.iter().map(|fact| 1u32 << fact.client);
    clients.clone().fold(0, |seen, client| seen | client).count_ones() as usize == world.facts.len()
}

/// What an owner answers to a retry is where the message is.
fn answers_are_facts(world: &World) -> bool {
    world.owners.iter().all(|owner| match &owner.phase {
        Phase::Serving(serving) => serving.dedup.iter().all(|(client, seq)| {
            world.facts.get(usize::from(*seq) - 1).is_some_and(|fact| fact.client == *client)
        }),
        _ => true,
    })
}

impl Model for LogModel {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.bounds, self.mutation)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_some() {
            return;
        }
        if usize::from(world.claimed) < world.owners.len() {
            actions.push(Action::Claim);
        }
        if self.mutation == Mutation::ClaimBeforeFenceDurable && world.fenced + 1 < world.claimed {
            actions.push(Action::FenceDurable);
        }
        for owner in 0..world.owners.len() {
            self.owner_actions(world, owner, actions);
        }
        if self.bounds.trims > 0 {
            let used = (0..16).filter(|client| world.used & !world.given_up & (1 << client) != 0);
            actions.extend(used.map(Action::GiveUp));
        }
        for (seq, register) in (1..).zip(&world.rows) {
            actions
                .extend(register.deliveries().into_iter().map(|(write, at)| Action::Deliver(seq, write, at)));
        }
        actions.extend(world.hint.deliveries().into_iter().map(|(write, at)| Action::Deliver(0, write, at)));
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        match action {
            Action::Claim => {
                if !self.mutation.claims_unfenced() {
                    world.fenced = world.claimed;
                }
                world.claim(usize::from(last.claimed), &self.bounds);
            }
            Action::FenceDurable => world.fenced += 1,
            Action::ReadHint(owner, hint) => world.hint_read(owner, hint),
            Action::ReadRow(owner, row) => world.row_read(owner, row, self.mutation),
            Action::Batch(owner, clients) => {
                if let Phase::Serving(serving) = &mut world.owners[owner].phase {
                    forget(&mut serving.dedup, last.given_up);
                }
                world.start_batch(owner, &clients, &self.bounds, self.mutation);
            }
            Action::Confirm(owner) => {
                world.durable(owner).then_some(())?;
                world.confirmed(owner, self.mutation);
            }
            Action::Durable(owner) => world.durable(owner).then_some(())?,
            Action::ConfirmBegins(owner) | Action::ConfirmEarly(owner) => {
                world.owners[owner].confirming = true;
            }
            Action::ConfirmEnds(owner) => world.confirmed(owner, self.mutation),
            Action::FoundFenced(owner) => world.found_fenced(owner),
            Action::Overwrite(owner, row) => world.overwrite(owner, row),
            Action::Restart(owner) => {
                world.restarts += 1;
                let stamps = world.owners[owner].stamps.clone();
                world.activate(owner, &self.bounds);
                if self.mutation == Mutation::TieAfterRestart {
                    world.owners[owner].stamp = last.owners[owner].stamp;
                    world.owners[owner].stamps = stamps;
                }
            }
            Action::WriteHint(owner) => self.write_hint(&mut world, owner)?,
            Action::ConfirmHint(owner) => Self::confirm_hint(&mut world, owner)?,
            Action::Trim(owner) => self.trim(&mut world, owner)?,
            Action::GiveUp(client) => world.given_up |= 1 << client,
            Action::Deliver(0, write, at) => world.hint.deliver(write, at),
            Action::Deliver(seq, write, at) => world.rows[usize::from(seq) - 1].deliver(write, at),
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "I1, I2: what is used stays as it was, and follows on it",
                |_, world: &World| world.broken.is_none(),
            ),
            Property::always(
                "I1, I6: a quorum read up to an exposed head returns what was committed",
                |_, world: &World| reads_are_facts(world),
            ),
            Property::always("I3: no client id twice", |_, world| no_client_twice(world)),
            Property::always("I3: a retry is answered with the message's place", |_, world| {
                answers_are_facts(world)
            }),
            Property::sometimes("the last owner fills the log", |_, world: &World| {
                let last = world.owners.last().map(|owner| &owner.phase);
                world.facts.len() == world.rows.len() && matches!(last, Some(Phase::Serving(_)))
            }),
            Property::sometimes("a ghost loses its number", |_, world: &World| {
                world.facts.iter().any(|fact| {
                    world.rows[usize::from(fact.seq) - 1].begun().iter().any(|(_, row)| row.id != fact.id)
                })
            }),
        ]
    }
}
