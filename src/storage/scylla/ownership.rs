//! What the ownership protocol says to the servers: beats, fences and shards (docs/ownership.md).

use futures_util::future::{BoxFuture, FutureExt};
use scylla::value::{CqlValue, Row};
use uuid::Uuid;

use super::{ScyllaStore, bigint, number};
use crate::cluster::claim::{Decision, ShardRow};
use crate::cluster::confirm::FenceRead;
use crate::cluster::membership::{Incarnation, NodeId, PeerRow};
use crate::cluster::shard_map::ShardId;
use crate::cluster::store::{Beat, OwnershipStore};
use crate::storage::{Epoch, ReadError, WriteError};

/// Whether a conditional statement was applied: the first column says it. Which others there are differs between servers.
fn was_applied(row: &Row) -> Option<bool> {
    row.columns.first()?.as_ref().and_then(CqlValue::as_boolean)
}

/// A shard's id as it is kept: there are far fewer than an `int` can number.
fn int(shard: ShardId) -> i32 {
    i32::try_from(shard.0).unwrap_or(i32::MAX)
}

impl ScyllaStore {
    async fn decide_shard(&self, shard: ShardId, expected: ShardRow, then: ShardRow) -> Decision {
        let (cql, all) = (self.cql(), &self.cql().statements);
        let owner = |row: ShardRow| row.owner.map(|Incarnation(id)| id);
        let (then_owner, then_epoch) = (owner(then), bigint(then.epoch.0));
        let sent = if expected == ShardRow::default() {
            // No row is a shard that was never claimed.
            cql.decide(&all.create_shard, (int(shard), then_owner, then_epoch)).await
        } else {
            let condition = (owner(expected), bigint(expected.epoch.0));
            let values = (then_owner, then_epoch, int(shard), condition.0, condition.1);
            cql.decide(&all.change_shard, values).await
        };
        match sent {
            Ok(rows) => match rows.first_row::<Row>().ok().as_ref().and_then(was_applied) {
                Some(true) => Decision::Applied,
                Some(false) => Decision::NotApplied,
                None => Decision::Unknown,
            },
            // One that was not sent cannot apply later, but the core reads the row again either way.
            Err(failure) if failure.perhaps => Decision::Unknown,
            Err(_) => Decision::NotApplied,
        }
    }
}

impl OwnershipStore for ScyllaStore {
    fn write_beat<'a>(&'a self, beat: &'a Beat) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            let PeerRow { incarnation, node, beat: number, draining } = &beat.row;
            let ttl = i32::try_from(beat.ttl.as_secs()).unwrap_or(i32::MAX).max(1);
            let number = bigint(*number);
            let row =
                (incarnation.0, node.0.as_str(), beat.addresses.as_str(), number, *draining, number, ttl);
            Ok(self.cql().write(&self.cql().statements.put_beat, row).await?)
        }
        .boxed()
    }

    fn read_peers(&self) -> BoxFuture<'_, Result<Vec<PeerRow>, ReadError>> {
        async move {
            type Kept = (Uuid, Option<String>, Option<String>, Option<i64>, Option<bool>);
            let rows: Vec<Kept> = self.cql().rows(&self.cql().statements.beats, ()).await?;
            let peer = |(incarnation, node, _, beat, draining): Kept| {
                Some(PeerRow {
                    incarnation: Incarnation(incarnation),
                    node: NodeId(node?),
                    beat: number(beat?),
                    draining: draining.unwrap_or_default(),
                })
            };
            Ok(rows.into_iter().filter_map(peer).collect())
        }
        .boxed()
    }

    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'_, Result<(), WriteError>> {
        async move { Ok(self.cql().write(&self.cql().statements.put_fence, (incarnation.0,)).await?) }.boxed()
    }

    fn read_fence(&self, incarnation: Incarnation) -> BoxFuture<'_, FenceRead> {
        async move {
            let row: Result<Option<(Option<bool>,)>, _> =
                self.cql().row(&self.cql().statements.fence, (incarnation.0,)).await;
            match row {
                Ok(None) => FenceRead::Nothing,
                Ok(Some(_)) => FenceRead::Fenced,
                Err(_) => FenceRead::Failed,
            }
        }
        .boxed()
    }

    fn read_shard(&self, shard: ShardId) -> BoxFuture<'_, Result<ShardRow, ReadError>> {
        async move {
            let row: Option<(Option<Uuid>, Option<i64>)> =
                self.cql().row(&self.cql().statements.shard, (int(shard),)).await?;
            let (owner, epoch) = row.unwrap_or_default();
            Ok(ShardRow { owner: owner.map(Incarnation), epoch: Epoch(epoch.map_or(0, number)) })
        }
        .boxed()
    }

    fn decide(&self, shard: ShardId, expected: ShardRow, then: ShardRow) -> BoxFuture<'_, Decision> {
        self.decide_shard(shard, expected, then).boxed()
    }
}
