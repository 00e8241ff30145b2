//! A conversation that serves: performs what its core decides, and knows who listens.

mod asking;
mod listening;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::error_code::{Outcome, RequestError};
use convoke_protocol::frame::{Answer, Event};
use convoke_protocol::id::{MessageId, Seq, SessionId, Timestamp, UserId};
use convoke_protocol::request::changes::Retention;
use convoke_protocol::request::messages::Sent;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::sync::oneshot;

use super::change::Targets;
use super::core::{ConversationCore, Effect, IdSource};
use super::dedup::Place;
use super::group::{Visibility, not_found};
use super::{Activation, Attended, Attending, Beginning, ConversationHandle, Owed, Request, StampSource};
use crate::actors::hub::Publication;
use crate::actors::peer::hubs::Places;
use crate::actors::peer::{Seat, not_ours, perhaps_moved};
use crate::actors::reply::Answered;
use crate::auth::Role;
use crate::storage::{AppendError, LogRow, LogStart, WriteStamp};

struct Ids {
    random: SmallRng,
    stamps: StampSource,
}

impl IdSource for Ids {
    fn message_id(&mut self, time: Timestamp) -> MessageId {
        let mut random = [0; 10];
        self.random.fill_bytes(&mut random);
        MessageId(uuid::Builder::from_unix_timestamp_millis(time.0, &random).into_uuid())
    }

    fn write_stamp(&mut self) -> WriteStamp {
        self.stamps.fresh()
    }
}

/// What happens to the listeners, one after the other.
enum Step {
    Publish(Publication),
    /// These came: what follows waits until it is known where they are.
    Watch(Vec<UserId>),
    /// These left.
    Leave(Vec<UserId>),
    Attend(Attending, oneshot::Sender<Result<Attended, RequestError>>),
}

pub(super) struct Serving {
    core: ConversationCore<Owed>,
    ids: Ids,
    handle: ConversationHandle,
    /// Whose sessions listen by themselves: the users of a direct conversation, the members of a group.
    watched: HashSet<UserId>,
    listeners: HashMap<Seat, UserId>,
    /// On which nodes they are.
    places: Places,
    /// Watched users whose directories have not answered yet: the steps wait for them, but not for long.
    unanswered: usize,
    /// Until when, on the monotonic clock.
    wait_until_ms: u64,
    steps: VecDeque<Step>,
    origins: Vec<(Seq, SessionId)>,
    /// After a loss, or a former owner's death, every listener is told that it may have missed something.
    reset: bool,
    wake: Option<Duration>,
    /// To be trimmed by this rule once the hint is kept.
    retain: Option<Retention>,
    /// Whether the hint was asked for because it is to sleep.
    hinted_to_sleep: bool,
}

/// Confirmed rows above the hint, at which it is kept anew where others may own the conversation next.
const HINT_EVERY: u64 = 200;

/// How long a directory on another node is waited for before what is said goes to those who are known. Milliseconds.
const WAIT_FOR_DIRECTORIES_MS: u64 = 1_000;

impl Serving {
    pub(super) fn begin(activation: &Activation, handle: &ConversationHandle, beginning: Beginning) -> Self {
        let Activation { conversation, stamps, stamp, surroundings, .. } = activation;
        let watched = match &beginning.group {
            Some(group) => group.members_after(None).map(|member| member.user.clone()).collect(),
            None => conversation.direct_users().into_iter().collect(),
        };
        // A former owner may have answered a send and not come to telling everybody.
        let untold = !stamps.is_permanent && beginning.head.seq > beginning.told;
        let core =
            ConversationCore::new(conversation.clone(), surroundings.limits, stamps.epoch, *stamp, beginning);
        let mut serving = Self {
            core,
            ids: Ids { random: SmallRng::from_os_rng(), stamps: stamps.clone() },
            handle: handle.clone(),
            watched,
            listeners: HashMap::new(),
            places: Places::new(),
            unanswered: 0,
            wait_until_ms: 0,
            steps: VecDeque::new(),
            origins: Vec::new(),
            reset: untold,
            wake: None,
            retain: None,
            hinted_to_sleep: false,
        };
        serving.watch_all(activation);
        serving
    }

    /// Bytes on the heap, about: what is remembered for deduplication, members, listeners, what waits.
    pub(super) fn held_bytes(&self) -> usize {
        /// An entry of a hash table beside its key and value, at the usual load.
        const SLOT: usize = 8;
        self.core.held_bytes()
            + self.watched.capacity() * (size_of::<UserId>() + SLOT)
            + self.listeners.capacity() * (size_of::<(Seat, UserId)>() + SLOT)
            + self.steps.capacity() * size_of::<Step>()
            + self.origins.capacity() * size_of::<(Seq, SessionId)>()
    }

    pub(super) fn listeners(&self) -> usize {
        self.listeners.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.core.is_idle() && self.steps.is_empty() && self.retain.is_none()
    }

    pub(super) fn end(&self, activation: &Activation) {
        let Activation { conversation, surroundings, .. } = activation;
        surroundings.directory.unwatch(self.watched.iter().cloned().collect(), conversation);
        surroundings.hubs.forget(conversation, &self.places);
    }

    pub(super) fn take_wake(&mut self) -> Option<Duration> {
        self.wake.take()
    }

    pub(super) fn request(&mut self, activation: &Activation, request: Request) {
        let now = activation.surroundings.clock.now();
        self.hinted_to_sleep = false;
        match request {
            Request::Send(command, owed) => {
                let mut effects = Vec::new();
                self.core.send(*command, owed, now, &mut self.ids, &mut effects);
                let metrics = &activation.surroundings.metrics;
                metrics.sends.inc();
                // A send that is new is answered after its batch: an answer at once was given before.
                if effects.iter().any(|effect| matches!(effect, Effect::Answer { result: Ok(_), .. })) {
                    metrics.sends_deduplicated.inc();
                }
                self.perform(activation, effects);
            }
            Request::Act(command, owed) => {
                let mut effects = Vec::new();
                self.core.act(*command, owed, now, &mut self.ids, &mut effects);
                self.perform(activation, effects);
            }
            Request::Attend(attending, reply) => {
                self.steps.push_back(Step::Attend(attending, reply));
                // In a direct conversation nothing is kept from anybody: it need not wait for what is held.
                if self.unanswered > 0 && self.core.group().is_none() {
                    self.attend_now(activation);
                }
                self.go_on(activation);
            }
            Request::Look(look) => look(self.core.group()),
            Request::Signal(event, from, reply) => {
                let _ = reply.send(self.signal(activation, *event, &from));
            }
            Request::Retain(retention) => {
                self.retain = Some(retention);
                let mut effects = Vec::new();
                self.propose_hint(&mut effects);
                let waits = !effects.is_empty();
                self.perform(activation, effects);
                if !waits {
                    self.trim(activation);
                }
            }
        }
    }

    /// What somebody may see; `NOT_FOUND` for who may not know of the conversation.
    fn visibility(&self, attending: &Attending) -> Result<Visibility, RequestError> {
        let Some(group) = self.core.group() else {
            let is_group = self.core.conversation().direct_users().is_empty();
            return if is_group { Err(not_found()) } else { Ok(Visibility::ALL) };
        };
        match attending.asking.role {
            Role::Service => Ok(Visibility::ALL),
            Role::User => group.visibility(&attending.asking.user).ok_or_else(not_found),
        }
    }

    fn attend(&mut self, activation: &Activation, attending: &Attending) -> Result<Attended, RequestError> {
        let visible = self.visibility(attending)?;
        let Attending { seat, asking } = attending;
        // First a listener, then the head: what is committed after this head is pushed.
        if visible.to.is_none() && asking.role == Role::User && self.add(*seat, asking.user.clone()) {
            activation.surroundings.hubs.listen(&activation.conversation, vec![*seat]);
        }
        Ok(Attended::cut(self.core.head(), self.core.start(), visible))
    }

    fn attend_now(&mut self, activation: &Activation) {
        if let Some(Step::Attend(attending, reply)) = self.steps.pop_back() {
            // Nobody waits any more: fine.
            let _ = reply.send(self.attend(activation, &attending));
        }
    }

    fn signal(&self, activation: &Activation, event: Event, from: &Attending) -> Result<(), RequestError> {
        if self.visibility(from)?.to.is_some() {
            return Err(not_found());
        }
        let hubs = &activation.surroundings.hubs;
        hubs.signal(&activation.conversation, event, from.seat.session, &self.places);
        Ok(())
    }

    pub(super) fn written(&mut self, activation: &Activation, outcome: Result<(), AppendError>) {
        let mut effects = Vec::new();
        self.core.written(outcome, activation.surroundings.clock.now(), &mut self.ids, &mut effects);
        self.perform(activation, effects);
    }

    pub(super) fn loaded(&mut self, activation: &Activation, targets: Result<Targets, String>) {
        let mut effects = Vec::new();
        self.core.loaded(targets, activation.surroundings.clock.now(), &mut self.ids, &mut effects);
        self.perform(activation, effects);
    }

    pub(super) fn projected(&mut self, activation: &Activation, stored: bool) {
        let mut effects = Vec::new();
        self.core.projected(stored, activation.surroundings.clock.now(), &mut effects);
        self.perform(activation, effects);
    }

    pub(super) fn hinted(&mut self, activation: &Activation, still_owner: Option<bool>) {
        self.core.hinted(still_owner);
        self.trim(activation);
    }

    pub(super) fn confirmed(&mut self, activation: &Activation, still_owner: bool) {
        let mut effects = Vec::new();
        let now = activation.surroundings.clock.now();
        self.core.confirmed(still_owner, now, &mut self.ids, &mut effects);
        if self.core.hint_lag() >= HINT_EVERY {
            self.propose_hint(&mut effects);
        }
        self.perform(activation, effects);
    }

    /// A hint also says that everybody was told.
    fn propose_hint(&mut self, effects: &mut Vec<Effect<Owed>>) {
        if self.steps.is_empty() {
            self.core.propose_hint(&mut self.ids, effects);
        }
    }

    /// Before it sleeps, where others may own it next: keeps the hint, so that nobody has to read the log to know its end.
    /// Says whether there was something to keep; it is asked for once.
    pub(super) fn keeps_hint_first(&mut self, activation: &Activation) -> bool {
        if activation.owner.is_permanent() || self.hinted_to_sleep || self.core.hint_lag() == 0 {
            return false;
        }
        self.hinted_to_sleep = true;
        let mut effects = Vec::new();
        self.propose_hint(&mut effects);
        self.perform(activation, effects);
        true
    }

    pub(super) fn trimmed(&mut self, start: Option<LogStart>) {
        self.retain = None;
        if let Some(start) = start {
            self.core.trimmed(start);
        }
    }

    pub(super) fn wake(&mut self, activation: &Activation) {
        let mut effects = Vec::new();
        let now = activation.surroundings.clock.now();
        self.core.tick(now, &mut self.ids, &mut effects);
        self.perform(activation, effects);
        if self.unanswered > 0 && activation.surroundings.directory.has_peers() {
            let left = Duration::from_millis(self.wait_until_ms).saturating_sub(now.monotonic);
            if left.is_zero() {
                // A directory is away: who is found there later catches up.
                self.unanswered = 0;
                self.reset_now(activation);
                self.go_on(activation);
            } else {
                self.wake = Some(self.wake.map_or(left, |earlier| earlier.min(left)));
            }
        }
    }

    fn perform(&mut self, activation: &Activation, effects: Vec<Effect<Owed>>) {
        // What leaves, leaves while the gate is held open: after a shard was given away nothing does.
        let Activation { owner, in_shard, stamps, .. } = activation;
        let Some(_open) = owner.hold_open(*in_shard, stamps.epoch) else { return self.refuse_all(effects) };
        // Written when it is dropped: here, or with the pushes of the same batch.
        let mut answered = Answered::default();
        self.perform_each(activation, effects, &mut answered);
    }

    /// The shard was closed: who waits learns that it may have been done.
    fn refuse_all(&mut self, effects: Vec<Effect<Owed>>) {
        for effect in effects {
            if let Effect::Answer { to, result } = effect {
                // Whatever the core said of a fence is a move too.
                let done = result.as_ref().err().is_none_or(|error| error.outcome == Outcome::UNKNOWN);
                to.refuse(if done { perhaps_moved() } else { not_ours() });
            }
        }
        self.origins.clear();
    }

    fn perform_each(&mut self, activation: &Activation, effects: Vec<Effect<Owed>>, answered: &mut Answered) {
        let surroundings = &activation.surroundings;
        for effect in effects {
            match effect {
                Effect::Append { rows, stamp } => self.append(activation, &rows, stamp),
                Effect::Wake(after) => {
                    self.wake = Some(self.wake.map_or(after, |earlier| earlier.min(after)));
                }
                Effect::Confirm if !activation.owner.is_permanent() => self.confirm(activation),
                Effect::Confirm => {
                    // Nobody else can have fenced it, so what is durable is confirmed.
                    let mut effects = Vec::new();
                    let now = surroundings.clock.now();
                    self.core.confirmed(true, now, &mut self.ids, &mut effects);
                    self.perform_each(activation, effects, answered);
                }
                Effect::Answer { to, result } => self.answer(activation, to, result, answered),
                Effect::Publish(rows) => {
                    surroundings.metrics.committed(rows.len());
                    let origins = std::mem::take(&mut self.origins);
                    self.publish(activation, &rows, origins, std::mem::take(answered));
                }
                Effect::Load(targets) => self.load(activation, targets),
                Effect::Project(projection) => self.project(activation, &projection),
                Effect::Hint(hint, stamp) => self.keep_hint(activation, hint, stamp),
            }
        }
        self.origins.clear();
    }

    fn answer(
        &mut self,
        activation: &Activation,
        to: Owed,
        result: Result<Option<Place>, RequestError>,
        answered: &mut Answered,
    ) {
        let mut reply = match to {
            Owed::Reply(reply) => reply,
            // Nobody waits any more: fine.
            Owed::Told(told, session) => {
                if let (Ok(Some(place)), Some(session)) = (&result, session) {
                    self.origins.push((place.seq, session));
                }
                return drop(told.send(result));
            }
        };
        let answer = match result {
            Ok(Some(place)) => {
                self.origins.push((place.seq, reply.session_id()));
                if let Some(mut trace) = reply.take_trace() {
                    trace.committed(&activation.conversation, place.seq);
                    answered.trace(*trace);
                }
                Answer::Sent(Sent {
                    conversation: activation.conversation.clone(),
                    seq: place.seq,
                    message_id: place.id,
                    time: place.time,
                })
            }
            Ok(None) => unreachable!("a send always has a place"),
            Err(error) => Answer::Error(error),
        };
        answered.add(reply.queue(&answer));
    }

    /// Tells the listeners. Who comes by an entry listens before it, who leaves by one gets it and nothing after it.
    fn publish(
        &mut self,
        activation: &Activation,
        rows: &Arc<[LogRow]>,
        origins: Vec<(Seq, SessionId)>,
        answered: Answered,
    ) {
        self.tell_hooks(activation, rows);
        if rows.iter().all(|row| row.entry.change.is_none()) {
            let (conversation, rows) = (activation.conversation.clone(), rows.clone());
            self.steps.push_back(Step::Publish(Publication {
                conversation,
                rows,
                origins,
                answered,
                credit: None,
            }));
            return self.go_on(activation);
        }
        let limits = activation.surroundings.limits.changes;
        let mut answered = Some(answered);
        let mut publication = |rows: Arc<[LogRow]>| Publication {
            conversation: activation.conversation.clone(),
            rows,
            origins: origins.clone(),
            answered: answered.take().unwrap_or_default(),
            credit: None,
        };
        let mut segment: Vec<LogRow> = Vec::new();
        for row in rows.iter() {
            let members = row.entry.change.as_ref().map_or(&[][..], |change| change.members());
            let (came, left): (Vec<_>, Vec<_>) = members.iter().partition(|member| member.left.is_none());
            let came: Vec<UserId> = came.into_iter().map(|member| member.user.clone()).collect();
            if !came.is_empty() {
                if !segment.is_empty() {
                    self.steps.push_back(Step::Publish(publication(std::mem::take(&mut segment).into())));
                }
                self.steps.push_back(Step::Watch(came));
            }
            if limits.pushes(row.entry.kind) {
                segment.push(row.clone());
            }
            if !left.is_empty() {
                if !segment.is_empty() {
                    self.steps.push_back(Step::Publish(publication(std::mem::take(&mut segment).into())));
                }
                self.steps
                    .push_back(Step::Leave(left.into_iter().map(|member| member.user.clone()).collect()));
            }
        }
        if !segment.is_empty() {
            self.steps.push_back(Step::Publish(publication(segment.into())));
        }
        self.go_on(activation);
    }

    /// Takes the steps that need not wait.
    fn go_on(&mut self, activation: &Activation) {
        let surroundings = &activation.surroundings;
        while self.unanswered == 0 {
            let Some(step) = self.steps.pop_front() else { break };
            match step {
                Step::Publish(publication) => {
                    if !self.listeners.is_empty() {
                        surroundings.hubs.publish(publication, &self.places);
                    }
                }
                Step::Watch(users) => {
                    let new: Vec<_> =
                        users.into_iter().filter(|user| self.watched.insert(user.clone())).collect();
                    self.watch(activation, new);
                }
                Step::Leave(users) => {
                    self.watched.retain(|user| !users.contains(user));
                    let of_them = self.listeners.iter().filter(|(_, user)| users.contains(user));
                    let gone: Vec<Seat> = of_them.map(|(seat, _)| *seat).collect();
                    for seat in gone {
                        self.remove(seat);
                        surroundings.hubs.leave(&activation.conversation, seat);
                    }
                    surroundings.directory.unwatch(users, &activation.conversation);
                }
                Step::Attend(attending, reply) => {
                    // Nobody waits any more: fine.
                    let _ = reply.send(self.attend(activation, &attending));
                }
            }
        }
        // An answer is not kept back by what the steps wait for.
        for step in &mut self.steps {
            if let Step::Publish(publication) = step {
                publication.answered.write();
            }
        }
    }

    fn tell_hooks(&self, activation: &Activation, rows: &[LogRow]) {
        let hooks = &activation.surroundings.hooks;
        if let (true, Some(first), Some(last)) = (hooks.wants_commits(), rows.first(), rows.last()) {
            let online: HashSet<&UserId> = self.listeners.values().collect();
            let is_offline = |user: &&UserId| !online.contains(user);
            let offline: Vec<_> = match self.core.group() {
                // As the entries made it, whether or not its listeners are known yet.
                Some(group) => {
                    let members = group.members_after(None).map(|member| &member.user);
                    members.filter(is_offline).cloned().collect()
                }
                None => self.watched.iter().filter(is_offline).cloned().collect(),
            };
            hooks.after_commit(&activation.conversation, first.seq, last.seq, &offline);
        }
    }
}
