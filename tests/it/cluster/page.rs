//! The web chat of a cluster: a page goes on at another node when its own one goes.

use convoke_protocol::framing::Framing;

use super::{cluster_of, settled, stopped_and_checked};
use crate::browser::{enter, open, say, sees};
use crate::harness::TestClient;
use crate::harness::browser::Browser;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium and a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_page_whose_node_goes_or_dies_goes_on_at_another() {
    let (cluster, mut nodes) = cluster_of(3).await;
    let mut browser = Browser::start().await;
    let alice = open(&mut browser, &nodes[0], "alice").await;
    let mut bob = TestClient::login(&nodes[2], Framing::Tcp, "bob", "phone").await;
    enter(&mut browser, &alice, "open", "whom", "bob").await;
    say(&mut browser, &alice, "hello").await;
    assert_eq!(bob.next_push().await.message.seq.0, 1);

    // It is sent elsewhere; what is said meanwhile is there.
    nodes[0].stop().await;
    bob.say("alice", "your node went").await;
    sees(&mut browser, &alice, "your node went").await;
    let there = "document.getElementById('status').textContent === 'online'";
    browser.until(&alice, there).await;
    say(&mut browser, &alice, "I noticed nothing").await;
    assert_eq!(bob.next_push().await.message.seq.0, 3);

    // The node at which it is now dies without a word.
    nodes[0].start_again().await;
    settled(&nodes).await;
    let at = browser.evaluate(&alice, "new URL(connection.socket.url).host").await;
    let now_at = nodes.iter().position(|node| at == node.addresses().ws.to_string()).expect("at a node");
    assert_ne!(now_at, 0, "it went elsewhere");
    nodes[now_at].kill().await;
    let mut bob = TestClient::login(&nodes[0], Framing::Tcp, "bob", "desk").await;
    bob.say("alice", "another one died").await;
    sees(&mut browser, &alice, "another one died").await;
    nodes[now_at].start_again().await;
    settled(&nodes).await;
    stopped_and_checked(&cluster, nodes).await;
}
