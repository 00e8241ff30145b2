//! Shards: who activates conversations, and how a request finds its conversation.
//!
//! A request goes straight to the conversation's mailbox if it is active ([`Conversations`]); otherwise its
//! `ShardActor`, started on first use, activates it. One activation per conversation at a time: only the shard makes
//! them, and only after the former one said that it serves no more (or died).
//!
//! # Supervision
//! Shards are linked to the node's actor, conversations to their shard. A shard that dies takes its conversations with
//! it; both start again on the next request. The numbering of write stamps outlives the actor.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::frame::Event;
use convoke_protocol::id::{ConversationId, ConversationKind, GroupId, SessionId};
use convoke_protocol::request::changes::Retention;
use dashmap::DashMap;
use parking_lot::RwLock;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use crate::actors::conversation::core::{Act, ActCommand, Head, SendCommand};
use crate::actors::conversation::dedup::Place;
use crate::actors::conversation::group::{Group, GroupCommand, Visibility, not_found};
use crate::actors::conversation::{
    Activation, Attended, Attending, ConversationHandle, Owed, Request, StampSource, Surroundings,
};
use crate::actors::peer::{Activity, not_ours, perhaps_moved};
use crate::actors::reply::Reply;
use crate::auth::Role;
use crate::cluster::owner::Owner;
use crate::cluster::shard_map::{ShardId, ShardMap};
use crate::storage::{ReadError, WriteStamp};
use crate::telemetry::metrics::ActorKind;

enum Message {
    /// Activate and hand over; then tell whoever brought it, so that what it brings next comes after.
    Activate(ConversationId, Request, Option<oneshot::Sender<()>>),
    Asleep(ConversationHandle),
    InjectPanic,
}

/// Reaches a shard from one of its conversations.
#[derive(Clone)]
pub struct ShardHandle(ActorRef<Message>);

impl ShardHandle {
    /// The activation serves no more; what comes to it from now on it forwards.
    pub fn asleep(&self, handle: &ConversationHandle) {
        // A shard that is gone took the registry's entry with it.
        let _ = self.0.cast(Message::Asleep(handle.clone()));
    }

    /// A request that reached an activation after its end.
    pub fn forward(&self, conversation: ConversationId, request: Request) {
        let _ = self.0.cast(Message::Activate(conversation, request, None));
    }
}

/// What of a shard outlives its actor.
#[derive(Default)]
struct Slot {
    actor: RwLock<Option<ActorRef<Message>>>,
    starting: tokio::sync::Mutex<()>,
    next_stamp: Arc<AtomicU64>,
    /// Set for good once an activation died: it may have left a write under way.
    crashed: AtomicBool,
}

struct Shared {
    map: ShardMap,
    owner: Owner,
    slots: Box<[Slot]>,
    active: DashMap<ConversationId, ConversationHandle>,
    surroundings: Surroundings,
    supervisor: ActorCell,
}

/// All conversations of this node. Cheap to clone.
#[derive(Clone)]
pub struct Conversations(Arc<Shared>);

impl Conversations {
    /// Nothing is active yet.
    pub fn new(map: ShardMap, owner: Owner, surroundings: Surroundings, supervisor: ActorCell) -> Self {
        let slots = (0..map.shards()).map(|_| Slot::default()).collect();
        Self(Arc::new(Shared { map, owner, slots, active: DashMap::new(), surroundings, supervisor }))
    }

    /// Hands a send to its conversation, which answers it.
    pub async fn send(&self, conversation: ConversationId, command: Box<SendCommand>, reply: Reply) {
        self.request(conversation, Request::Send(command, Owed::Reply(reply))).await;
    }

    /// Hands a send to its conversation, in the order of the calls; its place comes by the future. `from` is the session
    /// that says it, if it is to get an answer instead of a push.
    ///
    /// # Errors
    /// By the future: as the wire says, or `MOVED`.
    pub async fn send_told(
        &self,
        conversation: ConversationId,
        command: Box<SendCommand>,
        from: Option<SessionId>,
    ) -> impl Future<Output = Result<Place, RequestError>> + Send + use<> {
        let (told, place) = oneshot::channel();
        self.request(conversation, Request::Send(command, Owed::Told(told, from))).await;
        async move { place.await.unwrap_or_else(|_| Err(perhaps_moved()))?.ok_or_else(perhaps_moved) }
    }

    /// Changes something, and waits for the place of the entry that says so; `None` if there was nothing to change.
    ///
    /// # Errors
    /// As the wire says.
    pub async fn act(
        &self,
        conversation: ConversationId,
        command: Box<ActCommand>,
    ) -> Result<Option<Place>, RequestError> {
        let (told, place) = oneshot::channel();
        self.request(conversation, Request::Act(command, Owed::Told(told, None))).await;
        place.await.unwrap_or_else(|_| Err(perhaps_moved()))
    }

    /// Looks at a group.
    ///
    /// # Errors
    /// It cannot be read now.
    pub async fn look<T: Send + 'static>(
        &self,
        conversation: ConversationId,
        look: impl FnOnce(Option<&Group>) -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let (tell, seen) = oneshot::channel();
        let look = move |group: Option<&Group>| drop(tell.send(look(group)));
        self.request(conversation, Request::Look(Box::new(look))).await;
        seen.await.map_err(|_| not_ours())
    }

    /// Passes an event that is not kept on to the other listeners of a group.
    ///
    /// # Errors
    /// `NOT_FOUND`, if whoever it is from is no member.
    pub async fn signal(
        &self,
        conversation: ConversationId,
        event: Event,
        from: Attending,
    ) -> Result<(), RequestError> {
        let (tell, told) = oneshot::channel();
        self.request(conversation, Request::Signal(Box::new(event), from, tell)).await;
        told.await.unwrap_or_else(|_| Err(not_ours()))
    }

    /// Trims a conversation's log as a rule says, in the background.
    pub async fn retain(&self, conversation: ConversationId, retention: Retention) {
        self.request(conversation, Request::Retain(retention)).await;
    }

    /// Makes the session a listener of those of the conversations that are active, and tells what there is, in the order of
    /// the ids; `None` for one that is not the user's. Those that sleep are read together.
    ///
    /// # Errors
    /// One of them cannot be read now, or is not served here (`MOVED`).
    pub async fn attend_all(
        &self,
        conversations: &[ConversationId],
        attending: &Attending,
    ) -> Result<Vec<Option<Attended>>, RequestError> {
        let mut attended: Vec<Option<Attended>> = vec![None; conversations.len()];
        let mut asked = Vec::new();
        let mut asleep = Vec::new();
        let now_ms = self.0.surroundings.clock.monotonic_ms();
        for (n, conversation) in conversations.iter().enumerate() {
            match self.0.active.get(conversation).map(|handle| handle.clone()) {
                Some(handle) => {
                    let (reply, answer) = oneshot::channel();
                    match handle.request(Request::Attend(attending.clone(), reply), now_ms) {
                        Ok(()) => asked.push((n, answer)),
                        // It went to sleep in between: ask through the shard.
                        Err(request) => {
                            self.through_shard(conversation.clone(), request).await;
                            asked.push((n, answer));
                        }
                    }
                }
                // Whoever activates it later finds the session in the directory before anything is published.
                None => asleep.push(n),
            }
        }
        for (n, found) in self.sleeping(conversations, &asleep, attending).await? {
            match found {
                Sleeping::Seen(seen) => attended[n] = seen,
                Sleeping::Unsettled => {
                    let (reply, answer) = oneshot::channel();
                    let request = Request::Attend(attending.clone(), reply);
                    self.through_shard(conversations[n].clone(), request).await;
                    asked.push((n, answer));
                }
            }
        }
        for (n, answer) in asked {
            attended[n] = match answer.await.unwrap_or_else(|_| Err(not_ours())) {
                Ok(seen) => Some(seen),
                Err(error) if error.code == ErrorCode::NOT_FOUND => None,
                Err(error) => return Err(error),
            };
        }
        Ok(attended)
    }

    /// What the store tells of conversations that sleep.
    async fn sleeping(
        &self,
        conversations: &[ConversationId],
        asleep: &[usize],
        attending: &Attending,
    ) -> Result<Vec<(usize, Sleeping)>, RequestError> {
        if asleep.is_empty() {
            return Ok(Vec::new());
        }
        // Only who owns them may say where they end.
        let owner = &self.0.owner;
        let shards = asleep.iter().map(|n| self.0.map.of_conversation(&conversations[*n]));
        let epochs: Vec<_> = shards.map(|shard| (shard, owner.epoch(shard))).collect();
        if epochs.iter().any(|(_, epoch)| epoch.is_none()) {
            return Err(not_ours());
        }
        let stores = &self.0.surroundings.stores;
        let ids: Vec<ConversationId> = asleep.iter().map(|n| conversations[*n].clone()).collect();
        let tails = stores.log.tails(&ids).await.map_err(|error| unreadable(&error))?;
        let groups: Vec<GroupId> = ids.iter().filter_map(ConversationId::group_id).collect();
        let is_service = attending.asking.role == Role::Service;
        let memberships = if groups.is_empty() || is_service {
            vec![None; groups.len()]
        } else {
            let user = &attending.asking.user;
            stores.groups.memberships(user, &groups).await.map_err(|error| unreadable(&error))?
        };
        if epochs.iter().any(|(shard, epoch)| owner.epoch(*shard) != *epoch) {
            return Err(not_ours());
        }
        let mut memberships = memberships.into_iter();
        let found = asleep.iter().zip(ids).zip(tails).map(|((n, id), tail)| {
            let visible = match id.group_id() {
                None => Some(Visibility::ALL),
                Some(_) => {
                    let member = memberships.next().flatten();
                    let all = (is_service && tail.hinted.is_some()).then_some(Visibility::ALL);
                    member.map(|member| Visibility::of(&member)).or(all)
                }
            };
            let sleeping = if tail.settled {
                let head = tail.hinted.as_ref().map_or(Head::EMPTY, Head::of);
                Sleeping::Seen(visible.map(|visible| {
                    let seen = Attended::cut(head, tail.start, visible);
                    let last = tail.hinted.filter(|row| row.seq == seen.head.seq).map(Box::new);
                    Attended { last, ..seen }
                }))
            } else {
                Sleeping::Unsettled
            };
            (*n, sleeping)
        });
        Ok(found.collect())
    }

    /// Whether a conversation that sleeps may be activated for a request: made-up ids of groups must not take memory.
    async fn may_activate(&self, conversation: &ConversationId, creates: bool) -> Result<(), RequestError> {
        if self.0.owner.epoch(self.0.map.of_conversation(conversation)).is_none() {
            return Err(not_ours());
        }
        if creates || matches!(conversation.kind(), ConversationKind::Direct(..)) {
            return Ok(());
        }
        let log = &self.0.surroundings.stores.log;
        let tails =
            log.tails(std::slice::from_ref(conversation)).await.map_err(|error| unreadable(&error))?;
        let is_there = tails.first().is_some_and(|tail| tail.hinted.is_some() || !tail.settled);
        if is_there { Ok(()) } else { Err(not_found()) }
    }

    async fn request(&self, conversation: ConversationId, request: Request) {
        let now_ms = self.0.surroundings.clock.monotonic_ms();
        let active = self.0.active.get(&conversation).map(|handle| handle.clone());
        let request = match active {
            None => request,
            Some(handle) => match handle.request(request, now_ms) {
                Ok(()) => return,
                Err(request) => request,
            },
        };
        let creates = match &request {
            Request::Act(command, _) => matches!(command.act, Act::Group(GroupCommand::Create { .. })),
            _ => false,
        };
        match self.may_activate(&conversation, creates).await {
            Ok(()) => self.through_shard(conversation, request).await,
            Err(error) => match request {
                Request::Look(look) if error.code == ErrorCode::NOT_FOUND => look(None),
                request => request.refuse(error),
            },
        }
    }

    async fn through_shard(&self, conversation: ConversationId, mut request: Request) {
        let shard = self.0.map.of_conversation(&conversation);
        // A shard that died in between is started once more; then the client is asked to repeat.
        for _ in 0..2 {
            let Ok(actor) = self.shard(shard).await else { break };
            let (handed_over, done) = oneshot::channel();
            match actor.cast(Message::Activate(conversation.clone(), request, Some(handed_over))) {
                Err(ractor::MessagingErr::SendErr(Message::Activate(_, back, _))) => request = back,
                _ => {
                    // A shard that dies in between answers by dropping the request.
                    let _ = done.await;
                    return;
                }
            }
            *self.0.slots[shard.0 as usize].actor.write() = None;
        }
        request.refuse(
            RequestError::not_done(ErrorCode::UNAVAILABLE, "the shard is restarting").retry_after(200),
        );
    }

    async fn shard(&self, shard: ShardId) -> Result<ActorRef<Message>, ractor::SpawnErr> {
        let slot = &self.0.slots[shard.0 as usize];
        if let Some(actor) = &*slot.actor.read() {
            return Ok(actor.clone());
        }
        let _one_at_a_time = slot.starting.lock().await;
        if let Some(actor) = &*slot.actor.read() {
            return Ok(actor.clone());
        }
        let shard_actor = ShardActor { shard, conversations: self.clone() };
        let (actor, _) = Actor::spawn_linked(None, shard_actor, (), self.0.supervisor.clone()).await?;
        *slot.actor.write() = Some(actor.clone());
        Ok(actor)
    }

    /// If `dead` was a shard, forgets it and its conversations and says so; the next request starts it anew.
    pub fn forget_shard(&self, dead: &ActorCell) -> bool {
        for (shard, slot) in (0..).zip(&self.0.slots) {
            let mut actor = slot.actor.write();
            if actor.as_ref().is_some_and(|actor| actor.get_id() == dead.get_id()) {
                *actor = None;
                slot.crashed.store(true, Ordering::Relaxed);
                drop(actor);
                self.forget_active(ShardId(shard));
                return true;
            }
        }
        false
    }

    /// Shards whose write stamps are nearly used up: so many are left that giving them back takes none of the last.
    pub fn worn(&self) -> Vec<ShardId> {
        const NEARLY: u64 = WriteStamp::PER_EPOCH / 8 * 7;
        let used = |slot: &Slot| slot.next_stamp.load(Ordering::Relaxed);
        (0..)
            .map(ShardId)
            .zip(&self.0.slots)
            .filter(|(_, slot)| used(slot) >= NEARLY)
            .map(|(shard, _)| shard)
            .collect()
    }

    /// A shard is served in a new epoch: its write stamps begin anew.
    pub fn begin_epoch(&self, shard: ShardId) {
        self.0.slots[shard.0 as usize].next_stamp.store(0, Ordering::Relaxed);
    }

    /// Ends what is active in a shard whose gate was closed. Requests that wait there are answered as perhaps done.
    pub fn close_shard(&self, shard: ShardId) {
        let slot = &self.0.slots[shard.0 as usize];
        let Some(actor) = slot.actor.write().take() else { return };
        // A later activation waits for the writes that are under way.
        slot.crashed.store(true, Ordering::Relaxed);
        let gone = self.forget_active(shard);
        for handle in gone {
            handle.kill();
        }
        actor.kill();
    }

    fn forget_active(&self, shard: ShardId) -> Vec<ConversationHandle> {
        let mut gone = Vec::new();
        self.0.active.retain(|id, handle| {
            let stays = self.0.map.of_conversation(id) != shard;
            if !stays {
                gone.push(handle.clone());
            }
            stays
        });
        self.0.surroundings.metrics.deactivated(gone.len());
        gone
    }

    /// Every active conversation.
    pub fn for_each(&self, mut visit: impl FnMut(&ConversationHandle)) {
        self.0.active.iter().for_each(|entry| visit(entry.value()));
    }

    /// An active conversation.
    pub fn handle(&self, conversation: &ConversationId) -> Option<ConversationHandle> {
        self.0.active.get(conversation).map(|handle| handle.clone())
    }

    /// How many conversations are active.
    pub fn active(&self) -> usize {
        self.0.active.len()
    }

    /// Bytes that all of them hold, about.
    pub fn held_bytes(&self) -> usize {
        self.0.active.iter().map(|entry| entry.value().activity().memory_bytes).sum()
    }

    /// What a conversation holds, and who listens; `None` if it is not active.
    pub fn activity(&self, conversation: &ConversationId) -> Option<Activity> {
        self.0.active.get(conversation).map(|handle| handle.activity())
    }

    /// The active conversations above `after`, by id, at most `limit`.
    pub fn active_after(&self, after: Option<&ConversationId>, limit: usize) -> Vec<ConversationId> {
        let ids = self.0.active.iter().map(|entry| entry.key().clone());
        let mut ids: Vec<_> = ids.filter(|id| after.is_none_or(|after| id > after)).collect();
        ids.sort_unstable();
        ids.truncate(limit);
        ids
    }

    /// Tells every active conversation that the directory or the hub lost what it knew.
    pub fn refresh(&self) {
        for entry in &self.0.active {
            entry.value().refresh();
        }
    }

    /// Lets conversations that were not used for `idle` go to sleep.
    pub fn sweep(&self, idle: Duration) {
        let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.0.surroundings.clock.monotonic_ms();
        for entry in &self.0.active {
            if now_ms.saturating_sub(entry.value().used_ms()) >= idle_ms {
                entry.value().may_sleep();
            }
        }
    }

    /// Makes an active conversation panic (tests of supervision); says whether it was active.
    pub fn inject_panic(&self, conversation: &ConversationId) -> bool {
        let active = self.0.active.get(conversation);
        if let Some(handle) = &active {
            handle.inject_panic();
        }
        active.is_some()
    }

    /// Makes the shard of a conversation panic (tests of supervision); says whether it was in use.
    pub fn inject_shard_panic(&self, conversation: &ConversationId) -> bool {
        let shard = self.0.map.of_conversation(conversation);
        let actor = self.0.slots[shard.0 as usize].actor.read().clone();
        actor.is_some_and(|actor| actor.cast(Message::InjectPanic).is_ok())
    }
}

/// What the store tells of a conversation that sleeps.
enum Sleeping {
    /// What the user may see of it, if anything.
    Seen(Option<Attended>),
    /// Only its owner knows: it has to be activated.
    Unsettled,
}

fn unreadable(error: &ReadError) -> RequestError {
    tracing::warn!(%error, "a read failed");
    RequestError::not_done(ErrorCode::UNAVAILABLE, "the store cannot be read").retry_after(1_000)
}

struct ShardActor {
    shard: ShardId,
    conversations: Conversations,
}

impl ShardActor {
    async fn activate(&self, myself: &ActorRef<Message>, conversation: ConversationId, request: Request) {
        let shared = &self.conversations.0;
        let now_ms = shared.surroundings.clock.monotonic_ms();
        let active = shared.active.get(&conversation).map(|handle| handle.clone());
        let request = match active {
            None => request,
            // Somebody else was first; or it is ending and its `Asleep` is still on its way.
            Some(handle) => match handle.request(request, now_ms) {
                Ok(()) => return,
                Err(request) => request,
            },
        };
        let slot = &shared.slots[self.shard.0 as usize];
        let Some(epoch) = shared.owner.epoch(self.shard) else { return request.refuse(not_ours()) };
        let stamps =
            StampSource { epoch, next: slot.next_stamp.clone(), is_permanent: shared.owner.is_permanent() };
        let activation = Activation {
            conversation: conversation.clone(),
            owner: shared.owner.clone(),
            in_shard: self.shard,
            stamp: stamps.fresh(),
            stamps,
            after_crash: slot.crashed.load(Ordering::Relaxed),
            surroundings: shared.surroundings.clone(),
            shard: ShardHandle(myself.clone()),
        };
        match ConversationHandle::activate(activation, &myself.get_cell()).await {
            Ok(handle) => {
                shared.surroundings.metrics.activated();
                // It was just started: it takes its first request, before others can find it.
                let _ = handle.request(request, now_ms);
                shared.active.insert(conversation, handle);
            }
            Err(error) => {
                tracing::error!(%conversation, %error, "a conversation cannot be started");
                request.refuse(not_ours());
            }
        }
    }

    fn forget(&self, gone: impl Fn(&ConversationHandle) -> bool, conversation: Option<&ConversationId>) {
        let Shared { active, surroundings, .. } = &*self.conversations.0;
        let mut forgotten = 0;
        match conversation {
            Some(conversation) => {
                forgotten += usize::from(active.remove_if(conversation, |_, handle| gone(handle)).is_some());
            }
            None => active.retain(|_, handle| {
                let stays = !gone(handle);
                forgotten += usize::from(!stays);
                stays
            }),
        }
        surroundings.metrics.deactivated(forgotten);
    }
}

impl Actor for ShardActor {
    type Msg = Message;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Activate(conversation, request, handed_over) => {
                self.activate(&myself, conversation, request).await;
                // Nobody waits for one that was forwarded.
                if let Some(handed_over) = handed_over {
                    let _ = handed_over.send(());
                }
            }
            Message::Asleep(handle) => {
                self.conversations.0.surroundings.metrics.conversation_passivations.inc();
                self.forget(|other| *other == handle, Some(handle.conversation()));
            }
            Message::InjectPanic => panic!("injected for a test"),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Message>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            tracing::error!(%error, "a conversation crashed; it starts again from the store");
            self.conversations.0.surroundings.metrics.actor_restarted(ActorKind::Conversation);
            self.conversations.0.slots[self.shard.0 as usize].crashed.store(true, Ordering::Relaxed);
            self.forget(|handle| handle.is_actor(&cell), None);
        }
        Ok(())
    }
}
