//! Latencies: recorded in microseconds, merged across threads and processes, shown in milliseconds.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest latency that is told from longer ones.
pub const LONGEST: Duration = Duration::from_secs(600);

/// Records latencies with three significant digits, in a fixed amount of memory (about 200 KB).
///
/// A recorder belongs to one thread (or stands behind a lock of its own); recorders are merged when
/// the measuring is over. Serialized it is the list of its buckets, so that a process can hand it to
/// another.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "Buckets", into = "Buckets")]
pub struct Latencies(Histogram<u64>);

/// (microseconds, how many), rising.
#[derive(Serialize, Deserialize)]
struct Buckets(Vec<(u64, u64)>);

impl Default for Latencies {
    fn default() -> Self {
        let longest = u64::try_from(LONGEST.as_micros()).unwrap_or(u64::MAX);
        Self(
            Histogram::new_with_bounds(1, longest, 3)
                .expect("the bounds are constants that a histogram accepts"),
        )
    }
}

impl Latencies {
    /// Records one latency; what is longer than [`LONGEST`] counts as that.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros.max(1));
    }

    /// Adds all that another recorder has.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all recorders have the same bounds");
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// For a rising share of all: how many milliseconds it took at most.
    #[must_use]
    pub fn curve(&self) -> Vec<(f64, f64)> {
        const STEPS_PER_NINE: u8 = 8;
        const NINES: u8 = 4;
        if self.0.is_empty() {
            return Vec::new();
        }
        let shares = (0..=NINES * STEPS_PER_NINE)
            .map(|step| 1.0 - 10_f64.powf(-f64::from(step) / f64::from(STEPS_PER_NINE)));
        shares.map(|share| (share, millis(self.0.value_at_quantile(share)))).collect()
    }

    /// The percentiles, or `None` if nothing was recorded.
    #[must_use]
    pub fn percentiles(&self) -> Option<Percentiles> {
        if self.0.is_empty() {
            return None;
        }
        let at = |quantile| millis(self.0.value_at_quantile(quantile));
        Some(Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: millis(self.0.max()),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "bounded by LONGEST, which is exact in a double")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

impl From<Latencies> for Buckets {
    fn from(latencies: Latencies) -> Self {
        Self(
            latencies
                .0
                .iter_recorded()
                .map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
                .collect(),
        )
    }
}

impl From<Buckets> for Latencies {
    fn from(buckets: Buckets) -> Self {
        let mut latencies = Self::default();
        for (micros, count) in buckets.0 {
            latencies.0.saturating_record_n(micros, count);
        }
        latencies
    }
}

/// Percentiles of latencies, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half were faster.
    pub p50: f64,
    /// 9 of 10 were faster.
    pub p90: f64,
    /// 99 of 100 were faster.
    pub p99: f64,
    /// 999 of 1,000 were faster.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_to_thousand_ms() -> Latencies {
        let mut latencies = Latencies::default();
        for ms in 1..=1000 {
            latencies.record(Duration::from_millis(ms));
        }
        latencies
    }

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() <= want * 0.001, "{got} is not {want} to three digits");
    }

    #[test]
    fn percentiles_are_milliseconds_to_three_digits() {
        let found = one_to_thousand_ms().percentiles().unwrap();
        close(found.p50, 500.0);
        close(found.p90, 900.0);
        close(found.p99, 990.0);
        close(found.p999, 999.0);
        close(found.max, 1000.0);
    }

    #[test]
    fn nothing_recorded_has_no_percentiles() {
        assert_eq!(Latencies::default().percentiles(), None);
    }

    #[test]
    fn merging_equals_recording_in_one_place() {
        let (mut odd, mut even) = (Latencies::default(), Latencies::default());
        for ms in 1..=1000 {
            let half = if ms % 2 == 1 { &mut odd } else { &mut even };
            half.record(Duration::from_millis(ms));
        }
        odd.merge(&even);
        assert_eq!(odd.count(), 1000);
        assert_eq!(odd.percentiles(), one_to_thousand_ms().percentiles());
    }

    #[test]
    fn a_recorder_crosses_a_process_boundary_whole() {
        let latencies = one_to_thousand_ms();
        let there: Latencies = serde_json::from_str(&serde_json::to_string(&latencies).unwrap()).unwrap();
        assert_eq!(there.count(), latencies.count());
        assert_eq!(there.percentiles(), latencies.percentiles());
    }

    #[test]
    fn extremes_are_kept_within_the_bounds() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::ZERO);
        latencies.record(LONGEST * 2);
        assert_eq!(latencies.count(), 2);
        close(latencies.percentiles().unwrap().max, 600_000.0);
    }
}
