//! What one message costs the core of a conversation, with a store that is done at once.
//!
//! `cargo bench --bench core [-- SECONDS]` prints a line for each size of batch: a batch is written and confirmed while
//! the next one gathers, as its actor does it.

#![allow(clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use convoke::actors::conversation::core::{
    Beginning, ConversationCore, CoreLimits, Effect, IdSource, SendCommand,
};
use convoke::auth::Role;
use convoke::clock::{Clock, Now};
use convoke::load::report::conditions::Conditions;
use convoke::storage::{Epoch, LogRow, WriteStamp};
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, MessageId, Timestamp, UserId};
use convoke_protocol::message::{Content, ContentType, MessageKind, Priority};
use convoke_protocol::request::Retry;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::{Builder, Uuid};

const BODY_BYTES: usize = 128;
const BATCHES: [usize; 5] = [1, 4, 16, 64, 256];

/// Ids that cost nothing: what making them costs is not the core's.
struct Counter(u128);

impl IdSource for Counter {
    fn write_stamp(&mut self) -> WriteStamp {
        unreachable!("nothing is changed")
    }

    fn message_id(&mut self, time: Timestamp) -> MessageId {
        self.0 += 1;
        MessageId(Uuid::from_u128(u128::from(time.0) << 80 | self.0))
    }
}

struct Run {
    core: ConversationCore<u64>,
    ids: Counter,
    random: SmallRng,
    clock: Clock,
    users: [UserId; 2],
    device: DeviceId,
    content: Content,
    effects: Vec<Effect<u64>>,
    sent: u64,
    answered: u64,
    published: u64,
}

impl Run {
    fn new() -> Self {
        let users = ["alice", "bob"].map(|name| UserId::new(name).expect("valid"));
        let conversation = ConversationId::direct(&users[0], &users[1]);
        let stamp = WriteStamp::new(Epoch(1), 0);
        let limits = CoreLimits::default();
        Self {
            core: ConversationCore::new(conversation, limits, Epoch(1), stamp, Beginning::empty()),
            ids: Counter(0),
            random: SmallRng::seed_from_u64(1),
            clock: Clock::new(0),
            users,
            device: DeviceId::new("phone").expect("valid"),
            content: Content { content_type: ContentType::text(), body: Bytes::from(vec![b'x'; BODY_BYTES]) },
            effects: Vec::new(),
            sent: 0,
            answered: 0,
            published: 0,
        }
    }

    fn send(&mut self, now: Now) {
        let client_id = ClientId(Builder::from_random_bytes(self.random.random()).into_uuid());
        let command = SendCommand {
            sender: self.users[self.sent as usize % 2].clone(),
            role: Role::User,
            device: self.device.clone(),
            retry: Retry { client_id, attempt: 1, age_ms: 0 },
            kind: MessageKind::USER,
            priority: Priority::NORMAL,
            content: self.content.clone(),
            reply_to: None,
            previous: None,
        };
        self.core.send(command, self.sent, now, &mut self.ids, &mut self.effects);
        self.sent += 1;
    }

    /// The batch in flight is stored and confirmed, and the next one begins.
    fn commit(&mut self, now: Now) {
        self.core.written(Ok(()), now, &mut self.ids, &mut self.effects);
        self.core.confirmed(true, now, &mut self.ids, &mut self.effects);
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Answer { result, .. } => self.answered += u64::from(black_box(result).is_ok()),
                Effect::Publish(rows) => self.published += black_box::<Arc<[LogRow]>>(rows).len() as u64,
                Effect::Append { .. } | Effect::Confirm | Effect::Wake(_) => {}
                Effect::Load(_) | Effect::Project(_) | Effect::Hint(..) => unreachable!("nothing is changed"),
            }
        }
    }

    fn measure(mut self, batch: usize, measured: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < measured {
            // The clock is read once for each input, as the actor does.
            for _ in 0..batch {
                let now = self.clock.now();
                self.send(now);
            }
            let now = self.clock.now();
            self.commit(now);
        }
        while !self.core.is_idle() {
            let now = self.clock.now();
            self.commit(now);
        }
        let elapsed = begun.elapsed();
        assert_eq!((self.answered, self.published), (self.sent, self.sent), "each is answered and published");
        let each = elapsed.as_secs_f64() / self.sent as f64;
        println!("batches of {batch:>4}  {:>9.0} ns/message  {:>9.0} messages/s", each * 1e9, 1.0 / each);
    }
}

fn main() {
    // Cargo adds --bench to what is asked for.
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1.0);
    println!("{}bodies of {BODY_BYTES} bytes, {seconds} s each", Conditions::gather(None));
    for batch in BATCHES {
        Run::new().measure(batch, Duration::from_secs_f64(seconds));
    }
}
