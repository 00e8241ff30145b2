//! One send, one message, however often it is repeated.

use convoke_protocol::error_code::{ErrorCode, Outcome};
use convoke_protocol::frame::Answer;
use convoke_protocol::framing::Framing;
use convoke_protocol::id::Seq;
use convoke_protocol::request::Retry;
use convoke_protocol::request::messages::Send;

use crate::harness::client::conversation;
use crate::harness::{TestClient, TestNode, to_user};

/// The same send once more.
fn again(send: &Send, age_ms: u64) -> Send {
    let Retry { client_id, attempt, .. } = send.retry;
    Send { retry: Retry { client_id, attempt: attempt + 1, age_ms }, ..send.clone() }
}

#[tokio::test]
async fn a_retry_is_answered_as_the_first_attempt() {
    let node = TestNode::start().await;
    for framing in Framing::ALL {
        let name = framing.name();
        let (alice, bob) = (format!("alice-{name}"), format!("bob-{name}"));
        let mut client = TestClient::login(&node, framing, &alice, "phone").await;
        let mut reader = TestClient::login(&node, Framing::Tcp, &bob, "phone").await;
        let send = to_user(&bob, "once");
        let first = ask!(client, send.clone(), Sent);
        for age_ms in [5, 100_000, 10_000_000] {
            assert_eq!(ask!(client, again(&send, age_ms), Sent), first, "{name}, {age_ms} ms");
        }
        // A first attempt that claims to be one, though it is not.
        assert_eq!(ask!(client, send, Sent), first);
        let next = client.say(&bob, "twice").await;
        assert_eq!(next.seq, Seq(2));
        let pushed = [reader.push().await, reader.push().await].map(|push| push.message.seq);
        assert_eq!(pushed, [Seq(1), Seq(2)]);
        assert_eq!(client.pull_all(&conversation(&alice, &bob)).await.len(), 2);
    }
}

#[tokio::test]
async fn a_client_id_is_its_senders_own() {
    let node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut bob = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    let send = to_user("bob", "hers");
    let hers = ask!(alice, send.clone(), Sent);
    let his = ask!(bob, Send { retry: send.retry, ..to_user("alice", "his") }, Sent);
    assert_eq!((hers.seq, his.seq), (Seq(1), Seq(2)));
}

#[tokio::test]
async fn the_same_send_on_two_connections_at_once_is_one_message() {
    let node = TestNode::start().await;
    let mut phone = TestClient::login(&node, Framing::ALL[0], "alice", "phone").await;
    let mut laptop = TestClient::login(&node, Framing::ALL[2], "alice", "laptop").await;
    let mut seqs = Vec::new();
    for n in 0..50 {
        let send = to_user("bob", &format!("{n}"));
        let retried = again(&send, 1);
        let ids = (phone.post(send).await, laptop.post(retried).await);
        let answers = (phone.answer(ids.0).await, laptop.answer(ids.1).await);
        let (Answer::Sent(one), Answer::Sent(other)) = answers else { panic!("{answers:?}") };
        assert_eq!(one, other);
        seqs.push(one.seq.0);
    }
    assert_eq!(seqs, (1..=50).collect::<Vec<_>>());
    assert_eq!(phone.pull_all(&conversation("alice", "bob")).await.len(), 50);
}

#[tokio::test]
async fn a_retry_after_a_crash_is_answered_as_the_first_attempt() {
    let mut node = TestNode::start().await;
    let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut sends = Vec::new();
    for n in 0..20 {
        let send = to_user("bob", &format!("{n}"));
        let sent = ask!(client, send.clone(), Sent);
        sends.push((send, sent));
    }
    // Of these nobody knows whether they happened.
    let unknown: Vec<_> = (0..20).map(|n| to_user("bob", &format!("unknown {n}"))).collect();
    for send in &unknown {
        client.post(send.clone()).await;
    }
    node.kill().await;
    node.start_again().await;
    let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    for (send, sent) in &sends {
        assert_eq!(ask!(client, again(send, 1_000), Sent), *sent);
    }
    for send in &unknown {
        let sent = ask!(client, again(send, 1_000), Sent);
        assert_eq!(ask!(client, again(send, 2_000), Sent), sent);
    }
    let messages = client.pull_all(&conversation("alice", "bob")).await;
    assert_eq!(messages.len(), 40);
    for (send, sent) in &sends {
        let message = &messages[sent.seq.0 as usize - 1];
        assert_eq!((message.client_id, message.message_id), (send.retry.client_id, sent.message_id));
    }
    node.stop().await;
    node.check().await;
}

#[tokio::test]
async fn a_retry_that_nobody_remembers_is_refused() {
    let mut node = TestNode::start().await;
    for restarted in [false, true] {
        if restarted {
            node.kill().await;
            node.start_again().await;
        }
        let mut client = TestClient::connect(&node, Framing::Tcp).await;
        let window_ms = client.greet().await.limits.dedup_window_ms;
        let token = node.token("alice").await;
        let class = convoke_protocol::request::session::DeviceClass::OTHER;
        ask!(client, crate::harness::client::login(token, "phone", class), LoggedIn);
        let before = client.say("bob", "there is a conversation").await.seq;
        let old = again(&to_user("bob", "old"), window_ms + 1);
        let error = refused!(client, old, STALE_RETRY);
        assert_eq!((error.outcome, error.retry_after_ms), (Outcome::UNKNOWN, None), "{error}");
        // One that is young enough happens, though its first attempt never came here.
        let young = again(&to_user("bob", "young"), window_ms / 2);
        match client.request(young).await {
            Answer::Sent(sent) => assert_eq!(sent.seq, before.next()),
            other => panic!("{other:?} instead of {:?}", ErrorCode::STALE_RETRY),
        }
    }
}
