//! One process of a crowd: all its connections behind one epoll, one buffer to read into and one to write from.

mod arriving;
mod following;
mod speaking;

use std::io::{self, BufRead as _};
use std::net::Ipv4Addr;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;

use convoke_protocol::codec;
use convoke_protocol::error_code::{Outcome, RequestError};
use convoke_protocol::event::Kicked;
use convoke_protocol::frame::{Codec, RawFrame};
use convoke_protocol::framing::Framing;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::time::{ClockId, clock_gettime};

use super::member::Member;
use super::task::{Arrived, CatchingUp, Findings, Lost, Order, Stopped, Task};
use crate::auth::SigningKey;
use crate::load::LoadError;
use crate::load::client::clients::Clients;
use crate::load::client::connection::Stage;
use crate::load::client::following::{BACK_WITHIN, micros};
use crate::load::client::hello;
use crate::load::client::returning::Returning as _;
use crate::load::client::schedule::{SLICE_US, Schedule};
use crate::load::client::wire::{self, Opening, Tail, type_number};
use crate::load::process::{raise_descriptor_limit, say};
use crate::load::report::rate;

/// Descriptors that a process needs beside its sockets.
const OTHER_DESCRIPTORS: u64 = 64;
/// How long what is on its way may take to arrive after the last send.
const SETTLE_WITHIN_US: u64 = 15_000_000;
/// How long nothing must come once everything is there: a second copy would come late.
const GRACE_US: u64 = 200_000;
/// As the protocol wants it: pushes are acknowledged when so many have come, or after a second.
const ACK_AFTER: u64 = 64;
/// Bytes read at once at most, beside a frame of the longest body.
const READ_BYTES: usize = 256 << 10;

/// What it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Arriving,
    Resting,
    Speaking,
    Stopping { until_us: u64 },
    Settling { head: u64, until_us: u64, quiet_since_us: Option<u64> },
}

/// How far everything was at a moment.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at_us: u64,
    acked: u64,
    delivered: u64,
}

/// What is the same in all messages of the group.
#[derive(Debug)]
struct Words {
    opening: Opening,
    tail: Tail,
}

/// A message that came to a member: its number in the group, above the base.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    number: u64,
    intended_us: u64,
}

/// One process's clients.
pub(super) struct Worker {
    task: Task,
    key: SigningKey,
    clients: Clients<Heard>,
    members: Vec<Member>,
    words: Option<Words>,
    buffer: Vec<u8>,
    random: SmallRng,
    phase: Phase,
    /// When logins may begin, if not all at once.
    arrivals: Option<Schedule>,
    schedule: Option<Schedule>,
    arrived: Arrived,
    began_us: u64,
    live: u32,
    last_login_us: u64,
    in_flight: u64,
    begun: Option<Mark>,
    ended: Option<Mark>,
    findings: Findings,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// Microseconds of the machine's clock, which is the same for all its processes.
fn machine_us() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or_default() * 1_000_000 + nanos.unwrap_or_default() / 1_000
}

/// Another address of this machine, which no other process of the crowd has.
fn next_address(address: Ipv4Addr) -> Ipv4Addr {
    let [net, a, b, number] = address.octets();
    Ipv4Addr::new(net, a, b.wrapping_add(1), number)
}

/// Runs until the orders end.
///
/// # Errors
/// What kept it from working.
pub(super) fn run(task: Task) -> Result<(), LoadError> {
    let (told, heard) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(order) = line.map(|line| serde_json::from_str::<Order>(&line).ok()) else { return };
            if told.send(order).is_err() {
                return;
            }
        }
    });
    Worker::new(task)?.work(&heard)
}

impl Worker {
    fn new(task: Task) -> Result<Self, LoadError> {
        raise_descriptor_limit(u64::from(task.connections) + OTHER_DESCRIPTORS)?;
        let words = task.speaking.as_ref().map(|speaking| {
            let bytes = speaking.body_bytes;
            Words { opening: Opening::to_group(&speaking.group, bytes), tail: Tail::new(bytes) }
        });
        let body = task.speaking.as_ref().map_or(0, |speaking| speaking.body_bytes);
        let framing = if task.websocket { Framing::WebSocket(Codec::Bincode) } else { Framing::Tcp };
        let now_us = machine_us();
        Ok(Self {
            key: SigningKey::load(&task.key_file)?,
            clients: Clients::new(framing, &task.addresses, task.speaking.is_some(), now_us)?,
            members: (0..task.connections).map(|_| Member::default()).collect(),
            words,
            buffer: vec![0; READ_BYTES + body],
            random: SmallRng::from_os_rng(),
            phase: Phase::Arriving,
            arrivals: task.logins_per_s.map(|per_s| Schedule::new(now_us, per_s, 0.0)),
            schedule: None,
            arrived: Arrived::default(),
            began_us: now_us,
            live: 0,
            last_login_us: now_us,
            in_flight: 0,
            begun: None,
            ended: None,
            findings: Findings::default(),
            task,
        })
    }

    fn work(mut self, orders: &Receiver<Option<Order>>) -> Result<(), LoadError> {
        loop {
            match orders.try_recv() {
                Ok(Some(order)) => self.obey(order)?,
                Ok(None) => return Err(LoadError::Broken("an order that is not understood")),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
            self.arrive()?;
            self.turn()?;
            match self.phase {
                Phase::Stopping { until_us } if self.in_flight == 0 || self.clients.now_us > until_us => {
                    self.phase = Phase::Resting;
                    say(&Stopped { acked: self.findings.acked })?;
                }
                Phase::Settling { .. } => {
                    if let Some(findings) = self.settled() {
                        say(&findings)?;
                        self.phase = Phase::Resting;
                    }
                }
                _ => {}
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<(), LoadError> {
        self.clients.now_us = machine_us();
        let mark = Mark {
            at_us: self.clients.now_us,
            acked: self.findings.acked,
            delivered: self.findings.delivered,
        };
        match order {
            Order::Lose => {
                // Their descriptors leave the epoll with them. They are lost as fast as can be, but who loses them would be on other
                // machines: the node is not to wait for the core that this takes.
                for connection in self.clients.connections.drain(..) {
                    drop(connection);
                    std::thread::yield_now();
                }
                self.live = 0;
                // The ports of the lost connections are not free yet.
                self.task.from = self.task.from.map(next_address);
                self.phase = Phase::Resting;
                say(&Lost {})?;
            }
            Order::Return => {
                self.arrivals =
                    self.task.logins_per_s.map(|per_s| Schedule::new(self.clients.now_us, per_s, 0.0));
                self.arrived = Arrived::default();
                (self.began_us, self.last_login_us) = (self.clients.now_us, self.clients.now_us);
                self.phase = Phase::Arriving;
            }
            Order::Speak => {
                self.phase = Phase::Speaking;
                let speaking = self.task.speaking.clone().filter(|_| self.task.first == 0);
                let Some(speaking) = speaking else { return Ok(()) };
                match speaking.rate {
                    Some(rate) => self.schedule = Some(Schedule::new(self.clients.now_us, rate, 0.0)),
                    None => {
                        for at in 0..speaking.speakers as usize {
                            self.speak(at);
                            self.clients.flush(at)?;
                        }
                    }
                }
            }
            Order::Measure => self.begun = Some(mark),
            Order::Stop => {
                self.ended = Some(mark);
                self.findings.incidents.unsent =
                    self.clients.connections.iter().map(|one| one.backlog.len() as u64).sum();
                self.clients.connections.iter_mut().for_each(|one| one.backlog.clear());
                self.phase = Phase::Stopping { until_us: self.clients.now_us + SETTLE_WITHIN_US };
            }
            Order::Settle { head } => {
                let until_us = self.clients.now_us + SETTLE_WITHIN_US;
                self.phase = Phase::Settling { head, until_us, quiet_since_us: None };
            }
        }
        Ok(())
    }

    /// Waits until something is to be done, and does it.
    fn turn(&mut self) -> Result<(), LoadError> {
        self.sweep()?;
        self.issue()?;
        self.go_on()?;
        self.bring_back()?;
        let mut until = self.clients.slices.next_us().min(self.clients.following.next_us());
        for schedule in [&self.schedule, &self.arrivals].into_iter().flatten() {
            until = until.min(schedule.next_us());
        }
        let wait = Duration::from_micros(until.saturating_sub(self.clients.now_us).min(SLICE_US));
        let ready = self.clients.poll.wait(wait)?;
        self.clients.now_us = machine_us();
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
            self.clients.now_us = machine_us();
            let mut rest = &buffer[..filled];
            if self.clients.connections[at].stage == Stage::Upgrading {
                match wire::upgraded(&mut rest) {
                    Some(true) => {
                        self.clients.connections[at].stage = Stage::Greeting;
                        self.clients.ask(at, &hello().into());
                    }
                    Some(false) => {
                        return Err(self.clients.wrong(at, "the upgrade to WebSocket was refused"));
                    }
                    None => {}
                }
            }
            if self.clients.connections[at].stage != Stage::Upgrading {
                while let Some(frame) = wire::next(&mut rest, self.clients.framing)
                    .map_err(|error| self.clients.wrong(at, error))?
                {
                    self.take(at, frame)?;
                    if self.clients.connections[at].stage == Stage::Away {
                        break 'reading;
                    }
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
            (_, type_number::PUSH) => self.pushed(at, frame.body),
            (Stage::Live | Stage::CatchingUp, type_number::SENT) => self.sent(at, frame),
            (Stage::Live | Stage::CatchingUp, type_number::ERROR) => self.refused(at, frame),
            (stage, type_number::LAGGED) => {
                self.findings.incidents.lagged += 1;
                if matches!(stage, Stage::Live | Stage::CatchingUp) {
                    self.catch_up(at, "the server left out pushes");
                }
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
                if self.task.catching_up != CatchingUp::Not {
                    self.clients.connections[at].stage = Stage::Syncing;
                    self.ask_sync(at, None);
                } else {
                    self.is_live(at);
                }
                Ok(())
            }
            (Stage::Syncing, type_number::SYNCED_SINCE) => self.synced(at, frame.body),
            (_, type_number::ERROR) => self.clients.not_let_in(at, frame.body),
            // Answers to acknowledgements and heartbeats, and events that this program does not know.
            _ => Ok(()),
        }
    }

    fn base(&self) -> u64 {
        self.task.speaking.as_ref().map_or(0, |speaking| speaking.base)
    }

    fn sent(&mut self, at: usize, frame: RawFrame<'_>) -> Result<(), LoadError> {
        let Some(flight) = self.clients.connections[at].arrive(frame.head.request_id) else {
            return Err(self.clients.wrong(at, "a second answer"));
        };
        let Some(head) = wire::read_sent(frame.body).filter(|head| head.seq > self.base()) else {
            return Err(self.clients.wrong(at, "an answer that does not fit what was sent"));
        };
        let base = self.base();
        self.members[at].acked(head.seq - base);
        self.findings.acked += 1;
        self.in_flight -= 1;
        if self.since_begin(flight.intended_us).is_some() {
            self.findings
                .ack
                .record(Duration::from_micros(self.clients.now_us.saturating_sub(flight.intended_us)));
        }
        self.speak(at);
        Ok(())
    }

    fn refused(&mut self, at: usize, frame: RawFrame<'_>) -> Result<(), LoadError> {
        let error: RequestError = codec::decode(frame.body).map_err(|error| self.clients.wrong(at, error))?;
        let Some(flight) = self.clients.connections[at].arrive(frame.head.request_id) else {
            return self.clients.other_refused(at, &error, &mut self.findings.incidents);
        };
        if error.outcome == Outcome::UNKNOWN && self.clients.now_us < flight.since_us + micros(BACK_WITHIN) {
            self.say_again(at, flight);
            return Ok(());
        }
        self.in_flight -= 1;
        self.findings.incidents.refuse(&error);
        self.speak(at);
        Ok(())
    }

    fn pushed(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        self.clients.connections[at].pushes += 1;
        let Some(speaking) = &self.task.speaking else { return Ok(()) };
        let fits = |push: &wire::Pushed<'_>| {
            push.conversation == speaking.conversation.as_str() && push.seq > speaking.base
        };
        let Some(push) = wire::read_push(body).filter(fits) else {
            return Err(self.clients.wrong(at, "a push of a message that is not for it"));
        };
        // What was said on a connection before this one comes to it as to any other session of the user.
        if self.members[at].returned && push.stamp.side == self.clients.connections[at].sides[0] {
            return Ok(());
        }
        let heard = Heard { number: push.seq - speaking.base, intended_us: push.stamp.intended_us };
        let member = &mut self.members[at];
        if self.clients.connections[at].stage == Stage::CatchingUp {
            self.clients.following.hold(at, heard);
        } else if (heard.number > member.pulled || !member.seen.contains(heard.number))
            && member.pushed(heard.number)
        {
            self.hear(heard);
        }
        let connection = &self.clients.connections[at];
        if connection.pushes - connection.acked_pushes >= ACK_AFTER {
            self.acknowledge(at);
        }
        Ok(())
    }

    /// A message came to a member that did not have it.
    fn hear(&mut self, Heard { intended_us, .. }: Heard) {
        self.findings.delivered += 1;
        if let Some(since) = self.since_begin(intended_us) {
            let latency = Duration::from_micros(self.clients.now_us.saturating_sub(intended_us));
            self.findings.push.record(latency);
            self.findings.series.record(since, latency);
        }
    }

    /// How long after the measured time began, if it is within it.
    fn since_begin(&self, intended_us: u64) -> Option<Duration> {
        let begun = self.begun?.at_us;
        let within = begun <= intended_us && self.ended.is_none_or(|mark| intended_us < mark.at_us);
        within.then(|| Duration::from_micros(intended_us - begun))
    }

    /// What was found, once all have everything or the time for that is over.
    fn settled(&mut self) -> Option<Findings> {
        let Phase::Settling { head, until_us, quiet_since_us } = &mut self.phase else { return None };
        let above = head.saturating_sub(self.task.speaking.as_ref().map_or(0, |speaking| speaking.base));
        if self.members.iter().all(|member| member.seen.upto >= above) {
            let since = *quiet_since_us.get_or_insert(self.clients.now_us);
            if self.clients.now_us - since < GRACE_US {
                return None;
            }
        } else if self.clients.now_us < *until_us {
            return None;
        }
        let mut findings = std::mem::take(&mut self.findings);
        if let (Some(begun), Some(ended)) = (self.begun, self.ended) {
            let measured = Duration::from_micros(ended.at_us - begun.at_us);
            findings.acked_per_s = rate(ended.acked - begun.acked, measured);
            findings.delivered_per_s = rate(ended.delivered - begun.delivered, measured);
        }
        for member in &self.members {
            findings.verdict.add(member.verdict(above));
        }
        findings.verdict.lost += self.in_flight + findings.incidents.refused;
        Some(findings)
    }
}
