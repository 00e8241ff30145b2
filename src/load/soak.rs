//! `bench soak`: for a long time users talk with each other, in pairs, in small groups and in one of all, and come and
//! go. In the end everybody must have had everything, once and in order, and the server must not have grown.
//!
//! The users are clients of the `convoke-client` crate: what they miss while they are away they fetch as any
//! application does.

mod user;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use convoke_client::{ClientConfig, Start};
use convoke_protocol::group::GroupProfile;
use convoke_protocol::id::{ConversationId, DeviceId, GroupId, UserId};
use convoke_protocol::request::Retry;
use convoke_protocol::request::groups::CreateGroup;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::user::{Done, Order, Place, Talker, Times};
use super::LoadError;
use super::client;
use super::crowd::Shape;
use super::latency::Percentiles;
use super::node::{Node, Which};
use super::process::Usage;
use super::report::conditions::Conditions;
use super::report::{Charts, Outcome, Progress, Row, Verdict, rate};
use super::series::Point;
use super::service::Service;
use crate::auth::Role;

/// Members of a small group.
const SMALL: u32 = 10;
/// Members of the one large group; more users than that are not in it.
const LARGE: u32 = 500;
/// How long the last messages may take to reach everybody.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);
/// After so long the server's memory is compared with; of a short run, after a fifth of it.
const GROWN_BY_THEN: Duration = Duration::from_secs(120);
/// A token is good for so long.
const TOKEN_FOR: Duration = Duration::from_secs(14 * 24 * 3600);

/// Who talks, and for how long.
#[derive(Debug, Clone)]
pub struct SoakOptions {
    /// The node.
    pub node: Which,
    /// Users, each with one device.
    pub users: u32,
    /// Messages per second of all together.
    pub rate: f64,
    /// How long a user stays before it goes and comes back, on average.
    pub stay: Duration,
    /// How long they talk.
    pub measured: Duration,
}

impl SoakOptions {
    fn grown_by_then(&self) -> Duration {
        GROWN_BY_THEN.min(self.measured / 5)
    }
}

/// What was found.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct SoakReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub users: u32,
    pub rate: f64,
    pub stay_s: f64,
    pub duration_s: f64,
    /// Messages that were acknowledged.
    pub sent: u64,
    /// What their conversations' members are to have had of them, all together.
    pub expected: u64,
    /// What they had.
    pub received: u64,
    /// How often a user went and came back.
    pub reconnects: u64,
    pub refused: u64,
    pub first_refusal: Option<String>,
    pub acked_per_s: f64,
    pub ack_ms: Option<Percentiles>,
    pub server: Option<Usage>,
    /// When memory was looked at first, in seconds.
    pub rss_early_s: f64,
    pub rss_early_bytes: Option<u64>,
    pub rss_late_bytes: Option<u64>,
    /// By how many hundredths it grew in between.
    pub rss_growth_percent: Option<f64>,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub series: Vec<Point>,
    #[serde(skip)]
    charts: Charts,
}

impl Outcome for SoakReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        vec![Row {
            what: "acked".into(),
            per_s: self.acked_per_s,
            latency: self.ack_ms,
            server: self.server,
            cpu_us_each: None,
        }]
    }

    fn verdict(&self) -> Verdict {
        self.verdict
    }

    fn charts(&self) -> Charts {
        self.charts.clone()
    }

    fn remarks(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "sent {}, expected {}, received {}; {} reconnects",
            self.sent, self.expected, self.received, self.reconnects
        )];
        lines.extend(self.rss_growth_percent.map(|percent| {
            format!("the server's memory moved by {percent:+.1} % after the first {:.0} s", self.rss_early_s)
        }));
        lines
    }
}

/// Where each user talks: with its neighbours, in a group of ten, in a group of all.
fn places(run: &str, options: &SoakOptions) -> (Vec<Vec<Place>>, BTreeMap<GroupId, Vec<UserId>>) {
    let all = options.users;
    let name = |number: u32| client::user(run, number);
    let mut groups: BTreeMap<GroupId, Vec<UserId>> = BTreeMap::new();
    let group = |text: String| GroupId::new(&text).expect("letters, digits and hyphens make an id");
    let places = (0..all).map(|n| {
        let mut places = Vec::new();
        for apart in [1, 2, 3] {
            let other = (n + apart) % all;
            if other != n {
                places.push(Place::User(name(other)));
            }
        }
        let small = group(format!("soak-{run}-{}", n / SMALL));
        groups.entry(small.clone()).or_default().push(name(n));
        places.push(Place::Group(small));
        if n < LARGE {
            let large = group(format!("soak-{run}-all"));
            groups.entry(large.clone()).or_default().push(name(n));
            places.push(Place::Group(large));
        }
        places
    });
    (places.collect(), groups)
}

fn config(node: &Node, user: &UserId) -> ClientConfig {
    let token = node.key().sign(user, Role::User, TOKEN_FOR);
    let addresses = node.tcp().iter().map(ToString::to_string).collect();
    let mut config = ClientConfig::new(addresses, token, DeviceId::new("soak").expect("a valid name"));
    config.start = Start::from_first();
    config.keep_cursors = false;
    config
}

async fn make_groups(node: &Node, groups: &BTreeMap<GroupId, Vec<UserId>>) -> Result<(), LoadError> {
    let service = Service::connect(node).await?;
    for (group, members) in groups {
        let create = CreateGroup {
            retry: Retry::first(),
            group: Some(group.clone()),
            unique: false,
            profile: GroupProfile::default(),
            members: members.clone(),
        };
        service.client.call(create).await?;
    }
    service.leave().await;
    Ok(())
}

/// How many are to have what is said in a conversation.
fn audience(conversation: &ConversationId, groups: &BTreeMap<GroupId, Vec<UserId>>) -> u64 {
    let group = groups.iter().find(|(group, _)| ConversationId::group(group) == *conversation);
    group.map_or(2, |(_, members)| members.len() as u64)
}

/// Lets them talk, and checks.
///
/// # Errors
/// If it could not be run.
pub fn run(options: &SoakOptions) -> Result<SoakReport, LoadError> {
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
    let (places, groups) = places(&run, options);
    runtime.block_on(make_groups(&node, &groups))?;

    let (orders, _) = watch::channel(Order::Talk);
    let began = Instant::now();
    let times = Arc::<Mutex<Times>>::default();
    let mut talkers = JoinSet::new();
    for (places, number) in places.into_iter().zip(0..) {
        let name = client::user(&run, number);
        let talker = Talker::new(name.clone(), config(&node, &name), places, options, began, times.clone());
        talkers.spawn_on(talker.run(orders.subscribe()), runtime.handle());
    }
    progress.say("talking");
    let early = options.grown_by_then();
    let begin = node.sample()?;
    progress.wait(early);
    let early_sample = node.sample()?;
    progress.wait(options.measured.saturating_sub(early));
    let late = node.sample()?;
    progress.say("waiting until everybody has everything");
    orders.send_replace(Order::Settle { within: SETTLE_WITHIN });
    let done = runtime.block_on(async {
        let mut all = Done::default();
        while let Some(one) = talkers.join_next().await {
            all.merge(one.map_err(|_| LoadError::Broken("a user's task panicked"))?);
        }
        Ok::<_, LoadError>(all)
    })?;
    drop(runtime);
    node.stop()?;
    let rss = (early_sample.as_ref().map(|one| one.rss_bytes()), late.as_ref().map(|one| one.rss_bytes()));
    let server = late.zip(begin).and_then(|(after, before)| after.since(&before));
    let times = times.lock();
    Ok(conclude(options, conditions, done, &times, &groups, rss, server))
}

fn conclude(
    options: &SoakOptions,
    conditions: Conditions,
    done: Done,
    times: &Times,
    groups: &BTreeMap<GroupId, Vec<UserId>>,
    rss: (Option<u64>, Option<u64>),
    server: Option<Usage>,
) -> SoakReport {
    let expected = done.acked.iter().map(|(id, acked)| acked * audience(id, groups)).sum::<u64>();
    let sent = done.acked.values().sum::<u64>();
    let points = times.series.points();
    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    let growth = |early: u64, late: u64| 100.0 * (late as f64 - early as f64) / early as f64;
    // A message without an answer may have been said: whoever heard it heard nothing that was not sent.
    let unsure = done.unknown * u64::from(options.users.min(LARGE));
    SoakReport {
        bench: "soak",
        conditions,
        users: options.users,
        rate: options.rate,
        stay_s: options.stay.as_secs_f64(),
        duration_s: options.measured.as_secs_f64(),
        sent,
        expected,
        received: done.received,
        reconnects: done.reconnects,
        refused: done.refused,
        first_refusal: done.first_refusal,
        acked_per_s: rate(sent, options.measured),
        ack_ms: times.ack.percentiles(),
        server,
        rss_early_s: options.grown_by_then().as_secs_f64(),
        rss_early_bytes: rss.0,
        rss_late_bytes: rss.1,
        rss_growth_percent: rss.0.zip(rss.1).map(|(early, late)| growth(early, late)),
        verdict: Verdict {
            lost: expected.saturating_sub(done.received) + done.refused,
            duplicated: done.doubled + done.received.saturating_sub(expected + unsure),
            out_of_order: 0,
            gaps: done.gaps,
        },
        charts: Charts {
            unit: "acked messages",
            points: points.clone(),
            curves: vec![("ack", times.ack.curve())],
        },
        series: points,
    }
}
