//! Two people talk, over every framing and across them.

use bytes::Bytes;
use convoke_protocol::error_code::Outcome;
use convoke_protocol::frame::{Answer, Codec};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{GroupId, Seq};
use convoke_protocol::message::{Content, ContentType, MessageKind, Priority};
use convoke_protocol::request::messages::{Send, Target};
use convoke_protocol::request::session::Heartbeat;

use crate::harness::client::{conversation, frame};
use crate::harness::{Setup, TestClient, TestNode, to_user};

const JSON: Framing = Framing::WebSocket(Codec::Json);

#[tokio::test]
async fn two_people_talk_whatever_each_of_them_speaks() {
    let node = TestNode::start().await;
    for one in Framing::ALL {
        for other in Framing::ALL {
            let (alice, bob) =
                (format!("alice-{}", one.name()), format!("bob-{}-{}", one.name(), other.name()));
            let pair = conversation(&alice, &bob);
            let mut hers = TestClient::login(&node, one, &alice, "phone").await;
            // He is online and has never heard of her.
            let mut his = TestClient::login(&node, other, &bob, "laptop").await;
            let said = hers.say(&bob, "hello, Bob").await;
            let push = his.push().await;
            assert_eq!((&said.conversation, said.seq), (&pair, Seq(1)));
            assert_eq!((&push.conversation, push.lane_previous), (&pair, Seq(0)));
            let message = push.message;
            assert_eq!(
                (message.seq, message.message_id, message.time),
                (said.seq, said.message_id, said.time)
            );
            assert_eq!((message.sender.as_str(), message.device.as_str()), (alice.as_str(), "phone"));
            assert_eq!((message.kind, message.priority), (MessageKind::USER, Priority::NORMAL));
            assert_eq!(message.content, Content::text("hello, Bob"));

            let answer = Send { reply_to: Some(Seq(1)), previous: Some(Seq(1)), ..to_user(&alice, "hello") };
            let answered = ask!(his, answer, Sent);
            // The first event she gets: what she said herself was answered and is not pushed.
            let push = hers.push().await;
            assert_eq!((answered.seq, push.message.seq, push.lane_previous), (Seq(2), Seq(2), Seq(1)));
            assert_eq!((push.message.reply_to, push.message.previous), (Some(Seq(1)), Some(Seq(1))));
            assert!(answered.time >= said.time);
            // Ids follow the milliseconds; within one they are random.
            assert!(answered.time == said.time || answered.message_id.0 > said.message_id.0);
            let (seen, also_seen) = (hers.pull_all(&pair).await, his.pull_all(&pair).await);
            assert_eq!(seen, also_seen);
            assert_eq!(seen, [message, push.message]);
        }
    }
}

#[tokio::test]
async fn every_device_of_both_gets_what_is_said() {
    let node = TestNode::start().await;
    let mut phone = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut laptop = TestClient::login(&node, Framing::WebSocket(Codec::Bincode), "alice", "laptop").await;
    let mut tablet = TestClient::login(&node, JSON, "alice", "tablet").await;
    let mut bob = TestClient::login(&node, Framing::Tcp, "bob", "phone").await;
    let mut stranger = TestClient::login(&node, Framing::Tcp, "carol", "phone").await;
    phone.say("bob", "one").await;
    laptop.say("bob", "two").await;
    bob.say("alice", "three").await;
    for (client, seqs) in
        [(&mut phone, &[2, 3][..]), (&mut laptop, &[1, 3]), (&mut tablet, &[1, 2, 3]), (&mut bob, &[1, 2])]
    {
        for seq in seqs {
            assert_eq!(client.push().await.message.seq, Seq(*seq));
        }
    }
    // A device that comes later gets what comes later.
    let mut watch = TestClient::login(&node, Framing::Tcp, "bob", "watch").await;
    phone.say("bob", "four").await;
    assert_eq!(watch.push().await.message.seq, Seq(4));
    // And nobody else anything: the first thing she hears is meant for her.
    phone.say("carol", "hello, Carol").await;
    assert_eq!(stranger.push().await.conversation, conversation("alice", "carol"));
}

#[tokio::test]
async fn notes_to_oneself() {
    let node = TestNode::start().await;
    for framing in Framing::ALL {
        let user = format!("alice-{}@example.org", framing.name());
        let mut phone = TestClient::login(&node, framing, &user, "phone").await;
        let mut laptop = TestClient::login(&node, framing, &user, "laptop").await;
        let sent = phone.say(&user, "milk").await;
        assert_eq!((sent.conversation, sent.seq), (conversation(&user, &user), Seq(1)));
        assert_eq!(laptop.push().await.message.content, Content::text("milk"));
        laptop.say(&user, "and bread").await;
        assert_eq!(phone.push().await.message.seq, Seq(2));
        assert_eq!(phone.pull_all(&conversation(&user, &user)).await.len(), 2);
    }
}

#[tokio::test]
async fn names_may_be_of_any_script() {
    let node = TestNode::start().await;
    let longest = "ü".repeat(64);
    let mut one = TestClient::login(&node, JSON, "Алиса", "телефон").await;
    let mut other = TestClient::login(&node, Framing::Tcp, &longest, "📱").await;
    one.say(&longest, "привет").await;
    let push = other.push().await;
    assert_eq!((push.message.sender.as_str(), push.message.device.as_str()), ("Алиса", "телефон"));
}

#[tokio::test]
async fn answers_carry_numbers_without_a_gap() {
    const EACH: u64 = 150;
    let node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::ALL[0], "alice", "phone").await;
    let mut bob = TestClient::login(&node, Framing::ALL[2], "bob", "phone").await;
    let (mut hers, mut his) = (Vec::new(), Vec::new());
    for n in 0..EACH {
        hers.push(alice.post(to_user("bob", &format!("{n}"))).await);
        his.push(bob.post(to_user("alice", &format!("{n}"))).await);
    }
    let mut all = Vec::new();
    for (client, ids) in [(&mut alice, hers), (&mut bob, his)] {
        let mut before = Seq::ZERO;
        for id in ids {
            let Answer::Sent(sent) = client.answer(id).await else { panic!("a send failed") };
            // What one device sends without waiting is numbered in the order in which it was sent.
            assert!(sent.seq > before, "{} after {before}", sent.seq);
            before = sent.seq;
            all.push(sent.seq.0);
        }
    }
    all.sort_unstable();
    assert_eq!(all, (1..=2 * EACH).collect::<Vec<_>>());
    // That pushes rise and none comes twice is looked at by the client.
    for client in [&mut alice, &mut bob] {
        while client.pushes < EACH {
            client.push().await;
        }
    }
    let messages = alice.pull_all(&conversation("alice", "bob")).await;
    assert_eq!(messages.len() as u64, 2 * EACH);
    assert!(messages.is_sorted_by_key(|message| message.time));
}

#[tokio::test]
async fn what_a_message_refers_to_must_exist() {
    let node = TestNode::start().await;
    for framing in Framing::ALL {
        let bob = format!("bob-{}", framing.name());
        let mut alice = TestClient::login(&node, framing, "alice", framing.name()).await;
        let send = || to_user(&bob, "x");
        for (head, refers_to, good) in
            [(0, 1, false), (0, 0, true), (1, 1, true), (2, 3, false), (2, 2, true)]
        {
            let seq = Some(Seq(refers_to));
            let both = [Send { previous: seq, ..send() }, Send { reply_to: seq, ..send() }];
            // Each of the two that is good raises the head.
            let sends = if good { &both[..1] } else { &both[..] };
            for send in sends {
                match alice.request(send.clone()).await {
                    Answer::Sent(sent) if good => assert_eq!(sent.seq, Seq(head + 1)),
                    Answer::Error(error) if !good => {
                        assert_eq!(
                            (error.code.name(), error.outcome),
                            ("invalid_request", Outcome::NOT_DONE)
                        );
                    }
                    other => panic!("head {head}, refers to {refers_to}: {other:?}"),
                }
            }
        }
        assert_eq!(alice.pull_all(&conversation("alice", &bob)).await.len(), 3);
    }
}

#[tokio::test]
async fn bodies_have_a_bound() {
    let node = Setup::config("[limits]\nmax_body_bytes = 1000").start().await;
    for framing in Framing::ALL {
        let bob = format!("bob-{}", framing.name());
        let mut alice = TestClient::login(&node, framing, "alice", framing.name()).await;
        let error = refused!(alice, to_user(&bob, &"x".repeat(1001)), BODY_TOO_LARGE);
        assert_eq!((error.outcome, error.retry_after_ms), (Outcome::NOT_DONE, None));
        // The session goes on, and the number was not used up.
        assert_eq!(alice.say(&bob, &"x".repeat(1000)).await.seq, Seq(1));
        assert_eq!(alice.say(&bob, "").await.seq, Seq(2));
    }
}

#[tokio::test]
async fn what_users_may_not_do() {
    let node = TestNode::start().await;
    for framing in Framing::ALL {
        let mut alice = TestClient::login(&node, framing, "alice", framing.name()).await;
        refused!(alice, Send { priority: Priority::SYSTEM, ..to_user("bob", "x") }, NOT_PERMITTED);
        let group = Target::Group(GroupId::new("nobody's").unwrap());
        refused!(alice, Send { target: group, ..to_user("bob", "x") }, NOT_FOUND);
    }
}

#[tokio::test]
async fn lanes_keep_their_order() {
    let node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut bob = TestClient::login(&node, JSON, "bob", "phone").await;
    let lanes =
        [Priority::NORMAL, Priority::HIGH, Priority::LOW, Priority::NORMAL, Priority::HIGH, Priority::LOW];
    for priority in lanes {
        ask!(alice, Send { priority, ..to_user("bob", "x") }, Sent);
    }
    let mut pushes = Vec::new();
    for _ in lanes {
        pushes.push(bob.push().await);
    }
    // That those of one lane rise is looked at by the client.
    pushes.sort_by_key(|push| push.message.seq);
    for (n, push) in pushes.iter().enumerate() {
        assert_eq!((push.message.seq, push.message.priority), (Seq(n as u64 + 1), lanes[n]));
        assert!(push.lane_previous < push.message.seq, "{push:?}");
    }
}

#[tokio::test]
async fn json_shows_text_as_text_and_the_rest_in_base64() {
    let node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut bob = TestClient::login(&node, JSON, "bob", "phone").await;
    let cases: &[(&str, &[u8], &str)] = &[
        ("text/plain", "grüße".as_bytes(), r#"{"content_type":"text/plain","text":"grüße"}"#),
        ("text/markdown", b"*a*", r#"{"content_type":"text/markdown","text":"*a*"}"#),
        ("text/plain", &[0xff, 0], r#"{"content_type":"text/plain","data":"/wA="}"#),
        ("image/png", b"\x89PNG", r#"{"content_type":"image/png","data":"iVBORw=="}"#),
        ("application/json", b"{}", r#"{"content_type":"application/json","data":"e30="}"#),
    ];
    for (n, (content_type, body, json)) in cases.iter().enumerate() {
        let content_type = ContentType::new(content_type).unwrap();
        let content = Content { content_type, body: Bytes::from_static(body) };
        ask!(alice, Send { content: content.clone(), ..to_user("bob", "") }, Sent);
        let frame = bob.wire().read().await.unwrap();
        let frame: serde_json::Value = serde_json::from_slice(&frame).unwrap();
        assert_eq!((&frame["type"], &frame["id"]), (&"push".into(), &0.into()));
        let expected: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(frame["body"]["message"]["content"], expected);
        // The same back: either form of what he says arrives as bytes.
        let id = bob.next_id();
        let send = format!(
            r#"{{"id":{id},"type":"send","body":{{"retry":{{"client_id":"0190b79d-0000-7000-8000-{n:012}","attempt":1,
            "age_ms":0}},"target":{{"user":"alice"}},"content":{json}}}}}"#
        );
        bob.post_frame(send.as_bytes()).await;
        assert!(matches!(bob.answer(id).await, Answer::Sent(_)));
        assert_eq!(alice.push().await.message.content, content);
    }
}

#[tokio::test]
async fn requests_that_are_not_understood_are_answered_and_the_session_goes_on() {
    let node = TestNode::start().await;
    for framing in Framing::ALL {
        let codec = framing.codec();
        let mut alice = TestClient::login(&node, framing, "alice", framing.name()).await;
        let unknown: &[u8] = if codec == Codec::Json { br#"{"a":[1,2]}"# } else { &[1, 2, 3] };
        // 200 is an event: nothing that a client may ask either.
        for (number, name) in [(99, "sing"), (301, "dance"), (200, "push")] {
            let id = alice.next_id();
            alice.post_frame(&frame(codec, id, number, name, unknown)).await;
            let Answer::Error(error) = alice.answer(id).await else { panic!("{name} was understood") };
            assert_eq!((error.code.name(), error.outcome), ("unsupported", Outcome::NOT_DONE));
        }
        let wrong: &[u8] = if codec == Codec::Json { br#"{"retry":7}"# } else { &[7] };
        let id = alice.next_id();
        alice.post_frame(&frame(codec, id, 5, "send", wrong)).await;
        let Answer::Error(error) = alice.answer(id).await else { panic!("the send was understood") };
        assert_eq!((error.code.name(), error.outcome), ("invalid_request", Outcome::NOT_DONE));
        ask!(alice, Heartbeat {}, HeartbeatAnswer);
    }
}
