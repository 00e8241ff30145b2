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
mod serving;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{ConversationId, Seq, SessionId};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use self::core::{CoreLimits, Head, SendCommand};
use self::dedup::{DedupWindow, Loading};
use self::log::recovery::{OwnRows, ROWS_PER_READ, Recovery, RecoveryError, Step};
use self::serving::Serving;
use crate::actors::directory::Directory;
use crate::actors::hub::Hub;
use crate::actors::reply::Reply;
use crate::actors::shard::ShardHandle;
use crate::clock::Clock;
use crate::storage::{Append, AppendError, Epoch, LogRow, ReadError, ReadLimit, Stores, WriteStamp};

/// What a conversation is asked for.
#[derive(Debug)]
pub enum Request {
    /// Number, keep and deliver this.
    Send(Box<SendCommand>, Reply),
    /// Make the session a listener, then tell the head.
    Attend(SessionId, oneshot::Sender<Result<Head, RequestError>>),
}

impl Request {
    /// Answers with an error.
    pub fn refuse(self, error: RequestError) {
        match self {
            Self::Send(_, reply) => reply.send(&error.into()),
            // Nobody waits any more: fine.
            Self::Attend(_, reply) => drop(reply.send(Err(error))),
        }
    }
}

enum Message {
    Request(Request),
    Recovered(Result<(Head, DedupWindow), RecoveryFailed>),
    Written(Result<(), AppendError>),
    Wake,
    Watched { users: usize, online: Vec<SessionId> },
    SessionChanged { session: SessionId, online: bool },
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
    /// Who listens.
    pub hub: Hub,
    /// The clocks.
    pub clock: Clock,
    /// The bounds of each conversation.
    pub limits: CoreLimits,
    /// Counters.
    pub metrics: Arc<crate::telemetry::metrics::Metrics>,
}

/// What one activation is made from.
pub struct Activation {
    /// Which conversation.
    pub conversation: ConversationId,
    /// The epoch in which its shard is owned.
    pub epoch: Epoch,
    /// The stamp of this activation's writes.
    pub stamp: WriteStamp,
    /// Whether an earlier activation may have left a write under way.
    pub after_crash: bool,
    /// What it shares with the others.
    pub surroundings: Surroundings,
    /// Its shard, for when it sleeps.
    pub shard: ShardHandle,
}

/// Reaches one activation of a conversation. Cheap to clone.
#[derive(Clone)]
pub struct ConversationHandle {
    conversation: ConversationId,
    actor: ActorRef<Message>,
    used_ms: Arc<AtomicU64>,
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
        self.used_ms.store(now_ms, Ordering::Relaxed);
        match self.actor.cast(Message::Request(request)) {
            Err(ractor::MessagingErr::SendErr(Message::Request(request))) => Err(request),
            _ => Ok(()),
        }
    }

    /// When it was last asked for something, in milliseconds of the node's monotonic clock.
    pub fn used_ms(&self) -> u64 {
        self.used_ms.load(Ordering::Relaxed)
    }

    /// The directory's answer to a watch: `users` of those asked for are watched, and these sessions are online.
    ///
    /// # Errors
    /// The activation is over.
    pub fn watched(&self, users: usize, online: Vec<SessionId>) -> Result<(), Gone> {
        self.cast(Message::Watched { users, online })
    }

    /// A watched user's session came or went.
    ///
    /// # Errors
    /// The activation is over.
    pub fn session_changed(&self, session: SessionId, online: bool) -> Result<(), Gone> {
        self.cast(Message::SessionChanged { session, online })
    }

    /// The directory or the hub lost what it knew: tell it again.
    pub fn refresh(&self) {
        let _ = self.cast(Message::Refresh);
    }

    /// It was not used for long: it may go to sleep if nothing waits.
    pub fn may_sleep(&self) {
        let _ = self.cast(Message::MaySleep);
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
        let used_ms = Arc::new(AtomicU64::new(activation.surroundings.clock.monotonic_ms()));
        let args = (activation, used_ms.clone());
        let (actor, _) = Actor::spawn_linked(None, ConversationActor, args, supervisor.clone()).await?;
        Ok(Self { conversation, actor, used_ms })
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
    type Arguments = (Activation, Arc<AtomicU64>);

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        (activation, used_ms): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let conversation = activation.conversation.clone();
        let handle = ConversationHandle { conversation, actor: myself.clone(), used_ms };
        let surroundings = activation.surroundings.clone();
        let (epoch, stamp, after_crash) = (activation.epoch, activation.stamp, activation.after_crash);
        let conversation = activation.conversation.clone();
        tokio::spawn(async move {
            if after_crash {
                settle(&surroundings.stores, &conversation).await;
            }
            let recovered = recover(&surroundings, conversation, epoch, stamp).await;
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
            Message::Recovered(Ok((head, dedup))) => state.begin(head, dedup),
            Message::Recovered(Err(failed)) => state.give_up(&myself, &failed),
            Message::Written(outcome) => {
                state.serving(|serving, activation| serving.written(activation, outcome));
            }
            Message::Wake => {
                state.wake_at_ms = None;
                state.serving(Serving::wake);
            }
            Message::Watched { users, online } => {
                state.serving(|serving, activation| serving.watched(activation, users, online));
            }
            Message::SessionChanged { session, online } => {
                state.serving(|serving, activation| serving.session_changed(activation, session, online));
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

    fn begin(&mut self, head: Head, dedup: DedupWindow) {
        let serving = Serving::begin(&self.activation, &self.handle, head, dedup);
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
        {
            serving.end(&self.activation);
            self.phase = Phase::Asleep;
            self.activation.shard.asleep(&self.handle);
            let _ = myself.drain();
        }
    }

    fn arm_wake(&mut self, myself: &ActorRef<Message>) {
        let Phase::Serving(serving) = &mut self.phase else { return };
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

/// Why an activation could not begin.
#[derive(Debug, thiserror::Error)]
enum RecoveryFailed {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Log(#[from] RecoveryError),
    #[error("the store stopped while rows were written again")]
    Stopped,
}

/// A pause between two attempts to write adopted rows again.
const REWRITE_PAUSE: Duration = Duration::from_millis(200);

async fn recover(
    surroundings: &Surroundings,
    conversation: ConversationId,
    epoch: Epoch,
    stamp: WriteStamp,
) -> Result<(Head, DedupWindow), RecoveryFailed> {
    let Surroundings { stores, clock, .. } = surroundings;
    let hint = stores.log.hint(&conversation).await?.map(|hint| (hint.base, hint.id));
    // An earlier activation of this run may have written with the same epoch and a lower stamp.
    let (mut recovery, mut step) = Recovery::new(epoch, OwnRows::Possible, hint, ROWS_PER_READ);
    let mut window = Loading::new();
    let limit = ReadLimit::rows(ROWS_PER_READ);
    loop {
        step = match step {
            Step::Read(from) => {
                recovery.rows(stores.log.read(&conversation, from, Seq(u64::MAX), limit).await?)?
            }
            Step::Rewrite(rows) => {
                rewrite(stores, &conversation, rows, stamp).await?;
                recovery.durable()
            }
            // One permanent owner: nobody else can have fenced it.
            Step::Confirm => recovery.confirmed(true)?,
            Step::Overwrite(overwrites) => {
                if let Some(overwrite) = overwrites.into_iter().next() {
                    match overwrite.change {}
                }
                recovery.durable()
            }
            Step::Load(from, to) => {
                let rows = stores.log.read(&conversation, from, to, limit).await?;
                window.take(&rows, clock.now().monotonic);
                recovery.loaded(&rows)
            }
            Step::Done => {
                let head = recovery.finish().map_or(Head::EMPTY, |row| Head::of(&row));
                return Ok((head, window.finish(clock.now().monotonic)));
            }
        };
    }
}

/// Waits until no write of an earlier activation is under way: what it wrote late would else stand, unseen by the new
/// one, above the head.
async fn settle(stores: &Stores, conversation: &ConversationId) {
    let (done, ended) = oneshot::channel();
    let barrier = Append {
        conversation: conversation.clone(),
        rows: Vec::new(),
        stamp: WriteStamp(0),
        listed_for: Vec::new(),
    };
    stores.log.append(barrier, Box::new(move |result| drop(done.send(result))));
    // Whatever it says, nothing that was called before it is under way any more.
    let _ = ended.await;
}

async fn rewrite(
    stores: &Stores,
    conversation: &ConversationId,
    rows: Arc<[LogRow]>,
    stamp: WriteStamp,
) -> Result<(), RecoveryFailed> {
    loop {
        let (done, outcome) = oneshot::channel();
        let append =
            Append { conversation: conversation.clone(), rows: rows.to_vec(), stamp, listed_for: Vec::new() };
        stores.log.append(append, Box::new(move |result| drop(done.send(result))));
        match outcome.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => tracing::warn!(%conversation, %error, "adopted rows are not written again yet"),
            Err(_) => return Err(RecoveryFailed::Stopped),
        }
        tokio::time::sleep(REWRITE_PAUSE).await;
    }
}
