//! What a process of the crowd is told, and what it answers: lines of JSON.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use convoke_protocol::id::{ConversationId, GroupId};
use serde::{Deserialize, Serialize};

use crate::load::latency::Latencies;
use crate::load::report::{Incidents, Verdict};
use crate::load::series::Series;

/// What a process is told first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    /// Makes the users different from those of any other run.
    pub(super) run: String,
    /// Where the connections go, in turn.
    pub(super) addresses: Vec<SocketAddr>,
    /// Where they come from, if the system is not to choose.
    pub(super) from: Option<Ipv4Addr>,
    /// The node's key, to make tokens with.
    pub(super) key_file: PathBuf,
    /// The number of the first user among all.
    pub(super) first: u32,
    /// How many connect, one device each.
    pub(super) connections: u32,
    /// Over WebSocket.
    pub(super) websocket: bool,
    /// Logins under way at one time.
    pub(super) logins_at_once: u32,
    /// Logins per second of this process; without it as many as can be had.
    pub(super) logins_per_s: Option<f64>,
    /// What each asks before it counts as back.
    pub(super) catching_up: CatchingUp,
    /// The group that is spoken to.
    pub(super) speaking: Option<Speaking>,
}

/// What a client asks after its login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::load) enum CatchingUp {
    /// Nothing.
    Not,
    /// What changed since the last time.
    Changed,
    /// Every conversation, each time.
    All,
}

/// Who speaks, and how much.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::load) struct Speaking {
    /// The group.
    pub(in crate::load) group: GroupId,
    /// Its conversation.
    pub(in crate::load) conversation: ConversationId,
    /// Its head before anything is said.
    pub(in crate::load) base: u64,
    /// The first so many users speak.
    pub(in crate::load) speakers: u32,
    /// Sends of one speaker without an answer.
    pub(in crate::load) in_flight: u32,
    /// Bytes of each body.
    pub(in crate::load) body_bytes: usize,
    /// Messages per second of all speakers together; without it each answer makes room for the next message.
    pub(in crate::load) rate: Option<f64>,
}

/// What a process is told then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Lose all connections at once. Answered by [`Lost`].
    Lose,
    /// Come back. Answered by [`Arrived`].
    Return,
    /// Speak.
    Speak,
    /// From now on, count and measure.
    Measure,
    /// Measure no more, send nothing new and wait for answers. Answered by [`Stopped`].
    Stop,
    /// Wait until all have seen everything up to this head. Answered by [`Findings`].
    Settle { head: u64 },
}

/// All connections are lost.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lost {}

/// All are logged in.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::load) struct Arrived {
    /// From the first connection to the last login.
    pub(in crate::load) took_us: u64,
    /// Of each, from its connection to its login, or to the end of its sync.
    pub(in crate::load) logins: Latencies,
    /// Conversations that were named in syncs.
    pub(in crate::load) conversations: u64,
    /// Messages that were missing.
    pub(in crate::load) missing: u64,
}

impl Arrived {
    pub(super) fn merge(&mut self, other: &Self) {
        self.took_us = self.took_us.max(other.took_us);
        self.logins.merge(&other.logins);
        self.conversations += other.conversations;
        self.missing += other.missing;
    }
}

/// Everything that was sent is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stopped {
    pub(super) acked: u64,
}

/// What a process found, to be merged with the others'.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::load) struct Findings {
    /// In the measured time.
    pub(in crate::load) acked_per_s: f64,
    pub(in crate::load) delivered_per_s: f64,
    pub(in crate::load) ack: Latencies,
    pub(in crate::load) push: Latencies,
    /// What was delivered, second by second.
    pub(in crate::load) series: Series,
    /// Of all time.
    pub(in crate::load) acked: u64,
    pub(in crate::load) delivered: u64,
    pub(in crate::load) verdict: Verdict,
    pub(in crate::load) incidents: Incidents,
}

impl Findings {
    pub(super) fn merge(&mut self, other: Self) {
        self.acked_per_s += other.acked_per_s;
        self.delivered_per_s += other.delivered_per_s;
        self.ack.merge(&other.ack);
        self.push.merge(&other.push);
        self.series.merge(&other.series);
        self.acked += other.acked;
        self.delivered += other.delivered;
        self.verdict.add(other.verdict);
        self.incidents.add(other.incidents);
    }
}
