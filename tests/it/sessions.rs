//! The life of a session: who may come, how long one stays, and how it ends.

use std::time::{Duration, Instant};

use convoke_protocol::error_code::{ErrorCode, Outcome};
use convoke_protocol::frame::{Answer, Event, Request};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{Seq, SessionId};
use convoke_protocol::request::Retry;
use convoke_protocol::request::messages::Ack;
use convoke_protocol::request::session::{
    CloseSession, DeviceClass, Heartbeat, Hello, ListSessions, Logout, Sessions,
};

use crate::harness::client::{End, conversation, hello, login};
use crate::harness::{Setup, TestClient, TestNode, eventually, to_user};

/// Tries to log a device in; gives the client back if it may stay.
async fn try_login(
    node: &TestNode,
    framing: Framing,
    user: &str,
    (device, class): (&str, DeviceClass),
) -> Result<TestClient, ErrorCode> {
    let mut client = TestClient::connect(node, framing).await;
    client.greet().await;
    match client.request(login(node.token(user).await, device, class)).await {
        Answer::LoggedIn(_) => Ok(client),
        Answer::Error(error) => {
            assert_eq!(error.outcome, Outcome::NOT_DONE);
            assert_eq!(client.end().await, End::Silent);
            Err(error.code)
        }
        other => panic!("{other:?} to a login"),
    }
}

async fn list(client: &mut TestClient) -> Sessions {
    ask!(client, ListSessions {}, Sessions)
}

async fn close(client: &mut TestClient, session: SessionId) {
    ask!(client, CloseSession { retry: Retry::first(), session }, SessionClosed);
}

#[tokio::test]
async fn a_device_that_logs_in_again_takes_the_place_of_its_older_session() {
    let node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut older = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    for framing in Framing::ALL {
        let mut newer = TestClient::login(&node, framing, "bob", "phone").await;
        assert_eq!(older.end().await, End::Kicked(ErrorCode::DEVICE_REPLACED));
        let sent = alice.say("bob", "to the newer one").await;
        assert_eq!(newer.push().await.message.seq, sent.seq);
        assert_eq!(list(&mut newer).await.sessions.len(), 1);
        older = newer;
    }
    // Another user's device of the same name, and another device of the same user, are no conflict.
    TestClient::login(&node, Framing::Tcp, "carol", "phone").await;
    TestClient::login(&node, Framing::Tcp, "bob", "laptop").await;
    ask!(older, Heartbeat {}, HeartbeatAnswer);
}

#[tokio::test]
async fn or_is_refused_while_the_older_one_lasts() {
    let node = Setup::config("[sessions]\ndevice_conflict = \"refuse\"").start().await;
    let phone = ("phone", DeviceClass::MOBILE);
    let mut older = try_login(&node, Framing::Tcp, "bob", phone).await.ok().unwrap();
    for framing in Framing::ALL {
        let refused = try_login(&node, framing, "bob", phone).await.err();
        assert_eq!(refused, Some(ErrorCode::DEVICE_IN_USE));
    }
    ask!(older, Heartbeat {}, HeartbeatAnswer);
    drop(older);
    // The place is free once the node has seen the end.
    let mut newer =
        eventually("the device may log in", async || try_login(&node, Framing::Tcp, "bob", phone).await.ok())
            .await;
    assert_eq!(list(&mut newer).await.sessions.len(), 1);
}

#[tokio::test]
async fn sessions_are_limited_per_user_and_per_class_of_device() {
    const TOO_MANY: Option<ErrorCode> = Some(ErrorCode::TOO_MANY_SESSIONS);
    let config = "[sessions]\nmax_per_user = 3\nmax_per_class = { mobile = 1, web = 2 }";
    let node = Setup::config(config).start().await;
    let cases = [
        ("alice", "phone", DeviceClass::MOBILE, None),
        ("alice", "phone-2", DeviceClass::MOBILE, TOO_MANY),
        ("alice", "page", DeviceClass::WEB, None),
        // The same device takes its own place, which costs none.
        ("alice", "phone", DeviceClass::MOBILE, None),
        ("alice", "page-2", DeviceClass::WEB, None),
        ("alice", "page-3", DeviceClass::WEB, TOO_MANY),
        ("alice", "desk", DeviceClass::DESKTOP, TOO_MANY),
        ("bob", "phone", DeviceClass::MOBILE, None),
    ];
    let mut live = Vec::new();
    for (n, (user, device, class, expected)) in cases.into_iter().enumerate() {
        let came = try_login(&node, Framing::ALL[n % 3], user, (device, class)).await;
        assert_eq!(came.as_ref().err().copied(), expected, "{user} {device}");
        live.extend(came.ok().map(|client| (user, device, client)));
    }
    // One that ends makes room.
    let place = live.iter().rposition(|(user, device, _)| (*user, *device) == ("alice", "phone")).unwrap();
    let (.., mut phone) = live.remove(place);
    ask!(phone, Logout {}, LoggedOut);
    eventually("there is room again", async || {
        try_login(&node, Framing::Tcp, "alice", ("phone-2", DeviceClass::MOBILE)).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_user_lists_and_closes_their_own_sessions() {
    let node = TestNode::start().await;
    let devices = ["phone", "laptop", "page"];
    let mut clients = Vec::new();
    for (framing, device) in Framing::ALL.into_iter().zip(devices) {
        clients.push(TestClient::login(&node, framing, "alice", device).await);
    }
    let mut mallory = TestClient::login(&node, Framing::Tcp, "mallory", "phone").await;
    let mut ids = Vec::new();
    for (n, client) in clients.iter_mut().enumerate() {
        let sessions = list(client).await.sessions;
        assert_eq!(sessions.iter().map(|session| session.device.as_str()).collect::<Vec<_>>(), devices);
        assert!(sessions.is_sorted_by_key(|session| session.since));
        for (at, session) in sessions.iter().enumerate() {
            assert_eq!((session.current, session.app.as_str()), (at == n, "it 1"));
            assert_eq!((session.node.as_str(), session.device_class), ("n1", DeviceClass::DESKTOP));
        }
        ids = sessions.iter().map(|session| session.session).collect();
    }
    // She is told the same whether it exists or not, and nothing happens.
    close(&mut mallory, ids[0]).await;
    assert_eq!(list(&mut clients[0]).await.sessions.len(), 3);
    let mut laptop = clients.remove(1);
    for _ in 0..2 {
        close(&mut clients[0], ids[1]).await;
    }
    assert_eq!(laptop.end().await, End::Kicked(ErrorCode::CLOSED_BY_USER));
    eventually("it is gone from the list", async || {
        (list(&mut clients[0]).await.sessions.len() == 2).then_some(())
    })
    .await;
    // One's own as well.
    close(&mut clients[1], ids[2]).await;
    assert_eq!(clients[1].end().await, End::Kicked(ErrorCode::CLOSED_BY_USER));
}

#[tokio::test]
async fn who_logs_out_is_gone() {
    let node = TestNode::start().await;
    let mut phone = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    for framing in Framing::ALL {
        let mut laptop = TestClient::login(&node, framing, "alice", "laptop").await;
        assert_eq!(list(&mut phone).await.sessions.len(), 2);
        let logout = laptop.post(Logout {}).await;
        let late = laptop.post(Heartbeat {}).await;
        assert!(matches!(laptop.answer(logout).await, Answer::LoggedOut(_)));
        assert_eq!(laptop.end().await, End::Silent);
        assert_eq!(laptop.arrived(late), None);
        eventually("it is gone from the list", async || {
            (list(&mut phone).await.sessions.len() == 1).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn who_says_nothing_for_too_long_is_let_go() {
    let node = Setup::config("[sessions]\nheartbeat_ms = 1000").start().await;
    let mut quiet = Vec::new();
    let mut awake = Vec::new();
    for framing in Framing::ALL {
        quiet.push(TestClient::login(&node, framing, "quiet", framing.name()).await);
        awake.push(TestClient::login(&node, framing, "awake", framing.name()).await);
    }
    let begin = Instant::now();
    let beating = async {
        let mut beats = tokio::time::interval(Duration::from_millis(500));
        loop {
            beats.tick().await;
            for client in &mut awake {
                ask!(client, Heartbeat {}, HeartbeatAnswer);
            }
        }
    };
    let ends = async {
        for client in &mut quiet {
            assert_eq!(client.end().await, End::GoAway(ErrorCode::IDLE));
        }
    };
    tokio::select! {
        () = beating => unreachable!("they beat for ever"),
        () = ends => {}
    }
    // Three times what they were told, and no sooner.
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    for client in &mut awake {
        ask!(client, Heartbeat {}, HeartbeatAnswer);
    }
}

#[tokio::test]
async fn pushes_that_stay_unacknowledged_end_the_session_and_come_again() {
    let node = Setup::config("[sessions]\nack_deadline_ms = 1000").start().await;
    for framing in Framing::ALL {
        let bob = format!("bob-{}", framing.name());
        let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
        let mut silent = TestClient::login(&node, framing, &bob, "silent").await;
        let mut polite = TestClient::login(&node, framing, &bob, "polite").await;
        alice.say(&bob, "hello").await;
        silent.push().await;
        polite.push().await;
        polite.acknowledge().await;
        // Heartbeats are no acks.
        ask!(silent, Heartbeat {}, HeartbeatAnswer);
        assert_eq!(silent.end().await, End::GoAway(ErrorCode::ACKS_OVERDUE));
        ask!(polite, Heartbeat {}, HeartbeatAnswer);
        let mut again = TestClient::login(&node, framing, &bob, "silent").await;
        assert_eq!(again.pull_all(&conversation("alice", &bob)).await.len(), 1);
    }
}

#[tokio::test]
async fn an_ack_counts_neither_more_than_was_pushed_nor_backwards() {
    let node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut bob = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    let ack = |pushes| Ack { pushes, cursors: Vec::new() };
    for _ in 0..2 {
        alice.say("bob", "x").await;
        bob.push().await;
    }
    refused!(bob, ack(3), INVALID_REQUEST);
    for pushes in [0, 1, 1, 2] {
        ask!(bob, ack(pushes), Acked);
    }
    refused!(bob, ack(1), INVALID_REQUEST);
    ask!(bob, Heartbeat {}, HeartbeatAnswer);
}

#[tokio::test]
async fn a_login_has_a_deadline() {
    let node = Setup::config("[sessions]\nlogin_deadline_ms = 700").start().await;
    for framing in Framing::ALL {
        let mut live = TestClient::login(&node, framing, "alice", framing.name()).await;
        let mut silent = TestClient::connect(&node, framing).await;
        let mut greeted = TestClient::connect(&node, framing).await;
        greeted.greet().await;
        for client in [&mut silent, &mut greeted] {
            assert_eq!(client.end().await, End::Error(ErrorCode::LOGIN_OVERDUE));
        }
        // Who is in stays in.
        ask!(live, Heartbeat {}, HeartbeatAnswer);
    }
    // Nor does one get further who connects and never asks for a WebSocket.
    let mut stream = tokio::net::TcpStream::connect(node.addresses().ws).await.unwrap();
    let mut read = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut read);
    let _ = crate::harness::in_time("the connection ends", ended).await;
}

#[tokio::test]
async fn before_its_login_a_connection_may_send_little() {
    let node = TestNode::start().await;
    for framing in Framing::ALL {
        // In one frame that is too long, and in two that are too long together.
        let mut one = TestClient::connect(&node, framing).await;
        one.post(Hello { app: "x".repeat(4_200), ..hello() }).await;
        assert_eq!(one.end().await, End::Error(ErrorCode::FRAME_TOO_LARGE));
        let mut two = TestClient::connect(&node, framing).await;
        ask!(two, Hello { features: vec!["x".repeat(60); 32], ..hello() }, Welcome);
        two.post(login("x".repeat(2_500), "phone", DeviceClass::OTHER)).await;
        assert_eq!(two.end().await, End::Error(ErrorCode::FRAME_TOO_LARGE));
    }
    // Afterwards it may send what all may.
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    alice.say("alice", &"x".repeat(200_000)).await;
}

#[tokio::test]
async fn what_comes_out_of_order_ends_the_connection() {
    let node = TestNode::start().await;
    let token = node.token("alice").await;
    let to_log_in = || login(token.clone(), "phone", DeviceClass::OTHER);
    let first: [Request; 5] = [
        to_log_in().into(),
        Heartbeat {}.into(),
        Logout {}.into(),
        to_user("bob", "hello").into(),
        ListSessions {}.into(),
    ];
    for framing in Framing::ALL {
        // Before a hello; and, but for the login, between hello and login.
        for (n, request) in first.iter().enumerate() {
            let mut client = TestClient::connect(&node, framing).await;
            refused!(client, request.clone(), OUT_OF_ORDER);
            assert_eq!(client.end().await, End::Silent);
            if n > 0 {
                let mut client = TestClient::connect(&node, framing).await;
                client.greet().await;
                refused!(client, request.clone(), OUT_OF_ORDER);
                assert_eq!(client.end().await, End::Silent);
            }
        }
        // Twice the same.
        let mut client = TestClient::connect(&node, framing).await;
        client.greet().await;
        refused!(client, hello(), OUT_OF_ORDER);
        assert_eq!(client.end().await, End::Silent);
        for again in [Request::from(hello()), to_log_in().into()] {
            let mut client = TestClient::login(&node, framing, "alice", "phone").await;
            refused!(client, again, OUT_OF_ORDER);
            assert_eq!(client.end().await, End::Silent);
        }
        // Another version.
        let mut client = TestClient::connect(&node, framing).await;
        refused!(client, Hello { protocol: 999, ..hello() }, UNSUPPORTED_VERSION);
        assert_eq!(client.end().await, End::Silent);
        // The id of events.
        let mut client = TestClient::login(&node, framing, "alice", "phone").await;
        let frame = Request::from(Heartbeat {}).encode(framing.codec(), 0);
        client.post_frame(&frame).await;
        assert_eq!(client.end().await, End::Error(ErrorCode::MALFORMED_FRAME));
    }
    // What was refused did not happen.
    let mut bob = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    assert_eq!(bob.pull_all(&conversation("alice", "bob")).await.len(), 0);
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "laptop").await;
    assert_eq!(alice.say("bob", "hello").await.seq, Seq(1));
    assert!(matches!(bob.event().await, Event::Push(_)));
}

#[tokio::test]
async fn sends_have_a_rate_where_one_is_configured() {
    let node = Setup::config("[limits]\nsend_rate_per_s = 5\nsend_burst = 3").start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(alice.post(to_user("bob", "x")).await);
    }
    let (mut sent, mut wait_ms) = (0, 0);
    for id in ids {
        match alice.answer(id).await {
            Answer::Sent(_) => sent += 1,
            Answer::Error(error) => {
                assert_eq!((error.code, error.outcome), (ErrorCode::RATE_LIMITED, Outcome::NOT_DONE));
                wait_ms = error.retry_after_ms.unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((3..20).contains(&sent), "{sent}");
    // After the time that it named, one more may go.
    assert!((1..=200).contains(&wait_ms), "{wait_ms}");
    tokio::time::sleep(Duration::from_millis(u64::from(wait_ms))).await;
    alice.say("bob", "x").await;
    // The rate is of the session, not of the user.
    TestClient::login(&node, Framing::Tcp, "alice", "laptop").await.say("bob", "x").await;
}
