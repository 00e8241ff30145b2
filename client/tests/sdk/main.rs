//! The SDK against a server that loses answers, pushes and connections.

mod fake_server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use convoke_client::{
    Backoff, Client, ClientConfig, ClientError, ClientEvent, DisconnectReason, Draft, Events, Start, Tls,
    TokenSource,
};
use convoke_protocol::error_code::{ErrorCode, Outcome, RequestError};
use convoke_protocol::event::{GoAway, Kicked, NodeAddress};
use convoke_protocol::frame::Request;
use convoke_protocol::id::{ConversationId, DeviceId, Seq};
use convoke_protocol::message::{Content, Cursor};
use convoke_protocol::request::messages::{Direction, History, HistoryFrom, PullRange};
use fake_server::{FakeServer, Fate, SendFate, busy, group, pair, sends, to_bob, user};

const SOON: Duration = Duration::from_secs(20);

fn config(servers: &[&FakeServer]) -> ClientConfig {
    let addresses = servers.iter().map(|server| server.address.clone()).collect();
    let mut config = ClientConfig::new(addresses, "token", DeviceId::new("phone").expect("valid"));
    config.start = Start::from_first();
    config.backoff = Backoff { min: Duration::from_millis(5), max: Duration::from_millis(50) };
    config
}

async fn connect(server: &FakeServer) -> (Client, Events) {
    Client::connect(config(&[server])).await.expect("it connects")
}

async fn next(events: &mut Events) -> ClientEvent {
    tokio::time::timeout(SOON, events.next()).await.expect("an event comes").expect("it is not the end")
}

async fn until(events: &mut Events, wanted: impl Fn(&ClientEvent) -> bool) -> ClientEvent {
    loop {
        let event = next(events).await;
        if wanted(&event) {
            return event;
        }
    }
}

/// The next texts of one conversation; their numbers must rise by one.
async fn texts(events: &mut Events, wanted: &ConversationId, from: u64, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        if let ClientEvent::Message { conversation, message } = next(events).await
            && conversation == *wanted
        {
            assert_eq!(message.seq.0, from + texts.len() as u64, "in order, once");
            texts.push(message.content.as_text().expect("text").to_owned());
        }
    }
    texts
}

fn numbered(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn a_send_gets_its_receipt_and_comes_back_as_a_message() {
    let server = FakeServer::start().await;
    let (client, mut events) = connect(&server).await;
    let receipt = client.send(to_bob(), Content::text("hello")).await.expect("sent");
    assert_eq!((receipt.conversation, receipt.seq), (pair(), Seq(1)));
    let ClientEvent::Message { message, .. } =
        until(&mut events, |event| matches!(event, ClientEvent::Message { .. })).await
    else {
        unreachable!()
    };
    assert_eq!((message.sender, message.message_id), (user("alice"), receipt.message_id));
    assert_eq!(message.content.as_text(), Some("hello"));
    let first = sends(&server.state());
    assert_eq!((first.len(), first[0].retry.attempt, first[0].retry.age_ms), (1, 1, 0));
}

#[tokio::test]
async fn pipelined_sends_keep_their_order() {
    let server = FakeServer::start().await;
    let (client, _events) = connect(&server).await;
    let mut waiting = std::collections::VecDeque::new();
    for n in 0..500 {
        loop {
            match client.send_nowait(Draft::new(to_bob(), Content::text(n.to_string()))) {
                Ok(sending) => break waiting.push_back((n, sending)),
                Err(ClientError::QueueFull) => {
                    let (n, sending) = waiting.pop_front().expect("something is on its way");
                    assert_eq!(sending.await.expect("sent").seq, Seq(n + 1));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    for (n, sending) in waiting {
        assert_eq!(sending.await.expect("sent").seq, Seq(n + 1));
    }
}

#[tokio::test]
async fn what_was_said_meanwhile_comes_after_a_reconnect_and_nothing_twice() {
    for is_older in [false, true] {
        resume_at(FakeServer::start().await, is_older).await;
    }
}

async fn resume_at(server: FakeServer, is_older: bool) {
    server.state().is_older = is_older;
    server.say(&group(1), "quiet");
    let (_client, mut events) = connect(&server).await;
    assert_eq!(texts(&mut events, &group(1), 1, 1).await, ["quiet"]);
    until(&mut events, |event| *event == ClientEvent::CaughtUp).await;
    for n in 1..4 {
        server.say(&pair(), &n.to_string());
    }
    assert_eq!(texts(&mut events, &pair(), 1, 3).await, numbered(1..4));
    server.close_connections();
    for n in 4..40 {
        server.say(&pair(), &n.to_string());
    }
    let lost = until(&mut events, |event| matches!(event, ClientEvent::Disconnected { .. })).await;
    assert!(matches!(lost, ClientEvent::Disconnected { reason: DisconnectReason::Lost(_) }));
    assert_eq!(texts(&mut events, &pair(), 4, 36).await, numbered(4..40));
    until(&mut events, |event| *event == ClientEvent::CaughtUp).await;
    server.say(&pair(), "live");
    assert_eq!(texts(&mut events, &pair(), 40, 1).await, ["live"]);
    let synced = server.state().requests.iter().rev().find_map(|request| match request {
        Request::Sync(sync) => Some((None, sync.cursors.clone())),
        Request::SyncSince(ask) => Some((ask.since.clone(), ask.cursors.clone())),
        _ => None,
    });
    let (since, cursors) = synced.expect("it asked what it missed");
    let expected =
        [(pair(), 3), (group(1), 1)].map(|(conversation, seq)| Cursor { conversation, seq: Seq(seq) });
    assert_eq!(cursors, expected, "it resumed from its cursors");
    assert_eq!(since.is_some(), !is_older, "a server that keeps an account is asked for what changed");
}

#[tokio::test]
async fn more_conversations_than_fit_one_sync_are_all_resumed() {
    let server = FakeServer::start().await;
    let groups: Vec<_> = (10..30).map(group).collect();
    for id in &groups {
        server.say(id, "1");
    }
    let (_client, mut events) = connect(&server).await;
    for round in 0..3u64 {
        let mut got: BTreeMap<ConversationId, u64> = BTreeMap::new();
        while got.len() < groups.len() {
            if let ClientEvent::Message { conversation, message } = next(&mut events).await {
                assert_eq!(message.seq.0, round + 1);
                assert_eq!(got.insert(conversation, message.seq.0), None, "once");
            }
        }
        until(&mut events, |event| *event == ClientEvent::CaughtUp).await;
        server.close_connections();
        for id in &groups {
            server.say(id, "more");
        }
    }
}

#[tokio::test]
async fn a_send_whose_answer_was_lost_is_repeated_under_its_client_id() {
    let server = FakeServer::start().await;
    let (client, mut events) = connect(&server).await;
    server.state().sends.extend([SendFate::LoseAnswer, SendFate::LoseAnswer]);
    let receipt = client.send(to_bob(), Content::text("once")).await.expect("sent");
    assert_eq!(receipt.seq, Seq(1));
    let attempts: Vec<_> = sends(&server.state()).into_iter().map(|send| send.retry).collect();
    assert_eq!(attempts.iter().map(|retry| retry.attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(attempts.iter().all(|retry| retry.client_id == attempts[0].client_id));
    assert!(attempts[0].age_ms == 0 && attempts[1].age_ms <= attempts[2].age_ms && attempts[2].age_ms > 0);
    assert_eq!(server.state().log[&pair()].len(), 1);
    assert_eq!(texts(&mut events, &pair(), 1, 1).await, ["once"]);
    server.say(&pair(), "next");
    assert_eq!(texts(&mut events, &pair(), 2, 1).await, ["next"]);
}

#[tokio::test]
async fn busy_is_tried_again_and_a_final_no_is_told() {
    let server = FakeServer::start().await;
    let (client, _events) = connect(&server).await;
    server.state().sends.extend([SendFate::Refuse(busy()), SendFate::Refuse(busy())]);
    let begun = Instant::now();
    client.send(to_bob(), Content::text("patience")).await.expect("sent");
    assert!(begun.elapsed() >= Duration::from_millis(40), "it waits as long as it is told to");
    let refusal = RequestError::not_done(ErrorCode::NOT_PERMITTED, "no");
    server.state().sends.push_back(SendFate::Refuse(refusal.clone()));
    let error = client.send(to_bob(), Content::text("no")).await.expect_err("refused");
    assert_eq!((&error, error.may_retry()), (&ClientError::Refused(refusal), false));
}

#[tokio::test]
async fn lost_doubled_and_overtaken_pushes_make_no_difference() {
    let server = FakeServer::start().await;
    let (_client, mut events) = connect(&server).await;
    until(&mut events, |event| *event == ClientEvent::CaughtUp).await;
    server.state().pushes.extend([Fate::Double, Fate::Lose, Fate::Overtaken]);
    for n in 1..6 {
        server.say(&pair(), &n.to_string());
    }
    assert_eq!(texts(&mut events, &pair(), 1, 5).await, numbered(1..6));
    server.state().pushes.extend([Fate::Lose; 25]);
    for n in 6..31 {
        server.say(&pair(), &n.to_string());
    }
    server.lagged(&pair());
    assert_eq!(texts(&mut events, &pair(), 6, 25).await, numbered(6..31));
}

#[tokio::test]
async fn an_overtaking_own_answer_does_not_hide_what_came_before() {
    let server = FakeServer::start().await;
    let (client, mut events) = connect(&server).await;
    until(&mut events, |event| *event == ClientEvent::CaughtUp).await;
    server.state().pushes.push_back(Fate::Lose);
    server.say(&pair(), "before");
    assert_eq!(client.send(to_bob(), Content::text("after")).await.expect("sent").seq, Seq(2));
    assert_eq!(texts(&mut events, &pair(), 1, 2).await, ["before", "after"]);
}

#[tokio::test]
async fn go_away_leads_to_another_node_without_an_error() {
    let one = FakeServer::start().await;
    let two = FakeServer::beside(&one).await;
    let (client, mut events) = connect(&one).await;
    until(&mut events, |event| *event == ClientEvent::CaughtUp).await;
    let node = NodeAddress { node: "n2".into(), tcp: Some(two.address.clone()), ws: None };
    one.event(GoAway { reason: ErrorCode::SHUTDOWN, retry_after_ms: 10, nodes: vec![node] });
    let lost = until(&mut events, |event| matches!(event, ClientEvent::Disconnected { .. })).await;
    let reason = DisconnectReason::GoAway(ErrorCode::SHUTDOWN);
    assert_eq!(lost, ClientEvent::Disconnected { reason });
    client.send(to_bob(), Content::text("elsewhere")).await.expect("sent");
    let there = until(&mut events, |event| matches!(event, ClientEvent::Connected { .. })).await;
    assert!(matches!(there, ClientEvent::Connected { address, .. } if address == two.address));
}

#[tokio::test]
async fn kicked_is_the_end() {
    let server = FakeServer::start().await;
    let (client, mut events) = connect(&server).await;
    server.event(Kicked { reason: ErrorCode::DEVICE_REPLACED, message: "elsewhere".into() });
    let kicked = until(&mut events, |event| matches!(event, ClientEvent::Kicked { .. })).await;
    assert!(matches!(kicked, ClientEvent::Kicked { reason: ErrorCode::DEVICE_REPLACED, .. }));
    assert_eq!(events.next().await, None);
    let error = client.send(to_bob(), Content::text("too late")).await.expect_err("over");
    let reason = Some(ErrorCode::DEVICE_REPLACED);
    assert_eq!(error, ClientError::Closed { reason, outcome: Outcome::NOT_DONE });
    assert_eq!(server.state().logins, 1);
}

#[tokio::test]
async fn a_silent_server_is_left_and_sends_survive_it() {
    let server = FakeServer::start().await;
    let mut config = config(&[&server]);
    config.answer_timeout = Duration::from_millis(200);
    config.heartbeat = Some(Duration::from_millis(100));
    let (client, mut events) = Client::connect(config).await.expect("it connects");
    server.until("an answered heartbeat", |state| state.requests.contains(&heartbeat()).then_some(())).await;
    server.state().mute = true;
    let receipt = client.send(to_bob(), Content::text("hello?")).await.expect("sent in the end");
    assert_eq!(receipt.seq, Seq(1));
    let lost = until(&mut events, |event| matches!(event, ClientEvent::Disconnected { .. })).await;
    assert_eq!(lost, ClientEvent::Disconnected { reason: DisconnectReason::Silent });
    assert_eq!(server.state().logins, 2);
}

fn heartbeat() -> Request {
    convoke_protocol::request::session::Heartbeat {}.into()
}

#[tokio::test]
async fn pushes_are_acknowledged_in_batches_and_cursors_once_dealt_with() {
    let server = FakeServer::start().await;
    let (client, mut events) = connect(&server).await;
    until(&mut events, |event| *event == ClientEvent::CaughtUp).await;
    for n in 0..64 {
        server.say(&pair(), &n.to_string());
    }
    let acks = |state: &fake_server::State| -> Vec<_> {
        let ack = |request: &Request| match request {
            Request::Ack(ack) => Some(ack.clone()),
            _ => None,
        };
        state.requests.iter().filter_map(ack).collect()
    };
    let first = server.until("an ack of the batch", |state| acks(state).first().cloned()).await;
    assert_eq!((first.pushes, first.cursors), (64, vec![]), "received, but not dealt with");
    assert_eq!(texts(&mut events, &pair(), 1, 10).await.len(), 10);
    let told = |seq| {
        let cursor = Cursor { conversation: pair(), seq };
        move |state: &fake_server::State| {
            acks(state).iter().any(|ack| ack.cursors == [cursor.clone()]).then_some(())
        }
    };
    // The tenth is in the application's hands: it is dealt with when the next one is asked for.
    server.until("the cursor of the ninth", told(Seq(9))).await;
    events.done();
    client.logout().await.expect("logged out");
    server.until("the cursor of the tenth", told(Seq(10))).await;
    assert!(matches!(client.sessions().await, Err(ClientError::Closed { .. })));
}

#[tokio::test]
async fn a_new_process_goes_on_behind_the_cursors_of_its_device() {
    let server = FakeServer::start().await;
    for n in 1..6 {
        server.say(&pair(), &n.to_string());
    }
    let mut config = config(&[&server]);
    config.start = Start::from_device();
    let (client, mut events) = Client::connect(config.clone()).await.expect("it connects");
    assert_eq!(texts(&mut events, &pair(), 1, 3).await, numbered(1..4));
    events.done();
    client.logout().await.expect("logged out");
    server.say(&pair(), "6");
    let (_client, mut events) = Client::connect(config).await.expect("it connects");
    assert_eq!(texts(&mut events, &pair(), 4, 3).await, numbered(4..7));
}

#[tokio::test]
async fn an_application_that_does_not_listen_still_gets_answers_and_later_everything() {
    let server = FakeServer::start().await;
    let (client, mut events) = connect(&server).await;
    for n in 1..5001u64 {
        server.say(&pair(), &n.to_string());
        if n % 1000 == 0 {
            client.send(to_bob(), Content::text("own")).await.expect("sent");
        }
    }
    let got = texts(&mut events, &pair(), 1, 5005).await;
    assert_eq!(got.iter().filter(|text| *text == "own").count(), 5);
    assert_eq!(got.into_iter().filter(|text| text != "own").collect::<Vec<_>>(), numbered(1..5001));
}

#[tokio::test]
async fn a_refused_login_is_told_and_tokens_are_made_anew() {
    let server = FakeServer::start().await;
    let bad = RequestError::not_done(ErrorCode::BAD_TOKEN, "no");
    server.state().refuse_logins.push_back(bad.clone());
    let error = Client::connect(config(&[&server])).await.expect_err("refused");
    assert_eq!(error, ClientError::Connect(convoke_client::ConnectionError::Refused(bad)));

    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let mut config = config(&[&server]);
    config.token =
        TokenSource::from_fn(move || Ok(format!("token {}", counter.fetch_add(1, Ordering::Relaxed))));
    server.state().refuse_logins.push_back(RequestError::not_done(ErrorCode::TOKEN_EXPIRED, "old"));
    let (_client, mut events) = Client::connect(config).await.expect("the second token is taken");
    server.close_connections();
    until(&mut events, |event| matches!(event, ClientEvent::Disconnected { .. })).await;
    until(&mut events, |event| matches!(event, ClientEvent::Connected { .. })).await;
    assert_eq!(server.state().tokens[1..], ["token 0", "token 1", "token 2"]);
}

#[tokio::test]
async fn a_connection_that_is_turned_away_says_why_and_is_tried_again() {
    let server = FakeServer::start().await;
    let full = RequestError::not_done(ErrorCode::TOO_MANY_CONNECTIONS, "full").retry_after(20);
    server.state().turn_away.push_back(full.clone());
    let (_client, mut events) = connect(&server).await;
    let refused = ClientError::Connect(convoke_client::ConnectionError::Refused(full));
    assert!(matches!(next(&mut events).await, ClientEvent::ConnectFailed { error, .. } if error == refused));
    assert!(matches!(next(&mut events).await, ClientEvent::Connected { .. }));
}

#[tokio::test]
async fn a_body_above_the_bound_costs_nobody_the_connection() {
    let server = FakeServer::start().await;
    let (client, _events) = connect(&server).await;
    let error = client.send(to_bob(), Content::text("x".repeat(2 << 20))).await.expect_err("too large");
    assert!(matches!(&error, ClientError::Refused(error) if error.code == ErrorCode::BODY_TOO_LARGE));
    client.send(to_bob(), Content::text("x".repeat(256 << 10))).await.expect("sent");
    assert_eq!(server.state().logins, 1);
}

#[tokio::test]
async fn a_cursor_that_is_refused_for_good_is_not_told_for_ever() {
    let server = FakeServer::start().await;
    let (_client, mut events) = connect(&server).await;
    let refusals = [
        RequestError::not_done(ErrorCode::UNAVAILABLE, "later").retry_after(1),
        RequestError::not_done(ErrorCode::NOT_FOUND, "not yours"),
    ];
    server.state().refuse_acks.extend(refusals);
    server.say(&group(1), "1");
    assert_eq!(texts(&mut events, &group(1), 1, 1).await, ["1"]);
    events.done();
    let told = |id: ConversationId, times: usize| {
        move |state: &fake_server::State| {
            let has = |ack: &&Request| matches!(ack, Request::Ack(ack) if ack.cursors.iter().any(|c| c.conversation == id));
            (state.requests.iter().filter(has).count() >= times).then_some(())
        }
    };
    server.until("the cursor, twice", told(group(1), 2)).await;
    server.say(&group(2), "1");
    assert_eq!(texts(&mut events, &group(2), 1, 1).await, ["1"]);
    events.done();
    server.until("another cursor", told(group(2), 1)).await;
    assert!(told(group(1), 3)(&server.state()).is_none(), "it was given up");
}

#[tokio::test]
async fn what_is_given_up_says_whether_it_may_have_happened() {
    let server = FakeServer::start().await;
    let mut config = config(&[&server]);
    config.send_deadline = Duration::from_millis(300);
    let (client, _events) = Client::connect(config).await.expect("it connects");
    server.state().mute = true;
    let error = client.send(to_bob(), Content::text("?")).await.expect_err("no answer");
    assert_eq!((error.outcome(), error.may_retry()), (Outcome::UNKNOWN, false));
    server.stop();
    // The loss is noticed before anything is written to it.
    tokio::time::timeout(SOON, async {
        while client.send(to_bob(), Content::text("?")).await.map_err(|error| error.outcome())
            != Err(Outcome::NOT_DONE)
        {}
    })
    .await
    .expect("without a connection nothing happens");
}

#[tokio::test]
async fn nobody_there_is_told_in_time() {
    let server = FakeServer::start().await;
    server.stop();
    let mut config = config(&[&server]);
    config.connect_deadline = Duration::from_millis(200);
    let error = Client::connect(config).await.expect_err("nobody there");
    assert_eq!((error.outcome(), error.may_retry()), (Outcome::NOT_DONE, true));
}

#[tokio::test]
async fn the_other_requests_are_answered() {
    let server = FakeServer::start().await;
    for n in 1..4 {
        server.say(&pair(), &n.to_string());
    }
    let (client, _events) = connect(&server).await;
    let range = PullRange { conversation: pair(), from: Seq(2), to: Seq(9) };
    let pulled = client.pull(vec![range]).await.expect("pulled");
    assert_eq!(pulled.pages[0].messages.len(), 2);
    let history =
        History { conversation: pair(), from: HistoryFrom::Last, direction: Direction::Older, limit: 50 };
    assert_eq!(client.history(history).await.expect("read").page.messages.len(), 3);
    let sessions = client.sessions().await.expect("listed");
    client.close_session(sessions[0].session).await.expect("closed");
    let sync =
        convoke_protocol::request::sync::Sync { cursors: vec![], use_device_cursors: false, after: None };
    assert_eq!(client.sync(sync).await.expect("synced").conversations.len(), 1);
}

#[tokio::test]
async fn the_session_ends_with_its_handles() {
    let server = FakeServer::start().await;
    let (client, mut events) = connect(&server).await;
    drop(client);
    server.say(&pair(), "still here");
    assert_eq!(texts(&mut events, &pair(), 1, 1).await, ["still here"]);
    drop(events);
    tokio::time::timeout(SOON, async {
        // A session that is gone drops its end of the queue.
        while server.say(&pair(), "anybody?") < Seq(1_000_000) && server.has_sessions() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the connection is closed");
}

#[tokio::test]
async fn tls_is_spoken_and_a_stranger_is_not_trusted() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let acceptor = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a configuration");
    let server = FakeServer::start_tls(Arc::new(acceptor).into()).await;
    let trusting = Tls::from_ca_pem(made.cert.pem().as_bytes()).expect("a PEM").server_name("localhost");
    let mut config = config(&[&server]);
    config.tls = Some(trusting);
    let (client, _events) = Client::connect(config.clone()).await.expect("it connects");
    client.send(to_bob(), Content::text("secret")).await.expect("sent");

    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    config.tls = Some(Tls::from_ca_pem(other.cert.pem().as_bytes()).expect("a PEM").server_name("localhost"));
    config.connect_deadline = Duration::ZERO;
    assert!(matches!(Client::connect(config).await, Err(ClientError::Connect(_))));
}

#[tokio::test]
async fn an_idle_client_does_nothing() {
    for keep_cursors in [true, false] {
        let server = FakeServer::start().await;
        let config = ClientConfig { keep_cursors, ..config(&[&server]) };
        let (client, mut events) = Client::connect(config).await.expect("it connects");
        client.send(to_bob(), Content::text("x")).await.expect("sent");
        assert_eq!(texts(&mut events, &pair(), 1, 1).await, ["x"]);
        let runtime = tokio::runtime::Handle::current().metrics();
        let before = runtime.worker_total_busy_duration(0);
        // Longer than every timer of an idle session but the heartbeat's: one that fires for ever is seen.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let busy = runtime.worker_total_busy_duration(0) - before;
        assert!(busy < Duration::from_secs(1), "busy for {busy:?} of 3 s, keep_cursors = {keep_cursors}");
    }
}
