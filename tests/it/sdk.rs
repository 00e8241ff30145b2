//! The SDK's example, against a node.

use crate::harness::{TestNode, in_time};

#[allow(dead_code, unreachable_pub, clippy::print_stdout, reason = "it is a program of its own")]
#[path = "../../client/examples/team.rs"]
mod team;

#[tokio::test]
async fn the_example_of_a_team_runs_and_live_and_history_agree() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.token("alice").await, node.token("bob").await);
    let address = node.addresses().tcp.to_string();
    let shown = in_time("the example ends", team::talk(&address, &alice, &bob)).await.unwrap();
    let expected = ["2 alice: hello [👋 1]", "3 alice: (taken back)", "7 bob: hello, Alice", "0 unread"];
    assert_eq!(shown, expected);
}
