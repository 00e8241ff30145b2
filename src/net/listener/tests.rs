//! Real sockets on loopback, an engine that echoes.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use bytes::Bytes;
use convoke_protocol::event::Lagged;
use convoke_protocol::frame::{Event, Incoming};
use convoke_protocol::id::{ConversationId, Seq};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::actors::session::egress::{Delivery, EgressLimits};
use crate::net::connection::tests::{Echo, EchoConfig, EchoEngine};
use crate::net::tls::TlsFiles;

mod websocket;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Node {
    pub(super) net: Net<Echo>,
    pub(super) engine: Arc<EchoEngine>,
    pub(super) closed: mpsc::Receiver<ErrorCode>,
    pub(super) address: SocketAddr,
}

fn loopback(transport: Transport) -> ListenerConfig {
    ListenerConfig::new(transport, ([127, 0, 0, 1], 0).into())
}

pub(super) fn node_with(listener: ListenerConfig, echo: EchoConfig, config: NetConfig) -> Node {
    let (engine, closed) = EchoEngine::new(echo);
    let net = Net::new(Arc::new(Echo(Arc::clone(&engine))), config);
    let listener = Listener::bind(listener).expect("a port");
    let address = listener.local_addr();
    net.start(listener);
    Node { net, engine, closed, address }
}

pub(super) fn node(transport: Transport) -> Node {
    node_with(loopback(transport), EchoConfig::default(), NetConfig::default())
}

impl Node {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the node listens")
    }

    pub(super) async fn reason(&mut self) -> ErrorCode {
        timeout(PATIENCE, self.closed.recv()).await.expect("a connection closes").expect("the engine lives")
    }

    /// The egress of the nth connection that was accepted.
    async fn egress(&self, n: usize) -> Arc<crate::actors::session::egress::Egress> {
        eventually(|| self.engine.egresses.lock().get(n).cloned()).await
    }
}

/// Asks again until there is an answer.
pub(super) async fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "waited in vain");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn conversation() -> ConversationId {
    "g:one".parse().expect("a conversation")
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) {
    stream.write_all(&Framing::Tcp.wrap(frame)).await.expect("the connection stands");
}

async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let read = async {
        let length = stream.read_u32().await.ok()?;
        let mut frame = vec![0; length as usize];
        stream.read_exact(&mut frame).await.ok()?;
        Some(frame)
    };
    timeout(PATIENCE, read).await.expect("the node answers or closes")
}

/// The code of an error answer with request id 0.
pub(super) fn error_code(codec: Codec, frame: &[u8]) -> ErrorCode {
    convoke_protocol::codec::with_frame(codec, frame, |raw| {
        assert_eq!((raw.head.request_id, raw.head.type_number), (0, convoke_protocol::frame::ERROR_TYPE));
        convoke_protocol::codec::decode_body::<RequestError>(codec, raw.body)
    })
    .expect("an error answer")
    .code
}

pub(super) fn tls() -> (TlsMode, Arc<rustls::ClientConfig>, tempfile::TempDir) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let directory = tempfile::tempdir().expect("a directory");
    let files =
        TlsFiles { certificate: directory.path().join("chain.pem"), key: directory.path().join("key.pem") };
    std::fs::write(&files.certificate, key.cert.pem()).expect("written");
    std::fs::write(&files.key, key.signing_key.serialize_pem()).expect("written");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(key.cert.der().clone()).expect("a root");
    let client =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
    let acceptor = TlsAcceptor::load(files).expect("it loads");
    (TlsMode::On(Arc::new(acceptor)), Arc::new(client), directory)
}

async fn tls_stream(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.expect("the node listens");
    let name = "localhost".try_into().expect("a name");
    tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("a handshake")
}

#[test]
fn a_task_is_small_on_every_way_in() {
    fn size_of_made<A, F>(_: &impl Fn(A) -> F) -> usize {
        size_of::<F>()
    }
    let plain = size_of_made(&|(stream, engine, peer, held)| plain::<Echo>(stream, engine, peer, held));
    let upgraded =
        size_of_made(&|(socket, peer, shared, held)| upgraded::<TcpSocket, Echo>(socket, peer, shared, held));
    let secured = size_of_made(&|(stream, acceptor, transport, peer, shared, held)| {
        secured::<Echo>(stream, acceptor, transport, peer, shared, held)
    });
    assert!(plain <= 1_024 && upgraded <= 1_280 && secured <= 1_536, "{plain} {upgraded} {secured}");
}

#[tokio::test]
async fn frames_come_back_however_they_are_cut() {
    let mut node = node(Transport::Tcp);
    let mut stream = node.connect().await;
    let frames: Vec<Vec<u8>> = [0, 1, 100, 20_000, 1 << 20, 3].map(|len| vec![len as u8; len]).to_vec();
    let all: Vec<u8> = frames.iter().flat_map(|frame| Framing::Tcp.wrap(frame)).collect();
    let (mut reading, mut writing) = stream.split();
    let write = async {
        writing.write_all(&all).await.expect("written");
        for byte in &*Framing::Tcp.wrap(b"byte by byte") {
            writing.write_all(&[*byte]).await.expect("written");
        }
        for _ in 0..1_000 {
            writing.write_all(&Framing::Tcp.wrap(b"later")).await.expect("written");
        }
    };
    let read = async {
        for frame in &frames {
            assert_eq!(receive(&mut reading).await.as_ref(), Some(frame));
        }
        assert_eq!(receive(&mut reading).await.as_deref(), Some(&b"byte by byte"[..]));
        for _ in 0..1_000 {
            assert_eq!(receive(&mut reading).await.as_deref(), Some(&b"later"[..]));
        }
    };
    tokio::join!(write, read);
    send(&mut stream, b"bye").await;
    assert_eq!(receive(&mut stream).await, None);
    assert_eq!(node.reason().await, ErrorCode::LOGGED_OUT);
    drop(node.connect().await);
    assert_eq!(node.reason().await, ErrorCode::DISCONNECTED);
}

#[tokio::test]
async fn frames_come_back_under_tls_also_to_one_who_reads_late() {
    let (mode, client, _directory) = tls();
    let config = ListenerConfig { tls: mode, send_buffer_bytes: Some(16 << 10), ..loopback(Transport::Tcp) };
    let mut node = node_with(config, EchoConfig::default(), NetConfig::default());
    let mut stream = tls_stream(node.address, Arc::clone(&client)).await;
    for len in [0, 1, 100, 20_000, 1 << 20] {
        let frame = vec![len as u8; len];
        send(&mut stream, &frame).await;
        assert_eq!(receive(&mut stream).await, Some(frame));
    }
    // More than the kernel takes: pushes until one stays in the queue, then a reader comes.
    let egress = node.egress(0).await;
    let push = Framing::Tcp.wrap(&vec![7; 10_000]);
    let mut pushed = 0;
    while egress.queued_bytes() == 0 {
        egress.queue_frame(push.clone());
        egress.flush();
        pushed += 1;
    }
    for _ in 0..pushed {
        assert_eq!(receive(&mut stream).await, Some(vec![7; 10_000]));
    }
    send(&mut stream, b"bye").await;
    assert_eq!(receive(&mut stream).await, None);
    assert_eq!(node.reason().await, ErrorCode::LOGGED_OUT);

    // No TLS, and none in time.
    let mut plain = node.connect().await;
    send(&mut plain, &[0; 100]).await;
    eventually(|| (node.net.counters().snapshot().failed_handshakes == 1).then_some(())).await;
}

#[tokio::test]
async fn what_tls_kept_of_a_write_is_sent_without_another_write() {
    let (mode, client, _directory) = tls();
    let config = ListenerConfig { tls: mode, send_buffer_bytes: Some(4 << 10), ..loopback(Transport::Tcp) };
    let node = node_with(config, EchoConfig::default(), NetConfig::default());
    let mut stream = tls_stream(node.address, client).await;
    let egress = node.egress(0).await;
    // Within what is encrypted ahead: the queue is empty though the kernel has not taken it all.
    let mut sent = 0;
    while egress.state() == crate::actors::session::egress::EgressState::Open {
        let delivery = egress.deliver(&conversation(), Seq(1), &Framing::Tcp.wrap(&[1; 30_000]), 1, 0);
        assert_eq!(delivery, Delivery::Taken);
        sent += 1;
    }
    for _ in 0..sent {
        assert_eq!(receive(&mut stream).await, Some(vec![1; 30_000]));
    }
}

#[tokio::test]
async fn one_who_does_not_read_stalls_nobody_and_is_told_what_it_missed() {
    let config = ListenerConfig { send_buffer_bytes: Some(16 << 10), ..loopback(Transport::Tcp) };
    let node = node_with(config, EchoConfig::default(), NetConfig::default());
    let mut slow = node.connect().await;
    let egress = node.egress(0).await;
    let conversation = conversation();
    let push = Framing::Tcp.wrap(&[9; 8_000]);
    let mut taken = 0;
    let mut head = 0;
    while egress.deliver(&conversation, Seq(head + 1), &push, 1, 0) == Delivery::Taken {
        taken += 1;
        head += 1;
    }
    assert!(egress.queued_bytes() <= 256 << 10);

    let mut others = Vec::new();
    for _ in 0..100 {
        others.push(node.connect().await);
    }
    for round in 0..20_u8 {
        for stream in &mut others {
            send(stream, &[round]).await;
        }
        assert_eq!(egress.deliver(&conversation, Seq(head + 2), &push, 1, 0), Delivery::Lagged);
        head += 1;
        for stream in &mut others {
            assert_eq!(receive(stream).await, Some(vec![round]));
        }
    }
    assert!(egress.queued_bytes() <= 256 << 10);

    for _ in 0..taken {
        assert_eq!(receive(&mut slow).await, Some(vec![9; 8_000]));
    }
    let told = receive(&mut slow).await.expect("an event");
    let lagged = Event::Lagged(Lagged { conversation: conversation.clone(), head: Seq(head + 1), shed: 0 });
    assert_eq!(Incoming::decode(Codec::Bincode, &told), Ok(Incoming::Event(lagged)));
    assert_eq!(egress.deliver(&conversation, Seq(head + 2), &push, 1, 0), Delivery::Taken);
    assert_eq!(receive(&mut slow).await, Some(vec![9; 8_000]));
}

#[tokio::test]
async fn one_who_answers_nothing_while_it_is_closed_is_cut_off() {
    let config = ListenerConfig { send_buffer_bytes: Some(16 << 10), ..loopback(Transport::Tcp) };
    let mut node = node_with(config, EchoConfig::default(), NetConfig::default());
    let _slow = node.connect().await;
    let egress = node.egress(0).await;
    // More than the kernel goes on to take.
    while egress.queued_bytes() < 4 << 20 {
        egress.queue_frame(Bytes::from_static(&[0; 8_000]));
        egress.flush();
    }
    let begun = Instant::now();
    egress.close(ErrorCode::ACKS_OVERDUE, None);
    assert_eq!(node.reason().await, ErrorCode::ACKS_OVERDUE);
    assert!(begun.elapsed() >= crate::net::connection::CLOSING_TIME);
}

#[tokio::test]
async fn who_does_not_log_in_is_closed_in_time() {
    let login_time = Some(Duration::from_millis(300));
    let echo = EchoConfig { login_time, ..EchoConfig::default() };
    let mut node = node_with(loopback(Transport::Tcp), echo, NetConfig::default());
    let mut silent = node.connect().await;
    let mut dripping = node.connect().await;
    let mut flooding = node.connect().await;
    let mut live = node.connect().await;
    send(&mut live, b"login").await;
    assert_eq!(receive(&mut live).await.as_deref(), Some(&b"login"[..]));

    let (mut flood_reading, mut flood_writing) = flooding.split();
    let drip = async {
        let frame = Framing::Tcp.wrap(&[0; 1_000]);
        for byte in &*frame {
            if dripping.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the loris was let finish");
    };
    let flood = async {
        let frames = Framing::Tcp.wrap(b"x").repeat(10_000);
        while flood_writing.write_all(&frames).await.is_ok() {}
    };
    let flood_answers = async {
        while let Some(frame) = receive(&mut flood_reading).await {
            if frame != b"x" {
                assert_eq!(error_code(Codec::Bincode, &frame), ErrorCode::LOGIN_OVERDUE);
            }
        }
    };
    let silent = async {
        let frame = receive(&mut silent).await.expect("the reason");
        assert_eq!(error_code(Codec::Bincode, &frame), ErrorCode::LOGIN_OVERDUE);
        assert_eq!(receive(&mut silent).await, None);
    };
    let reasons = async {
        for _ in 0..3 {
            assert_eq!(node.reason().await, ErrorCode::LOGIN_OVERDUE);
        }
        // The last shares in the sockets: only without them are these closed, and the writing ends.
        node.engine.egresses.lock().clear();
    };
    tokio::join!(drip, flood, flood_answers, silent, reasons);
    send(&mut live, b"still there").await;
    assert_eq!(receive(&mut live).await.as_deref(), Some(&b"still there"[..]));
}

#[tokio::test]
async fn a_frame_above_the_bound_is_refused_before_it_arrives() {
    let mut node = node(Transport::Tcp);
    let mut stream = node.connect().await;
    send(&mut stream, b"before").await;
    stream.write_all(&(1_u32 << 20).saturating_add(1).to_be_bytes()).await.expect("written");
    // What follows would bring a reset upon the answer if the node did not read it.
    stream.write_all(&[0; 100_000]).await.expect("written");
    assert_eq!(receive(&mut stream).await.as_deref(), Some(&b"before"[..]));
    let frame = receive(&mut stream).await.expect("the reason");
    assert_eq!(error_code(Codec::Bincode, &frame), ErrorCode::FRAME_TOO_LARGE);
    assert_eq!(receive(&mut stream).await, None);
    assert_eq!(node.reason().await, ErrorCode::FRAME_TOO_LARGE);
}

#[tokio::test]
async fn requests_without_an_answer_stop_the_reading() {
    let echo = EchoConfig {
        limits: EgressLimits { max_bytes: 256 << 10, max_in_flight: 4 },
        ..EchoConfig::default()
    };
    let node = node_with(loopback(Transport::Tcp), echo, NetConfig::default());
    let mut stream = node.connect().await;
    for _ in 0..10 {
        send(&mut stream, b"hold").await;
    }
    for _ in 0..4 {
        assert_eq!(receive(&mut stream).await.as_deref(), Some(&b"hold"[..]));
    }
    let egress = node.egress(0).await;
    let fifth = timeout(Duration::from_millis(50), stream.read_u8()).await;
    assert!(fifth.is_err(), "a fifth was read");
    for answered in 1..=6 {
        egress.end_request();
        assert_eq!(receive(&mut stream).await.as_deref(), Some(&b"hold"[..]));
        assert_eq!(node.engine.frames.load(Relaxed), 4 + answered);
    }
}

#[tokio::test]
async fn a_handler_that_panics_ends_its_connection_only() {
    let mut node = node(Transport::Tcp);
    let mut other = node.connect().await;
    let mut stream = node.connect().await;
    send(&mut stream, b"panic").await;
    assert_eq!(node.reason().await, ErrorCode::INTERNAL);
    node.engine.egresses.lock().clear();
    assert_eq!(receive(&mut stream).await, None);
    send(&mut other, b"still there").await;
    assert_eq!(receive(&mut other).await.as_deref(), Some(&b"still there"[..]));
    eventually(|| (node.net.slots().taken() == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_half_open_connections_harm_nobody() {
    const HALF_OPEN: usize = 2_000;
    let mut node = node(Transport::Tcp);
    let mut half_open = Vec::new();
    for n in 0..HALF_OPEN {
        let mut stream = node.connect().await;
        if n % 2 == 0 {
            stream.write_all(&[0, 0]).await.expect("half a length");
        }
        half_open.push(stream);
    }
    let mut stream = node.connect().await;
    send(&mut stream, b"live").await;
    assert_eq!(receive(&mut stream).await.as_deref(), Some(&b"live"[..]));
    eventually(|| (node.net.slots().taken() as usize == HALF_OPEN + 1).then_some(())).await;
    drop(half_open);
    for _ in 0..HALF_OPEN {
        assert_eq!(node.reason().await, ErrorCode::DISCONNECTED);
    }
    eventually(|| (node.net.slots().taken() == 1).then_some(())).await;
    send(&mut stream, b"live").await;
    assert_eq!(receive(&mut stream).await.as_deref(), Some(&b"live"[..]));
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let limits = ConnectionLimits { max_connections: 1, max_per_address: 1 };
    let config = NetConfig { limits, ..NetConfig::default() };
    let node = node_with(loopback(Transport::Tcp), EchoConfig::default(), config);
    let first = node.connect().await;
    node.egress(0).await;
    let mut second = node.connect().await;
    send(&mut second, b"hello").await;
    let frame = receive(&mut second).await.expect("the reason");
    assert_eq!(error_code(Codec::Bincode, &frame), ErrorCode::TOO_MANY_CONNECTIONS);
    assert_eq!(receive(&mut second).await, None);
    let expected = NetSnapshot { accepted: 1, refused_node: 1, ..NetSnapshot::default() };
    assert_eq!(node.net.counters().snapshot(), expected);
    drop((first, second));
    eventually(|| (node.net.slots().taken() == 0).then_some(())).await;
    let mut third = node.connect().await;
    send(&mut third, b"hello").await;
    assert_eq!(receive(&mut third).await.as_deref(), Some(&b"hello"[..]));
}

#[tokio::test]
async fn stopping_ends_listener_and_connections_and_can_be_awaited() {
    let mut node = node(Transport::Tcp);
    let mut stream = node.connect().await;
    let egress = node.egress(0).await;
    node.net.stop_accepting();
    eventually(|| std::net::TcpStream::connect(node.address).is_err().then_some(())).await;
    assert!(timeout(Duration::from_millis(20), node.net.closed()).await.is_err(), "a connection is left");
    egress.close(ErrorCode::SHUTDOWN, None);
    assert_eq!(receive(&mut stream).await, None);
    drop(stream);
    timeout(PATIENCE, node.net.closed()).await.expect("all is over");
    assert_eq!(node.reason().await, ErrorCode::SHUTDOWN);
}

/// A listening socket in a process that runs out of file descriptors, and clients that are gone before their turn.
struct Failing {
    socket: TcpListener,
    calls: AtomicUsize,
}

impl Accept for Failing {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        const EMFILE: i32 = 24;
        const ENFILE: i32 = 23;
        const ECONNABORTED: i32 = 103;
        match self.calls.fetch_add(1, Relaxed) {
            0 => Err(io::Error::from_raw_os_error(EMFILE)),
            1 => Err(io::Error::from_raw_os_error(ENFILE)),
            2 => Err(io::Error::from_raw_os_error(ECONNABORTED)),
            _ => self.socket.accept().await,
        }
    }
}

#[tokio::test]
async fn accepting_goes_on_after_it_failed() {
    let (engine, _closed) = EchoEngine::new(EchoConfig::default());
    let net = Net::new(Arc::new(Echo(engine)), NetConfig::default());
    let config = loopback(Transport::Tcp);
    let socket = bind(config.address, 16, None).expect("a port");
    let address = socket.local_addr().expect("bound");
    let shared = Arc::clone(&net.shared);
    tokio::spawn(async move {
        accept_all(Failing { socket, calls: AtomicUsize::new(0) }, &config, &shared).await;
    });
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    send(&mut stream, b"hello").await;
    assert_eq!(receive(&mut stream).await.as_deref(), Some(&b"hello"[..]));
    let expected = NetSnapshot { accepted: 1, accept_errors: 3, accept_pauses: 2, ..NetSnapshot::default() };
    assert_eq!(net.counters().snapshot(), expected);
}

#[tokio::test]
async fn an_address_others_can_reach_needs_tls_or_a_word() {
    let anywhere = ListenerConfig::new(Transport::Tcp, ([0, 0, 0, 0], 0).into());
    let refused = Listener::bind(anywhere.clone()).expect_err("nothing is said of TLS");
    assert!(matches!(refused, ListenError::TlsRequired { .. }));
    assert!(refused.to_string().contains("tls = \"off\""), "{refused}");
    Listener::bind(ListenerConfig { tls: TlsMode::Off, ..anywhere }).expect("it is written");
    let (tls, ..) = tls();
    Listener::bind(ListenerConfig { tls, ..anywhere }).expect("it has TLS");
    let taken = Listener::bind(loopback(Transport::Tcp)).expect("a port");
    let again = ListenerConfig::new(Transport::WebSocket, taken.local_addr());
    assert!(matches!(Listener::bind(again), Err(ListenError::Bind { listener: "websocket", .. })));
}
