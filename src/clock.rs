//! The two clocks of a node: a monotonic one for every decision, and the wall clock for people.
//!
//! Pure cores take a [`Now`]; shells hold a [`Clock`] and read it once per input. No other place asks the system for the
//! time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use convoke_protocol::id::Timestamp;

/// Shifts the wall clock by so many milliseconds (signed): tests use it to show that nothing rests on wall time.
pub const OFFSET_VARIABLE: &str = "CONVOKE_TEST_CLOCK_OFFSET_MS";

/// By how much the wall clock of this process has jumped; only tests make it jump.
static STEPPED_MS: AtomicI64 = AtomicI64::new(0);

/// Makes the wall clock of this process jump, for tests of a whole node.
pub(crate) fn step_wall(ms: i64) {
    STEPPED_MS.fetch_add(ms, Ordering::Relaxed);
}

/// The two clocks, read once per input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, since the clock was made.
    pub monotonic: Duration,
    /// The wall clock, for people.
    pub wall: Timestamp,
}

/// Reads both clocks. Copies share their start, so their monotonic times can be compared.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    wall_offset_ms: i64,
}

/// What was given as the wall clock's offset is not a number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{OFFSET_VARIABLE} = {0:?}: must be a number of milliseconds, such as -3600000")]
pub struct BadOffset(String);

impl Clock {
    /// A clock whose monotonic time begins now, and whose wall clock is ahead by so much (behind, if negative).
    pub fn new(wall_offset_ms: i64) -> Self {
        Self { start: Instant::now(), wall_offset_ms }
    }

    /// The same with the offset in [`OFFSET_VARIABLE`], if it is set.
    ///
    /// # Errors
    /// The variable holds no number.
    pub fn from_environment() -> Result<Self, BadOffset> {
        match std::env::var_os(OFFSET_VARIABLE) {
            None => Ok(Self::new(0)),
            Some(text) => {
                let text = text.to_string_lossy().into_owned();
                text.parse().map(Self::new).map_err(|_| BadOffset(text))
            }
        }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now { monotonic: self.monotonic(), wall: self.wall() }
    }

    /// Time since the clock was made; never goes back.
    pub fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    /// A monotonic clock that goes on while the machine is suspended, from some point in the past on.
    pub fn boot_time() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    /// The monotonic clock in whole milliseconds.
    pub fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    /// The wall clock. It may jump.
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everybody else asks")]
    pub fn wall(&self) -> Timestamp {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        let offset = self.wall_offset_ms.saturating_add(STEPPED_MS.load(Ordering::Relaxed));
        Timestamp(ms.saturating_add_signed(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_moves_the_wall_clock_and_nothing_else() {
        let plain = Clock::new(0);
        let ahead = Clock { wall_offset_ms: 3_600_000, ..plain };
        let (before, shifted, after) = (plain.now(), ahead.now(), plain.now());
        assert!(shifted.wall.0 >= before.wall.0 + 3_600_000 && shifted.wall.0 <= after.wall.0 + 3_600_000);
        assert!(before.monotonic <= shifted.monotonic && shifted.monotonic <= after.monotonic);
    }
}
