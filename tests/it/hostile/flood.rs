//! Clients that ask too much, too fast, or read too little.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::frame::Answer;
use convoke_protocol::framing::Framing;
use convoke_protocol::message::Content;
use convoke_protocol::request::messages::Target;
use convoke_protocol::request::read_state::Signal;
use convoke_protocol::request::session::DeviceClass;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Bystanders, assert_unharmed};
use crate::harness::client::{End, login};
use crate::harness::group::user;
use crate::harness::http::metric;
use crate::harness::{Setup, TestClient, TestNode, eventually};

/// Tokens that are none: no form, another's signature, no signature at all.
fn bad_tokens(good: &str) -> Vec<String> {
    let (claims, signature) = good.rsplit_once('.').unwrap();
    let mut forged: Vec<u8> = signature.bytes().collect();
    forged[5] = if forged[5] == b'A' { b'B' } else { b'A' };
    vec![
        "x".into(),
        "a.b.c".into(),
        format!("{claims}.{}", String::from_utf8(forged).unwrap()),
        format!("{claims}."),
        "y".repeat(2_000),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_bad_tokens_delay_nobody() {
    let node = Arc::new(TestNode::start().await);
    let mut bystanders = Bystanders::come(&node).await;
    bystanders.talk(3).await;
    let before = node.memory("VmRSS");
    let tokens = Arc::new(bad_tokens(&node.token("quiet").await));
    let (over, tried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut flood = JoinSet::new();
    for n in 0..24_usize {
        let (node, tokens, over, tried) = (node.clone(), tokens.clone(), over.clone(), tried.clone());
        flood.spawn(async move {
            let mut at = n;
            while !over.load(Ordering::Relaxed) {
                let mut client = TestClient::connect(&node, Framing::ALL[at % 3]).await;
                client.greet().await;
                let token = tokens[at % tokens.len()].clone();
                refused!(client, login(token, "phone", DeviceClass::OTHER), BAD_TOKEN);
                client.end().await;
                tried.fetch_add(1, Ordering::Relaxed);
                at += 1;
            }
        });
    }
    while tried.load(Ordering::Relaxed) < 3_000 {
        bystanders.talk(1).await;
    }
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = flood.join_next().await {
        ended.unwrap();
    }
    let grown = node.memory("VmRSS").saturating_sub(before);
    assert!(grown < 20_000_000, "{grown}");
    let refused = metric(&node, "convoke_logins_refused_total{code=\"bad_token\"}").await;
    assert!(refused >= 3_000.0, "{refused}");
    // The log says so, and is not filled with it.
    let lines = node.stderr().matches("login refused").count();
    assert!((1..2_000).contains(&lines), "{lines}");
    bystanders.talk(1).await;
    assert_unharmed(&node);
}

#[tokio::test]
async fn a_flood_of_signals_is_cut_to_its_rate_and_leaves_nothing() {
    let node = TestNode::start().await;
    let mut bystanders = Bystanders::come(&node).await;
    let mut victim = TestClient::login(&node, Framing::ALL[2], "victim", "phone").await;
    let mut loud = TestClient::login(&node, Framing::Tcp, "loud", "phone").await;
    loud.say("victim", "hello").await;
    victim.push().await;
    victim.acknowledge().await;
    let before = node.memory("VmRSS");
    let (mut taken, mut limited) = (0, 0);
    for _ in 0..40 {
        let mut asked = Vec::new();
        for _ in 0..50 {
            let signal = Signal {
                target: Target::User(user("victim")),
                kind: "typing".into(),
                content: Content::text("on"),
            };
            asked.push(loud.post(signal).await);
        }
        for id in asked {
            match loud.answer(id).await {
                Answer::SignalTaken(_) => taken += 1,
                Answer::Error(error) if error.code == ErrorCode::RATE_LIMITED => limited += 1,
                other => panic!("{other:?}"),
            }
        }
        bystanders.talk(1).await;
    }
    assert!(taken > 0 && limited > 1_000, "taken {taken}, limited {limited}");
    let lines = node.stderr().matches("request failed").count();
    assert!((1..limited / 2).contains(&lines), "{lines} lines for {limited}");
    assert!(node.memory("VmRSS").saturating_sub(before) < 20_000_000);
    // The victim is told of those that were taken at most, and messages come through as before.
    loud.say("victim", "still here").await;
    let push = victim.next_push().await;
    assert_eq!(push.message.seq.0, 2);
    assert!(victim.take_events().len() <= taken);
    assert_unharmed(&node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_a_byte_a_second_stalls_nobody_and_is_let_go() {
    let node = Setup::config("[sessions]\nack_deadline_ms = 3000").start().await;
    let mut bystanders = Bystanders::come(&node).await;
    let mut writer = TestClient::login(&node, Framing::Tcp, "writer", "phone").await;
    // Logged in like any other; then its socket is read a byte at a time.
    let mut slow = TestClient::login(&node, Framing::Tcp, "slow", "phone").await;
    let before = node.memory("VmRSS");
    for n in 0..40 {
        writer.say("slow", &format!("{n}{}", "x".repeat(50_000))).await;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let closed = async || {
        ticks.tick().await;
        let _ = slow.wire().read_byte().await;
        bystanders.talk(1).await;
        let closed = metric(&node, "convoke_sessions_closed_total{reason=\"acks_overdue\"}").await;
        (closed >= 1.0).then_some(())
    };
    eventually("it is let go", closed).await;
    // 2 MB for it: what was queued is bounded, and gone with it.
    assert!(node.memory("VmRSS").saturating_sub(before) < 30_000_000);
    assert_unharmed(&node);
}

#[tokio::test]
async fn half_a_handshake_takes_nobodys_place() {
    let home = tempfile::tempdir().unwrap();
    let (node, _, connector) = crate::tls::secured_with(&home, "[sessions]\nlogin_deadline_ms = 1500").await;
    // The beginning of a ClientHello, byte by byte, and nothing at all: both in numbers.
    let mut hanging = Vec::new();
    for n in 0..200_usize {
        let mut stream = TcpStream::connect(node.addresses().tcp).await.unwrap();
        if n % 2 == 0 {
            tokio::io::AsyncWriteExt::write_all(&mut stream, &[0x16, 3, 1, 2]).await.unwrap();
        }
        hanging.push(stream);
    }
    let mut honest = crate::tls::connect(&node, Framing::Tcp, &connector).await;
    honest.log_in(node.token("alice").await, "phone").await;
    honest.say("bob", "nobody stands in the way").await;
    for mut stream in hanging {
        let mut said = Vec::new();
        let _ = crate::harness::in_time("it is cut off", stream.read_to_end(&mut said)).await;
    }
    let failed = async || (metric(&node, "convoke_handshakes_failed_total").await >= 200.0).then_some(());
    eventually("they are counted", failed).await;
    honest.say("bob", "and afterwards").await;
    assert_unharmed(&node);
}

#[tokio::test]
async fn a_token_that_is_replayed_after_a_logout_opens_a_new_session_and_no_old_one() {
    let node = TestNode::start().await;
    let token = node.token("alice").await;
    let mut first = TestClient::connect(&node, Framing::Tcp).await;
    let session = first.log_in(token.clone(), "phone").await.session;
    ask!(first, convoke_protocol::request::session::Logout {}, LoggedOut);
    assert!(!matches!(first.end().await, End::Kicked(_)));
    let mut other = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    other.say("alice", "meanwhile").await;
    let mut second = TestClient::connect(&node, Framing::ALL[2]).await;
    let again = second.log_in(token, "phone").await;
    assert_ne!(again.session, session, "a session ends with its logout");
    assert_eq!(again.user, user("alice"));
    // What was pushed to nobody is not pushed to it either: it is there to be read.
    let sent = other.say("alice", "now").await;
    assert_eq!(second.next_push().await.message.seq, sent.seq);
}
