//! The frames of the measured loop, written from templates and read no further than is needed: the load generator
//! shares the machine with the server, and what it spends the server cannot have.

use bytes::Bytes;
use convoke_protocol::codec::{self, CodecError};
use convoke_protocol::frame::{Codec, RawFrame, Request};
use convoke_protocol::framing::LENGTH_BYTES;
use convoke_protocol::id::{ClientId, UserId};
use convoke_protocol::message::{Content, ContentType, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::messages::{Send, Target};
use serde::Deserialize;
use uuid::Uuid;

use super::ledger::SideId;

/// Type numbers of the frames that the loop looks at (`frame.rs` has the table, a test compares).
pub(super) mod type_number {
    pub(crate) const SEND: u16 = 5;
    pub(crate) const ERROR: u16 = 100;
    pub(crate) const WELCOME: u16 = 101;
    pub(crate) const LOGGED_IN: u16 = 102;
    pub(crate) const SENT: u16 = 105;
    pub(crate) const PUSH: u16 = 200;
    pub(crate) const LAGGED: u16 = 201;
    pub(crate) const GO_AWAY: u16 = 202;
    pub(crate) const KICKED: u16 = 203;
}

/// Numbers above this are no server's: nobody sends so many messages.
const MAX_SEQ: u64 = 1 << 53;

/// Bytes of a time stamp; no message's body is shorter.
pub const STAMP_BYTES: usize = 16;

/// The beginning of each message's body: what its receiver needs to know, so that nobody keeps a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// When it was to be sent, in microseconds of the sender's clock, which is the receiver's too.
    pub(super) intended_us: u64,
    /// The sending side.
    pub(super) side: SideId,
    /// Which of the side's messages it is.
    pub(super) counter: u32,
}

impl Stamp {
    fn encode(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.intended_us.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.side.0.to_le_bytes());
        bytes[12..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }

    fn decode(body: &[u8]) -> Option<Self> {
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
pub(super) struct Tail(Box<[u8]>);

/// What the sends to one user have in common before their content.
#[derive(Debug)]
pub(super) struct Opening(Box<[u8]>);

/// A send whose body is `length` bytes, as the protocol's codec writes it, and where in it the message's body begins.
fn example(to: &UserId, length: usize) -> (Vec<u8>, usize) {
    let send = Send {
        retry: Retry { client_id: ClientId(Uuid::nil()), attempt: 1, age_ms: 0 },
        target: Target::User(to.clone()),
        content: Content {
            content_type: ContentType::new("application/octet-stream").expect("it is one"),
            body: Bytes::from(vec![FILLER; length]),
        },
        reply_to: None,
        previous: None,
        priority: Priority::NORMAL,
    };
    let bytes = codec::encode(&send);
    // Behind the body are the two absent numbers and the priority, a byte each.
    let begins = bytes.len() - length - 3;
    (bytes, begins)
}

const FILLER: u8 = b'.';
const CLIENT_ID_BYTES: usize = 16;

impl Tail {
    /// For messages of so many bytes.
    pub(super) fn new(body_bytes: usize) -> Self {
        let any = UserId::new("any").expect("it is one");
        let (bytes, begins) = example(&any, body_bytes);
        Self(bytes[begins + STAMP_BYTES..].into())
    }
}

impl Opening {
    /// For messages of so many bytes to this user.
    pub(super) fn new(to: &UserId, body_bytes: usize) -> Self {
        let (bytes, begins) = example(to, body_bytes);
        Self(bytes[CLIENT_ID_BYTES..begins].into())
    }
}

/// What is different in every send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Single {
    pub(super) request_id: u64,
    pub(super) client_id: [u8; CLIENT_ID_BYTES],
    pub(super) stamp: Stamp,
}

/// Writes a `Send`, with the length before it.
pub(super) fn put_send(out: &mut Vec<u8>, single: Single, opening: &Opening, tail: &Tail) {
    let body = CLIENT_ID_BYTES + opening.0.len() + STAMP_BYTES + tail.0.len();
    let begin = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    codec::put_varint(out, single.request_id);
    codec::put_varint(out, u64::from(type_number::SEND));
    codec::put_varint(out, body as u64);
    out.extend_from_slice(&single.client_id);
    out.extend_from_slice(&opening.0);
    out.extend_from_slice(&single.stamp.encode());
    out.extend_from_slice(&tail.0);
    put_length(out, begin);
}

/// Writes any request, with the length before it.
pub(super) fn put_request(out: &mut Vec<u8>, request_id: u64, request: &Request) {
    let begin = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    out.extend_from_slice(&request.encode(Codec::Bincode, request_id));
    put_length(out, begin);
}

fn put_length(out: &mut [u8], begin: usize) {
    let length = u32::try_from(out.len() - begin - LENGTH_BYTES).expect("bodies are bounded far below 4 GiB");
    out[begin..begin + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// Takes the next whole frame off the front of what was read; `None` if it is still to come.
///
/// # Errors
/// The bytes are no frame.
pub(super) fn next<'a>(read: &mut &'a [u8]) -> Result<Option<RawFrame<'a>>, CodecError> {
    let Some((length, rest)) = read.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let Some((frame, rest)) = rest.split_at_checked(u32::from_be_bytes(*length) as usize) else {
        return Ok(None);
    };
    *read = rest;
    codec::split_frame(frame).map(Some)
}

/// The beginning of a `Sent`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct SentHead<'a> {
    #[serde(borrow)]
    pub(super) conversation: &'a str,
    pub(super) seq: u64,
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
pub(super) struct Pushed<'a> {
    pub(super) conversation: &'a str,
    pub(super) seq: u64,
    pub(super) stamp: Stamp,
}

/// Reads the beginning of a `Sent`; `None` if it is none that a server may send.
pub(super) fn read_sent(body: &[u8]) -> Option<SentHead<'_>> {
    let head: SentHead<'_> = codec::decode(body).ok()?;
    (1..=MAX_SEQ).contains(&head.seq).then_some(head)
}

/// Reads the beginning of a `Push`; `None` if it is none of a message of this load test.
pub(super) fn read_push(body: &[u8]) -> Option<Pushed<'_>> {
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
            put_send(&mut out, single, &Opening::new(&to, body_bytes), &Tail::new(body_bytes));
            let mut read = &out[6..];
            let frame = next(&mut read).unwrap().unwrap();
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
        put_send(&mut out, single, &Opening::new(&user("a"), 64), &Tail::new(64));
        for cut in 0..out.len() {
            let mut read = &out[..cut];
            assert_eq!(next(&mut read), Ok(None));
            assert_eq!(read.len(), cut);
        }
        let mut read: &[u8] = &[0, 0, 0, 2, 255, 255];
        assert!(next(&mut read).is_err());
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
        ] {
            assert_eq!(type_number(name), Some(number), "{name}");
        }
        assert_eq!(type_number::ERROR, ERROR_TYPE);
    }
}
