//! What changed since: a login that tells only that.

use convoke_protocol::framing::Framing;
use convoke_protocol::id::Seq;
use convoke_protocol::request::Retry;
use convoke_protocol::request::read_state::Read;
use convoke_protocol::request::sync::{SyncSince, SyncedSince};

use super::{cursor, fill, seqs};
use crate::harness::client::conversation;
use crate::harness::group::create;
use crate::harness::{Setup, TestClient};

fn since(token: Option<&String>, cursors: &[(&str, u64)]) -> SyncSince {
    let cursors = cursors.iter().map(|(peer, seq)| cursor(peer, *seq)).collect();
    SyncSince { since: token.cloned(), cursors, use_device_cursors: false, after: None }
}

/// Whether it is everything, and of whom it tells.
fn told(synced: &SyncedSince) -> (bool, Vec<&str>) {
    let peer = |id: &str| id.len() - id.rsplit(':').next().map_or(0, str::len);
    let all = synced.conversations.iter().map(|one| one.conversation.as_str());
    (synced.all, all.map(|id| &id[peer(id)..]).collect())
}

#[tokio::test]
async fn a_login_is_told_what_changed_since_the_last_one() {
    let exact = Setup::config("").env("CONVOKE_TEST_CHANGE_PERIOD", "0");
    let mut node = exact.start().await;
    node.keep_addresses();
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    ask!(alice, create("team", &["bob"]), GroupCreated);
    for peer in ["u1", "u2", "u3"] {
        fill(&mut TestClient::login(&node, Framing::Tcp, peer, "phone").await, "alice", 2, 5).await;
    }
    let everything = (true, vec!["u1", "u2", "u3", "team"]);
    let first = ask!(alice, since(None, &[]), SyncedSince);
    assert_eq!(told(&first), everything);
    let token = first.token.as_ref();
    // Something that was written in the very moment may be told again; a message later nothing is.
    fill(&mut TestClient::login(&node, Framing::Tcp, "u4", "phone").await, "u5", 1, 5).await;
    let now = ask!(alice, since(token, &[]), SyncedSince).token;
    for framing in Framing::ALL {
        let mut reader = TestClient::login(&node, framing, "alice", framing.name()).await;
        // Of a group no account is kept.
        assert_eq!(told(&ask!(reader, since(now.as_ref(), &[]), SyncedSince)), (false, vec!["team"]));
        for unknown in ["", "0123456789abcdef.1.1", "what is this"] {
            let synced = ask!(reader, since(Some(&unknown.to_owned()), &[]), SyncedSince);
            assert_eq!(told(&synced), everything, "{unknown:?}");
        }
        refused!(reader, since(Some(&"x".repeat(65)), &[]), INVALID_REQUEST);
        refused!(reader, since(None, &[("u1", 1); 101]), INVALID_REQUEST);
    }
    // A conversation that was left out is pushed when something is said in it.
    let mut u2 = TestClient::login(&node, Framing::Tcp, "u2", "phone").await;
    alice.take_events();
    u2.say("alice", "are you there?").await;
    let push = alice.push().await;
    assert_eq!((push.conversation, push.message.seq), (conversation("alice", "u2"), Seq(3)));
    let synced = ask!(alice, since(now.as_ref(), &[("u1", 2), ("u2", 2)]), SyncedSince);
    assert_eq!(told(&synced), (false, vec!["u2", "team"]));
    assert_eq!(seqs(&synced.pages[0].messages), [3]);
    // What is read on one device is news for the others, at once and when the node has come back.
    let mut tablet = TestClient::login(&node, Framing::Tcp, "alice", "tablet").await;
    let read = Read { retry: Retry::first(), conversation: conversation("alice", "u3"), seq: Seq(2) };
    assert_eq!(ask!(tablet, read, ReadDone).unread, 0);
    for restarted in [false, true] {
        if restarted {
            node.stop().await;
            node.start_again().await;
        }
        let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
        let synced = ask!(alice, since(now.as_ref(), &[]), SyncedSince);
        assert_eq!(told(&synced), (false, vec!["u2", "u3", "team"]), "restarted: {restarted}");
        let read: Vec<_> = synced.conversations.iter().map(|one| (one.read.0, one.unread)).collect();
        assert_eq!(read[..2], [(0, 3), (2, 0)]);
    }
}
