//! Coming back: what was missed is found, page by page, and nothing twice.

use std::collections::HashMap;

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{ConversationId, GroupId, Seq, Timestamp};
use convoke_protocol::message::{Cursor, Message};
use convoke_protocol::request::messages::{Ack, Direction, History, HistoryFrom, Pull, PullRange};
use convoke_protocol::request::sync::{Sync, Synced};

use crate::harness::client::conversation;
use crate::harness::{Setup, TestClient, TestNode, to_user};

mod converge;
mod since;

/// Small pages.
const SMALL: &str = "[limits]\nmax_page_messages = 10\nmax_page_bytes = 2000\nmax_ranges = 5";
const PAGE_MESSAGES: usize = 10;
const PAGE_BYTES: usize = 2_000;

/// Says so many things of so many bytes.
async fn fill(client: &mut TestClient, user: &str, count: usize, bytes: usize) {
    let mut ids = Vec::new();
    for n in 0..count {
        ids.push(client.post(to_user(user, &format!("{n:.<bytes$}"))).await);
    }
    for id in ids {
        assert!(matches!(client.answer(id).await, convoke_protocol::frame::Answer::Sent(_)));
    }
}

fn range(conversation: &ConversationId, from: u64, to: u64) -> PullRange {
    PullRange { conversation: conversation.clone(), from: Seq(from), to: Seq(to) }
}

fn seqs(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(|message| message.seq.0).collect()
}

#[tokio::test]
async fn ranges_of_several_conversations_are_pulled_in_bounded_pages() {
    let node = Setup::config(SMALL).start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    fill(&mut alice, "bob", 25, 20).await;
    fill(&mut alice, "carol", 8, 700).await;
    fill(&mut alice, "dave", 1, 9_000).await;
    let [bob, carol, dave] = ["bob", "carol", "dave"].map(|user| conversation("alice", user));
    for framing in Framing::ALL {
        let mut reader = TestClient::login(&node, framing, "alice", framing.name()).await;
        let mut wanted = vec![range(&bob, 1, u64::MAX), range(&carol, 2, 6), range(&dave, 1, 1)];
        let mut got = HashMap::<_, Vec<u64>>::new();
        let mut answers = 0;
        while !wanted.is_empty() {
            let pages = ask!(reader, Pull { ranges: wanted.clone() }, Pulled).pages;
            assert_eq!(pages.len(), wanted.len());
            let messages: Vec<_> = pages.iter().flat_map(|page| &page.messages).collect();
            let bytes: Vec<_> = messages.iter().map(|message| message.content.body.len()).collect();
            assert!((1..=PAGE_MESSAGES).contains(&messages.len()), "{bytes:?}");
            // Only the last one may reach over the bound.
            assert!(bytes[..bytes.len() - 1].iter().sum::<usize>() < PAGE_BYTES, "{bytes:?}");
            let mut rest = Vec::new();
            for (page, wanted) in pages.into_iter().zip(wanted) {
                let head = [(&bob, 25), (&carol, 8), (&dave, 1)]
                    .into_iter()
                    .find(|(id, _)| **id == page.conversation);
                assert_eq!((&page.conversation, page.error), (&wanted.conversation, None));
                assert_eq!((page.first, page.head), (Seq(1), Seq(head.unwrap().1)));
                got.entry(page.conversation.clone()).or_default().extend(seqs(&page.messages));
                rest.extend(page.next.map(|next| range(&page.conversation, next.0, wanted.to.0)));
            }
            wanted = rest;
            answers += 1;
        }
        assert!(answers >= 4, "{answers}");
        let expected =
            [(bob.clone(), (1..=25).collect()), (carol.clone(), (2..=6).collect()), (dave.clone(), vec![1])];
        assert_eq!(got, HashMap::from(expected));
    }
}

#[tokio::test]
async fn a_range_that_cannot_be_read_says_why_and_spoils_no_other() {
    let node = Setup::config(SMALL).start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    fill(&mut alice, "bob", 3, 20).await;
    TestClient::login(&node, Framing::Tcp, "carol", "phone").await.say("dave", "a secret").await;
    let (bob, nobody) = (conversation("alice", "bob"), conversation("alice", "nobody"));
    let foreign = conversation("carol", "dave");
    let group = ConversationId::group(&GroupId::new("staff").unwrap());
    const INVALID: Option<ErrorCode> = Some(ErrorCode::INVALID_REQUEST);
    const NOT_FOUND: Option<ErrorCode> = Some(ErrorCode::NOT_FOUND);
    let cases = [
        (range(&foreign, 1, 9), NOT_FOUND, 0),
        (range(&group, 1, 9), NOT_FOUND, 0),
        (range(&bob, 0, 9), INVALID, 0),
        (range(&bob, 3, 2), INVALID, 0),
        (range(&bob, 2, 2), None, 1),
        (range(&bob, 4, 9), None, 0),
        (range(&bob, u64::MAX, u64::MAX), None, 0),
        (range(&nobody, 1, 9), None, 0),
    ];
    for framing in Framing::ALL {
        let mut reader = TestClient::login(&node, framing, "alice", framing.name()).await;
        for (wanted, error, messages) in &cases {
            let ranges = vec![range(&bob, 1, 1), wanted.clone(), range(&bob, 3, 3)];
            let pages = ask!(reader, Pull { ranges }, Pulled).pages;
            let [before, page, after] = &pages[..] else { panic!("{pages:?}") };
            assert_eq!((seqs(&before.messages), seqs(&after.messages)), (vec![1], vec![3]));
            assert_eq!(page.error.as_ref().map(|error| error.code), *error, "{wanted:?}");
            assert_eq!((page.messages.len(), page.next), (*messages, None), "{wanted:?}");
        }
        let ranges = vec![range(&bob, 1, 1); 6];
        refused!(reader, Pull { ranges }, INVALID_REQUEST);
        assert_eq!(ask!(reader, Pull { ranges: Vec::new() }, Pulled).pages, []);
    }
}

/// The page of history that the protocol promises, of a conversation that has these messages.
fn expected(all: &[Message], from: HistoryFrom, direction: Direction, limit: u32) -> (Vec<u64>, Option<u64>) {
    let limit = (limit as usize).min(PAGE_MESSAGES);
    let seqs = seqs(all);
    let head = seqs.len() as u64;
    if direction == Direction::Newer {
        let start = match from {
            HistoryFrom::First => 1,
            HistoryFrom::Last => head,
            HistoryFrom::Seq(seq) => seq.0,
            HistoryFrom::Time(time) => all.iter().find(|m| m.time >= time).map_or(head + 1, |m| m.seq.0),
        };
        let all: Vec<_> = seqs.into_iter().filter(|seq| *seq >= start).collect();
        let page = all[..all.len().min(limit)].to_vec();
        let next = all.get(limit).copied();
        return (page, next);
    }
    let start = match from {
        HistoryFrom::First => 1,
        HistoryFrom::Last => head,
        HistoryFrom::Seq(seq) => seq.0,
        HistoryFrom::Time(time) => all.iter().rfind(|m| m.time <= time).map_or(0, |m| m.seq.0),
    };
    let all: Vec<_> = seqs.into_iter().filter(|seq| *seq <= start).collect();
    let cut = all.len().saturating_sub(limit);
    (all[cut..].to_vec(), cut.checked_sub(1).map(|before| all[before]))
}

#[tokio::test]
async fn history_is_read_in_both_directions_by_number_and_by_time() {
    let node = Setup::config(SMALL).start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    for n in 0..23 {
        // Some in the same millisecond, most not.
        fill(&mut alice, "bob", 1 + n % 2, 20).await;
    }
    let id = conversation("alice", "bob");
    let all = alice.pull_all(&id).await;
    let mut starts = vec![HistoryFrom::First, HistoryFrom::Last];
    starts
        .extend([0, 1, 2, 9, 10, 11, all.len() as u64, 100, u64::MAX].map(|seq| HistoryFrom::Seq(Seq(seq))));
    for message in [&all[0], &all[13], &all[all.len() - 1]] {
        starts.extend(
            [message.time.0 - 1, message.time.0, message.time.0 + 1].map(|t| HistoryFrom::Time(Timestamp(t))),
        );
    }
    starts.extend([0, u64::MAX].map(|time| HistoryFrom::Time(Timestamp(time))));
    for framing in Framing::ALL {
        let mut bob = TestClient::login(&node, framing, "bob", framing.name()).await;
        for from in &starts {
            for direction in [Direction::Newer, Direction::Older] {
                for limit in [1, 7, 10, 1_000] {
                    let page = bob.history(&id, *from, direction, limit).await.page;
                    let came = (seqs(&page.messages), page.next.map(|next| next.0));
                    let what = format!("{limit} from {from:?} {direction:?}");
                    assert_eq!(came, expected(&all, *from, direction, limit), "{what}");
                    assert_eq!((page.first, page.head, page.error), (Seq(1), Seq(all.len() as u64), None));
                }
            }
        }
        // From the end to the beginning, page by page.
        let (mut from, mut read) = (HistoryFrom::Last, Vec::new());
        loop {
            let page = bob.history(&id, from, Direction::Older, 4).await.page;
            read.splice(0..0, page.messages);
            let Some(next) = page.next else { break };
            from = HistoryFrom::Seq(next);
        }
        assert_eq!(read, all);
    }
}

#[tokio::test]
async fn there_is_no_history_of_what_is_not_there_or_not_ones_own() {
    let node = TestNode::start().await;
    TestClient::login(&node, Framing::Tcp, "carol", "phone").await.say("dave", "a secret").await;
    for framing in Framing::ALL {
        let mut alice = TestClient::login(&node, framing, "alice", framing.name()).await;
        let ask = |conversation, limit| History {
            conversation,
            from: HistoryFrom::Last,
            direction: Direction::Older,
            limit,
        };
        refused!(alice, ask(conversation("carol", "dave"), 9), NOT_FOUND);
        refused!(alice, ask(ConversationId::group(&GroupId::new("staff").unwrap()), 9), NOT_FOUND);
        refused!(alice, ask(conversation("alice", "nobody"), 0), INVALID_REQUEST);
        for from in
            [HistoryFrom::First, HistoryFrom::Last, HistoryFrom::Seq(Seq(3)), HistoryFrom::Time(Timestamp(7))]
        {
            for direction in [Direction::Newer, Direction::Older] {
                let page = alice.history(&conversation("alice", "nobody"), from, direction, 9).await.page;
                assert_eq!((page.messages.len(), page.next, page.head), (0, None, Seq::ZERO));
            }
        }
    }
}

/// What a sync says: (with whom, head, cursor), and the pages.
fn told(synced: &Synced) -> Vec<(&str, u64, Option<u64>)> {
    let told = synced.conversations.iter().map(|one| {
        let peer = one.conversation.as_str().rsplit(':').next().unwrap();
        (peer, one.head.0, one.cursor.map(|cursor| cursor.0))
    });
    told.collect()
}

fn paged(synced: &Synced) -> Vec<(&str, Vec<u64>)> {
    let peer = |page: &convoke_protocol::request::messages::Page| {
        assert_eq!(page.error, None);
        seqs(&page.messages)
    };
    synced
        .pages
        .iter()
        .map(|page| (page.conversation.as_str().rsplit(':').next().unwrap(), peer(page)))
        .collect()
}

fn cursor(peer: &str, seq: u64) -> Cursor {
    Cursor { conversation: conversation("alice", peer), seq: Seq(seq) }
}

fn sync(cursors: Vec<Cursor>, use_device_cursors: bool) -> Sync {
    Sync { cursors, use_device_cursors, after: None }
}

#[tokio::test]
async fn a_sync_tells_what_is_missing_behind_the_cursors() {
    let mut node = TestNode::start().await;
    node.keep_addresses();
    for (peer, count) in [("u1", 3), ("u2", 6), ("u3", 9)] {
        fill(&mut TestClient::login(&node, Framing::Tcp, peer, "phone").await, "alice", count, 5).await;
    }
    let nothing: Vec<(&str, Vec<u64>)> = Vec::new();
    for framing in Framing::ALL {
        let device = framing.name();
        let mut alice = TestClient::login(&node, framing, "alice", device).await;
        // Nobody has a cursor: the heads are told.
        for request in [sync(Vec::new(), false), sync(Vec::new(), true)] {
            let synced = ask!(alice, request, Synced);
            assert_eq!(told(&synced), [("u1", 3, None), ("u2", 6, None), ("u3", 9, None)]);
            assert_eq!((paged(&synced), &synced.next), (nothing.clone(), &None));
        }
        // The client's own; one beyond the head and one of others change nothing.
        let foreign = Cursor { conversation: conversation("u1", "u2"), seq: Seq(0) };
        let cursors =
            vec![cursor("u1", 0), cursor("u2", 6), cursor("u3", 70), cursor("u4", 1), foreign.clone()];
        let synced = ask!(alice, sync(cursors, false), Synced);
        assert_eq!(told(&synced), [("u1", 3, Some(0)), ("u2", 6, Some(6)), ("u3", 9, Some(70))]);
        assert_eq!(paged(&synced), [("u1", vec![1, 2, 3])]);
        // Those that the server keeps; they never fall, and the client's own come first.
        let ack = |cursors| Ack { pushes: 0, cursors };
        ask!(alice, ack(vec![cursor("u2", 4), cursor("u3", 7)]), Acked);
        ask!(alice, ack(vec![cursor("u2", 2), cursor("u3", 8)]), Acked);
        refused!(alice, ack(vec![foreign]), NOT_FOUND);
        let synced = ask!(alice, sync(vec![cursor("u3", 6)], true), Synced);
        assert_eq!(told(&synced), [("u1", 3, None), ("u2", 6, Some(4)), ("u3", 9, Some(6))]);
        assert_eq!(paged(&synced), [("u2", vec![5, 6]), ("u3", vec![7, 8, 9])]);
        refused!(alice, sync(vec![cursor("u1", 1); 101], false), INVALID_REQUEST);
        refused!(alice, ack(vec![cursor("u1", 1); 101]), INVALID_REQUEST);
        // They are this device's, and outlast the node.
        let mut other = TestClient::login(&node, framing, "alice", "other").await;
        assert_eq!(told(&ask!(other, sync(Vec::new(), true), Synced))[1], ("u2", 6, None));
        node.stop().await;
        node.start_again().await;
        let mut alice = TestClient::login(&node, framing, "alice", device).await;
        let synced = ask!(alice, sync(Vec::new(), true), Synced);
        assert_eq!(told(&synced), [("u1", 3, None), ("u2", 6, Some(4)), ("u3", 9, Some(8))]);
    }
}

#[tokio::test]
async fn a_sync_of_many_conversations_comes_in_pages() {
    const MANY: usize = 120;
    let node = Setup::config("[limits]\nmax_page_messages = 60").start().await;
    let mut alice = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let mut posted = Vec::new();
    for n in 0..MANY {
        for _ in 0..2 {
            posted.push(alice.post(to_user(&format!("user-{n:03}"), "hello")).await);
        }
    }
    for id in posted {
        assert!(matches!(alice.answer(id).await, convoke_protocol::frame::Answer::Sent(_)));
    }
    for framing in Framing::ALL {
        let mut reader = TestClient::login(&node, framing, "alice", framing.name()).await;
        let (mut after, mut conversations) = (None, Vec::new());
        loop {
            // Of the first hundred she has nothing, of the others she says nothing.
            let cursors = (0..100).map(|n| cursor(&format!("user-{n:03}"), 0)).collect();
            let synced =
                ask!(reader, Sync { cursors, use_device_cursors: false, after: after.clone() }, Synced);
            let messages = synced.pages.iter().map(|page| page.messages.len()).sum::<usize>();
            assert!(messages <= 60, "{messages}");
            let mut paged: HashMap<_, _> = synced
                .pages
                .iter()
                .map(|page| (&page.conversation, (seqs(&page.messages), page.next)))
                .collect();
            for one in &synced.conversations {
                assert_eq!(one.head, Seq(2));
                let page = paged.remove(&one.conversation);
                match one.cursor {
                    None => assert_eq!(page, None),
                    // Cut short by the bound, at the latest at its first: the rest is pulled.
                    Some(_) => {
                        let (mut had, next) = page.unwrap_or((Vec::new(), Some(Seq(1))));
                        if let Some(next) = next {
                            let ranges = vec![range(&one.conversation, next.0, one.head.0)];
                            had.extend(seqs(&ask!(reader, Pull { ranges }, Pulled).pages[0].messages));
                        }
                        assert_eq!(had, [1, 2], "{}", one.conversation);
                    }
                }
            }
            assert_eq!(paged.len(), 0, "pages of conversations that were not told");
            conversations.extend(synced.conversations.into_iter().map(|one| one.conversation));
            after = synced.next;
            if after.is_none() {
                break;
            }
        }
        let all: Vec<_> = (0..MANY).map(|n| conversation("alice", &format!("user-{n:03}"))).collect();
        assert_eq!(conversations, all);
    }
}
