//! The cluster's store: three replicas that get each write on its own, late or never, and rows that only conditional
//! statements change.

use std::collections::BTreeMap;
use std::sync::Arc;

use convoke::cluster::claim::{Decision, ShardRow};
use convoke::cluster::membership::{Incarnation, PeerRow};
use convoke::cluster::shard_map::ShardId;
use convoke::storage::{Hint, LogRow};
use rand::Rng;
use rand::rngs::SmallRng;

use super::SHARDS;

/// What is written and read at a quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Row(usize, u64),
    Hint(usize),
    Fence(Incarnation),
}

#[derive(Debug, Clone)]
pub(crate) enum Cell {
    Row(Arc<LogRow>),
    Hint(Hint),
    Fence,
}

type Stamped = Option<(u64, Cell)>;

/// The pairs of replicas that make a quorum.
const QUORUMS: [(usize, usize); 3] = [(0, 1), (1, 2), (0, 2)];

pub(crate) struct Store {
    cells: BTreeMap<Key, [Stamped; 3]>,
    pub(crate) nodes: BTreeMap<Incarnation, PeerRow>,
    shards: Vec<ShardRow>,
}

/// A write on its way to one replica.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) replica: usize,
    pub(crate) key: Key,
    pub(crate) stamp: u64,
    pub(crate) cell: Cell,
}

impl Store {
    pub(crate) fn new() -> Self {
        let shards = vec![ShardRow::default(); SHARDS as usize];
        Self { cells: BTreeMap::new(), nodes: BTreeMap::new(), shards }
    }

    pub(crate) fn deliver(&mut self, delivery: Delivery) {
        let Delivery { replica, key, stamp, cell } = delivery;
        let has = &mut self.cells.entry(key).or_default()[replica];
        if has.as_ref().is_none_or(|(newest, _)| *newest < stamp) {
            *has = Some((stamp, cell));
        }
    }

    fn newest(&self, key: Key, one: usize, other: usize) -> Stamped {
        let [one, other] = self.cells.get(&key).map(|has| [has[one].clone(), has[other].clone()])?;
        let stamp = |has: &Stamped| has.as_ref().map(|(stamp, _)| *stamp);
        if stamp(&one) < stamp(&other) { other } else { one }
    }

    /// A quorum read of one cell, and the repair of the replicas that it may begin.
    pub(crate) fn read(
        &self,
        key: Key,
        one_replica: bool,
        rng: &mut SmallRng,
    ) -> (Option<Cell>, Vec<Delivery>) {
        let (one, mut other) = QUORUMS[rng.random_range(0..3)];
        if one_replica {
            other = one;
        }
        let Some((stamp, cell)) = self.newest(key, one, other) else { return (None, Vec::new()) };
        let repair = [one, other].map(|replica| Delivery { replica, key, stamp, cell: cell.clone() });
        (Some(cell), if rng.random() { repair.into() } else { Vec::new() })
    }

    /// Whatever a quorum read of a row may return now.
    pub(crate) fn any_quorum(&self, conversation: usize, seq: u64) -> [Option<Arc<LogRow>>; 3] {
        QUORUMS.map(|(one, other)| match self.newest(Key::Row(conversation, seq), one, other) {
            Some((_, Cell::Row(row))) => Some(row),
            _ => None,
        })
    }

    /// The highest seq of which any replica has a row.
    pub(crate) fn highest(&self, conversation: usize) -> u64 {
        let rows = self.cells.range(Key::Row(conversation, 0)..=Key::Row(conversation, u64::MAX));
        rows.last().map_or(0, |(key, _)| if let Key::Row(_, seq) = key { *seq } else { 0 })
    }

    pub(crate) fn shard(&self, shard: ShardId) -> ShardRow {
        self.shards[shard.0 as usize]
    }

    pub(crate) fn decide(&mut self, shard: ShardId, expected: ShardRow, then: ShardRow) -> Decision {
        let row = &mut self.shards[shard.0 as usize];
        if *row != expected {
            return Decision::NotApplied;
        }
        *row = then;
        Decision::Applied
    }
}
