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
