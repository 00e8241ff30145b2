//! A server in a few lines that loses, doubles, delays and reorders, and the promise that must hold all the same.

use std::collections::BTreeMap;

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::id::{ClientId, DeviceId, MessageId, Timestamp, UserId};
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::sync::SyncedConversation;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const PAGE: usize = 3;
const RANGES: usize = 2;

fn conversation(n: u8) -> ConversationId {
    ConversationId::new(&format!("g:{n}")).expect("valid")
}

fn message(n: u8, seq: u64) -> Message {
    let id = Uuid::from_u128(u128::from(n) << 64 | u128::from(seq));
    Message {
        seq: Seq(seq),
        message_id: MessageId(id),
        sender: UserId::new("alice").expect("valid"),
        device: DeviceId::new("one").expect("valid"),
        client_id: ClientId(id),
        time: Timestamp(seq),
        kind: MessageKind::USER,
        priority: Priority::NORMAL,
        content: Content::text(format!("{n}/{seq}")),
        reply_to: None,
        previous: None,
        target: None,
        edited_at: None,
        recalled_at: None,
        deleted_at: None,
        reactions: Vec::new(),
    }
}

fn page(n: u8, from: u64, to: u64, first: u64, head: u64, room: &mut usize) -> Page {
    let begin = from.max(first);
    let last = to.min(head);
    let messages: Vec<_> = (begin..=last).take(*room).map(|seq| message(n, seq)).collect();
    *room -= messages.len();
    let next = begin + messages.len() as u64;
    Page {
        conversation: conversation(n),
        messages,
        first: Seq(first),
        head: Seq(head),
        next: (next <= last).then_some(Seq(next)),
        error: None,
    }
}

fn synced(conversations: Vec<SyncedConversation>, pages: Vec<Page>) -> SyncedSince {
    SyncedSince { token: None, all: true, conversations, pages, next: None }
}

fn told(n: u8, head: u64, cursor: Option<u64>) -> SyncedConversation {
    SyncedConversation {
        conversation: conversation(n),
        head: Seq(head),
        cursor: cursor.map(Seq),
        read: Seq::ZERO,
        unread: 0,
    }
}

fn deliveries(resume: &mut Resume) -> Vec<Delivery> {
    std::iter::from_fn(|| resume.next_delivery()).collect()
}

fn seqs(deliveries: &[Delivery]) -> Vec<u64> {
    let seq = |delivery: &Delivery| match delivery {
        Delivery::Message(_, message) => Some(message.seq.0),
        _ => None,
    };
    deliveries.iter().filter_map(seq).collect()
}

/// A merge whose walk is over: conversation 1 stands at `cursor`.
fn live_at(cursor: u64, now: Instant) -> Resume {
    let mut resume = Resume::new(Start::from_now());
    resume.connected(RANGES, now);
    assert!(matches!(resume.next_request(now), Some(Ask::Sync(_))));
    resume.synced(synced(vec![told(1, cursor, None)], Vec::new()), now);
    assert_eq!(deliveries(&mut resume), vec![Delivery::CaughtUp]);
    resume
}

#[test]
fn a_gap_is_pulled_after_a_grace_and_what_was_held_follows() {
    let now = Instant::now();
    let mut resume = live_at(4, now);
    resume.message(&conversation(1), message(1, 7), now);
    resume.message(&conversation(1), message(1, 5), now);
    assert_eq!(seqs(&deliveries(&mut resume)), [5]);
    assert_eq!(resume.next_request(now), None, "the push may only have been overtaken");
    let later = now + GAP_GRACE;
    assert_eq!(resume.next_wake(), Some(later));
    let Some(Ask::Pull(ranges)) = resume.next_request(later) else { panic!("the gap is pulled") };
    assert_eq!((ranges[0].from, ranges[0].to), (Seq(6), Seq(6)));
    resume.pulled(&ranges, Pulled { pages: vec![page(1, 6, 6, 1, 7, &mut 9)] }, later);
    assert_eq!(seqs(&deliveries(&mut resume)), [6, 7]);
    assert_eq!(resume.next_wake(), None);
}

#[test]
fn an_overtaken_push_closes_the_gap_without_a_pull() {
    let now = Instant::now();
    let mut resume = live_at(0, now);
    resume.message(&conversation(1), message(1, 2), now);
    resume.message(&conversation(1), message(1, 1), now);
    assert_eq!(seqs(&deliveries(&mut resume)), [1, 2]);
    assert_eq!(resume.next_wake(), None);
}

#[test]
fn lagged_is_pulled_at_once_and_to_the_head() {
    let now = Instant::now();
    let mut resume = live_at(4, now);
    resume.lagged(&conversation(1), Seq(9), now);
    let Some(Ask::Pull(ranges)) = resume.next_request(now) else { panic!("the gap is pulled") };
    assert_eq!((ranges[0].from, ranges[0].to), (Seq(5), Seq(9)));
    assert_eq!(resume.next_request(now), None, "one pull of a conversation at a time");
}

#[test]
fn a_conversation_that_came_into_being_later_begins_at_its_first_message() {
    let now = Instant::now();
    let mut resume = live_at(4, now);
    resume.message(&conversation(2), message(2, 2), now);
    let Some(Ask::Pull(ranges)) = resume.next_request(now + GAP_GRACE) else { panic!("pulled") };
    assert_eq!((ranges[0].from, ranges[0].to), (Seq(1), Seq(1)));
}

#[test]
fn from_now_includes_what_was_pushed_since_the_login() {
    let now = Instant::now();
    let mut resume = Resume::new(Start::from_now());
    resume.connected(RANGES, now);
    assert!(resume.next_request(now).is_some());
    resume.message(&conversation(1), message(1, 5), now);
    assert_eq!(deliveries(&mut resume), vec![], "it is not known yet where to begin");
    resume.synced(synced(vec![told(1, 6, None)], Vec::new()), now);
    assert_eq!(seqs(&deliveries(&mut resume)), [5]);
    let Some(Ask::Pull(ranges)) = resume.next_request(now) else { panic!("the rest is pulled") };
    assert_eq!((ranges[0].from, ranges[0].to), (Seq(6), Seq(6)));
}

#[test]
fn device_cursors_of_the_server_are_where_to_begin() {
    let now = Instant::now();
    let mut resume = Resume::new(Start::from_device());
    resume.connected(RANGES, now);
    let Some(Ask::Sync(sync)) = resume.next_request(now) else { panic!("a sync comes first") };
    assert!(sync.use_device_cursors && sync.cursors.is_empty());
    resume
        .synced(synced(vec![told(1, 6, Some(4)), told(2, 1, None)], vec![page(1, 5, 6, 1, 6, &mut 9)]), now);
    assert_eq!(seqs(&deliveries(&mut resume)), [5, 6]);
    let Some(Ask::Pull(ranges)) = resume.next_request(now) else { panic!("the new one is pulled") };
    assert_eq!((&ranges[0].conversation, ranges[0].from), (&conversation(2), Seq(1)));
}

#[test]
fn what_was_trimmed_is_reported() {
    let now = Instant::now();
    let mut resume = Resume::new(Start::from_first());
    resume.connected(RANGES, now);
    assert!(resume.next_request(now).is_some());
    resume.synced(synced(vec![told(1, 6, None)], Vec::new()), now);
    let Some(Ask::Pull(ranges)) = resume.next_request(now) else { panic!("pulled") };
    resume.pulled(&ranges, Pulled { pages: vec![page(1, 1, 6, 5, 6, &mut 9)] }, now);
    let got = deliveries(&mut resume);
    assert_eq!(got[0], Delivery::Skipped(conversation(1), Seq(1), Seq(4)));
    assert_eq!(seqs(&got), [5, 6]);
    assert_eq!(got.last(), Some(&Delivery::CaughtUp));
}

#[test]
fn a_range_that_may_not_be_read_is_given_up_and_a_failure_is_tried_again() {
    let now = Instant::now();
    let mut resume = live_at(4, now);
    resume.message(&conversation(1), message(1, 7), now);
    let refused = |code| {
        let error = RequestError::not_done(code, "");
        Pulled { pages: vec![Page { error: Some(error), ..page(1, 1, 0, 1, 0, &mut 0) }] }
    };
    let mut at = now + GAP_GRACE;
    for _ in 0..3 {
        let Some(Ask::Pull(ranges)) = resume.next_request(at) else { panic!("pulled again") };
        resume.pulled(&ranges, refused(ErrorCode::UNAVAILABLE), at);
        assert_eq!(resume.next_request(at), None, "not before some time has passed");
        at = resume.next_wake().expect("it is tried again");
    }
    assert!(at > now + GAP_GRACE + MIN_PULL_BACKOFF * 3);
    let Some(Ask::Pull(ranges)) = resume.next_request(at) else { panic!("pulled again") };
    resume.pulled(&ranges, refused(ErrorCode::NOT_FOUND), at);
    let got = deliveries(&mut resume);
    assert_eq!(got[0], Delivery::Skipped(conversation(1), Seq(5), Seq(6)));
    assert_eq!(seqs(&got), [7]);
}

#[test]
fn without_room_nothing_is_held_or_asked_and_everything_comes_later() {
    let now = Instant::now();
    let mut resume = live_at(4, now);
    resume.set_room(false);
    for seq in 5..5000 {
        resume.message(&conversation(1), message(1, seq), now);
    }
    assert_eq!((resume.next_delivery(), resume.next_wake()), (None, None));
    assert_eq!(resume.next_request(now + GAP_GRACE), None);
    resume.set_room(true);
    let Some(Ask::Pull(ranges)) = resume.next_request(now + GAP_GRACE) else { panic!("pulled") };
    assert_eq!((ranges[0].from, ranges[0].to), (Seq(5), Seq(4999)));
}

#[test]
fn what_is_held_has_a_bound() {
    let now = Instant::now();
    let mut resume = live_at(4, now);
    for seq in 6..6000 {
        resume.message(&conversation(1), message(1, seq), now);
    }
    resume.message(&conversation(1), message(1, 5), now);
    assert_eq!(deliveries(&mut resume).len(), MAX_HELD_MESSAGES + 1);
    assert_eq!(resume.shared.held_bytes, 0);
    let Some(Ask::Pull(ranges)) = resume.next_request(now + GAP_GRACE) else { panic!("pulled") };
    assert_eq!((ranges[0].from, ranges[0].to), (Seq(6 + MAX_HELD_MESSAGES as u64), Seq(5999)));
}

#[test]
fn absurd_numbers_do_no_harm() {
    let now = Instant::now();
    let mut resume = live_at(4, now);
    resume.message(&conversation(1), message(1, u64::MAX), now);
    resume.lagged(&conversation(1), Seq(u64::MAX), now);
    resume.synced(synced(vec![told(2, u64::MAX, Some(u64::MAX))], Vec::new()), now);
    resume.lagged(&conversation(3), Seq(u64::MAX), now);
    let Some(Ask::Pull(ranges)) = resume.next_request(now) else { panic!("pulled") };
    let pages = ranges.iter().map(|range| Page {
        conversation: range.conversation.clone(),
        first: Seq(u64::MAX),
        ..page(1, 1, 0, 1, u64::MAX, &mut 0)
    });
    resume.pulled(&ranges, Pulled { pages: pages.collect() }, now);
    assert_eq!(resume.next_request(now), None);
}

/// What happens in one step of a random history.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Another user says something; the push is sent, doubled or lost.
    Say { conversation: u8, push: Fate },
    /// An own send is answered: at once (overtaking what is under way), or lost, to be answered by the retry.
    Send { conversation: u8, answered: bool },
    /// One thing under way arrives.
    Arrive { which: u8 },
    /// The server says that pushes were left out.
    Lag { conversation: u8 },
    /// Time passes.
    Pass { ms: u16 },
    /// The connection dies with everything under way, and another takes its place.
    Reconnect,
    /// The server does not know the tokens any more that it gave.
    Forget,
    /// The application stops, or goes on, taking messages.
    Room(bool),
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Sent,
    Doubled,
    Lost,
}

fn step() -> impl Strategy<Value = Step> {
    let conversation = 1u8..4;
    let fate = prop_oneof![4 => Just(Fate::Sent), 1 => Just(Fate::Doubled), 2 => Just(Fate::Lost)];
    prop_oneof![
        8 => (conversation.clone(), fate).prop_map(|(conversation, push)| Step::Say { conversation, push }),
        4 => (conversation.clone(), any::<bool>())
            .prop_map(|(conversation, answered)| Step::Send { conversation, answered }),
        10 => any::<u8>().prop_map(|which| Step::Arrive { which }),
        1 => conversation.prop_map(|conversation| Step::Lag { conversation }),
        3 => (0u16..500).prop_map(|ms| Step::Pass { ms }),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Forget),
        1 => any::<bool>().prop_map(Step::Room),
    ]
}

/// What is on its way to the client.
#[derive(Debug)]
enum UnderWay {
    Message(u8, Message),
    Lagged(u8, Seq),
    Synced(SyncedSince),
    Pulled(Vec<PullRange>, Pulled),
}

struct World {
    now: Instant,
    heads: BTreeMap<u8, u64>,
    /// At which message of all a conversation changed last.
    changed: BTreeMap<u8, u64>,
    /// Tokens below are not known.
    forgotten: u64,
    resume: Resume,
    under_way: Vec<UnderWay>,
    retries: Vec<(u8, u64)>,
    delivered: BTreeMap<ConversationId, Vec<u64>>,
    kept: usize,
}

impl World {
    fn new(start: Start) -> Self {
        let mut world = Self {
            now: Instant::now(),
            heads: (1..4).map(|n| (n, 0)).collect(),
            changed: BTreeMap::new(),
            forgotten: 0,
            resume: Resume::new(start),
            under_way: Vec::new(),
            retries: Vec::new(),
            delivered: BTreeMap::new(),
            kept: 0,
        };
        world.resume.connected(RANGES, world.now);
        world
    }

    /// Lets the client ask and deliver; the server answers with its state of this moment.
    fn turn(&mut self) {
        while let Some(ask) = self.resume.next_request(self.now) {
            let answer = match ask {
                Ask::Sync(sync) => UnderWay::Synced(self.sync(&sync)),
                Ask::Pull(ranges) => {
                    assert!(!ranges.is_empty() && ranges.len() <= RANGES);
                    let mut room = PAGE;
                    let pages = ranges.iter().map(|range| {
                        let n = range.conversation.as_str()[2..].parse().expect("a number");
                        assert!(range.from <= range.to);
                        page(n, range.from.0, range.to.0, 1, self.heads[&n], &mut room)
                    });
                    let pages = pages.collect();
                    UnderWay::Pulled(ranges, Pulled { pages })
                }
            };
            self.under_way.push(answer);
        }
        while let Some(delivery) = self.resume.next_delivery() {
            match delivery {
                Delivery::Message(id, message) => {
                    let got = self.delivered.entry(id.clone()).or_default();
                    assert_eq!(message.seq.0, got.len() as u64 + 1, "{id}: in order, once");
                    assert_eq!(
                        message.content.as_text(),
                        Some(&*format!("{}/{}", &id.as_str()[2..], message.seq))
                    );
                    got.push(message.seq.0);
                }
                Delivery::Skipped(..) => panic!("nothing was trimmed"),
                Delivery::CaughtUp => self.kept += 1,
            }
        }
    }

    /// Messages of all conversations.
    fn said(&self) -> u64 {
        self.heads.values().sum()
    }

    /// Two conversations a page; only those that have a message, and changed since the token, as a server lists them.
    fn sync(&self, sync: &SyncSince) -> SyncedSince {
        assert!(sync.cursors.len() <= RANGES);
        let since = sync.since.as_ref().map(|token| token.parse::<u64>().expect("a token of this server"));
        let since = since.filter(|since| *since >= self.forgotten);
        let mut listed = self.heads.iter().filter(|(n, head)| {
            let is_behind = sync.after.as_ref().is_none_or(|after| conversation(**n) > *after);
            **head > 0 && is_behind && since.is_none_or(|since| self.changed[n] > since)
        });
        let (mut conversations, mut pages, mut room) = (Vec::new(), Vec::new(), PAGE);
        for (n, head) in listed.by_ref().take(2) {
            let id = conversation(*n);
            let cursor =
                sync.cursors.iter().find(|cursor| cursor.conversation == id).map(|cursor| cursor.seq.0);
            conversations.push(told(*n, *head, cursor));
            if let Some(cursor) = cursor.filter(|cursor| cursor < head) {
                pages.push(page(*n, cursor + 1, *head, 1, *head, &mut room));
            }
        }
        let next = listed.next().and(conversations.last()).map(|last| last.conversation.clone());
        let token = Some(self.said().to_string());
        SyncedSince { token, all: since.is_none(), conversations, pages, next }
    }

    fn say(&mut self, n: u8) -> Message {
        let head = self.heads.get_mut(&n).expect("known");
        *head += 1;
        let said = message(n, *head);
        self.changed.insert(n, self.said());
        said
    }

    fn arrive(&mut self, which: usize) {
        if self.under_way.is_empty() {
            return;
        }
        let index = which % self.under_way.len();
        match self.under_way.remove(index) {
            UnderWay::Message(n, message) => self.resume.message(&conversation(n), message, self.now),
            UnderWay::Lagged(n, head) => self.resume.lagged(&conversation(n), head, self.now),
            UnderWay::Synced(answer) => self.resume.synced(answer, self.now),
            UnderWay::Pulled(ranges, answer) => self.resume.pulled(&ranges, answer, self.now),
        }
    }

    fn reconnect(&mut self) {
        self.under_way.clear();
        self.resume.connected(RANGES, self.now);
        for (n, seq) in std::mem::take(&mut self.retries) {
            self.under_way.push(UnderWay::Message(n, message(n, seq)));
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Say { conversation, push } => {
                let said = self.say(conversation);
                let copies = match push {
                    Fate::Lost => 0,
                    Fate::Sent => 1,
                    Fate::Doubled => 2,
                };
                for _ in 0..copies {
                    self.under_way.push(UnderWay::Message(conversation, said.clone()));
                }
            }
            Step::Send { conversation: n, answered } => {
                let said = self.say(n);
                if answered {
                    self.resume.message(&conversation(n), said, self.now);
                } else {
                    self.retries.push((n, said.seq.0));
                }
            }
            Step::Arrive { which } => self.arrive(which.into()),
            Step::Lag { conversation } => {
                self.under_way.push(UnderWay::Lagged(conversation, Seq(self.heads[&conversation])));
            }
            Step::Pass { ms } => self.now += Duration::from_millis(ms.into()),
            Step::Reconnect => self.reconnect(),
            Step::Forget => self.forgotten = self.said() + 1,
            Step::Room(room) => self.resume.set_room(room),
        }
        self.turn();
    }

    /// Everything under way arrives and every timer fires, until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.turn();
            if !self.under_way.is_empty() {
                self.arrive(0);
            } else if let Some(wake) = self.resume.next_wake() {
                self.now = self.now.max(wake);
            } else {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.resume);
    }
}

#[test]
fn the_next_walk_asks_for_what_changed_since_one_that_came_to_its_end() {
    let now = Instant::now();
    let mut resume = Resume::new(Start::from_first());
    let since = |resume: &mut Resume| match resume.next_request(now) {
        Some(Ask::Sync(sync)) => (sync.since, sync.after),
        other => panic!("{other:?} instead of a sync"),
    };
    let page = |token: &str, next: Option<u8>| SyncedSince {
        token: Some(token.into()),
        next: next.map(conversation),
        ..synced(vec![told(1, 1, Some(1))], Vec::new())
    };
    resume.connected(RANGES, now);
    assert_eq!(since(&mut resume), (None, None));
    resume.synced(page("first", Some(1)), now);
    assert_eq!(since(&mut resume), (None, Some(conversation(1))));
    // A walk that was cut off counts for nothing.
    resume.connected(RANGES, now);
    assert_eq!(since(&mut resume), (None, None));
    resume.synced(page("second", Some(1)), now);
    assert_eq!(since(&mut resume), (None, Some(conversation(1))));
    resume.synced(page("third", None), now);
    // What changed while it walked is told the next time: its token is that of the first page.
    resume.connected(RANGES, now);
    assert_eq!(since(&mut resume), (Some("second".into()), None));
    // A server without an account of changes is asked for everything again.
    resume.synced(synced(vec![], Vec::new()), now);
    resume.connected(RANGES, now);
    assert_eq!(since(&mut resume), (None, None));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever is lost, doubled, late or cut off: after one more connection everything was delivered in order, once.
    #[test]
    fn every_message_is_delivered_once_and_in_order(
        steps in prop::collection::vec(step(), 0..120),
        now_first in any::<bool>(),
    ) {
        // An empty server: "from now" and "from first" are the same promise.
        let mut world = World::new(if now_first { Start::from_now() } else { Start::from_first() });
        if now_first {
            world.settle();
        }
        for step in steps {
            world.apply(step);
        }
        world.resume.set_room(true);
        world.reconnect();
        world.settle();
        for (n, head) in &world.heads {
            let got = world.delivered.get(&conversation(*n)).cloned().unwrap_or_default();
            prop_assert_eq!(got, (1..=*head).collect::<Vec<_>>());
        }
        prop_assert_eq!(world.resume.shared.held_bytes, 0);
        prop_assert!(world.kept > 0, "it says that it caught up");
    }

    /// Without a reconnect: a loss that is followed by a later push, or told by `Lagged`, is made good.
    #[test]
    fn a_loss_is_noticed_by_what_follows(
        steps in prop::collection::vec(step().prop_filter("no reconnect", |s| !matches!(s, Step::Reconnect)), 0..80),
    ) {
        let mut world = World::new(Start::from_first());
        for step in steps {
            world.apply(step);
        }
        world.resume.set_room(true);
        for n in 1..4 {
            let last = world.say(n);
            world.under_way.push(UnderWay::Message(n, last));
        }
        world.settle();
        for (n, head) in &world.heads {
            prop_assert_eq!(world.delivered[&conversation(*n)].len() as u64, *head);
        }
    }
}
