//! What the store counts of itself.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::source::Source;

/// How many values fell into each bucket.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    /// Upper bounds, rising, each with how many values were at most that and above the bound before; `u64::MAX` stands
    /// for the rest.
    pub buckets: Vec<(u64, u64)>,
    /// The sum of all values.
    pub sum: u64,
}

/// What a store has done since it was opened, and what it has to do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StoreNumbers {
    /// Batches that were made durable.
    pub commits: u64,
    /// Rows of messages in them.
    pub rows: u64,
    /// Bytes of those rows.
    pub bytes: u64,
    /// Cursors that were written.
    pub cursors: u64,
    /// Statements that went to a second server because the first did not answer.
    pub asked_twice: u64,
    /// Appends that were refused because the queue was full.
    pub refused: u64,
    /// Appends that failed otherwise.
    pub failed: u64,
    /// Bytes that wait or are being written.
    pub queue_bytes: u64,
    /// Whether no write is taken until a restart.
    pub poisoned: bool,
    /// How long a commit takes, in microseconds.
    pub commit_micros: Distribution,
    /// How many appends a commit carries.
    pub commit_appends: Distribution,
}

impl Collector for Source<StoreNumbers> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let numbers = self.read();
        for (name, help, value) in [
            ("store_commits", "Commits of the store, each one sync", numbers.commits),
            ("store_rows", "Rows of messages the store made durable", numbers.rows),
            ("store_written_bytes", "Bytes of rows the store made durable", numbers.bytes),
            ("store_cursors", "Cursors the store wrote", numbers.cursors),
            ("store_asked_twice", "Statements that went to a second server as well", numbers.asked_twice),
            ("store_appends_refused", "Appends refused because the store's queue was full", numbers.refused),
            ("store_appends_failed", "Appends that failed otherwise", numbers.failed),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, value) in [
            ("store_queue_bytes", "Bytes that wait for the store", numbers.queue_bytes),
            ("store_poisoned", "1 when the store takes no writes until a restart", numbers.poisoned.into()),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, distribution, per_unit) in [
            (
                "store_commit_seconds",
                "How long a commit took, its sync included",
                &numbers.commit_micros,
                1e6,
            ),
            ("store_commit_appends", "Appends in one commit of the store", &numbers.commit_appends, 1.0),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            let bound = |bound| if bound == u64::MAX { f64::INFINITY } else { bound as f64 / per_unit };
            let mut buckets: Vec<_> = distribution.buckets.iter().map(|(at, n)| (bound(*at), *n)).collect();
            if buckets.is_empty() {
                buckets.push((f64::INFINITY, 0));
            }
            let count = distribution.buckets.iter().map(|(_, n)| n).sum();
            metric.encode_histogram::<NoLabelSet>(
                distribution.sum as f64 / per_unit,
                count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}
