//! One active conversation: the shell around [`core`], which decides.
//!
//! # Supervision
//! Linked to its `ShardActor`. When it panics its mailbox is lost: each request in it answers `unknown` and is repeated
//! by its client; the next request starts the conversation anew from the store.
//!
//! # Lifecycle
//! ```text
//!   Recovering ──recovered──▶ Serving ──told to sleep while idle──▶ Asleep (forwards to its shard, then stops)
//!        └──cannot──▶ stopped; its requests are answered UNAVAILABLE
//! ```

pub mod change;
pub mod core;
pub mod dedup;
pub mod group;
pub mod log;
mod recovering;
pub mod retention;
mod serving;
#[cfg(test)]
mod tests;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::frame::Event;
use convoke_protocol::id::{ConversationId, Seq, SessionId, UserId};
use convoke_protocol::request::changes::Retention;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::oneshot;

use self::change::Targets;
use self::core::{ActCommand, Beginning, CoreLimits, Head, SendCommand};
use self::dedup::Place;
use self::group::{Asking, Group, Visibility};
use self::recovering::{RecoveryFailed, recover, settle};
use self::serving::Serving;
use crate::actors::directory::Directory;
use crate::actors::peer::hubs::Hubs;
use crate::actors::peer::{Activity, Seat, told_to_clients};
use crate::actors::reply::Reply;
use crate::actors::shard::ShardHandle;
use crate::auth::{Role, system_user};
use crate::clock::Clock;
use crate::cluster::membership::PeerId;
use crate::cluster::owner::{Open, Owner};
use crate::cluster::shard_map::ShardId;
use crate::hooks::Hooks;
use crate::storage::{AppendError, Epoch, LogRow, LogStart, Stores, WriteStamp};

/// Owed to whoever asked: an answer on the wire, or a word to the task that waits.
#[derive(Debug)]
pub enum Owed {
    /// The answer to a `Send`.
    Reply(Reply),
    /// What became of it; and which session said it, that gets an answer instead of a push.
    Told(oneshot::Sender<Result<Option<Place>, RequestError>>, Option<SessionId>),
}

impl Owed {
    fn refuse(self, error: RequestError) {
        match self {
            Self::Reply(reply) => reply.send(&told_to_clients(error).into()),
            // Nobody waits any more: fine.
            Self::Told(told, _) => drop(told.send(Err(error))),
        }
    }
}

/// Who attends to a conversation: reads it, and gets its pushes from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attending {
    /// The session, and where it is.
    pub seat: Seat,
    /// Its user, and for what the token is: a service reads everything and gets no pushes.
    pub asking: Asking,
}

impl Attending {
    /// The node itself: sees everything, and listens to nothing.
    pub fn of_the_node(at: PeerId) -> Self {
        let asking = Asking { user: system_user(), role: Role::Service };
        Self { seat: Seat { at, session: SessionId::generate() }, asking }
    }
}

/// A conversation as somebody may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attended {
    /// The highest message they may read.
    pub head: Head,
    /// The first message they may read.
    pub from: Seq,
    /// The ordinal before it.
    pub from_ordinal: u64,
    /// Whether nothing more will come for them: they left.
    pub left: bool,
    /// The message at the head, if it was at hand.
    pub last: Option<Box<LogRow>>,
}

impl Attended {
    /// Cuts the ends of a log to what may be seen of it.
    pub fn cut(head: Head, start: LogStart, visible: Visibility) -> Self {
        let Visibility { from, from_ordinal, to } = visible;
        let (from, from_ordinal) =
            if from >= start.seq { (from, from_ordinal) } else { (start.seq, start.ordinal) };
        let head = match to {
            Some(left) if left.seq < head.seq => {
                Head { seq: left.seq, ordinal: left.ordinal, time: left.time, id: head.id }
            }
            _ => head,
        };
        Self { head, from, from_ordinal, left: to.is_some(), last: None }
    }
}

type Looks = Box<dyn FnOnce(Option<&Group>) + Send>;

/// What a conversation is asked for.
pub enum Request {
    /// Number, keep and deliver this.
    Send(Box<SendCommand>, Owed),
    /// Change something.
    Act(Box<ActCommand>, Owed),
    /// Make the session a listener, then tell what there is.
    Attend(Attending, oneshot::Sender<Result<Attended, RequestError>>),
    /// Look at the group.
    Look(Looks),
    /// Pass an event on to the listeners but one.
    Signal(Box<Event>, Attending, oneshot::Sender<Result<(), RequestError>>),
    /// Trim what is not to be kept.
    Retain(Retention),
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Send(..) => "Send",
            Self::Act(..) => "Act",
            Self::Attend(..) => "Attend",
            Self::Look(_) => "Look",
            Self::Signal(..) => "Signal",
            Self::Retain(_) => "Retain",
        })
    }
}

impl Request {
    /// Answers with an error.
    pub fn refuse(self, error: RequestError) {
        match self {
            Self::Send(_, owed) | Self::Act(_, owed) => owed.refuse(error),
            // Nobody waits any more: fine.
            Self::Attend(_, reply) => drop(reply.send(Err(error))),
            Self::Signal(_, _, reply) => drop(reply.send(Err(error))),
            // Whoever waits sees that it is gone.
            Self::Look(_) | Self::Retain(_) => {}
        }
    }
}

enum Message {
    Request(Request),
    Recovered(Result<Box<Beginning>, RecoveryFailed>),
    Written(Result<(), AppendError>),
    Confirmed(bool),
    Loaded(Result<Targets, String>),
    Projected(bool),
    /// Kept and confirmed; kept by an owner that is none any more; or perhaps not kept.
    Hinted(Option<bool>),
    Trimmed(Option<LogStart>),
    Wake,
    Watched {
        users: usize,
        online: Vec<(UserId, Seat)>,
    },
    SessionChanged {
        user: UserId,
        seat: Seat,
        online: bool,
        late: bool,
    },
    WatchAgain(Arc<HashSet<ShardId>>),
    TellAgain(PeerId),
    PeerGone(PeerId),
    Refresh,
    MaySleep,
    InjectPanic,
}

/// What every conversation of a node shares.
#[derive(Clone)]
pub struct Surroundings {
    /// The stores.
    pub stores: Stores,
    /// Who is online.
    pub directory: Directory,
    /// Who listens, on all nodes.
    pub hubs: Hubs,
    /// The clocks.
    pub clock: Clock,
    /// The bounds of each conversation.
    pub limits: CoreLimits,
    /// Counters.
    pub metrics: Arc<crate::telemetry::metrics::Metrics>,
    /// The application's own rules.
    pub hooks: Arc<dyn Hooks>,
}

/// Where the write stamps of a shard come from.
#[derive(Debug, Clone)]
pub struct StampSource {
    /// The epoch in which the shard is owned.
    pub epoch: Epoch,
    /// The number of the next one.
    pub next: Arc<AtomicU64>,
    /// Whether nobody else ever writes: then stamps order nothing, and may begin again.
    pub is_permanent: bool,
}

impl StampSource {
    /// A stamp that no write of the shard had.
    ///
    /// # Panics
    /// If an epoch's stamps are used up: the shard is claimed anew long before.
    pub fn fresh(&self) -> WriteStamp {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        WriteStamp::new(self.epoch, if self.is_permanent { n % WriteStamp::PER_EPOCH } else { n })
    }
}

/// What one activation is made from.
pub struct Activation {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Whose it is.
    pub owner: Owner,
    /// In which shard it is.
    pub in_shard: ShardId,
    /// The stamps of its shard.
    pub stamps: StampSource,
    /// The stamp of this activation's appends.
    pub stamp: WriteStamp,
    /// Whether an earlier activation may have left a write under way.
    pub after_crash: bool,
    /// What it shares with the others.
    pub surroundings: Surroundings,
    /// Its shard, for when it sleeps.
    pub shard: ShardHandle,
}

/// Whose a conversation is, in one epoch.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    owner: Owner,
    shard: ShardId,
    epoch: Epoch,
}

impl Owned {
    /// While this is held, the conversation is not given away; `None` if it was.
    fn hold_open(&self) -> Option<Open<'_>> {
        self.owner.hold_open(self.shard, self.epoch)
    }

    /// Whether what is durable by now counts.
    async fn confirm(&self) -> bool {
        self.owner.confirm(self.shard, self.epoch).await
    }
}

impl Activation {
    fn ownership(&self) -> Owned {
        Owned { owner: self.owner.clone(), shard: self.in_shard, epoch: self.stamps.epoch }
    }
}

/// Reaches one activation of a conversation. Cheap to clone.
#[derive(Clone)]
pub struct ConversationHandle {
    conversation: ConversationId,
    actor: ActorRef<Message>,
    shown: Arc<Shown>,
}

/// What an activation shows without being asked.
#[derive(Debug, Default)]
struct Shown {
    /// When it was last asked for something.
    used_ms: AtomicU64,
    /// What it holds in memory.
    bytes: AtomicUsize,
    listeners: AtomicUsize,
}

impl PartialEq for ConversationHandle {
    fn eq(&self, other: &Self) -> bool {
        self.actor.get_id() == other.actor.get_id()
    }
}

/// The activation is over: ask the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl ConversationHandle {
    /// Which conversation it is.
    pub fn conversation(&self) -> &ConversationId {
        &self.conversation
    }

    /// Whether it is this actor.
    pub fn is_actor(&self, cell: &ActorCell) -> bool {
        self.actor.get_id() == cell.get_id()
    }

    /// Hands over a request; gives it back if the activation is over.
    ///
    /// # Errors
    /// The request itself: hand it to the shard.
    pub fn request(&self, request: Request, now_ms: u64) -> Result<(), Request> {
        self.shown.used_ms.store(now_ms, Ordering::Relaxed);
        match self.actor.cast(Message::Request(request)) {
            Err(ractor::MessagingErr::SendErr(Message::Request(request))) => Err(request),
            _ => Ok(()),
        }
    }

    /// When it was last asked for something, in milliseconds of the node's monotonic clock.
    pub fn used_ms(&self) -> u64 {
        self.shown.used_ms.load(Ordering::Relaxed)
    }

    /// What it holds, and who listens.
    pub fn activity(&self) -> Activity {
        let Shown { bytes, listeners, .. } = &*self.shown;
        let (memory_bytes, listeners) = (bytes.load(Ordering::Relaxed), listeners.load(Ordering::Relaxed));
        Activity { memory_bytes, listeners }
    }

    /// The directory's answer to a watch: `users` of those asked for are watched, and these sessions are online.
    ///
    /// # Errors
    /// The activation is over.
    pub fn watched(&self, users: usize, online: Vec<(UserId, Seat)>) -> Result<(), Gone> {
        self.cast(Message::Watched { users, online })
    }

    /// A watched user's session came or went; one of which is told late may have missed something.
    ///
    /// # Errors
    /// The activation is over.
    pub fn session_changed(&self, user: &UserId, seat: Seat, online: bool, late: bool) -> Result<(), Gone> {
        self.cast(Message::SessionChanged { user: user.clone(), seat, online, late })
    }

    /// The directories of these shards' users know nothing of its watches any more.
    pub fn watch_again(&self, shards: &Arc<HashSet<ShardId>>) {
        let _ = self.cast(Message::WatchAgain(shards.clone()));
    }

    /// A peer's hub knows nothing of its listeners any more.
    pub fn tell_again(&self, peer: PeerId) {
        let _ = self.cast(Message::TellAgain(peer));
    }

    /// The directory or the hub lost what it knew: tell it again.
    pub fn refresh(&self) {
        let _ = self.cast(Message::Refresh);
    }

    /// A peer is gone, with its listeners.
    pub fn peer_gone(&self, peer: PeerId) {
        let _ = self.cast(Message::PeerGone(peer));
    }

    /// It was not used for long: it may go to sleep if nothing waits.
    pub fn may_sleep(&self) {
        let _ = self.cast(Message::MaySleep);
    }

    /// Ends it at once: its shard is not served here any more.
    pub fn kill(&self) {
        self.actor.kill();
    }

    /// Makes it panic (tests of supervision).
    pub fn inject_panic(&self) {
        let _ = self.cast(Message::InjectPanic);
    }

    fn cast(&self, message: Message) -> Result<(), Gone> {
        self.actor.cast(message).map_err(|_| Gone)
    }

    /// Starts an activation under its shard.
    ///
    /// # Errors
    /// The actor cannot be started.
    pub async fn activate(activation: Activation, supervisor: &ActorCell) -> Result<Self, ractor::SpawnErr> {
        let conversation = activation.conversation.clone();
        let used_ms = AtomicU64::new(activation.surroundings.clock.monotonic_ms());
        let shown =
            Arc::new(Shown { used_ms, bytes: AtomicUsize::new(size_of::<State>()), ..Shown::default() });
        let args = (activation, shown.clone());
        let (actor, _) = Actor::spawn_linked(None, ConversationActor, args, supervisor.clone()).await?;
        Ok(Self { conversation, actor, shown })
    }
}

struct ConversationActor;

enum Phase {
    Recovering { waiting: Vec<Request> },
    Serving(Box<Serving>),
    Asleep,
}

struct State {
    activation: Activation,
    handle: ConversationHandle,
    phase: Phase,
    /// When a `Wake` is due, if one is.
    wake_at_ms: Option<u64>,
}

impl Actor for ConversationActor {
    type Msg = Message;
    type State = State;
    type Arguments = (Activation, Arc<Shown>);

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        (activation, shown): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let conversation = activation.conversation.clone();
        let handle = ConversationHandle { conversation, actor: myself.clone(), shown };
        let surroundings = activation.surroundings.clone();
        let (stamps, stamp, after_crash) =
            (activation.stamps.clone(), activation.stamp, activation.after_crash);
        let ownership = activation.ownership();
        let conversation = activation.conversation.clone();
        tokio::spawn(async move {
            if after_crash {
                settle(&surroundings.stores, &conversation).await;
            }
            let recovered =
                recover(&surroundings, conversation, &ownership, &stamps, stamp).await.map(Box::new);
            // An activation that ended meanwhile does not need it.
            let _ = myself.cast(Message::Recovered(recovered));
        });
        Ok(State { activation, handle, phase: Phase::Recovering { waiting: Vec::new() }, wake_at_ms: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Request(request) => state.request(request),
            Message::Recovered(Ok(beginning)) => state.begin(*beginning),
            Message::Recovered(Err(failed)) => state.give_up(&myself, &failed),
            Message::Written(outcome) => {
                state.serving(|serving, activation| serving.written(activation, outcome));
            }
            Message::Confirmed(still_owner) => {
                state.serving(|serving, activation| serving.confirmed(activation, still_owner));
            }
            Message::Loaded(targets) => {
                state.serving(|serving, activation| serving.loaded(activation, targets));
            }
            Message::Projected(stored) => {
                state.serving(|serving, activation| serving.projected(activation, stored));
            }
            Message::Hinted(kept) => state.serving(|serving, activation| serving.hinted(activation, kept)),
            Message::Trimmed(start) => state.serving(|serving, _| serving.trimmed(start)),
            Message::Wake => {
                state.wake_at_ms = None;
                state.serving(Serving::wake);
            }
            Message::Watched { users, online } => {
                state.serving(|serving, activation| serving.watched(activation, users, online));
            }
            Message::SessionChanged { user, seat, online, late } => {
                state.serving(|serving, activation| {
                    serving.session_changed(activation, user, seat, (online, late));
                });
            }
            Message::WatchAgain(shards) => {
                state.serving(|serving, activation| serving.watch_again(activation, &shards));
            }
            Message::PeerGone(peer) => state.serving(|serving, _| serving.peer_gone(peer)),
            Message::TellAgain(peer) => {
                state.serving(|serving, activation| serving.tell_again(activation, peer));
            }
            Message::Refresh => {
                let handle = state.handle.clone();
                state.serving(|serving, activation| serving.refresh(activation, &handle));
            }
            Message::MaySleep => state.sleep_if_idle(&myself),
            Message::InjectPanic => panic!("injected for a test"),
        }
        state.arm_wake(&myself);
        Ok(())
    }
}

impl State {
    fn request(&mut self, request: Request) {
        match &mut self.phase {
            Phase::Recovering { waiting } => {
                if waiting.len() < self.activation.surroundings.limits.max_pending {
                    waiting.push(request);
                } else {
                    let error = RequestError::not_done(ErrorCode::BUSY, "the conversation is starting");
                    request.refuse(error.retry_after(200));
                }
            }
            Phase::Serving(serving) => serving.request(&self.activation, request),
            Phase::Asleep => self.activation.shard.forward(self.handle.conversation.clone(), request),
        }
    }

    fn serving(&mut self, act: impl FnOnce(&mut Serving, &Activation)) {
        if let Phase::Serving(serving) = &mut self.phase {
            act(serving, &self.activation);
        }
    }

    fn begin(&mut self, beginning: Beginning) {
        let serving = Serving::begin(&self.activation, &self.handle, beginning);
        let before = std::mem::replace(&mut self.phase, Phase::Serving(Box::new(serving)));
        if let Phase::Recovering { waiting } = before {
            for request in waiting {
                self.request(request);
            }
        }
    }

    fn give_up(&mut self, myself: &ActorRef<Message>, failed: &RecoveryFailed) {
        tracing::error!(conversation = %self.handle.conversation, %failed, "a conversation cannot be recovered");
        let before = std::mem::replace(&mut self.phase, Phase::Asleep);
        self.activation.shard.asleep(&self.handle);
        if let Phase::Recovering { waiting } = before {
            for request in waiting {
                let error = RequestError::not_done(ErrorCode::UNAVAILABLE, "the conversation cannot be read");
                request.refuse(error.retry_after(1_000));
            }
        }
        // Whatever is in the mailbox by now is still forwarded.
        let _ = myself.drain();
    }

    fn sleep_if_idle(&mut self, myself: &ActorRef<Message>) {
        if let Phase::Serving(serving) = &mut self.phase
            && serving.is_idle()
            && !serving.keeps_hint_first(&self.activation)
        {
            serving.end(&self.activation);
            self.phase = Phase::Asleep;
            self.activation.shard.asleep(&self.handle);
            let _ = myself.drain();
        }
    }

    fn arm_wake(&mut self, myself: &ActorRef<Message>) {
        let Phase::Serving(serving) = &mut self.phase else { return };
        let bytes = size_of::<Self>() + size_of::<Serving>() + serving.held_bytes();
        self.handle.shown.bytes.store(bytes, Ordering::Relaxed);
        self.handle.shown.listeners.store(serving.listeners(), Ordering::Relaxed);
        let Some(after) = serving.take_wake() else { return };
        let now_ms = self.activation.surroundings.clock.monotonic_ms();
        let at_ms = now_ms + u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        // One timer at a time: a later need is seen when the earlier one fires.
        if self.wake_at_ms.is_none_or(|armed| at_ms < armed) {
            self.wake_at_ms = Some(at_ms);
            let myself = myself.clone();
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                let _ = myself.cast(Message::Wake);
            });
        }
    }
}
