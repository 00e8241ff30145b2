//! A node on CQL servers: what was acknowledged is there, whatever happens to the node, and of two nodes one commits.
//!
//! `CONVOKE_TEST_CQL=host:port` names a server; scripts/test starts one. Each test has a keyspace of its own.

use std::path::Path;
use std::process::Command;

use convoke_protocol::framing::Framing;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::client::conversation;
use crate::harness::command::{finished, run};
use crate::harness::http::metric;
use crate::harness::load::{Load, Running};
use crate::harness::proxy::Proxy;
use crate::harness::servers::Cluster;
use crate::harness::{Setup, TestClient, TestNode, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn nothing_acknowledged_is_lost_or_doubled_by_kill_9_on_servers() {
    let cluster = Cluster::with_schema().await;
    let mut node = cluster.node("one").start().await;
    let mut load = Load::of_pairs(3);
    load.outlives(&mut node, 6).await;
    node.stop().await;
    cluster.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_node_that_slept_answers_nothing_that_the_next_owner_does_not_have() {
    let cluster = Cluster::with_schema().await;
    let mut sleeper = cluster.node("sleeper").start().await;
    let mut load = Load::of_pairs(3);
    let running = load.start(&sleeper).await;
    running.acked(50).await;
    // It does not know that it sleeps: its clients' sends, its writes and its confirmations are all on their way.
    sleeper.signal(Signal::STOP);
    let next = cluster.node("next").start().await;
    let mut reader = TestClient::login(&next, Framing::Tcp, "left-0", "reader").await;
    let before = reader.pull_all(&conversation("left-0", "right-0")).await;
    assert!(!before.is_empty());
    sleeper.signal(Signal::CONT);
    eventually("it takes itself for dead", async || {
        sleeper.stderr().contains("this life of the node is over").then_some(())
    })
    .await;
    sleeper.kill().await;
    load.ended(running).await;

    // What it answered after it woke would be missing here, or be something else.
    load.forget_refusals();
    let mut next = next;
    let running = load.start(&next).await;
    running.acked(50).await;
    next.stop().await;
    load.ended(running).await;
    next.start_again().await;
    load.settle(&next).await;
    next.stop().await;
    cluster.check().await;
}

/// A server of its own, which a test may stop; killed at the end.
struct OwnServer(TempDir);

impl OwnServer {
    async fn start() -> (Self, String) {
        let home = tempfile::tempdir().unwrap();
        let mut command = script();
        command.arg("start").arg(home.path()).env("CONVOKE_CQL_QUICK_SCHEMA", "1");
        let server = Self(home);
        let address = run(command, Vec::new()).await.good().trim().to_owned();
        (server, address)
    }

    fn signal(&self, signal: Signal) {
        let pid = std::fs::read_to_string(self.0.path().join("1/pid")).unwrap();
        kill_process(Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), signal).unwrap();
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = script().arg("stop").arg(self.0.path()).status();
    }
}

/// The node has ended: what it acknowledged is there when it begins again.
async fn settled(mut load: Load, running: Running, mut node: TestNode, cluster: Cluster) {
    load.ended(running).await;
    load.forget_refusals();
    node.start_again().await;
    load.settle(&node).await;
    node.stop().await;
    cluster.check().await;
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cql-nodes"))
}

/// Nobody can write a beat, a row or a confirmation: the node takes itself for dead, and begins anew when it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts a CQL node by scripts/cql-nodes: Maven, Java 17"]
async fn servers_that_are_away_for_longer_than_a_lease_lose_nothing() {
    let (server, address) = OwnServer::start().await;
    let cluster = Cluster::on(address).made().await;
    // Who waits is told so before long, and tries again.
    let config = cluster.config("one").replace("answer_within_ms = 30000", "answer_within_ms = 2000");
    let mut node = Setup::config(&config.replace("deadline_ms = 20000", "deadline_ms = 5000")).start().await;
    let mut load = Load::of_pairs(2);
    let running = load.start(&node).await;
    running.acked(50).await;
    server.signal(Signal::STOP);
    eventually("it takes itself for dead", async || {
        node.stderr().contains("this life of the node is over").then_some(())
    })
    .await;
    server.signal(Signal::CONT);
    running.acked_again(50).await;
    assert!(metric(&node, "convoke_cluster_lives_over_total").await >= 1.0);
    node.kill().await;
    settled(load, running, node, cluster).await;
}

/// As when a firewall forgets a connection, or a host goes without a word: only that nothing is answered tells it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn connections_to_a_server_that_are_silently_dead_are_made_again() {
    let wire = Proxy::start().await;
    wire.leads_to(Cluster::new().server().parse().unwrap());
    let cluster = Cluster::on(wire.address.to_string()).made().await;
    let config = cluster.config("one").replace("deadline_ms = 20000", "deadline_ms = 4000");
    let mut node = Setup::config(&config).start().await;
    let mut load = Load::of_pairs(2);
    let running = load.start(&node).await;
    running.acked(50).await;
    wire.silence();
    running.acked_again(50).await;
    node.stop().await;
    settled(load, running, node, cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_conversation_that_sleeps_is_read_without_waking_it() {
    let cluster = Cluster::with_schema().await;
    let config =
        cluster.config("one").replace("[conversations]\n", "[conversations]\npassivate_after_ms = 1000\n");
    let mut node = Setup::config(&config).start().await;
    assert_eq!(metric(&node, "convoke_cluster_shards").await, 32.0);
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    for text in ["one", "two", "three"] {
        alice.say("bob", text).await;
    }
    eventually("it sleeps", async || {
        (metric(&node, "convoke_conversations_active").await == 0.0).then_some(())
    })
    .await;
    // Its end is known by the hint that was kept before it slept.
    let mut bob = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    assert_eq!(bob.pull_all(&conversation("alice", "bob")).await.len(), 3);
    assert_eq!(metric(&node, "convoke_conversations_active").await, 0.0);
    node.stop().await;
    cluster.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_node_refuses_what_it_cannot_serve() {
    let cluster = Cluster::new();
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let said = cluster.node("one").refused(&data).await.failed();
    assert!(said.contains("run `convoke schema apply` first"), "{said}");

    let cluster = Cluster::with_schema().await;
    let other_shards = cluster.config("one").replace("shards = 32", "shards = 64");
    let said = Setup::config(&other_shards).refused(&data).await.failed();
    assert!(said.contains("created with 32 shards"), "{said}");

    let node = cluster.node("one").start().await;
    // Under one name each would take the other for its own former life.
    let said = cluster.node("one").refused(&data).await.failed();
    assert!(said.contains("another process runs as node \"one\""), "{said}");
    migrating_is_refused(&cluster, &node).await;
}

/// A copy while a node runs would miss what it writes.
async fn migrating_is_refused(cluster: &Cluster, node: &TestNode) {
    let to = node.home().join("copy");
    let arguments = ["migrate", "--from", "scylla", "--to", to.to_str().unwrap(), "--cql", cluster.server()];
    let said = finished(arguments.into_iter().chain(["--keyspace", cluster.keyspace()])).await.failed();
    assert!(said.contains("is running"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_store_moves_to_servers_and_back_with_everything() {
    let cluster = Cluster::with_schema().await;
    let mut node = Setup::default().start().await;
    let mut load = Load::of_pairs(3);
    let running = load.start(&node).await;
    running.acked(200).await;
    node.stop().await;
    load.ended(running).await;

    let servers = ["--cql", cluster.server(), "--keyspace", cluster.keyspace()];
    let from = node.data().to_str().unwrap().to_owned();
    let said =
        finished(["migrate", "--from", &from, "--to", "scylla"].into_iter().chain(servers)).await.good();
    assert!(said.contains("copied and compared: 3 conversations"), "{said}");
    cluster.check().await;
    let again =
        finished(["migrate", "--from", &from, "--to", "scylla"].into_iter().chain(servers)).await.failed();
    assert!(again.contains("has used keyspace"), "{again}");

    // The clients go on where they were.
    let mut clustered = cluster.node("one").start().await;
    let running = load.start(&clustered).await;
    running.acked(200).await;
    clustered.stop().await;
    load.ended(running).await;
    cluster.check().await;

    let home = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let back = home.path().join("back");
    let to = back.to_str().unwrap();
    finished(["migrate", "--from", "scylla", "--to", to].into_iter().chain(servers)).await.good();
    finished(["check", "--data", to]).await.good();
    let mut last = Setup::default().start_in(home, back).await;
    let running = load.start(&last).await;
    running.acked(50).await;
    last.stop().await;
    load.ended(running).await;
    last.start_again().await;
    load.settle(&last).await;
}
