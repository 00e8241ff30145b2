//! What names a node, and the row by which others know it.

use uuid::Uuid;

/// A node as the configuration names it: the same after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub String);

/// One life of a node, from its start to its end or its fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub Uuid);

/// What a node's row says at the time it is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerRow {
    /// Whose it is.
    pub incarnation: Incarnation,
    /// Of which node.
    pub node: NodeId,
    /// How often it wrote: only whether it changes matters.
    pub beat: u64,
    /// Whether it gives its shards back.
    pub draining: bool,
}
