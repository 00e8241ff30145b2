//! Clients that do not read what they are sent.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use convoke_protocol::frame::{Answer, Event};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::Seq;
use convoke_protocol::request::messages::{Pull, PullRange};
use convoke_protocol::request::session::Heartbeat;

use super::{Bystanders, assert_unharmed};
use crate::harness::client::conversation;
use crate::harness::http::metric;
use crate::harness::{Setup, TestClient, TestNode, eventually, to_user};

/// A store that keeps little in memory, so that what sessions hold shows.
const LEAN: &str = "[storage]\nmemtable_bytes = 1048576\ncache_bytes = 1048576\n\
                    [sessions]\nack_deadline_ms = 600000";

const BODY: usize = 100_000;

/// So much that no buffer of a kernel holds it.
const MESSAGES: u64 = 250;

/// How much a node may grow by what it does anyway (the allocator keeps some of what passed through): unbounded queues for
/// the three of them would take 75 MB.
const GROWTH: u64 = 40_000_000;

fn body(n: u64) -> String {
    format!("{n}{}", "x".repeat(BODY))
}

/// Lets the node come to the size that it has when it works.
async fn warmed(node: &TestNode) -> u64 {
    let mut client = TestClient::login(node, Framing::Tcp, "warm", "phone").await;
    for n in 0..60 {
        client.say("up", &body(n)).await;
    }
    client.pull_all(&conversation("warm", "up")).await;
    node.memory("VmRSS")
}

/// Reads what was missed, with what is still on its way; all of it must be there.
async fn read_again(mut client: TestClient, framing: Framing) {
    let mut had = BTreeSet::new();
    let head = loop {
        match client.event().await {
            Event::Push(push) => {
                assert_eq!(push.message.seq.0, had.len() as u64 + 1, "{}", framing.name());
                had.insert(push.message.seq.0);
            }
            Event::Lagged(lagged) => break lagged.head,
            other => panic!("{other:?}"),
        }
    };
    assert!(had.len() < MESSAGES as usize / 2, "{} of them were kept for {}", had.len(), framing.name());
    assert_eq!(head, Seq(MESSAGES), "{}", framing.name());
    let mut from = Seq(had.len() as u64 + 1);
    while from <= head {
        let range = PullRange { conversation: conversation("alice", "bob"), from, to: head };
        let page = ask!(client, Pull { ranges: vec![range] }, Pulled).pages.pop().unwrap();
        for message in &page.messages {
            assert_eq!(message.content.as_text(), Some(body(message.seq.0).as_str()));
            assert!(had.insert(message.seq.0));
        }
        from = page.next.unwrap_or(head.next());
    }
    assert_eq!(had, (1..=MESSAGES).collect());
    client.acknowledge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_told_what_to_fetch_and_stalls_nobody() {
    let node = Setup::config(LEAN).start().await;
    let before = warmed(&node).await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut reading = TestClient::login(&node, Framing::ALL[1], "bob", "reading").await;
    let mut stalled = Vec::new();
    for framing in Framing::ALL {
        stalled.push(TestClient::login(&node, framing, "bob", framing.name()).await);
    }
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    for n in 1..=MESSAGES {
        let begin = Instant::now();
        let sent = alice.say("bob", &body(n)).await;
        assert_eq!(reading.push().await.message.seq, sent.seq);
        slowest = slowest.max(begin.elapsed());
        reading.acknowledge().await;
        if n % 10 == 0 {
            largest = largest.max(node.memory("VmRSS"));
        }
    }
    let grown = largest.saturating_sub(before);
    eprintln!("the slowest of those who read waited {slowest:?}; the node grew by {grown} bytes");
    assert!(slowest < Bystanders::PATIENCE, "{slowest:?}");
    assert!(grown < GROWTH, "{grown}");
    assert!(metric(&node, "convoke_pushes_total{outcome=\"lagged\"}").await > 3.0);
    for (client, framing) in stalled.into_iter().zip(Framing::ALL) {
        read_again(client, framing).await;
    }
    assert_unharmed(&node);
}

#[tokio::test]
async fn after_a_lag_pushes_come_again() {
    let node = Setup::config(LEAN).start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut bob = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    let mut said = 0;
    let lagged = "convoke_pushes_total{outcome=\"lagged\"}";
    while metric(&node, lagged).await == 0.0 {
        alice.say("bob", &body(said)).await;
        said += 1;
    }
    // What another says now comes whole or is left out as well: as the kernel's buffers have it.
    TestClient::login(&node, Framing::Tcp, "carol", "phone").await.say("bob", &body(0)).await;
    let (mut hers, mut carols) = (None, None);
    while hers.is_none() || carols.is_none() {
        match bob.event().await {
            Event::Lagged(lagged) if lagged.conversation == conversation("alice", "bob") => {
                assert_eq!((hers.replace(lagged.head), lagged.shed), (None, 0));
            }
            Event::Lagged(lagged) => assert_eq!(carols.replace(lagged.head), None),
            Event::Push(push) if push.message.sender.as_str() == "carol" => carols = Some(push.message.seq),
            Event::Push(_) => assert_eq!(hers, None, "what was left out came after all"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((hers, carols), (Some(Seq(said)), Some(Seq(1))));
    let sent = alice.say("bob", "are you there?").await;
    assert_eq!(bob.push().await.message.seq, sent.seq);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_and_does_not_read_the_answers_is_not_listened_to() {
    const ASKED: usize = 400;
    let node = Setup::config(LEAN).start().await;
    let mut bystanders = Bystanders::come(&node).await;
    let before = warmed(&node).await;
    for framing in Framing::ALL {
        let mut client = TestClient::login(&node, framing, "warm", framing.name()).await;
        let range = PullRange { conversation: conversation("warm", "up"), from: Seq(1), to: Seq(1) };
        let mut posted = Vec::new();
        for _ in 0..ASKED {
            posted.push(client.post(Pull { ranges: vec![range.clone()] }).await);
        }
        bystanders.talk(3).await;
        let grown = node.memory("VmRSS").saturating_sub(before);
        assert!(grown < GROWTH, "{grown}");
        // Read at last, each has its one answer.
        for id in posted {
            let Answer::Pulled(pulled) = client.answer(id).await else { panic!("a pull failed") };
            assert_eq!(pulled.pages[0].messages.len(), 1);
        }
        ask!(client, Heartbeat {}, HeartbeatAnswer);
    }
    assert_unharmed(&node);
}

#[tokio::test]
async fn more_requests_than_allowed_in_flight_wait_in_the_socket() {
    const SENDS: usize = 500;
    let node = Setup::config("[limits]\nmax_in_flight = 4").start().await;
    for framing in Framing::ALL {
        let mut client = TestClient::login(&node, framing, "alice", framing.name()).await;
        let mut posted = Vec::new();
        for n in 0..SENDS {
            posted.push(client.post(to_user(&format!("bob-{}", framing.name()), &format!("{n}"))).await);
        }
        for (n, id) in posted.into_iter().enumerate() {
            let Answer::Sent(sent) = client.answer(id).await else { panic!("a send failed") };
            assert_eq!(sent.seq.0, n as u64 + 1);
        }
    }
    eventually("reading was paused", async || {
        (metric(&node, "convoke_reads_paused_total").await > 0.0).then_some(())
    })
    .await;
}
