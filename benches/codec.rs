//! What writing and reading the frames of a message costs, in both codecs.
//!
//! `cargo bench --bench codec [-- SECONDS]` prints a line for each frame, codec and direction.

#![allow(clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use convoke::load::report::conditions::Conditions;
use convoke_protocol::codec;
use convoke_protocol::event::Push;
use convoke_protocol::frame::{Answer, Codec, Event, Incoming, Request};
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, ContentType, Message, MessageKind, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::messages::{Send, Sent, Target};
use uuid::Uuid;

const BODIES: [usize; 2] = [128, 4096];
/// So many between two looks at the clock.
const ROUND: u32 = 64;

fn user(name: &str) -> UserId {
    UserId::new(name).expect("valid")
}

fn content(bytes: usize) -> Content {
    Content { content_type: ContentType::text(), body: Bytes::from(vec![b'x'; bytes]) }
}

fn send(bytes: usize) -> Request {
    Request::Send(Send {
        retry: Retry::first(),
        target: Target::User(user("bob@example.org")),
        content: content(bytes),
        reply_to: None,
        previous: Some(Seq(12_345)),
        priority: Priority::NORMAL,
    })
}

fn sent() -> Answer {
    Answer::Sent(Sent {
        conversation: ConversationId::direct(&user("alice@example.org"), &user("bob@example.org")),
        seq: Seq(12_346),
        message_id: MessageId(Uuid::now_v7()),
        time: Timestamp(1_760_000_000_000),
    })
}

fn push(bytes: usize) -> Event {
    Event::Push(Push {
        conversation: ConversationId::direct(&user("alice@example.org"), &user("bob@example.org")),
        lane_previous: Seq(12_345),
        message: Message {
            seq: Seq(12_346),
            message_id: MessageId(Uuid::now_v7()),
            sender: user("alice@example.org"),
            device: DeviceId::new("phone").expect("valid"),
            client_id: ClientId::random(),
            time: Timestamp(1_760_000_000_000),
            kind: MessageKind::USER,
            priority: Priority::NORMAL,
            content: content(bytes),
            reply_to: None,
            previous: Some(Seq(12_345)),
            target: None,
            edited_at: None,
            recalled_at: None,
            deleted_at: None,
            reactions: Vec::new(),
        },
    })
}

/// Repeats it for so long and prints what one took.
fn measure<T>(what: &str, frame_bytes: usize, time: Duration, mut once: impl FnMut() -> T) {
    for _ in 0..ROUND {
        black_box(once());
    }
    let (begun, mut rounds) = (Instant::now(), 0_u64);
    while begun.elapsed() < time {
        for _ in 0..ROUND {
            black_box(once());
        }
        rounds += 1;
    }
    let each = begun.elapsed().as_nanos() as f64 / (rounds * u64::from(ROUND)) as f64;
    println!("{what:<40} {frame_bytes:>6} bytes {each:>9.0} ns/op");
}

fn main() {
    // Cargo adds --bench to what is asked for.
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(0.5);
    let time = Duration::from_secs_f64(seconds);
    println!("{}{seconds} s each", Conditions::gather(None));
    for (codec, name) in [(Codec::Bincode, "bincode"), (Codec::Json, "json")] {
        for bytes in BODIES {
            let request = send(bytes);
            let frame = request.encode(codec, 77);
            measure(&format!("{name}: send of {bytes}, encode"), frame.len(), time, || {
                black_box(&request).encode(codec, 77)
            });
            measure(&format!("{name}: send of {bytes}, decode"), frame.len(), time, || {
                codec::with_frame(codec, black_box(&frame), |raw| {
                    Request::decode(codec, raw.head.type_number, raw.body)
                })
                .expect("it was written above")
            });
            let event = push(bytes);
            let frame = event.encode(codec, 0);
            measure(&format!("{name}: push of {bytes}, encode"), frame.len(), time, || {
                black_box(&event).encode(codec, 0)
            });
            measure(&format!("{name}: push of {bytes}, decode"), frame.len(), time, || {
                Incoming::decode(codec, black_box(&frame)).expect("it was written above")
            });
        }
        let answer = sent();
        let frame = answer.encode(codec, 77);
        measure(&format!("{name}: sent, encode"), frame.len(), time, || black_box(&answer).encode(codec, 77));
        measure(&format!("{name}: sent, decode"), frame.len(), time, || {
            Incoming::decode(codec, black_box(&frame)).expect("it was written above")
        });
    }
}
