//! Against a real server: `CONVOKE_TEST_CQL=host:port` names it, and scripts/test starts one.

use std::sync::atomic::AtomicU32;

use convoke_protocol::id::{ConversationId, MessageId};
use convoke_protocol::message::Cursor;
use futures_util::future::{BoxFuture, FutureExt};
use scylla::client::session::Session;

use super::schema::KeyspaceOptions;
use super::*;
use crate::storage::conformance::{
    Fixture, append_of, conversation, device, row, rows as rows_of, store as append, user,
};
use crate::storage::{
    CursorStore, Epoch, Hint, LogRow, LogStart, MarkKey, MessageLog, ReadLimit, ReadMark, ReadMarkStore,
    Stores, WriteStamp,
};

mod checking;
mod copying;
mod three_nodes;

/// One copy of each row: the tests' server may be a single node.
const ALONE: KeyspaceOptions = KeyspaceOptions { shards: 16, replication: 1, no_tablets: false };

/// A keyspace of its own, dropped at the end.
pub(crate) struct OnServers {
    config: ScyllaConfig,
    store: Arc<ScyllaStore>,
}

/// Where the server is.
pub(crate) fn server() -> String {
    std::env::var("CONVOKE_TEST_CQL").expect("CONVOKE_TEST_CQL=host:port names a CQL server")
}

/// A name that no other test has.
fn keyspace() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn config() -> ScyllaConfig {
    // Servers of tests share their processors with a build.
    let deadline = Duration::from_secs(30);
    ScyllaConfig { nodes: vec![server()], keyspace: keyspace(), deadline, ..ScyllaConfig::default() }
}

async fn session(config: &ScyllaConfig) -> Session {
    connect(config, None).await.expect("connects")
}

impl OnServers {
    pub(crate) async fn new() -> Self {
        let config = config();
        apply_schema(&config, ALONE).await.expect("applied");
        let store = Arc::new(ScyllaStore::open(&config).await.expect("opens"));
        Self { config, store }
    }
}

impl Drop for OnServers {
    fn drop(&mut self) {
        let config = self.config.clone();
        // The test's own runtime may be blocked by its panic.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let drop = format!("DROP KEYSPACE IF EXISTS {}", config.keyspace);
                session(&config).await.query_unpaged(drop, ()).await.expect("dropped");
            });
        });
        if dropped.join().is_err() {
            eprintln!("the keyspace {} is still there", self.config.keyspace);
        }
    }
}

impl Fixture for OnServers {
    fn stores(&self) -> Stores {
        Stores::of(self.store.clone())
    }
    fn shutdown(&mut self) -> BoxFuture<'_, ()> {
        async { self.store.shutdown().await }.boxed()
    }
    fn reopen(&mut self) -> BoxFuture<'_, bool> {
        async {
            self.store.shutdown().await;
            self.store = Arc::new(ScyllaStore::open(&self.config).await.expect("opens"));
            true
        }
        .boxed()
    }
    fn has_one_owner(&self) -> bool {
        false
    }
}

crate::conformance_tests!(OnServers::new().await, ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port");

async fn read(store: &ScyllaStore, id: &ConversationId, from: u64, to: u64) -> Vec<u64> {
    let limit = ReadLimit::rows(usize::MAX);
    let up = store.read(id, Seq(from), Seq(to), limit).await.expect("readable");
    let mut down = store.read_back(id, Seq(from), Seq(to), limit).await.expect("readable");
    down.reverse();
    assert_eq!(up, down);
    up.iter().map(|row| row.seq.0).collect()
}

async fn put(store: &ScyllaStore, id: &ConversationId, rows: &[LogRow], stamp: u64) {
    assert_eq!(append(store, append_of(id, rows, stamp)).await, Ok(()));
}

#[tokio::test]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_write_that_arrives_late_changes_nothing() {
    let servers = OnServers::new().await;
    let (store, team) = (&servers.store, conversation("team"));
    let (owner, zombie) = (row(1, None, "owner"), row(1, None, "zombie"));
    put(store, &team, std::slice::from_ref(&owner), 2).await;
    put(store, &team, &[zombie], 1).await;
    let limit = ReadLimit::rows(9);
    assert_eq!(store.read(&team, Seq(1), Seq(9), limit).await, Ok(vec![owner.clone()]));
    // A trim hides what is written below it with a lower stamp, also later.
    let start = LogStart { seq: Seq(2), ordinal: 1 };
    assert_eq!(store.trim(&team, start, WriteStamp::new(Epoch(1), 3)).await, Ok(()));
    put(store, &team, &[owner], 2).await;
    assert_eq!(store.read(&team, Seq(1), Seq(9), limit).await, Ok(Vec::new()));
}

#[tokio::test]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn the_highest_stays_in_whatever_order_they_come() {
    let servers = OnServers::new().await;
    let (store, team) = (&servers.store, conversation("team"));
    let stamp = WriteStamp::new(Epoch(1), 0);
    let key = MarkKey { user: user("bob"), conversation: team.clone() };
    for base in [2, 5, 3] {
        let hint = Hint { base: Seq(base), id: MessageId(uuid::Uuid::from_u128(base.into())) };
        assert_eq!(store.put_hint(&team, hint, stamp).await, Ok(()));
        let mark = ReadMark { seq: Seq(base), ordinal: base };
        assert_eq!(store.put_marks(&[(key.clone(), mark)]).await, Ok(()));
    }
    let kept = Hint { base: Seq(5), id: MessageId(uuid::Uuid::from_u128(5)) };
    assert_eq!(store.hint(&team).await, Ok(Some(kept)));
    assert_eq!(store.marks(&[key]).await, Ok(vec![ReadMark { seq: Seq(5), ordinal: 5 }]));
}

#[tokio::test]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn cursors_that_many_devices_say_at_once_are_each_kept() {
    // More than one batch has, of devices and, with the last one, of cursors.
    const DEVICES: u64 = 37;
    let servers = OnServers::new().await;
    let store = &servers.store;
    let ids: Vec<_> = (0..150).map(|n| conversation(&format!("c{n:03}"))).collect();
    let said = |n: u64| -> Vec<Cursor> {
        let count = if n == DEVICES - 1 { ids.len() } else { 2 };
        ids.iter().take(count).map(|id| Cursor { conversation: id.clone(), seq: Seq(100 + n) }).collect()
    };
    let (ids, said) = (&ids, &said);
    let puts = (0..DEVICES).map(|n| async move {
        let (user, device) = (user(&format!("u{n}")), device("phone"));
        assert_eq!(store.put_cursors(&user, &device, &said(n)).await, Ok(()));
        assert_eq!(store.cursors(&user, &device, ids).await, Ok(said(n)));
    });
    futures_util::future::join_all(puts).await;
    assert_eq!(store.stats().cursors.load(Ordering::Relaxed), 2 * (DEVICES - 1) + 150);
}

#[tokio::test]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_log_goes_on_over_the_bounds_of_buckets() {
    let servers = OnServers::new().await;
    let (store, team) = (&servers.store, conversation("team"));
    let log = rows_of(1, 20_010, "x");
    for batch in log.chunks(997) {
        put(store, &team, batch, 0).await;
    }
    assert_eq!(read(store, &team, 1, u64::MAX).await, (1..=20_010).collect::<Vec<_>>());
    assert_eq!(read(store, &team, 9_998, 10_001).await, [9_998, 9_999, 10_000, 10_001]);
    assert_eq!(read(store, &team, 20_009, 40_000).await, [20_009, 20_010]);
    let last = store.read_back(&team, Seq(1), Seq(u64::MAX), ReadLimit::rows(1)).await.expect("readable");
    assert_eq!(last, log[20_009..]);
    let trim = |seq: u64| LogStart { seq: Seq(seq), ordinal: seq - 1 };
    for start in [9_999, 10_000, 19_999] {
        assert_eq!(store.trim(&team, trim(start), WriteStamp::new(Epoch(1), 1)).await, Ok(()));
        assert_eq!(read(store, &team, 1, u64::MAX).await, (start..=20_010).collect::<Vec<_>>());
    }
    // Nothing is left of what was trimmed.
    let all = "SELECT seq FROM messages ALLOW FILTERING";
    let session = session(&servers.config).await;
    session.use_keyspace(&servers.config.keyspace, false).await.expect("used");
    let kept = session.query_unpaged(all, ()).await.expect("read").into_rows_result().expect("rows");
    assert_eq!(kept.rows_num(), 12);
}

#[tokio::test]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn what_waits_is_bounded_and_a_large_append_is_written_in_parts() {
    let servers = OnServers::new().await;
    let config = ScyllaConfig { queue_bytes: 1 << 20, ..servers.config.clone() };
    let store = ScyllaStore::open(&config).await.expect("opens");
    // Ten of 300 KB: three batches, and more than the bound alone.
    let log = rows_of(1, 10, &"x".repeat(300_000));
    let (tell, told) = tokio::sync::oneshot::channel();
    store.append(append_of(&conversation("large"), &log, 0), Box::new(|result| drop(tell.send(result))));
    let refused = append(&store, append_of(&conversation("small"), &rows_of(1, 1, "x"), 0)).await;
    assert_eq!(refused, Err(crate::storage::AppendError::Overloaded));
    assert_eq!(told.await, Ok(Ok(())));
    assert_eq!(read(&store, &conversation("large"), 1, 10).await, (1..=10).collect::<Vec<_>>());
    put(&store, &conversation("small"), &rows_of(1, 1, "x"), 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn the_schema_is_applied_by_several_at_once_and_checked() {
    let config = config();
    let missing = ScyllaStore::open(&config).await.err().expect("no schema").to_string();
    assert!(missing.contains("version 0") && missing.contains("convoke schema apply"), "{missing}");
    let applying = (0..4).map(|_| {
        let config = config.clone();
        tokio::spawn(async move { apply_schema(&config, ALONE).await })
    });
    let applied: Vec<_> = futures_util::future::join_all(applying).await;
    let applied: Vec<Applied> =
        applied.into_iter().map(|applied| applied.expect("ended").expect("applied")).collect();
    assert_eq!(applied.iter().filter(|applied| applied.from == 0).count(), 1, "{applied:?}");
    let servers = OnServers { store: Arc::new(ScyllaStore::open(&config).await.expect("opens")), config };
    assert_eq!(schema_version(&servers.config).await.expect("read"), SCHEMA_VERSION);
    let later =
        format!("INSERT INTO {}.schema_versions (part, version) VALUES (0, 99)", servers.config.keyspace);
    session(&servers.config).await.query_unpaged(later, ()).await.expect("written");
    let refused = ScyllaStore::open(&servers.config).await.err().expect("refused").to_string();
    assert!(refused.contains("version 99") && refused.contains("upgrade"), "{refused}");
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_a_server_is_asked() {
    let no_nodes = ScyllaStore::open(&ScyllaConfig::default()).await.err();
    assert!(matches!(no_nodes, Some(OpenError::NoNodes)));
    let keyspace = "x; DROP".to_owned();
    let config = ScyllaConfig { nodes: vec!["127.0.0.1:1".into()], keyspace, ..ScyllaConfig::default() };
    assert!(matches!(ScyllaStore::open(&config).await.err(), Some(OpenError::BadKeyspace(_))));
}
