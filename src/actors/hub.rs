//! The hub: which sessions of this node get the pushes of a conversation.
//!
//! One actor per stripe; a conversation always maps to the same one, so its listeners' changes and its pushes arrive in
//! the order in which its owner sent them. Soft: after a crash the conversations send their listeners again.

mod encode;
mod pushed;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use convoke_protocol::event::Lagged;
use convoke_protocol::frame::Event;
use convoke_protocol::id::{ConversationId, Seq, SessionId};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use self::encode::PushBatch;
use self::pushed::Pushed;
use crate::actors::reply::Answered;
use crate::actors::session::egress::Delivery;
use crate::actors::session::{SessionShared, SessionTable};
use crate::clock::Clock;
use crate::cluster::link::Credit;
use crate::cluster::shard_map::{ShardId, ShardMap};
use crate::storage::LogRow;

/// After so many deliveries in one go the hub lets others run.
const DELIVERIES_PER_TURN: usize = 256;

/// Committed rows on their way to the listeners.
pub struct Publication {
    /// Where they were said.
    pub conversation: ConversationId,
    /// What was said, in rising order.
    pub rows: Arc<[LogRow]>,
    /// Which session said which: it gets an answer instead of a push.
    pub origins: Vec<(Seq, SessionId)>,
    /// Sessions whose answers are to be written, together with what is pushed to them.
    pub answered: Answered,
    /// Of a publication that came over a link: given back once it is delivered.
    pub credit: Option<Box<dyn Credit>>,
}

enum Message {
    Listen(ConversationId, Vec<SessionId>),
    /// These listen too, and may have missed pushes up to the head.
    ListenLate(ConversationId, Vec<SessionId>, Seq),
    Leave(ConversationId, SessionId),
    /// These and no others listen; pushes up to the head may have been missed, unless this hub knows better.
    Reset(ConversationId, Vec<SessionId>, Seq),
    Forget(ConversationId),
    Publish(Publication),
    /// Something that is not kept, for all listeners but one.
    Signal(ConversationId, Box<Event>, SessionId),
    /// The head is this: who got less may have missed something.
    CatchUp(ConversationId, Seq),
    /// To which conversations of these shards somebody listens.
    Listened(Arc<HashSet<ShardId>>, oneshot::Sender<Vec<ConversationId>>),
    /// What is held.
    Measure(oneshot::Sender<HubMemory>),
    InjectPanic,
}

/// What the hub holds in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HubMemory {
    /// Listeners of all conversations together.
    pub listeners: usize,
    /// Bytes of the lists: a pointer for each listener.
    pub bytes: usize,
}

#[derive(Clone)]
struct HubActor {
    sessions: SessionTable,
    clock: Clock,
    map: ShardMap,
}

/// Those of one conversation.
#[derive(Default)]
struct Listening {
    /// Sorted by session id: a pointer each.
    list: Vec<Arc<SessionShared>>,
    pushed: Pushed,
}

impl Listening {
    /// Whether a session was pushed everything up to the head, or was told where it begins.
    fn had_all(&self, session: &SessionShared, head: Seq) -> bool {
        self.pushed.is_whole(head) && self.list.binary_search_by_key(&session.id, |one| one.id).is_ok()
    }
}

type Listeners = HashMap<ConversationId, Listening>;

fn lagged(session: &SessionShared, conversation: &ConversationId, head: Seq) {
    let lagged = Lagged { conversation: conversation.clone(), head, shed: 0 };
    session.egress.send_event(&Event::Lagged(lagged));
}

impl HubActor {
    fn listen(&self, listeners: &mut Listeners, conversation: ConversationId, added: &[SessionId]) {
        let Listening { list, .. } = listeners.entry(conversation).or_default();
        for id in added {
            // A session that is not there any more needs no pushes.
            if let (Err(place), Some(session)) =
                (list.binary_search_by_key(id, |one| one.id), self.sessions.get(*id))
            {
                list.insert(place, session);
            }
        }
    }

    async fn publish(&self, listeners: &mut Listeners, publication: &Publication) {
        let Publication { conversation, rows, origins, .. } = publication;
        let Some(Listening { list, pushed }) = listeners.get_mut(conversation) else { return };
        let (Some(first), Some(head)) = (rows.first(), rows.last()) else { return };
        let head = head.seq;
        if !pushed.next(first.seq, head) {
            return;
        }
        let now_ms = self.clock.monotonic_ms();
        let mut batch = PushBatch::new(conversation, rows);
        let mut gone = false;
        for (n, session) in list.iter().enumerate() {
            if n % DELIVERIES_PER_TURN == DELIVERIES_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            let framing = session.egress.framing();
            let (frames, count) = if origins.iter().any(|(_, id)| *id == session.id) {
                batch.without(framing, |seq| origins.contains(&(seq, session.id)))
            } else {
                batch.all(framing)
            };
            if count > 0 {
                let delivery = session.egress.deliver(conversation, head, &frames, count, now_ms);
                session.count_delivery(delivery, count);
                gone |= delivery == Delivery::Closed;
            }
        }
        if gone {
            list.retain(|session| self.sessions.get(session.id).is_some());
        }
    }
}

fn measure(listeners: &Listeners) -> HubMemory {
    let lists = listeners.capacity() * size_of::<(ConversationId, Listening)>();
    let pointers = listeners.values().map(|one| one.list.capacity() * size_of::<Arc<SessionShared>>());
    let count = listeners.values().map(|one| one.list.len()).sum();
    HubMemory { listeners: count, bytes: lists + pointers.sum::<usize>() }
}

impl Actor for HubActor {
    type Msg = Message;
    type State = Listeners;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<Listeners, ActorProcessingErr> {
        Ok(Listeners::new())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        listeners: &mut Listeners,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Listen(conversation, added) => self.listen(listeners, conversation, &added),
            Message::Leave(conversation, gone) => {
                if let Some(Listening { list, .. }) = listeners.get_mut(&conversation)
                    && let Ok(place) = list.binary_search_by_key(&gone, |one| one.id)
                {
                    list.remove(place);
                }
            }
            Message::Reset(conversation, all, head) => {
                let before = listeners.remove(&conversation).unwrap_or_default();
                self.listen(listeners, conversation.clone(), &all);
                let Some(now) = listeners.get_mut(&conversation) else { return Ok(()) };
                now.pushed = before.pushed;
                now.pushed.told();
                for session in now.list.iter().filter(|session| !before.had_all(session, head)) {
                    lagged(session, &conversation, head);
                }
            }
            Message::ListenLate(conversation, added, head) => {
                self.listen(listeners, conversation.clone(), &added);
                for session in added.into_iter().filter_map(|id| self.sessions.get(id)) {
                    lagged(&session, &conversation, head);
                }
            }
            Message::CatchUp(conversation, head) => {
                if let Some(Listening { list, pushed }) = listeners.get_mut(&conversation)
                    && pushed.catch_up(head)
                {
                    list.iter().for_each(|session| lagged(session, &conversation, head));
                }
            }
            Message::Listened(shards, reply) => {
                let all = listeners.iter().filter(|(_, one)| !one.list.is_empty()).map(|(id, _)| id);
                let of_these = all.filter(|id| shards.contains(&self.map.of_conversation(id)));
                // Nobody waits any more: fine.
                let _ = reply.send(of_these.cloned().collect());
            }
            Message::Forget(conversation) => {
                listeners.remove(&conversation);
            }
            Message::Publish(mut publication) => {
                self.publish(listeners, &publication).await;
                let count = listeners.get(&publication.conversation).map_or(0, |one| one.list.len());
                publication.answered.delivered(count);
            }
            Message::Signal(conversation, event, from) => {
                for session in listeners.get(&conversation).iter().flat_map(|one| &one.list) {
                    if session.id != from {
                        session.tell_if_room(&event);
                    }
                }
            }
            Message::Measure(reply) => {
                // Nobody waits any more: fine.
                let _ = reply.send(measure(listeners));
            }
            Message::InjectPanic => panic!("injected for a test"),
        }
        Ok(())
    }
}

/// Reaches the hub. Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    stripes: Arc<[ArcSwap<ActorRef<Message>>]>,
    actor: HubActor,
}

impl Hub {
    /// Starts as many stripes as asked for.
    ///
    /// # Errors
    /// An actor cannot be started.
    pub async fn start(
        stripes: usize,
        sessions: SessionTable,
        map: ShardMap,
        clock: Clock,
        supervisor: &ActorCell,
    ) -> Result<Self, ractor::SpawnErr> {
        let actor = HubActor { sessions, clock, map };
        let mut actors = Vec::new();
        for _ in 0..stripes.max(1) {
            actors.push(ArcSwap::from_pointee(
                Actor::spawn_linked(None, actor.clone(), (), supervisor.clone()).await?.0,
            ));
        }
        Ok(Self { stripes: actors.into(), actor })
    }

    /// If `dead` was one of the stripes, starts it anew and says so; the conversations then send their listeners again.
    ///
    /// # Errors
    /// The actor cannot be started.
    pub async fn restart(&self, dead: &ActorCell, supervisor: &ActorCell) -> Result<bool, ractor::SpawnErr> {
        for stripe in self.stripes.iter() {
            if stripe.load().get_id() == dead.get_id() {
                let actor = self.actor.clone();
                stripe.store(Arc::new(Actor::spawn_linked(None, actor, (), supervisor.clone()).await?.0));
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn cast(&self, conversation: &ConversationId, message: Message) {
        let stripe = (xxh3_64(conversation.as_str().as_bytes()) % self.stripes.len() as u64) as usize;
        // A stripe that is being restarted loses this; the conversations then reset their listeners.
        let _ = self.stripes[stripe].load().cast(message);
    }

    /// Adds listeners; adding one twice changes nothing.
    pub fn listen(&self, conversation: &ConversationId, sessions: Vec<SessionId>) {
        self.cast(conversation, Message::Listen(conversation.clone(), sessions));
    }

    /// Adds listeners of whom was known late, and tells each that it may have missed pushes up to `head`.
    pub fn listen_late(&self, conversation: &ConversationId, sessions: Vec<SessionId>, head: Seq) {
        self.cast(conversation, Message::ListenLate(conversation.clone(), sessions, head));
    }

    /// The head of a conversation is known by another way: listeners that got less are told.
    pub fn catch_up(&self, conversation: &ConversationId, head: Seq) {
        self.cast(conversation, Message::CatchUp(conversation.clone(), head));
    }

    /// The conversations of these shards to which sessions of this node listen.
    pub async fn listened(&self, shards: &Arc<HashSet<ShardId>>) -> Vec<ConversationId> {
        let mut all = Vec::new();
        for stripe in self.stripes.iter() {
            let (reply, answer) = oneshot::channel();
            let _ = stripe.load().cast(Message::Listened(shards.clone(), reply));
            all.extend(answer.await.unwrap_or_default());
        }
        all
    }

    /// Takes a listener out.
    pub fn leave(&self, conversation: &ConversationId, session: SessionId) {
        self.cast(conversation, Message::Leave(conversation.clone(), session));
    }

    /// Replaces the listeners and tells each that it may have missed pushes up to `head`.
    pub fn reset(&self, conversation: &ConversationId, sessions: Vec<SessionId>, head: Seq) {
        self.cast(conversation, Message::Reset(conversation.clone(), sessions, head));
    }

    /// Forgets a conversation that goes to sleep.
    pub fn forget(&self, conversation: &ConversationId) {
        self.cast(conversation, Message::Forget(conversation.clone()));
    }

    /// Delivers to the listeners.
    pub fn publish(&self, publication: Publication) {
        let conversation = publication.conversation.clone();
        self.cast(&conversation, Message::Publish(publication));
    }

    /// Tells an event that is not kept to all listeners but one; left out where much waits.
    pub fn signal(&self, conversation: &ConversationId, event: Event, from: SessionId) {
        self.cast(conversation, Message::Signal(conversation.clone(), Box::new(event), from));
    }

    /// What it holds in memory.
    pub async fn memory(&self) -> HubMemory {
        let mut all = HubMemory::default();
        for stripe in self.stripes.iter() {
            let (reply, answer) = oneshot::channel();
            // A stripe that is being restarted holds nothing.
            let _ = stripe.load().cast(Message::Measure(reply));
            let HubMemory { listeners, bytes } = answer.await.unwrap_or_default();
            all = HubMemory { listeners: all.listeners + listeners, bytes: all.bytes + bytes };
        }
        all
    }

    /// Makes the stripe of a conversation panic (tests of supervision).
    pub fn inject_panic(&self, conversation: &ConversationId) {
        self.cast(conversation, Message::InjectPanic);
    }
}
