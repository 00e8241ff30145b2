//! Redis as the directory's copy: there for others, needed by nobody.

use std::process::Command;

use convoke_protocol::framing::Framing;

use crate::harness::http::metric;
use crate::harness::proxy::Proxy;
use crate::harness::{Setup, TestClient, eventually};

fn config(url: &str, prefix: &str) -> Setup {
    Setup::config(&format!("[node]\nid = \"n1\"\n[redis]\nurl = \"redis://{url}/\"\nprefix = \"{prefix}\"\n"))
}

/// What Redis says.
fn ask(server: &str, command: &[&str]) -> String {
    let (host, port) = server.rsplit_once(':').unwrap();
    let output = Command::new("redis-cli").args(["-h", host, "-p", port]).args(command).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
#[ignore = "needs a Redis: CONVOKE_TEST_REDIS=host:port"]
async fn others_see_who_is_online() {
    let server = std::env::var("CONVOKE_TEST_REDIS").expect("CONVOKE_TEST_REDIS=host:port names a Redis");
    let prefix = format!("it{}:", std::process::id());
    let mut node = config(&server, &prefix).start().await;
    let alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let _tablet = TestClient::login(&node, Framing::Tcp, "alice", "tablet").await;
    let key = format!("{prefix}sessions:alice");
    let devices = async |expected: &str| {
        eventually(expected, async || {
            // In which order two were written is nobody's business.
            let keys = ask(&server, &["HKEYS", &key]);
            let mut keys: Vec<&str> = keys.split_whitespace().collect();
            keys.sort_unstable();
            (keys.join(" ") == expected).then_some(())
        })
        .await;
    };
    devices("phone tablet").await;
    assert!(ask(&server, &["HGET", &key, "phone"]).starts_with("n1 "));
    drop(alice);
    devices("tablet").await;
    let seen: u64 = ask(&server, &["GET", &format!("{prefix}seen:alice")]).trim().parse().unwrap();
    assert!(seen > 1_700_000_000_000, "{seen}");
    // A stop in order leaves nobody online.
    node.stop().await;
    assert_eq!(ask(&server, &["HKEYS", &key]).trim(), "");
}

/// As when a firewall forgets the connection: only that nothing is answered tells it.
#[tokio::test]
#[ignore = "needs a Redis: CONVOKE_TEST_REDIS=host:port"]
async fn a_connection_that_is_silently_dead_is_made_again() {
    let server = std::env::var("CONVOKE_TEST_REDIS").expect("CONVOKE_TEST_REDIS=host:port names a Redis");
    let wire = Proxy::start().await;
    wire.leads_to(server.parse().unwrap());
    let prefix = format!("silent{}:", std::process::id());
    let mut node = config(&wire.address.to_string(), &prefix).start().await;
    let is_shown = async |user: &str| {
        let key = format!("{prefix}sessions:{user}");
        eventually(user, async || (ask(&server, &["HKEYS", &key]).trim() == "phone").then_some(())).await;
    };
    let _alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    is_shown("alice").await;
    wire.silence();
    let _bob = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    is_shown("bob").await;
    node.stop().await;
}

#[tokio::test]
async fn without_redis_everything_goes_on() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut node = config(&free.to_string(), "x:").start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    eventually("it is seen to be away", async || {
        (metric(&node, "convoke_redis_away").await > 0.0).then_some(())
    })
    .await;
    alice.say("bob", "hello").await;
    let replaced = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    drop(replaced);
    node.stop().await;
}
