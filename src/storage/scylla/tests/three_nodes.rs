//! What only several servers show: claims whose outcome is unknown and that were applied, and a server that is killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use futures_util::future::join_all;
use parking_lot::Mutex;
use rustix::process::Signal;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::cluster::claim::{Decision, ShardClaim, ShardRow, Todo};
use crate::cluster::membership::Incarnation;
use crate::cluster::shard_map::ShardId;
use crate::cluster::store::OwnershipStore as _;

/// Rivals for one shard: with as many, the servers answer some claims with a timeout.
const RIVALS: usize = 8;
/// How long a rival waits that found the shard taken.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
/// How often each rival owned a shard in the end.
const TURNS: usize = 12;

/// Three servers, killed at the end.
struct Servers {
    dir: TempDir,
    config: ScyllaConfig,
}

fn script(command: &str, dir: &Path, nodes: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cql-nodes");
    let output = Command::new(script).arg(command).arg(dir).args(nodes).output().expect("the script runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

impl Servers {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().to_owned();
        let address =
            tokio::task::spawn_blocking(move || script("start", &path, &["3"])).await.expect("started");
        let config = ScyllaConfig {
            nodes: vec![address],
            keyspace: "convoke".into(),
            deadline: Duration::from_secs(30),
            ..ScyllaConfig::default()
        };
        let servers = Self { dir, config };
        let options = KeyspaceOptions { replication: 3, ..ALONE };
        // From several at once, as nodes of a new cluster would.
        let applied = join_all((0..3).map(|_| apply_schema(&servers.config, options))).await;
        assert!(applied.iter().all(Result::is_ok), "{applied:?}");
        servers
    }

    fn signal(&self, node: u32, signal: Signal) {
        let pid = std::fs::read_to_string(self.dir.path().join(format!("{node}/pid"))).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("a number")).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("there");
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        script("stop", self.dir.path(), &[]);
    }
}

/// What happened to the claims.
#[derive(Default)]
struct Seen {
    decisions: BTreeMap<&'static str, usize>,
    /// Who served the shard in each epoch.
    served: BTreeMap<u64, Incarnation>,
    unknown_applied: usize,
}

/// One rival by the core's rules: it claims the shard when it is free, serves it, and gives it back, many times.
async fn rival(
    config: ScyllaConfig,
    me: Incarnation,
    shard: ShardId,
    seen: Arc<Mutex<Seen>>,
    serving: Arc<AtomicBool>,
) {
    let store = ScyllaStore::open(&config).await.expect("opens");
    let mut claim = ShardClaim::new(me);
    let (mut turns, mut unknown) = (0, None::<ShardRow>);
    while turns < TURNS || !claim.is_given_back() {
        let wanted = turns < TURNS && claim.open().is_none();
        let Some(todo) = claim.next(wanted, |_| false) else {
            // Another has it: look again.
            claim.doubt();
            tokio::time::sleep(BETWEEN_LOOKS).await;
            continue;
        };
        match todo {
            Todo::Read => {
                let row = store.read_shard(shard).await.ok();
                if let (Some(row), Some(then)) = (row, unknown)
                    && row == then
                {
                    seen.lock().unknown_applied += 1;
                    unknown = None;
                }
                claim.read(row);
            }
            Todo::Decide { expected, then } => {
                let decision = store.decide(shard, expected, then).await;
                unknown = (decision == Decision::Unknown).then_some(then);
                let name = match decision {
                    Decision::Applied => "applied",
                    Decision::NotApplied => "not applied",
                    Decision::Unknown => "unknown",
                };
                *seen.lock().decisions.entry(name).or_default() += 1;
                claim.decided(decision);
            }
            Todo::Start(epoch) => {
                assert!(
                    !serving.swap(true, Ordering::SeqCst),
                    "two serve the shard, one in epoch {}",
                    epoch.0
                );
                let before = seen.lock().served.insert(epoch.0, me);
                assert_eq!(before, None, "epoch {} was served twice", epoch.0);
                tokio::task::yield_now().await;
                turns += 1;
            }
            Todo::Close(_) => {
                serving.store(false, Ordering::SeqCst);
                claim.closed();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts three CQL nodes by scripts/cql-nodes: Maven, Java 17 and 2 GB of memory"]
async fn rivals_for_a_shard_agree_whatever_the_servers_answer_and_a_silent_or_killed_server_loses_nothing() {
    let servers = Servers::start().await;
    contended_claims(&servers).await;
    a_silent_server(&servers).await;
    a_killed_server(&servers).await;
}

async fn contended_claims(servers: &Servers) {
    let shard = ShardId(7);
    let (seen, serving) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
    let rivals = (1..=RIVALS).map(|n| {
        let me = Incarnation(Uuid::from_u128(n as u128));
        tokio::spawn(rival(servers.config.clone(), me, shard, seen.clone(), serving.clone()))
    });
    for ended in join_all(rivals).await {
        ended.expect("no rival saw a broken promise");
    }
    let seen = std::mem::take(&mut *seen.lock());
    let served = &seen.served;
    eprintln!("{:?}, of the unknown {} were applied", seen.decisions, seen.unknown_applied);
    assert_eq!(served.len(), RIVALS * TURNS);
    // Without these the test shows nothing: they are what it is for.
    assert!(seen.decisions.get("unknown").is_some_and(|unknown| *unknown > 0), "{:?}", seen.decisions);
    assert!(seen.unknown_applied > 0, "{:?}", seen.decisions);
    // Every one of them agrees on the end.
    for _ in 0..3 {
        let store = ScyllaStore::open(&servers.config).await.expect("opens");
        let row = store.read_shard(shard).await.expect("read");
        assert_eq!(row.owner, None);
        assert!(served.last_key_value().is_some_and(|(last, _)| *last <= row.epoch.0));
    }
}

/// A server that is stopped and keeps its connections: who asks it asks another one long before its time is up. As many appends as
/// these ask it several times, and each would wait that long.
async fn a_silent_server(servers: &Servers) {
    const APPENDS: u64 = 50;
    let store = ScyllaStore::open(&servers.config).await.expect("opens");
    let id = conversation("silent");
    servers.signal(3, Signal::STOP);
    let all = async {
        for one in rows_of(1, APPENDS, "kept") {
            let seq = one.seq;
            assert_eq!(append(&store, append_of(&id, &[one], seq.0)).await, Ok(()), "{seq}");
        }
        assert_eq!(read(&store, &id, 1, u64::MAX).await, (1..=APPENDS).collect::<Vec<_>>());
    };
    let done = tokio::time::timeout(servers.config.deadline / ATTEMPTS, all).await;
    servers.signal(3, Signal::CONT);
    assert!(done.is_ok(), "the appends waited for the server that is silent");
    assert!(store.stats().asked_twice.load(Ordering::Relaxed) > 0, "nothing was asked twice");
}

/// Appends go on while a server is killed: what was answered is there, and nothing was refused.
async fn a_killed_server(servers: &Servers) {
    const CONVERSATIONS: usize = 20;
    const APPENDS: u64 = 100;
    let store = Arc::new(ScyllaStore::open(&servers.config).await.expect("opens"));
    let (halfway, mut reached) = tokio::sync::mpsc::channel(CONVERSATIONS);
    let writers = (0..CONVERSATIONS).map(|n| {
        let (store, halfway) = (store.clone(), halfway.clone());
        tokio::spawn(async move {
            let id = conversation(&format!("killed-{n}"));
            for one in rows_of(1, APPENDS, "kept") {
                if one.seq.0 == APPENDS / 2 {
                    halfway.send(()).await.expect("awaited");
                }
                let seq = one.seq;
                assert_eq!(append(&*store, append_of(&id, &[one], seq.0)).await, Ok(()), "{seq} of {id}");
            }
            id
        })
    });
    let writers: Vec<_> = writers.collect();
    reached.recv().await.expect("a writer is halfway");
    servers.signal(3, Signal::KILL);
    for writer in writers {
        let id = writer.await.expect("every append was stored");
        assert_eq!(read(&store, &id, 1, u64::MAX).await, (1..=APPENDS).collect::<Vec<_>>());
    }
}
