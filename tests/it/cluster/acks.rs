//! How far a device is, is kept beside what it asks next.

use convoke_protocol::frame::Answer;
use convoke_protocol::framing::Framing;
use convoke_protocol::id::Seq;
use convoke_protocol::message::Cursor;
use convoke_protocol::request::messages::Ack;
use convoke_protocol::request::session::Heartbeat;
use convoke_protocol::request::sync::Sync;

use super::{cluster_of, stopped_and_checked};
use crate::harness::TestClient;
use crate::harness::client::conversation;

/// Acknowledgements until one is overtaken: a node that stands still for a moment may answer both at once.
const TRIES: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn nothing_waits_behind_an_acknowledgement_but_a_sync_knows_of_it() {
    let (cluster, nodes) = cluster_of(2).await;
    let mut bob = TestClient::login(&nodes[1], Framing::Tcp, "bob", "phone").await;
    for _ in 0..TRIES {
        bob.say("alice", "hello").await;
    }
    let mut alice = TestClient::login(&nodes[0], Framing::Tcp, "alice", "phone").await;
    let mut overtaken = false;
    for seq in 1..=TRIES {
        let cursor = Cursor { conversation: conversation("alice", "bob"), seq: Seq(seq) };
        let ack = alice.post(Ack { pushes: 0, cursors: vec![cursor] }).await;
        let beat = alice.post(Heartbeat {}).await;
        let sync = alice.post(Sync { cursors: Vec::new(), use_device_cursors: true, after: None }).await;
        assert!(matches!(alice.answer(beat).await, Answer::HeartbeatAnswer(_)));
        let acked = alice.arrived(ack);
        overtaken |= acked.is_none();
        let Answer::Synced(synced) = alice.answer(sync).await else { panic!("no answer to a sync") };
        assert_eq!(synced.conversations[0].cursor, Some(Seq(seq)));
        let acked = acked.or_else(|| alice.arrived(ack));
        assert!(matches!(acked, Some(Answer::Acked(_))), "{acked:?}");
    }
    assert!(overtaken, "a heartbeat waited for each of {TRIES} acknowledgements");
    drop((alice, bob));
    stopped_and_checked(&cluster, nodes).await;
}
