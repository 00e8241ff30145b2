//! The tables, as numbered migrations, and how they are applied by several at once.
//!
//! Every statement says `IF NOT EXISTS`, and a migration counts as applied once its number is in `schema_versions`. Who
//! applies holds a row of `schema_lock`, taken by a conditional insert that expires, so that two never create the same
//! table at the same time: a server that spreads its schema by gossip can otherwise give one name to two tables. The two
//! tables this needs have fixed ids for the same reason.

use std::time::Duration;

use scylla::client::session::Session;
use scylla::statement::{Consistency, SerialConsistency, Statement};
use tokio::time::Instant;
use uuid::Uuid;

use super::OpenError;

/// The version this program works with.
pub const SCHEMA_VERSION: i32 = 1;

/// A step from one version of the schema to the next.
struct Migration {
    version: i32,
    statements: &'static [&'static str],
}

/// For how long a holder of the lock may be silent.
const LOCK_TTL_S: i32 = 120;
/// How long somebody waits for the lock of another.
const LOCK_PATIENCE: Duration = Duration::from_secs(180);
/// How long servers may take to hear of a new keyspace.
const GOSSIP_PATIENCE: Duration = Duration::from_secs(20);
const LOCK_POLL: Duration = Duration::from_millis(200);

/// What is needed before the lock is held. Created at the same time in several places they still are the same tables,
/// because their ids are said.
const BOOTSTRAP: [(&str, &str); 2] = [
    ("schema_versions", "(part int, version int, PRIMARY KEY (part, version))"),
    ("schema_lock", "(part int PRIMARY KEY, holder uuid)"),
];

/// The same id for the same table, wherever it is created. Servers expect the shape of a UUID of version 1.
fn table_id(keyspace: &str, table: &str) -> Uuid {
    let mut bytes = xxhash_rust::xxh3::xxh3_128(format!("{keyspace}.{table}").as_bytes()).to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x10;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uuid::from_bytes(bytes)
}

const MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    statements: &[
        "CREATE TABLE IF NOT EXISTS messages (conversation text, bucket bigint, seq bigint, row blob, \
         PRIMARY KEY ((conversation, bucket), seq))",
        "CREATE TABLE IF NOT EXISTS hints (conversation text PRIMARY KEY, hint blob)",
        "CREATE TABLE IF NOT EXISTS log_starts (conversation text PRIMARY KEY, start blob, trimmed bigint)",
        "CREATE TABLE IF NOT EXISTS logs (part int, conversation text, PRIMARY KEY (part, conversation))",
        "CREATE TABLE IF NOT EXISTS uncounted (conversation text, bucket bigint, seq bigint, \
         PRIMARY KEY ((conversation, bucket), seq))",
        "CREATE TABLE IF NOT EXISTS lists (user text, conversation text, PRIMARY KEY (user, conversation))",
        "CREATE TABLE IF NOT EXISTS cursors (user text, device text, conversation text, seq bigint, \
         PRIMARY KEY ((user, device), conversation)) \
         WITH compaction = {'class': 'LeveledCompactionStrategy'}",
        "CREATE TABLE IF NOT EXISTS read_marks (user text, conversation text, seq bigint, ordinal bigint, \
         PRIMARY KEY (user, conversation)) WITH compaction = {'class': 'LeveledCompactionStrategy'}",
        "CREATE TABLE IF NOT EXISTS settings (user text, conversation text, label text, muted boolean, \
         pinned boolean, PRIMARY KEY (user, conversation))",
        "CREATE TABLE IF NOT EXISTS hidden (user text, conversation text, up_to bigint static, seq bigint, \
         PRIMARY KEY ((user, conversation), seq))",
        "CREATE TABLE IF NOT EXISTS groups (group_id text PRIMARY KEY, row blob)",
        "CREATE TABLE IF NOT EXISTS members (group_id text, part int, user text, row blob, \
         PRIMARY KEY ((group_id, part), user))",
        "CREATE TABLE IF NOT EXISTS join_requests (group_id text, user text, row blob, \
         PRIMARY KEY (group_id, user))",
        "CREATE TABLE IF NOT EXISTS group_creations (creator text, client_id uuid, group_id text, \
         PRIMARY KEY ((creator, client_id)))",
        "CREATE TABLE IF NOT EXISTS reaction_counts (conversation text, bucket bigint, seq bigint, kind text, \
         count bigint, PRIMARY KEY ((conversation, bucket), seq, kind))",
        "CREATE TABLE IF NOT EXISTS reaction_givers (conversation text, bucket bigint, seq bigint, kind text, \
         user text, given boolean, PRIMARY KEY ((conversation, bucket), seq, kind, user))",
        "CREATE TABLE IF NOT EXISTS retention (part int, conversation text, rule blob, \
         PRIMARY KEY (part, conversation))",
        "CREATE TABLE IF NOT EXISTS cluster (part int PRIMARY KEY, shards int)",
        "CREATE TABLE IF NOT EXISTS nodes (part int, incarnation uuid, node text, addresses text, beat bigint, \
         draining boolean, PRIMARY KEY (part, incarnation))",
        "CREATE TABLE IF NOT EXISTS fences (incarnation uuid PRIMARY KEY, fenced boolean)",
        "CREATE TABLE IF NOT EXISTS shards (shard int PRIMARY KEY, owner uuid, epoch bigint)",
    ],
}];

/// How a keyspace is created.
#[derive(Debug, Clone, Copy)]
pub struct KeyspaceOptions {
    /// Into how many shards the ids of the cluster are divided, for good: what a cluster has stays.
    pub shards: u32,
    /// On how many nodes of the data centre each row is.
    pub replication: u8,
    /// Says `tablets = {'enabled': false}`, which only ScyllaDB understands: for its versions without LWT on tablets.
    pub no_tablets: bool,
}

/// What `apply` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The version before; 0 for none.
    pub from: i32,
    /// The version now.
    pub to: i32,
}

/// Whether a text may be the name of a keyspace, unquoted: servers take 48 characters.
pub fn is_keyspace_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 48 && name.chars().all(plain)
}

async fn say(
    session: &Session,
    cql: impl Into<String>,
) -> Result<scylla::response::query_result::QueryResult, OpenError> {
    let mut statement = Statement::new(cql);
    statement.set_consistency(Consistency::LocalQuorum);
    statement.set_serial_consistency(Some(SerialConsistency::Serial));
    session.query_unpaged(statement, ()).await.map_err(OpenError::server)
}

/// The version of the schema in the keyspace that the session uses: 0 if there is none.
pub(super) async fn version(session: &Session, keyspace: &str) -> Result<i32, OpenError> {
    let there = format!(
        "SELECT table_name FROM system_schema.tables WHERE keyspace_name = '{keyspace}' AND table_name = 'schema_versions'"
    );
    let result = say(session, there).await?.into_rows_result().map_err(OpenError::server)?;
    if result.rows_num() == 0 {
        return Ok(0);
    }
    let rows = say(session, format!("SELECT version FROM {keyspace}.schema_versions WHERE part = 0")).await?;
    let rows = rows.into_rows_result().map_err(OpenError::server)?;
    let versions = rows.rows::<(i32,)>().map_err(OpenError::server)?;
    Ok(versions.filter_map(Result::ok).map(|(version,)| version).max().unwrap_or(0))
}

/// Makes the keyspace if it is missing, and brings its tables to [`SCHEMA_VERSION`]. May be repeated, and may run on
/// several machines at once. A keyspace that exists keeps its replication.
pub(super) async fn apply(
    session: &Session,
    keyspace: &str,
    options: KeyspaceOptions,
) -> Result<Applied, OpenError> {
    let tablets = if options.no_tablets { " AND tablets = {'enabled': false}" } else { "" };
    let replication = options.replication;
    say(
        session,
        format!(
            "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = \
             {{'class': 'NetworkTopologyStrategy', 'replication_factor': {replication}}}{tablets}"
        ),
    )
    .await?;
    patiently(|| bootstrap(session, keyspace)).await?;
    let me = Uuid::new_v4();
    lock(session, me).await?;
    let applied = patiently(|| migrate(session, keyspace, options.shards)).await;
    unlock(session, me).await;
    applied
}

/// Gives the lock back. Whether that succeeds changes nothing of what was applied: one that stays behind expires.
async fn unlock(session: &Session, me: Uuid) {
    let give_back = || say(session, format!("DELETE FROM schema_lock WHERE part = 0 IF holder = {me}"));
    if let Err(error) = patiently(give_back).await {
        tracing::warn!(%error, "the schema's lock is not given back: it expires within {LOCK_TTL_S} s");
    }
}

/// Tries again what may be repeated: a server may not have heard yet of what the one that was asked first made; it is told by
/// gossip, also after the others said that they agree.
async fn patiently<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, OpenError>
where
    F: Future<Output = Result<T, OpenError>>,
{
    let begun = Instant::now();
    loop {
        match attempt().await {
            Err(_) if begun.elapsed() < GOSSIP_PATIENCE => tokio::time::sleep(LOCK_POLL).await,
            done => return done,
        }
    }
}

async fn bootstrap(session: &Session, keyspace: &str) -> Result<(), OpenError> {
    session.await_schema_agreement().await.map_err(OpenError::server)?;
    session.use_keyspace(keyspace, false).await.map_err(OpenError::server)?;
    for (table, columns) in BOOTSTRAP {
        let id = table_id(keyspace, table);
        say(session, format!("CREATE TABLE IF NOT EXISTS {table} {columns} WITH id = {id}")).await?;
    }
    session.await_schema_agreement().await.map_err(OpenError::server).map(drop)
}

/// Waits until nobody else holds the lock. A statement of unknown outcome is decided by the next, which sees the holder.
async fn lock(session: &Session, me: Uuid) -> Result<(), OpenError> {
    let begun = Instant::now();
    let take = format!(
        "INSERT INTO schema_lock (part, holder) VALUES (0, {me}) IF NOT EXISTS USING TTL {LOCK_TTL_S}"
    );
    loop {
        let failed = match say(session, take.clone()).await {
            Ok(result) => {
                let rows = result.into_rows_result().map_err(OpenError::server)?;
                // The first column says whether it was applied; which others there are differs between servers.
                let row = rows.first_row::<scylla::value::Row>().map_err(OpenError::server)?;
                let applied = row.columns.first().cloned().flatten().and_then(|value| value.as_boolean());
                let holder = row.columns.iter().flatten().find_map(scylla::value::CqlValue::as_uuid);
                if applied == Some(true) || holder == Some(me) {
                    return Ok(());
                }
                None
            }
            Err(error) => Some(error),
        };
        if begun.elapsed() >= LOCK_PATIENCE {
            return Err(failed.unwrap_or(OpenError::SchemaLocked));
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

async fn migrate(session: &Session, keyspace: &str, shards: u32) -> Result<Applied, OpenError> {
    let from = version(session, keyspace).await?;
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > from) {
        for statement in migration.statements {
            say(session, *statement).await?;
        }
        session.await_schema_agreement().await.map_err(OpenError::server)?;
        let insert = format!("INSERT INTO schema_versions (part, version) VALUES (0, {})", migration.version);
        say(session, insert).await?;
    }
    say(session, format!("INSERT INTO cluster (part, shards) VALUES (0, {shards}) IF NOT EXISTS")).await?;
    Ok(Applied { from, to: from.max(SCHEMA_VERSION) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_migration_makes_the_version() {
        let versions: Vec<i32> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=SCHEMA_VERSION).collect::<Vec<_>>());
    }

    #[test]
    fn keyspaces_have_plain_names() {
        for (name, good) in
            [("convoke", true), ("c_1", true), ("", false), ("1c", false), ("a-b", false), ("Ab", false)]
        {
            assert_eq!(is_keyspace_name(name), good, "{name}");
        }
        assert!(!is_keyspace_name(&"a".repeat(49)));
    }
}
