//! What the threads of the load generator are told, what they share, and what they answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use convoke_protocol::id::UserId;
use serde::{Deserialize, Serialize};

use crate::load::client;
use crate::load::latency::Latencies;
use crate::load::report::{Incidents, Verdict};
use crate::load::series::Series;

/// What the load generator is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Connections are made and kept alive.
    Connecting,
    /// Messages are sent and nothing is measured.
    WarmingUp,
    /// Messages are sent, counted and timed.
    Measuring,
    /// Nothing is sent any more; what is on its way may arrive.
    Settling,
    /// It is over, whatever is on its way.
    Aborted,
}

/// What the threads of a process share.
#[derive(Debug)]
pub(super) struct Control {
    begun: Instant,
    phase: AtomicU8,
    /// Connections that are logged in.
    pub(super) live: AtomicU32,
}

impl Control {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), phase: AtomicU8::new(Phase::Connecting as u8), live: AtomicU32::new(0) }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn phase(&self) -> Phase {
        const ALL: [Phase; 5] =
            [Phase::Connecting, Phase::WarmingUp, Phase::Measuring, Phase::Settling, Phase::Aborted];
        ALL.into_iter()
            .find(|phase| *phase as u8 == self.phase.load(Ordering::Relaxed))
            .unwrap_or(Phase::Aborted)
    }

    /// Microseconds since the beginning: the clock of all threads.
    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// What the parts of a load test have in common.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    /// Makes the users different from those of any other run, so that all conversations are new.
    pub(super) run: String,
    /// Where the connections go, in turn.
    pub(super) addresses: Vec<SocketAddr>,
    /// Where they come from, if the system is not to choose.
    pub(super) from: Option<Ipv4Addr>,
    /// Sends without an answer, of each connection.
    pub(super) in_flight: u32,
    /// The length of each body.
    pub(super) body_bytes: usize,
    /// Messages per second of all parts together; without it each answer makes room for the next message.
    pub(super) rate: Option<f64>,
    /// How long what is on its way may take to arrive after the last send.
    pub(super) settle_within: Duration,
}

impl Job {
    pub(super) fn user(&self, number: u32) -> UserId {
        client::user(&self.run, number)
    }
}

/// Makes tokens.
pub(super) trait Tokens: Sync {
    /// A token with which this user can log in.
    fn token(&self, user: &UserId) -> String;
}

/// What one thread found, to be merged with the others'.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Findings {
    /// In the measured time.
    pub(super) acked_per_s: f64,
    pub(super) pushed_per_s: f64,
    pub(super) acked: u64,
    /// Of the messages that were to be sent in the measured time.
    pub(super) ack: Latencies,
    pub(super) push: Latencies,
    /// What was acknowledged, second by second.
    pub(super) series: Series,
    /// Of all time.
    pub(super) acked_in_all: u64,
    pub(super) verdict: Verdict,
    pub(super) incidents: Incidents,
}

impl Findings {
    pub(super) fn merge(&mut self, other: Self) {
        self.acked_per_s += other.acked_per_s;
        self.pushed_per_s += other.pushed_per_s;
        self.acked += other.acked;
        self.ack.merge(&other.ack);
        self.push.merge(&other.push);
        self.series.merge(&other.series);
        self.acked_in_all += other.acked_in_all;
        self.verdict.add(other.verdict);
        self.incidents.add(other.incidents);
    }
}
