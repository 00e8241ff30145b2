//! `bench reconnect`: every session is lost at once, something is said meanwhile to each user, and all come back and catch up: a
//! storm.

use std::time::{Duration, Instant};

use convoke_protocol::id::ConversationId;
use convoke_protocol::message::{Content, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::SendAs;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Serialize;

use super::LoadError;
use super::client::user;
use super::crowd::{CatchingUp, Crew, Shape};
use super::fill::Filling;
use super::latency::Percentiles;
use super::node::{Node, temporary_directory};
use super::process::Usage;
use super::report::conditions::Conditions;
use super::report::{Charts, Outcome, Progress, Row, Verdict, rate};
use super::service::Service;

/// Messages of each conversation.
const MESSAGES: u64 = 2;

/// Messages on their way at one time while nobody is there.
const SAID_AT_ONCE: usize = 32;

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
    /// Each walks over all its conversations when it comes back, as one does whose device kept nothing.
    pub all: bool,
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
    pub all: bool,
    /// How long the store went on merging after it was filled; nothing was measured meanwhile.
    pub rest_s: f64,
    /// When all connect for the first time and know nothing.
    pub first_s: f64,
    /// Said while nobody was there: one message to each user by the next on the ring, so each lacks two, its own included.
    pub said: u64,
    /// Conversations that were told and messages that were missing, of all who came back.
    pub told: u64,
    pub missing: u64,
    /// From the moment in which all begin to come back until the last is live and has caught up.
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
            format!(
                "while they were away {} messages were said; {} conversations were told, {} messages were missing",
                self.said, self.told, self.missing
            ),
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

/// Says something in the name of each user to the next on the ring. How many messages that are.
async fn say(node: &Node, run: &str, users: u32) -> Result<u64, LoadError> {
    let service = Service::connect(node).await?;
    let said = stream::iter(0..users).map(|n| {
        let (sender, next) = (user(run, n), user(run, (n + 1) % users));
        service.client.call(SendAs {
            retry: Retry::first(),
            conversation: ConversationId::direct(&sender, &next),
            sender: Some(sender),
            content: Content::text("while you were away"),
            reply_to: None,
            priority: Priority::NORMAL,
        })
    });
    let said = said.buffer_unordered(SAID_AT_ONCE).try_fold(0, async |said, _| Ok(said + 1)).await?;
    service.leave().await;
    Ok(said)
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
        catching_up: if options.all { CatchingUp::All } else { CatchingUp::Changed },
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
    crew.lose()?;
    progress.say("saying something to everybody while nobody is there");
    let said = runtime.block_on(say(&node, &shape.run, options.connections))?;
    progress.say("the storm");
    let before = node.sample()?;
    let back = crew.come_back()?;
    let after = node.sample()?;
    drop(crew);
    node.stop()?;

    // Both of each pair lack what was said.
    let lacking = 2 * said;
    let conversations = u64::from(options.connections) * u64::from(options.conversations / 2 * 2);
    let untold = if options.all { conversations } else { lacking }.saturating_sub(back.conversations);
    let took = Duration::from_micros(back.took_us);
    let server = after.zip(before).and_then(|(after, before)| after.since(&before));
    Ok(ReconnectReport {
        bench: "reconnect",
        conditions,
        connections: options.connections,
        conversations: options.conversations / 2 * 2,
        logins_at_once: options.logins_at_once,
        all: options.all,
        rest_s: rested.as_secs_f64(),
        first_s: Duration::from_micros(first.took_us).as_secs_f64(),
        back_s: took.as_secs_f64(),
        back_per_s: rate(u64::from(options.connections), took),
        back_ms: back.logins.percentiles(),
        server,
        server_cpu_us_each: server.map(|used| 1e6 * used.cpu_s / f64::from(options.connections)),
        said,
        told: back.conversations,
        missing: back.missing,
        verdict: Verdict {
            lost: lacking.saturating_sub(back.missing) + untold,
            duplicated: back.missing.saturating_sub(lacking)
                + back.conversations.saturating_sub(conversations),
            ..Verdict::default()
        },
        charts: Charts { unit: "", points: Vec::new(), curves: vec![("back", back.logins.curve())] },
    })
}
