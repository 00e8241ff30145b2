//! An owner answers a send before it knows everybody whom it concerns, and dies: whoever takes over tells them.

use convoke::cluster::shard_map::{ShardId, ShardMap};
use convoke_protocol::frame::Event;
use convoke_protocol::framing::Framing;
use convoke_protocol::id::UserId;
use rustix::process::Signal;

use super::{cluster_of, owners, settled, stopped_and_checked};
use crate::harness::TestClient;
use crate::harness::client::conversation;

/// Two users whose sessions the third node knows, and whose conversation the fourth one has.
fn two_users(owners: &[String]) -> (String, String) {
    let map = ShardMap::new(u32::try_from(owners.len()).unwrap());
    let owner = |shard: ShardId| &owners[shard.0 as usize];
    let known = |user: &String| owner(map.of_user(&UserId::new(user).unwrap())) == "n3";
    let alice = (0..).map(|n| format!("alice-{n}")).find(known).unwrap();
    let theirs = |user: &String| owner(map.of_conversation(&conversation(&alice, user))) == "n4";
    let bob = (0..).map(|n| format!("bob-{n}")).find(|user| known(user) && theirs(user)).unwrap();
    (alice, bob)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn who_was_not_found_before_the_owner_died_is_told_by_the_next_one() {
    let (cluster, mut nodes) = cluster_of(4).await;
    let (alice, bob) = two_users(&owners(&nodes).await);
    let mut here = TestClient::login(&nodes[0], Framing::Tcp, &alice, "phone").await;
    let mut there = TestClient::login(&nodes[1], Framing::Tcp, &bob, "phone").await;

    // Where they are, nobody can say for now; Alice is answered nevertheless, and then the conversation's owner dies.
    nodes[2].signal(Signal::STOP);
    assert_eq!(here.say(&bob, "anybody there?").await.seq.0, 1);
    nodes[3].kill().await;
    nodes[2].signal(Signal::CONT);

    // Neither of them does anything.
    let lagged = loop {
        match there.event().await {
            Event::Lagged(lagged) => break lagged,
            Event::Push(push) => panic!("Bob was found too early: {push:?}"),
            _ => {}
        }
    };
    let id = conversation(&alice, &bob);
    assert_eq!((&lagged.conversation, lagged.head.0), (&id, 1));
    assert_eq!(there.pull_all(&id).await.len(), 1);

    nodes[3].start_again().await;
    settled(&nodes).await;
    here.say(&bob, "there you are").await;
    assert_eq!(there.next_push().await.message.seq.0, 2);
    stopped_and_checked(&cluster, nodes).await;
}
