//! The record of what services and operators did: a line in the log under a target of its own, and the last lines in
//! memory for `convoke admin audit`.

use std::collections::VecDeque;

use convoke_protocol::id::{DeviceId, Seq, SessionId, UserId};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::operator::AuditLine;

/// Lines that are kept in memory.
pub const KEPT: usize = 1_000;

/// The last lines.
#[derive(Debug)]
pub struct Audit {
    clock: Clock,
    lines: Mutex<VecDeque<AuditLine>>,
}

impl Audit {
    /// No lines yet.
    pub fn new(clock: Clock) -> Self {
        Self { clock, lines: Mutex::default() }
    }

    /// Writes down that somebody did something, and from which session; operators have none.
    pub fn record(
        &self,
        who: &UserId,
        from: Option<(&DeviceId, SessionId)>,
        act: &str,
        on: &str,
        seq: Option<Seq>,
    ) {
        tracing::info!(
            target: "convoke::audit",
            service = %who,
            device = from.map(|(device, _)| tracing::field::display(device)),
            session = from.map(|(_, session)| tracing::field::display(session)),
            act, on, seq = seq.map(|seq| seq.0),
            "a service acted"
        );
        let line =
            AuditLine { time: self.clock.wall(), who: who.clone(), act: act.into(), on: on.into(), seq };
        let mut lines = self.lines.lock();
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The last lines, at most so many, in their order.
    pub fn last(&self, limit: usize) -> Vec<AuditLine> {
        let lines = self.lines.lock();
        lines.iter().skip(lines.len().saturating_sub(limit)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more() {
        let audit = Audit::new(Clock::new(0));
        let who = UserId::new("backend").unwrap();
        for n in 0..KEPT + 5 {
            audit.record(&who, None, "recall", "d:a:b", Some(Seq(n as u64)));
        }
        assert_eq!(audit.last(usize::MAX).len(), KEPT);
        let seqs: Vec<_> = audit.last(2).iter().map(|line| line.seq).collect();
        assert_eq!(seqs, [Some(Seq(KEPT as u64 + 3)), Some(Seq(KEPT as u64 + 4))]);
    }
}
