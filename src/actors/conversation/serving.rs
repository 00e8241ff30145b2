//! A conversation that serves: performs what its core decides, and knows who listens.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::frame::Answer;
use convoke_protocol::id::{MessageId, Seq, SessionId, Timestamp, UserId};
use convoke_protocol::request::messages::Sent;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::core::{ConversationCore, Effect, Head, IdSource};
use super::dedup::DedupWindow;
use super::{Activation, ConversationHandle, Message, Request};
use crate::actors::hub::Publication;
use crate::actors::reply::{Answered, Reply};
use crate::storage::{Append, AppendError, LogRow};

struct Uuids(SmallRng);

impl IdSource for Uuids {
    fn message_id(&mut self, time: Timestamp) -> MessageId {
        let mut random = [0; 10];
        self.0.fill_bytes(&mut random);
        MessageId(uuid::Builder::from_unix_timestamp_millis(time.0, &random).into_uuid())
    }
}

pub(super) struct Serving {
    core: ConversationCore<Reply>,
    ids: Uuids,
    handle: ConversationHandle,
    /// The users of a direct conversation, whose sessions listen by themselves.
    users: Vec<UserId>,
    listeners: HashSet<SessionId>,
    /// Watched users whose directories have not answered yet: publishing waits for them.
    unanswered: usize,
    held: Vec<Publication>,
    origins: Vec<(Seq, SessionId)>,
    /// After a loss every listener is told that it may have missed something.
    reset: bool,
    wake: Option<Duration>,
}

impl Serving {
    pub(super) fn begin(
        activation: &Activation,
        handle: &ConversationHandle,
        head: Head,
        dedup: DedupWindow,
    ) -> Self {
        let Activation { conversation, epoch, stamp, surroundings, .. } = activation;
        let core =
            ConversationCore::new(conversation.clone(), surroundings.limits, *epoch, *stamp, head, dedup);
        let mut serving = Self {
            core,
            ids: Uuids(SmallRng::from_os_rng()),
            handle: handle.clone(),
            users: conversation.direct_users(),
            listeners: HashSet::new(),
            unanswered: 0,
            held: Vec::new(),
            origins: Vec::new(),
            reset: false,
            wake: None,
        };
        serving.watch(activation);
        serving
    }

    fn watch(&mut self, activation: &Activation) {
        self.unanswered = self.users.len();
        activation.surroundings.directory.watch(self.users.clone(), &self.handle);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.core.is_idle() && self.held.is_empty()
    }

    pub(super) fn end(&self, activation: &Activation) {
        let Activation { conversation, surroundings, .. } = activation;
        surroundings.directory.unwatch(self.users.clone(), conversation);
        surroundings.hub.forget(conversation);
    }

    pub(super) fn take_wake(&mut self) -> Option<Duration> {
        self.wake.take()
    }

    pub(super) fn request(&mut self, activation: &Activation, request: Request) {
        match request {
            Request::Send(command, reply) => {
                let now = activation.surroundings.clock.now();
                let mut effects = Vec::new();
                self.core.send(*command, reply, now, &mut self.ids, &mut effects);
                let metrics = &activation.surroundings.metrics;
                metrics.sends.inc();
                // A send that is new is answered after its batch: an answer at once was given before.
                if effects.iter().any(|effect| matches!(effect, Effect::Answer { result: Ok(_), .. })) {
                    metrics.sends_deduplicated.inc();
                }
                self.perform(activation, effects);
            }
            Request::Attend(session, reply) => {
                // First a listener, then the head: what is committed after this head is pushed.
                if self.listeners.insert(session) {
                    activation.surroundings.hub.listen(&activation.conversation, vec![session]);
                }
                let _ = reply.send(Ok(self.core.head()));
            }
        }
    }

    pub(super) fn written(&mut self, activation: &Activation, outcome: Result<(), AppendError>) {
        let mut effects = Vec::new();
        self.core.written(outcome, activation.surroundings.clock.now(), &mut self.ids, &mut effects);
        self.perform(activation, effects);
    }

    pub(super) fn wake(&mut self, activation: &Activation) {
        let mut effects = Vec::new();
        self.core.tick(activation.surroundings.clock.now(), &mut self.ids, &mut effects);
        self.perform(activation, effects);
    }

    fn perform(&mut self, activation: &Activation, effects: Vec<Effect<Reply>>) {
        // Written when it is dropped: here, or with the pushes of the same batch.
        let mut answered = Answered::default();
        self.perform_each(activation, effects, &mut answered);
    }

    fn perform_each(
        &mut self,
        activation: &Activation,
        effects: Vec<Effect<Reply>>,
        answered: &mut Answered,
    ) {
        let surroundings = &activation.surroundings;
        for effect in effects {
            match effect {
                Effect::Append { rows, stamp } => self.append(activation, &rows, stamp),
                Effect::Wake(after) => {
                    self.wake = Some(self.wake.map_or(after, |earlier| earlier.min(after)));
                }
                Effect::Confirm => {
                    // One permanent owner: nobody else can have fenced it, so what is durable is confirmed.
                    let mut effects = Vec::new();
                    let now = surroundings.clock.now();
                    self.core.confirmed(true, now, &mut self.ids, &mut effects);
                    self.perform_each(activation, effects, answered);
                }
                Effect::Answer { to, result } => {
                    let session = match result {
                        Ok(place) => {
                            self.origins.push((place.seq, to.session_id()));
                            to.queue(&Answer::Sent(Sent {
                                conversation: activation.conversation.clone(),
                                seq: place.seq,
                                message_id: place.id,
                                time: place.time,
                            }))
                        }
                        Err(error) => to.queue(&Answer::Error(error)),
                    };
                    answered.add(session);
                }
                Effect::Publish(rows) => {
                    surroundings.metrics.committed(rows.len());
                    let origins = std::mem::take(&mut self.origins);
                    let conversation = activation.conversation.clone();
                    let answered = std::mem::take(answered);
                    self.publish(activation, Publication { conversation, rows, origins, answered });
                }
            }
        }
        self.origins.clear();
    }

    fn append(&self, activation: &Activation, rows: &Arc<[LogRow]>, stamp: crate::storage::WriteStamp) {
        let first = rows.first().is_some_and(|row| row.seq == Seq(1));
        let append = Append {
            conversation: activation.conversation.clone(),
            rows: rows.to_vec(),
            stamp,
            listed_for: if first { self.users.clone() } else { Vec::new() },
        };
        let actor = self.handle.actor.clone();
        let done = move |outcome| {
            // An activation that died learns from the store what was written when it begins anew.
            let _ = actor.cast(Message::Written(outcome));
        };
        activation.surroundings.stores.log.append(append, Box::new(done));
    }

    fn publish(&mut self, activation: &Activation, mut publication: Publication) {
        if self.unanswered > 0 {
            drop(std::mem::take(&mut publication.answered));
            return self.held.push(publication);
        }
        if !self.listeners.is_empty() {
            activation.surroundings.hub.publish(publication);
        }
    }

    pub(super) fn watched(&mut self, activation: &Activation, users: usize, online: Vec<SessionId>) {
        let hub = &activation.surroundings.hub;
        let added: Vec<_> = online.into_iter().filter(|session| self.listeners.insert(*session)).collect();
        self.unanswered = self.unanswered.saturating_sub(users);
        if self.reset {
            if self.unanswered == 0 {
                self.reset = false;
                let all = self.listeners.iter().copied().collect();
                hub.reset(&activation.conversation, all, self.core.head().seq);
            }
        } else if !added.is_empty() {
            hub.listen(&activation.conversation, added);
        }
        if self.unanswered == 0 {
            for publication in std::mem::take(&mut self.held) {
                self.publish(activation, publication);
            }
        }
    }

    pub(super) fn session_changed(&mut self, activation: &Activation, session: SessionId, online: bool) {
        let hub = &activation.surroundings.hub;
        if online {
            if self.listeners.insert(session) {
                hub.listen(&activation.conversation, vec![session]);
            }
        } else if self.listeners.remove(&session) {
            hub.leave(&activation.conversation, session);
        }
    }

    pub(super) fn refresh(&mut self, activation: &Activation, handle: &ConversationHandle) {
        self.handle = handle.clone();
        self.listeners.clear();
        self.reset = true;
        self.watch(activation);
        if self.users.is_empty() {
            self.reset = false;
        }
    }
}
