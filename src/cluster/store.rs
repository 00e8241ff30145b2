//! What the ownership core's statements are given to.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::claim::{Decision, ShardRow};
use super::confirm::FenceRead;
use super::membership::{Incarnation, PeerRow};
use super::shard_map::ShardId;
use crate::storage::{ReadError, WriteError};

/// A beat to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The row as others are to see it.
    pub row: PeerRow,
    /// After this the row goes by itself.
    pub ttl: Duration,
}

/// Where nodes, fences and shards are kept: what `super::ownership` puts out, performed.
///
/// A method may end without an answer long after its statement was sent; what that means is the core's business.
pub trait OwnershipStore: Send + Sync + 'static {
    /// Writes the own row. `Ok`: a quorum has it.
    fn write_beat<'a>(&'a self, beat: &'a Beat) -> BoxFuture<'a, Result<(), WriteError>>;

    /// Takes the own row away, for good: this life ended in order and owns nothing.
    fn leave(&self, incarnation: Incarnation) -> BoxFuture<'_, Result<(), WriteError>>;

    /// The rows of all nodes, those included whose process is gone and whose row is not yet.
    fn read_peers(&self) -> BoxFuture<'_, Result<Vec<PeerRow>, ReadError>>;

    /// Fences an incarnation for good. `Ok`: a quorum has it, and every quorum read that begins from now on finds it.
    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'_, Result<(), WriteError>>;

    /// Whether an incarnation is fenced, by a quorum read that begins with the call.
    fn read_fence(&self, incarnation: Incarnation) -> BoxFuture<'_, FenceRead>;

    /// A shard's row at SERIAL: it shows every statement that was decided before.
    fn read_shard(&self, shard: ShardId) -> BoxFuture<'_, Result<ShardRow, ReadError>>;

    /// Changes a shard's row if it is exactly `expected`. Sent once: a repeat could apply twice.
    fn decide(&self, shard: ShardId, expected: ShardRow, then: ShardRow) -> BoxFuture<'_, Decision>;
}
