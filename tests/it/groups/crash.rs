//! A group outlives a crash at any moment.

use convoke_protocol::frame::{Answer, Request};
use convoke_protocol::framing::Framing;
use convoke_protocol::group::GroupRole;
use convoke_protocol::id::Seq;
use convoke_protocol::request::Retry;
use convoke_protocol::request::conversations::Conversations;
use convoke_protocol::request::groups::{AddMembers, CreateGroup, TransferGroup, UpdateGroup};
use convoke_protocol::request::messages::{Direction, HistoryFrom};

use super::{role, state, update};
use crate::harness::group::{BOTH, add, create, group, group_conversation, remove, to_group, user};
use crate::harness::{TestClient, TestNode};

#[tokio::test]
async fn a_group_outlives_a_crash_as_its_entries_say() {
    let mut node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    ask!(alice, create("team", &["bob", "carol"]), GroupCreated);
    ask!(alice, role("team", "bob", GroupRole::ADMIN), RoleSet);
    ask!(alice, remove("team", &["carol"]), MembersRemoved);
    let left = alice.say_to("team", "after Carol").await;
    let removing = add("team", &["dave"]);
    let added = ask!(alice, removing.clone(), MembersAdded);
    let before = state(&mut alice, "team").await;
    for _ in 0..2 {
        node.kill().await;
        node.start_again().await;
        let mut alice = TestClient::login(&node, BOTH[1], "alice", "phone").await;
        // A sleeping group is read from the store, one that is used from its actor.
        let standing = alice.standing(&group_conversation("team")).await.unwrap();
        assert_eq!((standing.head, standing.read), (added.seq.unwrap(), Seq(left)));
        assert_eq!(state(&mut alice, "team").await, before);
        let retry = Retry { attempt: 2, age_ms: 1_000, ..removing.retry };
        let again = AddMembers { retry, ..removing.clone() };
        assert_eq!(ask!(alice, again, MembersAdded), added);
        let mut carol = TestClient::login(&node, Framing::Tcp, "carol", "phone").await;
        let page =
            carol.history(&group_conversation("team"), HistoryFrom::Last, Direction::Older, 9).await.page;
        assert_eq!(page.head, Seq(3));
        refused!(carol, to_group("team", "me"), NOT_PERMITTED);
    }
    node.stop().await;
    node.check().await;
}

/// The second attempt of a request.
fn again(mut request: Request) -> Request {
    if let Some(retry) = request.retry_mut() {
        *retry = Retry { attempt: 2, age_ms: 3_000, ..*retry };
    }
    request
}

#[tokio::test]
async fn group_commands_in_flight_at_a_crash_are_done_once() {
    let mut node = TestNode::start().await;
    for round in 0..6 {
        let id = format!("team-{round}");
        let member = format!("m{round}");
        let mut alice = TestClient::login(&node, BOTH[round % 2], "alice", "phone").await;
        ask!(alice, create(&id, &["bob", "carol"]), GroupCreated);
        let anonymous = CreateGroup { group: None, ..create("x", &[&member]) };
        let unique = CreateGroup { group: None, unique: true, ..create("x", &["bob", &member]) };
        let rename = UpdateGroup { name: Some(format!("name {round}")), ..update(&id) };
        let transfer = TransferGroup { retry: Retry::first(), group: group(&id), to: user("bob") };
        let requests: Vec<Request> = vec![
            anonymous.into(),
            unique.into(),
            add(&id, &[&member]).into(),
            remove(&id, &["carol"]).into(),
            rename.into(),
            to_group(&id, "hello").into(),
            transfer.into(),
        ];
        let mut ids = Vec::new();
        for request in &requests {
            ids.push(alice.post(request.clone()).await);
        }
        // Some are answered, one is being carried out, the others wait.
        for id in &ids[..round] {
            assert!(!matches!(alice.answer(*id).await, Answer::Error(_)));
        }
        node.kill().await;
        let mut before = Vec::new();
        for id in &ids[round..] {
            before.push(alice.try_answer(*id).await);
        }
        node.start_again().await;
        let mut alice = TestClient::login(&node, BOTH[(round + 1) % 2], "alice", "phone").await;
        for (request, before) in requests[round..].iter().zip(before) {
            let answer = alice.request(again(request.clone())).await;
            assert!(!matches!(answer, Answer::Error(_)), "{answer:?}");
            // What was answered before the crash is answered the same.
            assert!(before.is_none_or(|before| before == answer), "{answer:?}");
        }
        let seen = state(&mut alice, &id).await;
        let info = seen.info.unwrap();
        assert_eq!((seen.owner, seen.members), (Some(user("bob")), 3));
        assert_eq!(info.profile.name, format!("name {round}"));
        let log = alice.pull_all(&group_conversation(&id)).await;
        // Made, added, removed, renamed, spoken, transferred: each once.
        assert_eq!(log.len(), 6, "{log:?}");
    }
    let mut alice = TestClient::login(&node, BOTH[0], "alice", "phone").await;
    let list = Conversations { after: None, limit: 200, known_version: None };
    let list = ask!(alice, list, ConversationList);
    assert_eq!(list.conversations.len(), 18, "a group was made twice");
    node.stop().await;
    node.check().await;
}
