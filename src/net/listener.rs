//! Listening sockets, who is let in, and the order of stopping.
//!
//! # Bounds
//! Connections per node and per address ([`ConnectionSlots`]); TLS handshakes under way and the time of any handshake
//! ([`NetConfig`]); refused connections that are told why ([`MAX_REFUSALS`], more are closed without a word).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::frame::{Answer, Codec};
use convoke_protocol::framing::Framing;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::actors::session::egress::SocketWriter;
use crate::net::connection::{Engine, PeerInfo, Socket, linger, serve};
use crate::net::listener::slots::{ConnectionLimits, ConnectionSlot, ConnectionSlots};
use crate::net::listener::tasks::{TaskCount, TaskGuard};
use crate::net::tcp::TcpSocket;
use crate::net::tls::TlsAcceptor;
use crate::net::websocket::upgrade::{WebSocketConfig, text_answer, upgrade};

pub mod slots;
pub mod tasks;
#[cfg(test)]
mod tests;

/// Connections the kernel keeps ready until they are accepted.
pub const DEFAULT_BACKLOG: i32 = 4_096;

/// Refused connections that are being told why at one time.
pub const MAX_REFUSALS: usize = 64;

/// How long accepting rests when the process has no file descriptor, or no memory, for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the clients of a listener speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Length-prefixed frames.
    Tcp,
    /// WebSocket at `/ws`.
    WebSocket,
}

impl Transport {
    /// The name in errors, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::WebSocket => "websocket",
        }
    }
}

/// What the configuration says of TLS.
#[derive(Debug, Clone, Default)]
pub enum TlsMode {
    /// Nothing: without TLS, on a loopback address only.
    #[default]
    Unsaid,
    /// `tls = "off"`: without TLS on any address.
    Off,
    /// With TLS.
    On(Arc<TlsAcceptor>),
}

/// One listening socket for clients.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// Where to listen; port 0 takes any.
    pub address: SocketAddr,
    /// What is spoken there.
    pub transport: Transport,
    /// Whether under TLS.
    pub tls: TlsMode,
    /// Connections the kernel keeps ready until they are accepted.
    pub backlog: i32,
    /// The kernel's send buffer per connection; `None` leaves it to the kernel, which lets it grow to megabytes for a
    /// client that does not read.
    pub send_buffer_bytes: Option<usize>,
}

impl ListenerConfig {
    /// A listener without TLS and with the kernel's buffers.
    pub fn new(transport: Transport, address: SocketAddr) -> Self {
        Self { address, transport, tls: TlsMode::Unsaid, backlog: DEFAULT_BACKLOG, send_buffer_bytes: None }
    }
}

/// Why a listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Others could read what is said there.
    #[error(
        "{listener}: {address} is not a loopback address: configure TLS for it, or write tls = \"off\" if something \
         before it provides that"
    )]
    TlsRequired {
        /// Which listener.
        listener: &'static str,
        /// Its address.
        address: SocketAddr,
    },
    /// The admin listener would be open to others.
    #[error(
        "admin: {0} is not a loopback address: write public = true if it is to be reached from elsewhere"
    )]
    AdminNotPublic(SocketAddr),
    /// The system refuses.
    #[error("{listener}: cannot listen on {address}: {source}")]
    Bind {
        /// Which listener.
        listener: &'static str,
        /// Its address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A bound socket that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    config: ListenerConfig,
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds; clients that connect from now on wait until it is started. Needs a runtime.
    ///
    /// # Errors
    /// The address is not to be had, or not without TLS.
    pub fn bind(config: ListenerConfig) -> Result<Self, ListenError> {
        let listener = config.transport.name();
        let address = config.address;
        if matches!(config.tls, TlsMode::Unsaid) && !address.ip().is_loopback() {
            return Err(ListenError::TlsRequired { listener, address });
        }
        let failed = |source| ListenError::Bind { listener, address, source };
        let socket = bind(address, config.backlog, config.send_buffer_bytes).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { config, socket, address })
    }

    /// Where it listens, with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

/// A listening socket; its connections inherit the size of the send buffer.
pub(crate) fn bind(
    address: SocketAddr,
    backlog: i32,
    send_buffer_bytes: Option<usize>,
) -> io::Result<TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if let Some(bytes) = send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    TcpListener::from_std(socket.into())
}

/// What all listeners for clients share.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// How many connections.
    pub limits: ConnectionLimits,
    /// How long a TLS handshake or a WebSocket's upgrade may take.
    pub handshake_time: Duration,
    /// TLS handshakes under way at one time; more wait, within their time.
    pub max_tls_handshakes: usize,
    /// What the WebSocket listeners answer.
    pub websocket: WebSocketConfig,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            limits: ConnectionLimits::default(),
            handshake_time: Duration::from_secs(10),
            max_tls_handshakes: 1_024,
            websocket: WebSocketConfig::default(),
        }
    }
}

/// What happened at the door since the start.
#[derive(Debug, Default)]
pub struct NetCounters {
    accepted: AtomicU64,
    refused_node: AtomicU64,
    refused_address: AtomicU64,
    accept_errors: AtomicU64,
    accept_pauses: AtomicU64,
    failed_handshakes: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetSnapshot {
    /// Connections let in.
    pub accepted: u64,
    /// Refused as `TOO_MANY_CONNECTIONS`.
    pub refused_node: u64,
    /// Refused as `TOO_MANY_FROM_ADDRESS`.
    pub refused_address: u64,
    /// Failed calls of accept.
    pub accept_errors: u64,
    /// Of those, the ones after which accepting rested: no file descriptors, no memory.
    pub accept_pauses: u64,
    /// TLS handshakes and upgrades that came to nothing.
    pub failed_handshakes: u64,
}

impl NetCounters {
    /// All of them now.
    pub fn snapshot(&self) -> NetSnapshot {
        NetSnapshot {
            accepted: self.accepted.load(Ordering::Relaxed),
            refused_node: self.refused_node.load(Ordering::Relaxed),
            refused_address: self.refused_address.load(Ordering::Relaxed),
            accept_errors: self.accept_errors.load(Ordering::Relaxed),
            accept_pauses: self.accept_pauses.load(Ordering::Relaxed),
            failed_handshakes: self.failed_handshakes.load(Ordering::Relaxed),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The listeners of a node and the connections that came through them. Cheap to clone.
pub struct Net<E> {
    shared: Arc<Shared<E>>,
}

impl<E> Clone for Net<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<E> {
    engine: Arc<E>,
    slots: Arc<ConnectionSlots>,
    tls_handshakes: Semaphore,
    refusals: Semaphore,
    handshake_time: Duration,
    websocket: WebSocketConfig,
    counters: Arc<NetCounters>,
    tasks: Arc<TaskCount>,
    stopping: watch::Sender<bool>,
}

impl<E: Engine> Net<E> {
    /// Nothing listens yet.
    pub fn new(engine: Arc<E>, config: NetConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                engine,
                slots: ConnectionSlots::new(config.limits),
                tls_handshakes: Semaphore::new(config.max_tls_handshakes),
                refusals: Semaphore::new(MAX_REFUSALS),
                handshake_time: config.handshake_time,
                websocket: config.websocket,
                counters: Arc::default(),
                tasks: Arc::default(),
                stopping: watch::Sender::new(false),
            }),
        }
    }

    /// Begins to accept.
    pub fn start(&self, listener: Listener) {
        let shared = Arc::clone(&self.shared);
        let guard = shared.tasks.enter();
        let Listener { config, socket, address } = listener;
        tokio::spawn(async move {
            tracing::info!(listener = config.transport.name(), %address, "listening");
            accept_all(socket, &config, &shared).await;
            drop(guard);
        });
    }

    /// Closes the listening sockets; connections stay.
    pub fn stop_accepting(&self) {
        self.shared.stopping.send_replace(true);
    }

    /// Waits until every connection and every listener is over. Cancel-safe.
    pub async fn closed(&self) {
        self.shared.tasks.none_left().await;
    }

    /// Connections there are, and their limits, which may be changed.
    pub fn slots(&self) -> &Arc<ConnectionSlots> {
        &self.shared.slots
    }

    /// What happened at the door.
    pub fn counters(&self) -> &Arc<NetCounters> {
        &self.shared.counters
    }
}

/// Where connections come from: a listening socket, or a test.
trait Accept: Send {
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send {
        Self::accept(self)
    }
}

async fn accept_all<A: Accept, E: Engine>(accept: A, config: &ListenerConfig, shared: &Arc<Shared<E>>) {
    let mut stopping = shared.stopping.subscribe();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return,
            accepted = accept.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => admit(stream, address, config, shared),
            Err(error) if concerns_one_connection(&error) => count(&shared.counters.accept_errors),
            Err(error) => {
                count(&shared.counters.accept_errors);
                count(&shared.counters.accept_pauses);
                tracing::warn!(listener = config.transport.name(), %error, "cannot accept, trying again");
                // Nothing tells when there are file descriptors again.
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

/// Whether the next call of accept may well succeed at once.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, PermissionDenied, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
            | TimedOut
    )
}

/// Gives a connection its task, or refuses it.
fn admit<E: Engine>(
    stream: TcpStream,
    address: SocketAddr,
    config: &ListenerConfig,
    shared: &Arc<Shared<E>>,
) {
    // Frames are gathered before they are written: nothing is to wait for more.
    let _ = SockRef::from(&stream).set_tcp_nodelay(true);
    let slot = match shared.slots.acquire(address.ip()) {
        Ok(slot) => slot,
        Err(code) => return refuse(stream, code, config, shared),
    };
    count(&shared.counters.accepted);
    let held = (slot, shared.tasks.enter());
    let peer = PeerInfo { address, tls: matches!(config.tls, TlsMode::On(_)) };
    match (&config.tls, config.transport) {
        (TlsMode::On(acceptor), transport) => {
            tokio::spawn(secured(stream, Arc::clone(acceptor), transport, peer, Arc::clone(shared), held));
        }
        (_, Transport::Tcp) => {
            tokio::spawn(plain(stream, Arc::clone(&shared.engine), peer, held));
        }
        (_, Transport::WebSocket) => {
            let socket = Arc::new(TcpSocket::new(stream));
            tokio::spawn(upgraded(socket, peer, Arc::clone(shared), held));
        }
    }
}

/// What a connection holds for as long as it lasts.
type Held = (ConnectionSlot, TaskGuard);

// The three kinds of tasks. Each is as large as its largest phase, so the handshakes are boxed.

async fn plain<E: Engine>(stream: TcpStream, engine: Arc<E>, peer: PeerInfo, held: Held) {
    serve(Arc::new(TcpSocket::new(stream)), engine, peer, Framing::Tcp, Vec::new()).await;
    drop(held);
}

async fn upgraded<S: Socket, E: Engine>(socket: Arc<S>, peer: PeerInfo, shared: Arc<Shared<E>>, held: Held) {
    let upgraded =
        Box::pin(tokio::time::timeout(shared.handshake_time, upgrade(&*socket, &shared.websocket)));
    match upgraded.await {
        Ok(Ok((framing, first))) => {
            let engine = Arc::clone(&shared.engine);
            drop(shared);
            serve(socket, engine, peer, framing, first).await;
        }
        failed => {
            count(&shared.counters.failed_handshakes);
            match failed {
                Ok(Err(error)) => tracing::debug!(peer = %peer.address, %error, "no upgrade"),
                _ => tracing::debug!(peer = %peer.address, "no upgrade in time"),
            }
            Box::pin(linger(&*socket)).await;
            socket.shutdown();
        }
    }
    drop(held);
}

async fn secured<E: Engine>(
    stream: TcpStream,
    acceptor: Arc<TlsAcceptor>,
    transport: Transport,
    peer: PeerInfo,
    shared: Arc<Shared<E>>,
    held: Held,
) {
    let handshake = Box::pin(tokio::time::timeout(shared.handshake_time, async {
        // Who says nothing takes nobody's permit.
        stream.readable().await?;
        let _permit = shared.tls_handshakes.acquire().await.map_err(io::Error::other)?;
        acceptor.accept(stream).await
    }));
    let socket = match handshake.await {
        Ok(Ok(socket)) => Arc::new(socket),
        failed => {
            count(&shared.counters.failed_handshakes);
            match failed {
                Ok(Err(error)) => tracing::debug!(peer = %peer.address, %error, "no TLS"),
                _ => tracing::debug!(peer = %peer.address, "no TLS in time"),
            }
            return;
        }
    };
    drop(acceptor);
    match transport {
        Transport::Tcp => {
            let engine = Arc::clone(&shared.engine);
            drop(shared);
            serve(socket, engine, peer, Framing::Tcp, Vec::new()).await;
            drop(held);
        }
        Transport::WebSocket => upgraded(socket, peer, shared, held).await,
    }
}

/// Tells a connection why it is not let in, as far as that costs little.
fn refuse<E: Engine>(stream: TcpStream, code: ErrorCode, config: &ListenerConfig, shared: &Arc<Shared<E>>) {
    count(match code {
        ErrorCode::TOO_MANY_FROM_ADDRESS => &shared.counters.refused_address,
        _ => &shared.counters.refused_node,
    });
    if matches!(config.tls, TlsMode::On(_)) || shared.refusals.available_permits() == 0 {
        // A handshake for the sake of a refusal would be the costlier end of the deal.
        return;
    }
    let socket = TcpSocket::new(stream);
    let words = refusal(code, config.transport);
    // The send buffer of a new connection takes it whole.
    if socket.try_write_vectored(&[io::IoSlice::new(&words)]).is_err() {
        return;
    }
    let shared = Arc::clone(shared);
    let guard = shared.tasks.enter();
    tokio::spawn(async move {
        if let Ok(_permit) = shared.refusals.try_acquire() {
            linger(&socket).await;
        }
        socket.shutdown();
        drop(guard);
    });
}

fn refusal(code: ErrorCode, transport: Transport) -> Vec<u8> {
    const RETRY_AFTER_MS: u32 = 5_000;
    match transport {
        Transport::Tcp => {
            let error = RequestError::not_done(code, "this connection is one too many");
            let answer = Answer::from(error.retry_after(RETRY_AFTER_MS));
            Framing::Tcp.wrap(&answer.encode(Codec::Bincode, 0)).to_vec()
        }
        Transport::WebSocket => text_answer(503, code.name()),
    }
}
