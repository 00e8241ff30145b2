//! How it stands with Redis.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::source::Source;

/// What was written to Redis, and what waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RedisState {
    /// Whether the last attempt to write failed.
    pub away: bool,
    /// Changes that wait.
    pub waiting: u64,
    /// Changes that were written.
    pub written: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// How often everything was written.
    pub everything: u64,
}

impl Collector for Source<RedisState> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let state = self.read();
        for (name, help, value) in [
            ("redis_away", "1 while Redis does not answer: what it shows may be old", u64::from(state.away)),
            ("redis_waiting", "Changes that wait to be written to Redis", state.waiting),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, value) in [
            ("redis_written", "Changes of sessions and times that were written to Redis", state.written),
            ("redis_failed", "Attempts to write to Redis that failed", state.failed),
            ("redis_rewrites", "Times everything was written to Redis anew", state.everything),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}
