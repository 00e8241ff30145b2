//! Starting, stopping, and the commands around a node.

use std::os::unix::fs::PermissionsExt as _;

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::framing::Framing;
use rustix::process::Signal;

use crate::harness::client::End;
use crate::harness::{Setup, TestClient, TestNode, eventually, finished};

#[tokio::test]
async fn a_node_says_where_it_listens_and_how_to_go_on() {
    // That node.json and the line agree is looked at whenever a node starts.
    let mut node = TestNode::start().await;
    let addresses = node.addresses();
    let ports = [addresses.tcp, addresses.ws, addresses.admin].map(|address| address.port());
    assert!(ports.iter().all(|port| *port != 0) && ports[0] != ports[1] && ports[1] != ports[2], "{ports:?}");
    assert_eq!(
        node.pid(),
        std::fs::read_to_string(node.data().join("node.json")).map(|json| pid_of(&json)).unwrap()
    );
    let key = std::fs::metadata(node.data().join("token.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    let ended = node.stop().await;
    assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
    for line in ["chat --user alice --to bob", "chat --user bob --to alice"] {
        assert!(ended.stderr.contains(line), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn too_few_file_descriptors_are_said_at_the_start() {
    let few = ["sh", "-c", "ulimit -n 700; exec \"$@\"", "sh"];
    for (connections, warned) in [(10_000, true), (100, false)] {
        let config = format!("[limits]\nmax_connections = {connections}");
        let node = Setup::config(&config).wrapped(few).start().await;
        let said = node.stderr();
        assert_eq!(said.contains("fewer open files are allowed"), warned, "{said}");
    }
}

fn pid_of(json: &str) -> u32 {
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    u32::try_from(value["pid"].as_u64().unwrap()).unwrap()
}

#[tokio::test]
async fn a_node_stops_in_order() {
    let mut node = TestNode::start().await;
    for signal in [Signal::TERM, Signal::INT] {
        let mut clients = Vec::new();
        for (n, framing) in Framing::ALL.into_iter().enumerate() {
            clients.push(TestClient::login(&node, framing, "alice", &format!("device-{n}")).await);
        }
        node.signal(signal);
        for client in &mut clients {
            assert_eq!(client.end().await, End::GoAway(ErrorCode::SHUTDOWN), "after {signal:?}");
        }
        let ended = node.ended().await;
        assert_eq!(ended.code, Some(0), "after {signal:?}: {ended:?}");
        node.start_again().await;
    }
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let mut node = Setup::config("[node]\nstop_within_ms = 600000").start().await;
    // The ordered stop waits for this one, which does not take its answers.
    let mut stubborn = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    stubborn.say("alice", &"x".repeat(200_000)).await;
    let conversation = crate::harness::client::conversation("alice", "alice");
    let page = convoke_protocol::request::messages::History {
        conversation,
        from: convoke_protocol::request::messages::HistoryFrom::First,
        direction: convoke_protocol::request::messages::Direction::Newer,
        limit: 1,
    };
    for _ in 0..60 {
        stubborn.post(page.clone()).await;
    }
    let mut other = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    node.signal(Signal::TERM);
    // The first signal has arrived once sessions are told of it.
    assert_eq!(other.end().await, End::GoAway(ErrorCode::SHUTDOWN));
    node.signal(Signal::TERM);
    let begin = std::time::Instant::now();
    let ended = node.ended().await;
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
    assert!(ended.code != Some(0) && !ended.stderr.contains("stopped\n"), "it stopped in order: {ended:?}");
    drop(stubborn);
}

#[tokio::test]
async fn a_data_directory_has_one_node() {
    let node = TestNode::start().await;
    let ended = Setup::default().refused(node.data()).await;
    let said = ended.failed();
    assert!(said.contains(node.data().to_str().unwrap()), "{said}");
    // The first one is none the worse.
    TestClient::login(&node, Framing::Tcp, "alice", "phone").await.say("bob", "still here").await;
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_key_value_and_bound() {
    let cases: &[(&str, &[&str])] = &[
        ("[limits]\nmax_frame_bytes = 12", &["limits.max_frame_bytes", "12", "4096..=16777216"]),
        ("[limits]\nmax_fame_bytes = 8192", &["limits.max_fame_bytes"]),
        ("[limit]\nmax_frame_bytes = 8192", &["limit"]),
        (
            "[sessions]\ndevice_conflict = \"fight\"",
            &["sessions.device_conflict", "fight", "replace", "refuse"],
        ),
        ("[sessions]\nheartbeat_ms = 1\nlogin_deadline_ms = 1", &["heartbeat_ms", "login_deadline_ms"]),
        ("this is not TOML", &["TOML"]),
    ];
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    for (config, words) in cases {
        let served = Setup::config(config).refused(&data).await.failed();
        let file = home.path().join("node.toml");
        let checked = finished(["config".as_ref(), "check".as_ref(), "--config".as_ref(), file.as_os_str()]);
        for said in [served, checked.await.failed()] {
            for word in *words {
                assert!(said.contains(word), "{config:?}: {word:?} is not in {said}");
            }
        }
        assert!(!data.join("node.json").exists());
    }
}

#[tokio::test]
async fn the_commented_configuration_is_right() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster.toml");
    let said = finished(["config", "check", "--config", file]).await.good();
    assert_eq!(said, "ok\n");
}

#[tokio::test]
async fn the_environment_overrides_the_file() {
    let node = Setup::config("[limits]\nmax_body_bytes = 1000\nmax_ranges = 7")
        .env("CONVOKE_LIMITS_MAX_BODY_BYTES", "2000")
        .start()
        .await;
    let welcome = TestClient::connect(&node, Framing::Tcp).await.greet().await;
    assert_eq!((welcome.limits.max_body_bytes, welcome.limits.max_ranges), (2000, 7));
}

#[tokio::test]
async fn a_listener_that_others_reach_needs_tls_or_the_word_off() {
    let home = tempfile::tempdir().unwrap();
    for listen in [("0.0.0.0:0", "127.0.0.1:0"), ("127.0.0.1:0", "0.0.0.0:0")] {
        let said =
            Setup::default().listen(listen.0, listen.1).refused(&home.path().join("data")).await.failed();
        assert!(said.contains("0.0.0.0:0") && said.to_lowercase().contains("tls"), "{said}");
    }
    let mut node = Setup::config("[tls]\nmode = \"off\"").listen("0.0.0.0:0", "0.0.0.0:0").start().await;
    node.stop().await;
}

#[tokio::test]
async fn commands_say_what_they_do() {
    let version = finished(["--version"]).await.good();
    assert_eq!(version.trim(), concat!("convoke ", env!("CARGO_PKG_VERSION")));
    let help = finished(["--help"]).await.good();
    for command in ["serve", "token", "chat", "bench", "check", "config", "admin", "completions"] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(command)),
            "{command} is not in {help}"
        );
        let own = finished([command, "--help"]).await.good();
        assert!(own.contains("Usage:"), "{own}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = finished(["completions", shell]).await.good();
        assert!(script.contains("convoke") && script.contains("serve"), "{shell}");
    }
    let unknown = finished(["sereve"]).await.failed();
    assert!(unknown.contains("serve"), "no hint: {unknown}");
}

#[tokio::test]
async fn a_token_is_printed_and_nothing_else() {
    let node = TestNode::start().await;
    let data = node.data().to_str().unwrap();
    let key = node.data().join("token.key");
    for source in [["--data", data], ["--key", key.to_str().unwrap()]] {
        for more in [&["--ttl", "5m"][..], &["--role", "service"]] {
            let arguments = [&["token"], &source[..], &["--user", "alice"], more].concat();
            let made = finished(arguments).await;
            assert_eq!(made.stderr, "");
            let text = made.good();
            let token = text.strip_suffix('\n').unwrap();
            let base64url = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            let parts: Vec<_> = token.split('.').collect();
            assert!(parts.len() == 3 && parts.iter().all(|part| part.chars().all(base64url)), "{text:?}");
        }
    }
    let nowhere = finished(["token", "--data", "/nowhere", "--user", "alice"]).await.failed();
    assert!(nowhere.contains("/nowhere"), "{nowhere}");
    let nobody = finished(["token", "--data", data, "--user", "no body"]).await.failed();
    assert!(nobody.contains("no body") || nobody.contains("white space"), "{nobody}");
}

#[tokio::test]
async fn the_same_addresses_serve_again_at_once() {
    let mut node = TestNode::start().await;
    node.keep_addresses();
    let before = node.addresses();
    for _ in 0..2 {
        let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
        client.say("bob", "hello").await;
        node.kill().await;
        node.start_again().await;
        assert_eq!(node.addresses(), before);
        client.end().await;
    }
    let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    assert_eq!(client.say("bob", "hello").await.seq.0, 3);
}

#[tokio::test]
async fn what_is_logged_names_ids_and_never_bodies_or_tokens() {
    let mut node = Setup::config("[log]\nformat = \"json\"\nfilter = \"trace\"").start().await;
    let token = node.token("alice").await;
    let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    client.say("bob", "a very private word").await;
    let mut wrong =
        TestClient::connect(&node, Framing::WebSocket(convoke_protocol::frame::Codec::Json)).await;
    wrong.greet().await;
    let forged = format!("{}x", &token[..token.len() - 1]);
    let class = convoke_protocol::request::session::DeviceClass::OTHER;
    refused!(wrong, crate::harness::client::login(forged.clone(), "phone", class), BAD_TOKEN);
    ask!(client, convoke_protocol::request::session::Logout {}, LoggedOut);
    client.end().await;
    eventually("the session's end is logged", async || {
        node.stderr()
            .lines()
            .any(|line| line.contains("session closed") && line.contains("alice"))
            .then_some(())
    })
    .await;
    let log = node.stop().await.stderr;
    let signature = |token: &str| token.rsplit('.').next().unwrap()[..20].to_owned();
    for secret in ["a very private word", &signature(&token), &signature(&forged)] {
        assert!(!log.contains(secret), "the log has {secret:?}");
    }
    // Objects only, apart from the words for the person who started it.
    let objects = log.lines().filter(|line| line.starts_with('{'));
    assert!(objects.clone().count() > 5, "{log}");
    for line in objects {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}
