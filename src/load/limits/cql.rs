//! The loops on CQL servers: what is measured is in `storage::scylla::bare`, which alone speaks to them.

use std::time::Duration;

use serde::Serialize;

use crate::load::LoadError;
use crate::load::latency::{Latencies, Percentiles};
use crate::load::report::{Progress, Row, rate};
use crate::storage::scylla::ScyllaConfig;
use crate::storage::scylla::bare::{self, BareFigures, BareLoop, IN_FLIGHT, PACE};

/// What the servers do at best, with the driver alone.
#[derive(Debug, Serialize)]
pub struct CqlLimits {
    pub cql: Vec<String>,
    pub replication: usize,
    pub in_flight: usize,
    pub inserts_per_s: f64,
    pub inserts_ms: Option<Percentiles>,
    /// One at a time.
    pub insert_ms: Option<Percentiles>,
    pub quorum_read_ms: Option<Percentiles>,
    /// One each [`PACE`].
    pub paced_insert_ms: Option<Percentiles>,
    pub paced_quorum_read_ms: Option<Percentiles>,
    pub lwt_ms: Option<Percentiles>,
    #[serde(skip)]
    pub(super) rows: Vec<Row>,
}

fn row(what: String, of: &BareLoop) -> Row {
    let mut latencies = Latencies::default();
    for took in &of.took {
        latencies.record(*took);
    }
    Row {
        what,
        per_s: rate(latencies.count(), of.elapsed),
        latency: latencies.percentiles(),
        server: None,
        cpu_us_each: None,
    }
}

/// Runs them.
///
/// # Errors
/// The servers cannot be reached, or fail a statement.
pub(super) fn measure(
    servers: &ScyllaConfig,
    measured: Duration,
    progress: &Progress,
) -> Result<CqlLimits, LoadError> {
    progress.say("CQL");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|source| LoadError::Io { doing: "starting a runtime", source })?;
    let figures = runtime.block_on(bare::measure(servers, measured))?;
    let BareFigures { replication, inserts, insert, read, paced_insert, paced_read, lwt } = figures;
    let pace = format!("one each {} ms", PACE.as_millis());
    let rows = vec![
        row(format!("CQL inserts of 200 B, {IN_FLIGHT} in flight, RF {replication}"), &inserts),
        row("CQL insert, one at a time".into(), &insert),
        row("CQL read at LOCAL_QUORUM, one at a time".into(), &read),
        row(format!("CQL insert, {pace}"), &paced_insert),
        row(format!("CQL read at LOCAL_QUORUM, {pace}"), &paced_read),
        row("CQL lightweight transaction, one at a time".into(), &lwt),
    ];
    Ok(CqlLimits {
        cql: servers.nodes.clone(),
        replication,
        in_flight: IN_FLIGHT,
        inserts_per_s: rows[0].per_s,
        inserts_ms: rows[0].latency,
        insert_ms: rows[1].latency,
        quorum_read_ms: rows[2].latency,
        paced_insert_ms: rows[3].latency,
        paced_quorum_read_ms: rows[4].latency,
        lwt_ms: rows[5].latency,
        rows,
    })
}
