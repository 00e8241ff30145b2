//! One thread of the load generator: all its connections behind one epoll, one buffer to read into and one to write
//! from. A message costs it one read for the answer and one for the push, one write, and no wake-up of another thread.

mod following;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use convoke_protocol::codec;
use convoke_protocol::error_code::{Outcome, RequestError};
use convoke_protocol::event::Kicked;
use convoke_protocol::frame::RawFrame;
use convoke_protocol::framing::Framing;
use convoke_protocol::id::ConversationId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Builder;

use super::ledger::{Ledger, Numbered};
use super::plan::Part;
use super::task::{Control, Findings, Job, Phase, Tokens};
use crate::load::LoadError;
use crate::load::client::clients::Clients;
use crate::load::client::connection::{Due, Flight, Stage};
use crate::load::client::following::{BACK_WITHIN, micros};
use crate::load::client::returning::Returning as _;
use crate::load::client::schedule::Schedule;
use crate::load::client::wire::{self, Opening, Single, Stamp, Tail, type_number};
use crate::load::client::{SideId, login};
use crate::load::report::rate;

/// Connections of one process that are being logged in at the same time.
const LOGINS_AT_ONCE: u32 = 200;
/// How long nothing may happen while connections are being logged in.
const LOGIN_PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing must come once everything is there: a second copy would come late.
const GRACE: Duration = Duration::from_millis(200);
/// As the protocol wants it: pushes are acknowledged when so many have come, or after a second.
const ACK_AFTER: u64 = 64;
/// Bytes read at once at most, beside a frame of the longest body.
const READ_BYTES: usize = 64 << 10;

/// How far everything was at a moment.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at_us: u64,
    acked: u64,
    pushed: u64,
}

/// What a side is made of, beside what the ledger has of it.
#[derive(Debug)]
struct Side {
    connection: u32,
    opening: Opening,
    /// Whether it waits to be named in the next acknowledgement.
    moved: bool,
    /// The highest number that was pulled, if anything was: a push of what is below may come after it.
    pulled: u64,
}

/// A message that came to a side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    side: SideId,
    message: Numbered,
    intended_us: u64,
}

/// One thread's connections and conversations.
pub(super) struct Worker<'a> {
    job: &'a Job,
    part: Part,
    tokens: &'a dyn Tokens,
    control: &'a Control,
    clients: Clients<Heard>,
    /// Sides of each connection that is not open yet.
    seats: Vec<Vec<SideId>>,
    sides: Vec<Side>,
    conversations: Vec<ConversationId>,
    ledger: Ledger,
    tail: Tail,
    buffer: Vec<u8>,
    random: SmallRng,
    phase: Phase,
    schedule: Option<Schedule>,
    live: u32,
    begun: Option<Mark>,
    ended: Option<Mark>,
    findings: Findings,
}

impl std::fmt::Debug for Worker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("part", &self.part).field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        job: &'a Job,
        part: Part,
        tokens: &'a dyn Tokens,
        control: &'a Control,
    ) -> Result<Self, LoadError> {
        let mut seats = vec![Vec::new(); part.connections as usize];
        let mut sides = Vec::with_capacity(2 * part.conversations as usize);
        let mut conversations = Vec::with_capacity(part.conversations as usize);
        for (one, other) in part.pairs() {
            let users = [job.user(part.first + one), job.user(part.first + other)];
            for (connection, to) in [(one, &users[1]), (other, &users[0])] {
                seats[connection as usize].push(SideId(u32::try_from(sides.len()).unwrap_or(u32::MAX)));
                sides.push(Side {
                    connection,
                    opening: Opening::new(to, job.body_bytes),
                    moved: false,
                    pulled: 0,
                });
            }
            conversations.push(ConversationId::direct(&users[0], &users[1]));
        }
        Ok(Self {
            job,
            part,
            tokens,
            control,
            clients: Clients::new(Framing::Tcp, &job.addresses, true, control.now_us())?,
            seats,
            sides,
            conversations,
            ledger: Ledger::new(part.conversations),
            tail: Tail::new(job.body_bytes),
            buffer: vec![0; READ_BYTES + job.body_bytes],
            random: SmallRng::from_os_rng(),
            phase: Phase::Connecting,
            schedule: None,
            live: 0,
            begun: None,
            ended: None,
            findings: Findings::default(),
        })
    }

    /// Does all of it: connects, and then what the phases say. `threads` share the logins that may go on at once.
    pub(super) fn run(mut self, threads: u32) -> Result<Findings, LoadError> {
        self.connect_all((LOGINS_AT_ONCE / threads.max(1)).max(1))?;
        let mut settled_at = None;
        loop {
            let phase = self.control.phase();
            if phase != self.phase {
                self.enter(phase)?;
            }
            match phase {
                Phase::Aborted => return Err(LoadError::Broken("the load test was given up")),
                Phase::Settling => {
                    let since = self.ended.map_or(0, |mark| mark.at_us);
                    if !self.is_settled() {
                        settled_at = None;
                        if self.clients.now_us - since > micros(self.job.settle_within) {
                            break;
                        }
                    } else if self.clients.now_us - *settled_at.get_or_insert(self.clients.now_us)
                        > micros(GRACE)
                    {
                        break;
                    }
                }
                Phase::Connecting | Phase::WarmingUp | Phase::Measuring => {}
            }
            self.turn()?;
        }
        self.conclude()
    }

    fn connect_all(&mut self, at_once: u32) -> Result<(), LoadError> {
        let all = self.part.connections;
        let mut progress = (self.live, Instant::now());
        while self.live < all {
            if self.control.phase() == Phase::Aborted {
                return Err(LoadError::Broken("the load test was given up"));
            }
            while self.clients.connections.len() < all.min(self.live + at_once) as usize {
                self.connect()?;
            }
            self.turn()?;
            if progress.0 != self.live {
                progress = (self.live, Instant::now());
            } else if progress.1.elapsed() > LOGIN_PATIENCE {
                return Err(LoadError::Broken(
                    "the server stopped answering while connections were logged in",
                ));
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), LoadError> {
        let at = self.clients.connections.len();
        let number = self.part.first + u32::try_from(at).unwrap_or(u32::MAX);
        let to = self.job.addresses[number as usize % self.job.addresses.len()];
        let (user, sides) = (self.job.user(number), std::mem::take(&mut self.seats[at]));
        self.clients.open(user, to, self.job.from, sides)
    }

    fn enter(&mut self, phase: Phase) -> Result<(), LoadError> {
        self.phase = phase;
        self.clients.now_us = self.control.now_us();
        let mark = Mark {
            at_us: self.clients.now_us,
            acked: self.ledger.total_acked(),
            pushed: self.ledger.total_pushed(),
        };
        match phase {
            Phase::WarmingUp => match self.job.rate {
                Some(rate) => {
                    let share =
                        f64::from(self.part.conversations) / f64::from(self.part.conversations_in_all);
                    let offset = f64::from(self.part.number) / f64::from(self.part.parts);
                    self.schedule = Some(Schedule::new(self.clients.now_us, rate * share, offset));
                }
                None => {
                    for at in 0..self.clients.connections.len() {
                        self.send_what_may_go(at);
                        self.clients.flush(at)?;
                    }
                }
            },
            Phase::Measuring => self.begun = Some(mark),
            Phase::Settling => {
                // Who saw nothing of the time in which it was measured has measured nothing.
                self.begun.get_or_insert(mark);
                self.ended = Some(mark);
            }
            Phase::Connecting | Phase::Aborted => {}
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        self.ledger.is_settled()
            && self.clients.following.is_idle()
            && self.clients.connections.iter().all(|connection| connection.backlog.is_empty())
    }

    /// Waits until something is to be done, and does it.
    fn turn(&mut self) -> Result<(), LoadError> {
        self.sweep()?;
        self.issue()?;
        self.bring_back()?;
        let mut until = self.clients.slices.next_us().min(self.clients.following.next_us());
        if let Some(schedule) = self.schedule.as_ref().filter(|_| self.is_sending()) {
            until = until.min(schedule.next_us());
        }
        let wait = Duration::from_micros(until.saturating_sub(self.clients.now_us));
        let ready = self.clients.poll.wait(wait)?;
        self.clients.now_us = self.control.now_us();
        for one in &ready {
            if one.writable {
                self.clients.write_waiting(one.at)?;
            }
            if one.readable && self.clients.connections[one.at].stage != Stage::Away {
                self.read(one.at)?;
            }
        }
        self.clients.poll.give_back(ready);
        Ok(())
    }

    fn read(&mut self, at: usize) -> Result<(), LoadError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        'reading: while let Some(filled) = self.clients.read(at, &mut buffer)? {
            self.clients.now_us = self.control.now_us();
            let mut rest = &buffer[..filled];
            while let Some(frame) =
                wire::next(&mut rest, Framing::Tcp).map_err(|error| self.clients.wrong(at, error))?
            {
                self.take(at, frame)?;
                if self.clients.connections[at].stage == Stage::Away {
                    break 'reading;
                }
            }
            self.clients.connections[at].keep(rest);
            // A socket that did not fill the buffer is empty, and says so when it no longer is.
            if filled < buffer.len() {
                break;
            }
        }
        self.buffer = buffer;
        self.clients.flush(at)
    }

    fn take(&mut self, at: usize, frame: RawFrame<'_>) -> Result<(), LoadError> {
        match (self.clients.connections[at].stage, frame.head.type_number) {
            (Stage::Live | Stage::CatchingUp, type_number::SENT) => self.sent(at, frame),
            (Stage::Live | Stage::CatchingUp, type_number::PUSH) => self.pushed(at, frame.body),
            (Stage::Live | Stage::CatchingUp, type_number::ERROR) => self.refused(at, frame),
            (Stage::Live | Stage::CatchingUp, type_number::LAGGED) => {
                self.findings.incidents.lagged += 1;
                self.catch_up(at, "the server left out pushes");
                Ok(())
            }
            (Stage::CatchingUp, type_number::PULLED) => self.pulled(at, frame.body),
            (_, type_number::GO_AWAY) => self.clients.told_to_go(at, frame.body),
            (_, type_number::NODES_CHANGED) => self.clients.nodes_changed(at, frame.body),
            (_, type_number::KICKED) => {
                let reason = codec::decode::<Kicked>(frame.body).map(|event| event.reason.to_string());
                Err(self
                    .clients
                    .wrong(at, format_args!("the server closed it: {}", reason.unwrap_or_default())))
            }
            (Stage::Greeting, type_number::WELCOME) => self.welcomed(at, frame.body),
            (Stage::LoggingIn, type_number::LOGGED_IN) if self.came_back(at) => Ok(()),
            (Stage::LoggingIn, type_number::LOGGED_IN) => {
                self.clients.connections[at].go_live(self.job.in_flight);
                self.live += 1;
                self.control.live.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            (_, type_number::ERROR) => self.clients.not_let_in(at, frame.body),
            // Answers to acknowledgements and heartbeats, and events that this program does not know.
            _ => Ok(()),
        }
    }

    fn welcomed(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        self.clients.welcomed(at, body)?;
        let login = login(self.tokens.token(&self.clients.connections[at].user));
        self.clients.ask(at, &login.into());
        Ok(())
    }

    fn sent(&mut self, at: usize, frame: RawFrame<'_>) -> Result<(), LoadError> {
        let Some(flight) = self.clients.connections[at].arrive(frame.head.request_id) else {
            self.answered_again(at);
            return Ok(());
        };
        let Flight { side, counter, intended_us, .. } = flight;
        let head = wire::read_sent(frame.body)
            .filter(|head| head.conversation == self.conversations[side.conversation()].as_str());
        let Some(head) = head else {
            return Err(self.clients.wrong(at, "an answer that does not fit what was sent"));
        };
        self.ledger.acked(side, Numbered { counter, seq: head.seq });
        if self.is_measured(intended_us) {
            let latency = Duration::from_micros(self.clients.now_us.saturating_sub(intended_us));
            self.findings.ack.record(latency);
            let since = self.begun.map_or(0, |mark| intended_us.saturating_sub(mark.at_us));
            self.findings.series.record(Duration::from_micros(since), latency);
        }
        self.send_what_may_go(at);
        Ok(())
    }

    fn answered_again(&mut self, at: usize) {
        if let Some(side) = self.clients.connections[at].sides.first() {
            self.ledger.acked_again(*side);
        }
    }

    fn refused(&mut self, at: usize, frame: RawFrame<'_>) -> Result<(), LoadError> {
        let error: RequestError = codec::decode(frame.body).map_err(|error| self.clients.wrong(at, error))?;
        let Some(flight) = self.clients.connections[at].arrive(frame.head.request_id) else {
            return self.clients.other_refused(at, &error, &mut self.findings.incidents);
        };
        if error.outcome == Outcome::UNKNOWN && self.clients.now_us < flight.since_us + micros(BACK_WITHIN) {
            self.ledger.repeats(flight.side);
            self.say_again(at, flight);
            return Ok(());
        }
        self.findings.incidents.refuse(&error);
        self.send_what_may_go(at);
        Ok(())
    }

    fn pushed(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        self.clients.connections[at].pushes += 1;
        let push = wire::read_push(body);
        // What was said on a connection before this one comes to it as to any other session of the user.
        if push.as_ref().is_some_and(|push| self.is_own(at, push.stamp)) {
            return Ok(());
        }
        let push = push.and_then(|push| self.fitting(at, push.conversation, push.seq, push.stamp));
        let Some(push) = push else {
            return Err(self.clients.wrong(at, "a push of a message that is not for it"));
        };
        if self.clients.connections[at].stage == Stage::CatchingUp {
            self.clients.following.hold(at, push);
        } else if push.message.seq > self.sides[push.side.index()].pulled
            || !self.ledger.knows(push.side, push.message.seq)
        {
            self.ledger.pushed(push.side, push.message);
            self.hear(at, push);
        }
        let connection = &self.clients.connections[at];
        if connection.pushes - connection.acked_pushes >= ACK_AFTER {
            self.acknowledge(at);
        }
        Ok(())
    }

    /// A message came to this side: pushed, or pulled after it was missed.
    fn hear(&mut self, at: usize, Heard { side, intended_us, .. }: Heard) {
        if self.is_measured(intended_us) {
            self.findings.push.record(Duration::from_micros(self.clients.now_us.saturating_sub(intended_us)));
        }
        if !std::mem::replace(&mut self.sides[side.index()].moved, true) {
            self.clients.connections[at].moved.push(side);
        }
    }

    fn is_measured(&self, intended_us: u64) -> bool {
        self.begun.is_some_and(|mark| mark.at_us <= intended_us)
            && self.ended.is_none_or(|mark| intended_us < mark.at_us)
    }

    fn is_sending(&self) -> bool {
        matches!(self.phase, Phase::WarmingUp | Phase::Measuring)
    }

    /// Sends until as much is in flight as may be, or nothing waits for being sent.
    fn send_what_may_go(&mut self, at: usize) {
        if self.clients.connections[at].stage != Stage::Live {
            return;
        }
        while self.clients.connections[at].may_send() {
            let connection = &mut self.clients.connections[at];
            let due = if self.job.rate.is_some() {
                connection.backlog.pop_front()
            } else if matches!(self.phase, Phase::WarmingUp | Phase::Measuring) {
                Some(Due { side: connection.take_turn(), intended_us: self.clients.now_us })
            } else {
                None
            };
            let Some(due) = due else { return };
            let counter = self.ledger.send(due.side);
            let client_id = Builder::from_random_bytes(self.random.random()).into_uuid().into_bytes();
            let request_id = connection.depart(due, counter, client_id, self.clients.now_us);
            connection.asked_us = self.clients.now_us;
            let stamp = Stamp { intended_us: due.intended_us, side: due.side, counter };
            let single = Single { request_id, client_id, stamp };
            wire::put_send(
                &mut self.clients.out,
                Framing::Tcp,
                single,
                &self.sides[due.side.index()].opening,
                &self.tail,
            );
        }
    }

    /// With a rate: sends what is due, or puts it where it waits for an answer to make room.
    fn issue(&mut self) -> Result<(), LoadError> {
        if !self.is_sending() {
            return Ok(());
        }
        while let Some((number, intended_us)) =
            self.schedule.as_mut().and_then(|all| all.take(self.clients.now_us))
        {
            // First one side of every conversation in turn, then the other.
            let sides = self.sides.len() as u64;
            let place = number % sides;
            let side = if place < sides / 2 { 2 * place } else { 2 * (place - sides / 2) + 1 };
            let side = SideId(u32::try_from(side).unwrap_or(u32::MAX));
            let at = self.sides[side.index()].connection as usize;
            self.clients.connections[at].backlog.push_back(Due { side, intended_us });
            self.send_what_may_go(at);
            self.clients.flush(at)?;
        }
        Ok(())
    }

    fn conclude(mut self) -> Result<Findings, LoadError> {
        let (Some(begun), Some(ended)) = (self.begun, self.ended) else {
            return Err(LoadError::Broken("a report was asked for before anything was measured"));
        };
        let measured = Duration::from_micros(ended.at_us - begun.at_us);
        let unsent = self.clients.connections.iter().map(|connection| connection.backlog.len() as u64);
        self.findings.incidents.unsent = unsent.sum();
        Ok(Findings {
            acked_per_s: rate(ended.acked - begun.acked, measured),
            pushed_per_s: rate(ended.pushed - begun.pushed, measured),
            acked: ended.acked - begun.acked,
            acked_in_all: self.ledger.total_acked(),
            verdict: self.ledger.verdict(),
            ..self.findings
        })
    }
}
