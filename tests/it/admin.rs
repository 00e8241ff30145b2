//! What operators and their programs see of a node.

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::frame::Answer;
use convoke_protocol::framing::Framing;
use convoke_protocol::request::session::{DeviceClass, Heartbeat};

use crate::harness::client::{End, login};
use crate::harness::http::{Response, get, http, metric};
use crate::harness::{Setup, TestClient, TestNode, eventually, finished, to_user};

#[tokio::test]
async fn probes_and_metrics_need_no_token() {
    let node = TestNode::start().await;
    let admin = node.addresses().admin;
    for (path, body) in [("/healthz", "alive\n"), ("/readyz", "ready\n")] {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
        let answer = http(admin, &format!("HEAD {path}"), None, b"").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        assert_eq!(http(admin, &format!("POST {path}"), None, b"").await.status, 405);
    }
    let metrics = get(&node, "/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("content-type: application/openmetrics-text"), "{}", metrics.head);
    assert!(metrics.body.ends_with("# EOF\n"), "{}", metrics.body);
}

#[tokio::test]
async fn the_metrics_count_what_happened() {
    let node = TestNode::start().await;
    let mut clients = Vec::new();
    for framing in Framing::ALL {
        clients.push(TestClient::login(&node, framing, "alice", framing.name()).await);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        for _ in 0..=n {
            client.say("bob", "hello").await;
        }
        refused!(client, to_user("bob", &"x".repeat(300_000)), BODY_TOO_LARGE);
    }
    // Each of the six messages went to the two other devices.
    for (client, pushes) in clients.iter_mut().zip([5, 4, 3]) {
        while client.pushes < pushes {
            client.push().await;
        }
    }
    let mut refused = TestClient::connect(&node, Framing::Tcp).await;
    refused.greet().await;
    refused!(refused, login("x.y.z".into(), "phone", DeviceClass::OTHER), BAD_TOKEN);
    refused.end().await;
    let expected = [
        ("convoke_sessions", 3.0),
        ("convoke_connections{framing=\"tcp\"}", 1.0),
        ("convoke_connections{framing=\"ws_bincode\"}", 1.0),
        ("convoke_connections{framing=\"ws_json\"}", 1.0),
        ("convoke_connections_accepted_total", 4.0),
        ("convoke_requests_total{type=\"send\"}", 9.0),
        ("convoke_request_errors_total{code=\"body_too_large\"}", 3.0),
        ("convoke_logins_refused_total{code=\"bad_token\"}", 1.0),
        ("convoke_sends_acknowledged_total", 6.0),
        ("convoke_pushes_total{outcome=\"delivered\"}", 12.0),
        ("convoke_conversations_active", 1.0),
        ("convoke_store_poisoned", 0.0),
    ];
    for (series, value) in expected {
        eventually(series, async || (metric(&node, series).await == value).then_some(())).await;
    }
    assert!(metric(&node, "convoke_process_resident_memory_bytes").await > 1e6);
    drop(clients);
    eventually("nobody is there", async || (metric(&node, "convoke_sessions").await == 0.0).then_some(()))
        .await;
}

#[tokio::test]
async fn everything_else_needs_a_token_of_role_service() {
    let node = TestNode::start().await;
    let admin = node.addresses().admin;
    let (user, service) =
        (node.token("alice").await, node.token_with("operator", &["--role", "service"]).await);
    for request in ["POST /v1/reload", "GET /v1/reload", "GET /", "GET /v1/nothing", "GET /metrics/x"] {
        for (token, status) in [(None, 401), (Some("x.y.z"), 401), (Some(user.as_str()), 403)] {
            let answer = http(admin, request, token, b"").await;
            assert_eq!(answer.status, status, "{request}: {answer:?}");
            assert_eq!(answer.head.contains("www-authenticate: bearer"), status == 401, "{answer:?}");
        }
    }
    for (request, status) in
        [("POST /v1/reload", 200), ("GET /v1/reload", 405), ("GET /", 404), ("GET /v1/nothing", 404)]
    {
        let answer = http(admin, request, Some(&service), b"").await;
        assert_eq!(answer.status, status, "{request}: {answer:?}");
    }
    let huge = http(admin, "POST /v1/reload", Some(&service), &vec![b'x'; 2 << 20]).await;
    assert_eq!(huge.status, 413);
    // A service's token is one for clients too; a user's role is no operator's.
    let mut backend = TestClient::connect(&node, Framing::Tcp).await;
    backend.log_in(service, "backend").await;
}

#[tokio::test]
async fn the_admin_listener_is_public_only_if_that_is_meant() {
    let home = tempfile::tempdir().unwrap();
    let setup = |config: &str| Setup::config(config).admin("0.0.0.0:0");
    let said = setup("").refused(&home.path().join("data")).await.failed();
    assert!(said.contains("0.0.0.0:0") && said.contains("public"), "{said}");
    let node = setup("[admin]\npublic = true").start().await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], node.addresses().admin.port()));
    assert_eq!(http(address, "GET /healthz", None, b"").await.status, 200);
}

async fn reload(node: &TestNode) -> crate::harness::command::Finished {
    finished(["admin", "reload", "--data", node.data().to_str().unwrap()]).await
}

#[tokio::test]
async fn a_reload_applies_what_may_change_and_lists_what_may_not() {
    let mut node = Setup::config("[limits]\nmax_ranges = 50").start().await;
    let mut older = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    assert!(reload(&node).await.good().starts_with("nothing changed"));
    let changed = "[limits]\nmax_ranges = 60\nsend_rate_per_s = 1\nsend_burst = 1\n\
                   [sessions]\ndevice_conflict = \"refuse\"\nheartbeat_ms = 5000";
    node.write_config(changed);
    let report = reload(&node).await.good();
    let (applied, restart) = report.split_once("needs a restart:").unwrap();
    for key in ["limits.send_rate_per_s: 0 -> 1", "limits.send_burst: 100 -> 1", "sessions.device_conflict"] {
        assert!(applied.contains(key), "{key} is not in {report}");
    }
    assert!(restart.contains("limits.max_ranges: 50 -> 60"), "{report}");
    // In force at once, for those who are there and for those who come.
    older.say("bob", "one").await;
    let refused = refused!(older, to_user("bob", "two"), RATE_LIMITED);
    assert!(refused.retry_after_ms.is_some());
    let mut newer = TestClient::connect(&node, Framing::Tcp).await;
    let welcome = newer.greet().await;
    assert_eq!((welcome.heartbeat_ms, welcome.limits.max_ranges), (5_000, 50));
    let token = node.token("alice").await;
    refused!(newer, login(token, "phone", DeviceClass::OTHER), DEVICE_IN_USE);
    // What needs a restart goes on to need it; the rest is in force and no change any more.
    let again = reload(&node).await.good();
    assert!(again.contains("limits.max_ranges: 50 -> 60") && !again.contains("applied"), "{again}");
    // A file that is wrong changes nothing.
    node.write_config("[sessions]\ndevice_conflict = \"replace\"\n[limits]\nmax_ranges = 0");
    let said = reload(&node).await.failed();
    assert!(said.contains("limits.max_ranges") && said.contains("1..=10000"), "{said}");
    let mut newer = TestClient::connect(&node, Framing::Tcp).await;
    newer.greet().await;
    let token = node.token("alice").await;
    refused!(newer, login(token, "phone", DeviceClass::OTHER), DEVICE_IN_USE);
    ask!(older, Heartbeat {}, HeartbeatAnswer);
}

#[tokio::test]
async fn without_a_node_or_with_another_key_nothing_is_reloaded() {
    let mut node = TestNode::start().await;
    let other = TestNode::start().await;
    let (admin, data) = (node.addresses().admin.to_string(), other.data().to_str().unwrap().to_owned());
    let said = finished(["admin", "reload", "--data", &data, "--admin", &admin]).await.failed();
    assert!(said.contains("401"), "{said}");
    node.stop().await;
    let said = reload(&node).await.failed();
    assert!(said.contains("no node is known to run"), "{said}");
    let data = node.data().to_str().unwrap();
    let said = finished(["admin", "reload", "--data", data, "--admin", &admin]).await.failed();
    assert!(said.contains(&admin), "{said}");
}

/// Sends until the store takes no more.
async fn fill(client: &mut TestClient) {
    for _ in 0..1_000 {
        match client.request(to_user("bob", &"x".repeat(100_000))).await {
            Answer::Sent(_) => {}
            Answer::Error(error) => {
                assert_eq!(error.code, ErrorCode::UNAVAILABLE, "{error}");
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("the files have no bound");
}

#[tokio::test]
async fn a_node_whose_store_takes_no_writes_is_alive_and_not_ready() {
    let mut node = Setup::config("[conversations]\nanswer_within_ms = 500").start().await;
    node.stop().await;
    // Blocks of 512 bytes: 4 MB. The signal that comes with the error is not wanted.
    let bounded = r#"trap "" XFSZ; ulimit -f 8192; exec "$@""#;
    node.change(|setup| setup.wrapped(["sh", "-c", bounded, "sh"]));
    node.start_again().await;
    assert_eq!(get(&node, "/readyz").await.status, 200);
    fill(&mut TestClient::login(&node, Framing::Tcp, "alice", "phone").await).await;
    let Response { status, body, .. } = get(&node, "/readyz").await;
    assert!(status == 503 && body.contains("restart"), "{status} {body}");
    assert_eq!(get(&node, "/healthz").await.status, 200);
    assert_eq!(metric(&node, "convoke_store_poisoned").await, 1.0);
    node.stop().await;
    node.change(|setup| setup.wrapped(Vec::<String>::new()));
    node.start_again().await;
    assert_eq!(get(&node, "/readyz").await.status, 200);
    assert_eq!(metric(&node, "convoke_store_poisoned").await, 0.0);
}

#[tokio::test]
async fn a_node_that_stops_is_not_ready_any_more() {
    let mut node = TestNode::start().await;
    // The ordered stop waits a little for this one, which does not take its answers.
    let mut stubborn = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    stubborn.say("alice", &"x".repeat(200_000)).await;
    for _ in 0..60 {
        let range = convoke_protocol::request::messages::PullRange {
            conversation: crate::harness::client::conversation("alice", "alice"),
            from: convoke_protocol::id::Seq(1),
            to: convoke_protocol::id::Seq(1),
        };
        stubborn.post(convoke_protocol::request::messages::Pull { ranges: vec![range] }).await;
    }
    let mut other = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(other.end().await, End::GoAway(ErrorCode::SHUTDOWN));
    let Response { status, body, .. } = get(&node, "/readyz").await;
    assert!(status == 503 && body.contains("stopping"), "{status} {body}");
    drop(stubborn);
    assert_eq!(node.ended().await.code, Some(0));
}
