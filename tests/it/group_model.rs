//! A group under random hands, against a naive model: what is unread, what each member may read, and catching up.

use std::collections::BTreeMap;

use convoke_protocol::frame::Answer;
use convoke_protocol::group::{GroupProfile, HistoryForNewMembers};
use convoke_protocol::id::Seq;
use convoke_protocol::message::{Content, Cursor, MessageKind, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::SendAs;
use convoke_protocol::request::groups::CreateGroup;
use convoke_protocol::request::messages::{Ack, Pull, PullRange};
use convoke_protocol::request::read_state::{MarkAllRead, Read};
use convoke_protocol::request::sync::Sync;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::group::{
    BOTH, add, create, delete, edit, group_conversation, react, recall, remove, to_group,
};
use crate::harness::{TestClient, TestNode};

/// The first owns the group and is never removed.
const NAMES: [&str; 4] = ["alice", "bob", "carol", "dave"];

struct Entry {
    kind: MessageKind,
    sender: usize,
    gone: bool,
}

/// What a user may see: from the first number to the last, if they left.
#[derive(Clone, Copy)]
struct Visible {
    from: u64,
    to: Option<u64>,
}

struct Model {
    log: Vec<Entry>,
    history: HistoryForNewMembers,
    members: BTreeMap<usize, Visible>,
    marks: [u64; 4],
    /// Up to where each user's device has everything.
    had: [u64; 4],
}

impl Model {
    fn push(&mut self, seq: u64, kind: MessageKind, sender: usize) {
        self.log.push(Entry { kind, sender, gone: false });
        assert_eq!(self.log.len() as u64, seq, "a number was left out");
    }

    fn head(&self, user: usize) -> Option<(Visible, u64)> {
        let visible = *self.members.get(&user)?;
        Some((visible, visible.to.unwrap_or(self.log.len() as u64)))
    }

    fn is_member(&self, user: usize) -> bool {
        self.members.get(&user).is_some_and(|visible| visible.to.is_none())
    }

    /// Up to where a user has read, and what is unread above it.
    fn standing(&self, user: usize) -> Option<(u64, u64)> {
        let (visible, head) = self.head(user)?;
        let mark = self.marks[user].max(visible.from - 1);
        let unread = (mark + 1..=head).filter(|seq| {
            let entry = &self.log[*seq as usize - 1];
            entry.kind == MessageKind::USER && entry.sender != user && !entry.gone
        });
        Some((mark.min(head), unread.count() as u64))
    }

    fn came(&mut self, user: usize) {
        let from = match self.history {
            HistoryForNewMembers::NONE => self.log.len() as u64,
            _ => 1,
        };
        self.members.insert(user, Visible { from, to: None });
    }
}

struct Play {
    node: TestNode,
    model: Model,
    random: SmallRng,
    seed: u64,
    clients: Vec<TestClient>,
    service: Option<TestClient>,
}

impl Play {
    async fn connect(&mut self) {
        self.clients.clear();
        for (n, name) in NAMES.iter().enumerate() {
            self.clients.push(TestClient::login(&self.node, BOTH[n % 2], name, "device").await);
        }
        self.service = Some(self.node.service(BOTH[0], "backend").await);
    }

    /// An answer that names the entry of a change, if it was made.
    async fn change(
        &mut self,
        user: usize,
        request: impl Into<convoke_protocol::frame::Request>,
    ) -> Option<u64> {
        let seq = match self.clients[user].request(request).await {
            Answer::Edited(done) => done.seq,
            Answer::Recalled(done) => done.seq,
            Answer::Deleted(done) => done.seq,
            Answer::Reacted(done) => done.seq,
            Answer::MembersAdded(done) => done.seq,
            Answer::MembersRemoved(done) => done.seq,
            Answer::Error(_) => None,
            other => panic!("{other:?}"),
        };
        seq.map(|seq| seq.0)
    }

    async fn step(&mut self) {
        let team = group_conversation("team");
        let user = self.random.random_range(0..NAMES.len());
        let target = self.random.random_range(1..=self.model.log.len() as u64);
        match self.random.random_range(0..16) {
            0..=5 => match self.clients[user].request(to_group("team", "x")).await {
                Answer::Sent(sent) => {
                    assert!(self.model.is_member(user), "{} spoke", NAMES[user]);
                    self.model.push(sent.seq.0, MessageKind::USER, user);
                    self.model.marks[user] = sent.seq.0;
                }
                Answer::Error(error) => assert!(!self.model.is_member(user), "{error}"),
                other => panic!("{other:?}"),
            },
            6 | 7 => {
                let read = Read { retry: Retry::first(), conversation: team, seq: Seq(target) };
                match self.clients[user].request(read).await {
                    Answer::ReadDone(_) => {
                        let (_, head) = self.model.head(user).unwrap();
                        let mark = target.min(head);
                        self.model.marks[user] = self.model.marks[user].max(mark);
                    }
                    Answer::Error(error) => assert!(self.model.head(user).is_none(), "{error}"),
                    other => panic!("{other:?}"),
                }
            }
            8 => {
                ask!(self.clients[user], MarkAllRead { retry: Retry::first() }, AllRead);
                if let Some((_, head)) = self.model.head(user) {
                    self.model.marks[user] = self.model.marks[user].max(head);
                }
            }
            9 | 10 => {
                let (request, kind): (convoke_protocol::frame::Request, _) =
                    match self.random.random_range(0..3) {
                        0 => (recall(&team, target).into(), MessageKind::RECALL),
                        1 => (delete(&team, target, false).into(), MessageKind::DELETE),
                        _ => (edit(&team, target, &format!("{target} by {user}")).into(), MessageKind::EDIT),
                    };
                if let Some(seq) = self.change(user, request).await {
                    self.model.push(seq, kind, user);
                    self.model.log[target as usize - 1].gone |= kind != MessageKind::EDIT;
                }
            }
            11 => {
                let give = self.random.random();
                if let Some(seq) = self.change(user, react(&team, target, "x", give)).await {
                    self.model.push(seq, MessageKind::REACTION, user);
                }
            }
            12 => {
                let retry = Retry::first();
                let (sender, content) = (None, Content::text("notice"));
                let (reply_to, priority) = (None, Priority::NORMAL);
                let notice = SendAs { retry, sender, conversation: team, content, reply_to, priority };
                let sent = ask!(self.service.as_mut().unwrap(), notice, SentAs);
                self.model.push(sent.seq.0, MessageKind::SYSTEM, usize::MAX);
            }
            13 if user > 0 => {
                if let Some(seq) = self.change(0, remove("team", &[NAMES[user]])).await {
                    self.model.push(seq, MessageKind::MEMBERS, 0);
                    self.model.members.get_mut(&user).unwrap().to = Some(seq);
                }
            }
            _ if user > 0 => {
                if let Some(seq) = self.change(0, add("team", &[NAMES[user]])).await {
                    self.model.push(seq, MessageKind::MEMBERS, 0);
                    self.model.came(user);
                }
            }
            _ => {}
        }
    }

    async fn check(&mut self, user: usize) {
        let seed = self.seed;
        let standing = self.clients[user].standing(&group_conversation("team")).await;
        let found = standing.as_ref().map(|one| (one.read.0, one.unread));
        assert_eq!(found, self.model.standing(user), "{} of seed {seed}", NAMES[user]);
        if let Some(one) = standing {
            assert_eq!(one.head.0, self.model.head(user).unwrap().1, "{} of seed {seed}", NAMES[user]);
        }
    }

    /// What a device is missing, from its own cursor or from that which is kept for it.
    async fn catch_up(&mut self, user: usize) {
        let (seed, team) = (self.seed, group_conversation("team"));
        let Some((visible, head)) = self.model.head(user) else { return };
        let had = self.model.had[user];
        let kept = self.random.random();
        let cursors = vec![Cursor { conversation: team.clone(), seq: Seq(had) }];
        let cursors = if kept { Vec::new() } else { cursors };
        let synced =
            ask!(self.clients[user], Sync { cursors, use_device_cursors: kept, after: None }, Synced);
        let page = synced.pages.iter().find(|page| page.conversation == team);
        let mut seqs: Vec<u64> =
            page.into_iter().flat_map(|page| &page.messages).map(|message| message.seq.0).collect();
        // What it has it drops; what is missing then is pulled.
        seqs.retain(|seq| *seq > had);
        let next = seqs.last().map_or(had, |last| *last) + 1;
        if next <= head {
            let range = PullRange { conversation: team.clone(), from: Seq(next), to: Seq(u64::MAX) };
            let page = ask!(self.clients[user], Pull { ranges: vec![range] }, Pulled).pages.remove(0);
            assert_eq!((&page.error, page.next), (&None, None));
            seqs.extend(page.messages.iter().map(|message| message.seq.0));
        }
        let expected: Vec<u64> = (visible.from.max(had + 1)..=head).collect();
        assert_eq!(seqs, expected, "{} of seed {seed}", NAMES[user]);
        self.model.had[user] = had.max(head);
        if self.random.random() {
            let cursors = vec![Cursor { conversation: team, seq: Seq(self.model.had[user]) }];
            let pushes = self.clients[user].pushes;
            ask!(self.clients[user], Ack { pushes, cursors }, Acked);
        }
    }

    /// What was read in the last seconds may have to be read again, but nothing that was said.
    async fn crash(&mut self) {
        self.node.kill().await;
        self.node.start_again().await;
        self.connect().await;
        for (user, name) in NAMES.iter().enumerate() {
            let Some(standing) = self.clients[user].standing(&group_conversation("team")).await else {
                continue;
            };
            let (visible, head) = self.model.head(user).unwrap();
            let said = self
                .model
                .log
                .iter()
                .rposition(|entry| entry.kind == MessageKind::USER && entry.sender == user);
            let lowest = said.map_or(0, |at| at as u64 + 1).max(visible.from - 1).min(head);
            let (highest, _) = self.model.standing(user).unwrap();
            assert!((lowest..=highest).contains(&standing.read.0), "{} of seed {}", name, self.seed);
            self.model.marks[user] = standing.read.0;
        }
    }
}

#[tokio::test]
async fn a_group_is_what_a_naive_model_says() {
    for history in [HistoryForNewMembers::NONE, HistoryForNewMembers::EVERYTHING] {
        let seed = crate::harness::seed();
        let node = TestNode::start().await;
        let members = BTreeMap::from([(0, Visible { from: 1, to: None })]);
        let model = Model { log: Vec::new(), history, members, marks: [0; 4], had: [0; 4] };
        let random = SmallRng::seed_from_u64(seed);
        let mut play = Play { node, model, random, seed, clients: Vec::new(), service: None };
        play.connect().await;
        let profile = GroupProfile { history_for_new_members: history, ..GroupProfile::default() };
        ask!(play.clients[0], CreateGroup { profile, ..create("team", &[]) }, GroupCreated);
        play.model.push(1, MessageKind::GROUP, 0);
        for step in 0..240 {
            play.step().await;
            let user = play.random.random_range(0..NAMES.len());
            play.check(user).await;
            if step % 7 == 0 {
                play.catch_up(user).await;
            }
            match step % 80 {
                39 => play.crash().await,
                79 => {
                    play.node.stop().await;
                    play.node.start_again().await;
                    play.connect().await;
                }
                _ => {}
            }
        }
        for user in 0..NAMES.len() {
            play.check(user).await;
            play.catch_up(user).await;
        }
        play.node.stop().await;
        play.node.check().await;
    }
}
