//! Load tests follow the nodes as any client does.

use serde_json::Value;

use super::{cluster_of, settled, stopped_and_checked};
use crate::harness::command::{convoke, run};
use crate::harness::eventually;
use crate::harness::http::metric;

const PUSHED: &str = "convoke_pushes_total{outcome=\"delivered\"}";

/// One node stops in order and comes back, the other one dies and comes back; the load test counts all there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn what_a_load_test_sends_arrives_while_nodes_stop_and_die() {
    let (cluster, mut nodes) = cluster_of(2).await;
    let directory = tempfile::tempdir().unwrap();
    let (key, json) = (nodes[0].data().join("token.key"), directory.path().join("result.json"));
    let pairs = ["send", "--connections", "20", "--conversations", "15", "--in-flight", "4", "--rate", "100"];
    let group = ["group", "--members", "20", "--online", "20", "--rate", "20"];
    for kind in [&pairs[..], &group] {
        let tcp = format!("{},{}", nodes[0].addresses().tcp, nodes[1].addresses().tcp);
        let mut command = convoke();
        command.arg("bench").args(kind).args(["--duration", "12", "--tcp", &tcp, "--key"]).arg(&key);
        command.arg("--json").arg(&json);
        let bench = tokio::spawn(run(command, Vec::new()));
        let before = metric(&nodes[1], PUSHED).await;
        eventually("it is under way", async || {
            (metric(&nodes[1], PUSHED).await > before + 20.0).then_some(())
        })
        .await;
        nodes[1].stop().await;
        nodes[1].start_again().await;
        settled(&nodes).await;
        nodes[0].kill().await;
        nodes[0].start_again().await;
        bench.await.unwrap().good();
        settled(&nodes).await;
        let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        for finding in ["lost", "duplicated", "out_of_order", "gaps", "refused"] {
            assert_eq!(result[finding], 0, "{result:#}");
        }
        // All of them were at one node or the other, and each node went once.
        assert!(result["returned"].as_u64().unwrap() >= 20, "{result:#}");
    }
    stopped_and_checked(&cluster, nodes).await;
}
