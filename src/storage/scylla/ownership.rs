//! What the ownership protocol says to the servers: beats, fences and shards (docs/ownership.md).

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use scylla::value::{CqlValue, Row};
use uuid::Uuid;

use super::{ScyllaStore, WIDTH, bigint, number};
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

/// Why a cluster's tables cannot be copied now.
#[derive(Debug, thiserror::Error)]
pub enum InUse {
    /// It cannot be said.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A node has a row that is not old enough to be gone.
    #[error(
        "node {0} is running, or died without giving its shards back: stop it in order, or wait a minute"
    )]
    Node(String),
    /// A shard belongs to somebody.
    #[error("shard {0} belongs to a node that died: start a node, and stop it in order")]
    Owned(u32),
    /// The epoch of a shard could not be raised.
    #[error("shard {0} could not be prepared")]
    NotRaised(u32),
}

/// How often a shard's row is read and changed until it is as it has to be.
const TRIES: usize = 20;

impl ScyllaStore {
    /// Every shard with its row, in order.
    pub(super) async fn all_shards(&self) -> Result<Vec<(ShardId, ShardRow)>, ReadError> {
        let shards = self.shards().await?;
        let reads: Vec<_> = (0..shards).map(|shard| self.read_shard(ShardId(shard))).collect();
        let rows: Vec<ShardRow> = stream::iter(reads).buffered(WIDTH).try_collect().await?;
        Ok((0..).map(ShardId).zip(rows).collect())
    }

    /// Nobody may be writing.
    ///
    /// # Errors
    /// Somebody is, or may be.
    pub async fn expect_no_nodes(&self) -> Result<(), InUse> {
        if let Some(peer) = self.read_peers().await?.pop() {
            return Err(InUse::Node(peer.node.0));
        }
        match self.all_shards().await?.into_iter().find(|(_, row)| row.owner.is_some()) {
            Some((shard, _)) => Err(InUse::Owned(shard.0)),
            None => Ok(()),
        }
    }

    /// Whether a shard was ever claimed.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn was_used(&self) -> Result<bool, ReadError> {
        Ok(self.all_shards().await?.iter().any(|(_, row)| row.epoch > Epoch(0)))
    }

    /// Sees to it that whoever claims a shard from now on has a higher epoch than `copied`, of which rows are there.
    ///
    /// # Errors
    /// A shard belongs to somebody, or the servers do not answer.
    pub async fn begin_after(&self, copied: Epoch) -> Result<(), InUse> {
        let shards = self.all_shards().await?;
        let raised: Vec<_> = shards.into_iter().map(|(shard, _)| self.raise(shard, copied)).collect();
        stream::iter(raised).buffer_unordered(WIDTH).try_collect().await
    }

    async fn raise(&self, shard: ShardId, to: Epoch) -> Result<(), InUse> {
        for _ in 0..TRIES {
            let row = self.read_shard(shard).await?;
            if row.epoch >= to {
                return Ok(());
            }
            if row.owner.is_some() {
                return Err(InUse::Owned(shard.0));
            }
            // Whatever it answers: the row is read again.
            self.decide(shard, row, ShardRow { owner: None, epoch: to }).await;
        }
        Err(InUse::NotRaised(shard.0))
    }
}

impl OwnershipStore for ScyllaStore {
    fn write_beat<'a>(&'a self, beat: &'a Beat) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            let PeerRow { incarnation, node, beat: number, draining, addresses } = &beat.row;
            let addresses = serde_json::to_string(addresses).unwrap_or_default();
            let ttl = i32::try_from(beat.ttl.as_secs()).unwrap_or(i32::MAX).max(1);
            let number = bigint(*number);
            let row = (incarnation.0, node.0.as_str(), addresses.as_str(), number, *draining, number, ttl);
            Ok(self.cql().write(&self.cql().statements.put_beat, row).await?)
        }
        .boxed()
    }

    fn leave(&self, incarnation: Incarnation) -> BoxFuture<'_, Result<(), WriteError>> {
        // Above every beat, also one that is under way.
        let last = i64::MAX / 2;
        async move { Ok(self.cql().write(&self.cql().statements.drop_beat, (last, incarnation.0)).await?) }
            .boxed()
    }

    fn read_peers(&self) -> BoxFuture<'_, Result<Vec<PeerRow>, ReadError>> {
        async move {
            type Kept = (Uuid, Option<String>, Option<String>, Option<i64>, Option<bool>);
            let rows: Vec<Kept> = self.cql().rows(&self.cql().statements.beats, ()).await?;
            let peer = |(incarnation, node, addresses, beat, draining): Kept| {
                Some(PeerRow {
                    incarnation: Incarnation(incarnation),
                    node: NodeId(node?),
                    beat: number(beat?),
                    draining: draining.unwrap_or_default(),
                    // A node of another version may say it in another way: then it is not reached from here.
                    addresses: addresses
                        .and_then(|text| serde_json::from_str(&text).ok())
                        .unwrap_or_default(),
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
