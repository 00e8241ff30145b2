//! `bench connect`: many clients log in and then say next to nothing. What does each cost?

use std::time::Duration;

use serde::Serialize;

use super::LoadError;
use super::crowd::{CatchingUp, Crew, Shape};
use super::latency::Percentiles;
use super::node::{Node, NodeSample, Which};
use super::process::Usage;
use super::report::conditions::Conditions;
use super::report::{Charts, Outcome, Progress, Row, Verdict, rate};

/// The server is at rest when its memory has not moved by more than this share within [`REST_LOOK`].
const REST_SHARE: f64 = 0.002;
const REST_LOOK: Duration = Duration::from_secs(1);
/// It has this long to come to rest.
const REST_WITHIN: u32 = 30;

/// Who connects, and how.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The node.
    pub node: Which,
    /// Users that connect, each with one device.
    pub connections: u32,
    /// Over WebSocket.
    pub websocket: bool,
    /// Logins per second; without it as many as can be had.
    pub rate: Option<f64>,
    /// Logins under way at one time.
    pub logins_at_once: u32,
    /// How long they are idle.
    pub idle: Duration,
}

/// What was found.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct ConnectReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub connections: u32,
    pub websocket: bool,
    /// Logins per second that were to be made; absent if as many as could be.
    pub rate: Option<f64>,
    pub logins_at_once: u32,
    pub logins_per_s: f64,
    /// From the connection to the answer.
    pub login_ms: Option<Percentiles>,
    /// The server's resident memory before, and at rest with all of them.
    pub rss_before_bytes: Option<u64>,
    pub rss_bytes: Option<u64>,
    pub rss_per_connection_bytes: Option<f64>,
    pub idle_s: f64,
    pub idle_cpu_us_per_s_per_connection: Option<f64>,
    /// What the server used for all logins.
    pub login_cpu_us: Option<f64>,
    #[serde(flatten)]
    pub verdict: Verdict,
    #[serde(skip)]
    charts: Charts,
}

impl Outcome for ConnectReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        let usage = |rss_bytes: Option<u64>, cpu_s| rss_bytes.map(|rss_bytes| Usage { rss_bytes, cpu_s });
        let connections = f64::from(self.connections);
        let idle_cpu_s =
            self.idle_cpu_us_per_s_per_connection.map_or(0.0, |each| each * self.idle_s * connections / 1e6);
        let login_cpu_s = self.login_cpu_us.map_or(0.0, |each| each * connections / 1e6);
        vec![
            Row {
                what: "logins".into(),
                per_s: self.logins_per_s,
                latency: self.login_ms,
                server: usage(self.rss_bytes, login_cpu_s),
                cpu_us_each: self.login_cpu_us,
            },
            Row {
                what: format!("{} idle connections, a second of each", self.connections),
                per_s: connections,
                latency: None,
                server: usage(self.rss_bytes, idle_cpu_s),
                cpu_us_each: self.idle_cpu_us_per_s_per_connection,
            },
        ]
    }

    fn verdict(&self) -> Verdict {
        self.verdict
    }

    fn charts(&self) -> Charts {
        self.charts.clone()
    }

    fn remarks(&self) -> Vec<String> {
        let each = self.rss_per_connection_bytes;
        each.map(|bytes| format!("{bytes:.0} bytes of the server's memory for each connection"))
            .into_iter()
            .collect()
    }
}

/// Waits until the server's memory moves no more.
fn come_to_rest(node: &Node, progress: &Progress) -> Result<Option<NodeSample>, LoadError> {
    let mut last = node.sample()?;
    for _ in 0..REST_WITHIN {
        progress.wait(REST_LOOK);
        let now = node.sample()?;
        let moved = match (&last, &now) {
            (Some(last), Some(now)) => now.rss_bytes().abs_diff(last.rss_bytes()),
            _ => return Ok(now),
        };
        let still = now.as_ref().is_some_and(|now| bytes(moved) <= REST_SHARE * bytes(now.rss_bytes()));
        last = now;
        if still {
            break;
        }
    }
    Ok(last)
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn bytes(count: u64) -> f64 {
    count as f64
}

/// Connects, waits, and looks.
///
/// # Errors
/// If it could not be run, or a connection ended.
pub fn run(options: &ConnectOptions) -> Result<ConnectReport, LoadError> {
    let progress = Progress::new(options.idle);
    progress.say("preparing the node");
    let node = Node::prepare(options.node.clone())?;
    let conditions = Conditions::gather(node.data());
    let shape = Shape {
        run: Shape::new_run(),
        connections: options.connections,
        websocket: options.websocket,
        logins_at_once: options.logins_at_once,
        logins_per_s: options.rate,
        catching_up: CatchingUp::Not,
        speaking: None,
    };
    let before = come_to_rest(&node, &progress)?;
    progress.say("logging in");
    let mut crew = Crew::start(&shape, &node)?;
    let arrived = crew.arrived()?;
    let live = node.sample()?;
    progress.say("waiting for the server to come to rest");
    let rest = come_to_rest(&node, &progress)?;
    progress.say("idle");
    progress.wait(options.idle);
    let after = node.sample()?;
    drop(crew);
    node.stop()?;

    let connections = f64::from(options.connections);
    let rss = |sample: &Option<NodeSample>| sample.as_ref().map(NodeSample::rss_bytes);
    let between = |after: &Option<NodeSample>, before: &Option<NodeSample>| {
        after.as_ref().zip(before.as_ref()).and_then(|(after, before)| after.since(before))
    };
    let login_cpu_us = between(&live, &before).map(|used| 1e6 * used.cpu_s / connections);
    let idle_s = options.idle.as_secs_f64();
    let idle_cpu = between(&after, &rest).map(|used| 1e6 * used.cpu_s / idle_s / connections);
    Ok(ConnectReport {
        bench: "connect",
        conditions,
        connections: options.connections,
        websocket: options.websocket,
        rate: options.rate,
        logins_at_once: options.logins_at_once,
        logins_per_s: rate(u64::from(options.connections), Duration::from_micros(arrived.took_us)),
        login_ms: arrived.logins.percentiles(),
        rss_before_bytes: rss(&before),
        rss_bytes: rss(&after),
        rss_per_connection_bytes: rss(&after)
            .zip(rss(&before))
            .map(|(after, before)| bytes(after.saturating_sub(before)) / connections),
        idle_s,
        idle_cpu_us_per_s_per_connection: idle_cpu,
        login_cpu_us,
        verdict: Verdict::default(),
        charts: Charts { unit: "", points: Vec::new(), curves: vec![("login", arrived.logins.curve())] },
    })
}
