//! The same over WebSocket, with a client that is not ours.

use std::net::TcpStream as StdStream;

use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

use super::*;

type Client = WebSocket<StdStream>;

/// Connects; blocking.
fn open(address: SocketAddr, path: &str, subprotocol: Option<&'static str>) -> Result<Client, u16> {
    let mut request = format!("ws://{address}{path}").into_client_request().expect("a request");
    if let Some(subprotocol) = subprotocol {
        let value = tungstenite::http::HeaderValue::from_static(subprotocol);
        request.headers_mut().insert("sec-websocket-protocol", value);
    }
    let stream = StdStream::connect(address).expect("the node listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    match tungstenite::client(request, stream) {
        Ok((client, _)) => Ok(client),
        Err(tungstenite::HandshakeError::Failure(Error::Http(response))) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Runs a blocking client beside the node.
async fn client<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(run).await.expect("the client does not panic")
}

fn close_code(client: &mut Client) -> CloseCode {
    match client.read() {
        Ok(Message::Close(Some(close))) => close.code,
        other => panic!("not a close frame: {other:?}"),
    }
}

#[tokio::test]
async fn messages_come_back_in_both_codecs() {
    let mut node = node(Transport::WebSocket);
    let address = node.address;
    client(move || {
        let mut binary = open(address, "/ws", Some("convoke.bincode")).expect("an upgrade");
        for len in [0, 1, 125, 126, 20_000, 65_536, 1 << 20] {
            let message = Message::binary(vec![len as u8; len]);
            binary.send(message.clone()).expect("sent");
            assert_eq!(binary.read().expect("echoed"), message);
        }
        binary.send(Message::Ping("payload".into())).expect("sent");
        assert_eq!(binary.read().expect("a pong"), Message::Pong("payload".into()));
        binary.close(None).expect("sent");
        assert_eq!(close_code(&mut binary), CloseCode::Normal);
        assert!(matches!(binary.read(), Err(Error::ConnectionClosed)));

        let mut json = open(address, "/ws", Some("other, convoke.json")).expect("an upgrade");
        let message = Message::text("{\"ä\": 1}");
        json.send(message.clone()).expect("sent");
        assert_eq!(json.read().expect("echoed"), message);
        json.send(Message::text("bye")).expect("sent");
        assert_eq!(close_code(&mut json), CloseCode::Normal);
    })
    .await;
    assert_eq!(node.reason().await, ErrorCode::DISCONNECTED);
    assert_eq!(node.reason().await, ErrorCode::LOGGED_OUT);
}

#[tokio::test]
async fn what_is_not_allowed_is_answered_and_closed() {
    let mut node = node(Transport::WebSocket);
    let address = node.address;
    client(move || {
        let mut large = open(address, "/ws", Some("convoke.bincode")).expect("an upgrade");
        large.send(Message::binary(vec![0; (1 << 20) + 1])).expect("sent");
        let told = large.read().expect("the reason").into_data();
        assert_eq!(error_code(Codec::Bincode, &told), ErrorCode::FRAME_TOO_LARGE);
        assert_eq!(close_code(&mut large), CloseCode::Size);

        let mut kind = open(address, "/ws", Some("convoke.json")).expect("an upgrade");
        kind.send(Message::binary(vec![1])).expect("sent");
        let told = kind.read().expect("the reason").into_data();
        assert_eq!(error_code(Codec::Json, &told), ErrorCode::MALFORMED_FRAME);
        assert_eq!(close_code(&mut kind), CloseCode::Unsupported);
    })
    .await;
    assert_eq!(node.reason().await, ErrorCode::FRAME_TOO_LARGE);
    assert_eq!(node.reason().await, ErrorCode::MALFORMED_FRAME);
}

#[tokio::test]
async fn the_session_says_with_which_code_it_ends() {
    let node = node(Transport::WebSocket);
    let address = node.address;
    let opened = client(move || open(address, "/ws", Some("convoke.json")).expect("an upgrade")).await;
    node.egress(0).await.close(ErrorCode::DEVICE_REPLACED, None);
    client(move || {
        let mut opened = opened;
        assert_eq!(close_code(&mut opened), CloseCode::Library(4000 + ErrorCode::DEVICE_REPLACED.0));
    })
    .await;
}

#[tokio::test]
async fn other_requests_are_answered_with_their_status() {
    let config = NetConfig { handshake_time: Duration::from_millis(300), ..NetConfig::default() };
    let node = node_with(loopback(Transport::WebSocket), EchoConfig::default(), config);
    let address = node.address;
    let statuses = client(move || {
        [("/ws", None), ("/ws", Some("other")), ("/elsewhere", Some("convoke.json"))]
            .map(|(path, subprotocol)| open(address, path, subprotocol).err())
    })
    .await;
    assert_eq!(statuses, [Some(400), Some(400), Some(404)]);

    let mut long = node.connect().await;
    let head = format!("GET /ws HTTP/1.1\r\nX: {}\r\n", "x".repeat(9_000));
    long.write_all(head.as_bytes()).await.expect("written");
    let mut answer = String::new();
    long.read_to_string(&mut answer).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");

    let mut slow = node.connect().await;
    slow.write_all(b"GET /ws HT").await.expect("written");
    answer.clear();
    timeout(PATIENCE, slow.read_to_string(&mut answer)).await.expect("closed in time").expect("no reset");
    assert_eq!(answer, "");
    assert_eq!(node.net.counters().snapshot().failed_handshakes, 5);
}

#[tokio::test]
async fn a_websocket_under_tls_and_one_too_many() {
    let (mode, config, _directory) = tls();
    let limits = ConnectionLimits { max_connections: 1, ..ConnectionLimits::default() };
    let net = NetConfig { limits, ..NetConfig::default() };
    let listener = ListenerConfig { tls: mode, ..loopback(Transport::WebSocket) };
    let node = node_with(listener, EchoConfig::default(), net);
    let mut stream = tls_stream(node.address, config).await;
    // The first message comes with the request, in one piece.
    let mut bytes = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: convoke.bincode\r\n\r\n"
        .to_vec();
    bytes.extend_from_slice(b"\x82\x83\0\0\0\0abc");
    stream.write_all(&bytes).await.expect("written");
    let mut answer = Vec::new();
    let echo = b"\x82\x03abc";
    while !answer.ends_with(echo) {
        assert_ne!(timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("in time").expect("read"), 0);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));

    let plain = Listener::bind(loopback(Transport::WebSocket)).expect("a port");
    let address = plain.local_addr();
    node.net.start(plain);
    let refused = client(move || open(address, "/ws", Some("convoke.json")).err()).await;
    assert_eq!(refused, Some(503));
}
