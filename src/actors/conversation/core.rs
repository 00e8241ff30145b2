//! What a conversation decides, pure: numbers, dedup, batches, and when something may be told.
//!
//! # Lifecycle of a batch
//! ```text
//!   queue ──start──▶ Writing ──durable──▶ Confirming ──confirmed──▶ committed: answered, published
//!                      ▲  │ unknown, overloaded
//!                      └──┘ the same rows with the same stamp, after a pause
//!                      └──not stored, and never unknown──▶ refused (not done); its numbers are given again
//! ```
//!
//! # Invariants
//! - One batch is in flight; its rows never change (rule: a write of unknown outcome is repeated as it is).
//! - A message is used (answered, published, counted in the head) only after its batch is confirmed, in seq order.
//! - A (sender, client id) is in at most one committed row while the window lasts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::Retry;

use super::dedup::{DedupWindow, Known, Place};
use super::log::commit::{Commit, Confirmed};
use crate::clock::Now;
use crate::storage::row::NO_MESSAGE;
use crate::storage::{AppendError, Entry, Epoch, LogRow, WriteStamp};

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
        }
    }
}

/// Something to be numbered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendCommand {
    /// Who sends it; may speak here (checked before).
    pub sender: UserId,
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
    /// Tell a sender.
    Answer {
        /// Whom.
        to: R,
        /// The place of its message, or why it has none.
        result: Result<Place, RequestError>,
    },
    /// Tell the listeners; the rows are committed and follow on what was published before.
    Publish(Arc<[LogRow]>),
}

/// The highest committed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

#[derive(Debug, Clone)]
struct Pending<R> {
    command: SendCommand,
    waiting: Option<R>,
    also_waiting: Vec<R>,
    since: Duration,
}

impl<R> Pending<R> {
    fn take_waiting(&mut self) -> impl Iterator<Item = R> + use<R> {
        self.waiting.take().into_iter().chain(std::mem::take(&mut self.also_waiting))
    }

    fn is(&self, sender: &UserId, client_id: ClientId) -> bool {
        self.command.retry.client_id == client_id && self.command.sender == *sender
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

/// Where ids of messages come from.
pub trait IdSource {
    /// A new id for a message of this time.
    fn message_id(&mut self, time: Timestamp) -> MessageId;
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
        head: Head,
        dedup: DedupWindow,
    ) -> Self {
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

    /// Whether nothing waits, so that the conversation may go to sleep.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_none()
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
        let Retry { client_id, attempt, age_ms } = command.retry;
        let age = Duration::from_millis(age_ms);
        match self.dedup.look_up(&command.sender, client_id, attempt, age, now.monotonic) {
            Known::Committed(place) => return effects.push(Effect::Answer { to, result: Ok(place) }),
            Known::Pending if self.commit.is_fenced() => {
                let result = Err(unknown("this node lost the conversation while it wrote"));
                return effects.push(Effect::Answer { to, result });
            }
            Known::Pending => return self.join(&command.sender, client_id, to),
            Known::TooOld => {
                let error = RequestError::unknown(
                    ErrorCode::STALE_RETRY,
                    "the first attempt is older than the dedup window; look in the history whether it arrived",
                );
                return effects.push(Effect::Answer { to, result: Err(error) });
            }
            Known::New => {}
        }
        if let Err(error) = self.admit(&command) {
            return effects.push(Effect::Answer { to, result: Err(error) });
        }
        self.dedup.begin(command.sender.clone(), client_id);
        self.queue_bytes += command.content.body.len();
        self.queue.push_back(Pending {
            command,
            waiting: Some(to),
            also_waiting: Vec::new(),
            since: now.monotonic,
        });
        self.start_batch(now, ids, effects);
    }

    fn join(&mut self, sender: &UserId, client_id: ClientId, to: R) {
        let in_flight = self.in_flight.iter_mut().flat_map(|batch| batch.pending.iter_mut());
        let found = in_flight.chain(&mut self.queue).find(|pending| pending.is(sender, client_id));
        // The window says Pending only of what is in one of the two.
        if let Some(pending) = found {
            pending.also_waiting.push(to);
        }
    }

    fn admit(&self, command: &SendCommand) -> Result<(), RequestError> {
        if self.commit.is_fenced() {
            return Err(unavailable("this node lost the conversation"));
        }
        let seen = command.previous.max(command.reply_to).unwrap_or(Seq::ZERO);
        if seen > self.head.seq {
            return Err(RequestError::not_done(
                ErrorCode::INVALID_REQUEST,
                format!("previous and reply_to name message {seen}, but the head is {}", self.head.seq),
            ));
        }
        let bytes = self.queue_bytes + command.content.body.len();
        if self.queue.len() >= self.limits.max_pending || bytes > self.limits.max_pending_bytes {
            return Err(busy());
        }
        Ok(())
    }

    fn start_batch(&mut self, now: Now, ids: &mut impl IdSource, effects: &mut Vec<Effect<R>>) {
        if !self.commit.is_idle() || self.queue.is_empty() {
            return;
        }
        self.dedup.expire(now.monotonic);
        let mut head = self.head;
        let (mut rows, mut pending, mut bytes) = (Vec::new(), Vec::new(), 0);
        while rows.len() < self.limits.max_batch {
            let Some(next) = self.queue.front() else { break };
            let body = next.command.content.body.len();
            if !rows.is_empty() && bytes + body > self.limits.max_batch_bytes {
                break;
            }
            bytes += body;
            let Some(next) = self.queue.pop_front() else { break };
            let row = self.number(&next.command, head, now.wall, ids);
            head = Head::of(&row);
            rows.push(row);
            pending.push(next);
        }
        self.queue_bytes -= bytes;
        let rows: Arc<[LogRow]> = rows.into();
        effects.push(Effect::Append { rows: rows.clone(), stamp: self.stamp });
        effects.push(Effect::Wake(self.limits.answer_within));
        self.commit.begin(rows.clone());
        self.in_flight = Some(Batch { rows, pending, pausing: None, perhaps_stored: false });
    }

    fn number(&self, command: &SendCommand, head: Head, wall: Timestamp, ids: &mut impl IdSource) -> LogRow {
        let seq = head.seq.next();
        let time = wall.max(head.time);
        let counts = u64::from(command.kind == MessageKind::USER);
        LogRow {
            seq,
            id: ids.message_id(time),
            prev: head.id,
            epoch: self.epoch,
            base: self.commit.base().0,
            window: self.dedup.lowest().unwrap_or(self.head.seq.next()),
            entry: Entry {
                sender: command.sender.clone(),
                device: command.device.clone(),
                client_id: command.retry.client_id,
                time,
                kind: command.kind,
                flags: 0,
                priority: command.priority,
                content: command.content.clone(),
                reply_to: command.reply_to,
                previous: command.previous,
                ordinal: head.ordinal + counts,
                edited_at: None,
                recalled_at: None,
                deleted_at: None,
                last_edit: None,
                change: None,
            },
        }
    }

    /// Takes the outcome of the append in flight.
    pub fn written(
        &mut self,
        outcome: Result<(), AppendError>,
        now: Now,
        ids: &mut impl IdSource,
        effects: &mut Vec<Effect<R>>,
    ) {
        let Some(batch) = &mut self.in_flight else { return };
        match outcome {
            Ok(()) => {
                batch.pausing = None;
                if self.commit.durable() {
                    effects.push(Effect::Confirm);
                }
            }
            Err(AppendError::NotStored(reason)) if !batch.perhaps_stored => {
                self.refuse_in_flight(&unavailable(&reason), effects);
                self.start_batch(now, ids, effects);
            }
            Err(error) => {
                batch.perhaps_stored |= matches!(error, AppendError::Unknown(_));
                batch.pausing = Some(now.monotonic + self.limits.retry_pause);
                effects.push(Effect::Wake(self.limits.retry_pause));
            }
        }
    }

    /// Takes the outcome of the confirmation in flight: `false` means that this owner is fenced, for good.
    pub fn confirmed(
        &mut self,
        still_owner: bool,
        now: Now,
        ids: &mut impl IdSource,
        effects: &mut Vec<Effect<R>>,
    ) {
        match self.commit.confirmed(still_owner) {
            Confirmed::Fenced => return self.fence(effects),
            // No kind of entry changes another row yet: nothing is to be overwritten.
            Confirmed::Nothing | Confirmed::Overwritten => return,
            Confirmed::Committed { .. } => {}
        }
        let Some(mut batch) = self.in_flight.take() else { return };
        for (row, pending) in batch.rows.iter().zip(&mut batch.pending) {
            let place = Place { seq: row.seq, id: row.id, time: row.entry.time };
            self.dedup.commit(row.entry.sender.clone(), row.entry.client_id, place, now.monotonic);
            effects.extend(pending.take_waiting().map(|to| Effect::Answer { to, result: Ok(place) }));
            self.head = Head::of(row);
        }
        effects.push(Effect::Publish(batch.rows));
        self.start_batch(now, ids, effects);
    }

    /// Repeats what paused and answers who has waited too long. May be called at any time.
    pub fn tick(&mut self, now: Now, ids: &mut impl IdSource, effects: &mut Vec<Effect<R>>) {
        self.dedup.expire(now.monotonic);
        let limits = self.limits;
        let Self { in_flight, queue, .. } = self;
        let overdue = |since: Duration| now.monotonic.saturating_sub(since) >= limits.answer_within;
        if let Some(batch) = in_flight {
            if batch.pausing.is_some_and(|until| until <= now.monotonic) {
                batch.pausing = None;
                effects.push(Effect::Append { rows: batch.rows.clone(), stamp: self.stamp });
            }
            // A pause in which the write certainly is not stored may end the batch; otherwise it goes on by itself.
            let ends = batch.pausing.is_some() && !batch.perhaps_stored;
            for pending in batch.pending.iter_mut().filter(|pending| overdue(pending.since)) {
                for to in pending.take_waiting() {
                    let error = if ends { busy() } else { unknown("the store does not answer") };
                    effects.push(Effect::Answer { to, result: Err(error) });
                }
            }
            if ends && batch.pending.iter().all(|pending| overdue(pending.since)) {
                self.refuse_in_flight(&busy(), effects);
                return self.start_batch(now, ids, effects);
            }
        }
        while queue.front().is_some_and(|pending| overdue(pending.since)) {
            let Some(mut pending) = queue.pop_front() else { break };
            self.queue_bytes -= pending.command.content.body.len();
            self.dedup.abandon(&pending.command.sender, pending.command.retry.client_id);
            let error = unavailable("the store does not answer");
            effects
                .extend(pending.take_waiting().map(|to| Effect::Answer { to, result: Err(error.clone()) }));
        }
        if !self.is_idle() {
            effects.push(Effect::Wake(limits.answer_within.min(Duration::from_secs(1))));
        }
    }

    fn refuse_in_flight(&mut self, error: &RequestError, effects: &mut Vec<Effect<R>>) {
        let Some(batch) = self.in_flight.take() else { return };
        self.commit.not_stored();
        for mut pending in batch.pending {
            self.dedup.abandon(&pending.command.sender, pending.command.retry.client_id);
            effects
                .extend(pending.take_waiting().map(|to| Effect::Answer { to, result: Err(error.clone()) }));
        }
    }

    fn fence(&mut self, effects: &mut Vec<Effect<R>>) {
        for mut pending in self.in_flight.take().into_iter().flat_map(|batch| batch.pending) {
            let error = unknown("this node lost the conversation while it wrote");
            effects
                .extend(pending.take_waiting().map(|to| Effect::Answer { to, result: Err(error.clone()) }));
        }
        for mut pending in std::mem::take(&mut self.queue) {
            let error = unavailable("this node lost the conversation");
            effects
                .extend(pending.take_waiting().map(|to| Effect::Answer { to, result: Err(error.clone()) }));
        }
        self.queue_bytes = 0;
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
