//! Devices that come and go at any moment end up with everything.

use std::collections::{BTreeMap, HashMap};

use convoke_protocol::frame::Event;
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{ConversationId, MessageId, Seq};
use convoke_protocol::message::Cursor;
use convoke_protocol::request::messages::{Page, Pull, PullRange};
use convoke_protocol::request::sync::{SyncSince, SyncedSince};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{Barrier, mpsc, watch};
use tokio::task::JoinSet;

use crate::harness::client::conversation;
use crate::harness::{Setup, TestClient, TestNode, in_time};

/// Messages of each writer.
const EACH: u64 = 150;

/// Frank says something only when Alice has said so many things: between most logins nothing happens there.
const SELDOM: u64 = 10;

/// Of those, the ones after the devices' last login has begun.
const LATE: u64 = 50;

/// What one device of Bob's has, over all its connections.
#[derive(Default)]
struct Device {
    had: HashMap<ConversationId, BTreeMap<Seq, MessageId>>,
    /// Whether it asks for what changed since, or each time for everything.
    by_token: bool,
    token: Option<String>,
    logins: u64,
    /// Conversations that it knew and was not told of.
    left_out: usize,
}

impl Device {
    fn take(&mut self, id: &ConversationId, seq: Seq, message: MessageId) {
        let before = self.had.entry(id.clone()).or_default().insert(seq, message);
        assert!(before.is_none_or(|before| before == message), "{id} {seq} is two messages");
    }

    fn take_page(&mut self, page: &Page) {
        assert_eq!(page.error, None);
        for message in &page.messages {
            self.take(&page.conversation, message.seq, message.message_id);
        }
    }

    /// Up to where it has everything.
    fn cursor(&self, id: &ConversationId) -> Seq {
        let had = self.had.get(id).into_iter().flat_map(BTreeMap::keys);
        had.zip(1..)
            .take_while(|(seq, expected)| seq.0 == *expected)
            .last()
            .map_or(Seq::ZERO, |(seq, _)| *seq)
    }

    /// Logs in and fetches what the sync tells to be missing, and nothing later.
    async fn come(&mut self, node: &TestNode, framing: Framing) -> TestClient {
        self.logins += 1;
        let mut client = TestClient::login(node, framing, "bob", framing.name()).await;
        let cursor = |id: &ConversationId| Cursor { conversation: id.clone(), seq: self.cursor(id) };
        let cursors = self.had.keys().map(cursor).collect();
        let since = self.token.take();
        let is_known = since.is_some();
        let ask = SyncSince { since, cursors, use_device_cursors: false, after: None };
        let SyncedSince { token, all, conversations, pages, next } = ask!(client, ask, SyncedSince);
        assert_eq!((next, all), (None, !is_known));
        let known = conversations.iter().filter(|one| self.had.contains_key(&one.conversation));
        self.left_out += self.had.len() - known.count();
        for page in &pages {
            self.take_page(page);
        }
        for one in conversations {
            let mut from = self.cursor(&one.conversation).next();
            while from <= one.head {
                let range = PullRange { conversation: one.conversation.clone(), from, to: one.head };
                let pages = ask!(client, Pull { ranges: vec![range] }, Pulled).pages;
                self.take_page(&pages[0]);
                let next = pages[0].next.unwrap_or(one.head.next());
                assert!(next > from, "a page without a message");
                from = next;
            }
        }
        self.token = token.filter(|_| self.by_token);
        client
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Push(push) => self.take(&push.conversation, push.message.seq, push.message.message_id),
            other => panic!("{other:?}: nobody was slow"),
        }
    }

    fn has(&self, heads: &HashMap<ConversationId, Seq>) -> bool {
        heads.iter().all(|(id, head)| self.cursor(id) == *head)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_come_and_go_end_up_with_everything() {
    assert_eq!(come_and_go(TestNode::start().await, false).await, 0);
}

/// What a device is not told of has not changed, and is pushed to it all the same when it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_ask_for_what_changed_end_up_with_everything() {
    let exact = Setup::config("").env("CONVOKE_TEST_CHANGE_PERIOD", "0").start().await;
    assert!(come_and_go(exact, true).await > 0, "each login was told of every conversation");
}

/// How many conversations were left out of what the devices were told, of all their logins together.
async fn come_and_go(node: TestNode, by_token: bool) -> usize {
    let seed = crate::harness::seed();
    let node = std::sync::Arc::new(node);
    let (over, ended) = watch::channel(false);
    let late = std::sync::Arc::new(Barrier::new(4));
    let mut writers = JoinSet::new();
    let (said, mut heard) = mpsc::channel(EACH as usize);
    writers.spawn({
        let node = node.clone();
        async move {
            let mut client = TestClient::login(&node, Framing::Tcp, "frank", "writer").await;
            while heard.recv().await.is_some() {
                client.say("bob", "now and then").await;
            }
        }
    });
    // Bob himself among them: his other devices get what he says.
    for (n, (user, peer)) in [("alice", "bob"), ("carol", "bob"), ("bob", "dave")].into_iter().enumerate() {
        let (node, late, said) = (node.clone(), late.clone(), (user == "alice").then(|| said.clone()));
        writers.spawn(async move {
            let mut client = TestClient::login(&node, Framing::ALL[n], user, "writer").await;
            for n in 0..EACH {
                if n == EACH - LATE {
                    late.wait().await;
                }
                client.say(peer, &format!("{n}")).await;
                if let Some(said) = said.as_ref().filter(|_| n % SELDOM == 0) {
                    said.send(()).await.expect("Frank is there");
                }
                client.acknowledge().await;
            }
        });
    }
    drop(said);
    let mut devices = JoinSet::new();
    for (n, framing) in Framing::ALL.into_iter().enumerate() {
        let (node, mut ended) = (node.clone(), ended.clone());
        let mut random = SmallRng::seed_from_u64(seed.wrapping_add(n as u64));
        devices.spawn(async move {
            let mut device = Device { by_token, ..Device::default() };
            loop {
                let mut client = device.come(&node, framing).await;
                if *ended.borrow() {
                    return (device, client);
                }
                for _ in 0..random.random_range(0..40) {
                    tokio::select! {
                        event = client.event() => device.note(event),
                        _ = ended.changed() => break,
                    }
                }
                client.acknowledge().await;
                client.take_events().into_iter().for_each(|event| device.note(event));
            }
        });
    }
    // The devices log in for the last time while it is still being written.
    in_time("most is written", late.wait()).await;
    over.send_replace(true);
    writers.join_all().await;
    let pairs = [("alice", EACH), ("carol", EACH), ("dave", EACH), ("frank", EACH / SELDOM)];
    let mut heads = HashMap::new();
    for (peer, count) in pairs {
        let mut reader = TestClient::login(&node, Framing::Tcp, peer, "reader").await;
        let all = reader.pull_all(&conversation("bob", peer)).await;
        assert_eq!(all.len() as u64, count, "{peer}");
        heads.insert(conversation("bob", peer), Seq(count));
    }
    let mut left_out = 0;
    for (mut device, mut client) in devices.join_all().await {
        // From its last sync on only pushes may be missing: no number tells of one that never comes.
        while !device.has(&heads) {
            device.note(client.event().await);
        }
        assert!(device.logins > 3, "{}", device.logins);
        left_out += device.left_out;
    }
    left_out
}
