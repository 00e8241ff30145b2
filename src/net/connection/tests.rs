//! An engine that echoes, and what a connection is small enough for.

use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicUsize};

use convoke_protocol::error_code::RequestError;
use convoke_protocol::frame::Answer;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::*;
use crate::actors::session::egress::EgressLimits;
use crate::net::tcp::TcpSocket;

/// Connections that a test may open.
const MAX_CONNECTIONS: usize = 10_000;

/// What [`EchoEngine`] makes of its connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EchoConfig {
    pub(crate) login_time: Option<Duration>,
    pub(crate) max_frame_bytes: usize,
    pub(crate) limits: EgressLimits,
}

impl Default for EchoConfig {
    fn default() -> Self {
        Self {
            login_time: None,
            max_frame_bytes: 1 << 20,
            limits: EgressLimits { max_bytes: 256 << 10, max_in_flight: 64 },
        }
    }
}

/// Echoes frames. `login` ends the wait for a login, `hold` begins a request that nobody ends, `bye` closes, `panic`
/// panics, `later` waits once before it is echoed.
pub(crate) struct EchoEngine {
    config: EchoConfig,
    begun: std::time::Instant,
    closed: mpsc::Sender<ErrorCode>,
    pub(crate) egresses: Mutex<Vec<Arc<Egress>>>,
    pub(crate) frames: AtomicUsize,
    pub(crate) open: AtomicU32,
}

impl EchoEngine {
    pub(crate) fn new(config: EchoConfig) -> (Arc<Self>, mpsc::Receiver<ErrorCode>) {
        let (closed, reasons) = mpsc::channel(MAX_CONNECTIONS);
        let engine = Self {
            config,
            begun: std::time::Instant::now(),
            closed,
            egresses: Mutex::default(),
            frames: AtomicUsize::new(0),
            open: AtomicU32::new(0),
        };
        (Arc::new(engine), reasons)
    }
}

/// The engine is shared with its handlers through this.
pub(crate) struct Echo(pub(crate) Arc<EchoEngine>);

pub(crate) struct EchoHandler {
    engine: Arc<EchoEngine>,
    egress: Arc<Egress>,
    deadline: Option<Instant>,
}

impl Engine for Echo {
    type Handler = EchoHandler;

    fn accept(&self, _: PeerInfo, framing: Framing, writer: Box<dyn SocketWriter>) -> EchoHandler {
        let config = self.0.config;
        let egress = Arc::new(Egress::new(framing, config.limits, writer, self.now_ms()));
        self.0.egresses.lock().push(Arc::clone(&egress));
        self.0.open.fetch_add(1, Relaxed);
        let deadline = config.login_time.map(|time| Instant::now() + time);
        EchoHandler { engine: Arc::clone(&self.0), egress, deadline }
    }

    fn now_ms(&self) -> u64 {
        self.0.begun.elapsed().as_millis() as u64
    }
}

impl FrameHandler for EchoHandler {
    fn egress(&self) -> &Arc<Egress> {
        &self.egress
    }

    async fn on_frame(&mut self, frame: &[u8]) -> Result<(), ErrorCode> {
        self.engine.frames.fetch_add(1, Relaxed);
        match frame {
            b"login" => self.deadline = None,
            b"hold" => {
                self.egress.begin_request();
            }
            b"panic" => panic!("asked to"),
            b"later" => {
                let large = [1_u8; 4_000];
                tokio::task::yield_now().await;
                std::hint::black_box(&large);
            }
            b"bye" => return Err(ErrorCode::LOGGED_OUT),
            _ => {}
        }
        self.egress.queue_frame(self.egress.framing().wrap(frame));
        Ok(())
    }

    fn max_frame_bytes(&self) -> usize {
        self.engine.config.max_frame_bytes
    }

    fn login_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn on_bad_input(&mut self, code: ErrorCode) {
        self.egress.queue_answer(0, &Answer::from(RequestError::not_done(code, "")));
    }

    fn on_closed(&mut self, reason: ErrorCode) {
        self.engine.open.fetch_sub(1, Relaxed);
        // A test that is over listens no more.
        let _ = self.engine.closed.try_send(reason);
    }
}

fn serve_future(socket: Arc<TcpSocket>, engine: Arc<Echo>, peer: PeerInfo) -> impl Future<Output = ()> {
    serve(socket, engine, peer, Framing::Tcp, Vec::new())
}

/// How large the future is that a function makes, without making one.
fn size_of_made<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn the_task_of_a_connection_is_small() {
    let size = size_of_made(serve_future);
    assert!(size <= 1_024, "the future of a connection has {size} bytes");
}

/// Who is alive is let in between those who end, however many lose their connections in one moment.
#[tokio::test]
async fn a_crowd_that_is_lost_at_once_ends_a_few_at_a_time() {
    const CROWD: usize = 200;
    let (engine, _reasons) = EchoEngine::new(EchoConfig::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut clients = Vec::new();
    for _ in 0..CROWD {
        let (client, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        let (stream, peer) = accepted.unwrap();
        let (socket, echo) = (Arc::new(TcpSocket::new(stream)), Arc::new(Echo(Arc::clone(&engine))));
        tokio::spawn(serve_future(socket, echo, PeerInfo { address: peer, tls: false }));
        clients.push(client.unwrap());
    }
    while engine.open.load(Relaxed) < CROWD as u32 {
        tokio::task::yield_now().await;
    }
    drop(clients);
    let mut open = CROWD as u32;
    while open > 0 {
        tokio::task::yield_now().await;
        let left = engine.open.load(Relaxed);
        assert!(open - left <= 2 * ENDINGS_AT_ONCE as u32, "{} ended in one turn", open - left);
        open = left;
    }
}
