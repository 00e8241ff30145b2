//! What breaks inside a running node: actors that panic, a store that is slow or fails, clocks that jump, a data directory
//! that is copied under it. Nothing acknowledged is lost, and whoever asked is answered.

use std::path::Path;

use convoke_protocol::error_code::{ErrorCode, Outcome};
use convoke_protocol::frame::Answer;
use convoke_protocol::framing::Framing;
use serde_json::{Value, json};

use crate::harness::client::conversation;
use crate::harness::http::{get, http, metric};
use crate::harness::load::Load;
use crate::harness::{Setup, TestClient, TestNode, eventually, finished, to_user};

async fn faulty(config: &str) -> TestNode {
    Setup::config(config).env("CONVOKE_TEST_FAULTS", "1").start().await
}

/// Asks for a fault; whether there was somebody to whom it happened.
async fn inject(node: &TestNode, fault: Value) -> bool {
    // Good whatever the clock says.
    let token = node.token_with("operator", &["--role", "service", "--ttl", "7d"]).await;
    let body = fault.to_string();
    let answer = http(node.addresses().admin, "POST /v1/fault", Some(&token), body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{fault}: {answer:?}");
    answer.body.trim() == "true"
}

/// Waits for so many more acknowledgements, whatever was refused meanwhile.
async fn acked_more(load: &Load, count: u64) {
    let before = load.acks();
    eventually("acks under load", async || (load.acks() >= before + count).then_some(())).await;
}

#[tokio::test]
async fn faults_are_for_tests_only() {
    let node = TestNode::start().await;
    let token = node.token_with("operator", &["--role", "service"]).await;
    let answer = http(node.addresses().admin, "POST /v1/fault", Some(&token), b"\"fail_commit\"").await;
    assert_eq!(answer.status, 404, "{answer:?}");
}

#[tokio::test]
async fn an_actor_that_panics_is_made_again_and_nothing_acknowledged_is_lost() {
    let mut node = faulty("").await;
    let mut load = Load::of_pairs(6);
    let running = load.start(&node).await;
    acked_more(&load, 50).await;
    let id = conversation("left-0", "right-0").to_string();
    let kinds = [
        ("conversation", json!({ "panic_conversation": id })),
        ("shard", json!({ "panic_shard": id })),
        ("directory", json!({ "panic_directory": "left-0" })),
        ("hub", json!({ "panic_hub": id })),
    ];
    for round in 1..=3 {
        for (kind, fault) in &kinds {
            eventually("somebody to panic", async || inject(&node, fault.clone()).await.then_some(())).await;
            let series = format!("convoke_actor_restarts_total{{kind=\"{kind}\"}}");
            let restarted = async || (metric(&node, &series).await >= f64::from(round)).then_some(());
            eventually(&series, restarted).await;
            // All others go on, and so does the conversation that it happened to.
            acked_more(&load, 60).await;
        }
    }
    // A session takes its connection with it, and only that; its client comes back.
    let mut phone = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut desk = TestClient::login(&node, Framing::ALL[2], "bob", "desk").await;
    assert!(inject(&node, json!({ "panic_sessions": "alice" })).await);
    phone.end().await;
    let restarts =
        async || (metric(&node, "convoke_actor_restarts_total{kind=\"session\"}").await >= 1.0).then_some(());
    eventually("the session's crash is counted", restarts).await;
    let mut phone = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let sent = desk.say("alice", "still there?").await;
    assert_eq!(phone.push().await.message.seq, sent.seq);

    node.kill().await;
    load.ended(running).await;
    node.start_again().await;
    load.settle(&node).await;
    node.stop().await.good();
    node.check().await;
}

#[tokio::test]
async fn after_a_panic_pushes_come_to_those_who_were_there() {
    let node = faulty("").await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut bob = TestClient::login(&node, Framing::ALL[1], "bob", "phone").await;
    alice.say("bob", "before").await;
    bob.push().await;
    let id = conversation("alice", "bob").to_string();
    for fault in [
        json!({ "panic_hub": id }),
        json!({ "panic_directory": "bob" }),
        json!({ "panic_directory": "alice" }),
        json!({ "panic_conversation": id }),
        json!({ "panic_shard": id }),
    ] {
        let restarts = async || {
            let text = get(&node, "/metrics").await.body;
            let all = text.lines().filter(|line| line.starts_with("convoke_actor_restarts_total{"));
            all.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
        };
        let before = restarts().await;
        assert!(inject(&node, fault.clone()).await, "{fault}");
        eventually("it is made again", async || (restarts().await > before).then_some(())).await;
        // The head is known and grows; whatever was not pushed is told of as a lag.
        let sent =
            eventually("a send is taken", async || match alice.request(to_user("bob", "after")).await {
                Answer::Sent(sent) => Some(sent),
                Answer::Error(error) => {
                    assert!(error.retry_after_ms.is_some(), "{fault}: {error}");
                    None
                }
                other => panic!("{other:?}"),
            })
            .await;
        let messages = bob.pull_all(&sent.conversation).await;
        assert_eq!(messages.last().map(|message| message.seq), Some(sent.seq), "{fault}");
        let sent = alice.say("bob", "do you hear me?").await;
        while bob.next_push().await.message.seq < sent.seq {}
        bob.acknowledge().await;
    }
}

#[tokio::test]
async fn a_slow_store_delays_answers_and_loses_none() {
    let mut node = faulty("").await;
    let mut load = Load::of_pairs(4);
    let running = load.start(&node).await;
    acked_more(&load, 50).await;
    assert!(inject(&node, json!({ "delay_commits": 150 })).await);
    acked_more(&load, 40).await;
    // Who does not write is not slowed down.
    let begin = std::time::Instant::now();
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    assert!(alice.pull_all(&conversation("alice", "bob")).await.is_empty());
    let quick = begin.elapsed();
    assert!(inject(&node, json!({ "delay_commits": 0 })).await);
    acked_more(&load, 200).await;
    assert!(quick < std::time::Duration::from_secs(3), "a login and a read took {quick:?}");
    node.kill().await;
    load.ended(running).await;
    node.start_again().await;
    load.settle(&node).await;
}

#[tokio::test]
async fn a_commit_whose_outcome_is_unknown_is_settled_by_the_retry() {
    for (fault, stored) in [("fail_commit", false), ("lose_commit_answer", true)] {
        let mut node = faulty("").await;
        let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
        alice.say("bob", "one").await;
        assert!(inject(&node, json!(fault)).await);
        let send = to_user("bob", "two");
        let Answer::Error(error) = alice.request(send.clone()).await else { panic!("the store failed") };
        assert_eq!(error.outcome, Outcome::UNKNOWN, "{fault}: {error}");
        // For good: it takes no more, says so, and reads go on.
        let refused = eventually("the store is closed for writes", async || {
            let Answer::Error(error) = alice.request(to_user("bob", "three")).await else {
                panic!("it is poisoned")
            };
            (error.code == ErrorCode::UNAVAILABLE).then_some(error)
        })
        .await;
        assert!(refused.retry_after_ms.is_some());
        assert_eq!(get(&node, "/readyz").await.status, 503);
        assert!(!alice.pull_all(&conversation("alice", "bob")).await.is_empty());
        node.kill().await;
        node.start_again().await;
        let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
        let before = alice.pull_all(&conversation("alice", "bob")).await.len();
        assert_eq!(before, 1 + usize::from(stored), "{fault}");
        let mut again = send;
        again.retry.attempt = 2;
        again.retry.age_ms = 1_000;
        let Answer::Sent(sent) = alice.request(again).await else { panic!("the retry is taken") };
        assert_eq!(sent.seq.0, 2, "{fault}");
        assert_eq!(alice.pull_all(&conversation("alice", "bob")).await.len(), 2, "once, {fault}");
    }
}

#[tokio::test]
async fn a_wall_clock_that_jumps_changes_no_order_and_ends_no_session() {
    let node = faulty("").await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut bob = TestClient::login(&node, Framing::ALL[2], "bob", "phone").await;
    const HOUR: i64 = 3_600_000;
    let mut sent = Vec::new();
    for step in [0, 2 * HOUR, -HOUR, 24 * HOUR, -25 * HOUR] {
        assert!(inject(&node, json!({ "step_clock": step })).await);
        let send = to_user("bob", "tick");
        let Answer::Sent(first) = alice.request(send.clone()).await else { panic!("sent") };
        // A retry is known again: the window is measured by the other clock.
        let mut again = send;
        again.retry.attempt = 2;
        again.retry.age_ms = 10;
        let Answer::Sent(second) = alice.request(again).await else { panic!("sent") };
        assert_eq!(first, second);
        let push = bob.push().await;
        assert_eq!((push.message.seq, push.message.time), (first.seq, first.time));
        bob.acknowledge().await;
        sent.push(first);
    }
    assert!(sent.windows(2).all(|two| two[0].seq.0 + 1 == two[1].seq.0), "{sent:?}");
    // Times within a conversation never fall, whatever the clock does.
    assert!(sent.windows(2).all(|two| two[0].time <= two[1].time), "{sent:?}");
    assert_eq!(metric(&node, "convoke_sessions").await, 2.0);
}

fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_all(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_of_the_directory_of_a_running_node_is_good_or_says_that_it_is_not() {
    // Small memtables: files come and go while it is copied.
    let mut node = Setup::config("[storage]\nmemtable_bytes = 1048576").start().await;
    let mut load = Load::of_pairs(6);
    let running = load.start(&node).await;
    running.acked(300).await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut good = 0;
    for round in 0..6_u64 {
        running.acked(100).await;
        let said = alice.say("bob", &format!("before copy {round}")).await;
        let copy = node.home().join(format!("copy-{round}"));
        // A file that goes while it is copied makes no copy.
        if copy_all(node.data(), &copy).is_err() {
            continue;
        }
        let _ = std::fs::remove_file(copy.join("store.lock"));
        let _ = std::fs::remove_file(copy.join("node.json"));
        let checked = finished(["check", "--data", copy.to_str().unwrap()]).await;
        if checked.code != Some(0) {
            assert!(!checked.stderr.contains("panicked"), "{checked:?}");
            assert!(!checked.stderr.is_empty() || !checked.stdout.is_empty(), "it says why: {checked:?}");
            continue;
        }
        // What passes the check has everything that was acknowledged before the copy was begun.
        good += 1;
        let home = std::sync::Arc::new(tempfile::tempdir().unwrap());
        let twin = Setup::default().start_in(home, copy).await;
        let mut reader = TestClient::login(&twin, Framing::Tcp, "alice", "reader").await;
        let messages = reader.pull_all(&conversation("alice", "bob")).await;
        assert!(messages.iter().any(|message| message.seq == said.seq), "round {round}: {}", messages.len());
    }
    eprintln!("{good} of 6 copies were good");
    node.kill().await;
    load.ended(running).await;
    node.start_again().await;
    load.settle(&node).await;
}
