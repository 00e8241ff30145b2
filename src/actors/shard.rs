//! Shards: who activates conversations, and how a request finds its conversation.
//!
//! A request goes straight to the conversation's mailbox if it is active ([`Conversations`]); otherwise its
//! `ShardActor`, started on first use, activates it. One activation per conversation at a time: only the shard makes
//! them, and only after the former one said that it serves no more (or died).
//!
//! # Supervision
//! Shards are linked to the node's actor, conversations to their shard. A shard that dies takes its conversations with
//! it; both start again on the next request. The numbering of write stamps outlives the actor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{ConversationId, SessionId};
use dashmap::DashMap;
use parking_lot::RwLock;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use crate::actors::conversation::core::{Head, SendCommand};
use crate::actors::conversation::{Activation, ConversationHandle, Request, Surroundings};
use crate::actors::reply::Reply;
use crate::cluster::shard_map::{ShardId, ShardMap};
use crate::storage::{Epoch, ReadError, ReadLimit, WriteStamp};
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
    next_stamp: AtomicU64,
    /// Set for good once an activation died: it may have left a write under way.
    crashed: AtomicBool,
}

struct Shared {
    map: ShardMap,
    epoch: Epoch,
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
    pub fn new(map: ShardMap, epoch: Epoch, surroundings: Surroundings, supervisor: ActorCell) -> Self {
        let slots = (0..map.shards()).map(|_| Slot::default()).collect();
        Self(Arc::new(Shared { map, epoch, slots, active: DashMap::new(), surroundings, supervisor }))
    }

    /// Hands a send to its conversation, which answers it.
    pub async fn send(&self, conversation: ConversationId, command: Box<SendCommand>, reply: Reply) {
        self.request(conversation, Request::Send(command, reply)).await;
    }

    /// Makes the session a listener of the conversation if it is active, and tells its head.
    ///
    /// # Errors
    /// As the wire says.
    pub async fn attend(
        &self,
        conversation: &ConversationId,
        session: SessionId,
    ) -> Result<Head, RequestError> {
        let active = self.0.active.get(conversation).map(|handle| handle.clone());
        if let Some(handle) = active {
            let (reply, head) = oneshot::channel();
            let now_ms = self.0.surroundings.clock.monotonic_ms();
            match handle.request(Request::Attend(session, reply), now_ms) {
                Ok(()) => return head.await.unwrap_or_else(|_| Err(lost())),
                // It went to sleep in between: ask through the shard.
                Err(request) => self.through_shard(conversation.clone(), request).await,
            }
            return head.await.unwrap_or_else(|_| Err(lost()));
        }
        // Asleep: whoever activates it later finds the session in the directory before anything is published.
        let unavailable = |error: ReadError| {
            RequestError::not_done(ErrorCode::UNAVAILABLE, error.to_string()).retry_after(1_000)
        };
        let log = &self.0.surroundings.stores.log;
        let Some(hint) = log.hint(conversation).await.map_err(unavailable)? else { return Ok(Head::EMPTY) };
        let row = log.read(conversation, hint.base, hint.base, ReadLimit::rows(1)).await;
        let row = row.map_err(unavailable)?.pop();
        Ok(row.map_or(Head { seq: hint.base, id: hint.id, ..Head::EMPTY }, |row| Head::of(&row)))
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
        self.through_shard(conversation, request).await;
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
                let mut forgotten = 0;
                self.0.active.retain(|id, _| {
                    let stays = self.0.map.of_conversation(id) != ShardId(shard);
                    forgotten += usize::from(!stays);
                    stays
                });
                self.0.surroundings.metrics.deactivated(forgotten);
                return true;
            }
        }
        false
    }

    /// How many conversations are active.
    pub fn active(&self) -> usize {
        self.0.active.len()
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

fn lost() -> RequestError {
    RequestError::not_done(ErrorCode::UNAVAILABLE, "the conversation is restarting").retry_after(200)
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
        let n = slot.next_stamp.fetch_add(1, Ordering::Relaxed);
        let activation = Activation {
            conversation: conversation.clone(),
            epoch: shared.epoch,
            stamp: WriteStamp::new(shared.epoch, n),
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
                request.refuse(lost());
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
