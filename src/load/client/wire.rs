//! The frames of the measured loop, written from templates and read no further than is needed: the load generator
//! shares the machine with the server, and what it spends the server cannot have.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use convoke_protocol::codec::{self, CodecError};
use convoke_protocol::frame::{Codec, RawFrame, Request};
use convoke_protocol::framing::{Framing, LENGTH_BYTES};
use convoke_protocol::id::{ClientId, GroupId, UserId};
use convoke_protocol::message::{Content, ContentType, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::messages::{Send, Target};
use serde::Deserialize;
use uuid::Uuid;

use super::SideId;

/// Type numbers of the frames that the loop looks at (`frame.rs` has the table, a test compares).
pub(in crate::load) mod type_number {
    pub(in crate::load) const SEND: u16 = 5;
    pub(in crate::load) const ERROR: u16 = 100;
    pub(in crate::load) const WELCOME: u16 = 101;
    pub(in crate::load) const LOGGED_IN: u16 = 102;
    pub(in crate::load) const SENT: u16 = 105;
    pub(in crate::load) const PULLED: u16 = 106;
    pub(in crate::load) const PUSH: u16 = 200;
    pub(in crate::load) const LAGGED: u16 = 201;
    pub(in crate::load) const GO_AWAY: u16 = 202;
    pub(in crate::load) const KICKED: u16 = 203;
    pub(in crate::load) const NODES_CHANGED: u16 = 204;
    pub(in crate::load) const SYNCED_SINCE: u16 = 153;
}

/// Numbers above this are no server's: nobody sends so many messages.
const MAX_SEQ: u64 = 1 << 53;

/// Bytes of a time stamp; no message's body is shorter.
pub const STAMP_BYTES: usize = 16;

/// The beginning of each message's body: what its receiver needs to know, so that nobody keeps a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::load) struct Stamp {
    /// When it was to be sent, in microseconds of the sender's clock, which is the receiver's too.
    pub(in crate::load) intended_us: u64,
    /// The sending side.
    pub(in crate::load) side: SideId,
    /// Which of the side's messages it is.
    pub(in crate::load) counter: u32,
}

impl Stamp {
    fn encode(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.intended_us.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.side.0.to_le_bytes());
        bytes[12..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }

    pub(in crate::load) fn decode(body: &[u8]) -> Option<Self> {
        let (intended, rest) = body.split_first_chunk()?;
        let (side, rest) = rest.split_first_chunk()?;
        let (counter, _) = rest.split_first_chunk()?;
        Some(Self {
            intended_us: u64::from_le_bytes(*intended),
            side: SideId(u32::from_le_bytes(*side)),
            counter: u32::from_le_bytes(*counter),
        })
    }
}

/// What all sends have in common behind their target: the content and the optional fields.
#[derive(Debug)]
pub(in crate::load) struct Tail(Box<[u8]>);

/// What the sends to one user have in common before their content.
#[derive(Debug)]
pub(in crate::load) struct Opening(Box<[u8]>);

fn send(retry: Retry, target: Target, body: Vec<u8>) -> Send {
    Send {
        retry,
        target,
        content: Content {
            content_type: ContentType::new("application/octet-stream").expect("it is one"),
            body: Bytes::from(body),
        },
        reply_to: None,
        previous: None,
        priority: Priority::NORMAL,
    }
}

/// A send whose body is `length` bytes, as the protocol's codec writes it, and where in it the message's body begins.
fn example(target: Target, length: usize) -> (Vec<u8>, usize) {
    let retry = Retry { client_id: ClientId(Uuid::nil()), attempt: 1, age_ms: 0 };
    let bytes = codec::encode(&send(retry, target, vec![FILLER; length]));
    // Behind the body are the two absent numbers and the priority, a byte each.
    let begins = bytes.len() - length - 3;
    (bytes, begins)
}

const FILLER: u8 = b'.';
pub(in crate::load) const CLIENT_ID_BYTES: usize = 16;

impl Tail {
    /// For messages of so many bytes.
    pub(in crate::load) fn new(body_bytes: usize) -> Self {
        let any = UserId::new("any").expect("it is one");
        let (bytes, begins) = example(Target::User(any), body_bytes);
        Self(bytes[begins + STAMP_BYTES..].into())
    }
}

impl Opening {
    /// For messages of so many bytes to this user.
    pub(in crate::load) fn new(to: &UserId, body_bytes: usize) -> Self {
        Self::to(Target::User(to.clone()), body_bytes)
    }

    /// For messages of so many bytes to this group.
    pub(in crate::load) fn to_group(to: &GroupId, body_bytes: usize) -> Self {
        Self::to(Target::Group(to.clone()), body_bytes)
    }

    fn to(target: Target, body_bytes: usize) -> Self {
        let (bytes, begins) = example(target, body_bytes);
        Self(bytes[CLIENT_ID_BYTES..begins].into())
    }
}

/// What is different in every send.
#[derive(Debug, Clone, Copy)]
pub(in crate::load) struct Single {
    pub(in crate::load) request_id: u64,
    pub(in crate::load) client_id: [u8; CLIENT_ID_BYTES],
    pub(in crate::load) stamp: Stamp,
}

/// Writes a `Send`, framed.
pub(in crate::load) fn put_send(
    out: &mut Vec<u8>,
    framing: Framing,
    single: Single,
    opening: &Opening,
    tail: &Tail,
) {
    let body = CLIENT_ID_BYTES + opening.0.len() + STAMP_BYTES + tail.0.len();
    let begin = begin(out, framing);
    codec::put_varint(out, single.request_id);
    codec::put_varint(out, u64::from(type_number::SEND));
    codec::put_varint(out, body as u64);
    out.extend_from_slice(&single.client_id);
    out.extend_from_slice(&opening.0);
    out.extend_from_slice(&single.stamp.encode());
    out.extend_from_slice(&tail.0);
    finish(out, framing, begin);
}

/// A `Send` that was written before, as it is written again: so often, so long after the first time.
pub(in crate::load) fn again(
    single: Single,
    attempt: u32,
    age: Duration,
    target: Target,
    body_bytes: usize,
) -> Send {
    let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let client_id = ClientId(Uuid::from_bytes(single.client_id));
    let mut body = vec![FILLER; body_bytes];
    body[..STAMP_BYTES].copy_from_slice(&single.stamp.encode());
    send(Retry { client_id, attempt, age_ms }, target, body)
}

/// Writes any request, framed.
pub(in crate::load) fn put_request(out: &mut Vec<u8>, framing: Framing, request_id: u64, request: &Request) {
    let begin = begin(out, framing);
    out.extend_from_slice(&request.encode(Codec::Bincode, request_id));
    finish(out, framing, begin);
}

/// Asks for the upgrade of a new connection to WebSocket.
pub(in crate::load) fn upgrade(host: SocketAddr) -> String {
    // The key need not be secret nor new: it keeps caches from answering, and there are none.
    format!(
        "GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: Y29udm9rZSBiZW5jaCAwMA==\r\n\
         Sec-WebSocket-Protocol: convoke.bincode\r\n\r\n"
    )
}

/// Takes the answer to that off the front of what was read: whether it was agreed to; `None` if its end is to come.
pub(in crate::load) fn upgraded(read: &mut &[u8]) -> Option<bool> {
    const END: &[u8] = b"\r\n\r\n";
    let end = read.windows(END.len()).position(|window| window == END)?;
    let agreed = read.starts_with(b"HTTP/1.1 101 ");
    *read = &read[end + END.len()..];
    Some(agreed)
}

/// A client's WebSocket header with a length of two bytes: two bytes, the length, the mask.
const WEBSOCKET_HEADER: usize = 8;
/// Final, binary.
const BINARY: u8 = 0x82;
/// A client's frames are masked. With a mask of zeros the payload stays as it is.
const MASKED: u8 = 0x80;

/// Leaves room for what stands before a frame; where that is.
fn begin(out: &mut Vec<u8>, framing: Framing) -> usize {
    let begin = out.len();
    let room = if framing == Framing::Tcp { LENGTH_BYTES } else { WEBSOCKET_HEADER };
    out.resize(begin + room, 0);
    begin
}

/// Fills it in.
fn finish(out: &mut Vec<u8>, framing: Framing, begin: usize) {
    if framing == Framing::Tcp {
        let length =
            u32::try_from(out.len() - begin - LENGTH_BYTES).expect("bodies are bounded far below 4 GiB");
        out[begin..begin + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        return;
    }
    let length = out.len() - begin - WEBSOCKET_HEADER;
    out[begin] = BINARY;
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => {
            out[begin + 1] = MASKED | short;
            out.drain(begin + 2..begin + 4);
        }
        (_, Ok(length)) => {
            out[begin + 1] = MASKED | 126;
            out[begin + 2..begin + 4].copy_from_slice(&length.to_be_bytes());
        }
        _ => {
            out[begin + 1] = MASKED | 127;
            let long = (length as u64).to_be_bytes();
            out.splice(begin + 2..begin + 4, long);
        }
    }
}

/// Takes the next whole frame off the front of what was read; `None` if it is still to come.
///
/// # Errors
/// The bytes are no frame.
pub(in crate::load) fn next<'a>(
    read: &mut &'a [u8],
    framing: Framing,
) -> Result<Option<RawFrame<'a>>, CodecError> {
    let frame = if framing == Framing::Tcp { next_of_tcp(read) } else { next_of_websocket(read) };
    frame.map(codec::split_frame).transpose()
}

fn next_of_tcp<'a>(read: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = read.split_first_chunk::<LENGTH_BYTES>()?;
    let (frame, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *read = rest;
    Some(frame)
}

/// A server's frames are neither masked nor cut; those that are not binary (a ping, a close) are passed over.
fn next_of_websocket<'a>(read: &mut &'a [u8]) -> Option<&'a [u8]> {
    loop {
        let ([first, length], rest) = read.split_first_chunk()?;
        let (length, rest) = match length {
            126 => {
                rest.split_first_chunk().map(|(long, rest)| (u64::from(u16::from_be_bytes(*long)), rest))?
            }
            127 => rest.split_first_chunk().map(|(long, rest)| (u64::from_be_bytes(*long), rest))?,
            short => (u64::from(*short), rest),
        };
        let (frame, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        *read = rest;
        if *first == BINARY {
            return Some(frame);
        }
    }
}

/// The beginning of a `Sent`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(in crate::load) struct SentHead<'a> {
    #[serde(borrow)]
    pub(in crate::load) conversation: &'a str,
    pub(in crate::load) seq: u64,
}

/// The beginning of a `Push`: its fields and the message's up to the body, in their order.
#[derive(Deserialize)]
struct PushHead<'a> {
    conversation: &'a str,
    _lane_previous: u64,
    seq: u64,
    _message_id: [u8; 16],
    _sender: &'a str,
    _device: &'a str,
    _client_id: [u8; 16],
    _time: u64,
    _kind: u8,
    _priority: u8,
    _content_type: &'a str,
    #[serde(borrow)]
    body: &'a [u8],
}

/// What is needed of a `Push`.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::load) struct Pushed<'a> {
    pub(in crate::load) conversation: &'a str,
    pub(in crate::load) seq: u64,
    pub(in crate::load) stamp: Stamp,
}

/// Reads the beginning of a `Sent`; `None` if it is none that a server may send.
pub(in crate::load) fn read_sent(body: &[u8]) -> Option<SentHead<'_>> {
    let head: SentHead<'_> = codec::decode(body).ok()?;
    (1..=MAX_SEQ).contains(&head.seq).then_some(head)
}

/// Reads the beginning of a `Push`; `None` if it is none of a message of this load test.
pub(in crate::load) fn read_push(body: &[u8]) -> Option<Pushed<'_>> {
    let head: PushHead<'_> = codec::decode(body).ok()?;
    let stamp = Stamp::decode(head.body)?;
    (1..=MAX_SEQ).contains(&head.seq).then_some(Pushed {
        conversation: head.conversation,
        seq: head.seq,
        stamp,
    })
}

#[cfg(test)]
mod tests {
    use convoke_protocol::event::Push;
    use convoke_protocol::id::{ConversationId, DeviceId, MessageId, Seq, Timestamp};
    use convoke_protocol::message::{Message, MessageKind};
    use convoke_protocol::request::messages::Sent;

    use super::*;

    const STAMP: Stamp = Stamp { intended_us: u64::MAX - 7, side: SideId(70_000), counter: 123_456 };

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    #[test]
    fn a_send_from_a_template_is_what_the_codec_reads() {
        for (body_bytes, request_id) in
            [(STAMP_BYTES, 1), (128, 250), (250, 251), (1000, 70_000), (70_000, 1 << 40)]
        {
            let to = user("bench-0123abcd-17");
            let single = Single { request_id, client_id: [0xAB; 16], stamp: STAMP };
            let mut out = b"before".to_vec();
            put_send(&mut out, Framing::Tcp, single, &Opening::new(&to, body_bytes), &Tail::new(body_bytes));
            let mut read = &out[6..];
            let frame = next(&mut read, Framing::Tcp).unwrap().unwrap();
            assert!(read.is_empty());
            assert_eq!(frame.head.request_id, request_id);
            let request = Request::decode(Codec::Bincode, frame.head.type_number, frame.body).unwrap();
            let Some(Request::Send(send)) = request else { panic!("{request:?}") };
            assert_eq!(codec::encode(&send), frame.body, "and nothing behind it");
            assert_eq!(send.target, Target::User(to));
            assert_eq!(send.retry.client_id.0.into_bytes(), [0xAB; 16]);
            assert_eq!((send.retry.attempt, send.retry.age_ms), (1, 0));
            assert_eq!(send.content.body.len(), body_bytes);
            assert_eq!(Stamp::decode(&send.content.body), Some(STAMP));
        }
    }

    #[test]
    fn what_a_server_sends_is_read_up_to_what_is_needed() {
        let conversation = ConversationId::direct(&user("a"), &user("b"));
        let sent = Sent {
            conversation: conversation.clone(),
            seq: Seq(300),
            message_id: MessageId(Uuid::now_v7()),
            time: Timestamp(1_700_000_000_000),
        };
        let body = codec::encode(&sent);
        assert_eq!(read_sent(&body), Some(SentHead { conversation: "d:a:b", seq: 300 }));
        assert_eq!(read_sent(&body[..4]), None);

        let push = Push {
            conversation,
            lane_previous: Seq(299),
            message: Message {
                seq: Seq(300),
                message_id: MessageId(Uuid::now_v7()),
                sender: user("a"),
                device: DeviceId::new("phone").unwrap(),
                client_id: ClientId::random(),
                time: Timestamp(1_700_000_000_000),
                kind: MessageKind::USER,
                priority: Priority::NORMAL,
                content: Content { content_type: ContentType::text(), body: STAMP.encode().to_vec().into() },
                reply_to: Some(Seq(5)),
                previous: None,
                target: None,
                edited_at: None,
                recalled_at: None,
                deleted_at: None,
                reactions: Vec::new(),
            },
        };
        let body = codec::encode(&push);
        assert_eq!(read_push(&body), Some(Pushed { conversation: "d:a:b", seq: 300, stamp: STAMP }));
        let mut short = push.clone();
        short.message.content.body.truncate(STAMP_BYTES - 1);
        assert_eq!(read_push(&codec::encode(&short)), None);
        let mut wild = push;
        wild.message.seq = Seq(u64::MAX);
        assert_eq!(read_push(&codec::encode(&wild)), None);
    }

    #[test]
    fn frames_are_taken_whole() {
        let mut out = Vec::new();
        let single = Single { request_id: 1, client_id: [0; 16], stamp: STAMP };
        put_send(&mut out, Framing::Tcp, single, &Opening::new(&user("a"), 64), &Tail::new(64));
        for cut in 0..out.len() {
            let mut read = &out[..cut];
            assert_eq!(next(&mut read, Framing::Tcp), Ok(None));
            assert_eq!(read.len(), cut);
        }
        let mut read: &[u8] = &[0, 0, 0, 2, 255, 255];
        assert!(next(&mut read, Framing::Tcp).is_err());
    }

    #[test]
    fn websocket_frames_are_as_the_standard_says() {
        let framing = Framing::WebSocket(Codec::Bincode);
        for (body_bytes, header) in
            [(32, vec![0x82, 0x80 | 80]), (128, vec![0x82, 0xFE, 0, 176]), (70_000, vec![0x82, 0xFF, 0, 0])]
        {
            let single = Single { request_id: 7, client_id: [0xAB; 16], stamp: STAMP };
            let mut out = Vec::new();
            put_send(
                &mut out,
                framing,
                single,
                &Opening::new(&user("a"), body_bytes),
                &Tail::new(body_bytes),
            );
            let mut plain = Vec::new();
            let (opening, tail) = (Opening::new(&user("a"), body_bytes), Tail::new(body_bytes));
            put_send(&mut plain, Framing::Tcp, single, &opening, &tail);
            assert!(out.ends_with(&plain[LENGTH_BYTES..]), "behind the header stands the same frame");
            assert_eq!(out[0], header[0]);
            assert_eq!(out[1] & 0x80, 0x80, "masked");
            if header.len() == 4 {
                assert_eq!(out[1], header[1]);
            }
        }
        // A ping, then a frame as a server sends it, in one piece or cut anywhere.
        let ping = [0x89, 1, b'x'];
        let frame = framing.wrap(
            &convoke_protocol::frame::Answer::from(convoke_protocol::error_code::RequestError::not_done(
                convoke_protocol::error_code::ErrorCode::INTERNAL,
                "x".repeat(300),
            ))
            .encode(Codec::Bincode, 9),
        );
        let all = [&ping[..], &frame].concat();
        for cut in 0..all.len() {
            let mut read = &all[..cut];
            assert_eq!(next(&mut read, framing), Ok(None));
        }
        let mut read = &all[..];
        assert_eq!(next(&mut read, framing).unwrap().unwrap().head.request_id, 9);
        assert!(read.is_empty());
    }

    #[test]
    fn type_numbers_are_those_of_the_table() {
        use convoke_protocol::frame::{ERROR_TYPE, type_number};
        for (name, number) in [
            ("send", type_number::SEND),
            ("welcome", type_number::WELCOME),
            ("logged_in", type_number::LOGGED_IN),
            ("sent", type_number::SENT),
            ("push", type_number::PUSH),
            ("lagged", type_number::LAGGED),
            ("go_away", type_number::GO_AWAY),
            ("kicked", type_number::KICKED),
            ("synced_since", type_number::SYNCED_SINCE),
        ] {
            assert_eq!(type_number(name), Some(number), "{name}");
        }
        assert_eq!(type_number::ERROR, ERROR_TYPE);
    }
}
