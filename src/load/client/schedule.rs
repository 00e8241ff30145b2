//! An open load: when each message is to be sent, whatever became of those before it.

/// Evenly spread times, in microseconds of the thread's clock.
#[derive(Debug)]
pub(in crate::load) struct Schedule {
    begin_us: u64,
    interval_us: f64,
    /// The part of an interval by which all of them are late, so that several threads do not send at once.
    offset: f64,
    next: u64,
}

impl Schedule {
    pub(in crate::load) fn new(begin_us: u64, per_s: f64, offset: f64) -> Self {
        Self { begin_us, interval_us: 1e6 / per_s, offset, next: 0 }
    }

    /// When the next one is due.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and exact to a microsecond for centuries"
    )]
    pub(in crate::load) fn next_us(&self) -> u64 {
        self.begin_us + ((self.next as f64 + self.offset) * self.interval_us) as u64
    }

    /// The next one and its time, if that has come.
    pub(in crate::load) fn take(&mut self, now_us: u64) -> Option<(u64, u64)> {
        let due_us = self.next_us();
        (due_us <= now_us).then(|| {
            self.next += 1;
            (self.next - 1, due_us)
        })
    }
}

/// Each second is cut into so many slices, and each connection belongs to one of them, in which it acknowledges what
/// came and says that it lives. All in one moment would be a load that no crowd of clients makes.
pub(in crate::load) const SLICES: usize = 100;
/// How long a slice is.
pub(in crate::load) const SLICE_US: u64 = 1_000_000 / SLICES as u64;

/// The slices, one after the other.
#[derive(Debug)]
pub(in crate::load) struct Slices {
    next_us: u64,
    slice: usize,
}

impl Slices {
    /// The first begins at this time.
    pub(in crate::load) fn new(begin_us: u64) -> Self {
        Self { next_us: begin_us, slice: 0 }
    }

    /// When the next one begins.
    pub(in crate::load) fn next_us(&self) -> u64 {
        self.next_us
    }

    /// The next one, if its time has come: the connections with this number, and every [`SLICES`]-th from there.
    pub(in crate::load) fn take(&mut self, now_us: u64) -> Option<usize> {
        if self.next_us > now_us {
            return None;
        }
        let slice = self.slice;
        self.slice = (slice + 1) % SLICES;
        // What was missed is not made up for: the next round comes soon enough.
        self.next_us = (self.next_us + SLICE_US).max(now_us.saturating_sub(SLICE_US));
        Some(slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_issued_at_their_times_however_late_one_looks() {
        let mut schedule = Schedule::new(1_000, 2_000.0, 0.5);
        assert_eq!(schedule.take(1_249), None);
        assert_eq!(schedule.take(1_250), Some((0, 1_250)));
        assert_eq!(schedule.take(1_250), None);
        let mut last = 0;
        let mut count = 1;
        while let Some((number, due)) = schedule.take(1_001_000) {
            assert_eq!((number, due), (count, 1_250 + 500 * count));
            (last, count) = (due, count + 1);
        }
        assert_eq!((last, count), (1_000_750, 2_000));
    }
}
