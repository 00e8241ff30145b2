//! What a conversation decides, pure: numbers, dedup, batches, and when something may be told.
//!
//! # Lifecycle of a batch
//! ```text
//!   queue ──start──▶ Writing ──durable──▶ Confirming ──confirmed──▶ committed: answered, published
//!                      ▲  │ unknown, overloaded                        │ its entries change something
//!                      └──┘ the same rows, the same stamp, later       ▼
//!                      └──not stored, never unknown──▶ refused      Projecting ──durable──▶ Confirming ──▶ answered
//! ```
//! Commands that change messages wait until what they name is loaded (`core/acts.rs`); all commands are decided when their batch
//! begins, one after the other, each seeing what the former ones of the batch will have done.
//!
//! # Invariants
//! - One batch is in flight; its rows never change (rule: a write of unknown outcome is repeated as it is).
//! - A message is used (answered, published, counted in the head) only after its batch is confirmed, in seq order.
//! - A (sender, client id) is in at most one committed row while the window lasts.
//! - The answers of a batch leave in seq order: from its first entry that changes something on, when the changes are
//!   confirmed too.

mod acts;
mod outcome;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, GroupId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::Retry;

pub use self::acts::{Act, ActCommand, LoadTarget};
use self::acts::{Made, Waiting};
use self::outcome::Projecting;
use super::change::{ChangePolicy, Targets};
use super::dedup::{DedupWindow, Known, Place};
use super::group::{Group, GroupLimits};
use super::log::commit::Commit;
use super::log::hint::HintLine;
use crate::auth::Role;
use crate::clock::Now;
use crate::storage::row::NO_MESSAGE;
use crate::storage::{Entry, Epoch, Hint, LogRow, LogStart, Projection, WriteStamp};
use serde::{Deserialize, Serialize};

/// The bounds of one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreLimits {
    /// Sends that wait for a batch.
    pub max_pending: usize,
    /// Bytes of bodies that wait for a batch.
    pub max_pending_bytes: usize,
    /// Messages in one batch.
    pub max_batch: usize,
    /// Bytes of bodies in one batch (one message is always taken).
    pub max_batch_bytes: usize,
    /// How long a sender waits for the store before it is told `Unavailable`.
    pub answer_within: Duration,
    /// The pause before a write is repeated.
    pub retry_pause: Duration,
    /// What may be done to messages.
    pub changes: ChangePolicy,
    /// The bounds of groups.
    pub groups: GroupLimits,
}

impl Default for CoreLimits {
    fn default() -> Self {
        Self {
            max_pending: 10_000,
            max_pending_bytes: 16 << 20,
            max_batch: 1_024,
            max_batch_bytes: 1 << 20,
            answer_within: Duration::from_secs(5),
            retry_pause: Duration::from_millis(50),
            changes: ChangePolicy::default(),
            groups: GroupLimits::default(),
        }
    }
}

/// Something to be numbered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendCommand {
    /// Who sends it; in a direct conversation one of the two (checked before).
    pub sender: UserId,
    /// For what the token is of whoever brings it: a service may speak for members who are silenced, and as the system.
    pub role: Role,
    /// From which device.
    pub device: DeviceId,
    /// What makes it safe to repeat.
    pub retry: Retry,
    /// What kind of entry it is.
    pub kind: MessageKind,
    /// Its lane.
    pub priority: Priority,
    /// What it says.
    pub content: Content,
    /// The message it answers.
    pub reply_to: Option<Seq>,
    /// What the sender had seen.
    pub previous: Option<Seq>,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<R> {
    /// Write these rows with this stamp; report by [`ConversationCore::written`].
    Append {
        /// The rows.
        rows: Arc<[LogRow]>,
        /// Their write timestamp.
        stamp: WriteStamp,
    },
    /// Call [`ConversationCore::tick`] after so long.
    Wake(Duration),
    /// Confirm that this owner was not fenced, by a read begun now; report by [`ConversationCore::confirmed`].
    Confirm,
    /// Tell who asked.
    Answer {
        /// Whom.
        to: R,
        /// The place of its entry (none if there was nothing to change), or why it has none.
        result: Result<Option<Place>, RequestError>,
    },
    /// Read what these name; report by [`ConversationCore::loaded`].
    Load(Vec<LoadTarget>),
    /// Write what committed entries change; report by [`ConversationCore::projected`].
    Project(Arc<Projection>),
    /// Keep this hint; report by [`ConversationCore::hinted`].
    Hint(Hint, WriteStamp),
    /// Tell the listeners; the rows are committed and follow on what was published before.
    Publish(Arc<[LogRow]>),
}

/// The highest committed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number; 0 in an empty conversation.
    pub seq: Seq,
    /// Its id; nil in an empty conversation.
    pub id: MessageId,
    /// Its time.
    pub time: Timestamp,
    /// How many messages count as unread for others.
    pub ordinal: u64,
}

impl Head {
    /// Before the first message.
    pub const EMPTY: Self = Self { seq: Seq::ZERO, id: NO_MESSAGE, time: Timestamp(0), ordinal: 0 };

    /// The head that a row is.
    pub fn of(row: &LogRow) -> Self {
        Self { seq: row.seq, id: row.id, time: row.entry.time, ordinal: row.entry.ordinal }
    }
}

/// What is to be numbered.
#[derive(Debug, Clone)]
enum Command {
    Send(SendCommand),
    Act(ActCommand),
}

impl Command {
    fn sender(&self) -> &UserId {
        match self {
            Self::Send(send) => &send.sender,
            Self::Act(act) => &act.asking.user,
        }
    }

    fn client_id(&self) -> ClientId {
        match self {
            Self::Send(send) => send.retry.client_id,
            Self::Act(act) => act.retry.client_id,
        }
    }

    fn body_bytes(&self) -> usize {
        match self {
            Self::Send(send) => send.content.body.len(),
            Self::Act(act) => act.body_bytes(),
        }
    }
}

#[derive(Debug, Clone)]
struct Pending<R> {
    command: Command,
    waiting: Option<R>,
    also_waiting: Vec<R>,
    since: Duration,
}

impl<R> Pending<R> {
    fn take_waiting(&mut self) -> impl Iterator<Item = R> + use<R> {
        self.waiting.take().into_iter().chain(std::mem::take(&mut self.also_waiting))
    }

    fn is(&self, sender: &UserId, client_id: ClientId) -> bool {
        self.command.client_id() == client_id && self.command.sender() == sender
    }
}

#[derive(Debug, Clone)]
struct Batch<R> {
    rows: Arc<[LogRow]>,
    pending: Vec<Pending<R>>,
    /// Until when the write waits before it is repeated; `None` while it is under way or done.
    pausing: Option<Duration>,
    /// Whether a write of these rows ever ended without a certain answer.
    perhaps_stored: bool,
}

/// Where ids of messages, and stamps of writes, come from.
pub trait IdSource {
    /// A new id for a message of this time, which the id holds.
    fn message_id(&mut self, time: Timestamp) -> MessageId;

    /// A stamp that no write of the shard had.
    fn write_stamp(&mut self) -> WriteStamp;
}

/// What a conversation begins with, as its recovery found it.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// The highest committed message.
    pub head: Head,
    /// What retries are recognised by.
    pub dedup: DedupWindow,
    /// Where the log begins.
    pub start: LogStart,
    /// The group, if it is one's conversation and the group exists.
    pub group: Option<Group>,
    /// Up to where a former owner has told the listeners too: what is above it may not have been pushed.
    pub told: Seq,
}

impl Beginning {
    /// An empty conversation.
    pub fn empty() -> Self {
        let (head, dedup, start) = (Head::EMPTY, DedupWindow::new(), LogStart::default());
        Self { head, dedup, start, group: None, told: Seq::ZERO }
    }
}

/// The state of one active conversation. `R` names whoever waits for an answer.
#[derive(Debug, Clone)]
pub struct ConversationCore<R> {
    conversation: ConversationId,
    limits: CoreLimits,
    epoch: Epoch,
    stamp: WriteStamp,
    head: Head,
    dedup: DedupWindow,
    queue: VecDeque<Pending<R>>,
    queue_bytes: usize,
    in_flight: Option<Batch<R>>,
    /// Which group it is the conversation of.
    group_id: Option<GroupId>,
    /// The group, as committed entries say.
    group: Option<Group>,
    start: LogStart,
    /// Commands that wait until what they name is loaded.
    waiting: Waiting<R>,
    /// What the commands in the queue are decided against.
    targets: Targets,
    projecting: Option<Projecting<R>>,
    hints: HintLine<MessageId>,
    /// What of the log is a fact. Once it is fenced nothing more is written, answered or published.
    commit: Commit<LogRow>,
}

impl<R> ConversationCore<R> {
    /// A conversation as its recovery found it.
    pub fn new(
        conversation: ConversationId,
        limits: CoreLimits,
        epoch: Epoch,
        stamp: WriteStamp,
        beginning: Beginning,
    ) -> Self {
        let Beginning { head, dedup, start, group, .. } = beginning;
        let group_id = conversation.group_id();
        Self {
            conversation,
            limits,
            epoch,
            stamp,
            head,
            dedup,
            queue: VecDeque::new(),
            queue_bytes: 0,
            in_flight: None,
            group_id,
            group,
            start,
            waiting: Waiting::default(),
            targets: Targets::default(),
            projecting: None,
            hints: HintLine::new(),
            commit: Commit::new(head.seq, head.id),
        }
    }

    /// The conversation's id.
    pub fn conversation(&self) -> &ConversationId {
        &self.conversation
    }

    /// The highest committed message.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Bytes on the heap, about: bodies that wait, what is remembered for deduplication, members.
    pub fn held_bytes(&self) -> usize {
        self.dedup.held_bytes()
            + self.queue_bytes
            + self.queue.capacity() * size_of::<Pending<R>>()
            + self.group.as_ref().map_or(0, Group::held_bytes)
    }

    /// The group, as committed entries say.
    pub fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Where the log begins.
    pub fn start(&self) -> LogStart {
        self.start
    }

    /// Whether nothing waits, so that the conversation may go to sleep.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.in_flight.is_none()
            && self.projecting.is_none()
            && self.waiting.is_empty()
    }

    /// Sends that wait for a batch.
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// Takes a send, or answers it at once.
    pub fn send(
        &mut self,
        command: SendCommand,
        to: R,
        now: Now,
        ids: &mut impl IdSource,
        effects: &mut Vec<Effect<R>>,
    ) {
        let Some(to) = self.recognise(&command.sender, command.retry, to, now, effects) else { return };
        if let Err(error) = self.admit(&command, now.wall) {
            return effects.push(Effect::Answer { to, result: Err(error) });
        }
        self.dedup.begin(command.sender.clone(), command.retry.client_id);
        self.queue_bytes += command.content.body.len();
        self.queue.push_back(Pending {
            command: Command::Send(command),
            waiting: Some(to),
            also_waiting: Vec::new(),
            since: now.monotonic,
        });
        self.start_batch(now, ids, effects);
    }

    /// Answers what was asked before; gives back who asks if it is new.
    fn recognise(
        &mut self,
        sender: &UserId,
        retry: Retry,
        to: R,
        now: Now,
        effects: &mut Vec<Effect<R>>,
    ) -> Option<R> {
        let Retry { client_id, attempt, age_ms } = retry;
        let age = Duration::from_millis(age_ms);
        let result = match self.dedup.look_up(sender, client_id, attempt, age, now.monotonic) {
            Known::New => return Some(to),
            Known::Committed(place) if self.is_projecting(place.seq) => {
                self.join_projecting(place, to);
                return None;
            }
            Known::Committed(place) => Ok(Some(place)),
            Known::Pending if self.commit.is_fenced() => {
                Err(unknown("this node lost the conversation while it wrote"))
            }
            Known::Pending => {
                self.join(sender, client_id, to);
                return None;
            }
            Known::TooOld => Err(RequestError::unknown(
                ErrorCode::STALE_RETRY,
                "the first attempt is older than the dedup window; look in the history whether it arrived",
            )),
        };
        effects.push(Effect::Answer { to, result });
        None
    }

    fn join(&mut self, sender: &UserId, client_id: ClientId, to: R) {
        let in_flight = self.in_flight.iter_mut().flat_map(|batch| batch.pending.iter_mut());
        let waiting = self.waiting.iter_mut();
        let found =
            in_flight.chain(&mut self.queue).chain(waiting).find(|pending| pending.is(sender, client_id));
        // The window says Pending only of what is in one of the three.
        if let Some(pending) = found {
            pending.also_waiting.push(to);
        }
    }

    fn admit(&self, command: &SendCommand, now: Timestamp) -> Result<(), RequestError> {
        self.may_send(command, self.group.as_ref(), now)?;
        let seen = command.previous.max(command.reply_to).unwrap_or(Seq::ZERO);
        if seen > self.head.seq {
            return Err(RequestError::not_done(
                ErrorCode::INVALID_REQUEST,
                format!("previous and reply_to name message {seen}, but the head is {}", self.head.seq),
            ));
        }
        self.has_room(command.content.body.len())
    }

    fn has_room(&self, body: usize) -> Result<(), RequestError> {
        if self.commit.is_fenced() {
            return Err(unavailable("this node lost the conversation"));
        }
        let waiting = self.queue.len() + self.waiting.len();
        let bytes = self.queue_bytes + body;
        if waiting >= self.limits.max_pending || bytes > self.limits.max_pending_bytes {
            return Err(busy());
        }
        Ok(())
    }

    fn start_batch(&mut self, now: Now, ids: &mut impl IdSource, effects: &mut Vec<Effect<R>>) {
        if !self.commit.is_idle() || self.queue.is_empty() {
            return;
        }
        self.dedup.expire(now.monotonic);
        let mut batch = Made::new(self.head);
        while batch.rows.len() < self.limits.max_batch {
            let Some(next) = self.queue.front() else { break };
            let body = next.command.body_bytes();
            if !batch.rows.is_empty() && batch.bytes + body > self.limits.max_batch_bytes {
                break;
            }
            let Some(next) = self.queue.pop_front() else { break };
            batch.bytes += body;
            self.queue_bytes -= body;
            self.make(next, &mut batch, now.wall, ids, effects);
        }
        if batch.rows.is_empty() {
            return;
        }
        let rows: Arc<[LogRow]> = batch.rows.into();
        effects.push(Effect::Append { rows: rows.clone(), stamp: self.stamp });
        effects.push(Effect::Wake(self.limits.answer_within));
        self.commit.begin(rows.clone());
        self.in_flight = Some(Batch { rows, pending: batch.pending, pausing: None, perhaps_stored: false });
    }

    fn row(&self, head: Head, entry: Entry, ids: &mut impl IdSource) -> LogRow {
        LogRow {
            seq: head.seq.next(),
            id: ids.message_id(entry.time),
            prev: head.id,
            epoch: self.epoch,
            base: self.commit.base().0,
            window: self.dedup.lowest().unwrap_or(self.head.seq.next()),
            entry,
        }
    }
}

fn busy() -> RequestError {
    RequestError::not_done(ErrorCode::BUSY, "the conversation has too many sends waiting").retry_after(200)
}

fn unavailable(reason: &str) -> RequestError {
    RequestError::not_done(ErrorCode::UNAVAILABLE, format!("the message was not stored: {reason}"))
        .retry_after(1_000)
}

fn unknown(reason: &str) -> RequestError {
    RequestError::unknown(ErrorCode::UNAVAILABLE, format!("the message may have been stored: {reason}"))
        .retry_after(1_000)
}
