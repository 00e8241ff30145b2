//! What happened in each second of the measured time: how many, and how long they took.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::latency::Latencies;

/// The most seconds that are told from each other; of a longer time the last stands for all that follow.
const MOST: usize = 3_600;

/// Counts and latencies, second by second.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(in crate::load) struct Series(Vec<Second>);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Second {
    count: u64,
    /// About 200 KB each while it runs; seconds with nothing in them have none.
    latencies: Option<Box<Latencies>>,
}

/// One second, as a result shows it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Seconds since the measured time began, at the second's end.
    pub t_s: u32,
    /// How many.
    pub count: u64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile in milliseconds.
    pub p99_ms: f64,
}

impl Series {
    /// Records one, so long after the measured time began.
    pub(in crate::load) fn record(&mut self, since_begin: Duration, latency: Duration) {
        let at = usize::try_from(since_begin.as_secs()).unwrap_or(MOST).min(MOST - 1);
        if self.0.len() <= at {
            self.0.resize_with(at + 1, Second::default);
        }
        let second = &mut self.0[at];
        second.count += 1;
        second.latencies.get_or_insert_default().record(latency);
    }

    /// Adds what another recorded.
    pub(in crate::load) fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize_with(other.0.len(), Second::default);
        }
        for (mine, others) in self.0.iter_mut().zip(&other.0) {
            mine.count += others.count;
            if let Some(latencies) = &others.latencies {
                mine.latencies.get_or_insert_default().merge(latencies);
            }
        }
    }

    /// All seconds.
    pub(in crate::load) fn points(&self) -> Vec<Point> {
        let point = |(t_s, second): (u32, &Second)| {
            let percentiles = second.latencies.as_ref().and_then(|all| all.percentiles());
            let (p50_ms, p99_ms) = percentiles.map_or((0.0, 0.0), |all| (all.p50, all.p99));
            Point { t_s, count: second.count, p50_ms, p99_ms }
        };
        (1..).zip(&self.0).map(point).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_told_apart_and_merged() {
        let ms = Duration::from_millis;
        let mut one = Series::default();
        one.record(ms(100), ms(2));
        one.record(ms(2_100), ms(4));
        let mut other = Series::default();
        other.record(ms(900), ms(2));
        other.record(ms(3_000), ms(8));
        one.merge(&other);
        let counts: Vec<_> = one.points().iter().map(|point| (point.t_s, point.count)).collect();
        assert_eq!(counts, [(1, 2), (2, 0), (3, 1), (4, 1)]);
        assert!((one.points()[2].p99_ms - 4.0).abs() < 0.1);
        assert!(one.points()[1].p50_ms.abs() < f64::EPSILON);
    }
}
