//! Who is no member learns nothing of a group, whatever they ask, and made-up ids cost nothing.

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::frame::{Answer, Request};
use convoke_protocol::framing::Framing;
use convoke_protocol::group::GroupRole;
use convoke_protocol::id::{GroupId, Seq};
use convoke_protocol::message::{Content, Cursor};
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::{Hide, Reactions, Retention, SetRetention};
use convoke_protocol::request::conversations::SetConversation;
use convoke_protocol::request::groups::{
    DecideJoin, DisbandGroup, GetGroup, GroupMembers, JoinRequests, TransferGroup, UpdateGroup,
};
use convoke_protocol::request::messages::{Ack, Direction, History, HistoryFrom, Pull, PullRange, Target};
use convoke_protocol::request::read_state::{Read, ReadMarks, Signal};
use convoke_protocol::request::sync::Sync;

use super::{get, join, leave, mute, role, state, update};
use crate::harness::group::{
    BOTH, add, create, delete, edit, group, group_conversation, react, recall, remove, to_group, user,
};
use crate::harness::http::metric;
use crate::harness::{TestClient, TestNode};

/// Every request that names a group.
fn every_request(id: &str) -> Vec<Request> {
    let conversation = group_conversation(id);
    let target = Target::Group(group(id));
    let retry = Retry::first;
    vec![
        to_group(id, "x").into(),
        get(id).into(),
        UpdateGroup { name: Some("x".into()), ..update(id) }.into(),
        add(id, &["mallory"]).into(),
        remove(id, &["alice"]).into(),
        leave(id).into(),
        role(id, "alice", GroupRole::MEMBER).into(),
        TransferGroup { retry: retry(), group: group(id), to: user("mallory") }.into(),
        mute(id, None, None).into(),
        join(id).into(),
        JoinRequests { group: group(id), after: None, limit: 1 }.into(),
        DecideJoin { retry: retry(), group: group(id), user: user("alice"), accept: true }.into(),
        DisbandGroup { retry: retry(), group: group(id) }.into(),
        GroupMembers { group: group(id), after: None, limit: 1, known_version: None }.into(),
        SetRetention {
            retry: retry(),
            conversation: conversation.clone(),
            retention: Some(Retention::default()),
        }
        .into(),
        recall(&conversation, 2).into(),
        edit(&conversation, 2, "x").into(),
        delete(&conversation, 2, false).into(),
        react(&conversation, 2, "x", true).into(),
        Hide { retry: retry(), conversation: conversation.clone(), seqs: vec![Seq(2)], up_to: None }.into(),
        Reactions {
            conversation: conversation.clone(),
            seq: Seq(2),
            kind: "x".into(),
            after: None,
            limit: 1,
        }
        .into(),
        History {
            conversation: conversation.clone(),
            from: HistoryFrom::Last,
            direction: Direction::Older,
            limit: 1,
        }
        .into(),
        Read { retry: retry(), conversation: conversation.clone(), seq: Seq(1) }.into(),
        ReadMarks { conversation: conversation.clone(), after: None, limit: 1 }.into(),
        Signal { target, kind: "typing".into(), content: Content::text("") }.into(),
        SetConversation { retry: retry(), conversation, label: None, muted: Some(true), pinned: None }.into(),
    ]
}

#[tokio::test]
async fn a_group_of_others_answers_as_one_that_does_not_exist() {
    let node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    ask!(alice, create("secret", &["bob"]), GroupCreated);
    alice.say_to("secret", "hush").await;
    for framing in BOTH {
        let mut mallory = TestClient::login(&node, framing, "mallory", "phone").await;
        for (there, absent) in every_request("secret").into_iter().zip(every_request("absent")) {
            let name = there.name();
            let answers = [mallory.request(there).await, mallory.request(absent).await];
            let Answer::Error(error) = &answers[0] else { panic!("{name}: {:?}", answers[0]) };
            assert_eq!(error.code, ErrorCode::NOT_FOUND, "{name}");
            assert_eq!(answers[0], answers[1], "{name}");
        }
        // These answer within their pages, or not at all.
        let range = |id: &str| PullRange { conversation: group_conversation(id), from: Seq(1), to: Seq(9) };
        let ranges = vec![range("secret"), range("absent")];
        let pages = ask!(mallory, Pull { ranges }, Pulled).pages;
        assert_eq!(pages[0].error.as_ref().map(|error| error.code), Some(ErrorCode::NOT_FOUND));
        assert_eq!(pages[0].error, pages[1].error);
        assert_eq!((pages[0].messages.len(), pages[0].head), (0, pages[1].head));
        let cursor = |id: &str| Cursor { conversation: group_conversation(id), seq: Seq(1) };
        let cursors = vec![cursor("secret"), cursor("absent")];
        ask!(mallory, Ack { pushes: 0, cursors: cursors.clone() }, Acked);
        let sync = Sync { cursors, use_device_cursors: true, after: None };
        let synced = ask!(mallory, sync, Synced);
        assert_eq!((synced.conversations, synced.pages), (Vec::new(), Vec::new()));
        assert_eq!(mallory.take_events(), []);
    }
    // Nothing was changed by all that.
    assert_eq!(state(&mut alice, "secret").await.version, 1);
}

#[tokio::test]
async fn made_up_groups_take_no_memory() {
    let node = TestNode::start().await;
    let mut mallory = TestClient::login(&node, Framing::Tcp, "mallory", "phone").await;
    for n in 0..2_000 {
        let id = GroupId::new(&format!("made-up-{n}")).unwrap();
        refused!(mallory, GetGroup { group: id, known_version: None }, NOT_FOUND);
    }
    assert_eq!(metric(&node, "convoke_conversations_active").await, 0.0);
}
