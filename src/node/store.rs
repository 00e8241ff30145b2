//! What keeps a node's data: the embedded store, or the servers of a cluster and the node's part in it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::ensure;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};

use super::engine;
use super::faults::{Faults, changed};
use crate::clock::Clock;
use crate::cmd::stores::{embedded, servers};
use crate::config::Config;
use crate::storage::embedded::{EmbeddedConfig, EmbeddedStore, StoreMemory};
use crate::storage::scylla::ScyllaStore;
use crate::storage::{Health, Stores};
use crate::telemetry::store::StoreNumbers;

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
    /// It cannot be opened; the schema is too old.
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

async fn open_embedded(config: &Config, faults: Option<&Arc<Faults>>) -> anyhow::Result<Arc<EmbeddedStore>> {
    let data = config.node.data.clone();
    let embedded = EmbeddedConfig { fault: faults.map(Faults::hook), ..changed(embedded(config))? };
    let store = tokio::task::spawn_blocking(move || EmbeddedStore::open(&data, embedded)).await??;
    Ok(Arc::new(store))
}
