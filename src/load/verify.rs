//! `bench verify`: a ledger outside the servers. Every send with its outcome, every push and every page is written down, and in
//! the end everything is read back: what was acknowledged is there, once, in order, under the number that was told.
//!
//! Meant for servers to which something happens meanwhile: clients reconnect to whichever node answers and repeat what
//! was not answered, under the same client id. A fault of the servers is counted and ends in a failure; that they were away is not.

mod ledger;
mod user;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use convoke_client::{Client, ClientConfig, Start};
use convoke_protocol::error_code::RequestError;
use convoke_protocol::id::{ConversationId, DeviceId, Seq};
use convoke_protocol::request::messages::{Direction, History, HistoryFrom};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use self::ledger::{Found, Ledger, Seen};
use self::user::{Side, of};
use super::LoadError;
use super::client;
use super::crowd::Shape;
use super::latency::{Latencies, Percentiles};
use super::node::{Node, Which};
use super::report::conditions::Conditions;
use super::report::{Charts, Outcome, Progress, Row, Verdict, rate};
use super::series::{Point, Series};
use crate::auth::Role;

/// How long what is not answered is repeated after the last send.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);
/// How long the servers may take to be readable in the end.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// Users who connect for the first time at once: a storm is what happens later.
const ARRIVING_AT_ONCE: usize = 500;
/// A token is good for so long.
const TOKEN_FOR: Duration = Duration::from_secs(24 * 3600);
/// Messages of one page that is read in the end.
const PAGE: u32 = 1_000;

/// What is sent, and for how long.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The nodes.
    pub node: Which,
    /// Pairs of users that talk in both directions.
    pub pairs: u32,
    /// Sends of one user without an answer.
    pub in_flight: usize,
    /// How long a user waits after an answer before the next send.
    pub pause: Duration,
    /// The length of each message's body.
    pub body_bytes: usize,
    /// How long they talk.
    pub measured: Duration,
}

/// What was found.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct VerifyReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub pairs: u32,
    pub in_flight: usize,
    pub pause_ms: f64,
    pub duration_s: f64,
    pub acked: u64,
    pub pushed: u64,
    /// Acknowledged at the first attempt, and after more than one.
    pub acked_at_once: u64,
    pub acked_after_retries: u64,
    /// Sends of which nobody was told what became of them: what is there in the end settles them.
    pub unknown_settled: u64,
    /// Answers that were errors; nearly all are followed by a retry that succeeds.
    pub errors: u64,
    pub first_error: Option<String>,
    /// Under another number or id than was told.
    pub renumbered: u64,
    /// In the log although refused, or although nobody sent it.
    pub invented: u64,
    /// The longest time that a send took, retries included.
    pub unavailable_max_ms: f64,
    /// From the loss of a connection until its user was back and had what was missed.
    pub away_max_ms: f64,
    pub away_ms: Option<Percentiles>,
    pub connections: u64,
    pub acked_per_s: f64,
    pub ack_ms: Option<Percentiles>,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub series: Vec<Point>,
    #[serde(skip)]
    charts: Charts,
}

impl Outcome for VerifyReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        vec![Row {
            what: "acked".into(),
            per_s: self.acked_per_s,
            latency: self.ack_ms,
            server: None,
            cpu_us_each: None,
        }]
    }

    fn verdict(&self) -> Verdict {
        // What has another number than was told, or was never sent, is no better than what is lost.
        Verdict { lost: self.verdict.lost + self.renumbered + self.invented, ..self.verdict }
    }

    fn charts(&self) -> Charts {
        self.charts.clone()
    }

    fn remarks(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "acked {} ({} after retries), pushed {}, settled by the end {}, {} connections",
                self.acked, self.acked_after_retries, self.pushed, self.unknown_settled, self.connections
            ),
            format!(
                "the longest send took {:.0} ms, the longest way back {:.0} ms, renumbered {}, invented {}",
                self.unavailable_max_ms, self.away_max_ms, self.renumbered, self.invented
            ),
        ];
        lines.extend(
            self.first_error.as_ref().map(|error| format!("{} errors, such as: {error}", self.errors)),
        );
        lines
    }
}

/// What all users are told.
#[derive(Debug, Clone, Copy)]
enum Order {
    Talk,
    /// Say nothing new; repeat what is not answered until then.
    Settle {
        until: Instant,
    },
}

/// What users report beside the ledger.
struct Told {
    began: Instant,
    times: Mutex<(Latencies, Series, Duration)>,
    away: Mutex<Latencies>,
    at_once: AtomicU64,
    retried: AtomicU64,
    errors: AtomicU64,
    connections: AtomicU64,
    first_error: Mutex<Option<String>>,
    /// Who comes for the first time waits here.
    door: Semaphore,
}

impl Told {
    fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    fn acked(&self, took: Duration, attempts: u32) {
        let counter = if attempts == 1 { &self.at_once } else { &self.retried };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut times = self.times.lock();
        times.0.record(took);
        times.1.record(self.began.elapsed(), took);
        times.2 = took.max(times.2);
    }

    /// Somebody whose connection was lost is back, and misses nothing.
    fn back(&self, after: Duration) {
        self.away.lock().record(after);
    }

    fn refused(&self, error: &RequestError) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.first_error.lock().get_or_insert_with(|| error.to_string());
    }
}

/// Lets them talk, reads everything back, and compares.
///
/// # Errors
/// If it could not be run, or the servers cannot be read in the end.
pub fn run(options: &VerifyOptions) -> Result<VerifyReport, LoadError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(LoadError::doing("starting a runtime"))?;
    let progress = Progress::new(options.measured);
    progress.say("preparing the node");
    let node = Node::prepare(options.node.clone())?;
    let conditions = Conditions::gather(node.data());
    let run = Shape::new_run();
    let addresses: Vec<String> = node.tcp().iter().map(ToString::to_string).collect();
    let told = Arc::new(Told {
        began: Instant::now(),
        times: Mutex::default(),
        away: Mutex::default(),
        at_once: AtomicU64::new(0),
        retried: AtomicU64::new(0),
        errors: AtomicU64::new(0),
        connections: AtomicU64::new(0),
        first_error: Mutex::default(),
        door: Semaphore::new(ARRIVING_AT_ONCE),
    });
    let (orders, _) = watch::channel(Order::Talk);
    let mut ledgers = BTreeMap::new();
    let mut sides = JoinSet::new();
    for pair in 0..options.pairs {
        let users = [client::user(&run, 2 * pair), client::user(&run, 2 * pair + 1)];
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        ledgers.insert(ConversationId::direct(&users[0], &users[1]), (ledger.clone(), users[0].clone()));
        for (side, first_address) in [(0, 2 * pair), (1, 2 * pair + 1)] {
            let side = Side {
                user: users[side].clone(),
                peer: users[1 - side].clone(),
                token: node.key().sign(&users[side], Role::User, TOKEN_FOR),
                addresses: addresses.clone(),
                first_address: first_address as usize,
                ledger: ledger.clone(),
                in_flight: options.in_flight,
                pause: options.pause,
                body_bytes: options.body_bytes,
                told: told.clone(),
            };
            sides.spawn_on(side.run(orders.subscribe()), runtime.handle());
        }
    }
    progress.say("talking; SIGINT ends it early");
    let talked = runtime.block_on(async {
        let begun = Instant::now();
        tokio::select! {
            () = tokio::time::sleep(options.measured) => options.measured,
            _ = tokio::signal::ctrl_c() => begun.elapsed(),
        }
    });
    progress.say("repeating what is not answered");
    orders.send_replace(Order::Settle { until: Instant::now() + SETTLE_WITHIN });
    runtime.block_on(async { while sides.join_next().await.is_some() {} });
    progress.say("reading everything back");
    let found = runtime.block_on(read_back(&node, &addresses, ledgers))?;
    drop(runtime);
    node.stop()?;
    Ok(conclude(options, talked, conditions, &found, &told))
}

async fn read_back(
    node: &Node,
    addresses: &[String],
    ledgers: BTreeMap<ConversationId, (Arc<Mutex<Ledger>>, convoke_protocol::id::UserId)>,
) -> Result<Found, LoadError> {
    let mut all = Found::default();
    for (conversation, (ledger, user)) in ledgers {
        let token = node.key().sign(&user, Role::User, TOKEN_FOR);
        let device = DeviceId::new("reader").expect("a valid name");
        let mut config = ClientConfig::new(addresses.to_vec(), token, device);
        config.start = Start::from_now();
        config.keep_cursors = false;
        config.connect_deadline = READ_WITHIN;
        config.request_deadline = READ_WITHIN;
        let (client, _events) = Client::connect(config).await?;
        let log = history(&client, &conversation).await?;
        // A server that does not answer notices by itself.
        let _ = client.logout().await;
        let ledger = std::mem::take(&mut *ledger.lock());
        all.add(&ledger.conclude(&log));
    }
    Ok(all)
}

/// All of a conversation, page by page.
async fn history(client: &Client, conversation: &ConversationId) -> Result<Vec<Seen>, LoadError> {
    let mut log: Vec<Seen> = Vec::new();
    let mut from = HistoryFrom::First;
    loop {
        let ask =
            History { conversation: conversation.clone(), from, direction: Direction::Newer, limit: PAGE };
        let page = client.history(ask).await?.page;
        log.extend(page.messages.iter().map(of));
        match page.next {
            Some(next) if next > Seq::ZERO => from = HistoryFrom::Seq(next),
            _ => return Ok(log),
        }
    }
}

fn conclude(
    options: &VerifyOptions,
    talked: Duration,
    conditions: Conditions,
    found: &Found,
    told: &Told,
) -> VerifyReport {
    let times = told.times.lock();
    let (ack, series, longest) = (&times.0, &times.1, times.2);
    let away_ms = told.away.lock().percentiles();
    let points = series.points();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    VerifyReport {
        bench: "verify",
        conditions,
        pairs: options.pairs,
        in_flight: options.in_flight,
        pause_ms: options.pause.as_secs_f64() * 1_000.0,
        duration_s: talked.as_secs_f64(),
        acked: found.acked,
        pushed: found.pushed,
        acked_at_once: read(&told.at_once),
        acked_after_retries: read(&told.retried),
        unknown_settled: found.unknown_settled,
        errors: read(&told.errors),
        first_error: told.first_error.lock().clone(),
        renumbered: found.renumbered,
        invented: found.invented,
        unavailable_max_ms: longest.as_secs_f64() * 1_000.0,
        away_max_ms: away_ms.map_or(0.0, |away| away.max),
        away_ms,
        connections: read(&told.connections),
        acked_per_s: rate(found.acked, talked),
        ack_ms: ack.percentiles(),
        verdict: Verdict {
            lost: found.lost,
            duplicated: found.duplicated,
            out_of_order: found.out_of_order,
            gaps: found.gaps,
        },
        charts: Charts { unit: "acked messages", points: points.clone(), curves: vec![("ack", ack.curve())] },
        series: points,
    }
}
