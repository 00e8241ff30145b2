//! A bound on log lines that clients can cause: whoever floods a node with requests that fail must not fill its disk.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of the state that count.
const COUNT_BITS: u32 = 24;

/// Lets so many lines a second through.
#[derive(Debug)]
pub struct LineLimit {
    per_s: u64,
    /// The second, and how many lines it has had.
    state: AtomicU64,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// It is written.
    Written,
    /// It is written, and says that others of this second are not.
    Last,
    /// It is not.
    KeptBack,
}

impl Line {
    /// What the line ends with; `None` if it is not written.
    pub fn ending(self) -> Option<&'static str> {
        match self {
            Self::Written => Some(""),
            Self::Last => Some("; of more in this second nothing is said here"),
            Self::KeptBack => None,
        }
    }
}

impl LineLimit {
    /// So many in each second; at least one.
    pub const fn per_second(lines: u32) -> Self {
        Self { per_s: lines as u64, state: AtomicU64::new(0) }
    }

    /// Asks for a line, at this time in milliseconds of the node's monotonic clock.
    pub fn take(&self, now_ms: u64) -> Line {
        let second = now_ms / 1_000;
        let next = |state: u64| {
            let (of, count) = (state >> COUNT_BITS, state & ((1 << COUNT_BITS) - 1));
            let count = if of == second { (count + 1).min((1 << COUNT_BITS) - 1) } else { 1 };
            Some(second << COUNT_BITS | count)
        };
        let before =
            self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_else(|same| same);
        let count = next(before).unwrap_or(0) & ((1 << COUNT_BITS) - 1);
        match count {
            count if count < self.per_s => Line::Written,
            count if count <= self.per_s.max(1) => Line::Last,
            _ => Line::KeptBack,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_lines_and_the_last_says_that_there_are_more() {
        let limit = LineLimit::per_second(3);
        for second in [0, 1, 7] {
            let taken: Vec<Line> = (0..5).map(|n| limit.take(second * 1_000 + n * 100)).collect();
            let expected = [Line::Written, Line::Written, Line::Last, Line::KeptBack, Line::KeptBack];
            assert_eq!(taken, expected, "second {second}");
        }
        let one = LineLimit::per_second(1);
        assert_eq!([one.take(0), one.take(1)], [Line::Last, Line::KeptBack]);
    }

    #[test]
    fn a_flood_of_a_whole_second_does_not_come_around() {
        let limit = LineLimit::per_second(2);
        let written = (0..(1 << COUNT_BITS) + 10).filter(|_| limit.take(5) != Line::KeptBack).count();
        assert_eq!(written, 2);
    }
}
