//! Which process serves which shard, as the processes themselves say. Soft: it only says whom to ask. Whoever is asked for
//! what it does not serve says so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, watch};

use super::membership::PeerId;
use super::shard_map::{ShardId, ShardMap};
use crate::storage::Epoch;

/// A shard, and in which epoch it is served.
pub type Served = (ShardId, Epoch);

#[derive(Debug, Default)]
struct Table {
    by: Vec<Option<(PeerId, Epoch)>>,
    /// Shards that nobody serves, and somebody waits for.
    waited_for: BTreeSet<ShardId>,
    /// Those of them that nobody was told of yet.
    untold: Vec<ShardId>,
}

/// Who serves what. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Owners {
    map: ShardMap,
    table: Arc<RwLock<Table>>,
    changes: watch::Sender<u64>,
    more_untold: Arc<Notify>,
}

impl Owners {
    /// Nobody serves anything that is known of.
    pub fn new(map: ShardMap) -> Self {
        let table = Table { by: vec![None; map.shards() as usize], ..Table::default() };
        let (table, changes) = (Arc::new(RwLock::new(table)), watch::Sender::new(0));
        Self { map, table, changes, more_untold: Arc::default() }
    }

    /// The mapping of ids to shards.
    pub fn map(&self) -> ShardMap {
        self.map
    }

    /// These are served by this process now. Gives back those that somebody else, or nobody, was known to serve. What is
    /// said of an older epoch comes too late.
    pub fn serves(&self, by: PeerId, served: &[Served]) -> Vec<ShardId> {
        let mut moved = Vec::new();
        let mut table = self.table.write();
        let Table { by: all, waited_for, .. } = &mut *table;
        for (shard, epoch) in served {
            let Some(entry) = all.get_mut(shard.0 as usize) else { continue };
            waited_for.remove(shard);
            if entry.is_none_or(|(_, known)| known <= *epoch) {
                if entry.is_none_or(|(known, _)| known != by) {
                    moved.push(*shard);
                }
                *entry = Some((by, *epoch));
            }
        }
        drop(table);
        self.tell();
        moved
    }

    /// This process serves these no more.
    pub fn stops(&self, by: PeerId, served: &[Served]) {
        let mut table = self.table.write();
        for (shard, epoch) in served {
            let Some(entry) = table.by.get_mut(shard.0 as usize) else { continue };
            if *entry == Some((by, *epoch)) {
                *entry = None;
            }
        }
        drop(table);
        self.tell();
    }

    /// Whatever this process served: it is not there any more.
    pub fn forget(&self, by: PeerId) {
        for entry in &mut self.table.write().by {
            if entry.is_some_and(|(known, _)| known == by) {
                *entry = None;
            }
        }
        self.tell();
    }

    /// Who serves a shard, and in which epoch.
    pub fn of(&self, shard: ShardId) -> Option<(PeerId, Epoch)> {
        self.table.read().by.get(shard.0 as usize).copied().flatten()
    }

    /// Everything that is known.
    pub fn all(&self) -> Vec<(ShardId, Option<(PeerId, Epoch)>)> {
        (0..).map(ShardId).zip(self.table.read().by.iter().copied()).collect()
    }

    /// What this process serves.
    pub fn of_process(&self, by: PeerId) -> Vec<Served> {
        let all = self.all().into_iter();
        all.filter_map(|(shard, owner)| Some((shard, owner.filter(|(known, _)| *known == by)?.1))).collect()
    }

    fn wait_for(&self, shard: ShardId) {
        // Whoever waits comes by at each change, and mostly others have said so before.
        if self.table.read().waited_for.contains(&shard) {
            return;
        }
        let mut table = self.table.write();
        if table.waited_for.insert(shard) {
            table.untold.push(shard);
            drop(table);
            self.more_untold.notify_one();
        }
    }

    /// Shards that nobody serves and that somebody began to wait for: each once, until it is served. Waits for some.
    pub async fn waited_for(&self) -> Vec<ShardId> {
        loop {
            let untold = std::mem::take(&mut self.table.write().untold);
            if !untold.is_empty() {
                return untold;
            }
            self.more_untold.notified().await;
        }
    }

    /// Who serves a shard; waits until somebody does, at most so long.
    pub async fn find(&self, shard: ShardId, within: Duration) -> Option<(PeerId, Epoch)> {
        let mut changes = self.changes.subscribe();
        let found = async {
            loop {
                if let Some(owner) = self.of(shard) {
                    return owner;
                }
                self.wait_for(shard);
                // The sender lives as long as this.
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(within, found).await.ok()
    }

    /// Waits until something is served by others than before, at most so long.
    pub async fn changed(&self, within: Duration) {
        let mut changes = self.changes.subscribe();
        let _ = tokio::time::timeout(within, changes.changed()).await;
    }

    fn tell(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn the_newest_epoch_counts_and_who_waits_is_told() {
        let (one, other) = (PeerId(Uuid::from_u128(1)), PeerId(Uuid::from_u128(2)));
        let owners = Owners::new(ShardMap::new(4));
        let (shard, elsewhere) = (ShardId(1), ShardId(2));
        let waiting = tokio::spawn({
            let owners = owners.clone();
            async move { owners.find(shard, Duration::from_secs(60)).await }
        });
        // Whoever should serve it is told that somebody waits, once.
        assert_eq!(owners.waited_for().await, [shard]);
        assert_eq!(owners.find(shard, Duration::ZERO).await, None);
        assert!(tokio::time::timeout(Duration::ZERO, owners.waited_for()).await.is_err());
        assert_eq!(owners.serves(one, &[(shard, Epoch(3)), (elsewhere, Epoch(1))]), [shard, elsewhere]);
        assert_eq!(waiting.await.expect("ended"), Some((one, Epoch(3))));
        assert_eq!(owners.serves(other, &[(shard, Epoch(2))]), []);
        assert_eq!(owners.serves(one, &[(shard, Epoch(3))]), []);
        assert_eq!(owners.serves(other, &[(shard, Epoch(4))]), [shard]);
        owners.stops(one, &[(shard, Epoch(3))]);
        assert_eq!(owners.of(shard), Some((other, Epoch(4))));
        assert_eq!(owners.of_process(one), [(elsewhere, Epoch(1))]);
        owners.forget(one);
        assert_eq!((owners.of(elsewhere), owners.of_process(other)), (None, vec![(shard, Epoch(4))]));
        owners.stops(other, &[(shard, Epoch(4))]);
        assert_eq!(owners.of(shard), None);
        assert_eq!(owners.find(shard, Duration::ZERO).await, None);
        assert_eq!(owners.waited_for().await, [shard], "for another time");
    }
}
