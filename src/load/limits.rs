//! `bench limits`: what this machine can do at best, without Convoke. Nothing of the protocol, the
//! actors or the storage is in the measured loops; what the other kinds reach is held against this.
//!
//! | loop | what it is the floor of |
//! | --- | --- |
//! | `disk` | a commit: appends of 16 KB, each synced |
//! | `deliveries` | a push to many: 128 bytes to each socket in turn |
//! | `echoes` | a request: 128 bytes and back, one in flight per socket |
//! | `relay` | the whole path of a message: durable, then an ack and a push |
//! | `cql` | a commit in a cluster: the driver alone on CQL servers, if some are named |
//!
//! The relay runs twice: once it makes a write of every ack and every push, which is the yardstick (`relays_per_s`);
//! once it writes what one sync allows to go to one socket in one write, which is the best known.
//!
//! The other end of the sockets is [`peer`], a process of its own on the same machine.

mod cql;
mod deliveries;
mod disk;
mod echoes;
mod frame;
pub mod peer;
mod relay;
mod stage;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::LoadError;
use super::latency::Percentiles;
use super::process::{Usage, raise_descriptor_limit};
use super::report::conditions::Conditions;
use super::report::{Outcome, Progress, Row, Verdict};
use crate::storage::scylla::ScyllaConfig;

use cql::CqlLimits;
use relay::Writes;

/// How long each loop runs before it is measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// Descriptors that a process needs beside its sockets.
const OTHER_DESCRIPTORS: u64 = 64;

/// What to measure.
#[derive(Debug, Clone)]
pub struct LimitsOptions {
    /// Sockets between the two processes; the relay uses an even number of them.
    pub sockets: u32,
    /// How long each of the loops is measured.
    pub measured: Duration,
    /// A directory on the disk to be measured.
    pub data: PathBuf,
    /// CQL servers to be measured too.
    pub cql: Option<ScyllaConfig>,
}

/// What was found. Rates are per second of the measured time, CPU is this process's: the serving one.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct LimitsReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub sockets: u32,
    pub duration_s: f64,
    pub fdatasyncs_per_s: f64,
    pub fdatasync_ms: Option<Percentiles>,
    pub deliveries_per_s: f64,
    pub delivery_cpu_us: f64,
    pub echoes_per_s: f64,
    pub echo_ms: Option<Percentiles>,
    pub echo_cpu_us: f64,
    pub relays_per_s: f64,
    pub relay_ack_ms: Option<Percentiles>,
    pub relay_push_ms: Option<Percentiles>,
    pub relay_cpu_us_per_message: f64,
    pub relay_messages_per_sync: f64,
    /// The same relay when all that one sync allows to go to one socket leaves in one write.
    pub relay_coalesced: OtherRelay,
    #[serde(flatten)]
    pub cql: Option<CqlLimits>,
    /// Of the relay whose figures are `relays_per_s` and the like.
    pub server: Usage,
    #[serde(flatten)]
    pub verdict: Verdict,
    #[serde(skip)]
    rows: Vec<Row>,
}

/// The relay that writes as seldom as it can.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct OtherRelay {
    pub per_s: f64,
    pub ack_ms: Option<Percentiles>,
    pub push_ms: Option<Percentiles>,
    pub cpu_us_per_message: f64,
    pub messages_per_sync: f64,
}

impl Outcome for LimitsReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        self.rows.clone()
    }

    fn verdict(&self) -> Verdict {
        self.verdict
    }
}

/// The figures of one loop.
#[derive(Debug, Clone, Copy)]
struct Loop {
    per_s: f64,
    latency: Option<Percentiles>,
    server: Usage,
    cpu_us_each: f64,
}

impl Loop {
    /// `elapsed` is the time in which the CPU was used: the rate may be by another clock.
    fn new(per_s: f64, latency: Option<Percentiles>, server: Usage, elapsed: Duration) -> Self {
        Self { per_s, latency, server, cpu_us_each: 1e6 * server.cpu_s / elapsed.as_secs_f64() / per_s }
    }

    fn row(&self, what: &str) -> Row {
        Row {
            what: what.to_owned(),
            per_s: self.per_s,
            latency: self.latency,
            server: Some(self.server),
            cpu_us_each: Some(self.cpu_us_each),
        }
    }
}

/// The figures of a loop over sockets, and what was wrong with what it sent.
#[derive(Debug, Clone, Copy)]
struct Measured {
    figures: Loop,
    verdict: Verdict,
}

/// Descriptors that each of the two processes needs.
fn descriptors(sockets: u32) -> u64 {
    u64::from(sockets) + OTHER_DESCRIPTORS
}

/// Only the deliveries, for others to be held against.
///
/// # Errors
/// If the loop could not be run.
pub(super) fn deliveries_per_s(sockets: u32, measured: Duration) -> Result<f64, LoadError> {
    raise_descriptor_limit(descriptors(sockets))?;
    let progress = Progress::new(WARM_UP + measured);
    Ok(deliveries::measure(sockets, measured, &progress)?.figures.per_s)
}

/// Measures one loop after the other.
///
/// # Errors
/// If a loop could not be run, or did not come to its end.
pub fn run(options: &LimitsOptions) -> Result<LimitsReport, LoadError> {
    let LimitsOptions { sockets, measured, .. } = *options;
    raise_descriptor_limit(descriptors(sockets))?;
    std::fs::create_dir_all(&options.data).map_err(LoadError::file(&options.data))?;
    let conditions = Conditions::gather(Some(&options.data));
    let progress = Progress::new((WARM_UP + measured) * 5);

    let disk = disk::measure(&options.data, WARM_UP, measured, &progress)?;
    let deliveries = deliveries::measure(sockets, measured, &progress)?;
    let echoes = echoes::measure(sockets, measured, &progress)?;
    let relay = |writes| relay::measure(sockets & !1, writes, &options.data, measured, &progress);
    let (relay, coalesced) = (relay(Writes::Each)?, relay(Writes::Coalesced)?);
    let cql = options.cql.as_ref().map(|servers| cql::measure(servers, measured, &progress)).transpose()?;
    let (relays, fewer_writes) = (relay.measured.figures, coalesced.measured.figures);

    let mut verdict = Verdict::default();
    for part in [deliveries, echoes, relay.measured, coalesced.measured] {
        verdict.add(part.verdict);
    }
    let mut rows = vec![
        disk.row("fdatasync of 16 KB"),
        deliveries.figures.row("deliveries"),
        echoes.figures.row("echoes"),
        relays.row("relays, a write for each ack and push"),
        fewer_writes.row("relays, writes coalesced per sync"),
    ];
    rows.extend(cql.iter().flat_map(|cql| cql.rows.iter().cloned()));
    Ok(LimitsReport {
        bench: "limits",
        conditions,
        sockets,
        duration_s: measured.as_secs_f64(),
        fdatasyncs_per_s: disk.per_s,
        fdatasync_ms: disk.latency,
        deliveries_per_s: deliveries.figures.per_s,
        delivery_cpu_us: deliveries.figures.cpu_us_each,
        echoes_per_s: echoes.figures.per_s,
        echo_ms: echoes.figures.latency,
        echo_cpu_us: echoes.figures.cpu_us_each,
        relays_per_s: relays.per_s,
        relay_ack_ms: relays.latency,
        relay_push_ms: relay.push,
        relay_cpu_us_per_message: relays.cpu_us_each,
        relay_messages_per_sync: relay.messages_per_sync,
        relay_coalesced: OtherRelay {
            per_s: fewer_writes.per_s,
            ack_ms: fewer_writes.latency,
            push_ms: coalesced.push,
            cpu_us_per_message: fewer_writes.cpu_us_each,
            messages_per_sync: coalesced.messages_per_sync,
        },
        cql,
        server: relays.server,
        verdict,
        rows,
    })
}
