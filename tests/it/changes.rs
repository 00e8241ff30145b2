//! Recall, edit, delete, reactions, hiding: what readers see, who may, and that it outlives a crash.

use std::collections::BTreeMap;

use convoke_protocol::event::Hid;
use convoke_protocol::frame::{Answer, Event, Request};
use convoke_protocol::framing::Framing;
use convoke_protocol::group::GroupRole;
use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::message::{Message, MessageKind, ReactionCount};
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::{Hide, React, ReactionChanged, Reactions, Recall};
use convoke_protocol::request::groups::SetRole;
use convoke_protocol::request::messages::{Direction, HistoryFrom, Pull, PullRange};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::client::conversation;
use crate::harness::group::{
    BOTH, create, delete, edit, group, group_conversation, react, recall, text, to_group, user,
};
use crate::harness::{Setup, TestClient, TestNode};

async fn message(client: &mut TestClient, conversation: &ConversationId, seq: u64) -> Message {
    let page = client.history(conversation, HistoryFrom::Seq(Seq(seq)), Direction::Newer, 1).await.page;
    page.messages.into_iter().next().unwrap()
}

fn count(kind: &str, count: u32) -> ReactionCount {
    ReactionCount { kind: kind.into(), count }
}

#[tokio::test]
async fn what_was_said_is_edited_recalled_deleted_and_all_readers_agree() {
    let node = TestNode::start().await;
    for (framing, other) in [(BOTH[0], BOTH[1]), (BOTH[1], BOTH[0])] {
        let (alice, bob) = (format!("alice-{}", framing.name()), format!("bob-{}", framing.name()));
        let pair = conversation(&alice, &bob);
        let mut hers = TestClient::login(&node, framing, &alice, "phone").await;
        let mut his = TestClient::login(&node, other, &bob, "phone").await;
        for n in 1..=4 {
            hers.say(&bob, &format!("{n}")).await;
            his.push_of(&pair, n).await;
        }
        // An edit is an entry of its own that says what to write where; history shows it in its place.
        let ask = edit(&pair, 1, "one");
        assert_eq!(ask!(hers, ask.clone(), Edited).seq, Some(Seq(5)));
        let entry = his.push_of(&pair, 5).await;
        assert_eq!((entry.kind, entry.target, text(&entry)), (MessageKind::EDIT, Some(Seq(1)), "one"));
        let seen = message(&mut his, &pair, 1).await;
        assert_eq!((text(&seen), seen.edited_at), ("one", Some(entry.time)));
        // The same again changes nothing; a retry is the same edit.
        assert_eq!(ask!(hers, edit(&pair, 1, "one"), Edited).seq, None);
        let retry = Retry { attempt: 2, age_ms: 5, ..ask.retry };
        let again = convoke_protocol::request::changes::Edit { retry, ..ask };
        assert_eq!(ask!(hers, again, Edited).seq, Some(Seq(5)));
        // Of two edits only the last is told, and of a recalled message neither.
        assert_eq!(ask!(hers, edit(&pair, 1, "ONE"), Edited).seq, Some(Seq(6)));
        assert_eq!(text(&message(&mut his, &pair, 5).await), "");
        assert_eq!(text(&message(&mut his, &pair, 6).await), "ONE");
        refused!(his, edit(&pair, 1, "his"), NOT_PERMITTED);
        refused!(his, recall(&pair, 1), NOT_PERMITTED);
        assert_eq!(his.standing(&pair).await.unwrap().unread, 4);
        assert_eq!(ask!(hers, recall(&pair, 1), Recalled).seq, Some(Seq(7)));
        assert_eq!(ask!(hers, recall(&pair, 1), Recalled).seq, None);
        let seen = message(&mut his, &pair, 1).await;
        assert_eq!((text(&seen), seen.recalled_at.is_some()), ("", true));
        assert_eq!(text(&message(&mut his, &pair, 6).await), "");
        refused!(hers, edit(&pair, 1, "back"), MESSAGE_GONE);
        // It does not count as unread any more; entries never did.
        assert_eq!(his.standing(&pair).await.unwrap().unread, 3);
        assert_eq!(ask!(hers, delete(&pair, 2, false), Deleted).seq, Some(Seq(8)));
        refused!(hers, delete(&pair, 3, true), WRONG_ROLE);
        let seen = message(&mut his, &pair, 2).await;
        assert_eq!((text(&seen), seen.deleted_at.is_some()), ("", true));
        assert_eq!(his.standing(&pair).await.unwrap().unread, 2);
        refused!(hers, recall(&pair, 99), NOT_FOUND);
        refused!(hers, recall(&pair, 5), NOT_PERMITTED);
        // Catching up by numbers tells the same as the pushes did.
        let range = PullRange { conversation: pair.clone(), from: Seq(5), to: Seq(99) };
        let page = ask!(his, Pull { ranges: vec![range] }, Pulled).pages.remove(0);
        let kinds: Vec<_> = page.messages.iter().map(|message| (message.kind, message.target)).collect();
        let (edit, one) = (MessageKind::EDIT, Some(Seq(1)));
        let expected =
            [(edit, one), (edit, one), (MessageKind::RECALL, one), (MessageKind::DELETE, Some(Seq(2)))];
        assert_eq!(kinds, expected);
    }
}

#[tokio::test]
async fn reactions_are_counted_once_per_user_and_kind() {
    let node = TestNode::start().await;
    for framing in BOTH {
        let id = format!("team-{}", framing.name().replace([' ', '/'], "-"));
        let conversation = group_conversation(&id);
        let mut alice = TestClient::login(&node, framing, "alice", framing.name()).await;
        let mut bob = TestClient::login(&node, framing, "bob", framing.name()).await;
        ask!(alice, create(&id, &["bob", "carol"]), GroupCreated);
        let seq = alice.say_to(&id, "like me").await;
        bob.push_of(&conversation, seq).await;
        assert_eq!(ask!(bob, react(&conversation, seq, "👍", true), Reacted).seq, Some(Seq(seq + 1)));
        assert_eq!(ask!(bob, react(&conversation, seq, "👍", true), Reacted).seq, None);
        // Many at once: each is an entry with the count as it then is.
        let posted = [
            alice.post(react(&conversation, seq, "👍", true)).await,
            alice.post(react(&conversation, seq, "🎉", true)).await,
        ];
        for id in posted {
            assert!(matches!(alice.answer(id).await, Answer::Reacted(answer) if answer.seq.is_some()));
        }
        let first = bob.push_of(&conversation, seq + 1).await;
        let body: ReactionChanged = serde_json::from_slice(&first.content.body).unwrap();
        assert_eq!(body, ReactionChanged { kind: "👍".into(), given: true, count: 1 });
        assert_eq!((first.kind, first.target), (MessageKind::REACTION, Some(Seq(seq))));
        let seen = message(&mut bob, &conversation, seq).await;
        assert_eq!(seen.reactions, [count("🎉", 1), count("👍", 2)]);
        let ask = |after| Reactions {
            conversation: conversation.clone(),
            seq: Seq(seq),
            kind: "👍".into(),
            after,
            limit: 1,
        };
        let page = ask!(bob, ask(None), ReactionsPage);
        assert_eq!(page.users, [user("alice")]);
        let page = ask!(bob, ask(page.next), ReactionsPage);
        assert_eq!((page.users, page.next), (vec![user("bob")], None));
        ask!(bob, react(&conversation, seq, "👍", false), Reacted);
        assert_eq!(ask!(bob, react(&conversation, seq, "👍", false), Reacted).seq, None);
        let seen = message(&mut bob, &conversation, seq).await;
        assert_eq!(seen.reactions, [count("🎉", 1), count("👍", 1)]);
        // They are numbered and are not unread.
        assert_eq!(bob.standing(&conversation).await.unwrap().unread, 1);
        refused!(bob, react(&conversation, seq, "", true), INVALID_REQUEST);
        for n in 2..64 {
            ask!(alice, react(&conversation, seq, &format!("kind {n}"), true), Reacted);
        }
        refused!(alice, react(&conversation, seq, "one more", true), TOO_MANY);
        ask!(alice, recall(&conversation, seq), Recalled);
        refused!(bob, react(&conversation, seq, "👍", true), MESSAGE_GONE);
    }
}

#[tokio::test]
async fn admins_may_at_any_time_and_senders_within_the_window() {
    let config = "[messages]\nrecall_window_ms = 0\nedit_window_ms = 0\n";
    let node = Setup::config(config).start().await;
    let mut alice = TestClient::login(&node, BOTH[0], "alice", "phone").await;
    let mut bob = TestClient::login(&node, BOTH[1], "bob", "phone").await;
    let team = group_conversation("team");
    ask!(alice, create("team", &["bob", "carol"]), GroupCreated);
    let seq = bob.say_to("team", "mine").await;
    refused!(bob, recall(&team, seq), TOO_LATE);
    refused!(bob, edit(&team, seq, "other"), TOO_LATE);
    // An admin edits and recalls what others said, whenever.
    let mut carol = TestClient::login(&node, BOTH[0], "carol", "phone").await;
    refused!(carol, recall(&team, seq), NOT_PERMITTED);
    let admin =
        SetRole { retry: Retry::first(), group: group("team"), user: user("carol"), role: GroupRole::ADMIN };
    ask!(alice, admin, RoleSet);
    assert!(ask!(carol, edit(&team, seq, "moderated"), Edited).seq.is_some());
    assert!(ask!(carol, recall(&team, seq), Recalled).seq.is_some());
}

#[tokio::test]
async fn what_is_switched_off_is_refused_and_what_is_not_pushed_is_found_by_its_number() {
    let config =
        "[messages]\nedit = false\nreactions = false\nrecall_on_delete = true\npush_recalls = false\n";
    let node = Setup::config(config).start().await;
    for framing in BOTH {
        let (alice, bob) = (format!("alice-{}", framing.name()), format!("bob-{}", framing.name()));
        let pair = conversation(&alice, &bob);
        let mut hers = TestClient::login(&node, framing, &alice, "phone").await;
        let mut his = TestClient::login(&node, framing, &bob, "phone").await;
        hers.say(&bob, "1").await;
        refused!(hers, edit(&pair, 1, "one"), SWITCHED_OFF);
        refused!(hers, react(&pair, 1, "x", true), SWITCHED_OFF);
        // Deleting recalls here, and recalls are not pushed: the next push shows that something is missing.
        assert_eq!(ask!(hers, delete(&pair, 1, false), Deleted).seq, Some(Seq(2)));
        hers.say(&bob, "3").await;
        assert_eq!(his.next_push().await.message.seq, Seq(1));
        let push = his.next_push().await;
        assert_eq!((push.message.seq, push.lane_previous), (Seq(3), Seq(2)));
        let entry = message(&mut his, &pair, 2).await;
        assert_eq!((entry.kind, entry.target), (MessageKind::RECALL, Some(Seq(1))));
        assert!(message(&mut his, &pair, 1).await.recalled_at.is_some());
    }
}

#[tokio::test]
async fn hiding_is_for_oneself_on_all_devices() {
    let mut node = TestNode::start().await;
    for (framing, other) in [(BOTH[0], BOTH[1]), (BOTH[1], BOTH[0])] {
        let (alice, bob) = (format!("alice-{}", framing.name()), format!("bob-{}", framing.name()));
        let pair = conversation(&alice, &bob);
        let mut phone = TestClient::login(&node, framing, &alice, "phone").await;
        let mut laptop = TestClient::login(&node, other, &alice, "laptop").await;
        let mut his = TestClient::login(&node, other, &bob, "phone").await;
        for n in 1..=6 {
            his.say(&alice, &format!("{n}")).await;
        }
        ask!(his, react(&pair, 4, "x", true), Reacted);
        let hide = |seqs: &[u64], up_to: Option<u64>| Hide {
            retry: Retry::first(),
            conversation: pair.clone(),
            seqs: seqs.iter().map(|seq| Seq(*seq)).collect(),
            up_to: up_to.map(Seq),
        };
        ask!(phone, hide(&[6, 4, 4], None), Hidden);
        let told = loop {
            if let Event::Hid(told) = laptop.event().await {
                break told;
            }
        };
        assert_eq!(told, Hid { conversation: pair.clone(), seqs: vec![Seq(4), Seq(6)], up_to: None });
        ask!(phone, hide(&[], Some(2)), Hidden);
        refused!(phone, hide(&[99], None), NOT_FOUND);
        let texts = async |client: &mut TestClient| {
            let all = client.pull_all(&pair).await;
            all[..6].iter().map(|message| text(message).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(texts(&mut laptop).await, ["", "", "3", "", "5", ""]);
        assert_eq!(texts(&mut his).await, ["1", "2", "3", "4", "5", "6"]);
        let hidden = message(&mut laptop, &pair, 4).await;
        assert_eq!((hidden.deleted_at.is_some(), hidden.reactions.len()), (true, 0));
        assert_eq!(message(&mut his, &pair, 4).await.reactions.len(), 1);
        // It was durable when it was answered.
        node.kill().await;
        node.start_again().await;
        let mut phone = TestClient::login(&node, framing, &alice, "phone").await;
        assert_eq!(texts(&mut phone).await, ["", "", "3", "", "5", ""]);
    }
    node.stop().await;
    node.check().await;
}

#[tokio::test]
async fn everything_can_be_switched_off() {
    let config = "[messages]\nrecall = false\nedit = false\ndelete_for_all = false\nreactions = false\n";
    let node = Setup::config(config).start().await;
    let mut alice = TestClient::login(&node, BOTH[1], "alice", "phone").await;
    let pair = conversation("alice", "bob");
    alice.say("bob", "1").await;
    refused!(alice, recall(&pair, 1), SWITCHED_OFF);
    refused!(alice, edit(&pair, 1, "x"), SWITCHED_OFF);
    refused!(alice, delete(&pair, 1, false), SWITCHED_OFF);
    refused!(alice, react(&pair, 1, "x", true), SWITCHED_OFF);
    // Services may all the same.
    let mut service = node.service(BOTH[0], "backend").await;
    assert!(ask!(service, recall(&pair, 1), Recalled).seq.is_some());
}

#[tokio::test]
async fn no_kind_of_entry_needs_to_be_pushed() {
    let config = "[messages]\npush_recalls = false\npush_edits = false\npush_deletes = false\npush_reactions = false\n";
    let node = Setup::config(config).start().await;
    let mut alice = TestClient::login(&node, BOTH[0], "alice", "phone").await;
    let mut bob = TestClient::login(&node, BOTH[1], "bob", "phone").await;
    let pair = conversation("alice", "bob");
    for text in ["1", "2", "3", "4"] {
        alice.say("bob", text).await;
    }
    ask!(alice, edit(&pair, 1, "one"), Edited);
    ask!(alice, react(&pair, 2, "x", true), Reacted);
    ask!(alice, recall(&pair, 3), Recalled);
    ask!(alice, delete(&pair, 4, false), Deleted);
    alice.say("bob", "9").await;
    let mut seqs = Vec::new();
    while seqs.last() != Some(&9) {
        seqs.push(bob.next_push().await.message.seq.0);
    }
    assert_eq!(seqs, [1, 2, 3, 4, 9]);
    let all = bob.pull_all(&pair).await;
    assert_eq!(all.len(), 9);
    assert_eq!((text(&all[0]), all[1].reactions.len(), text(&all[2]), text(&all[3])), ("one", 1, "", ""));
}

/// A message as its entries made it.
#[derive(Default)]
struct Replayed {
    body: Vec<u8>,
    gone: bool,
    reactions: BTreeMap<String, u32>,
}

/// What a client makes of the entries, one after the other.
fn replay(entries: &[Message]) -> BTreeMap<Seq, Replayed> {
    let mut shown = BTreeMap::new();
    for entry in entries {
        let plain = Replayed { body: entry.content.body.to_vec(), ..Replayed::default() };
        let Some(target) = entry.target else {
            shown.insert(entry.seq, plain);
            continue;
        };
        let at: &mut Replayed = shown.get_mut(&target).unwrap();
        match entry.kind {
            MessageKind::EDIT => at.body = entry.content.body.to_vec(),
            MessageKind::RECALL | MessageKind::DELETE => at.gone = true,
            MessageKind::REACTION => {
                let body: ReactionChanged = serde_json::from_slice(&entry.content.body).unwrap();
                match body.count {
                    0 => drop(at.reactions.remove(&body.kind)),
                    count => drop(at.reactions.insert(body.kind, count)),
                }
            }
            other => panic!("{other}"),
        }
    }
    shown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_and_crashes_leave_what_the_entries_say() {
    let seed = crate::harness::seed();
    let mut random = SmallRng::seed_from_u64(seed);
    let mut node = TestNode::start().await;
    let pair = conversation("alice", "bob");
    // What was pushed, by number: a client that never missed one.
    let mut pushed: BTreeMap<Seq, Message> = BTreeMap::new();
    let mut open: Vec<(bool, Request)> = Vec::new();
    for round in 0..4 {
        let mut alice = TestClient::login(&node, BOTH[round % 2], "alice", "phone").await;
        let mut bob = TestClient::login(&node, BOTH[(round + 1) % 2], "bob", "phone").await;
        let mut watcher = TestClient::login(&node, BOTH[0], "bob", "watcher").await;
        // What was not answered before the crash is asked again: the same entry, or done now.
        for (is_alice, request) in open.drain(..) {
            let client = if is_alice { &mut alice } else { &mut bob };
            let answer = client.request(again(request)).await;
            let Answer::Error(error) = answer else { continue };
            // It was not done before either, and is not allowed.
            assert_eq!(error.outcome, convoke_protocol::error_code::Outcome::NOT_DONE, "{error}");
        }
        let mut posted = Vec::new();
        for n in 0..60 {
            let head = alice.standing(&pair).await.map_or(0, |one| one.head.0);
            let is_alice = random.random_bool(0.5);
            let seq = random.random_range(1..=head.max(1));
            let kind = ["x", "y"][random.random_range(0..2)];
            let request: Request = match random.random_range(0..10) {
                _ if head < 5 => {
                    let peer = if is_alice { "bob" } else { "alice" };
                    crate::harness::to_user(peer, &format!("{round} {n}")).into()
                }
                0..=2 => {
                    let peer = if is_alice { "bob" } else { "alice" };
                    crate::harness::to_user(peer, &format!("{round} {n}")).into()
                }
                3..=5 => edit(&pair, seq, &format!("edit {round} {n}")).into(),
                6 => recall(&pair, seq).into(),
                7 => delete(&pair, seq, false).into(),
                _ => react(&pair, seq, kind, random.random_bool(0.7)).into(),
            };
            let client = if is_alice { &mut alice } else { &mut bob };
            let id = client.post(request.clone()).await;
            posted.push((is_alice, id, request));
        }
        // The last ones are still on their way when the node dies.
        for (is_alice, id, _) in posted.iter().take(50) {
            let client = if *is_alice { &mut alice } else { &mut bob };
            client.answer(*id).await;
        }
        node.kill().await;
        for (is_alice, id, request) in posted.into_iter().skip(50) {
            let client = if is_alice { &mut alice } else { &mut bob };
            if client.try_answer(id).await.is_none() {
                open.push((is_alice, request));
            }
        }
        while watcher.receive().await.is_some() {}
        for event in watcher.take_events() {
            if let Event::Push(push) = event {
                pushed.insert(push.message.seq, push.message);
            }
        }
        node.start_again().await;
    }
    let mut bob = TestClient::login(&node, BOTH[1], "bob", "phone").await;
    let history = bob.pull_all(&pair).await;
    // What was missed while nobody listened is read from the log; all entries that were pushed are in it.
    for message in &history {
        let before = pushed.entry(message.seq).or_insert_with(|| message.clone());
        assert_eq!(
            (before.message_id, before.kind, before.target),
            (message.message_id, message.kind, message.target)
        );
    }
    let entries: Vec<Message> = pushed.into_values().collect();
    let replayed = replay(&entries);
    for message in history.iter().filter(|message| message.target.is_none()) {
        let expected = &replayed[&message.seq];
        let reactions: BTreeMap<_, _> =
            message.reactions.iter().map(|one| (one.kind.clone(), one.count)).collect();
        let gone = message.recalled_at.is_some() || message.deleted_at.is_some();
        assert_eq!(gone, expected.gone, "{}", message.seq);
        assert_eq!(reactions, expected.reactions, "{}", message.seq);
        // An edit that was pushed only to those who were away may be outdated in the log: then a later entry says so.
        if gone {
            assert_eq!(text(message), "");
        } else if entries
            .iter()
            .all(|entry| entry.target != Some(message.seq) || !entry.content.body.is_empty())
        {
            assert_eq!(text(message).as_bytes(), expected.body, "{}", message.seq);
        }
    }
    node.stop().await;
    node.check().await;
}

/// The second attempt of a request.
fn again(request: Request) -> Request {
    let second = |retry: Retry| Retry { attempt: 2, age_ms: 5_000, ..retry };
    match request {
        Request::Send(mut send) => {
            send.retry = second(send.retry);
            send.into()
        }
        Request::Edit(mut edit) => {
            edit.retry = second(edit.retry);
            edit.into()
        }
        Request::Recall(ask) => Recall { retry: second(ask.retry), ..ask }.into(),
        Request::Delete(mut ask) => {
            ask.retry = second(ask.retry);
            ask.into()
        }
        Request::React(ask) => React { retry: second(ask.retry), ..ask }.into(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn changes_in_a_group_are_seen_by_members_only() {
    let node = TestNode::start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    ask!(alice, create("team", &["bob"]), GroupCreated);
    let team = group_conversation("team");
    alice.say_to("team", "before Carol").await;
    ask!(alice, crate::harness::group::add("team", &["carol"]), MembersAdded);
    let mut carol = TestClient::login(&node, BOTH[1], "carol", "phone").await;
    // What was said before she came is not hers to react to.
    refused!(carol, react(&team, 2, "x", true), NOT_FOUND);
    ask!(carol, to_group("team", "hello"), Sent);
    ask!(carol, react(&team, 4, "x", true), Reacted);
    ask!(alice, crate::harness::group::remove("team", &["carol"]), MembersRemoved);
    refused!(carol, react(&team, 4, "y", true), NOT_PERMITTED);
    refused!(carol, edit(&team, 4, "y"), NOT_PERMITTED);
}
