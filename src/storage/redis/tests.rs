//! Against a real Redis: the one that `CONVOKE_TEST_REDIS=host:port` names, each test with a prefix of its own, or one that
//! the test starts and may kill.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU32;

use tempfile::TempDir;

use super::*;
use crate::storage::conformance::{device, user};

const INCARNATION: Uuid = Uuid::from_u128(7);

/// How long something is waited for that has to happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn copy(session: u128) -> SessionCopy {
    SessionCopy {
        node: "node-1".into(),
        incarnation: INCARNATION,
        session: SessionId(Uuid::from_u128(session)),
        since: Timestamp(1_700_000_000_000),
    }
}

type Sessions = Arc<Mutex<Vec<(UserId, DeviceId, SessionCopy)>>>;

fn start(address: &str, sessions: &Sessions) -> RedisStore {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let config = RedisConfig {
        url: format!("redis://{address}/"),
        prefix: format!("t{}-{}:", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
        deadline: Duration::from_secs(5),
        max_waiting: 1_000,
        incarnation: INCARNATION,
    };
    let sessions = sessions.clone();
    RedisStore::start(config, Box::new(move || sessions.lock().clone())).expect("starts")
}

fn shared_server() -> String {
    std::env::var("CONVOKE_TEST_REDIS").expect("CONVOKE_TEST_REDIS=host:port names a Redis")
}

/// Waits until a condition holds.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A Redis of its own, killed at the end.
struct Server {
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    async fn start() -> Self {
        // A port that was free a moment ago.
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("named").port();
        let mut server = Self { dir: tempfile::tempdir().expect("a directory"), port, child: None };
        server.run().await;
        server
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    async fn run(&mut self) {
        let child = Command::new("redis-server")
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--dir")
            .arg(self.dir.path())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("redis-server starts: apt-get install redis-server"));
        let address = self.address();
        until("Redis accepts", || async { std::net::TcpStream::connect(&address).is_ok() }).await;
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn sessions_of(store: &RedisStore, name: &str) -> Vec<(DeviceId, SessionCopy)> {
    store.sessions(&user(name), |incarnation| incarnation == INCARNATION).await.expect("answered")
}

#[test]
fn an_entry_comes_back_and_others_are_refused() {
    assert_eq!(SessionCopy::from_entry(&copy(3).to_entry()), Some(copy(3)));
    for bad in ["", "a b c d", "node", &format!("{} x", copy(3).to_entry())] {
        assert_eq!(SessionCopy::from_entry(bad), None, "{bad}");
    }
}

#[tokio::test]
#[ignore = "needs a Redis: CONVOKE_TEST_REDIS=host:port"]
async fn sessions_come_and_go_and_dead_nodes_do_not_count() {
    let store = start(&shared_server(), &Sessions::default());
    store.put_session(user("alice"), device("phone"), copy(1));
    store.put_session(user("alice"), device("tablet"), copy(2));
    let dead = SessionCopy { incarnation: Uuid::from_u128(8), ..copy(3) };
    store.put_session(user("alice"), device("old"), dead);
    let expected = vec![(device("phone"), copy(1)), (device("tablet"), copy(2))];
    until("both are there", || async { sessions_of(&store, "alice").await == expected }).await;
    // The end of a session that was replaced takes nothing away.
    store.put_session(user("alice"), device("phone"), copy(4));
    until("it is replaced", || async { sessions_of(&store, "alice").await[0].1 == copy(4) }).await;
    store.drop_session(user("alice"), device("phone"), copy(1).session);
    store.drop_session(user("alice"), device("tablet"), copy(2).session);
    let expected = vec![(device("phone"), copy(4))];
    until("one is gone", || async { sessions_of(&store, "alice").await == expected }).await;
    assert_eq!(sessions_of(&store, "bob").await, []);
    store.shutdown().await;
}

#[tokio::test]
#[ignore = "needs a Redis: CONVOKE_TEST_REDIS=host:port"]
async fn what_was_last_seen_is_there_after_shutdown() {
    let store = start(&shared_server(), &Sessions::default());
    store.saw(user("alice"), Timestamp(5));
    store.saw(user("alice"), Timestamp(4));
    store.saw(user("bob"), Timestamp(6));
    store.shutdown().await;
    let seen = store.last_seen(&[user("bob"), user("carol"), user("alice")]).await;
    assert_eq!(seen, Ok(vec![Some(Timestamp(6)), None, Some(Timestamp(5))]));
    assert_eq!(store.last_seen(&[]).await, Ok(Vec::new()));
    assert_eq!(store.numbers().waiting, 0);
}

#[tokio::test]
#[ignore = "needs redis-server, which it starts and kills"]
async fn after_a_death_everything_is_written_again() {
    let mut server = Server::start().await;
    let sessions = Sessions::default();
    sessions.lock().push((user("alice"), device("phone"), copy(1)));
    let store = start(&server.address(), &sessions);
    until("it is written", || async { sessions_of(&store, "alice").await.len() == 1 }).await;
    server.kill();
    let begun = Instant::now();
    assert!(store.sessions(&user("alice"), |_| true).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(11), "a read waits for its deadline, and not for ever");
    // Nobody waits meanwhile.
    sessions.lock().push((user("bob"), device("phone"), copy(2)));
    store.put_session(user("bob"), device("phone"), copy(2));
    until("it is seen", || async { store.is_away() }).await;
    server.run().await;
    until("it is back", || async { !store.is_away() }).await;
    assert_eq!(sessions_of(&store, "alice").await, [(device("phone"), copy(1))]);
    assert_eq!(sessions_of(&store, "bob").await, [(device("phone"), copy(2))]);
    assert!(store.numbers().everything >= 2 && store.numbers().failed > 0);
    store.shutdown().await;
}

#[tokio::test]
#[ignore = "needs redis-server, which it starts and kills"]
async fn after_flushall_everything_is_written_again() {
    let server = Server::start().await;
    let sessions = Sessions::default();
    for n in 0..1_200 {
        sessions.lock().push((user(&format!("u{n}")), device("phone"), copy(n)));
    }
    let store = start(&server.address(), &sessions);
    until("all are written", || async { sessions_of(&store, "u1199").await.len() == 1 }).await;
    let written = store.numbers().everything;
    let mut manager = store.shared.connection.get();
    let () = redis::cmd("FLUSHALL").query_async(&mut manager).await.expect("emptied");
    until("all are written again", || async { store.numbers().everything > written }).await;
    for name in ["u0", "u600", "u1199"] {
        assert_eq!(sessions_of(&store, name).await.len(), 1, "{name}");
    }
    store.shutdown().await;
}

#[tokio::test]
#[ignore = "needs a Redis: CONVOKE_TEST_REDIS=host:port"]
async fn beyond_the_bound_nothing_grows_and_what_ended_is_gone() {
    let sessions = Sessions::default();
    sessions.lock().extend((0..1_200).map(|n| (user(&format!("u{n}")), device("phone"), copy(n))));
    let store = start(&shared_server(), &sessions);
    until("all are written", || async { sessions_of(&store, "u1199").await.len() == 1 }).await;
    let written = store.numbers().everything;
    // All but one end at once, without a pause in which something could be written.
    sessions.lock().truncate(1);
    for n in 1..1_200 {
        store.drop_session(user(&format!("u{n}")), device("phone"), copy(n).session);
    }
    assert!(store.numbers().waiting <= 1_000);
    until("everything is written", || async { store.numbers().everything > written }).await;
    store.shutdown().await;
    assert_eq!(store.numbers().waiting, 0);
    assert_eq!(sessions_of(&store, "u0").await.len(), 1);
    for n in 1..1_200 {
        assert_eq!(sessions_of(&store, &format!("u{n}")).await, [], "u{n}");
    }
}

#[tokio::test]
async fn a_redis_that_was_never_there_holds_nothing_up() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("named").port();
    let store = start(&format!("127.0.0.1:{port}"), &Sessions::default());
    store.put_session(user("alice"), device("phone"), copy(1));
    until("it is seen", || async { store.is_away() }).await;
    assert!(store.last_seen(&[user("alice")]).await.is_err());
    store.shutdown().await;
    assert!(
        RedisStore::start(
            RedisConfig {
                url: "nonsense".into(),
                prefix: String::new(),
                deadline: Duration::from_secs(1),
                max_waiting: 1,
                incarnation: INCARNATION,
            },
            Box::new(Vec::new),
        )
        .is_err()
    );
}
