//! What keeps a node's data: the embedded store, or the servers of a cluster and the node's part in it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use ractor::ActorCell;
use tokio::sync::mpsc;

use super::engine;
use super::faults::Faults;
use crate::actors::membership::{Membership, MembershipSetup};
use crate::actors::shard::Conversations;
use crate::clock::Clock;
use crate::cluster::lease::LeaseTimes;
use crate::cluster::membership::PeerRow;
use crate::cluster::owner::{Owner, WantsConfirmation};
use crate::cluster::shard_map::ShardMap;
use crate::cluster::store::OwnershipStore as _;
use crate::cmd::stores::{embedded, servers};
use crate::config::Config;
use crate::storage::embedded::{EmbeddedConfig, EmbeddedStore, StoreMemory};
use crate::storage::scylla::ScyllaStore;
use crate::storage::{Health, Stores};
use crate::telemetry::cluster::ClusterState;
use crate::telemetry::store::StoreNumbers;

/// Between two looks at the other nodes of a cluster.
const LOOK: Duration = Duration::from_millis(200);

/// The store of a node. Cheap to clone.
#[derive(Clone)]
pub(super) enum NodeStore {
    Embedded(Arc<EmbeddedStore>),
    Servers(Arc<ScyllaStore>),
}

impl NodeStore {
    /// Opens the one that the configuration names.
    ///
    /// # Errors
    /// It cannot be opened; the schema is too old; another node serves the cluster.
    pub(super) async fn open(
        config: &Config,
        clock: Clock,
        faults: Option<&Arc<Faults>>,
    ) -> anyhow::Result<Self> {
        if config.scylla.nodes.is_empty() {
            return Ok(Self::Embedded(open_embedded(config, faults).await?));
        }
        let store = ScyllaStore::open(&servers(config, clock)?).await?;
        let shards = store.shards().await?;
        let configured = config.node.shards;
        ensure!(
            shards == configured,
            "the cluster was created with {shards} shards, node.shards says {configured}"
        );
        expect_alone(&store, config).await?;
        Ok(Self::Servers(Arc::new(store)))
    }

    pub(super) fn stores(&self) -> Stores {
        match self {
            Self::Embedded(store) => Stores::of(store.clone()),
            Self::Servers(store) => Stores::of(store.clone()),
        }
    }

    pub(super) fn health(&self) -> Health {
        match self {
            Self::Embedded(store) => store.health(),
            Self::Servers(_) => Health::Good,
        }
    }

    pub(super) fn memory(&self) -> StoreMemory {
        match self {
            Self::Embedded(store) => store.memory(),
            Self::Servers(store) => {
                let queued = store.stats().queue_bytes.load(Ordering::Relaxed);
                StoreMemory {
                    queue_bytes: usize::try_from(queued).unwrap_or(usize::MAX),
                    memtable_bytes: 0,
                    cache_bytes: 0,
                }
            }
        }
    }

    pub(super) fn numbers(&self) -> StoreNumbers {
        match self {
            Self::Embedded(store) => engine::store_numbers(&store.stats(), store.health() != Health::Good),
            Self::Servers(store) => engine::store_numbers(store.stats(), false),
        }
    }

    /// A backup, piece by piece. The servers of a cluster have their own tools for that.
    pub(super) fn backup(&self, made_at_ms: u64) -> BoxStream<'static, io::Result<Bytes>> {
        match self {
            Self::Embedded(store) => store.backup(made_at_ms),
            Self::Servers(_) => {
                let why =
                    "the store is on CQL servers: make snapshots there, or copy it by `convoke migrate`";
                stream::once(async move { Err(io::Error::other(why)) }).boxed()
            }
        }
    }

    pub(super) async fn shutdown(&self) {
        match self {
            Self::Embedded(store) => store.shutdown().await,
            Self::Servers(store) => store.shutdown().await,
        }
    }
}

/// Nodes do not speak to each other yet, so that only one can serve: a second one would answer for some conversations and
/// refuse the others. And two processes with one name would fence each other for ever, each taking the other for its own
/// former life.
async fn expect_alone(store: &ScyllaStore, config: &Config) -> anyhow::Result<()> {
    let before = store.read_peers().await?;
    let is_other = |row: &PeerRow| row.node.0 != config.node.id;
    let lease = config.cluster.lease_ms.duration();
    // A row of a former life is there after a crash: two signs of life that do not come are enough to tell.
    let patience = match before.iter().any(is_other) {
        true => lease,
        false if before.is_empty() => return Ok(()),
        false => lease / 3 * 2,
    };
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < patience {
        tokio::time::sleep(LOOK).await;
        for row in store.read_peers().await? {
            let seen = before.iter().find(|seen| seen.incarnation == row.incarnation);
            if seen.is_some_and(|seen| seen.beat == row.beat) {
                continue;
            }
            let name = &row.node.0;
            if is_other(&row) {
                bail!("node {name:?} serves this cluster: only one node at a time can, so far");
            }
            bail!("another process runs as node {name:?}: stop it, or give this one a node.id of its own");
        }
    }
    Ok(())
}

async fn open_embedded(config: &Config, faults: Option<&Arc<Faults>>) -> anyhow::Result<Arc<EmbeddedStore>> {
    let data = config.node.data.clone();
    let embedded = EmbeddedConfig { fault: faults.map(Faults::hook), ..embedded(config) };
    let store = tokio::task::spawn_blocking(move || EmbeddedStore::open(&data, embedded)).await??;
    Ok(Arc::new(store))
}

/// The node's part in its cluster, as the metrics show it.
pub(super) fn cluster_state(membership: &Membership) -> ClusterState {
    let standing = membership.standing();
    ClusterState { shards: standing.open as u64, lives_over: standing.deaths }
}

/// Who owns the node's shards, and who wants confirmations from a membership that is not started yet.
pub(super) struct Ownership {
    pub(super) owner: Owner,
    wanted: Option<mpsc::Receiver<WantsConfirmation>>,
}

impl Ownership {
    pub(super) fn of(store: &NodeStore, config: &Config) -> Self {
        match store {
            NodeStore::Embedded(store) => Self { owner: Owner::Permanent(store.epoch()), wanted: None },
            NodeStore::Servers(_) => {
                let (owner, wanted) = Owner::claiming(config.node.shards);
                Self { owner, wanted: Some(wanted) }
            }
        }
    }

    /// Joins the cluster, if there is one, and waits until the shards are served.
    ///
    /// # Errors
    /// The actor cannot be started.
    pub(super) async fn join(
        self,
        store: &NodeStore,
        config: &Config,
        clock: Clock,
        conversations: &Conversations,
        supervisor: &ActorCell,
    ) -> anyhow::Result<Option<Membership>> {
        let (NodeStore::Servers(store), Owner::Claimed(gates), Some(wanted)) =
            (store, self.owner, self.wanted)
        else {
            return Ok(None);
        };
        let setup = MembershipSetup {
            node: config.node.id.clone(),
            addresses: format!("{} {}", config.node.advertise_tcp, config.node.advertise_ws),
            store: store.clone(),
            map: ShardMap::new(config.node.shards),
            gates,
            wanted,
            conversations: conversations.clone(),
            times: LeaseTimes {
                lease: config.cluster.lease_ms.duration(),
                margin: config.cluster.margin_ms.duration(),
            },
            clock,
        };
        let membership = Membership::start(setup, supervisor).await.context("the membership")?;
        let shards = config.node.shards as usize;
        if !membership.serves(shards, config.cluster.claim_within_ms.duration()).await {
            let open = membership.standing().open;
            tracing::warn!(open, shards, "not all shards are served yet; the node begins all the same");
        }
        Ok(Some(membership))
    }
}
