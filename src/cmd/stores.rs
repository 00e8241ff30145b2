//! The stores that a configuration names, and which CQL servers a command speaks to: those, or others that it is told.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::clock::Clock;
use crate::config::{Config, Overrides, environment};
use crate::storage::embedded::EmbeddedConfig;
use crate::storage::scylla::ScyllaConfig;

/// The arguments that name the servers.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CqlArgs {
    /// The configuration whose section [scylla] names the servers [default: cluster.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A server, instead of those of the configuration; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    pub cql: Vec<String>,
    /// The keyspace, instead of that of the configuration
    #[arg(long, value_name = "NAME")]
    pub keyspace: Option<String>,
}

impl CqlArgs {
    /// The configuration, and where the servers are.
    ///
    /// # Errors
    /// The configuration is wrong, or the password cannot be read.
    pub fn load(&self) -> anyhow::Result<(Config, ScyllaConfig)> {
        let config = Config::load(self.config.as_deref(), environment(), &Overrides::default())
            .context("the configuration is wrong")?;
        let mut scylla = servers(&config, Clock::from_environment()?)?;
        if !self.cql.is_empty() {
            scylla.nodes.clone_from(&self.cql);
        }
        if let Some(keyspace) = &self.keyspace {
            scylla.keyspace.clone_from(keyspace);
        }
        Ok((config, scylla))
    }
}

/// How a configuration wants the embedded store.
pub fn embedded(config: &Config) -> EmbeddedConfig {
    let storage = &config.storage;
    EmbeddedConfig {
        shards: config.node.shards,
        queue_bytes: storage.queue_bytes,
        batch_bytes: storage.batch_bytes,
        batch_appends: storage.batch_appends,
        cache_bytes: storage.cache_bytes,
        memtable_bytes: storage.memtable_bytes,
        cursor_interval: storage.cursor_interval_ms.duration(),
        reads: storage.reads,
        ..EmbeddedConfig::default()
    }
}

/// Where the servers are that a configuration names.
///
/// # Errors
/// The password cannot be read.
pub fn servers(config: &Config, clock: Clock) -> anyhow::Result<ScyllaConfig> {
    let section = &config.scylla;
    let login = if section.user.is_empty() {
        None
    } else {
        let file = &section.password_file;
        let password = std::fs::read_to_string(file)
            .with_context(|| format!("scylla.password_file {} cannot be read", file.display()))?;
        Some((section.user.clone(), password.trim().to_owned()))
    };
    Ok(ScyllaConfig {
        nodes: section.nodes.clone(),
        keyspace: section.keyspace.clone(),
        login,
        deadline: section.deadline_ms.duration(),
        speculate_after: section.speculate_after_ms.duration(),
        queue_bytes: config.storage.queue_bytes,
        clock,
    })
}

/// Runs a command that speaks to servers.
///
/// # Errors
/// As the command's.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}
