//! Who is alive, pure: beats, and how long each side may go without one.
//!
//! Nobody's wall clock is compared. A node judges others by how long it has *itself* seen a beat unchanged, on its
//! monotonic clock; it judges itself on a clock that also counts suspension, from the moment at which its last successful
//! write *began*. Both are for liveness only: what may be used is decided by fences and confirmations.

use std::collections::BTreeMap;
use std::time::Duration;

use super::membership::{Incarnation, PeerRow};

/// How long a node may go without a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// A node that could not write for so long takes itself for dead.
    pub lease: Duration,
    /// Others wait for so much longer.
    pub margin: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self { lease: Duration::from_secs(3), margin: Duration::from_secs(1) }
    }
}

impl LeaseTimes {
    /// How often a node writes its beat.
    pub fn interval(&self) -> Duration {
        self.lease / 3
    }
}

/// A node's own beats. Times are of a clock that counts suspension (`CLOCK_BOOTTIME`).
#[derive(Debug, Clone)]
pub struct OwnBeats {
    times: LeaseTimes,
    beat: u64,
    /// When the write under way began.
    writing: Option<Duration>,
    next_at: Duration,
    /// When the last write that succeeded began.
    alive_at: Duration,
}

impl OwnBeats {
    /// A node that starts now; its first beat is due.
    pub fn new(times: LeaseTimes, boot_time: Duration) -> Self {
        Self { times, beat: 0, writing: None, next_at: boot_time, alive_at: boot_time }
    }

    /// The beat to write now, if one is due and none is under way.
    pub fn due(&mut self, boot_time: Duration) -> Option<u64> {
        if self.writing.is_some() || boot_time < self.next_at {
            return None;
        }
        self.beat += 1;
        self.writing = Some(boot_time);
        self.next_at = boot_time + self.times.interval();
        Some(self.beat)
    }

    /// The write under way has ended; one that may have failed counts as failed.
    pub fn written(&mut self, succeeded: bool) {
        if let Some(began) = self.writing.take()
            && succeeded
        {
            self.alive_at = began;
        }
    }

    /// Whether others may have taken this node for dead by now, so that it has to do the same.
    pub fn is_over(&self, boot_time: Duration) -> bool {
        boot_time.saturating_sub(self.alive_at) >= self.times.lease
    }
}

#[derive(Debug, Clone)]
struct Seen {
    row: PeerRow,
    /// When a read ended that first showed this beat.
    since: Duration,
    /// While it is above 0 there is reason to believe that its process is gone. Each beat takes one away.
    doubts: u8,
}

/// Its last beat may be seen only after its process was seen to be gone; two are a sign of life.
const DOUBTS: u8 = 2;

/// The other nodes, as this one has seen them. Times are of its monotonic clock.
#[derive(Debug, Clone)]
pub struct Peers {
    times: LeaseTimes,
    seen: BTreeMap<Incarnation, Seen>,
    /// When the last read ended.
    looked_at: Option<Duration>,
}

impl Peers {
    /// Nobody was seen yet.
    pub fn new(times: LeaseTimes) -> Self {
        Self { times, seen: BTreeMap::new(), looked_at: None }
    }

    /// Its process seems to be gone: its next beats are waited for only as long as a beat and a half takes. Should it be
    /// alive, they come.
    pub fn doubt(&mut self, incarnation: Incarnation) {
        if let Some(seen) = self.seen.get_mut(&incarnation) {
            seen.doubts = DOUBTS;
        }
    }

    /// Whether somebody's process seems to be gone.
    pub fn is_doubting(&self) -> bool {
        self.seen.values().any(|seen| seen.doubts > 0)
    }

    /// Takes the rows of all nodes, by a read that began and ended then. Returns those whose beat did not change for lease
    /// and margin.
    pub fn observe(&mut self, rows: Vec<PeerRow>, began: Duration, ended: Duration) -> Vec<Incarnation> {
        // Who could not look does not know whether others beat meanwhile: after a gap all are seen anew.
        if self.looked_at.is_none_or(|last| began.saturating_sub(last) >= self.times.lease) {
            self.seen.clear();
        }
        self.looked_at = Some(ended);
        let mut before = std::mem::take(&mut self.seen);
        let (lease, interval) = (self.times.lease + self.times.margin, self.times.interval());
        let mut dead = Vec::new();
        for row in rows {
            let seen = match before.remove(&row.incarnation) {
                Some(seen) if seen.row.beat == row.beat => {
                    let patience = if seen.doubts > 0 { interval + interval / 2 } else { lease };
                    if began.saturating_sub(seen.since) >= patience {
                        dead.push(row.incarnation);
                    }
                    Seen { row, ..seen }
                }
                Some(seen) => Seen { row, since: ended, doubts: seen.doubts.saturating_sub(1) },
                None => Seen { row, since: ended, doubts: 0 },
            };
            self.seen.insert(seen.row.incarnation, seen);
        }
        dead
    }

    /// Those whose row was there at the last look.
    pub fn rows(&self) -> impl Iterator<Item = &PeerRow> {
        self.seen.values().map(|seen| &seen.row)
    }
}

#[cfg(test)]
mod tests {
    use super::super::membership::{Addresses, NodeId};
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn row(n: u128, beat: u64) -> PeerRow {
        let incarnation = Incarnation(uuid::Uuid::from_u128(n));
        PeerRow {
            incarnation,
            node: NodeId(n.to_string()),
            beat,
            draining: false,
            addresses: Addresses::default(),
        }
    }

    #[test]
    fn a_node_that_cannot_beat_for_a_lease_is_dead_to_itself() {
        let mut beats = OwnBeats::new(LeaseTimes::default(), ms(0));
        assert_eq!((beats.due(ms(0)), beats.due(ms(0))), (Some(1), None));
        // It counts from when the write began, however long it took.
        beats.written(true);
        assert_eq!(beats.due(ms(999)), None);
        assert_eq!(beats.due(ms(1_000)), Some(2));
        beats.written(false);
        assert_eq!(beats.due(ms(2_000)), Some(3));
        assert!(!beats.is_over(ms(2_999)) && beats.is_over(ms(3_000)));
        beats.written(true);
        assert!(!beats.is_over(ms(4_999)) && beats.is_over(ms(5_000)));
    }

    #[test]
    fn a_beat_unchanged_for_lease_and_margin_is_a_death() {
        let mut peers = Peers::new(LeaseTimes::default());
        let [one, two] = [row(1, 7).incarnation, row(2, 7).incarnation];
        let mut dead = Vec::new();
        for second in 0..=4 {
            dead =
                peers.observe(vec![row(1, 7), row(2, second)], ms(second * 1_000), ms(second * 1_000 + 50));
            assert!(second == 4 || dead.is_empty());
        }
        // The read that first showed it ended at 50, this one began at 4,000: not yet.
        assert!(dead.is_empty());
        assert_eq!(peers.observe(vec![row(1, 7), row(2, 5)], ms(4_050), ms(4_060)), [one]);
        assert_eq!(peers.rows().map(|row| row.incarnation).collect::<Vec<_>>(), [one, two]);
    }

    #[test]
    fn who_could_not_look_judges_nobody() {
        let mut peers = Peers::new(LeaseTimes::default());
        for at in [0, 10_000, 10_500] {
            assert!(peers.observe(vec![row(1, 7)], ms(at), ms(at)).is_empty());
        }
        for at in [12_000, 13_999] {
            assert!(peers.observe(vec![row(1, 7)], ms(at), ms(at)).is_empty());
        }
        assert_eq!(peers.observe(vec![row(1, 7)], ms(14_000), ms(14_000)).len(), 1);
    }
}
