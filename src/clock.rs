//! The two clocks of a node, in one place so that tests can bend them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use convoke_protocol::id::Timestamp;

/// The two clocks, read once per input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, since the clock was made.
    pub monotonic: Duration,
    /// The wall clock, for people.
    pub wall: Timestamp,
}

/// Reads the machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    /// Added to the wall clock; only tests set it.
    wall_offset_ms: i64,
}

impl Clock {
    /// A clock whose monotonic time starts now.
    pub fn new(wall_offset_ms: i64) -> Self {
        Self { start: Instant::now(), wall_offset_ms }
    }

    /// Both times.
    pub fn now(&self) -> Now {
        Now { monotonic: self.start.elapsed(), wall: self.wall() }
    }

    /// The wall clock.
    pub fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Timestamp(ms.saturating_add_signed(self.wall_offset_ms))
    }

    /// The monotonic clock in milliseconds.
    pub fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
