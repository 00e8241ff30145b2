//! One task per connection: reads frames, hands them on, and writes what the egress could not write at once.
//!
//! # Memory
//! The task is small and rare phases are boxed, so that an idle connection costs little: it holds no read buffer, no
//! timer once it is live, and nothing of a frame unless part of one has arrived.
//!
//! # The life of a connection
//! ```text
//! BeforeLogin ──login──▶ Live ──egress closes──▶ Closing ──flushed, or 2 s──▶ over
//!      └──────── deadline: LOGIN_OVERDUE ───────────┘         (then what the peer still sends is discarded, 1 s)
//! ```
//! The end of the stream and a broken socket lead from anywhere to the end, with `DISCONNECTED`.
//!
//! # Fairness
//! After [`MAX_FRAMES_PER_TURN`] frames or reads the task lets others run. Of a crowd that is lost in one moment
//! a few end at a time.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::framing::Framing;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::actors::session::egress::{Egress, EgressState, SocketWriter};
use crate::net::buffer::ReadBuffer;
use crate::net::decode::{DecodeError, Decoded, Decoder};
use crate::net::websocket::{self, close};

#[cfg(test)]
pub(crate) mod tests;

/// Frames, or reads, after which a connection lets others run.
pub const MAX_FRAMES_PER_TURN: u32 = 64;

/// How long a connection that is closing may take to send what is queued.
pub const CLOSING_TIME: Duration = Duration::from_secs(2);

/// How long, and how many bytes, a closed connection goes on discarding what its peer still sends: closing a socket
/// that has unread bytes would take back what it was sent last, the reason among it.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// Connections that end at one time. The others of a crowd that is lost in one moment wait for their turn, so that nobody who
/// is alive waits behind them all: some thousands end in a second. Not fewer: whoever comes back should not find the old session
/// still there.
const ENDINGS_AT_ONCE: usize = 8;
/// How long the turn of a lost connection lasts while others wait for theirs; what it takes of the processor is a small part of that.
const ENDING_TURN: Duration = Duration::from_millis(1);
static ENDINGS: Semaphore = Semaphore::const_new(ENDINGS_AT_ONCE);

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its address and port.
    pub address: SocketAddr,
    /// Whether TLS protects the connection.
    pub tls: bool,
}

/// What a connection hands its frames to. One per connection; lives in the connection's task.
pub trait FrameHandler: Send {
    /// The outgoing half of the session.
    fn egress(&self) -> &Arc<Egress>;

    /// Takes one frame's payload.
    ///
    /// What it queues is flushed by the connection, at the latest when it has to wait. While it waits the connection
    /// neither reads nor resumes writing, and it keeps the read buffer: it must not wait for anything slow.
    ///
    /// # Errors
    /// The reason to close the connection with; what is to be said about it has been queued.
    fn on_frame(&mut self, frame: &[u8]) -> impl Future<Output = Result<(), ErrorCode>> + Send;

    /// The largest frame allowed now.
    fn max_frame_bytes(&self) -> usize;

    /// When the connection is closed unless it has logged in; `None` once it has. Asked at first and after each batch
    /// of frames, until it is `None`.
    fn login_deadline(&self) -> Option<Instant>;

    /// The connection will be closed for what the client sent, or did not send in time: queues what is to be said.
    fn on_bad_input(&mut self, code: ErrorCode);

    /// The connection is over. Called once, whatever happens. The socket is shut down then, and its file descriptor is
    /// free when the last share in the egress is dropped.
    fn on_closed(&mut self, reason: ErrorCode);
}

/// Makes a handler for an accepted connection.
pub trait Engine: Send + Sync + 'static {
    /// What it makes.
    type Handler: FrameHandler + 'static;

    /// A handler whose egress writes to `writer`.
    fn accept(&self, peer: PeerInfo, framing: Framing, writer: Box<dyn SocketWriter>) -> Self::Handler;

    /// Milliseconds of the node's monotonic clock.
    fn now_ms(&self) -> u64;
}

/// A non-blocking socket, with or without TLS. All of it may be called from any thread; waiting is for one task only.
pub(crate) trait Socket: SocketWriter + 'static {
    /// Reads what is there; 0 at the end of the stream.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Ready when [`Self::try_read`] may have something, after it had nothing.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when a write may succeed that would have blocked.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Tells the peer that nothing more will come.
    fn finish_writing(&self);

    /// Ends both directions.
    fn shutdown(&self);
}

/// A share in a socket, for its egress.
struct SharedWriter<S>(Arc<S>);

impl<S: Socket> SocketWriter for SharedWriter<S> {
    fn try_write_vectored(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn try_flush(&self) -> io::Result<()> {
        self.0.try_flush()
    }
}

/// Runs a connection to its end. `first` is what was read already (behind an HTTP upgrade).
pub(crate) async fn serve<S: Socket, E: Engine>(
    socket: Arc<S>,
    engine: Arc<E>,
    peer: PeerInfo,
    framing: Framing,
    first: Vec<u8>,
) {
    let mut connection = Connection::open(socket, engine, peer, framing, first);
    let reason = connection.run().await;
    let turn = ENDINGS.acquire().await;
    connection.over(reason);
    let socket = Arc::clone(&connection.socket);
    drop(connection);
    // What it told others to do is in their queues: done before the next may add to them.
    tokio::task::yield_now().await;
    if reason == ErrorCode::DISCONNECTED && ENDINGS.available_permits() == 0 {
        tokio::time::sleep(ENDING_TURN).await;
    }
    drop(turn);
    if reason != ErrorCode::DISCONNECTED {
        Box::pin(linger(&*socket)).await;
    }
    socket.shutdown();
}

/// Ends the outgoing half, then discards what comes in until the peer ends its half too; bounded.
pub(crate) async fn linger<S: Socket>(socket: &S) {
    socket.finish_writing();
    let discard = async {
        let mut left = LINGER_BYTES;
        while left > 0 {
            let mut buffer = ReadBuffer::borrow();
            match socket.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => left = left.saturating_sub(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    drop(buffer);
                    if poll_fn(|cx| socket.poll_read_ready(cx)).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    };
    // A peer that goes on is cut off: that is all the time says.
    let _ = tokio::time::timeout(LINGER_TIME, discard).await;
}

enum Phase {
    BeforeLogin(Pin<Box<Sleep>>),
    Live,
    Closing(Pin<Box<Sleep>>),
}

impl Phase {
    fn timer(&mut self) -> Option<Pin<&mut Sleep>> {
        match self {
            Self::BeforeLogin(timer) | Self::Closing(timer) => Some(timer.as_mut()),
            Self::Live => None,
        }
    }
}

struct Connection<S, E: Engine> {
    socket: Arc<S>,
    engine: Arc<E>,
    egress: Arc<Egress>,
    handler: E::Handler,
    decoder: Decoder,
    /// What was read while the egress let nothing more in; decoded before the socket is read again.
    unread: Vec<u8>,
    unread_from: usize,
    phase: Phase,
    /// What this task did since it last let others run.
    done_this_turn: u32,
    /// The code of the close frame, if it was decided by what the client sent.
    close_code: Option<u16>,
    goodbye_said: bool,
    over: bool,
}

/// What came of a try to read.
enum Fetched {
    Input(Input),
    Nothing,
    End,
}

enum Input {
    /// What was read before and is not decoded yet.
    Kept(Vec<u8>),
    /// A buffer, and how much of it was read.
    Fresh(ReadBuffer, usize),
}

enum Woken {
    Changed,
    Readable,
    Writable,
    Timer,
    Broken,
}

impl<S: Socket, E: Engine> Connection<S, E> {
    fn open(socket: Arc<S>, engine: Arc<E>, peer: PeerInfo, framing: Framing, first: Vec<u8>) -> Self {
        let handler = engine.accept(peer, framing, Box::new(SharedWriter(Arc::clone(&socket))));
        let phase = match handler.login_deadline() {
            Some(deadline) => Phase::BeforeLogin(Box::pin(sleep_until(deadline))),
            None => Phase::Live,
        };
        Self {
            socket,
            engine,
            egress: Arc::clone(handler.egress()),
            handler,
            decoder: Decoder::new(framing),
            unread: first,
            unread_from: 0,
            phase,
            done_this_turn: 0,
            close_code: None,
            goodbye_said: false,
            over: false,
        }
    }

    async fn run(&mut self) -> ErrorCode {
        loop {
            let write = match self.egress.state() {
                EgressState::Done(reason) => {
                    if self.say_goodbye(reason) {
                        continue;
                    }
                    return reason;
                }
                EgressState::Closing(reason) => {
                    self.say_goodbye(reason);
                    if !matches!(self.phase, Phase::Closing(_)) {
                        self.phase = Phase::Closing(Box::pin(sleep_until(Instant::now() + CLOSING_TIME)));
                    }
                    true
                }
                EgressState::Blocked => true,
                EgressState::Open => false,
            };
            let read = !matches!(self.phase, Phase::Closing(_)) && self.egress.may_read();
            if read {
                match self.fetch() {
                    Fetched::Input(input) => {
                        // Boxed, for a handler's future may be large and an idle connection is not to carry its room.
                        Box::pin(self.handle(input)).await;
                        self.egress.flush();
                        self.note_login();
                        self.take_turns().await;
                        continue;
                    }
                    Fetched::Nothing => self.done_this_turn = 0,
                    Fetched::End => return ErrorCode::DISCONNECTED,
                }
            }
            match self.wait(read, write).await {
                Woken::Changed | Woken::Readable => {}
                Woken::Writable => self.egress.resume(),
                Woken::Timer => match (&self.phase, self.egress.state()) {
                    (Phase::Closing(_), EgressState::Closing(reason)) => return reason,
                    _ => self.note_login(),
                },
                Woken::Broken => return ErrorCode::DISCONNECTED,
            }
        }
    }

    /// Reads once, unless something that was read before is not decoded yet.
    fn fetch(&mut self) -> Fetched {
        if !self.unread.is_empty() {
            return Fetched::Input(Input::Kept(std::mem::take(&mut self.unread)));
        }
        let mut buffer = ReadBuffer::borrow();
        match self.socket.try_read(&mut buffer) {
            Ok(0) => Fetched::End,
            Ok(read) => {
                self.egress.heard(self.engine.now_ms());
                self.done_this_turn += 1;
                Fetched::Input(Input::Fresh(buffer, read))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Fetched::Nothing,
            Err(_) => Fetched::End,
        }
    }

    /// Handles the frames in the input and keeps what may not be let in now.
    async fn handle(&mut self, input: Input) {
        match input {
            Input::Kept(mut unread) => {
                self.unread_from += self.consume(&mut unread[self.unread_from..]).await;
                if self.unread_from < unread.len() {
                    self.unread = unread;
                } else {
                    self.unread_from = 0;
                }
            }
            Input::Fresh(mut buffer, read) => {
                let used = self.consume(&mut buffer[..read]).await;
                if used < read {
                    self.unread = buffer[used..read].to_vec();
                }
            }
        }
    }

    /// Handles frames until the input is used up, or nothing more may be let in; returns how much was used.
    async fn consume(&mut self, input: &mut [u8]) -> usize {
        let mut at = 0;
        while at < input.len() && self.egress.may_read() {
            let max = self.handler.max_frame_bytes();
            match self.decoder.next(&mut input[at..], max) {
                Ok((used, decoded)) => {
                    at += used;
                    match decoded {
                        Decoded::Frame(frame) => {
                            let handled = flushing(&self.egress, self.handler.on_frame(frame)).await;
                            if let Err(reason) = handled {
                                self.egress.close(reason, None);
                                return input.len();
                            }
                        }
                        Decoded::Ping(payload) => self.egress.queue_frame(websocket::pong(payload)),
                        Decoded::Close(code) => {
                            self.close_code = Some(code.unwrap_or(close::NORMAL));
                            self.egress.close(ErrorCode::DISCONNECTED, None);
                            return input.len();
                        }
                        Decoded::Nothing => {}
                    }
                }
                Err(error) => {
                    self.refuse_input(error);
                    return input.len();
                }
            }
            self.done_this_turn += 1;
            self.take_turns().await;
        }
        self.decoder.release();
        at
    }

    fn refuse_input(&mut self, error: DecodeError) {
        tracing::debug!(%error, "bad input");
        self.close_code = Some(error.close_code());
        self.bad_input(error.code());
    }

    fn bad_input(&mut self, code: ErrorCode) {
        self.handler.on_bad_input(code);
        self.egress.close(code, None);
    }

    /// Lets others run if this connection has had its share.
    async fn take_turns(&mut self) {
        if self.done_this_turn >= MAX_FRAMES_PER_TURN {
            self.done_this_turn = 0;
            self.egress.flush();
            tokio::task::yield_now().await;
            // One that always has something to read never comes to wait for its timer.
            self.note_login();
        }
    }

    /// Puts the timer of the login away once it is done, and closes the connection when it is overdue.
    fn note_login(&mut self) {
        let Phase::BeforeLogin(timer) = &self.phase else { return };
        if self.handler.login_deadline().is_none() {
            self.phase = Phase::Live;
        } else if Instant::now() >= timer.deadline() {
            self.phase = Phase::Live;
            self.bad_input(ErrorCode::LOGIN_OVERDUE);
        }
    }

    /// Queues the close frame of a WebSocket; whether there was one to queue.
    fn say_goodbye(&mut self, reason: ErrorCode) -> bool {
        if std::mem::replace(&mut self.goodbye_said, true) || matches!(self.decoder, Decoder::Tcp(_)) {
            return false;
        }
        let code = self.close_code.unwrap_or(close::code_of(reason));
        self.egress.queue_frame(websocket::close_frame(code, reason.name()));
        self.egress.flush();
        true
    }

    /// Waits for the first of: a change in the egress, room to write, something to read, the phase's timer.
    async fn wait(&mut self, read: bool, write: bool) -> Woken {
        let Self { socket, egress, phase, .. } = self;
        let mut changed = pin!(egress.changed());
        poll_fn(|cx| {
            if changed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Woken::Changed);
            }
            if write && let Poll::Ready(ready) = socket.poll_write_ready(cx) {
                return Poll::Ready(if ready.is_ok() { Woken::Writable } else { Woken::Broken });
            }
            if read && let Poll::Ready(ready) = socket.poll_read_ready(cx) {
                return Poll::Ready(if ready.is_ok() { Woken::Readable } else { Woken::Broken });
            }
            if let Some(timer) = phase.timer()
                && timer.poll(cx).is_ready()
            {
                return Poll::Ready(Woken::Timer);
            }
            Poll::Pending
        })
        .await
    }

    fn over(&mut self, reason: ErrorCode) {
        if !std::mem::replace(&mut self.over, true) {
            self.handler.on_closed(reason);
        }
    }
}

impl<S, E: Engine> Drop for Connection<S, E> {
    fn drop(&mut self) {
        // Only a panic, or the end of the runtime, comes here before `over`.
        if !self.over {
            self.handler.on_closed(ErrorCode::INTERNAL);
        }
    }
}

/// Runs a handler; if it has to wait, what it queued so far is not kept waiting with it.
async fn flushing<T>(egress: &Egress, handler: impl Future<Output = T>) -> T {
    let mut handler = pin!(handler);
    let mut first = true;
    poll_fn(|cx| {
        let polled = handler.as_mut().poll(cx);
        if polled.is_pending() && std::mem::take(&mut first) {
            egress.flush();
        }
        polled
    })
    .await
}
