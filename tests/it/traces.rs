//! A message's way through the node, as an OpenTelemetry collector hears it.

use std::collections::BTreeMap;
use std::sync::Arc;

use convoke_protocol::framing::Framing;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::harness::{Setup, TestClient, TestNode, finished, to_user};

/// A collector that keeps what it is sent.
struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let spans = Arc::<Mutex<Vec<Value>>>::default();
        let kept = spans.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = Vec::new();
                let body = loop {
                    let mut piece = [0; 4096];
                    let read = stream.read(&mut piece).await.unwrap();
                    asked.extend_from_slice(&piece[..read]);
                    let text = String::from_utf8_lossy(&asked).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    assert!(head.starts_with("POST /v1/traces "), "{head}");
                    let head = head.to_lowercase();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                    if body.len() == length.parse::<usize>().unwrap() {
                        break body.to_owned();
                    }
                };
                let sent: Value = serde_json::from_str(&body).unwrap();
                let all = sent["resourceSpans"].as_array().unwrap().iter();
                let all = all.flat_map(|one| one["scopeSpans"].as_array().unwrap());
                let all = all.flat_map(|one| one["spans"].as_array().unwrap().clone());
                kept.lock().await.extend(all);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
            }
        });
        Self { endpoint, spans }
    }
}

fn attribute(span: &Value, key: &str) -> Option<String> {
    let all = span["attributes"].as_array()?;
    let value = all.iter().find(|one| one["key"] == key)?["value"].as_object()?.values().next()?.clone();
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

#[tokio::test]
async fn a_message_is_followed_from_its_frame_to_its_pushes() {
    let collector = Collector::start().await;
    let config = format!("[traces]\nendpoint = {:?}\none_in = 1", collector.endpoint);
    let mut node = Setup::config(&config).start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut bob = TestClient::login(&node, Framing::ALL[2], "bob", "phone").await;
    let first = alice.say("bob", "the body is not told").await;
    bob.push().await;
    let second = alice.say("bob", "nor is this").await;
    bob.push().await;
    refused!(alice, to_user("bob", &"x".repeat(300_000)), BODY_TOO_LARGE);
    let log = node.stderr();
    node.stop().await.good();
    let spans = collector.spans.lock().await;
    let mut by_trace = BTreeMap::<String, Vec<&Value>>::new();
    for span in spans.iter() {
        by_trace.entry(span["traceId"].as_str().unwrap().to_owned()).or_default().push(span);
    }
    assert_eq!(by_trace.len(), 2, "what is refused at the door is no message: {spans:#?}");
    let mut seqs = Vec::new();
    for spans in by_trace.values() {
        let named = |name: &str| *spans.iter().find(|span| span["name"] == name).unwrap();
        let (whole, commit, deliver) = (named("message"), named("commit"), named("deliver"));
        for phase in [commit, deliver] {
            assert_eq!(phase["parentSpanId"], whole["spanId"]);
        }
        let time = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(time(whole, "startTimeUnixNano") <= time(commit, "startTimeUnixNano"));
        assert!(time(commit, "endTimeUnixNano") <= time(deliver, "startTimeUnixNano"));
        assert!(time(deliver, "endTimeUnixNano") <= time(whole, "endTimeUnixNano"));
        assert_eq!(attribute(whole, "convoke.user").as_deref(), Some("alice"));
        assert_eq!(attribute(whole, "convoke.conversation").as_deref(), Some("d:alice:bob"));
        assert_eq!(attribute(deliver, "convoke.listeners").as_deref(), Some("2"), "{spans:#?} {log}");
        seqs.push(attribute(whole, "convoke.seq").unwrap());
    }
    seqs.sort();
    assert_eq!(seqs, [first.seq.to_string(), second.seq.to_string()]);
    assert!(!spans.iter().any(|span| span.to_string().contains("not told")), "no bodies");
}

#[tokio::test]
async fn a_collector_that_is_not_there_delays_nobody() {
    // A port that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = format!("[traces]\nendpoint = \"http://{free}/v1/traces\"\none_in = 1");
    let mut node = Setup::config(&config).start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    for _ in 0..20 {
        alice.say("bob", "hello").await;
    }
    node.stop().await.good();
}

#[tokio::test]
async fn one_in_so_many_is_traced_and_none_by_default() {
    let collector = Collector::start().await;
    let config = format!("[traces]\nendpoint = {:?}\none_in = 10", collector.endpoint);
    let mut node = Setup::config(&config).start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    for _ in 0..30 {
        alice.say("bob", "hello").await;
    }
    node.stop().await.good();
    let spans = collector.spans.lock().await.clone();
    let traced = spans.iter().filter(|span| span["name"] == "message").count();
    assert_eq!(traced, 3, "{spans:#?}");
    let plain = TestNode::start().await;
    assert!(!plain.stderr().contains("trace"), "{}", plain.stderr());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cluster.toml");
    std::fs::write(&file, "[traces]\nendpoint = \"collector:4318\"").unwrap();
    let said = finished(["config", "check", "--config", file.to_str().unwrap()]).await.failed();
    assert!(said.contains("traces.endpoint"), "{said}");
}
