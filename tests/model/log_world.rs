//! One conversation, its owners one after the other, and a store whose writes arrive whenever they like.
//!
//! Each owner runs the cores of `convoke::actors::conversation::log`. An owner that was fenced does not know it and goes
//! on; one that crashed is one that does nothing more, so a crash needs no step of its own. An owner that finds itself
//! fenced stops, which is the same again: such a confirmation is no step either. Clients repeat any send at any owner at
//! any time. A confirmation counts from the moment its read begins: what it allows is done then, or any time later.

use std::sync::Arc;

use convoke::actors::conversation::log::commit::{Commit, Confirmed};
use convoke::actors::conversation::log::hint::HintLine;
use convoke::actors::conversation::log::recovery::{OwnRows, Recovery, Step};
use convoke::actors::conversation::log::{Overwrite, Row, Stamps};
use convoke::storage::Epoch;
use convoke_protocol::id::Seq;

use crate::mutation::Mutation;
use crate::register::Register;
use crate::row::{Id, SmallRow};

/// How large a world is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) owners: u8,
    pub(crate) seqs: u8,
    pub(crate) batch: usize,
    /// Per client id: 0 for a message, else the seq that the entry changes.
    pub(crate) sends: &'static [u8],
    /// Activations of an owner beyond its first, all together.
    pub(crate) restarts: u8,
    /// Hints and trims written, all together.
    pub(crate) hints: u8,
    pub(crate) trims: u8,
    /// Three replicas one by one instead of what they may return.
    pub(crate) replicas: bool,
    /// Durability, a confirmation's begin and its end one by one, and owners that learn that they are fenced.
    pub(crate) fine: bool,
}

impl Bounds {
    pub(crate) const fn log(owners: u8, seqs: u8, sends: &'static [u8], batch: usize) -> Self {
        Self { owners, seqs, batch, sends, restarts: 0, hints: 0, trims: 0, replicas: false, fine: false }
    }
}

/// The first owner that breaks a rule which only the step itself shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Broken {
    /// I2: what is used does not follow on what is.
    Gap,
    /// I1: what is used is something else than what was used before under the number.
    Replaced,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Absent,
    ReadingHint,
    Recovering { recovery: Recovery<SmallRow>, wait: Wait },
    Serving(Serving),
    Stopped,
}

/// What a recovery waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Wait {
    /// A row; and what the one before it was, for the owners that look at the wrong thing.
    Row { seq: u8, before: Option<SmallRow> },
    /// Writes of these rows (seq, stamp).
    Writes(Vec<(u8, u64)>),
    /// Rows to be read and changed.
    Changes { left: Vec<(u8, Id)>, written: Vec<(u8, u64)> },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Serving {
    pub(crate) commit: Commit<SmallRow>,
    /// (client, seq) of what was committed and is still remembered, in the order of the seqs.
    pub(crate) dedup: Vec<(u8, u8)>,
    /// The batch in flight, or the rows being changed: (seq, stamp).
    pub(crate) writes: Vec<(u8, u64)>,
    pub(crate) changes: Vec<(u8, Id)>,
    pub(crate) in_flight: Vec<SmallRow>,
    pub(crate) hints: HintLine<Id>,
    pub(crate) hint_stamp: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) epoch: u8,
    pub(crate) stamps: Stamps,
    pub(crate) stamp: u64,
    pub(crate) own_rows: bool,
    pub(crate) phase: Phase,
    /// What it writes is durable and not confirmed.
    pub(crate) durable: bool,
    /// A confirmation has begun that found no fence.
    pub(crate) confirming: bool,
    /// Mutations only: what the last recovery wrote again.
    pub(crate) rewritten: Vec<SmallRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) rows: Vec<Register<SmallRow>>,
    pub(crate) hint: Register<(u8, Id)>,
    /// Deletions that were begun: (stamp, of rows below).
    pub(crate) trims: Vec<(u64, u8)>,
    pub(crate) owners: Vec<Owner>,
    pub(crate) claimed: u8,
    /// So many owners have a durable fence.
    pub(crate) fenced: u8,
    /// What was used: answered, pushed, exposed.
    pub(crate) facts: Vec<SmallRow>,
    /// Per seq: the change that readers must find in the row by now.
    pub(crate) projected: Vec<Id>,
    /// Clients that will not repeat their send any more.
    pub(crate) given_up: u16,
    /// Clients that sent at least once.
    pub(crate) used: u16,
    pub(crate) restarts: u8,
    pub(crate) hints: u8,
    pub(crate) broken: Option<Broken>,
}

impl World {
    pub(crate) fn new(bounds: &Bounds, mutation: Mutation) -> Self {
        let owner = |number: u8| Owner {
            epoch: mutation.epoch(number),
            stamps: Stamps::new(Epoch(u64::from(mutation.stamp_epoch(number)))),
            stamp: 0,
            own_rows: false,
            phase: Phase::Absent,
            durable: false,
            confirming: false,
            rewritten: Vec::new(),
        };
        let mut world = Self {
            rows: (0..bounds.seqs).map(|_| Register::new(bounds.replicas)).collect(),
            hint: Register::new(bounds.replicas),
            trims: Vec::new(),
            owners: (0..bounds.owners).map(owner).collect(),
            claimed: 0,
            fenced: 0,
            facts: Vec::new(),
            projected: vec![SmallRow::NO_ID; usize::from(bounds.seqs)],
            given_up: 0,
            used: 0,
            restarts: 0,
            hints: 0,
            broken: None,
        };
        world.claim(0, bounds);
        world
    }

    pub(crate) fn claim(&mut self, owner: usize, bounds: &Bounds) {
        self.claimed += 1;
        self.activate(owner, bounds);
    }

    pub(crate) fn activate(&mut self, owner: usize, bounds: &Bounds) {
        let it = &mut self.owners[owner];
        it.stamp = it.stamps.fresh().expect("few are used").0;
        it.phase = Phase::ReadingHint;
        it.durable = false;
        it.confirming = false;
        if bounds.hints == 0 {
            self.hint_read(owner, None);
        }
    }

    pub(crate) fn hint_read(&mut self, owner: usize, hint: Option<(u8, Id)>) {
        let it = &mut self.owners[owner];
        let own_rows = if it.own_rows { OwnRows::Possible } else { OwnRows::None };
        it.own_rows = true;
        let hint = hint.map(|(seq, id)| (Seq(u64::from(seq)), id));
        let (recovery, step) = Recovery::new(Epoch(u64::from(it.epoch)), own_rows, hint, 1);
        let Step::Read(from) = step else { unreachable!("a recovery begins by reading") };
        it.phase = Phase::Recovering { recovery, wait: Wait::Row { seq: small(from), before: None } };
    }

    /// Whatever a reader may be told of a row, by a read that two replicas answer.
    pub(crate) fn readable(&self, seq: u8) -> Vec<Option<SmallRow>> {
        let Some(row) = self.rows.get(usize::from(seq) - 1) else { return vec![None] };
        row.quorum(self.deleted(seq))
    }

    fn deleted(&self, seq: u8) -> Option<u64> {
        self.trims.iter().filter(|(_, below)| seq < *below).map(|(stamp, _)| *stamp).max()
    }

    /// A recovery got a row, or learned that there is none.
    pub(crate) fn row_read(&mut self, owner: usize, read: Option<SmallRow>, mutation: Mutation) {
        let Phase::Recovering { recovery, wait: Wait::Row { seq, before } } = &mut self.owners[owner].phase
        else {
            return;
        };
        let asked = *seq;
        let mut given = read;
        if let (Some(row), Some(before)) = (&mut given, before.as_ref())
            && mutation.adopts_by_position(before, row)
        {
            row.prev = before.id;
        }
        let last = given;
        match recovery.rows(given.into_iter().collect()) {
            Ok(Step::Read(from)) => {
                debug_assert_eq!(small(from), asked + 1);
                let wait = Wait::Row { seq: small(from), before: last };
                if usize::from(small(from)) > self.rows.len() {
                    self.set_wait(owner, wait);
                    return self.row_read(owner, None, mutation);
                }
                self.set_wait(owner, wait);
            }
            Ok(step) => self.recovery_step(owner, step, mutation),
            Err(_) => self.owners[owner].phase = Phase::Stopped,
        }
    }

    fn set_wait(&mut self, owner: usize, next: Wait) {
        if let Phase::Recovering { wait, .. } = &mut self.owners[owner].phase {
            *wait = next;
        }
    }

    fn recovery_step(&mut self, owner: usize, step: Step<SmallRow>, mutation: Mutation) {
        let stamp = self.owners[owner].stamp;
        match step {
            Step::Rewrite(rows) => {
                if mutation == Mutation::ExposeBeforeRewrite {
                    self.expose(&rows);
                }
                let last_epoch = rows.last().map(|row| row.epoch);
                let own_epoch = self.owners[owner].epoch;
                let rows: Vec<_> = match mutation {
                    Mutation::NoRewrite => Vec::new(),
                    // What was written together, now told by who wrote it last.
                    Mutation::RewriteLastBatch => {
                        let last = rows.iter().filter(|row| Some(row.epoch) == last_epoch);
                        last.map(|row| SmallRow { epoch: own_epoch, ..*row }).collect()
                    }
                    Mutation::RewriteNamesWriter => {
                        rows.iter().map(|row| SmallRow { epoch: own_epoch, ..*row }).collect()
                    }
                    _ => rows.to_vec(),
                };
                for row in &rows {
                    self.rows[usize::from(row.seq) - 1].begin(stamp, *row);
                }
                self.set_wait(owner, Wait::Writes(rows.iter().map(|row| (row.seq, stamp)).collect()));
                self.owners[owner].rewritten = if mutation.looks_at_rewritten() { rows } else { Vec::new() };
            }
            Step::Confirm => self.set_wait(owner, Wait::Writes(Vec::new())),
            Step::Overwrite(overwrites) => {
                let left = match mutation {
                    Mutation::NoRepeat => Vec::new(),
                    Mutation::RepeatEveryChange => {
                        let rows = &self.owners[owner].rewritten;
                        rows.iter().filter(|row| row.target > 0).map(|row| (row.target, row.id)).collect()
                    }
                    _ => changes(&overwrites),
                };
                self.set_wait(owner, Wait::Changes { left, written: Vec::new() });
                self.changes_done(owner);
            }
            Step::Load(from, to) => {
                // What is loaded is confirmed: a quorum read of it has one result, as another property shows.
                let rows: Vec<_> =
                    (small(from)..=small(to)).filter_map(|seq| *self.readable(seq).last()?).collect();
                let Phase::Recovering { recovery, .. } = &mut self.owners[owner].phase else { return };
                let step = recovery.loaded(&rows);
                self.begin_serving(owner, &step, &rows, mutation);
            }
            Step::Done => self.begin_serving(owner, &Step::Done, &[], mutation),
            Step::Read(_) => unreachable!("handled where rows are read"),
        }
    }

    /// All rows were changed that a recovery had to change: now their writes are waited for.
    pub(crate) fn changes_done(&mut self, owner: usize) {
        if let Phase::Recovering { wait, .. } = &mut self.owners[owner].phase
            && let Wait::Changes { left, written } = wait
            && left.is_empty()
        {
            *wait = Wait::Writes(std::mem::take(written));
        }
    }

    fn begin_serving(
        &mut self,
        owner: usize,
        step: &Step<SmallRow>,
        loaded: &[SmallRow],
        mutation: Mutation,
    ) {
        assert_eq!(*step, Step::Done, "everything was loaded at once");
        let Phase::Recovering { recovery, .. } =
            std::mem::replace(&mut self.owners[owner].phase, Phase::Absent)
        else {
            return;
        };
        let head = recovery.finish();
        let (seq, id) = head.map_or((Seq::ZERO, SmallRow::NO_ID), |row| (row.seq(), row.id));
        let dedup = match mutation {
            Mutation::NoDedupOnRecovery => Vec::new(),
            _ => loaded.iter().map(|row| (row.client, row.seq)).collect(),
        };
        // With the recovery's end all changes up to its head are in their rows.
        self.project(small(seq));
        self.owners[owner].phase = Phase::Serving(Serving {
            commit: Commit::new(seq, id),
            dedup,
            writes: Vec::new(),
            changes: Vec::new(),
            in_flight: Vec::new(),
            hints: HintLine::new(),
            hint_stamp: None,
        });
    }

    /// What an owner writes is durable, if two replicas can acknowledge it; says whether.
    pub(crate) fn durable(&mut self, owner: usize) -> bool {
        if !self.acknowledge(owner) {
            return false;
        }
        let it = &mut self.owners[owner];
        it.durable = true;
        match &mut it.phase {
            Phase::Serving(serving) => drop(serving.commit.durable()),
            Phase::Recovering { recovery, wait: Wait::Writes(writes) } if !writes.is_empty() => {
                recovery.durable();
            }
            _ => {}
        }
        true
    }

    /// The confirmation ends that began when no fence was durable.
    pub(crate) fn confirmed(&mut self, owner: usize, mutation: Mutation) {
        let it = &mut self.owners[owner];
        (it.durable, it.confirming) = (false, false);
        match it.phase {
            Phase::Serving(_) => self.serving_confirmed(owner),
            _ => self.recovery_confirmed(owner, mutation),
        }
    }

    /// A confirmation finds the fence.
    pub(crate) fn found_fenced(&mut self, owner: usize) {
        let found = match &mut self.owners[owner].phase {
            Phase::Serving(serving) => serving.commit.confirmed(false) == Confirmed::Fenced,
            Phase::Recovering { recovery, .. } => recovery.confirmed(false).is_err(),
            _ => false,
        };
        assert!(found, "an owner that is fenced goes on");
        self.owners[owner].phase = Phase::Stopped;
    }

    fn recovery_confirmed(&mut self, owner: usize, mutation: Mutation) {
        let Phase::Recovering { recovery, wait: Wait::Writes(_) } = &mut self.owners[owner].phase else {
            return;
        };
        match recovery.confirmed(true) {
            Ok(step) => {
                self.expose_adopted(owner);
                self.recovery_step(owner, step, mutation);
            }
            Err(_) => self.owners[owner].phase = Phase::Stopped,
        }
    }

    /// What a confirmed recovery adopted may be told: it is what the store has, up to the recovery's head.
    fn expose_adopted(&mut self, owner: usize) {
        let Phase::Recovering { recovery, .. } = &self.owners[owner].phase else { return };
        let Some(head) = recovery.head() else { return };
        let mut chain = vec![*head];
        let mut prev = head.prev;
        for seq in (1..head.seq).rev() {
            let before = self.rows[usize::from(seq) - 1].begun().iter().rev().find(|(_, row)| row.id == prev);
            let Some((_, row)) = before else { break };
            chain.push(*row);
            prev = row.prev;
        }
        chain.reverse();
        self.expose(&chain);
    }

    /// These rows are used: they must be what was used before, or follow on it.
    pub(crate) fn expose(&mut self, rows: &[SmallRow]) {
        for row in rows {
            match self.facts.get(usize::from(row.seq) - 1) {
                Some(fact) if fact.identity() == row.identity() => {}
                Some(_) => self.broken = Some(Broken::Replaced),
                None if usize::from(row.seq) == self.facts.len() + 1 => {
                    // Which change a row shows is not part of what it is.
                    self.facts.push(SmallRow {
                        version: SmallRow::NO_ID,
                        base: 0,
                        window: 0,
                        epoch: 0,
                        ..*row
                    });
                }
                None => self.broken = Some(Broken::Gap),
            }
        }
    }

    /// From now on readers must find every change up to `head` in the row that it changes.
    fn project(&mut self, head: u8) {
        for fact in self.facts.iter().filter(|fact| fact.target > 0 && fact.seq <= head) {
            let known = &mut self.projected[usize::from(fact.target) - 1];
            if known.seq < fact.seq {
                *known = fact.id;
            }
        }
    }

    /// A serving owner writes these sends as its next batch.
    pub(crate) fn start_batch(&mut self, owner: usize, clients: &[u8], bounds: &Bounds, mutation: Mutation) {
        let it = &mut self.owners[owner];
        let Phase::Serving(serving) = &mut it.phase else { return };
        let (head, id) = serving.commit.head();
        let (base, _) = serving.commit.base();
        let window = serving.dedup.first().map_or(small(head) + 1, |(_, seq)| *seq);
        let (mut seq, mut prev) = (small(head), id);
        let mut rows = Vec::new();
        for client in clients {
            seq += 1;
            let id = Id { stamp: it.stamp, seq };
            let target = bounds.sends[usize::from(*client)];
            let version = SmallRow::NO_ID;
            let (epoch, base, client) = (it.epoch, small(base), *client);
            rows.push(SmallRow { seq, id, prev, epoch, base, window, client, target, version });
            prev = id;
            self.used |= 1 << client;
        }
        serving.commit.begin(rows.clone().into());
        serving.writes = rows.iter().map(|row| (row.seq, it.stamp)).collect();
        for row in &rows {
            self.rows[usize::from(row.seq) - 1].begin(it.stamp, *row);
        }
        if mutation == Mutation::OverwriteBeforeConfirmed {
            serving.changes =
                rows.iter().filter(|row| row.target > 0).map(|row| (row.target, row.id)).collect();
        }
        serving.in_flight = rows;
    }

    /// Changes one row that is waiting for it, as it was read.
    pub(crate) fn overwrite(&mut self, owner: usize, read: Option<SmallRow>) {
        let it = &mut self.owners[owner];
        let (left, written) = match &mut it.phase {
            Phase::Serving(serving) => (&mut serving.changes, &mut serving.writes),
            Phase::Recovering { wait: Wait::Changes { left, written }, .. } => (left, written),
            _ => return,
        };
        if left.is_empty() {
            return;
        }
        let (target, change) = left.remove(0);
        if let Some(row) = read {
            let stamp = it.stamps.fresh().expect("few are used").0;
            written.push((target, stamp));
            self.rows[usize::from(target) - 1].begin(stamp, SmallRow { version: change, ..row });
        }
        self.changes_done(owner);
    }

    /// The writes of an owner are acknowledged by two replicas; says whether they can be.
    fn acknowledge(&mut self, owner: usize) -> bool {
        let writes = match &self.owners[owner].phase {
            Phase::Serving(serving) => serving.writes.clone(),
            Phase::Recovering { wait: Wait::Writes(writes), .. } => writes.clone(),
            _ => return false,
        };
        writes.iter().all(|(seq, stamp)| self.rows[usize::from(*seq) - 1].acknowledge(*stamp))
    }

    fn serving_confirmed(&mut self, owner: usize) {
        let Phase::Serving(serving) = &mut self.owners[owner].phase else { return };
        serving.writes.clear();
        match serving.commit.confirmed(true) {
            Confirmed::Committed { rows, overwrites } => {
                serving.dedup.extend(rows.iter().map(|row| (row.client, row.seq)));
                serving.in_flight.clear();
                serving.changes = changes(&overwrites);
                let rows: Arc<[SmallRow]> = rows;
                self.expose(&rows);
            }
            Confirmed::Overwritten => {
                let head = small(serving.commit.head().0);
                self.project(head);
            }
            Confirmed::Nothing | Confirmed::Fenced => {}
        }
    }
}

fn changes(overwrites: &[Overwrite<Id>]) -> Vec<(u8, Id)> {
    overwrites.iter().map(|overwrite| (small(overwrite.target), overwrite.change)).collect()
}

pub(crate) fn small(seq: Seq) -> u8 {
    u8::try_from(seq.0).expect("few rows")
}
