//! `bench send`: direct messages between connected users, and the check that each arrived as it should.
//!
//! | module | what |
//! | --- | --- |
//! | `plan` | who talks with whom, in which thread |
//! | `crew` | the threads and processes, and the phases they go through |
//! | `task` | what the threads are told, and what they answer |
//! | `worker` | one thread: all its sockets behind one epoll |
//! | `ledger` | what was acked and pushed, and what is wrong with it |

mod crew;
mod ledger;
mod plan;
mod task;
mod worker;

#[cfg(test)]
mod fake_server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

pub use super::client::connection::MAX_IN_FLIGHT;
pub use super::client::wire::STAMP_BYTES;
pub use crew::run_part;
pub use plan::PlanError;

use super::LoadError;
use super::latency::Percentiles;
use super::node::{Node, Which};
use super::process::{Usage, used};
use super::report::conditions::{Conditions, cores};
use super::report::{Charts, Incidents, Outcome, Progress, Row, Verdict};
use super::series::Point;
use crew::Crew;
use task::{Job, Phase};

/// How long what is on its way may take to arrive after the last send.
const SETTLE_WITHIN: Duration = Duration::from_secs(15);

/// What to send, and to whom.
#[derive(Debug, Clone)]
pub struct SendOptions {
    /// The node.
    pub node: Which,
    /// Users that are connected, each with one device.
    pub connections: u32,
    /// Pairs of them that talk.
    pub conversations: u32,
    /// Sends of one connection that may wait for their answers.
    pub in_flight: u32,
    /// The length of each message's body.
    pub body_bytes: usize,
    /// How long nothing is measured before.
    pub warm_up: Duration,
    /// How long it is measured.
    pub measured: Duration,
    /// Messages per second of all together. Without it, each answer is followed by the next message.
    pub rate: Option<f64>,
}

/// What was found. Rates are per second of the measured time.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct SendReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub connections: u32,
    pub conversations: u32,
    pub in_flight: u32,
    pub body_bytes: usize,
    pub warm_up_s: f64,
    pub duration_s: f64,
    /// Messages per second that were to be sent; absent if the answers set the pace.
    pub rate: Option<f64>,
    pub acked_per_s: f64,
    pub delivered_per_s: f64,
    pub ack_ms: Option<Percentiles>,
    pub push_ms: Option<Percentiles>,
    /// Absent if it could not be found out.
    pub server: Option<Usage>,
    pub server_cpu_us_per_message: Option<f64>,
    /// What the load generator used, on the same machine or another.
    pub generator: Usage,
    pub generator_cpu_us_per_message: f64,
    /// Of all time, warming up and settling included.
    pub acked: u64,
    #[serde(flatten)]
    pub incidents: Incidents,
    #[serde(flatten)]
    pub verdict: Verdict,
    /// What was acknowledged, second by second.
    pub series: Vec<Point>,
    #[serde(skip)]
    charts: Charts,
}

impl Outcome for SendReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        vec![
            Row {
                what: "acked".to_owned(),
                per_s: self.acked_per_s,
                latency: self.ack_ms,
                server: self.server,
                cpu_us_each: self.server_cpu_us_per_message,
            },
            Row {
                what: "delivered".to_owned(),
                per_s: self.delivered_per_s,
                latency: self.push_ms,
                server: None,
                cpu_us_each: None,
            },
            Row {
                what: "(load generator)".to_owned(),
                per_s: self.acked_per_s,
                latency: None,
                server: Some(self.generator),
                cpu_us_each: Some(self.generator_cpu_us_per_message),
            },
        ]
    }

    fn verdict(&self) -> Verdict {
        self.verdict
    }

    fn charts(&self) -> Charts {
        self.charts.clone()
    }
}

/// Threads of the load generator in each process: what it does not need is the server's.
fn threads() -> u32 {
    u32::try_from(cores() / 2).unwrap_or(u32::MAX).max(1)
}

/// Connects, warms up, measures, settles, and checks.
///
/// # Errors
/// If it could not be run, or a connection ended.
pub fn run(options: SendOptions) -> Result<SendReport, LoadError> {
    let processes = plan::parts(options.connections, options.conversations, threads())?;
    let progress = Progress::new(options.warm_up + options.measured);
    progress.say("preparing the node");
    let node = Node::prepare(options.node)?;
    let conditions = Conditions::gather(node.data());
    let run = Uuid::new_v4().simple().to_string();
    let job = Job {
        run: run[..8].to_owned(),
        addresses: node.tcp().to_vec(),
        from: None,
        in_flight: options.in_flight,
        body_bytes: options.body_bytes,
        rate: options.rate,
        settle_within: SETTLE_WITHIN,
    };
    let mut crew = Crew::start(&job, &processes, node.key(), node.key_file())?;
    crew.wait_until_live(&progress)?;

    progress.say("warming up");
    crew.enter(Phase::WarmingUp)?;
    crew.work(options.warm_up, &progress)?;
    progress.say("measuring");
    crew.enter(Phase::Measuring)?;
    let before = (node.sample()?, crew.samples()?);
    crew.work(options.measured, &progress)?;
    let after = (node.sample()?, crew.samples()?);
    crew.enter(Phase::Settling)?;
    progress.say("waiting for what is on its way");
    let findings = crew.finish()?;
    progress.say("stopping");
    drop(crew);
    node.stop()?;

    let server = after.0.zip(before.0).and_then(|(after, before)| after.since(&before));
    let generator = used(&before.1, &after.1);
    let each = |usage: Usage| 1e6 * usage.cpu_s / (findings.acked_per_s * options.measured.as_secs_f64());
    Ok(SendReport {
        bench: "send",
        conditions,
        connections: options.connections,
        conversations: options.conversations,
        in_flight: options.in_flight,
        body_bytes: options.body_bytes,
        warm_up_s: options.warm_up.as_secs_f64(),
        duration_s: options.measured.as_secs_f64(),
        rate: options.rate,
        acked_per_s: findings.acked_per_s,
        delivered_per_s: findings.pushed_per_s,
        ack_ms: findings.ack.percentiles(),
        push_ms: findings.push.percentiles(),
        server,
        server_cpu_us_per_message: server.map(each),
        generator,
        generator_cpu_us_per_message: each(generator),
        acked: findings.acked_in_all,
        incidents: findings.incidents,
        verdict: findings.verdict,
        charts: Charts {
            unit: "acked messages",
            points: findings.series.points(),
            curves: vec![("ack", findings.ack.curve()), ("push", findings.push.curve())],
        },
        series: findings.series.points(),
    })
}
