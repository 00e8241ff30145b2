//! One side of a conversation: sends, repeats what is not answered at whichever node it reaches, and writes everything down.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use convoke_client::connection::{Connection, DEFAULT_MAX_FRAME, FrameWriter, Opening};
use convoke_protocol::error_code::Outcome;
use convoke_protocol::event::NodeAddress;
use convoke_protocol::frame::{Answer, Event, Incoming, Request};
use convoke_protocol::id::{ClientId, ConversationId, Seq, UserId};
use convoke_protocol::message::{Content, ContentType, Message, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::messages::{Ack, Pull, PullRange, Pulled, Send, Target};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;

use super::ledger::{Ledger, Seen, SessionPushes};
use super::{Order, Told};
use crate::load::client;

/// How long a connection may take.
const OPEN_WITHIN: Duration = Duration::from_secs(3);
/// The pause before the next attempt.
const PAUSE: Duration = Duration::from_millis(100);
/// A send that is not answered is repeated on a new connection after so long.
const PATIENCE: Duration = Duration::from_secs(12);
/// Pushes are acknowledged together, and at least so often.
const ACK_EVERY: Duration = Duration::from_millis(500);
/// The same of users who say little.
const TICK_AT_REST: Duration = Duration::from_secs(1);
/// Messages of one page that is asked for.
const PAGE: u64 = 1_000;

/// A send without an answer that settles it.
struct Open {
    client_id: ClientId,
    attempt: u32,
    first: Instant,
    /// When it is to be repeated, if it waits for that.
    again: Option<Instant>,
}

pub(super) struct Side {
    pub(super) user: UserId,
    pub(super) peer: UserId,
    pub(super) token: String,
    pub(super) addresses: Vec<String>,
    pub(super) first_address: usize,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) in_flight: usize,
    pub(super) pause: Duration,
    pub(super) body_bytes: usize,
    pub(super) told: Arc<Told>,
}

/// What goes on from one connection to the next.
struct Course {
    /// What is sent, and not settled.
    open: Vec<Open>,
    /// The highest message that was seen.
    seen: Seq,
    /// Nothing new is said before.
    quiet_until: Instant,
    /// When the last connection was lost, until everything was fetched that was said meanwhile.
    lost_at: Option<Instant>,
    /// The page that is asked for.
    asked_page: Option<u64>,
    /// Whether a page could not be had, and is to be asked for again.
    page_again: bool,
}

/// Why a connection is given up.
enum Ended {
    /// It broke, or the node went.
    Broken,
    /// Everything is answered, and nothing more is to be sent.
    Finished,
}

impl Side {
    fn conversation(&self) -> ConversationId {
        ConversationId::direct(&self.user, &self.peer)
    }

    /// Talks until it is told to stop and everything is answered, or its time is over.
    pub(super) async fn run(mut self, mut orders: watch::Receiver<Order>) {
        let mut random = SmallRng::from_os_rng();
        let mut course = Course {
            open: Vec::new(),
            seen: Seq::ZERO,
            // Users who pause do not all speak at once.
            quiet_until: Instant::now() + self.pause.mul_f64(random.random_range(0.0..1.0)),
            lost_at: None,
            asked_page: None,
            page_again: false,
        };
        let mut arrives = true;
        loop {
            let over = match *orders.borrow_and_update() {
                Order::Talk => false,
                Order::Settle { until } => course.open.is_empty() || Instant::now() >= until,
            };
            if over {
                return;
            }
            let address = self.addresses[self.first_address % self.addresses.len()].clone();
            let opening = Opening {
                address,
                tls: None,
                app: ("convoke bench".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                login: client::login(self.token.clone()),
                timeout: OPEN_WITHIN,
                max_frame: DEFAULT_MAX_FRAME,
            };
            let opened = if std::mem::take(&mut arrives) {
                let _place = self.told.door.acquire().await;
                Connection::open(opening).await
            } else {
                Connection::open(opening).await
            };
            if let Ok(connection) = opened {
                self.told.connected();
                self.learn(&connection.welcome.nodes);
                let ended = self.talk(connection, &mut orders, &mut course).await;
                if matches!(ended, Ended::Finished) {
                    return;
                }
                // Lost again before everything was back: still the same loss.
                course.lost_at.get_or_insert_with(Instant::now);
            }
            self.first_address += 1;
            tokio::time::sleep(PAUSE.mul_f64(random.random_range(0.5..1.5))).await;
        }
    }

    fn learn(&mut self, nodes: &[NodeAddress]) {
        let addresses: Vec<String> = nodes.iter().filter_map(|node| node.tcp.clone()).collect();
        if !addresses.is_empty() {
            self.addresses = addresses;
        }
    }

    fn send(&self, open: &Open) -> Request {
        let age_ms = u64::try_from(open.first.elapsed().as_millis()).unwrap_or(u64::MAX);
        let age_ms = if open.attempt == 1 { 0 } else { age_ms };
        let body = Bytes::from(vec![b'.'; self.body_bytes]);
        Send {
            retry: Retry { client_id: open.client_id, attempt: open.attempt, age_ms },
            target: Target::User(self.peer.clone()),
            content: Content { content_type: ContentType::text(), body },
            reply_to: None,
            previous: None,
            priority: Priority::NORMAL,
        }
        .into()
    }

    async fn talk(
        &mut self,
        connection: Connection,
        orders: &mut watch::Receiver<Order>,
        course: &mut Course,
    ) -> Ended {
        let Connection { mut reader, mut writer, .. } = connection;
        let mut session = SessionPushes::default();
        let (mut pushes, mut acked) = (0_u64, 0_u64);
        let mut asked: HashMap<u64, ClientId> = HashMap::new();
        for one in &mut course.open {
            one.attempt += 1;
            one.again = None;
            asked.insert(writer.put(&self.send(one)), one.client_id);
        }
        self.pull(&mut writer, course);
        let mut ticks = tokio::time::interval(if self.pause.is_zero() { ACK_EVERY } else { TICK_AT_REST });
        loop {
            let talks = match *orders.borrow_and_update() {
                Order::Talk => true,
                Order::Settle { until } if course.open.is_empty() || Instant::now() >= until => {
                    return Ended::Finished;
                }
                Order::Settle { .. } => false,
            };
            let quiet = Instant::now() < course.quiet_until;
            while talks && !quiet && course.open.len() < self.in_flight {
                let client_id = ClientId::random();
                let one = Open { client_id, attempt: 1, first: Instant::now(), again: None };
                self.ledger.lock().sent(client_id);
                asked.insert(writer.put(&self.send(&one)), client_id);
                course.open.push(one);
            }
            for one in course.open.iter_mut().filter(|one| one.again.is_some_and(|at| at <= Instant::now())) {
                one.attempt += 1;
                one.again = None;
                asked.insert(writer.put(&self.send(one)), one.client_id);
            }
            if writer.flush().await.is_err() {
                return Ended::Broken;
            }
            tokio::select! {
                incoming = reader.next() => match incoming {
                    Ok(Incoming::Answer(id, answer)) => {
                        let sent = asked.remove(&id);
                        self.answered((id, sent), answer, course, &mut writer);
                    }
                    Ok(Incoming::Event(Event::Push(push))) => {
                        pushes += 1;
                        course.seen = push.message.seq.max(course.seen);
                        if push.conversation == self.conversation() {
                            self.ledger.lock().pushed(&mut session, of(&push.message));
                        }
                    }
                    Ok(Incoming::Event(Event::Lagged(_))) => self.pull(&mut writer, course),
                    Ok(Incoming::Event(Event::NodesChanged(changed))) => self.learn(&changed.nodes),
                    Ok(Incoming::Event(Event::GoAway(go_away))) => {
                        self.learn(&go_away.nodes);
                        return Ended::Broken;
                    }
                    Ok(_) => {}
                    Err(_) => return Ended::Broken,
                },
                _ = ticks.tick() => {
                    if pushes > acked {
                        acked = pushes;
                        writer.put(&Ack { pushes, cursors: Vec::new() }.into());
                    }
                    if std::mem::take(&mut course.page_again) {
                        self.pull(&mut writer, course);
                    }
                    let late = |one: &Open| one.again.is_none() && one.first.elapsed() > PATIENCE * one.attempt;
                    if course.open.iter().any(late) {
                        return Ended::Broken;
                    }
                }
                () = tokio::time::sleep_until(course.quiet_until.into()), if talks && quiet => {}
                changed = orders.changed() => {
                    if changed.is_err() {
                        return Ended::Finished;
                    }
                }
            }
        }
    }

    /// Asks for what was said since: a page is written down like a push.
    fn pull(&self, writer: &mut FrameWriter, course: &mut Course) {
        let from = course.seen.next();
        let range = PullRange { conversation: self.conversation(), from, to: Seq(from.0 + PAGE - 1) };
        course.asked_page = Some(writer.put(&Pull { ranges: vec![range] }.into()));
    }

    /// A page came.
    fn had(&self, pulled: Pulled, course: &mut Course, writer: &mut FrameWriter) {
        let mut more = false;
        for page in pulled.pages {
            let seen: Vec<Seen> = page.messages.iter().map(of).collect();
            self.ledger.lock().page(&seen);
            course.seen = page.messages.last().map_or(course.seen, |last| last.seq.max(course.seen));
            more |= page.next.is_some();
        }
        if more {
            self.pull(writer, course);
        } else if let Some(lost_at) = course.lost_at.take() {
            self.told.back(lost_at.elapsed());
        }
    }

    fn answered(
        &self,
        (id, sent): (u64, Option<ClientId>),
        answer: Answer,
        course: &mut Course,
        writer: &mut FrameWriter,
    ) {
        if course.asked_page == Some(id) {
            course.asked_page = None;
            match answer {
                Answer::Pulled(pulled) => self.had(pulled, course, writer),
                _ => course.page_again = true,
            }
            return;
        }
        let open = &mut course.open;
        let Some(place) = sent.and_then(|id| open.iter().position(|one| one.client_id == id)) else {
            return;
        };
        match answer {
            Answer::Sent(sent) => {
                let one = open.swap_remove(place);
                self.ledger.lock().acked(one.client_id, sent.seq, sent.message_id);
                self.told.acked(one.first.elapsed(), one.attempt);
                course.quiet_until = Instant::now() + self.pause;
            }
            Answer::Error(error) => {
                self.told.refused(&error);
                match error.retry_after_ms {
                    Some(ms) => {
                        let wait = Duration::from_millis(u64::from(ms)).min(Duration::from_secs(1));
                        open[place].again = Some(Instant::now() + wait);
                    }
                    // Stale, or refused for good: if it may have happened, only the end tells.
                    None => {
                        let one = open.swap_remove(place);
                        if error.outcome == Outcome::NOT_DONE && one.attempt == 1 {
                            self.ledger.lock().refused(one.client_id);
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

pub(super) fn of(message: &Message) -> Seen {
    Seen { seq: message.seq, id: message.message_id, client_id: message.client_id }
}
