//! `convoke bench KIND`: load tests that check their own work.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::credentials::parse_duration;
use crate::load::beside::{self, BesideOptions};
use crate::load::connect::{self, ConnectOptions};
use crate::load::crowd;
use crate::load::fill;
use crate::load::group::{self, GroupOptions};
use crate::load::limits::{self, LimitsOptions, peer::PeerOptions};
use crate::load::node::Which;
use crate::load::read::{self, ReadOptions};
use crate::load::reconnect::{self, ReconnectOptions};
use crate::load::report::{self, Files};
use crate::load::send::{self, MAX_IN_FLIGHT, STAMP_BYTES, SendOptions};
use crate::load::soak::{self, SoakOptions};
use crate::load::start;
use crate::load::verify::{self, VerifyOptions};
use crate::storage::scylla::ScyllaConfig;

/// The arguments of `convoke bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// What this machine can do without Convoke: the floor that the other kinds are compared with
    Limits(LimitsArgs),
    /// The other end of the sockets of `limits`, started by it as a process of its own
    #[command(hide = true)]
    LimitsPeer(PeerOptions),
    /// Direct messages between pairs of connected users; both sides of each pair send
    Send(SendArgs),
    /// History, catching up and the list of conversations of a user, on a node of its own
    Read(ReadArgs),
    /// How long a node takes to be ready with many messages: after a stop in order, and after kill -9
    Start(FillArgs),
    /// Fills a data directory with direct conversations; nobody may have it open
    Fill(FillIntoArgs),
    /// A large group: a few of its members speak, all that are online hear everything
    Group(GroupArgs),
    /// Clients that log in and then say next to nothing: how fast, and what each costs
    Connect(ConnectArgs),
    /// All sessions are lost at once and come back: how long until all are live and have caught up
    Reconnect(ReconnectArgs),
    /// Users who talk in pairs and groups and come and go, for a long time: everybody gets everything, and nothing grows
    Soak(SoakArgs),
    /// A ledger outside the servers, to which anything may happen meanwhile: what was acknowledged is there, once, in order
    Verify(VerifyArgs),
    /// What people who talk notice of a client that reads nothing, a flood of requests and a storm of logins beside them
    Beside(BesideArgs),
    /// A part of the connections of `group`, `connect` and `reconnect`, in a process started by them
    #[command(hide = true)]
    CrowdPart,
    /// A part of the connections of `send`, in a process started by it
    #[command(hide = true)]
    SendPart,
}

/// Which node is measured.
#[derive(Debug, Args)]
struct NodeArgs {
    /// Measure the node that listens here, or a cluster's nodes [default: a node of its own on a temporary store]
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    tcp: Vec<SocketAddr>,
    /// With --tcp: the node's data directory, for its key and its process [default: convoke-data, unless --key is given]
    #[arg(long, value_name = "DIR", requires = "tcp")]
    data: Option<PathBuf>,
    /// With --tcp: the node's key
    #[arg(long, value_name = "FILE", requires = "tcp")]
    key: Option<PathBuf>,
    /// With --tcp: where the metrics are that say what the node uses, if it is not a process of this machine
    #[arg(long, value_name = "ADDR", value_delimiter = ',', requires = "tcp")]
    admin: Vec<SocketAddr>,
}

impl From<NodeArgs> for Which {
    fn from(args: NodeArgs) -> Self {
        let NodeArgs { tcp, data, key, admin } = args;
        if tcp.is_empty() {
            return Self::Own;
        }
        let data = data.or_else(|| key.is_none().then(|| PathBuf::from("convoke-data")));
        Self::Running { tcp, data, key, admin }
    }
}

#[derive(Debug, Args)]
struct SendArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Users that are connected; each takes part in a conversation
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    connections: u32,
    /// Pairs of users that talk [default: half as many as connections, so that each user is in one]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    conversations: Option<u32>,
    /// Messages of one connection that may wait for their answers [default: 1, with --rate 64]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_IN_FLIGHT)))]
    in_flight: Option<u32>,
    /// Bytes of each message's body
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=8 << 20))]
    body: u32,
    /// Seconds that are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// Seconds before that
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    warm_up: u64,
    /// Send so many messages per second in all, whatever the answers do; a latency then begins when the message was to be sent
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct GroupArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Members of the group
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    members: u32,
    /// Of those, the ones that are connected [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    online: Option<u32>,
    /// Of those, the ones that speak
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    speakers: u32,
    /// Messages of one speaker that may wait for their answers [default: 4, with --rate 64]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_IN_FLIGHT)))]
    in_flight: Option<u32>,
    /// Bytes of each message's body
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(STAMP_BYTES as i64..=64 << 10))]
    body: u32,
    /// Seconds that are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// Seconds before that
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    warm_up: u64,
    /// Messages per second of all speakers together, whatever the answers do; 0: each answer makes room for the next
    /// message, as fast as it goes
    #[arg(long, value_name = "PER_SECOND", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    rate: u32,
    /// Connect over WebSocket
    #[arg(long)]
    ws: bool,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct ConnectArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Users that connect, each with one device
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Logins per second [default: as many as can be had]
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Logins under way at one time
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    at_once: u32,
    /// Seconds for which they are idle
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// Connect over WebSocket
    #[arg(long)]
    ws: bool,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct ReconnectArgs {
    /// Users, each with one device
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(200..=100_000))]
    connections: u32,
    /// Direct conversations of each
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=198))]
    conversations: u32,
    /// Logins under way at one time
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    at_once: u32,
    /// Have each walk over all its conversations when it comes back, not only over those that changed
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct SoakArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Users, each with one device
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(4..=5_000))]
    users: u32,
    /// Messages per second of all together
    #[arg(long, value_name = "PER_SECOND", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds after which a user goes and comes back, on average
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    stay: u64,
    /// Seconds for which they talk
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=1_209_600))]
    duration: u64,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Pairs of users that talk in both directions
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=9_000))]
    pairs: u32,
    /// Messages of one user that may wait for their answers
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    in_flight: u16,
    /// How long a user waits after an answer before the next message, such as 10s [default: not at all]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pause: Option<Duration>,
    /// Bytes of each message's body
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    body: u32,
    /// How long they talk, such as 60s or 10m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct BesideArgs {
    /// Users that talk in pairs
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    connections: u32,
    /// Messages per second of all of them
    #[arg(long, value_name = "PER_SECOND", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds that are measured, quiet and disturbed
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    duration: u64,
    /// Connections that are lost and come back all the time
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    storm: u32,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct LimitsArgs {
    /// Sockets between this process and the one that reads or sends at their other end
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    sockets: u32,
    /// Seconds that each of the five loops is measured, after a second of warm-up
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    duration: u64,
    /// Directory on the disk to be measured [default: the system's directory for temporary files]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A CQL server: measures the driver alone on it too, in a keyspace of its own that is dropped afterwards
    #[arg(long, value_name = "HOST:PORT")]
    cql: Vec<String>,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct ReadArgs {
    /// Messages of the conversation whose history is read
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    messages: u64,
    /// Other conversations of the reader, of 100 messages each
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..=5_000))]
    conversations: u32,
    /// Of those, the ones in which 10 messages are missing when the reader catches up
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=20))]
    missing: u32,
    /// How often each thing is asked
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    rounds: u32,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct FillArgs {
    /// Messages in all
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    messages: u64,
    /// Conversations that they are spread over
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    conversations: u32,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct FillIntoArgs {
    /// The data directory
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Messages in all
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    messages: u64,
    /// Conversations that they are spread over
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    conversations: u32,
    /// Do not close the store when it is filled: say so, and wait to be killed
    #[arg(long)]
    stay: bool,
}

/// Runs one kind of load test; the exit code is not 0 when its own checks failed.
///
/// # Errors
/// What kept the load test from being run or its result from being written.
pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.kind {
        Kind::Limits(args) => run_limits(args),
        Kind::LimitsPeer(options) => {
            limits::peer::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Kind::Send(args) => run_send(args),
        Kind::Read(ReadArgs { messages, conversations, missing, rounds, files }) => {
            let result = read::run(&ReadOptions { messages, conversations, missing, rounds })?;
            Ok(report::conclude(&result, &files)?)
        }
        Kind::Start(FillArgs { messages, conversations, files }) => {
            let result = start::run(messages, conversations)?;
            Ok(report::conclude(&result, &files)?)
        }
        Kind::Fill(FillIntoArgs { data, messages, conversations, stay }) => {
            fill::run(&data, messages, conversations, stay)?;
            Ok(ExitCode::SUCCESS)
        }
        Kind::Group(args) => run_group(args),
        Kind::Connect(args) => {
            let result = connect::run(&ConnectOptions {
                node: args.node.into(),
                connections: args.connections,
                websocket: args.ws,
                rate: args.rate.map(f64::from),
                logins_at_once: args.at_once,
                idle: Duration::from_secs(args.duration),
            })?;
            Ok(report::conclude(&result, &args.files)?)
        }
        Kind::Reconnect(ReconnectArgs { connections, conversations, at_once, all, files }) => {
            let options = ReconnectOptions { connections, conversations, logins_at_once: at_once, all };
            Ok(report::conclude(&reconnect::run(options)?, &files)?)
        }
        Kind::Soak(args) => {
            let result = soak::run(&SoakOptions {
                node: args.node.into(),
                users: args.users,
                rate: f64::from(args.rate),
                stay: Duration::from_secs(args.stay),
                measured: Duration::from_secs(args.duration),
            })?;
            Ok(report::conclude(&result, &args.files)?)
        }
        Kind::Verify(args) => {
            let result = verify::run(&VerifyOptions {
                node: args.node.into(),
                pairs: args.pairs,
                in_flight: usize::from(args.in_flight),
                pause: args.pause.unwrap_or_default(),
                body_bytes: args.body as usize,
                measured: args.duration,
            })?;
            Ok(report::conclude(&result, &args.files)?)
        }
        Kind::Beside(args) => {
            let result = beside::run(&BesideOptions {
                connections: args.connections,
                rate: f64::from(args.rate),
                measured: Duration::from_secs(args.duration),
                storm: args.storm,
            })?;
            Ok(report::conclude(&result, &args.files)?)
        }
        Kind::CrowdPart => {
            crowd::run_part()?;
            Ok(ExitCode::SUCCESS)
        }
        Kind::SendPart => {
            send::run_part()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_send(args: SendArgs) -> anyhow::Result<ExitCode> {
    let result = send::run(SendOptions {
        node: args.node.into(),
        connections: args.connections,
        conversations: args.conversations.unwrap_or(args.connections.div_ceil(2)),
        in_flight: args.in_flight.unwrap_or(if args.rate.is_some() { MAX_IN_FLIGHT } else { 1 }),
        body_bytes: args.body as usize,
        warm_up: Duration::from_secs(args.warm_up),
        measured: Duration::from_secs(args.duration),
        rate: args.rate.map(f64::from),
    })?;
    eprint!("{}", result.incidents);
    Ok(report::conclude(&result, &args.files)?)
}

fn run_group(args: GroupArgs) -> anyhow::Result<ExitCode> {
    let online = args.online.unwrap_or(args.members);
    anyhow::ensure!(
        online <= args.members,
        "--online {online}: only members can be, and there are {}",
        args.members
    );
    let result = group::run(&GroupOptions {
        node: args.node.into(),
        members: args.members,
        online,
        speakers: args.speakers.min(online),
        in_flight: args.in_flight.unwrap_or(if args.rate > 0 { MAX_IN_FLIGHT } else { 4 }),
        body_bytes: args.body as usize,
        websocket: args.ws,
        warm_up: Duration::from_secs(args.warm_up),
        measured: Duration::from_secs(args.duration),
        rate: (args.rate > 0).then(|| f64::from(args.rate)),
    })?;
    eprint!("{}", result.incidents);
    Ok(report::conclude(&result, &args.files)?)
}

fn run_limits(args: LimitsArgs) -> anyhow::Result<ExitCode> {
    let result = limits::run(&LimitsOptions {
        sockets: args.sockets,
        measured: Duration::from_secs(args.duration),
        data: args.data.unwrap_or_else(std::env::temp_dir),
        cql: (!args.cql.is_empty()).then(|| ScyllaConfig { nodes: args.cql, ..ScyllaConfig::default() }),
    })?;
    Ok(report::conclude(&result, &args.files)?)
}
