//! One user of a soak: talks, listens, goes and comes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use convoke_client::{Client, ClientConfig, ClientError, ClientEvent, Draft, Events, SentReceipt, Start};
use convoke_protocol::id::{ConversationId, GroupId, Seq, UserId};
use convoke_protocol::message::{Content, ContentType, Cursor, MessageKind};
use convoke_protocol::request::messages::Target;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;

use super::SoakOptions;
use crate::load::latency::Latencies;
use crate::load::series::Series;

/// Bytes of each body.
const BODY_BYTES: usize = 128;
/// Messages of one user without an answer.
const MAX_IN_FLIGHT: usize = 16;
/// The longest time that a user is away.
const MAX_AWAY: Duration = Duration::from_millis(500);
/// Of so many messages one goes to the last place, which is the largest.
const LARGE_ONE_IN: u32 = 20;
/// Nothing may come for so long before a user believes to have everything.
const QUIET: Duration = Duration::from_secs(2);

/// Where a user talks.
#[derive(Debug, Clone)]
pub(super) enum Place {
    User(UserId),
    Group(GroupId),
}

impl Place {
    fn target(&self) -> Target {
        match self {
            Self::User(user) => Target::User(user.clone()),
            Self::Group(group) => Target::Group(group.clone()),
        }
    }
}

/// What all users are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Talk,
    /// Say nothing more, and go home once nothing more comes.
    Settle {
        within: Duration,
    },
}

/// What one user, or all of them, found.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Acknowledged messages by conversation.
    pub(super) acked: BTreeMap<ConversationId, u64>,
    pub(super) received: u64,
    pub(super) doubled: u64,
    pub(super) gaps: u64,
    pub(super) refused: u64,
    /// Without an answer that says what became of them.
    pub(super) unknown: u64,
    pub(super) first_refusal: Option<String>,
    pub(super) reconnects: u64,
}

/// How long acknowledgements took. One for all users: each second has a histogram of its own, of about 200 KB.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) ack: Latencies,
    pub(super) series: Series,
}

impl Done {
    pub(super) fn merge(&mut self, other: Self) {
        for (conversation, acked) in other.acked {
            *self.acked.entry(conversation).or_default() += acked;
        }
        self.received += other.received;
        self.doubled += other.doubled;
        self.gaps += other.gaps;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.first_refusal = self.first_refusal.take().or(other.first_refusal);
        self.reconnects += other.reconnects;
    }

    fn fail(&mut self, error: &ClientError) {
        match error.outcome() {
            convoke_protocol::error_code::Outcome::UNKNOWN => self.unknown += 1,
            _ => self.refused += 1,
        }
        self.first_refusal.get_or_insert_with(|| error.to_string());
    }
}

/// One user.
pub(super) struct Talker {
    user: UserId,
    config: ClientConfig,
    places: Vec<Place>,
    /// Between two messages, on average.
    pause: Duration,
    stay: Duration,
    began: Instant,
    cursors: BTreeMap<ConversationId, Seq>,
    random: SmallRng,
    done: Done,
    times: Arc<Mutex<Times>>,
}

/// Why a stay ended.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    ToComeBack,
    ForGood,
}

impl Talker {
    pub(super) fn new(
        user: UserId,
        config: ClientConfig,
        places: Vec<Place>,
        options: &SoakOptions,
        began: Instant,
        times: Arc<Mutex<Times>>,
    ) -> Self {
        Self {
            user,
            config,
            places,
            pause: Duration::from_secs_f64(f64::from(options.users) / options.rate),
            stay: options.stay,
            began,
            cursors: BTreeMap::new(),
            random: SmallRng::from_os_rng(),
            done: Done::default(),
            times,
        }
    }

    /// Half to one and a half times as long.
    fn about(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.random.random_range(0.5..1.5))
    }

    pub(super) async fn run(mut self, mut orders: watch::Receiver<Order>) -> Done {
        loop {
            let cursors = self.cursors.iter();
            let cursors = cursors.map(|(id, seq)| Cursor { conversation: id.clone(), seq: *seq }).collect();
            self.config.start = Start::from_cursors(cursors);
            match Client::connect(self.config.clone()).await {
                Ok((client, events)) => {
                    if self.stay(&client, events, &mut orders).await == Left::ForGood {
                        return self.done;
                    }
                }
                Err(error) => {
                    self.done.fail(&error);
                    return self.done;
                }
            }
            self.done.reconnects += 1;
            let away = MAX_AWAY.mul_f64(self.random.random_range(0.0..1.0));
            tokio::time::sleep(away).await;
        }
    }

    async fn stay(
        &mut self,
        client: &Client,
        mut events: Events,
        orders: &mut watch::Receiver<Order>,
    ) -> Left {
        let mut flying = FuturesUnordered::new();
        let leave = tokio::time::sleep(self.about(self.stay));
        tokio::pin!(leave);
        let talk = tokio::time::sleep(self.about(self.pause));
        tokio::pin!(talk);
        let mut talking = matches!(*orders.borrow_and_update(), Order::Talk);
        let mut leaving = false;
        let mut give_up = None;
        let mut heard = tokio::time::Instant::now();
        loop {
            if let (Order::Settle { within }, None) = (*orders.borrow(), give_up) {
                talking = false;
                leaving = false;
                heard = tokio::time::Instant::now();
                give_up = Some(heard + within);
            }
            if leaving && flying.is_empty() {
                return Left::ToComeBack;
            }
            let quiet = tokio::time::sleep_until(heard + QUIET);
            tokio::select! {
                event = events.next() => match event {
                    Some(ClientEvent::Message { conversation, message }) => {
                        heard = tokio::time::Instant::now();
                        self.hear(conversation, message.seq, message.kind);
                    }
                    Some(ClientEvent::Kicked { message, .. }) => {
                        self.done.first_refusal.get_or_insert(message);
                        self.done.refused += 1;
                        return Left::ForGood;
                    }
                    Some(_) => {}
                    None => return Left::ToComeBack,
                },
                Some((asked, answer)) = flying.next() => self.answered(asked, answer),
                () = &mut talk, if talking && !leaving => {
                    if flying.len() < MAX_IN_FLIGHT {
                        match client.send_nowait(self.draft()) {
                            Ok(sending) => {
                                let asked = Instant::now();
                                flying.push(async move { (asked, sending.await) });
                            }
                            Err(error) => self.done.fail(&error),
                        }
                    }
                    let pause = self.about(self.pause);
                    talk.as_mut().reset(tokio::time::Instant::now() + pause);
                }
                () = &mut leave, if talking && !leaving => leaving = true,
                changed = orders.changed(), if give_up.is_none() => {
                    if changed.is_err() {
                        return Left::ForGood;
                    }
                }
                () = quiet, if give_up.is_some() => {
                    let late = give_up.is_some_and(|until| tokio::time::Instant::now() > until);
                    if flying.is_empty() || late {
                        self.done.unknown += flying.len() as u64;
                        return Left::ForGood;
                    }
                    heard = tokio::time::Instant::now();
                }
            }
        }
    }

    fn draft(&mut self) -> Draft {
        let last = self.places.len() - 1;
        let at =
            if self.random.random_ratio(1, LARGE_ONE_IN) { last } else { self.random.random_range(0..last) };
        let mut body = vec![b'.'; BODY_BYTES];
        let name = self.user.as_str().as_bytes();
        body[..name.len()].copy_from_slice(name);
        let content = Content { content_type: ContentType::text(), body: Bytes::from(body) };
        Draft::new(self.places[at].target(), content)
    }

    fn answered(&mut self, asked: Instant, answer: Result<SentReceipt, ClientError>) {
        match answer {
            Ok(receipt) => {
                *self.done.acked.entry(receipt.conversation).or_default() += 1;
                let took = asked.elapsed();
                let mut times = self.times.lock();
                times.ack.record(took);
                times.series.record(self.began.elapsed(), took);
            }
            Err(error) => self.done.fail(&error),
        }
    }

    fn hear(&mut self, conversation: ConversationId, seq: Seq, kind: MessageKind) {
        let cursor = self.cursors.entry(conversation).or_insert(Seq::ZERO);
        if seq <= *cursor {
            self.done.doubled += 1;
            return;
        }
        // What was said before a member came is not its to read: the first number may be any.
        if *cursor != Seq::ZERO {
            self.done.gaps += seq.0 - cursor.0 - 1;
        }
        *cursor = seq;
        if kind == MessageKind::USER {
            self.done.received += 1;
        }
    }
}
