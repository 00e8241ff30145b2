//! The stores on ScyllaDB or Apache Cassandra, through the `scylla` driver.
//!
//! Everything is written at LOCAL_QUORUM and read at LOCAL_QUORUM, so a read that begins after a write ended sees it.
//! Which of two writes of one cell stays is decided by timestamps that Convoke gives (`statements.rs`), never by the order
//! in which they arrive. docs/storage.md lists every statement with its consistency and the reason for it.
//!
//! Unlike the embedded store this one may have several writers for a conversation, of which the ownership protocol lets
//! only one commit (docs/ownership.md). So a row that is there need not be committed, and a log's hint is only what was
//! kept by `put_hint`.

pub mod bare;
mod check;
mod cql;
mod cursors;
mod groups;
mod log;
mod ownership;
mod reactions;
mod retention;
pub mod schema;
mod speculation;
pub mod statements;
mod users;
mod walk;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use convoke_protocol::id::Seq;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::speculative_execution::SpeculativeExecutionPolicy;

pub use self::check::check;
use self::cql::Cql;
use self::cursors::Gatherer;
pub use self::ownership::InUse;
use self::schema::{Applied, KeyspaceOptions, SCHEMA_VERSION};
use self::speculation::{Speculation, Traffic};
use self::statements::Statements;
use self::writer::Writer;
use crate::clock::Clock;
use crate::storage::ReadError;
use crate::storage::stats::StoreStats;

/// Messages in one partition of a log.
const BUCKET: u64 = 10_000;
/// Statements of one call that are under way at the same time.
const WIDTH: usize = 32;
/// How often servers are asked whether they agree on the schema, while one changes it.
const AGREEMENT_POLL: Duration = Duration::from_millis(20);
/// How many times a statement may be tried within its deadline before the driver gives up on one attempt.
const ATTEMPTS: u32 = 2;
/// Connections are not asked more often than this whether they live, and none is given up sooner.
const SIGN_OF_LIFE: Duration = Duration::from_millis(1_250);

/// Where the servers are and how they are spoken to.
#[derive(Clone)]
pub struct ScyllaConfig {
    /// Addresses of some nodes, `host:port`; the driver finds the others.
    pub nodes: Vec<String>,
    /// The keyspace.
    pub keyspace: String,
    /// User and password, where the servers ask for them.
    pub login: Option<(String, String)>,
    /// How long a statement is tried, its repeats included.
    pub deadline: Duration,
    /// After how long without an answer a statement that may be repeated goes to another server as well; zero for never.
    pub speculate_after: Duration,
    /// Bytes of rows that wait to be written, or are under way; above it appends are refused as busy.
    pub queue_bytes: usize,
    /// The clocks: what is ordered by time (settings, rules of retention, requests to join) goes by the wall clock.
    pub clock: Clock,
}

impl Default for ScyllaConfig {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            keyspace: "convoke".into(),
            login: None,
            deadline: Duration::from_secs(5),
            speculate_after: Duration::from_millis(50),
            queue_bytes: 64 << 20,
            clock: Clock::new(0),
        }
    }
}

impl fmt::Debug for ScyllaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.login.as_ref().map(|(user, _)| user);
        f.debug_struct("ScyllaConfig")
            .field("nodes", &self.nodes)
            .field("keyspace", &self.keyspace)
            .field("user", &user)
            .finish_non_exhaustive()
    }
}

/// Why the servers' store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No address was given.
    #[error("no CQL server is named: set scylla.nodes, or give --cql to a command that takes it")]
    NoNodes,
    /// The keyspace cannot have this name.
    #[error("{0:?} is no name for a keyspace: a small letter, then small letters, digits and _, at most 48")]
    BadKeyspace(String),
    /// The servers cannot be reached, or refuse.
    #[error("the CQL servers: {0}")]
    Server(String),
    /// There are no tables, or too few.
    #[error(
        "keyspace {keyspace} has version {found} of the schema and this program needs {SCHEMA_VERSION}: run `convoke schema apply` first"
    )]
    OldSchema {
        /// Where.
        keyspace: String,
        /// What is there; 0 for nothing.
        found: i32,
    },
    /// A later program made the tables.
    #[error(
        "keyspace {keyspace} has version {found} of the schema, which this program does not know (it knows {SCHEMA_VERSION}): upgrade it"
    )]
    NewSchema {
        /// Where.
        keyspace: String,
        /// What is there.
        found: i32,
    },
    /// Somebody else went on applying the schema for too long.
    #[error("another process is applying the schema, or died while it did: try again in two minutes")]
    SchemaLocked,
}

impl OpenError {
    fn server(error: impl fmt::Display) -> Self {
        Self::Server(error.to_string())
    }
}

/// All stores of a cluster.
pub struct ScyllaStore {
    shared: Arc<Shared>,
    writer: Writer,
    cursors: Gatherer,
}

/// What writes that go on in the background share with the store.
struct Shared {
    cql: Cql,
    clock: Clock,
    /// The last timestamp of what is ordered by time.
    last_micros: AtomicI64,
}

impl Shared {
    /// A timestamp above all that this process gave before, by the wall clock, in microseconds since 1970.
    fn now_micros(&self) -> i64 {
        let wall = bigint(self.clock.wall().0.saturating_mul(1_000));
        let next = |last: i64| Some(wall.max(last + 1));
        match self.last_micros.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(last) | Err(last) => wall.max(last + 1),
        }
    }
}

impl ScyllaStore {
    /// Connects, checks the schema and prepares every statement. Must be called within a tokio runtime, on which writes
    /// go on in the background.
    ///
    /// # Errors
    /// The servers cannot be reached, or the schema is not the one this program works with.
    pub async fn open(config: &ScyllaConfig) -> Result<Self, OpenError> {
        let traffic = Traffic::default();
        let session = connect(config, Speculation::policy(config.speculate_after, &traffic)).await?;
        let keyspace = &config.keyspace;
        let found = schema::version(&session, keyspace).await?;
        if found < SCHEMA_VERSION {
            return Err(OpenError::OldSchema { keyspace: keyspace.clone(), found });
        }
        if found > SCHEMA_VERSION {
            return Err(OpenError::NewSchema { keyspace: keyspace.clone(), found });
        }
        session.use_keyspace(keyspace, false).await.map_err(OpenError::server)?;
        let statements = Statements::prepare(&session, &traffic).await.map_err(OpenError::server)?;
        let cql = Cql::new(session, statements, config.deadline, traffic);
        let shared = Arc::new(Shared { cql, clock: config.clock, last_micros: AtomicI64::new(0) });
        let writer = Writer::new(shared.clone(), config.queue_bytes, config.deadline);
        let cursors = Gatherer::start(shared.clone());
        Ok(Self { shared, writer, cursors })
    }

    /// Takes no more writes, and waits until those that were taken have ended, at most for the deadline of a statement
    /// and then for those that are under way; the others are answered as not stored.
    pub async fn shutdown(&self) {
        self.writer.shutdown().await;
    }

    /// Into how many shards the ids of the cluster are divided.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn shards(&self) -> Result<u32, ReadError> {
        let row: Option<(Option<i32>,)> = self.cql().row(&self.cql().statements.shards, ()).await?;
        let shards = row.and_then(|(shards,)| shards).and_then(|shards| u32::try_from(shards).ok());
        shards.ok_or_else(|| ReadError::Corrupt("the cluster does not say how many shards it has".into()))
    }

    /// What it did since it was opened, and what waits. A commit is what one conversation writes at once.
    pub fn stats(&self) -> &StoreStats {
        let stats = self.writer.stats();
        stats.cursors.store(self.cursors.written(), Ordering::Relaxed);
        stats.asked_twice.store(self.cql().asked_twice(), Ordering::Relaxed);
        stats
    }

    fn cql(&self) -> &Cql {
        &self.shared.cql
    }
}

/// Makes the keyspace and its tables, or brings them to this program's version. May be repeated, and may run on several
/// machines at once.
///
/// # Errors
/// The servers cannot be reached or refuse, or somebody else holds the schema's lock for too long.
pub async fn apply_schema(config: &ScyllaConfig, options: KeyspaceOptions) -> Result<Applied, OpenError> {
    let session = connect(config, None).await?;
    schema::apply(&session, &config.keyspace, options).await
}

/// The version of the schema that is there; 0 for none.
///
/// # Errors
/// The servers cannot be reached.
pub async fn schema_version(config: &ScyllaConfig) -> Result<i32, OpenError> {
    let session = connect(config, None).await?;
    schema::version(&session, &config.keyspace).await
}

async fn connect(
    config: &ScyllaConfig,
    speculation: Option<Arc<dyn SpeculativeExecutionPolicy>>,
) -> Result<Session, OpenError> {
    if config.nodes.is_empty() {
        return Err(OpenError::NoNodes);
    }
    if !schema::is_keyspace_name(&config.keyspace) {
        return Err(OpenError::BadKeyspace(config.keyspace.clone()));
    }
    let profile = ExecutionProfile::builder()
        .request_timeout(Some(config.deadline / ATTEMPTS))
        .speculative_execution_policy(speculation)
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&config.nodes)
        .connection_timeout(config.deadline)
        // A connection that is dead without a word is made again; by default the driver notices it after a minute. But not too soon: one
        // that is cut for some seconds goes on by itself, and the driver's pauses between attempts to connect grow to ten seconds.
        .keepalive_interval((config.deadline / 4).max(SIGN_OF_LIFE))
        .keepalive_timeout(config.deadline.max(SIGN_OF_LIFE))
        // The layout of other keyspaces is nobody's business here; of this one it is what routes by token.
        .keyspaces_to_fetch([&config.keyspace])
        .schema_agreement_interval(AGREEMENT_POLL)
        .default_execution_profile_handle(profile.into_handle());
    if let Some((user, password)) = &config.login {
        builder = builder.user(user, password);
    }
    builder.build().await.map_err(OpenError::server)
}

/// Which partition of its log a message is in.
fn bucket_of(seq: Seq) -> i64 {
    bigint(seq.0 / BUCKET)
}

/// A number as the servers keep it. Seqs, ordinals and stamps are far below the bound; a reader's `u64::MAX` becomes it.
fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number as it was kept.
fn number(bigint: i64) -> u64 {
    u64::try_from(bigint).unwrap_or(0)
}

/// In which of `parts` partitions an id of a list over all conversations or members is.
fn part_of(id: &str, parts: i32) -> i32 {
    // The remainder is below `parts`.
    (xxhash_rust::xxh3::xxh3_64(id.as_bytes()) % parts.unsigned_abs() as u64) as i32
}

#[cfg(test)]
mod tests;
