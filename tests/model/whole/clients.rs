//! Clients that send, edit, wait, and ask again at any node, also after they were answered.

use bytes::Bytes;
use convoke::actors::conversation::change::ChangeCommand;
use convoke::actors::conversation::core::{Act, ActCommand, SendCommand};
use convoke::actors::conversation::dedup::Place;
use convoke::actors::conversation::group::Asking;
use convoke::auth::Role;
use convoke_protocol::id::{ClientId, DeviceId, Seq, UserId};
use convoke_protocol::message::{Content, ContentType, MessageKind, Priority};
use convoke_protocol::request::Retry;
use rand::Rng;
use uuid::Uuid;

use super::node::{Answered, Asked, Caller};
use super::{Event, World};

/// How long a client waits for an answer before it asks again.
const PATIENCE_MS: u64 = 1_500;

pub(crate) struct Client {
    user: UserId,
    asking: Option<Task>,
    /// Messages of its own that it may edit: conversation and seq.
    own: Vec<(usize, u64)>,
    pub(crate) stopped: bool,
}

#[derive(Debug, Clone, Copy)]
struct Task {
    conversation: usize,
    client_id: ClientId,
    edits: Option<u64>,
    attempt: u32,
    since_ms: u64,
    /// What it was told, if it asks once more although it knows.
    told: Option<Place>,
}

impl Task {
    fn asked(&self, user: UserId, now_ms: u64) -> Asked {
        let age_ms = if self.attempt == 1 { 0 } else { now_ms - self.since_ms };
        let retry = Retry { client_id: self.client_id, attempt: self.attempt, age_ms };
        let device = DeviceId::new("phone").expect("valid");
        let body = Bytes::from(self.client_id.0.to_string());
        let content = Content { content_type: ContentType::text(), body };
        let role = Role::User;
        match self.edits {
            None => Asked::Send(Box::new(SendCommand {
                sender: user,
                role,
                device,
                retry,
                kind: MessageKind::USER,
                priority: Priority::NORMAL,
                content,
                reply_to: None,
                previous: None,
            })),
            Some(seq) => {
                let act = Act::Change(ChangeCommand::Edit { seq: Seq(seq), content });
                Asked::Act(Box::new(ActCommand { asking: Asking { user, role }, device, retry, act }))
            }
        }
    }
}

impl Client {
    pub(crate) fn new(user: UserId) -> Self {
        Self { user, asking: None, own: Vec::new(), stopped: false }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.asking.is_none()
    }
}

impl World {
    /// A client begins with something new.
    pub(crate) fn client_begins(&mut self, who: usize) {
        if self.clients[who].stopped || !self.clients[who].is_done() {
            return;
        }
        self.made += 1;
        let client_id = ClientId(Uuid::from_u128(u128::from(self.made)));
        let own = &self.clients[who].own;
        let edits = !own.is_empty() && self.rng.random_range(0..3) == 0;
        let (conversation, edits) = if edits {
            let (conversation, seq) = own[self.rng.random_range(0..own.len())];
            (conversation, Some(seq))
        } else {
            (self.rng.random_range(0..self.conversations.len()), None)
        };
        let (since_ms, told) = (self.now_ms, None);
        self.clients[who].asking = Some(Task { conversation, client_id, edits, attempt: 0, since_ms, told });
        self.ask(who);
    }

    fn ask(&mut self, who: usize) {
        let now_ms = self.now_ms;
        let user = self.clients[who].user.clone();
        let Some(task) = &mut self.clients[who].asking else { return };
        task.attempt += 1;
        let task = *task;
        self.after(PATIENCE_MS, Event::Impatient(who, task.client_id, task.attempt));
        let at = self.some_node(task.conversation);
        // What the network loses is asked for again; what it keeps arrives also when nobody waits for it any more.
        if self.rng.random_range(0..20) > 0 {
            let delay = self.delay();
            let asked = task.asked(user, now_ms);
            self.after(delay, Event::Ask(at, task.conversation, asked, (who, task.client_id)));
        }
    }

    /// The one that serves a conversation, as others believe; or any.
    fn some_node(&mut self, conversation: usize) -> usize {
        let shard = self.shard_of(conversation);
        let alive: Vec<usize> = (0..self.nodes.len()).filter(|at| !self.nodes[*at].gone).collect();
        let owner = alive.iter().find(|at| self.nodes[**at].open.contains_key(&shard));
        match owner {
            Some(owner) if self.rng.random_range(0..4) > 0 => *owner,
            _ => alive[self.rng.random_range(0..alive.len())],
        }
    }

    /// An answer leaves a node.
    pub(crate) fn answer(&mut self, to: Caller, answered: Answered) {
        if self.rng.random_range(0..20) > 0 {
            let delay = self.delay();
            self.after(delay, Event::Answered(to, answered));
        }
    }

    pub(crate) fn answered(&mut self, (who, client_id): Caller, answered: Answered) {
        let client = &mut self.clients[who];
        // Also the answer to an earlier attempt counts.
        let Some(task) = client.asking.filter(|task| task.client_id == client_id) else { return };
        match answered {
            Answered::Place(place) => {
                assert_eq!(task.told.unwrap_or(place), place, "I1: {task:?} was told another place before");
                self.ledger.acknowledge(task.conversation, &client.user, client_id, place, task.edits);
                if task.edits.is_none() && task.told.is_none() {
                    client.own.push((task.conversation, place.seq.0));
                }
                // Now and then it asks again although it knows.
                if task.told.is_none() && self.rng.random_range(0..4) == 0 {
                    self.clients[who].asking = Some(Task { told: Some(place), ..task });
                    self.ask(who);
                } else {
                    self.client_rests(who);
                }
            }
            Answered::Nothing | Answered::Invalid => {
                assert!(task.told.is_none(), "I1: {task:?} is refused after it was done");
                self.client_rests(who);
            }
            Answered::Refused => {}
        }
    }

    fn client_rests(&mut self, who: usize) {
        self.clients[who].asking = None;
        let ms = self.rng.random_range(0..400);
        self.after(ms, Event::Begins(who));
    }

    pub(crate) fn impatient(&mut self, who: usize, client_id: ClientId, attempt: u32) {
        let waits = |task: Task| task.client_id == client_id && task.attempt == attempt;
        if self.clients[who].asking.is_some_and(waits) {
            self.ask(who);
        }
    }
}
