//! Clients that mean harm, or are broken: they get their due, and nobody else notices.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::frame::{Codec, Request};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::Seq;
use convoke_protocol::request::messages::{Ack, Pull, PullRange};
use convoke_protocol::request::session::{DeviceClass, Heartbeat};
use convoke_protocol::request::sync::Sync;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Error as WebSocketError;

use crate::harness::client::{End, conversation, frame, hello, login};
use crate::harness::http::metric;
use crate::harness::wire::Wire;
use crate::harness::{Setup, TestClient, TestNode, eventually, in_time, to_user};

mod flood;
mod slow;

const MAX_FRAME: usize = 1 << 20;

/// Two who only want to talk, and do not want to wait for it.
struct Bystanders {
    one: TestClient,
    other: TestClient,
}

impl Bystanders {
    /// Far above what they wait for when nobody is hostile, on a machine that does much else; far below a stall.
    const PATIENCE: Duration = Duration::from_secs(5);

    async fn come(node: &TestNode) -> Self {
        let one = TestClient::login(node, Framing::Tcp, "quiet", "phone").await;
        let other = TestClient::login(node, Framing::ALL[2], "friendly", "phone").await;
        Self { one, other }
    }

    async fn talk(&mut self, times: usize) {
        for _ in 0..times {
            let begin = Instant::now();
            let sent = self.one.say("friendly", "hello").await;
            assert_eq!(self.other.push().await.message.seq, sent.seq);
            assert!(begin.elapsed() < Self::PATIENCE, "they wait for {:?}", begin.elapsed());
            self.other.acknowledge().await;
        }
    }
}

fn assert_unharmed(node: &TestNode) {
    let log = node.stderr();
    assert!(!log.contains("panicked") && !log.contains("crashed"), "{log}");
}

/// The head of a message or a frame of so many bytes, as a client sends it.
fn announced(framing: Framing, length: u64) -> Vec<u8> {
    const MASK: [u8; 4] = [0; 4];
    match framing {
        Framing::Tcp => u32::try_from(length).unwrap().to_be_bytes().to_vec(),
        Framing::WebSocket(codec) => {
            let kind = if codec == Codec::Json { 0x81 } else { 0x82 };
            [&[kind, 0xff], &length.to_be_bytes()[..], &MASK].concat()
        }
    }
}

fn close_code(framing: Framing, code: u16) -> Option<u16> {
    (framing != Framing::Tcp).then_some(code)
}

/// A request that nobody knows, whose frame has exactly so many bytes.
fn unknown_of(codec: Codec, id: u64, length: usize) -> Vec<u8> {
    let mut body = vec![b'x'; length - 20];
    loop {
        let quoted = [b"\"", &body[..], b"\""].concat();
        let made = frame(codec, id, 99, "sing", if codec == Codec::Json { &quoted } else { &body });
        if made.len() == length {
            return made;
        }
        let missing = length as isize - made.len() as isize;
        body.resize(body.len().checked_add_signed(missing).unwrap(), b'x');
    }
}

#[tokio::test]
async fn a_frame_may_be_as_long_as_allowed_and_no_longer() {
    let node = TestNode::start().await;
    let mut bystanders = Bystanders::come(&node).await;
    for framing in Framing::ALL {
        let mut client = TestClient::login(&node, framing, "mallory", "phone").await;
        let longest = unknown_of(framing.codec(), client.next_id(), MAX_FRAME);
        let id = client.post_frame(&longest).await;
        let answer = client.answer(id).await;
        assert!(
            matches!(&answer, convoke_protocol::frame::Answer::Error(e) if e.code == ErrorCode::UNSUPPORTED)
        );
        let longer = unknown_of(framing.codec(), client.next_id(), MAX_FRAME + 1);
        client.post_frame(&longer).await;
        assert_eq!(client.end().await, End::Error(ErrorCode::FRAME_TOO_LARGE));
        assert_eq!(client.wire().close_code(), close_code(framing, 1009));
        // The head alone is enough to be refused.
        for length in [MAX_FRAME as u64 + 1, u64::from(u32::MAX)] {
            let mut client = TestClient::login(&node, framing, "mallory", "phone").await;
            client.wire().write_raw(&announced(framing, length)).await.unwrap();
            assert_eq!(client.end().await, End::Error(ErrorCode::FRAME_TOO_LARGE));
            assert_eq!(client.wire().close_code(), close_code(framing, 1009));
        }
        bystanders.talk(1).await;
    }
    assert_unharmed(&node);
}

#[tokio::test]
async fn what_is_no_websocket_message_is_refused_as_the_standard_says() {
    let node = TestNode::start().await;
    let [binary, json] = [Codec::Bincode, Codec::Json].map(Framing::WebSocket);
    let cases: [(&str, Framing, &[u8], u16); 9] = [
        ("not masked", binary, &[0x82, 1, 0], 1002),
        ("a reserved bit", binary, &[0xc2, 0x81, 0, 0, 0, 0, 0], 1002),
        ("a reserved kind", binary, &[0x83, 0x81, 0, 0, 0, 0, 0], 1002),
        ("nothing to continue", binary, &[0x80, 0x81, 0, 0, 0, 0, 0], 1002),
        ("a ping in pieces", binary, &[0x09, 0x80, 0, 0, 0, 0], 1002),
        ("a long ping", binary, &[0x89, 0xfe, 0, 200, 0, 0, 0, 0], 1002),
        ("text", binary, &[0x81, 0x81, 0, 0, 0, 0, b'x'], 1003),
        ("bytes", json, &[0x82, 0x81, 0, 0, 0, 0, b'x'], 1003),
        ("not UTF-8", json, &[0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28], 1007),
    ];
    for (what, framing, bytes, code) in cases {
        let mut client = TestClient::login(&node, framing, "mallory", "phone").await;
        client.wire().write_raw(bytes).await.unwrap();
        assert_eq!(client.end().await, End::Error(ErrorCode::MALFORMED_FRAME), "{what}");
        assert_eq!(client.wire().close_code(), Some(code), "{what}");
    }
    assert_unharmed(&node);
}

/// Requests of every shape, as a live session might send them.
fn requests() -> Vec<Request> {
    let id = conversation("mallory", "bob");
    let range = PullRange { conversation: id.clone(), from: Seq(1), to: Seq(9) };
    vec![
        Heartbeat {}.into(),
        hello().into(),
        login("x.y.z".into(), "phone", DeviceClass::OTHER).into(),
        to_user("bob", "something or other").into(),
        Pull { ranges: vec![range] }.into(),
        Ack { pushes: 0, cursors: Vec::new() }.into(),
        Sync { cursors: Vec::new(), use_device_cursors: true, after: Some(id) }.into(),
    ]
}

/// Sends the bytes, says that nothing more comes, and reads to the end.
async fn last_bytes(wire: &mut Wire, bytes: &[u8]) {
    // Whether it takes all of them is its own affair.
    let _ = wire.write_raw(bytes).await;
    let _ = wire.finish_raw().await;
    in_time("the connection ends", async { while wire.read().await.is_some() {} }).await;
}

#[tokio::test]
async fn a_connection_may_end_anywhere() {
    let node = TestNode::start().await;
    let mut bystanders = Bystanders::come(&node).await;
    for framing in Framing::ALL {
        for request in requests() {
            let frame = request.encode(framing.codec(), 7);
            let whole = [announced(framing, frame.len() as u64), frame.to_vec()].concat();
            for cut in [1, 3, 4, 5, whole.len() / 2, whole.len() - 1] {
                // Before the login and after it.
                let mut wire = in_time("a connection", Wire::connect(node.address(framing), framing)).await;
                last_bytes(&mut wire, &whole[..cut]).await;
                let mut client = TestClient::login(&node, framing, "mallory", "phone").await;
                last_bytes(client.wire(), &whole[..cut]).await;
            }
        }
        bystanders.talk(1).await;
    }
    eventually("nobody else is left", async || {
        (metric(&node, "convoke_sessions").await == 2.0).then_some(())
    })
    .await;
    assert_unharmed(&node);
}

/// Something like the bytes, but wrong.
fn damaged(random: &mut SmallRng, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..4) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => bytes.truncate(at.max(1)),
            _ => bytes.insert(at, random.random()),
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_from_nowhere_harm_nobody() {
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let node = TestNode::start().await;
    let mut bystanders = Bystanders::come(&node).await;
    let requests = requests();
    for round in 0..40 {
        let mut noise = vec![0; random.random_range(1..3_000)];
        random.fill_bytes(&mut noise);
        for address in [node.addresses().tcp, node.addresses().ws] {
            let stream = TcpStream::connect(address).await.unwrap();
            last_bytes(&mut Wire::Tcp { stream: Box::new(stream), input: Default::default() }, &noise).await;
        }
        for framing in Framing::ALL {
            // Under the framing and within it.
            let mut client = TestClient::login(&node, framing, "mallory", "phone").await;
            last_bytes(client.wire(), &noise).await;
            let mut client = TestClient::login(&node, framing, "mallory", "phone").await;
            let mut bytes = Vec::new();
            for request in &requests {
                let frame = damaged(&mut random, &request.encode(framing.codec(), 7));
                bytes.extend(announced(framing, frame.len() as u64));
                bytes.extend(frame);
            }
            last_bytes(client.wire(), &bytes).await;
        }
        if round % 10 == 0 {
            bystanders.talk(1).await;
        }
    }
    assert_unharmed(&node);
}

/// Sends one byte after the other, but never a whole frame.
async fn drip(wire: &mut Wire, bytes: &[u8]) {
    let mut ticks = tokio::time::interval(Duration::from_millis(30));
    for byte in bytes.iter().chain(std::iter::repeat_n(&0, 60)) {
        ticks.tick().await;
        if wire.write_raw(&[*byte]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn who_sends_byte_by_byte_gets_no_more_time_than_others() {
    let node = Setup::config("[sessions]\nlogin_deadline_ms = 1000").start().await;
    let mut bystanders = Bystanders::come(&node).await;
    let mut dripping = JoinSet::new();
    for n in 0..60 {
        let framing = Framing::ALL[n % 3];
        let mut client = TestClient::connect(&node, framing).await;
        dripping.spawn(async move {
            drip(client.wire(), &announced(framing, 3_000)).await;
            assert_eq!(client.end().await, End::Error(ErrorCode::LOGIN_OVERDUE));
        });
        let stream = TcpStream::connect(node.addresses().ws).await.unwrap();
        let mut wire = Wire::Tcp { stream: Box::new(stream), input: Default::default() };
        dripping.spawn(async move {
            drip(&mut wire, b"GET /ws HTTP/1.1\r\nHost: node\r\nX: ").await;
            in_time("the connection ends", async { while wire.read().await.is_some() {} }).await;
        });
    }
    while !dripping.is_empty() {
        bystanders.talk(1).await;
        while let Some(ended) = dripping.try_join_next() {
            ended.unwrap();
        }
    }
    assert_unharmed(&node);
}

/// Raises the bound on this process's open files as far as it may; whether so many are possible then.
fn may_open(files: u64) -> bool {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.is_none_or(|current| current >= files)
}

#[tokio::test]
async fn thousands_that_connect_and_say_nothing_cost_little_and_go() {
    const MANY: usize = 2_000;
    /// Measured: about 2 KB in an unoptimised build.
    const BYTES_EACH: u64 = 12_000;
    if !may_open(MANY as u64 + 1_000) {
        eprintln!("not tested: too few open files allowed");
        return;
    }
    let node = Setup::config("[sessions]\nlogin_deadline_ms = 6000").start().await;
    let mut bystanders = Bystanders::come(&node).await;
    bystanders.talk(3).await;
    let before = node.memory("VmRSS");
    let mut silent = Vec::new();
    for n in 0..MANY {
        let address = if n % 2 == 0 { node.addresses().tcp } else { node.addresses().ws };
        silent.push(in_time("a connection", TcpStream::connect(address)).await.unwrap());
    }
    let accepted = || metric(&node, "convoke_connections_accepted_total");
    eventually("all are accepted", async || (accepted().await >= MANY as f64 + 2.0).then_some(())).await;
    let grown = node.memory("VmRSS").saturating_sub(before);
    eprintln!("{} bytes for each connection that says nothing", grown / MANY as u64);
    assert!(grown < MANY as u64 * BYTES_EACH, "{grown}");
    bystanders.talk(5).await;
    for mut stream in silent {
        let mut said = Vec::new();
        let _ = in_time("the connection ends", stream.read_to_end(&mut said)).await;
    }
    eventually("they are gone", async || {
        (metric(&node, "convoke_process_open_fds").await < 200.0).then_some(())
    })
    .await;
    bystanders.talk(1).await;
    assert_unharmed(&node);
}

/// Whether a new connection is let in; if not, what its client is told.
async fn knock(node: &TestNode, framing: Framing) -> Result<TestClient, End> {
    let stream = TcpStream::connect(node.address(framing)).await.unwrap();
    let wire = match in_time("an upgrade", Wire::open(Box::new(stream), framing)).await {
        Ok(wire) => wire,
        Err(WebSocketError::Http(answer)) => {
            assert_eq!(answer.status(), 503);
            return Err(End::Silent);
        }
        Err(other) => panic!("{other}"),
    };
    let mut client = TestClient::on(wire, framing);
    let greeted = client.post(hello()).await;
    match in_time("an answer or the end", client.try_answer(greeted)).await {
        Some(_) => Ok(client),
        None => Err(client.end().await),
    }
}

async fn only_so_many(node: &TestNode, most: usize, code: ErrorCode) {
    let mut inside = Vec::new();
    for n in 0..most {
        inside.push(knock(node, Framing::ALL[n % 3]).await.expect("there is room"));
    }
    for framing in Framing::ALL {
        let told = if framing == Framing::Tcp { End::Error(code) } else { End::Silent };
        assert_eq!(knock(node, framing).await.err(), Some(told));
    }
    let series = format!("convoke_connections_refused_total{{reason=\"{}\"}}", code.name());
    assert_eq!(metric(node, &series).await, 3.0);
    // Those who are in stay in, and one that goes makes room.
    let mut first = inside.remove(0);
    first.log_in_greeted(node.token("alice").await, "phone").await;
    drop(inside.pop());
    eventually("there is room again", async || knock(node, Framing::Tcp).await.ok()).await;
    ask!(first, Heartbeat {}, HeartbeatAnswer);
}

#[tokio::test]
async fn a_node_has_so_many_connections_and_no_more() {
    let node = Setup::config("[limits]\nmax_connections = 4").start().await;
    only_so_many(&node, 4, ErrorCode::TOO_MANY_CONNECTIONS).await;
}

/// An address of this machine that is not loopback.
fn own_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: this only chooses a route.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_no_more() {
    let Some(address) = own_address() else {
        eprintln!("not tested: loopback is exempt, and this machine has no other address");
        return;
    };
    let listen = format!("{address}:0");
    let config = "[tls]\nmode = \"off\"\n[limits]\nmax_connections_per_ip = 4";
    let node = Setup::config(config).listen(&listen, &listen).start().await;
    only_so_many(&node, 4, ErrorCode::TOO_MANY_FROM_ADDRESS).await;
}

#[tokio::test]
async fn what_asks_for_no_websocket_is_answered_in_http() {
    let node = TestNode::start().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let protocol = "Sec-WebSocket-Protocol: convoke.json\r\n";
    let cases = [
        (format!("GET /ws HTTP/1.1\r\nHost: x\r\n{upgrade}{protocol}\r\n"), "101"),
        ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        (format!("GET /elsewhere HTTP/1.1\r\nHost: x\r\n{upgrade}{protocol}\r\n"), "404"),
        (format!("POST /ws HTTP/1.1\r\nHost: x\r\n{upgrade}{protocol}\r\n"), "4"),
        ("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "4"),
        (format!("GET /ws HTTP/1.1\r\nHost: x\r\n{upgrade}Sec-WebSocket-Protocol: chat\r\n\r\n"), "4"),
        (format!("GET /ws HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000)), "4"),
    ];
    for (request, status) in cases {
        let mut stream = TcpStream::connect(node.addresses().ws).await.unwrap();
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = in_time("an answer", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:.60}: {answer}");
    }
    assert_unharmed(&node);
}
