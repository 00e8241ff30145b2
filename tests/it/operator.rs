//! What an operator sees and does with `convoke admin`, and backups of a node that runs.

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::framing::Framing;
use serde_json::Value;

use crate::harness::client::{End, conversation};
use crate::harness::command::Finished;
use crate::harness::group::create;
use crate::harness::http::http;
use crate::harness::load::Load;
use crate::harness::{Setup, TestClient, TestNode, eventually, finished};

async fn admin(node: &TestNode, arguments: &[&str]) -> Finished {
    let data = node.data().to_str().unwrap();
    finished([&["admin"], arguments, &["--data", data]].concat()).await
}

async fn json(node: &TestNode, arguments: &[&str]) -> Value {
    serde_json::from_str(&admin(node, &[arguments, &["--json"]].concat()).await.good()).unwrap()
}

#[tokio::test]
async fn sessions_are_listed_and_closed() {
    let node = TestNode::start().await;
    let mut phone = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let _desk = TestClient::login(&node, Framing::ALL[2], "alice", "desk").await;
    let mut bob = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    let all = admin(&node, &["sessions"]).await.good();
    assert!(all.starts_with("user") && all.contains("ws_json") && all.ends_with("3 of 3\n"), "{all}");
    let of_alice = json(&node, &["sessions", "alice"]).await;
    assert_eq!(of_alice["total"], 2, "{of_alice:#}");
    assert_eq!(of_alice["sessions"][0]["device"], "phone");
    assert_eq!(json(&node, &["sessions", "--limit", "1"]).await["sessions"].as_array().unwrap().len(), 1);

    assert_eq!(admin(&node, &["kick", "alice", "--device", "phone"]).await.good(), "1 sessions closed\n");
    assert!(matches!(phone.end().await, End::Kicked(ErrorCode::CLOSED_BY_USER)), "the client is told");
    eventually("one is left", async || {
        (json(&node, &["sessions", "alice"]).await["total"] == 1).then_some(())
    })
    .await;
    let id = json(&node, &["sessions", "bob"]).await["sessions"][0]["session"].as_str().unwrap().to_owned();
    assert_eq!(json(&node, &["kick", "--session", &id]).await["kicked"], 1);
    bob.end().await;
    assert_eq!(json(&node, &["kick", "nobody"]).await["kicked"], 0);
    let said = admin(&node, &["kick"]).await.failed();
    assert!(said.contains("required"), "whose is to be said: {said}");

    let audit = admin(&node, &["audit"]).await.good();
    assert!(audit.contains("kick") && audit.contains("alice") && audit.contains(&id), "{audit}");
}

#[tokio::test]
async fn conversations_groups_and_memory_are_shown() {
    let node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut bob = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    for _ in 0..3 {
        alice.say("bob", "hello").await;
    }
    bob.push().await;
    ask!(alice, create("team", &["bob", "carol"]), GroupCreated);
    ask!(alice, create("other", &["dave"]), GroupCreated);

    let list = json(&node, &["conversations"]).await;
    let ids: Vec<_> =
        list["conversations"].as_array().unwrap().iter().map(|one| &one["conversation"]).collect();
    assert_eq!(ids, ["d:alice:bob", "g:other", "g:team"], "{list:#}");
    assert_eq!(list["conversations"][0]["head"], 3);
    let page = json(&node, &["conversations", "--limit", "1", "--after", "d:alice:bob"]).await;
    assert_eq!(page["conversations"][0]["conversation"], "g:other");
    assert_eq!(page["next"], "g:other");
    assert_eq!(json(&node, &["conversations", "--active"]).await["active"], 3);

    let direct = json(&node, &["conversation", "d:alice:bob"]).await;
    assert_eq!((&direct["head"], &direct["listeners"]), (&Value::from(3), &Value::from(2)), "{direct:#}");
    assert!(direct["memory_bytes"].as_u64().unwrap() > 100, "{direct:#}");
    let team = admin(&node, &["conversation", "g:team"]).await.good();
    assert!(team.contains("owner") && team.contains("alice"), "{team}");
    let said = admin(&node, &["conversation", "g:nothing"]).await.failed();
    assert!(said.contains("404") && said.contains("g:nothing"), "{said}");

    let groups = json(&node, &["groups"]).await;
    let of = |n: usize| &groups["groups"][n];
    assert_eq!((&of(0)["group"], &of(0)["members"]), (&Value::from("other"), &Value::from(2)), "{groups:#}");
    assert_eq!((&of(1)["group"], &of(1)["owner"]), (&Value::from("team"), &Value::from("alice")));
    let first = json(&node, &["groups", "--limit", "1"]).await;
    assert_eq!(
        (&first["groups"][0]["group"], &first["next"]),
        (&Value::from("other"), &Value::from("g:other"))
    );

    let memory = json(&node, &["memory"]).await;
    let number = |field: &str| memory[field].as_u64().unwrap();
    assert_eq!((number("sessions"), number("conversations")), (2, 3), "{memory:#}");
    // Two of the direct conversation, and of each group those who are online.
    assert_eq!(number("listeners"), 5, "{memory:#}");
    assert!(number("session_bytes") > 200 && number("conversation_bytes") > 300, "{memory:#}");
    assert!(number("resident_bytes") > number("store_cache_bytes") + number("store_memtable_bytes"));
    assert!(admin(&node, &["memory"]).await.good().contains("the process"));
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused_with_a_reason() {
    let node = TestNode::start().await;
    let service = node.token_with("operator", &["--role", "service"]).await;
    let address = node.addresses().admin;
    for (request, body, status) in [
        ("POST /v1/sessions", "{\"nobody\":1}", 400),
        ("POST /v1/sessions", "[", 400),
        ("POST /v1/conversation", "{}", 400),
        ("POST /v1/conversation", "{\"conversation\":\"x\"}", 400),
        ("POST /v1/kick", "{}", 400),
        ("POST /v1/sessions", "{\"limit\":0}", 200),
        ("GET /v1/sessions", "", 200),
        ("GET /v1/memory", "", 200),
        ("GET /v1/kick", "", 405),
        ("GET /v1/backup", "", 405),
        ("DELETE /v1/sessions", "", 405),
    ] {
        let answer = http(address, request, Some(&service), body.as_bytes()).await;
        assert_eq!(answer.status, status, "{request} {body}: {answer:?}");
    }
    let other = tempfile::tempdir().unwrap();
    let nowhere = other.path().to_str().unwrap();
    let said = finished(["admin", "sessions", "--data", nowhere]).await.failed();
    assert!(said.contains("token key"), "{said}");
}

#[tokio::test]
async fn a_backup_under_load_has_what_was_acknowledged_before_it() {
    let mut node = TestNode::start().await;
    let mut load = Load::of_pairs(8);
    let running = load.start(&node).await;
    running.acked(200).await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let before = alice.say("bob", "before the backup").await;
    let file = node.home().join("node.backup");
    let (data, name) = (node.data().to_str().unwrap().to_owned(), file.to_str().unwrap().to_owned());
    for command in [&["backup"][..], &["admin", "backup"]] {
        let _ = std::fs::remove_file(&file);
        let printed = finished([command, &[&name, "--data", &data]].concat()).await.good();
        assert!(printed.contains("bytes"), "{printed}");
    }
    let again = finished(["backup", &name, "--data", &data]).await.failed();
    assert!(again.contains("nothing is written over"), "{again}");
    node.stop().await.good();
    load.ended(running).await;

    let home = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let restored = home.path().join("data");
    let to = restored.to_str().unwrap();
    let printed = finished(["restore", &name, "--data", to]).await.good();
    assert!(printed.contains("token key"), "{printed}");
    finished(["check", "--data", to]).await.good();
    assert!(finished(["restore", &name, "--data", to]).await.failed().contains("already"));
    std::fs::copy(node.data().join("token.key"), restored.join("token.key")).unwrap();

    let copy = Setup::default().start_in(home, restored).await;
    let mut alice = TestClient::login(&copy, Framing::Tcp, "alice", "phone").await;
    let messages = alice.pull_all(&conversation("alice", "bob")).await;
    assert_eq!(messages.first().map(|message| message.seq), Some(before.seq));
    alice.say("bob", "after it").await;
}

#[tokio::test]
async fn the_store_of_a_killed_node_is_backed_up_though_its_node_json_is_still_there() {
    let mut node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    alice.say("bob", "before it was killed").await;
    node.kill().await;
    assert!(node.data().join("node.json").exists());
    let (data, file) = (node.data().to_str().unwrap().to_owned(), node.home().join("killed.backup"));
    let name = file.to_str().unwrap().to_owned();
    finished(["backup", &name, "--data", &data]).await.good();
    let restored = node.home().join("restored");
    finished(["restore", &name, "--data", restored.to_str().unwrap()]).await.good();
    finished(["check", "--data", restored.to_str().unwrap()]).await.good();
}
