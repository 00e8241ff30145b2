//! `bench reconnect`: every session is lost at once, and all come back and catch up: a storm.

use std::time::{Duration, Instant};

use convoke_protocol::id::ConversationId;
use serde::Serialize;

use super::LoadError;
use super::client::user;
use super::crowd::{Crew, Shape};
use super::fill::Filling;
use super::latency::Percentiles;
use super::node::{Node, temporary_directory};
use super::process::Usage;
use super::report::conditions::Conditions;
use super::report::{Charts, Outcome, Progress, Row, Verdict, rate};

/// Messages of each conversation.
const MESSAGES: u64 = 2;

/// The node is at rest when it uses less than this share of a core.
const REST_SHARE: f64 = 0.05;
const REST_LOOK: Duration = Duration::from_secs(2);
/// It is measured after so long in any case.
const REST_WITHIN: Duration = Duration::from_secs(600);

/// Who comes back.
#[derive(Debug, Clone, Copy)]
pub struct ReconnectOptions {
    /// Users, each with one device.
    pub connections: u32,
    /// Direct conversations of each.
    pub conversations: u32,
    /// Logins under way at one time.
    pub logins_at_once: u32,
}

/// What was found.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct ReconnectReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub connections: u32,
    pub conversations: u32,
    pub logins_at_once: u32,
    /// How long the store went on merging after it was filled; nothing was measured meanwhile.
    pub rest_s: f64,
    /// When all connect for the first time and know nothing.
    pub first_s: f64,
    /// From the loss of all sessions until the last is live and has caught up.
    pub back_s: f64,
    pub back_per_s: f64,
    /// Of each, from its connection until it has caught up.
    pub back_ms: Option<Percentiles>,
    pub server: Option<Usage>,
    pub server_cpu_us_each: Option<f64>,
    #[serde(flatten)]
    pub verdict: Verdict,
    #[serde(skip)]
    charts: Charts,
}

impl Outcome for ReconnectReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        vec![Row {
            what: format!("{} back and caught up", self.connections),
            per_s: self.back_per_s,
            latency: self.back_ms,
            server: self.server,
            cpu_us_each: self.server_cpu_us_each,
        }]
    }

    fn verdict(&self) -> Verdict {
        self.verdict
    }

    fn charts(&self) -> Charts {
        self.charts.clone()
    }

    fn remarks(&self) -> Vec<String> {
        vec![
            format!("all back after {:.2} s; the first time it took {:.2} s", self.back_s, self.first_s),
            format!("before that the node came to rest for {:.0} s after the fill", self.rest_s),
        ]
    }
}

/// Every pair of neighbours on a ring, up to `each / 2` places apart, has a conversation: so each user has `each`.
fn conversations(run: &str, options: &ReconnectOptions) -> impl Iterator<Item = ConversationId> {
    let all = options.connections;
    let run = run.to_owned();
    (1..=options.conversations / 2).flat_map(move |apart| {
        let run = run.clone();
        (0..all).map(move |n| ConversationId::direct(&user(&run, n), &user(&run, (n + apart) % all)))
    })
}

/// Waits until the node does nothing: after a fill the store merges for a while, which no node does that was filled over
/// days. How long that took.
fn rest(node: &Node, progress: &Progress) -> Result<Duration, LoadError> {
    let began = Instant::now();
    let mut last = node.sample()?;
    while began.elapsed() < REST_WITHIN {
        progress.wait(REST_LOOK);
        let now = node.sample()?;
        let used = now.as_ref().zip(last.as_ref()).and_then(|(now, last)| now.since(last));
        if used.is_none_or(|used| used.cpu_s < REST_SHARE * REST_LOOK.as_secs_f64()) {
            break;
        }
        last = now;
    }
    Ok(began.elapsed())
}

/// Fills a store, connects all, loses all, and waits until all are back.
///
/// # Errors
/// If it could not be run, or a connection ended for another reason.
pub fn run(options: ReconnectOptions) -> Result<ReconnectReport, LoadError> {
    let progress = Progress::new(Duration::from_secs(1));
    let directory = temporary_directory()?;
    let shape = Shape {
        run: Shape::new_run(),
        connections: options.connections,
        websocket: false,
        logins_at_once: options.logins_at_once,
        logins_per_s: None,
        sync: true,
        speaking: None,
    };
    progress.say("filling the store");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LoadError::doing("starting a runtime"))?;
    runtime.block_on(async {
        let mut filling = Filling::open(&directory.join("data"))?;
        for conversation in conversations(&shape.run, &options) {
            filling.conversation(&conversation, MESSAGES).await?;
        }
        filling.close().await
    })?;
    let conditions = Conditions::gather(Some(&directory));
    let node = Node::on(directory)?;
    progress.say("waiting until the store has sorted what was filled in");
    let rested = rest(&node, &progress)?;
    progress.say("logging in for the first time");
    let mut crew = Crew::start(&shape, &node)?;
    let first = crew.arrived()?;
    progress.say("the storm");
    let before = node.sample()?;
    let back = crew.storm()?;
    let after = node.sample()?;
    drop(crew);
    node.stop()?;

    let expected = u64::from(options.connections) * u64::from(options.conversations / 2 * 2);
    let took = Duration::from_micros(back.took_us);
    let server = after.zip(before).and_then(|(after, before)| after.since(&before));
    Ok(ReconnectReport {
        bench: "reconnect",
        conditions,
        connections: options.connections,
        conversations: options.conversations / 2 * 2,
        logins_at_once: options.logins_at_once,
        rest_s: rested.as_secs_f64(),
        first_s: Duration::from_micros(first.took_us).as_secs_f64(),
        back_s: took.as_secs_f64(),
        back_per_s: rate(u64::from(options.connections), took),
        back_ms: back.logins.percentiles(),
        server,
        server_cpu_us_each: server.map(|used| 1e6 * used.cpu_s / f64::from(options.connections)),
        verdict: Verdict {
            lost: expected.saturating_sub(back.conversations),
            duplicated: back.conversations.saturating_sub(expected) + back.missing,
            ..Verdict::default()
        },
        charts: Charts { unit: "", points: Vec::new(), curves: vec![("back", back.logins.curve())] },
    })
}
