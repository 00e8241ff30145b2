//! Groups: who may do what, who gets and reads what; that it all outlives a crash, and that strangers learn nothing.

mod crash;
mod foreign;

use convoke_protocol::event::{JoinAnswered, JoinRequested};
use convoke_protocol::frame::{Answer, Event};
use convoke_protocol::framing::Framing;
use convoke_protocol::group::{
    AddPolicy, GroupChanged, GroupEvent, GroupProfile, GroupRole, HistoryForNewMembers, JoinPolicy,
    MemberEvent, MembersChanged,
};
use convoke_protocol::id::{ClientId, Seq, Timestamp};
use convoke_protocol::message::{Content, MessageKind};
use convoke_protocol::request::Retry;
use convoke_protocol::request::groups::{
    CreateGroup, DecideJoin, DisbandGroup, GetGroup, GroupMembers, GroupState, JoinGroup, JoinRequests,
    LeaveGroup, Mute, SetRole, TransferGroup, UpdateGroup,
};
use convoke_protocol::request::messages::{Direction, HistoryFrom, Target};
use convoke_protocol::request::read_state::{Read, ReadMarks, Signal};

use crate::harness::group::{
    BOTH, add, create, group, group_conversation, remove, text, to_group, user, users,
};
use crate::harness::{Setup, TestClient, TestNode};

fn get(id: &str) -> GetGroup {
    GetGroup { group: group(id), known_version: None }
}

async fn state(client: &mut TestClient, id: &str) -> GroupState {
    ask!(client, get(id), GroupState)
}

fn update(id: &str) -> UpdateGroup {
    UpdateGroup {
        retry: Retry::first(),
        group: group(id),
        name: None,
        description: None,
        avatar: None,
        announcement: None,
        custom: Vec::new(),
        join_policy: None,
        add_policy: None,
        history_for_new_members: None,
    }
}

fn mute(id: &str, member: Option<&str>, until: Option<u64>) -> Mute {
    let (user, until) = (member.map(user), until.map(Timestamp));
    Mute { retry: Retry::first(), group: group(id), user, until }
}

fn role(id: &str, member: &str, role: GroupRole) -> SetRole {
    SetRole { retry: Retry::first(), group: group(id), user: user(member), role }
}

fn join(id: &str) -> JoinGroup {
    JoinGroup { retry: Retry::first(), group: group(id), message: "let me in".into() }
}

fn leave(id: &str) -> LeaveGroup {
    LeaveGroup { retry: Retry::first(), group: group(id) }
}

async fn three(
    node: &TestNode,
    framing: Framing,
    tag: &str,
) -> (TestClient, TestClient, TestClient, [String; 3]) {
    let names = ["alice", "bob", "carol"].map(|name| format!("{name}-{tag}"));
    let alice = TestClient::login(node, framing, &names[0], "phone").await;
    // The others come the other way.
    let other = BOTH[usize::from(framing == BOTH[0])];
    let bob = TestClient::login(node, other, &names[1], "phone").await;
    let carol = TestClient::login(node, framing, &names[2], "phone").await;
    (alice, bob, carol, names)
}

#[tokio::test]
async fn a_group_is_made_once_and_says_what_it_is() {
    let node = TestNode::start().await;
    for framing in BOTH {
        let tag = framing.name().replace([' ', '/'], "-");
        let (mut alice, mut bob, _, [_, bobs, _]) = three(&node, framing, &tag).await;
        let id = format!("team-{tag}");
        let ask = create(&id, &[&bobs]);
        let made = ask!(alice, ask.clone(), GroupCreated);
        assert_eq!((made.created, made.seq, &made.conversation), (true, Seq(1), &group_conversation(&id)));
        // A retry has the same answer, somebody else's group of that id is in the way.
        let retry = Retry { attempt: 2, age_ms: 10, ..ask.retry };
        assert_eq!(ask!(alice, CreateGroup { retry, ..ask.clone() }, GroupCreated), made);
        refused!(bob, create(&id, &[]), GROUP_EXISTS);
        // What it says is in its first entry, and Bob, who was online, gets it.
        let first = bob.push_of(&made.conversation, 1).await;
        assert_eq!(first.kind, MessageKind::GROUP);
        let body: GroupChanged = serde_json::from_slice(&first.content.body).unwrap();
        assert_eq!((body.event, body.changes.len()), (GroupEvent::CREATED, 2));
        let seen = state(&mut bob, &id).await;
        assert_eq!(seen.info, Some(body.group));
        assert_eq!((seen.members, seen.version, seen.not_modified), (2, 1, false));
        assert_eq!(seen.me.map(|me| me.role), Some(GroupRole::MEMBER));
        let again = ask!(bob, GetGroup { known_version: Some(1), ..get(&id) }, GroupState);
        assert!(again.not_modified && again.info.is_none());
        // Changing it is a numbered entry; changing nothing is none.
        refused!(bob, UpdateGroup { name: Some("Bob's".into()), ..update(&id) }, NOT_PERMITTED);
        let change = UpdateGroup {
            announcement: Some("Monday".into()),
            custom: vec![("colour".into(), Some("blue".into()))],
            ..update(&id)
        };
        assert_eq!(ask!(alice, change.clone(), GroupUpdated).seq, Some(Seq(2)));
        assert_eq!(ask!(alice, UpdateGroup { retry: Retry::first(), ..change }, GroupUpdated).seq, None);
        let profile = state(&mut bob, &id).await.info.unwrap().profile;
        assert_eq!(
            (profile.announcement.as_str(), &profile.custom["colour"]),
            ("Monday", &"blue".to_owned())
        );
        let long = UpdateGroup { name: Some("x".repeat(300)), ..update(&id) };
        refused!(alice, long, INVALID_REQUEST);
        // Without an id the server gives one, the same to every attempt.
        let anonymous = CreateGroup { group: None, retry: Retry::first(), ..ask };
        let made = ask!(alice, anonymous.clone(), GroupCreated);
        let retry = Retry { attempt: 2, age_ms: 10, ..anonymous.retry };
        assert_eq!(ask!(alice, CreateGroup { retry, ..anonymous.clone() }, GroupCreated), made);
        assert_eq!(uuid::Uuid::parse_str(made.group.as_str()).unwrap().get_version_num(), 7);
        let retry = Retry { client_id: ClientId::random(), ..anonymous.retry };
        assert_ne!(ask!(alice, CreateGroup { retry, ..anonymous }, GroupCreated).group, made.group);
    }
}

#[tokio::test]
async fn a_unique_group_is_that_of_exactly_its_participants() {
    let node = TestNode::start().await;
    let (mut alice, mut bob, mut carol, _) = three(&node, Framing::Tcp, "u").await;
    let ask = |members: &[&str]| CreateGroup { group: None, unique: true, ..create("any", members) };
    // All three at the same time, in any order.
    let ids = [
        alice.post(ask(&["bob-u", "carol-u", "bob-u"])).await,
        bob.post(ask(&["carol-u", "alice-u"])).await,
        carol.post(ask(&["alice-u", "bob-u", "carol-u"])).await,
    ];
    let mut made = Vec::new();
    for (client, id) in [&mut alice, &mut bob, &mut carol].into_iter().zip(ids) {
        match client.answer(id).await {
            Answer::GroupCreated(created) => made.push(created),
            other => panic!("{other:?}"),
        }
    }
    assert!(made.iter().all(|one| one.group == made[0].group), "{made:?}");
    assert_eq!(made.iter().filter(|one| one.created).count(), 1, "{made:?}");
    let id = made[0].group.as_str().to_owned();
    assert_eq!(state(&mut bob, &id).await.members, 3);
    // Its members never change; other sets have other groups.
    refused!(alice, add(&id, &["dave"]), NOT_PERMITTED);
    refused!(alice, remove(&id, &["bob-u"]), NOT_PERMITTED);
    refused!(bob, leave(&id), NOT_PERMITTED);
    let pair = ask!(alice, ask(&["bob-u"]), GroupCreated);
    assert!(pair.created && pair.group.as_str() != id);
    refused!(alice, create("u-mine", &[]), INVALID_REQUEST);
    // Once it is disbanded there is room for another one.
    let owner = state(&mut alice, &id).await.owner.unwrap();
    let clients = [("alice-u", &mut alice), ("bob-u", &mut bob), ("carol-u", &mut carol)];
    let (_, owner) = clients.into_iter().find(|(name, _)| *name == owner.as_str()).unwrap();
    ask!(owner, DisbandGroup { retry: Retry::first(), group: group(&id) }, GroupDisbanded);
    let next = ask!(alice, ask(&["bob-u", "carol-u"]), GroupCreated);
    assert!(next.created && next.group.as_str() != id);
    assert_eq!(ask!(bob, ask(&["alice-u", "carol-u"]), GroupCreated).group, next.group);
}

#[tokio::test]
async fn members_come_and_go_and_see_what_is_theirs() {
    let node = TestNode::start().await;
    for (framing, history) in
        BOTH.into_iter().zip([HistoryForNewMembers::NONE, HistoryForNewMembers::EVERYTHING])
    {
        let tag = framing.name().replace([' ', '/'], "-");
        let (mut alice, mut bob, mut carol, [_, bobs, carols]) = three(&node, framing, &tag).await;
        let id = format!("team-{tag}");
        let conversation = group_conversation(&id);
        let profile = GroupProfile { history_for_new_members: history, ..GroupProfile::default() };
        ask!(alice, CreateGroup { profile, ..create(&id, &[&bobs]) }, GroupCreated);
        for n in 2..=4 {
            assert_eq!(alice.say_to(&id, &format!("{n}")).await, n);
            assert_eq!(text(&bob.push_of(&conversation, n).await), format!("{n}"));
        }
        refused!(carol, to_group(&id, "let me"), NOT_FOUND);
        // Carol is added while she is online: she gets the entry that adds her, and the next message.
        assert_eq!(ask!(alice, add(&id, &[&carols, &bobs]), MembersAdded).seq, Some(Seq(5)));
        assert_eq!(ask!(alice, add(&id, &[&carols]), MembersAdded).seq, None);
        let added = carol.push_of(&conversation, 5).await;
        let body: MembersChanged = serde_json::from_slice(&added.content.body).unwrap();
        assert_eq!((body.changes[0].event, body.changes.len()), (MemberEvent::ADDED, 1));
        assert_eq!(body.changes[0].member.user.as_str(), carols);
        assert_eq!(alice.say_to(&id, "6").await, 6);
        assert_eq!(text(&carol.push_of(&conversation, 6).await), "6");
        let (first, unread) = match history {
            HistoryForNewMembers::NONE => (5, 1),
            _ => (1, 4),
        };
        let page = carol.history(&conversation, HistoryFrom::First, Direction::Newer, 50).await.page;
        assert_eq!((page.first, page.messages[0].seq, page.head), (Seq(first), Seq(first), Seq(6)));
        let standing = carol.standing(&conversation).await.unwrap();
        assert_eq!((standing.unread, standing.head), (unread, Seq(6)));
        assert_eq!(carol.say_to(&id, "7").await, 7);
        assert_eq!(carol.standing(&conversation).await.unwrap().unread, 0);
        // She is removed: she gets the entry that says so, and nothing after it.
        assert_eq!(alice.say_to(&id, "8").await, 8);
        refused!(bob, remove(&id, &[&carols]), NOT_PERMITTED);
        assert_eq!(ask!(alice, remove(&id, &[&carols]), MembersRemoved).seq, Some(Seq(9)));
        assert_eq!(carol.push_of(&conversation, 8).await.seq, Seq(8));
        assert_eq!(carol.push_of(&conversation, 9).await.kind, MessageKind::MEMBERS);
        assert_eq!(alice.say_to(&id, "10").await, 10);
        bob.push_of(&conversation, 10).await;
        refused!(carol, to_group(&id, "still here"), NOT_PERMITTED);
        let page = carol.history(&conversation, HistoryFrom::Last, Direction::Older, 50).await.page;
        assert_eq!((page.head, page.messages.last().unwrap().seq), (Seq(9), Seq(9)));
        let standing = carol.standing(&conversation).await.unwrap();
        // Message 8 is unread; 10 is not hers.
        assert_eq!((standing.head, standing.unread), (Seq(9), 1));
        let pushed = carol.take_events().into_iter().filter(|event| matches!(event, Event::Push(_))).count();
        assert_eq!(pushed, 0, "a push after the removal");
        // Bob leaves by himself; he may come back.
        assert_eq!(ask!(bob, leave(&id), GroupLeft).seq, Some(Seq(11)));
        refused!(alice, leave(&id), NOT_PERMITTED);
        assert_eq!(ask!(alice, add(&id, &[&bobs]), MembersAdded).seq, Some(Seq(12)));
        assert_eq!(bob.push_of(&conversation, 11).await.seq, Seq(11));
        assert_eq!(bob.push_of(&conversation, 12).await.seq, Seq(12));
        assert_eq!(bob.say_to(&id, "13").await, 13);
    }
}

#[tokio::test]
async fn roles_mutes_transfer_and_the_end() {
    let node = TestNode::start().await;
    for framing in BOTH {
        let tag = framing.name().replace([' ', '/'], "-");
        let (mut alice, mut bob, mut carol, [alices, bobs, carols]) = three(&node, framing, &tag).await;
        let id = format!("team-{tag}");
        ask!(alice, create(&id, &[&bobs, &carols]), GroupCreated);
        refused!(bob, role(&id, &bobs, GroupRole::ADMIN), NOT_PERMITTED);
        refused!(alice, role(&id, &bobs, GroupRole::OWNER), INVALID_REQUEST);
        refused!(alice, role(&id, "nobody", GroupRole::ADMIN), NOT_FOUND);
        assert!(ask!(alice, role(&id, &bobs, GroupRole::ADMIN), RoleSet).seq.is_some());
        assert!(ask!(alice, role(&id, &bobs, GroupRole::ADMIN), RoleSet).seq.is_none());
        // An admin silences members, not the owner.
        let now = std::fs::metadata(node.data()).unwrap().modified().unwrap();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
        let later = now + 3_600_000;
        refused!(bob, mute(&id, Some(&alices), Some(later)), NOT_PERMITTED);
        refused!(carol, mute(&id, Some(&bobs), Some(later)), NOT_PERMITTED);
        assert!(ask!(bob, mute(&id, Some(&carols), Some(later)), Muted).seq.is_some());
        let error = refused!(carol, to_group(&id, "but"), MUTED);
        assert!(error.retry_after_ms.is_some_and(|ms| ms > 3_000_000), "{error:?}");
        assert!(ask!(bob, mute(&id, Some(&carols), None), Muted).seq.is_some());
        carol.say_to(&id, "thanks").await;
        assert!(ask!(bob, mute(&id, None, Some(later)), Muted).seq.is_some());
        refused!(carol, to_group(&id, "but"), MUTED);
        bob.say_to(&id, "admins may").await;
        assert!(ask!(bob, mute(&id, None, None), Muted).seq.is_some());
        carol.say_to(&id, "all may").await;
        // Members may add only where the group says so.
        refused!(carol, add(&id, &["dave"]), NOT_PERMITTED);
        let open = UpdateGroup { add_policy: Some(AddPolicy::MEMBERS), ..update(&id) };
        ask!(bob, open, GroupUpdated);
        assert!(ask!(carol, add(&id, &["dave"]), MembersAdded).seq.is_some());
        // Another owner; who was is an admin.
        let transfer = |to: &str| TransferGroup { retry: Retry::first(), group: group(&id), to: user(to) };
        refused!(bob, transfer(&bobs), NOT_PERMITTED);
        assert!(ask!(alice, transfer(&carols), GroupTransferred).seq.is_some());
        assert_eq!(state(&mut bob, &id).await.owner.unwrap().as_str(), carols);
        let disband = DisbandGroup { retry: Retry::first(), group: group(&id) };
        refused!(alice, disband.clone(), NOT_PERMITTED);
        assert!(ask!(carol, disband, GroupDisbanded).seq.is_some());
        refused!(carol, to_group(&id, "gone"), GROUP_ENDED);
        refused!(carol, add(&id, &["erin"]), GROUP_ENDED);
        // What was said can still be read.
        let conversation = group_conversation(&id);
        let page = bob.history(&conversation, HistoryFrom::Last, Direction::Older, 50).await.page;
        assert!(page.messages.iter().any(|message| text(message) == "all may"));
        assert!(state(&mut bob, &id).await.info.unwrap().disbanded_at.is_some());
    }
}

#[tokio::test]
async fn joining_is_open_by_asking_or_not_at_all() {
    let node = TestNode::start().await;
    for framing in BOTH {
        let tag = framing.name().replace([' ', '/'], "-");
        let (mut alice, mut bob, mut carol, [_, bobs, carols]) = three(&node, framing, &tag).await;
        let id = format!("club-{tag}");
        ask!(alice, create(&id, &[]), GroupCreated);
        // By invitation only: as if there were no such group.
        refused!(bob, join(&id), NOT_FOUND);
        ask!(alice, UpdateGroup { join_policy: Some(JoinPolicy::OPEN), ..update(&id) }, GroupUpdated);
        let joined = ask!(bob, join(&id), GroupJoined);
        assert_eq!((joined.seq, joined.requested), (Some(Seq(3)), false));
        assert_eq!(ask!(bob, join(&id), GroupJoined).seq, None);
        ask!(alice, UpdateGroup { join_policy: Some(JoinPolicy::APPROVAL), ..update(&id) }, GroupUpdated);
        let asked = ask!(carol, join(&id), GroupJoined);
        assert_eq!((asked.seq, asked.requested), (None, true));
        let told = loop {
            if let Event::JoinRequested(told) = alice.event().await {
                break told;
            }
        };
        let expected = JoinRequested { group: group(&id), user: user(&carols), message: "let me in".into() };
        assert_eq!(told, expected);
        let page = |after| JoinRequests { group: group(&id), after, limit: 1 };
        refused!(bob, page(None), NOT_PERMITTED);
        let waiting = ask!(alice, page(None), JoinRequestsPage);
        assert_eq!((waiting.requests.len(), &waiting.requests[0].user), (1, &user(&carols)));
        let decide =
            |accept| DecideJoin { retry: Retry::first(), group: group(&id), user: user(&carols), accept };
        refused!(bob, decide(true), NOT_PERMITTED);
        assert_eq!(ask!(alice, decide(false), JoinDecided).seq, None);
        let answered = loop {
            if let Event::JoinAnswered(answered) = carol.event().await {
                break answered;
            }
        };
        assert_eq!(answered, JoinAnswered { group: group(&id), accepted: false });
        refused!(alice, decide(true), NOT_FOUND);
        ask!(carol, join(&id), GroupJoined);
        assert!(ask!(alice, decide(true), JoinDecided).seq.is_some());
        assert_eq!(ask!(alice, page(None), JoinRequestsPage).requests, []);
        carol.say_to(&id, "hello").await;
        let members = ask!(
            bob,
            GroupMembers { group: group(&id), after: None, limit: 2, known_version: None },
            GroupMembersPage
        );
        assert_eq!((members.total, members.members.len()), (3, 2));
        let rest = GroupMembers { group: group(&id), after: members.next, limit: 2, known_version: None };
        let rest = ask!(bob, rest, GroupMembersPage);
        assert_eq!((rest.members.len(), rest.next), (1, None));
        let known = Some(members.version);
        let known = GroupMembers { group: group(&id), after: None, limit: 2, known_version: known };
        assert!(ask!(bob, known, GroupMembersPage).not_modified);
        assert_eq!(members.members[1].user.as_str(), bobs);
    }
}

#[tokio::test]
async fn signals_marks_and_lists_know_groups() {
    let node = TestNode::start().await;
    for framing in BOTH {
        let tag = framing.name().replace([' ', '/'], "-");
        let (mut alice, mut bob, mut carol, [alices, bobs, carols]) = three(&node, framing, &tag).await;
        let id = format!("team-{tag}");
        let conversation = group_conversation(&id);
        ask!(alice, create(&id, &[&bobs, &carols]), GroupCreated);
        for n in 0..3 {
            alice.say_to(&id, &format!("{n}")).await;
        }
        let signal =
            Signal { target: Target::Group(group(&id)), kind: "typing".into(), content: Content::text("on") };
        ask!(bob, signal, SignalTaken);
        let told = loop {
            if let Event::Signalled(told) = carol.event().await {
                break told;
            }
        };
        assert_eq!((told.user.as_str(), &told.conversation), (bobs.as_str(), &conversation));
        // A read moves the own mark and is pushed to nobody else.
        let read = Read { retry: Retry::first(), conversation: conversation.clone(), seq: Seq(3) };
        let done = ask!(bob, read, ReadDone);
        assert_eq!((done.seq, done.unread), (Seq(3), 1));
        let page = ReadMarks { conversation: conversation.clone(), after: None, limit: 2 };
        let marks = ask!(carol, page.clone(), ReadMarksPage);
        let rest = ask!(carol, ReadMarks { after: marks.next, ..page }, ReadMarksPage);
        let all: Vec<_> =
            marks.marks.iter().chain(&rest.marks).map(|mark| (mark.user.as_str(), mark.seq.0)).collect();
        assert_eq!(all, [(alices.as_str(), 4), (bobs.as_str(), 3), (carols.as_str(), 0)]);
        let others = carol.take_events();
        assert!(others.iter().all(|event| !matches!(event, Event::Receipt(_) | Event::ReadMoved(_))));
        // The list shows the group, also to who was removed, and its version knows of it.
        let ask = convoke_protocol::request::conversations::Conversations {
            after: None,
            limit: 10,
            known_version: None,
        };
        let list = ask!(carol, ask.clone(), ConversationList);
        let listed = &list.conversations[0];
        let shown = listed.group.as_ref().unwrap();
        assert_eq!((shown.name.as_str(), shown.ended), (format!("The {id}").as_str(), false));
        assert_eq!((listed.unread, list.unread, listed.head), (3, 3, Seq(4)));
        assert_eq!(text(listed.last.as_ref().unwrap()), "2");
        ask!(alice, remove(&id, &[&carols]), MembersRemoved);
        alice.say_to(&id, "after").await;
        let after = ask!(carol, ask, ConversationList);
        assert_ne!(after.version, list.version);
        let listed = &after.conversations[0];
        assert!(listed.group.as_ref().unwrap().ended);
        assert_eq!((listed.head, listed.unread), (Seq(5), 3));
        assert_eq!(listed.last.as_ref().unwrap().kind, MessageKind::MEMBERS);
    }
}

#[tokio::test]
async fn a_thousand_members_are_paged_and_the_bound_holds() {
    let node = Setup::config("[groups]\nmax_members = 1000\n").start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let names: Vec<String> = (0..1_000).map(|n| format!("m{n:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    ask!(alice, create("large", &names[..500]), GroupCreated);
    refused!(alice, add("large", &names[..501]), INVALID_REQUEST);
    refused!(alice, add("large", &names[500..]), GROUP_FULL);
    ask!(alice, add("large", &names[500..999]), MembersAdded);
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let ask = GroupMembers { group: group("large"), after, limit: 10_000, known_version: None };
        let page = ask!(alice, ask, GroupMembersPage);
        assert_eq!((page.total, page.members.len() <= 200), (1_000, true));
        seen.extend(page.members.into_iter().map(|member| member.user));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut expected = users(&names[..999]);
    expected.push(user("alice"));
    expected.sort();
    assert_eq!(seen, expected);
}
