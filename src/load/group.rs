//! `bench group`: a few members of a large group speak, all that are online hear everything.

use std::time::Duration;

use convoke_protocol::group::{GroupProfile, MAX_MEMBERS_PER_REQUEST};
use convoke_protocol::id::{GroupId, UserId};
use convoke_protocol::request::Retry;
use convoke_protocol::request::groups::{AddMembers, CreateGroup};
use convoke_protocol::request::messages::{Direction, History, HistoryFrom};
use serde::Serialize;

use super::LoadError;
use super::client::user;
use super::crowd::{self, CatchingUp, Crew, Shape, Speaking};
use super::latency::Percentiles;
use super::limits;
use super::node::{Node, Which};
use super::process::{Usage, used};
use super::report::conditions::Conditions;
use super::report::{Charts, Incidents, Outcome, Progress, Row, Verdict};
use super::series::Point;
use super::service::Service;

/// Logins under way at one time.
const LOGINS_AT_ONCE: u32 = 200;

/// How long the machine's own rate of deliveries is measured.
const FLOOR_MEASURED: Duration = Duration::from_secs(5);

/// A group, and what is said to it.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// The node.
    pub node: Which,
    /// Members of the group.
    pub members: u32,
    /// Of those, the ones that are connected.
    pub online: u32,
    /// Of those, the ones that speak.
    pub speakers: u32,
    /// Sends of one speaker that may wait for their answers.
    pub in_flight: u32,
    /// The length of each message's body.
    pub body_bytes: usize,
    /// Connected over WebSocket.
    pub websocket: bool,
    /// How long nothing is measured before.
    pub warm_up: Duration,
    /// How long it is measured.
    pub measured: Duration,
    /// Messages per second of all speakers together; without it each answer is followed by the next message.
    pub rate: Option<f64>,
}

/// What was found. Rates are per second of the measured time.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct GroupReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub members: u32,
    pub online: u32,
    pub speakers: u32,
    pub in_flight: u32,
    pub body_bytes: usize,
    pub websocket: bool,
    pub warm_up_s: f64,
    pub duration_s: f64,
    /// Messages per second that were to be sent; absent if the answers set the pace.
    pub rate: Option<f64>,
    pub acked_per_s: f64,
    /// Messages that reached a member, each counted once for each member.
    pub deliveries_per_s: f64,
    pub ack_ms: Option<Percentiles>,
    pub push_ms: Option<Percentiles>,
    /// Without a rate: what `limits` has as `deliveries_per_s` with as many sockets, measured just before.
    pub limits_deliveries_per_s: Option<f64>,
    /// The share of it that was reached.
    pub share_of_limits: Option<f64>,
    pub server: Option<Usage>,
    pub server_cpu_us_per_message: Option<f64>,
    pub server_cpu_us_per_delivery: Option<f64>,
    pub generator: Usage,
    pub generator_cpu_us_per_delivery: f64,
    /// Of all time, warming up and settling included.
    pub acked: u64,
    pub delivered: u64,
    #[serde(flatten)]
    pub incidents: Incidents,
    #[serde(flatten)]
    pub verdict: Verdict,
    pub series: Vec<Point>,
    #[serde(skip)]
    charts: Charts,
}

impl Outcome for GroupReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        let row = |what: &str, per_s| Row {
            what: what.into(),
            per_s,
            latency: None,
            server: None,
            cpu_us_each: None,
        };
        let mut rows = vec![
            Row {
                latency: self.ack_ms,
                server: self.server,
                cpu_us_each: self.server_cpu_us_per_message,
                ..row("acked", self.acked_per_s)
            },
            Row {
                latency: self.push_ms,
                cpu_us_each: self.server_cpu_us_per_delivery,
                ..row("delivered", self.deliveries_per_s)
            },
            Row {
                server: Some(self.generator),
                cpu_us_each: Some(self.generator_cpu_us_per_delivery),
                ..row("(load generator)", self.deliveries_per_s)
            },
        ];
        if let Some(floor) = self.limits_deliveries_per_s {
            rows.push(row("(deliveries of the bare machine)", floor));
        }
        rows
    }

    fn verdict(&self) -> Verdict {
        self.verdict
    }

    fn charts(&self) -> Charts {
        self.charts.clone()
    }
}

/// Makes the group on the node; what is to be said to it.
async fn make_group(options: &GroupOptions, run: &str, node: &Node) -> Result<Speaking, LoadError> {
    let service = Service::connect(node).await?;
    let client = &service.client;
    let names: Vec<UserId> = (0..options.members).map(|number| user(run, number)).collect();
    let mut parts = names.chunks(MAX_MEMBERS_PER_REQUEST);
    let group = GroupId::new(&format!("bench-{run}")).expect("letters, digits and hyphens make an id");
    let create = CreateGroup {
        retry: Retry::first(),
        group: Some(group.clone()),
        unique: false,
        profile: GroupProfile::default(),
        members: parts.next().unwrap_or_default().to_vec(),
    };
    let conversation = client.call(create).await?.conversation;
    for users in parts {
        let add = AddMembers { retry: Retry::first(), group: group.clone(), users: users.to_vec() };
        client.call(add).await?;
    }
    let last = History {
        conversation: conversation.clone(),
        from: HistoryFrom::Last,
        direction: Direction::Older,
        limit: 1,
    };
    let base = client.history(last).await?.page.head.0;
    service.leave().await;
    Ok(Speaking {
        group,
        conversation,
        base,
        speakers: options.speakers,
        in_flight: options.in_flight,
        body_bytes: options.body_bytes,
        rate: options.rate,
    })
}

/// Makes the group, connects, warms up, measures, settles, and checks.
///
/// # Errors
/// If it could not be run, or a connection ended.
pub fn run(options: &GroupOptions) -> Result<GroupReport, LoadError> {
    let progress = Progress::new(options.warm_up + options.measured);
    let floor = match options.rate {
        None => {
            progress.say("measuring the bare machine");
            Some(limits::deliveries_per_s(options.online, FLOOR_MEASURED)?)
        }
        Some(_) => None,
    };
    progress.say("preparing the node");
    let node = Node::prepare(options.node.clone())?;
    let conditions = Conditions::gather(node.data());
    let run = Shape::new_run();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LoadError::doing("starting a runtime"))?;
    progress.say("making the group");
    let speaking = runtime.block_on(make_group(options, &run, &node))?;
    drop(runtime);
    let base = speaking.base;
    let shape = Shape {
        run,
        connections: options.online,
        websocket: options.websocket,
        logins_at_once: LOGINS_AT_ONCE,
        logins_per_s: None,
        catching_up: CatchingUp::Not,
        speaking: Some(speaking),
    };
    progress.say("logging in");
    let mut crew = Crew::start(&shape, &node)?;
    crew.arrived()?;
    let (pids, meter) = (crew.pids(), &node);
    let sample = move || Ok((meter.sample()?, crowd::samples(&pids)?));
    let [before, after] = crew.speak(options.warm_up, options.measured, &progress, sample)?;
    progress.say("waiting for what is on its way");
    let findings = crew.settle(base)?;
    progress.say("stopping");
    drop(crew);
    let server = after.0.zip(before.0).and_then(|(after, before)| after.since(&before));
    let generator = used(&before.1, &after.1);
    node.stop()?;

    let seconds = options.measured.as_secs_f64();
    let each = |usage: Usage, per_s: f64| 1e6 * usage.cpu_s / (per_s * seconds);
    let points = findings.series.points();
    Ok(GroupReport {
        bench: "group",
        conditions,
        members: options.members,
        online: options.online,
        speakers: options.speakers,
        in_flight: options.in_flight,
        body_bytes: options.body_bytes,
        websocket: options.websocket,
        warm_up_s: options.warm_up.as_secs_f64(),
        duration_s: seconds,
        rate: options.rate,
        acked_per_s: findings.acked_per_s,
        deliveries_per_s: findings.delivered_per_s,
        ack_ms: findings.ack.percentiles(),
        push_ms: findings.push.percentiles(),
        limits_deliveries_per_s: floor,
        share_of_limits: floor.map(|floor| findings.delivered_per_s / floor),
        server,
        server_cpu_us_per_message: server.map(|usage| each(usage, findings.acked_per_s)),
        server_cpu_us_per_delivery: server.map(|usage| each(usage, findings.delivered_per_s)),
        generator,
        generator_cpu_us_per_delivery: each(generator, findings.delivered_per_s),
        acked: findings.acked,
        delivered: findings.delivered,
        incidents: findings.incidents,
        verdict: findings.verdict,
        charts: Charts {
            unit: "deliveries",
            points: points.clone(),
            curves: vec![("ack", findings.ack.curve()), ("push", findings.push.curve())],
        },
        series: points,
    })
}
