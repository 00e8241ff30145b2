//! `bench beside`: what people who talk notice of others who misbehave on the same node. Direct messages at a steady rate,
//! first alone; then while one client reads nothing of what it is sent, one floods the node with requests, and a crowd
//! loses its connections and comes back, again and again.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use convoke_client::{Client, ClientConfig, Start};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{DeviceId, UserId};
use convoke_protocol::message::{Content, ContentType};
use convoke_protocol::request::messages::Target;
use convoke_protocol::request::read_state::Signal;
use serde::Serialize;

use super::LoadError;
use super::client::{hello, login, wire};
use super::crowd::{CatchingUp, Crew, Shape};
use super::latency::Percentiles;
use super::node::{Node, Which};
use super::process::Usage;
use super::report::conditions::Conditions;
use super::report::{Outcome, Progress, Row, Verdict};
use super::send::{self, SendOptions, SendReport};
use crate::auth::{Role, SigningKey};

/// How long a token is good: longer than any load test takes.
const TOKEN_FOR: Duration = Duration::from_secs(24 * 3600);
/// Bytes of each message to the client that reads nothing.
const HEAVY_BYTES: usize = 8 << 10;
/// How often one is sent.
const HEAVY_EVERY: Duration = Duration::from_millis(20);
/// Requests of the flood without an answer: as many as a session may have.
const FLOOD_IN_FLIGHT: usize = 64;
/// How fast those of the storm come back: as many in a second as a node's share of a cluster that lost one of its nodes.
const STORM_LOGINS_PER_S: f64 = 1_000.0;
/// Logins of the storm under way at one time.
const STORM_AT_ONCE: u32 = 100;

/// Who talks, and who disturbs.
#[derive(Debug, Clone)]
pub struct BesideOptions {
    /// Users that talk in pairs.
    pub connections: u32,
    /// Messages per second of all of them.
    pub rate: f64,
    /// How long each of the two is measured.
    pub measured: Duration,
    /// Connections of the storm.
    pub storm: u32,
}

/// What was found.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct BesideReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub connections: u32,
    pub rate: f64,
    pub duration_s: f64,
    pub storm_connections: u32,
    /// How often the whole crowd came back.
    pub storms: u64,
    /// Requests of the flood that were answered.
    pub flood_requests: u64,
    /// Messages for the client that reads nothing.
    pub heavy_messages: u64,
    pub quiet_ack_ms: Option<Percentiles>,
    pub quiet_push_ms: Option<Percentiles>,
    pub disturbed_ack_ms: Option<Percentiles>,
    pub disturbed_push_ms: Option<Percentiles>,
    /// The 99th percentile of pushes, disturbed by quiet.
    pub push_p99_ratio: Option<f64>,
    pub disturbed_unsent: u64,
    #[serde(flatten)]
    pub verdict: Verdict,
    #[serde(skip)]
    rows: Vec<Row>,
}

impl Outcome for BesideReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        self.rows.clone()
    }

    fn verdict(&self) -> Verdict {
        self.verdict
    }

    fn remarks(&self) -> Vec<String> {
        let ratio = self.push_p99_ratio.map(|ratio| format!("p99 of pushes, disturbed by quiet: {ratio:.2}"));
        let disturbance = format!(
            "beside: {} storms of {}, {} requests of a flood, {} messages of {HEAVY_BYTES} bytes for one that reads nothing",
            self.storms, self.storm_connections, self.flood_requests, self.heavy_messages
        );
        ratio.into_iter().chain([disturbance]).collect()
    }
}

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a valid name")
}

/// Logs in and reads nothing: what comes stays in the buffers of the kernel, then in the node's queue.
fn log_in(address: SocketAddr, token: String) -> Result<TcpStream, LoadError> {
    let mut stream = TcpStream::connect(address).map_err(LoadError::doing("connecting"))?;
    let mut out = Vec::new();
    wire::put_request(&mut out, Framing::Tcp, 1, &hello().into());
    wire::put_request(&mut out, Framing::Tcp, 2, &login(token).into());
    stream.write_all(&out).map_err(LoadError::doing("logging in"))?;
    Ok(stream)
}

fn config(tcp: SocketAddr, key: &SigningKey, name: &str) -> ClientConfig {
    let token = key.sign(&user(name), Role::User, TOKEN_FOR);
    let device = DeviceId::new("bench").expect("a valid name");
    let mut config = ClientConfig::new(vec![tcp.to_string()], token, device);
    config.start = Start::from_now();
    config
}

/// What the disturbers did.
#[derive(Debug, Default)]
struct Done {
    over: AtomicBool,
    storms: AtomicU64,
    flood: AtomicU64,
    heavy: AtomicU64,
}

impl Done {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }
}

/// As many requests as a session may have without an answer, and again, as fast as they are answered: most are refused,
/// for they are more than a session's rate of signals allows.
fn flood(mut stream: TcpStream, done: &Done) -> Result<(), LoadError> {
    let signal = Signal {
        target: Target::User(user("beside-writer")),
        kind: "typing".to_owned(),
        content: Content { content_type: ContentType::text(), body: Bytes::from_static(b"on") },
    };
    let signal = signal.into();
    let (mut read, mut asked, mut buffer) = (Vec::new(), 2, vec![0; 64 << 10]);
    while done.goes_on() {
        let mut out = Vec::new();
        for _ in 0..FLOOD_IN_FLIGHT {
            asked += 1;
            wire::put_request(&mut out, Framing::Tcp, asked, &signal);
        }
        stream.write_all(&out).map_err(LoadError::doing("flooding"))?;
        let mut answered = 0;
        while answered < FLOOD_IN_FLIGHT {
            let count = stream.read(&mut buffer).map_err(LoadError::doing("reading answers to a flood"))?;
            if count == 0 {
                return Err(LoadError::Broken("the node closed the connection of the flood"));
            }
            read.extend_from_slice(&buffer[..count]);
            let mut rest = &read[..];
            while let Ok(Some(frame)) = wire::next(&mut rest, Framing::Tcp) {
                // The answers to its login are 1 and 2, and events have none.
                answered += usize::from(frame.head.request_id > 2);
            }
            read = rest.to_vec();
        }
        done.flood.fetch_add(answered as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Says something to the one that reads nothing, at its own pace.
async fn write_much(config: ClientConfig, done: Arc<Done>) -> Result<(), LoadError> {
    let (client, mut events) = Client::connect(config).await?;
    let reading = tokio::spawn(async move { while events.next().await.is_some() {} });
    let content = Content { content_type: ContentType::text(), body: Bytes::from(vec![b'.'; HEAVY_BYTES]) };
    let mut ticks = tokio::time::interval(HEAVY_EVERY);
    while done.goes_on() {
        ticks.tick().await;
        client.send(Target::User(user("beside-deaf")), content.clone()).await?;
        done.heavy.fetch_add(1, Ordering::Relaxed);
    }
    reading.abort();
    Ok(())
}

/// The disturbers at work, until they are told to end.
struct Disturbance {
    done: Arc<Done>,
    clients: JoinHandle<Result<(), LoadError>>,
    storm: JoinHandle<Result<(), LoadError>>,
    flood: JoinHandle<Result<(), LoadError>>,
    _deaf: TcpStream,
}

impl Disturbance {
    fn begin(node: &Node, tcp: SocketAddr, connections: u32) -> Result<Self, LoadError> {
        let done = Arc::<Done>::default();
        let deaf_token = node.key().sign(&user("beside-deaf"), Role::User, TOKEN_FOR);
        let deaf = log_in(tcp, deaf_token)?;
        let writing = config(tcp, node.key(), "beside-writer");
        let flood_token = node.key().sign(&user("beside-flood"), Role::User, TOKEN_FOR);
        let flooding = log_in(tcp, flood_token)?;
        let flood = std::thread::spawn({
            let done = done.clone();
            move || flood(flooding, &done)
        });
        let clients = std::thread::spawn({
            let done = done.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(LoadError::doing("starting a runtime"))?;
                runtime.block_on(write_much(writing, done))
            }
        });
        let shape = Shape {
            run: Shape::new_run(),
            connections,
            websocket: false,
            logins_at_once: STORM_AT_ONCE,
            logins_per_s: Some(STORM_LOGINS_PER_S),
            catching_up: CatchingUp::All,
            speaking: None,
        };
        let mut crew = Crew::start(&shape, node)?;
        crew.arrived()?;
        let storm = std::thread::spawn({
            let done = done.clone();
            move || {
                while done.goes_on() {
                    crew.lose()?;
                    crew.come_back()?;
                    done.storms.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        Ok(Self { done, clients, storm, flood, _deaf: deaf })
    }

    fn end(self) -> Result<Arc<Done>, LoadError> {
        self.done.over.store(true, Ordering::Relaxed);
        for thread in [self.storm, self.clients, self.flood] {
            thread.join().map_err(|_| LoadError::Broken("a disturber panicked"))??;
        }
        Ok(self.done)
    }
}

/// Measures both.
///
/// # Errors
/// If it could not be run, or a connection of those who talk ended.
pub fn run(options: &BesideOptions) -> Result<BesideReport, LoadError> {
    let progress = Progress::new(options.measured * 2);
    progress.say("preparing the node");
    let node = Node::prepare(Which::Own)?;
    let conditions = Conditions::gather(node.data());
    let which = Which::Running {
        tcp: node.tcp().to_vec(),
        data: node.data().map(ToOwned::to_owned),
        key: None,
        admin: Vec::new(),
    };
    let talk = || {
        send::run(SendOptions {
            node: which.clone(),
            connections: options.connections,
            conversations: options.connections.div_ceil(2),
            in_flight: send::MAX_IN_FLIGHT,
            body_bytes: 128,
            warm_up: Duration::from_secs(2),
            measured: options.measured,
            rate: Some(options.rate),
        })
    };
    progress.say("quiet");
    let quiet = talk()?;
    let tcp = *node.tcp().first().ok_or(LoadError::Broken("the node listens nowhere"))?;
    let disturbance = Disturbance::begin(&node, tcp, options.storm)?;
    progress.say("disturbed");
    let disturbed = talk()?;
    let done = disturbance.end()?;
    node.stop()?;
    Ok(conclude(options, conditions, &quiet, &disturbed, &done))
}

fn conclude(
    options: &BesideOptions,
    conditions: Conditions,
    quiet: &SendReport,
    disturbed: &SendReport,
    done: &Done,
) -> BesideReport {
    let mut verdict = quiet.verdict;
    verdict.add(disturbed.verdict);
    let p99 = |latency: Option<Percentiles>| latency.map(|all| all.p99);
    let row = |what: &str, per_s, latency, server: Option<Usage>| Row {
        what: what.to_owned(),
        per_s,
        latency,
        server,
        cpu_us_each: None,
    };
    BesideReport {
        bench: "beside",
        conditions,
        connections: options.connections,
        rate: options.rate,
        duration_s: options.measured.as_secs_f64(),
        storm_connections: options.storm,
        storms: done.storms.load(Ordering::Relaxed),
        flood_requests: done.flood.load(Ordering::Relaxed),
        heavy_messages: done.heavy.load(Ordering::Relaxed),
        quiet_ack_ms: quiet.ack_ms,
        quiet_push_ms: quiet.push_ms,
        disturbed_ack_ms: disturbed.ack_ms,
        disturbed_push_ms: disturbed.push_ms,
        push_p99_ratio: p99(disturbed.push_ms).zip(p99(quiet.push_ms)).map(|(after, before)| after / before),
        disturbed_unsent: disturbed.incidents.unsent,
        verdict,
        rows: vec![
            row("quiet: acked", quiet.acked_per_s, quiet.ack_ms, quiet.server),
            row("quiet: delivered", quiet.delivered_per_s, quiet.push_ms, None),
            row("disturbed: acked", disturbed.acked_per_s, disturbed.ack_ms, disturbed.server),
            row("disturbed: delivered", disturbed.delivered_per_s, disturbed.push_ms, None),
        ],
    }
}
