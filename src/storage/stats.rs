//! What the store counts of itself, for telemetry to read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets of a commit's time, in microseconds; one more bucket holds what is above.
pub const COMMIT_MICROS: [u64; 12] =
    [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 2_000_000];

/// The upper bounds of the buckets of a batch's appends; one more bucket holds what is above.
pub const BATCH_APPENDS: [u64; 10] = [1, 2, 4, 8, 16, 64, 256, 1_024, 4_096, 8_192];

/// Counts by bucket.
#[derive(Debug)]
pub struct Buckets<const N: usize> {
    bounds: &'static [u64; N],
    counts: [AtomicU64; N],
    above: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Buckets<N> {
    const fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    pub(super) fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(bucket).unwrap_or(&self.above).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Each bound with how many values were at most that and above the bound before; last, with `u64::MAX`, the rest.
    pub fn counts(&self) -> Vec<(u64, u64)> {
        let within =
            self.bounds.iter().zip(&self.counts).map(|(bound, n)| (*bound, n.load(Ordering::Relaxed)));
        within.chain([(u64::MAX, self.above.load(Ordering::Relaxed))]).collect()
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

/// What the writer did since the store was opened.
#[derive(Debug)]
pub struct StoreStats {
    /// Batches that were made durable.
    pub commits: AtomicU64,
    /// Rows of messages in them.
    pub rows: AtomicU64,
    /// Bytes of those rows, keys included.
    pub bytes: AtomicU64,
    /// Appends that were refused because the queue was full.
    pub overloaded: AtomicU64,
    /// Appends that failed otherwise.
    pub failed: AtomicU64,
    /// Bytes that wait in the queue or are being written.
    pub queue_bytes: AtomicU64,
    /// Cursors that were written.
    pub cursors: AtomicU64,
    /// Statements that went to a second server because the first did not answer.
    pub asked_twice: AtomicU64,
    /// How long a commit takes, its sync included, in microseconds.
    pub commit_micros: Buckets<12>,
    /// How many appends one commit carries.
    pub batch_appends: Buckets<10>,
}

impl Default for StoreStats {
    fn default() -> Self {
        Self {
            commits: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            overloaded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            queue_bytes: AtomicU64::new(0),
            cursors: AtomicU64::new(0),
            asked_twice: AtomicU64::new(0),
            commit_micros: Buckets::new(&COMMIT_MICROS),
            batch_appends: Buckets::new(&BATCH_APPENDS),
        }
    }
}

impl StoreStats {
    pub(super) fn committed(&self, appends: usize, rows: usize, bytes: usize, took: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.commit_micros.observe(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.batch_appends.observe(appends as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_their_buckets() {
        let buckets = Buckets::new(&BATCH_APPENDS);
        for value in [1, 2, 3, 4, 8_192, 8_193] {
            buckets.observe(value);
        }
        let counts = buckets.counts();
        assert_eq!(counts[..3], [(1, 1), (2, 1), (4, 2)]);
        assert_eq!(counts[9..], [(8_192, 1), (u64::MAX, 1)]);
        assert_eq!(buckets.sum(), 1 + 2 + 3 + 4 + 8_192 + 8_193);
    }
}
