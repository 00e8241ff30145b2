//! The load tests check their own work and say what they found in the same way.

use serde_json::Value;

use crate::harness::command::{Finished, convoke, run};
use crate::harness::{Setup, TestNode};

/// Runs a small one; its result.
fn bench(arguments: &[&str]) -> (String, Value) {
    let directory = tempfile::tempdir().unwrap();
    let (json, html) = (directory.path().join("result.json"), directory.path().join("result.html"));
    let finished: Finished = convoke()
        .arg("bench")
        .args(arguments)
        .arg("--json")
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .output()
        .unwrap()
        .into();
    let printed = finished.good();
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"), "{page}");
    assert!(!page.contains("NaN") && !page.contains("http"), "it needs nothing else: {page}");
    let result: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(result["bench"], arguments[0]);
    for finding in ["lost", "duplicated", "out_of_order", "gaps"] {
        assert_eq!(result[finding], 0, "{result:#}");
    }
    // Of one node that stays nothing is pulled that should have been pushed.
    assert!(result["missed"].as_u64().is_none_or(|missed| missed == 0), "{result:#}");
    (printed, result)
}

#[test]
fn a_group_is_heard_by_all_of_it() {
    for more in [&["--rate", "0"][..], &["--rate", "50", "--ws"]] {
        let options = ["group", "--members", "60", "--online", "40", "--duration", "1", "--warm-up", "0"];
        let (printed, result) = bench(&[&options, more].concat());
        assert!(printed.contains("delivered"), "{printed}");
        let number = |field: &str| result[field].as_f64().unwrap();
        assert!(number("deliveries_per_s") > number("acked_per_s"), "{result:#}");
        assert_eq!(number("delivered"), number("acked") * 39.0, "all but the speaker: {result:#}");
        assert_eq!(result["limits_deliveries_per_s"].is_null(), more.len() == 3, "{result:#}");
    }
}

#[test]
fn logins_and_idle_connections_are_measured() {
    for more in [&["--rate", "400"][..], &["--ws"]] {
        let options = ["connect", "--connections", "200", "--duration", "1"];
        let (_, result) = bench(&[&options, more].concat());
        let number = |field: &str| result[field].as_f64().unwrap();
        if more.len() == 2 {
            assert!(number("logins_per_s") < 450.0, "{result:#}");
        }
        assert!(number("logins_per_s") > 0.0 && number("rss_per_connection_bytes") > 0.0, "{result:#}");
        assert!(number("idle_cpu_us_per_s_per_connection") >= 0.0, "{result:#}");
    }
}

#[test]
fn all_come_back_after_a_storm() {
    let (printed, result) = bench(&["reconnect", "--connections", "200", "--conversations", "4"]);
    assert!(printed.contains("all back after"), "{printed}");
    assert!(result["back_s"].as_f64().unwrap() > 0.0, "{result:#}");
}

#[test]
fn what_is_sent_is_received_while_users_come_and_go() {
    let options = ["--users", "24", "--rate", "200", "--stay", "2", "--duration", "6"];
    let (_, result) = bench(&[&["soak"][..], &options].concat());
    assert_eq!(result["received"], result["expected"], "{result:#}");
    assert!(result["sent"].as_u64().unwrap() > 100, "{result:#}");
    assert!(result["reconnects"].as_u64().unwrap() > 10, "{result:#}");
}

#[test]
fn who_misbehaves_is_measured_by_what_others_notice() {
    let options = ["--connections", "10", "--rate", "100", "--duration", "2", "--storm", "30"];
    let (printed, result) = bench(&[&["beside"][..], &options].concat());
    assert!(printed.contains("disturbed by quiet"), "{printed}");
    for disturbance in ["storms", "flood_requests", "heavy_messages"] {
        assert!(result[disturbance].as_u64().unwrap() > 0, "{disturbance}: {result:#}");
    }
}

#[test]
fn nobody_is_online_who_is_no_member() {
    let finished: Finished =
        convoke().args(["bench", "group", "--members", "5", "--online", "6"]).output().unwrap().into();
    assert!(finished.failed().contains("--online 6"), "says which option");
}

/// `bench verify` against a node for a few seconds; how it ended, and its result.
async fn verified(node: &TestNode) -> (Finished, Value) {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("result.json");
    let (tcp, key) = (node.addresses().tcp.to_string(), node.data().join("token.key"));
    let options = ["--duration", "4s", "--pairs", "8", "--in-flight", "4"];
    let mut command = convoke();
    command.args(["bench", "verify", "--tcp", &tcp, "--key"]).arg(key).args(options).arg("--json").arg(&json);
    let finished = run(command, Vec::new()).await;
    let written = std::fs::read(json).unwrap_or_else(|error| panic!("{error}: {finished:?}"));
    let result = serde_json::from_slice(&written).unwrap();
    (finished, result)
}

/// A server that drops, doubles, reorders or renumbers what it reads from its log is caught each time, and one that does not is
/// not.
#[tokio::test]
async fn a_server_that_does_not_tell_what_is_so_is_caught() {
    let node = TestNode::start().await;
    let (finished, result) = verified(&node).await;
    finished.good();
    assert!(result["acked"].as_u64().unwrap() > 100, "{result:#}");
    for (tampers, found) in
        [("drop", "lost"), ("double", "duplicated"), ("reorder", "out_of_order"), ("renumber", "renumbered")]
    {
        let node = Setup::config("").env("CONVOKE_TEST_TAMPER", &format!("{tampers}:100")).start().await;
        let (finished, result) = verified(&node).await;
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(result[found].as_u64().unwrap() > 0, "{tampers}: {result:#}");
    }
}
