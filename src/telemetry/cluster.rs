//! A node's part in its cluster.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::metrics::histogram;
use super::source::Source;

/// From a millisecond to eight seconds.
const PAUSES: (f64, f64, u16) = (0.001, 2.0, 14);

/// From a tenth of a millisecond to three seconds.
const CONFIRMATIONS: (f64, f64, u16) = (0.000_1, 2.0, 16);

/// How long things take that only a cluster does.
///
/// `given` and `taken` are the two halves of the time in which a shard that moves is served by nobody, each measured on the node where
/// it passes. Between them lies one message over a link.
#[derive(Debug, Clone)]
pub struct ClusterTimes {
    /// From the closing of the shard's gate until the next owner is told that it is free.
    pub given: Histogram,
    /// From being told so until the shard is served here.
    pub taken: Histogram,
    /// From a batch that is stored until it is confirmed that it counts, or that it never will.
    pub confirmed: Histogram,
}

impl ClusterTimes {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let given = "Seconds from closing a shard that moves until the next node is told that it is free";
        let taken = "Seconds from being told that a shard is free until it is served";
        let confirmed = "Seconds from a stored batch until it is known whether it counts";
        Self {
            given: histogram(registry, "shard_given_seconds", given, PAUSES),
            taken: histogram(registry, "shard_taken_seconds", taken, PAUSES),
            confirmed: histogram(registry, "confirm_seconds", confirmed, CONFIRMATIONS),
        }
    }
}

/// What a node serves, and how often it had to begin anew. All zero on the embedded store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// Shards that it serves.
    pub shards: u64,
    /// Lives of it that are over: it could not write its signs of life, or was fenced.
    pub lives_over: u64,
    /// Links to other nodes that stand.
    pub links_up: u64,
    /// Links that broke.
    pub links_broken: u64,
    /// Frames sent over links.
    pub link_frames: u64,
    /// Bytes sent over links.
    pub link_bytes: u64,
    /// What was not sent because too much waited for a peer.
    pub link_busy: u64,
    /// Connections to the link listener that were refused.
    pub link_refused: u64,
    /// Milliseconds since the node heard what it says to itself.
    pub canary_ms: u64,
}

impl Collector for Source<ClusterState> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let state = self.read();
        let gauges = [
            (
                "cluster_shards",
                "Shards of the cluster that this node serves; 0 on the embedded store",
                state.shards,
            ),
            ("links_up", "Links to other nodes that stand", state.links_up),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let age = ConstGauge::new(std::time::Duration::from_millis(state.canary_ms).as_secs_f64());
        let help = "Seconds since a message that the node says to itself came back";
        age.encode(encoder.encode_descriptor("canary_age_seconds", help, None, MetricType::Gauge)?)?;
        let counters = [
            (
                "cluster_lives_over",
                "Times this node took itself for dead, or was fenced, and began anew",
                state.lives_over,
            ),
            ("links_broken", "Links to other nodes that broke", state.links_broken),
            ("link_frames", "Frames sent to other nodes, answers left out", state.link_frames),
            ("link_bytes", "Bytes sent to other nodes, answers left out", state.link_bytes),
            ("link_busy", "What was not sent because too much waited for another node", state.link_busy),
            ("link_refused", "Connections to the link listener that were refused", state.link_refused),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}
