//! What names a node, and the row by which others know it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A node as the configuration names it: the same after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub String);

/// One life of a node, from its start to its end or its fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub Uuid);

/// A process, from its start to its end. Its lives as an owner may end before it does; its sessions and links do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct PeerId(pub Uuid);

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a node is reached; what is empty is not told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Addresses {
    /// By clients over TCP.
    pub tcp: String,
    /// By clients over WebSocket.
    pub ws: String,
    /// By other nodes.
    pub link: String,
    /// The process, whatever its lives.
    pub process: PeerId,
}

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
    /// Where it is reached.
    pub addresses: Addresses,
}
