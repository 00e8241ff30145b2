//! A node's part in its cluster.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::source::Source;

/// What a node serves, and how often it had to begin anew. All zero on the embedded store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// Shards that it serves.
    pub shards: u64,
    /// Lives of it that are over: it could not write its signs of life, or was fenced.
    pub lives_over: u64,
}

impl Collector for Source<ClusterState> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let ClusterState { shards, lives_over } = self.read();
        let gauge = ConstGauge::new(i64::try_from(shards).unwrap_or(i64::MAX));
        let help = "Shards of the cluster that this node serves; 0 on the embedded store";
        gauge.encode(encoder.encode_descriptor("cluster_shards", help, None, MetricType::Gauge)?)?;
        let counter = ConstCounter::new(lives_over);
        let help = "Times this node took itself for dead, or was fenced, and began anew";
        counter.encode(encoder.encode_descriptor("cluster_lives_over", help, None, MetricType::Counter)?)
    }
}
