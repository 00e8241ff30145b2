//! What users have read, signals, the list of conversations, and catching up.

use convoke_protocol::error_code::Outcome;
use convoke_protocol::event::{ReadMoved, Receipt, Signalled};
use convoke_protocol::frame::{Answer, Codec, Event};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use convoke_protocol::message::{Content, Cursor};
use convoke_protocol::request::Retry;
use convoke_protocol::request::conversations::{ConversationList, Conversations, SetConversation};
use convoke_protocol::request::messages::{Ack, Target};
use convoke_protocol::request::read_state::{MarkAllRead, Read, ReadMarks, Signal, UserRead};
use convoke_protocol::request::sync::{Sync, Synced, SyncedConversation};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::harness::client::conversation;
use crate::harness::{TestClient, TestNode, to_user};

const JSON: Framing = Framing::WebSocket(Codec::Json);
const BOTH: [Framing; 2] = [Framing::Tcp, JSON];

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn read(conversation: &ConversationId, seq: u64) -> Read {
    Read { retry: Retry::first(), conversation: conversation.clone(), seq: Seq(seq) }
}

fn list(limit: u32) -> Conversations {
    Conversations { after: None, limit, known_version: None }
}

fn set(conversation: &ConversationId) -> SetConversation {
    SetConversation {
        retry: Retry::first(),
        conversation: conversation.clone(),
        label: None,
        muted: None,
        pinned: None,
    }
}

async fn synced(client: &mut TestClient, conversation: &ConversationId) -> SyncedConversation {
    let Synced { conversations, next, .. } = ask!(client, Sync { ..everything() }, Synced);
    assert_eq!(next, None);
    conversations.into_iter().find(|one| one.conversation == *conversation).unwrap()
}

fn everything() -> Sync {
    Sync { cursors: Vec::new(), use_device_cursors: false, after: None }
}

/// What a sync says is read and unread.
async fn unread(client: &mut TestClient, conversation: &ConversationId) -> (u64, u64) {
    let one = synced(client, conversation).await;
    (one.read.0, one.unread)
}

async fn say(client: &mut TestClient, to: &str, count: usize) {
    for n in 0..count {
        client.say(to, &format!("{n}")).await;
    }
}

/// The next event that is no push.
async fn news(client: &mut TestClient) -> Event {
    loop {
        match client.event().await {
            Event::Push(_) => {}
            other => return other,
        }
    }
}

#[tokio::test]
async fn reading_moves_the_mark_on_every_device_and_tells_the_peer() {
    let node = TestNode::start().await;
    for (one, other) in [(Framing::Tcp, JSON), (JSON, Framing::Tcp)] {
        let (alice, bob) = (format!("alice-{}", one.name()), format!("bob-{}", one.name()));
        let pair = conversation(&alice, &bob);
        let mut phone = TestClient::login(&node, one, &alice, "phone").await;
        let mut laptop = TestClient::login(&node, other, &alice, "laptop").await;
        let mut his = TestClient::login(&node, other, &bob, "phone").await;
        say(&mut his, &alice, 5).await;
        assert_eq!(unread(&mut phone, &pair).await, (0, 5));
        // What one says oneself is read.
        assert_eq!(unread(&mut his, &pair).await, (5, 0));
        let done = ask!(phone, read(&pair, 3), ReadDone);
        assert_eq!((done.seq, done.unread), (Seq(3), 2));
        let moved = ReadMoved { conversation: pair.clone(), seq: Seq(3), unread: 2 };
        assert_eq!(news(&mut laptop).await, Event::ReadMoved(moved));
        let receipt = Receipt { conversation: pair.clone(), user: user(&alice), seq: Seq(3) };
        assert_eq!(news(&mut his).await, Event::Receipt(receipt));
        // It never falls, and tells nobody that it did not move.
        let done = ask!(laptop, read(&pair, 1), ReadDone);
        assert_eq!((done.seq, done.unread), (Seq(3), 2));
        // Nor does it pass the head.
        let done = ask!(laptop, read(&pair, 1_000), ReadDone);
        assert_eq!((done.seq, done.unread), (Seq(5), 0));
        let moved = ReadMoved { conversation: pair.clone(), seq: Seq(5), unread: 0 };
        assert_eq!(news(&mut phone).await, Event::ReadMoved(moved));
        let receipt = Receipt { conversation: pair.clone(), user: user(&alice), seq: Seq(5) };
        assert_eq!(news(&mut his).await, Event::Receipt(receipt));
        // Saying something reads what was before it.
        say(&mut his, &alice, 2).await;
        assert_eq!(unread(&mut laptop, &pair).await, (5, 2));
        say(&mut laptop, &bob, 1).await;
        assert_eq!((unread(&mut phone, &pair).await, unread(&mut his, &pair).await), ((8, 0), (7, 1)));
        let page = ReadMarks { conversation: pair.clone(), after: None, limit: 1 };
        let first = ask!(his, page.clone(), ReadMarksPage);
        assert_eq!(first.marks, [UserRead { user: user(&alice), seq: Seq(8) }]);
        let second = ask!(his, ReadMarks { after: first.next, ..page }, ReadMarksPage);
        assert_eq!((second.marks, second.next), (vec![UserRead { user: user(&bob), seq: Seq(7) }], None));
    }
}

#[tokio::test]
async fn marks_are_not_of_conversations_of_others() {
    let node = TestNode::start().await;
    for framing in BOTH {
        let mut carol = TestClient::login(&node, framing, "carol", framing.name()).await;
        for other in [conversation("alice", "bob"), ConversationId::new("g:nobody's").unwrap()] {
            refused!(carol, read(&other, 1), NOT_FOUND);
            refused!(carol, ReadMarks { conversation: other.clone(), after: None, limit: 9 }, NOT_FOUND);
            refused!(carol, SetConversation { muted: Some(true), ..set(&other) }, NOT_FOUND);
        }
        let empty = conversation("carol", "dave");
        let done = ask!(carol, read(&empty, 7), ReadDone);
        assert_eq!((done.seq, done.unread), (Seq::ZERO, 0));
        refused!(carol, SetConversation { muted: Some(true), ..set(&empty) }, NOT_FOUND);
        refused!(carol, list(0), INVALID_REQUEST);
        refused!(carol, Conversations { after: Some("x".into()), ..list(1) }, INVALID_REQUEST);
    }
}

#[tokio::test]
async fn everything_is_read_at_once() {
    let node = TestNode::start().await;
    for (one, other) in [(Framing::Tcp, JSON), (JSON, Framing::Tcp)] {
        let alice = format!("alice-{}", one.name());
        let mut phone = TestClient::login(&node, one, &alice, "phone").await;
        let mut laptop = TestClient::login(&node, other, &alice, "laptop").await;
        let mut expected = Vec::new();
        for (name, count) in [("bob", 3), ("carol", 1), ("dave", 2)] {
            let mut peer = TestClient::login(&node, other, name, &alice).await;
            say(&mut peer, &alice, count).await;
            expected.push((conversation(&alice, name), count as u64));
        }
        // One that is read already does not move.
        say(&mut phone, "erin", 1).await;
        assert_eq!(ask!(phone, list(10), ConversationList).unread, 6);
        assert_eq!(ask!(phone, MarkAllRead { retry: Retry::first() }, AllRead).moved, 3);
        for (conversation, count) in expected {
            assert_eq!(unread(&mut phone, &conversation).await, (count, 0));
            let moved = ReadMoved { conversation, seq: Seq(count), unread: 0 };
            assert_eq!(news(&mut laptop).await, Event::ReadMoved(moved));
        }
        assert_eq!(ask!(phone, list(10), ConversationList).unread, 0);
        assert_eq!(ask!(laptop, MarkAllRead { retry: Retry::first() }, AllRead).moved, 0);
    }
}

#[tokio::test]
async fn unread_is_exact_whatever_happens() {
    let seed = crate::harness::seed();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut node = TestNode::start().await;
    let names = ["alice", "bob", "carol"];
    let mut clients = Vec::new();
    // Who said what, by conversation, and up to where each of its users has read.
    let pairs = [(0, 1), (0, 2), (1, 2)];
    let mut said: [Vec<usize>; 3] = Default::default();
    let mut marks = [[0; 3]; 3];
    for step in 0..240 {
        if clients.is_empty() {
            for (n, name) in names.iter().enumerate() {
                clients.push(TestClient::login(&node, BOTH[n % 2], name, "phone").await);
            }
        }
        let pair = rng.random_range(0..3);
        let (one, other) = pairs[pair];
        let (who, whom) = if rng.random() { (one, other) } else { (other, one) };
        match rng.random_range(0..10) {
            0..=5 => {
                clients[who].say(names[whom], &format!("{step}")).await;
                said[pair].push(who);
                marks[pair][who] = said[pair].len();
            }
            _ => {
                let to = rng.random_range(0..=said[pair].len() + 1);
                let id = conversation(names[one], names[other]);
                let done = ask!(clients[who], read(&id, to as u64), ReadDone);
                marks[pair][who] = to.min(said[pair].len()).max(marks[pair][who]);
                assert_eq!(done.seq, Seq(marks[pair][who] as u64), "step {step} of seed {seed}");
            }
        }
        // An ordered stop loses nothing; after kill -9 what was said is read still.
        if step % 60 == 59 {
            node.stop().await;
            node.start_again().await;
            clients.clear();
            continue;
        }
        if step % 60 == 29 {
            node.kill().await;
            node.start_again().await;
            clients.clear();
            // What was read in the last seconds may have to be read again, but nothing that was said.
            for (pair, (one, other)) in pairs.into_iter().enumerate() {
                for user in [one, other] {
                    let own = said[pair].iter().rposition(|sender| *sender == user).map_or(0, |n| n + 1);
                    let mut client = TestClient::login(&node, BOTH[user % 2], names[user], "phone").await;
                    if said[pair].is_empty() {
                        continue;
                    }
                    let id = conversation(names[one], names[other]);
                    let (read, _) = unread(&mut client, &id).await;
                    assert!((own..=marks[pair][user]).contains(&(read as usize)), "seed {seed}");
                    marks[pair][user] = read as usize;
                }
            }
            continue;
        }
        for user in [one, other] {
            let id = conversation(names[one], names[other]);
            if said[pair].is_empty() {
                continue;
            }
            let above = &said[pair][marks[pair][user]..];
            let naive = above.iter().filter(|sender| **sender != user).count() as u64;
            let (read, unread) = unread(&mut clients[user], &id).await;
            assert_eq!((read, unread), (marks[pair][user] as u64, naive), "step {step} of seed {seed}");
        }
    }
    node.stop().await;
    node.check().await;
}

fn signal(to: &str, kind: &str, text: &str) -> Signal {
    Signal { target: Target::User(user(to)), kind: kind.into(), content: Content::text(text) }
}

#[tokio::test]
async fn signals_reach_who_is_there_and_leave_nothing() {
    let node = TestNode::start().await;
    for (one, other) in [(Framing::Tcp, JSON), (JSON, Framing::Tcp)] {
        let (alice, bob) = (format!("alice-{}", one.name()), format!("bob-{}", one.name()));
        let mut phone = TestClient::login(&node, one, &alice, "phone").await;
        let mut laptop = TestClient::login(&node, other, &alice, "laptop").await;
        let mut his = TestClient::login(&node, other, &bob, "phone").await;
        let mut stranger = TestClient::login(&node, other, "carol", one.name()).await;
        ask!(phone, signal(&bob, "typing", ""), SignalTaken);
        let expected = Event::Signalled(Signalled {
            conversation: conversation(&alice, &bob),
            user: user(&alice),
            device: DeviceId::new("phone").unwrap(),
            kind: "typing".into(),
            content: Content::text(""),
        });
        assert_eq!(his.event().await, expected);
        assert_eq!(laptop.event().await, expected);
        // Not to the session that said it, nor to others: the next thing they hear is this.
        laptop.say("carol", "x").await;
        assert_eq!(phone.push().await.message.seq.0, stranger.push().await.message.seq.0);
        assert_eq!(phone.pull_all(&conversation(&alice, &bob)).await, []);
        refused!(phone, signal(&bob, "", ""), INVALID_REQUEST);
        refused!(phone, signal(&bob, &"k".repeat(65), ""), INVALID_REQUEST);
        refused!(phone, signal(&bob, "k", &"x".repeat(1_025)), BODY_TOO_LARGE);
        ask!(phone, signal(&bob, &"k".repeat(64), &"x".repeat(1_024)), SignalTaken);
        assert!(
            matches!(his.event().await, Event::Signalled(signalled) if signalled.content.body.len() == 1_024)
        );
        // One session may not signal without end.
        let mut refused = None;
        for _ in 0..1_000 {
            if let Answer::Error(error) = phone.request(signal(&bob, "typing", "")).await {
                refused = Some(error);
                break;
            }
        }
        let error = refused.expect("there is no bound");
        assert_eq!((error.code.name(), error.outcome), ("rate_limited", Outcome::NOT_DONE));
        assert!(error.retry_after_ms.is_some());
    }
}

#[tokio::test]
async fn the_list_is_ordered_by_what_was_said_last() {
    let mut node = TestNode::start().await;
    for framing in BOTH {
        let alice = format!("alice-{}", framing.name());
        let peers: Vec<_> = (0..7).map(|n| format!("peer-{}-{n}", framing.name())).collect();
        let mut phone = TestClient::login(&node, framing, &alice, "phone").await;
        let mut expected: Vec<String> = Vec::new();
        for n in [0, 1, 2, 3, 4, 5, 6, 2, 0] {
            phone.say(&peers[n], "x").await;
            expected.retain(|peer| *peer != peers[n]);
            expected.insert(0, peers[n].clone());
            // Times are in milliseconds: two in the same one are in the order of their ids.
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        }
        for again in [false, true] {
            let mut peers_listed = Vec::new();
            let mut page = list(3);
            loop {
                let ConversationList { conversations, next, .. } =
                    ask!(phone, page.clone(), ConversationList);
                for one in conversations {
                    let last = one.last.unwrap();
                    assert_eq!((last.seq, one.read, one.unread), (one.head, one.head, 0));
                    peers_listed.push(one.conversation.peer_of(&user(&alice)).unwrap().to_string());
                }
                page.after = next;
                if page.after.is_none() {
                    break;
                }
            }
            assert_eq!(peers_listed, expected, "again: {again}");
            if !again {
                // The same when every conversation is asleep.
                node.stop().await;
                node.start_again().await;
                phone = TestClient::login(&node, framing, &alice, "phone").await;
            }
        }
    }
}

#[tokio::test]
async fn labels_mutes_and_pins_are_kept_and_versioned() {
    let mut node = TestNode::start().await;
    for framing in BOTH {
        let (alice, bob) = (format!("alice-{}", framing.name()), format!("bob-{}", framing.name()));
        let pair = conversation(&alice, &bob);
        let mut phone = TestClient::login(&node, framing, &alice, "phone").await;
        let mut his = TestClient::login(&node, framing, &bob, "phone").await;
        let empty = ask!(phone, list(10), ConversationList);
        assert!(empty.conversations.is_empty() && !empty.not_modified && !empty.cut);
        his.say(&alice, "hello").await;
        let first = ask!(phone, list(10), ConversationList);
        assert_ne!(first.version, empty.version, "who is in the list is in its version");
        // What is said is not.
        his.say(&alice, "hello").await;
        let known = Conversations { known_version: Some(first.version), ..list(10) };
        let same = ask!(phone, known.clone(), ConversationList);
        assert!(same.not_modified && same.conversations.is_empty() && same.version == first.version);
        let mut versions = vec![empty.version, first.version];
        let changes = [
            SetConversation { label: Some("Bob".into()), ..set(&pair) },
            SetConversation { muted: Some(true), ..set(&pair) },
            SetConversation { pinned: Some(true), ..set(&pair) },
            SetConversation { muted: Some(false), label: Some(String::new()), ..set(&pair) },
        ];
        for change in changes {
            let version = ask!(phone, change.clone(), ConversationSet).version;
            assert!(!versions.contains(&version) && version < 1 << 53, "{version}");
            versions.push(version);
            let list = ask!(phone, known.clone(), ConversationList);
            assert_eq!((list.version, list.not_modified), (version, false));
            // Again, with the same client id: the same.
            assert_eq!(ask!(phone, change, ConversationSet).version, version);
        }
        node.kill().await;
        node.start_again().await;
        let mut phone = TestClient::login(&node, framing, &alice, "phone").await;
        let mut his = TestClient::login(&node, framing, &bob, "phone").await;
        let kept = ask!(phone, list(10), ConversationList);
        assert_eq!(Some(&kept.version), versions.last());
        let one = &kept.conversations[0];
        assert_eq!((&one.label, one.muted, one.pinned, one.unread, kept.unread), (&None, false, true, 2, 2));
        let not_his = ask!(his, list(10), ConversationList);
        assert!(!not_his.conversations[0].pinned && not_his.version != kept.version);
        refused!(phone, SetConversation { label: Some("x".repeat(129)), ..set(&pair) }, INVALID_REQUEST);
    }
}

/// What a device has of each conversation, by sync and pull alone.
struct Device {
    user: usize,
    had: [Vec<u64>; 3],
}

/// Takes all that a sync says is missing, in order, and returns the cursors.
async fn catch_up(client: &mut TestClient, device: &mut Device, ids: &[ConversationId; 3], kept: bool) {
    let mut after = None;
    loop {
        let cursors = ids.iter().zip(&device.had);
        let cursor = |(id, had): (&ConversationId, &Vec<u64>)| {
            let seq = Seq(had.last().copied().unwrap_or(0));
            Cursor { conversation: id.clone(), seq }
        };
        let theirs = ids.iter().map(|id| id.direct_users().contains(&user(NAMES[device.user])));
        let cursors = cursors.zip(theirs).filter(|(_, theirs)| *theirs).map(|(pair, _)| cursor(pair));
        let cursors = if kept { Vec::new() } else { cursors.collect() };
        let sync = Sync { cursors, use_device_cursors: kept, after };
        let synced = ask!(client, sync, Synced);
        for one in synced.conversations {
            let at = ids.iter().position(|id| *id == one.conversation).unwrap();
            let page = synced.pages.iter().find(|page| page.conversation == one.conversation);
            for message in page.map_or(&[][..], |page| &page.messages) {
                let have = device.had[at].last().copied().unwrap_or(0);
                // A cursor that is kept for the device may lag behind: what it has it drops by seq.
                if message.seq.0 > have {
                    assert_eq!(message.seq.0, have + 1, "a gap");
                    device.had[at].push(message.seq.0);
                }
            }
            while (device.had[at].len() as u64) < one.head.0 {
                let range = convoke_protocol::request::messages::PullRange {
                    conversation: one.conversation.clone(),
                    from: Seq(device.had[at].len() as u64 + 1),
                    to: one.head,
                };
                let pull = convoke_protocol::request::messages::Pull { ranges: vec![range] };
                let page = ask!(client, pull, Pulled).pages.pop().unwrap();
                assert_eq!((&page.error, page.messages.is_empty()), (&None, false));
                device.had[at].extend(page.messages.iter().map(|message| message.seq.0));
            }
        }
        after = synced.next;
        if after.is_none() {
            return;
        }
    }
}

const NAMES: [&str; 3] = ["alice", "bob", "carol"];

/// Random sends, acknowledgements, kills, syncs from either side's cursors and pulls: every device comes to the log.
#[tokio::test]
async fn catching_up_always_comes_to_the_log() {
    let seed = crate::harness::seed();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut node = TestNode::start().await;
    let pairs = [(0, 1), (0, 2), (1, 2)];
    let ids = pairs.map(|(one, other)| conversation(NAMES[one], NAMES[other]));
    let mut heads = [0; 3];
    let mut devices: Vec<_> = (0..3).map(|user| Device { user, had: Default::default() }).collect();
    for step in 0..60 {
        let mut speakers = Vec::new();
        for name in NAMES {
            speakers.push(TestClient::login(&node, Framing::Tcp, name, "speaker").await);
        }
        for _ in 0..rng.random_range(0..30) {
            let pair = rng.random_range(0..3);
            let (one, other) = pairs[pair];
            let (who, whom) = if rng.random() { (one, other) } else { (other, one) };
            heads[pair] += 1;
            assert_eq!(speakers[who].say(NAMES[whom], "x").await.seq, Seq(heads[pair]), "seed {seed}");
        }
        for device in &mut devices {
            if rng.random_bool(0.3) {
                continue;
            }
            let mut client =
                TestClient::login(&node, BOTH[device.user % 2], NAMES[device.user], "device").await;
            catch_up(&mut client, device, &ids, rng.random()).await;
            let cursors: Vec<_> = ids
                .iter()
                .zip(&device.had)
                .filter_map(|(id, had)| Some(Cursor { conversation: id.clone(), seq: Seq(*had.last()?) }))
                .collect();
            if rng.random() {
                ask!(client, Ack { pushes: 0, cursors }, Acked);
            }
        }
        match step % 20 {
            9 => node.kill().await,
            19 => drop(node.stop().await),
            _ => continue,
        }
        node.start_again().await;
    }
    for device in &mut devices {
        let mut client = TestClient::login(&node, BOTH[device.user % 2], NAMES[device.user], "device").await;
        catch_up(&mut client, device, &ids, false).await;
        for (at, (one, other)) in pairs.into_iter().enumerate() {
            let all = if [one, other].contains(&device.user) { heads[at] } else { 0 };
            assert_eq!(device.had[at], (1..=all).collect::<Vec<_>>(), "seed {seed}");
        }
    }
    // What is missing is told in the order in which it was said.
    let mut late = TestClient::login(&node, JSON, "alice", "late").await;
    let cursors = ids[..2].iter().map(|id| Cursor { conversation: id.clone(), seq: Seq::ZERO }).collect();
    let synced = ask!(late, Sync { cursors, ..everything() }, Synced);
    assert!(synced.pages.iter().all(|page| page.messages.is_sorted_by_key(|message| message.seq)));
    late.post(to_user("bob", "x")).await;
    node.stop().await;
    node.check().await;
}
