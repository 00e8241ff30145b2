//! What leaves on a connection: one bounded queue per session, written from whoever has something to say.
//!
//! A queue that is empty is written directly by the caller; one that is not is coalesced into one vectored write. What
//! does not fit into the socket waits for the connection's own task, which [`Egress::changed`] wakes.
//!
//! # Bounds
//! - Pushes above [`EgressLimits::max_bytes`] are dropped for their conversation, and one `Lagged` says so when the
//!   queue has drained: the client fetches the rest.
//! - Receipts, signals and the like are dropped above half of the bound ([`Egress::send_event_if_room`]).
//! - Answers are never dropped: while the queue is above the bound, or as many requests as allowed are in flight, the
//!   connection does not read ([`Egress::may_read`]).
//! - More than [`MAX_LAGGED`] lagged conversations at once close the session as `SLOW_CONSUMER`.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::event::Lagged;
use convoke_protocol::frame::{Answer, Event};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{ConversationId, Seq};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The most conversations whose lag a session remembers.
pub const MAX_LAGGED: usize = 1_000;

/// The most slices handed to one vectored write.
const MAX_SLICES: usize = 64;

/// A queue that grew beyond so many frames gives its room back when it is empty.
const KEEP_FRAMES: usize = 16;

/// A socket as the egress sees it: never waits.
pub trait SocketWriter: Send + Sync {
    /// Writes what fits now; `WouldBlock` when nothing does.
    ///
    /// # Errors
    /// As a non-blocking socket.
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Pushes on what an earlier write left in a buffer of its own (TLS); `WouldBlock` while something is left.
    ///
    /// # Errors
    /// As a non-blocking socket.
    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The bounds of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressLimits {
    /// Bytes that wait for the socket.
    pub max_bytes: usize,
    /// Requests without an answer.
    pub max_in_flight: u32,
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Written or queued.
    Taken,
    /// Left out; a `Lagged` will say so.
    Lagged,
    /// The session is over.
    Closed,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
    lagged: HashMap<ConversationId, Seq>,
    /// The socket took less than it was given: the connection's task goes on when it takes more.
    blocked: bool,
    closing: Option<ErrorCode>,
    broken: bool,
    pushes_sent: u64,
    pushes_acked: u64,
    unacked_since_ms: u64,
}

/// The outgoing half of a session.
pub struct Egress {
    framing: Framing,
    limits: EgressLimits,
    writer: Box<dyn SocketWriter>,
    queue: Mutex<Queue>,
    in_flight: AtomicU32,
    /// Set once `closing` is: then the last answer wakes the connection.
    ending: AtomicBool,
    /// Milliseconds of the node's monotonic clock when something was last heard from the client.
    heard_ms: AtomicU64,
    changed: Notify,
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").field("framing", &self.framing).finish_non_exhaustive()
    }
}

impl Egress {
    /// An egress with nothing in it.
    pub fn new(framing: Framing, limits: EgressLimits, writer: Box<dyn SocketWriter>, now_ms: u64) -> Self {
        Self {
            framing,
            limits,
            writer,
            queue: Mutex::default(),
            in_flight: AtomicU32::new(0),
            ending: AtomicBool::new(false),
            heard_ms: AtomicU64::new(now_ms),
            changed: Notify::new(),
        }
    }

    /// When something was last heard from the client, in milliseconds of the node's monotonic clock.
    pub fn heard_at_ms(&self) -> u64 {
        self.heard_ms.load(Ordering::Relaxed)
    }

    /// Bytes of memory it holds: itself and what waits for the socket.
    pub fn held_bytes(&self) -> usize {
        let queue = self.queue.lock();
        size_of::<Self>() + queue.bytes + queue.frames.capacity() * size_of::<Bytes>()
    }

    /// How this connection frames.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Queues an answer without writing it; [`Self::flush`] writes all that gathered.
    pub fn queue_answer(&self, request_id: u64, answer: &Answer) {
        self.queue_frame(self.framing.wrap(&answer.encode(self.framing.codec(), request_id)));
    }

    /// Queues an event that is not a push and writes what fits.
    pub fn send_event(&self, event: &Event) {
        self.queue_frame(self.framing.wrap(&event.encode(self.framing.codec(), 0)));
        self.flush();
    }

    /// Queues an event that the client can do without, and writes what fits. Says whether it was taken: not while more
    /// than half of the bound waits for the socket, or the session is over.
    pub fn send_event_if_room(&self, event: &Event) -> bool {
        {
            let mut queue = self.queue.lock();
            if queue.broken || queue.closing.is_some() || queue.bytes > self.limits.max_bytes / 2 {
                return false;
            }
            let frame = self.framing.wrap(&event.encode(self.framing.codec(), 0));
            queue.bytes += frame.len();
            queue.frames.push_back(frame);
        }
        self.flush();
        true
    }

    /// Queues bytes that are framed already (a WebSocket pong); control frames are few and small.
    pub fn queue_frame(&self, frame: Bytes) {
        let mut queue = self.queue.lock();
        if !queue.broken {
            queue.bytes += frame.len();
            queue.frames.push_back(frame);
        }
    }

    /// Delivers `count` pushes of one conversation, framed in [`Self::framing`], up to `head`; writes at once if nothing
    /// is before them.
    pub fn deliver(
        &self,
        conversation: &ConversationId,
        head: Seq,
        frames: &Bytes,
        count: u64,
        now_ms: u64,
    ) -> Delivery {
        let mut queue = self.queue.lock();
        if queue.broken || queue.closing.is_some() {
            return Delivery::Closed;
        }
        if let Some(lagged_to) = queue.lagged.get_mut(conversation) {
            *lagged_to = head.max(*lagged_to);
            return Delivery::Lagged;
        }
        if queue.bytes + frames.len() > self.limits.max_bytes && queue.bytes > 0 {
            if queue.lagged.len() >= MAX_LAGGED {
                queue.closing = Some(ErrorCode::SLOW_CONSUMER);
                self.changed.notify_one();
                return Delivery::Closed;
            }
            queue.lagged.insert(conversation.clone(), head);
            return Delivery::Lagged;
        }
        if queue.pushes_sent == queue.pushes_acked {
            queue.unacked_since_ms = now_ms;
        }
        queue.pushes_sent += count;
        if queue.frames.is_empty() && !queue.blocked {
            let rest = match self.writer.try_write_vectored(&[IoSlice::new(frames)]) {
                Ok(written) if written == frames.len() => return self.settle(&mut queue),
                Ok(written) => frames.slice(written..),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => frames.clone(),
                Err(_) => return self.broke(&mut queue),
            };
            queue.bytes += rest.len();
            queue.frames.push_back(rest);
            queue.blocked = true;
            self.changed.notify_one();
        } else {
            queue.bytes += frames.len();
            queue.frames.push_back(frames.clone());
            self.write_out(&mut queue);
        }
        Delivery::Taken
    }

    /// After everything was taken by the writer: whether the socket has it too.
    fn settle(&self, queue: &mut Queue) -> Delivery {
        match self.writer.try_flush() {
            Ok(()) => Delivery::Taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                queue.blocked = true;
                self.changed.notify_one();
                Delivery::Taken
            }
            Err(_) => self.broke(queue),
        }
    }

    fn broke(&self, queue: &mut Queue) -> Delivery {
        queue.broken = true;
        queue.frames = VecDeque::new();
        queue.bytes = 0;
        self.changed.notify_one();
        Delivery::Closed
    }

    /// Writes what fits. Anyone may call it.
    pub fn flush(&self) {
        let mut queue = self.queue.lock();
        if !queue.blocked {
            self.write_out(&mut queue);
        }
    }

    /// The socket takes more: the connection's task calls it after it waited for that.
    pub fn resume(&self) {
        let mut queue = self.queue.lock();
        queue.blocked = false;
        match self.writer.try_flush() {
            Ok(()) => self.write_out(&mut queue),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => queue.blocked = true,
            Err(_) => {
                self.broke(&mut queue);
            }
        }
    }

    fn write_out(&self, queue: &mut Queue) {
        if queue.blocked || queue.broken {
            return;
        }
        loop {
            if queue.frames.is_empty() {
                if queue.lagged.is_empty() {
                    break;
                }
                self.queue_lagged(queue);
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = queue.frames.len().min(MAX_SLICES);
            for (slice, frame) in slices.iter_mut().zip(&queue.frames) {
                *slice = IoSlice::new(frame);
            }
            match self.writer.try_write_vectored(&slices[..count]) {
                Ok(written) => Self::advance(queue, written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    queue.blocked = true;
                    self.changed.notify_one();
                    return;
                }
                Err(_) => {
                    self.broke(queue);
                    return;
                }
            }
        }
        if queue.frames.capacity() > KEEP_FRAMES {
            queue.frames = VecDeque::new();
        }
        self.settle(queue);
        if queue.closing.is_some() {
            self.changed.notify_one();
        }
    }

    fn advance(queue: &mut Queue, mut written: usize) {
        queue.bytes -= written;
        while let Some(front) = queue.frames.front_mut() {
            if written < front.len() {
                let _ = front.split_to(written);
                return;
            }
            written -= front.len();
            queue.frames.pop_front();
        }
    }

    fn queue_lagged(&self, queue: &mut Queue) {
        for (conversation, head) in std::mem::take(&mut queue.lagged) {
            let event = Event::Lagged(Lagged { conversation, head, shed: 0 });
            let frame = self.framing.wrap(&event.encode(self.framing.codec(), 0));
            queue.bytes += frame.len();
            queue.frames.push_back(frame);
        }
    }

    /// Notes that a request was read and will be answered; says whether it was the last that may be read for now.
    pub fn begin_request(&self) -> bool {
        self.in_flight.fetch_add(1, Ordering::Relaxed) + 1 >= self.limits.max_in_flight
    }

    /// Notes that a request was answered.
    pub fn end_request(&self) {
        let before = self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if before >= self.limits.max_in_flight || (before == 1 && self.ending.load(Ordering::SeqCst)) {
            self.changed.notify_one();
        }
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether the connection may read another request.
    pub fn may_read(&self) -> bool {
        self.in_flight() < self.limits.max_in_flight && self.queue.lock().bytes <= self.limits.max_bytes
    }

    /// Ends the session with a last event, after what is queued; later pushes are refused.
    pub fn close(&self, reason: ErrorCode, last: Option<&Event>) {
        if let Some(event) = last {
            self.queue_frame(self.framing.wrap(&event.encode(self.framing.codec(), 0)));
        }
        let mut queue = self.queue.lock();
        queue.closing.get_or_insert(reason);
        self.ending.store(true, Ordering::SeqCst);
        self.write_out(&mut queue);
        self.changed.notify_one();
    }

    /// What the connection's task has to do next.
    pub fn state(&self) -> EgressState {
        let queue = self.queue.lock();
        match queue.closing {
            _ if queue.broken => EgressState::Done(queue.closing.unwrap_or(ErrorCode::DISCONNECTED)),
            // Requests under way are still answered.
            Some(reason) if queue.frames.is_empty() && !queue.blocked && self.in_flight() == 0 => {
                EgressState::Done(reason)
            }
            Some(reason) => EgressState::Closing(reason),
            None if queue.blocked => EgressState::Blocked,
            None => EgressState::Open,
        }
    }

    /// Waits until [`Self::state`] or [`Self::may_read`] may have changed. Cancel-safe: a change in between is kept.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes the client's count of received pushes.
    ///
    /// # Errors
    /// The count is above what this connection was sent, or below what it said before.
    pub fn acked(&self, pushes: u64, now_ms: u64) -> Result<(), BadCount> {
        let mut queue = self.queue.lock();
        if pushes > queue.pushes_sent || pushes < queue.pushes_acked {
            return Err(BadCount);
        }
        if pushes > queue.pushes_acked {
            queue.unacked_since_ms = now_ms;
        }
        queue.pushes_acked = pushes;
        Ok(())
    }

    /// For how long pushes have been unacknowledged, in milliseconds; 0 if none are.
    pub fn unacked_for_ms(&self, now_ms: u64) -> u64 {
        let queue = self.queue.lock();
        if queue.pushes_sent == queue.pushes_acked {
            0
        } else {
            now_ms.saturating_sub(queue.unacked_since_ms)
        }
    }

    /// Notes that something was heard from the client.
    pub fn heard(&self, now_ms: u64) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
    }

    /// For how long nothing was heard from the client, in milliseconds.
    pub fn silent_for_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.heard_ms.load(Ordering::Relaxed))
    }

    /// Bytes that wait for the socket.
    pub fn queued_bytes(&self) -> usize {
        self.queue.lock().bytes
    }
}

/// A client's count of pushes is above what it was sent, or below what it said before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadCount;

/// What the connection's task has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressState {
    /// Nothing waits.
    Open,
    /// Wait until the socket takes more, then call [`Egress::resume`].
    Blocked,
    /// As `Blocked`, but not for long: then close.
    Closing(ErrorCode),
    /// Close the connection.
    Done(ErrorCode),
}
