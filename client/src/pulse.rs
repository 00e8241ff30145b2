//! Whether the other side is still there.

use std::time::{Duration, Instant};

/// When a heartbeat is due on one connection, and when silence means that it is dead.
#[derive(Debug)]
pub(crate) struct Pulse {
    every: Duration,
    patience: Duration,
    last_sent: Instant,
    last_heard: Instant,
    asked: Option<Instant>,
}

impl Pulse {
    /// `every`: the server's wish. `patience`: how long an answer to a heartbeat may take.
    pub(crate) fn new(every: Duration, patience: Duration, now: Instant) -> Self {
        Self { every, patience, last_sent: now, last_heard: now, asked: None }
    }

    /// A request was written: it counts as a heartbeat.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// A heartbeat was written.
    pub(crate) fn asked(&mut self, now: Instant) {
        self.last_sent = now;
        self.asked = Some(now);
    }

    /// Anything arrived: who speaks is alive.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.asked = None;
    }

    /// When a heartbeat is due. `awaiting` is when the oldest unanswered request was written: a server that is silent
    /// although it owes an answer is asked early.
    pub(crate) fn beat_at(&self, awaiting: Option<Instant>) -> Option<Instant> {
        if self.asked.is_some() {
            return None;
        }
        let idle = self.last_sent + self.every;
        Some(match awaiting {
            Some(since) => idle.min(self.last_heard.max(since) + self.patience / 2),
            None => idle,
        })
    }

    /// When the connection is to be given up.
    pub(crate) fn dead_at(&self) -> Option<Instant> {
        self.asked.map(|asked| asked + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_and_then_given_up() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut pulse = Pulse::new(60 * second, 10 * second, now);
        assert_eq!((pulse.beat_at(None), pulse.dead_at()), (Some(now + 60 * second), None));
        pulse.sent(now + second);
        assert_eq!(pulse.beat_at(None), Some(now + 61 * second));
        assert_eq!(pulse.beat_at(Some(now + second)), Some(now + 6 * second), "it owes an answer");
        pulse.asked(now + 6 * second);
        assert_eq!((pulse.beat_at(None), pulse.dead_at()), (None, Some(now + 16 * second)));
        pulse.heard(now + 7 * second);
        assert_eq!(pulse.dead_at(), None);
    }
}
