//! The window in which a retry is recognised (I3), pure.
//!
//! An entry stays for [`RETENTION`] after it was committed, or until [`MAX_ENTRIES`] newer ones pushed it out. A retry
//! that is not found is executed only if its first attempt is so young that its commit would still be here.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use convoke_protocol::id::{ClientId, MessageId, Seq, Timestamp, UserId};

use crate::storage::LogRow;
use serde::{Deserialize, Serialize};

/// For how long after the first attempt a retry is recognised; told to clients in `Welcome`.
pub const WINDOW: Duration = Duration::from_secs(120);

/// For how long an entry stays: the window, and a margin for the time a frame spends on its way.
pub const RETENTION: Duration = Duration::from_secs(150);

/// The most entries a window holds. A constant, since who goes on from a stored window must know how it was cut.
pub const MAX_ENTRIES: usize = 200_000;

/// The place a committed send got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Its number.
    pub seq: Seq,
    /// Its global id.
    pub id: MessageId,
    /// When it was numbered.
    pub time: Timestamp,
}

/// What the window knows of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It was committed: this is its answer.
    Committed(Place),
    /// It is on its way.
    Pending,
    /// It was never executed: it may be now.
    New,
    /// It may have been executed so long ago that nobody remembers.
    TooOld,
}

type Key = (UserId, ClientId);

/// The dedup window of one conversation. Times are of the owner's monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct DedupWindow {
    entries: HashMap<Key, Option<Place>>,
    committed: VecDeque<(Duration, Seq, Key)>,
    /// Until when entries were pushed out before their time: a first attempt must be younger.
    cut_at: Option<Duration>,
    max_entries: usize,
}

impl DedupWindow {
    /// An empty window.
    pub fn new() -> Self {
        Self::with_capacity_limit(MAX_ENTRIES)
    }

    /// An empty window with another bound on its entries.
    pub(super) fn with_capacity_limit(max_entries: usize) -> Self {
        Self { max_entries, ..Self::default() }
    }

    /// What is known of a send; `age` is the age of its first attempt, zero if this is the first.
    pub fn look_up(
        &self,
        sender: &UserId,
        client_id: ClientId,
        attempt: u32,
        age: Duration,
        now: Duration,
    ) -> Known {
        match self.entries.get(&(sender.clone(), client_id)) {
            Some(Some(place)) => Known::Committed(*place),
            Some(None) => Known::Pending,
            None if attempt <= 1 => Known::New,
            None if age >= WINDOW => Known::TooOld,
            None => match self.cut_at {
                // The first attempt may have been committed and pushed out again.
                Some(cut_at) if now.saturating_sub(age) <= cut_at + (RETENTION - WINDOW) => Known::TooOld,
                _ => Known::New,
            },
        }
    }

    /// Notes that a send is on its way.
    pub fn begin(&mut self, sender: UserId, client_id: ClientId) {
        self.entries.insert((sender, client_id), None);
    }

    /// Forgets a send that certainly did not happen.
    pub fn abandon(&mut self, sender: &UserId, client_id: ClientId) {
        self.entries.remove(&(sender.clone(), client_id));
    }

    /// Notes where a send ended up. Called in the order of the seqs.
    pub fn commit(&mut self, sender: UserId, client_id: ClientId, place: Place, now: Duration) {
        let key = (sender, client_id);
        self.entries.insert(key.clone(), Some(place));
        self.committed.push_back((now, place.seq, key));
        self.expire(now);
    }

    /// Lets go of what is over its time or over the bound.
    pub fn expire(&mut self, now: Duration) {
        while let Some((since, ..)) = self.committed.front() {
            let over_bound = self.committed.len() > self.max_entries;
            if !over_bound && now.saturating_sub(*since) < RETENTION {
                break;
            }
            if let Some((since, _, key)) = self.committed.pop_front() {
                self.entries.remove(&key);
                if now.saturating_sub(since) < RETENTION {
                    self.cut_at = Some(since);
                }
            }
        }
        // After a burst the room it took is given back.
        if self.entries.capacity() > 1024 && self.entries.len() * 8 < self.entries.capacity() {
            self.entries.shrink_to_fit();
            self.committed.shrink_to_fit();
        }
    }

    /// The lowest committed seq in the window.
    pub fn lowest(&self) -> Option<Seq> {
        self.committed.front().map(|(_, seq, _)| *seq)
    }

    /// Bytes on the heap, about.
    pub fn held_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<(Key, Option<Place>, u8)>()
            + self.committed.capacity() * size_of::<(Duration, Seq, Key)>()
    }

    /// How many sends the window knows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the window knows nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The window of a new owner, loaded from the rows that its predecessor's window had. Every entry counts as new, since
/// nobody's clock is compared with another's.
#[derive(Debug, Clone, Default)]
pub struct Loading {
    window: DedupWindow,
    loaded: usize,
}

impl Loading {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { window: DedupWindow::new(), loaded: 0 }
    }

    /// Takes rows, in the order of their seqs.
    pub fn take(&mut self, rows: &[LogRow], now: Duration) {
        for row in rows {
            let place = Place { seq: row.seq, id: row.id, time: row.entry.time };
            self.window.commit(row.entry.sender.clone(), row.entry.client_id, place, now);
        }
        self.loaded += rows.len();
    }

    /// The window, all of it loaded.
    pub fn finish(mut self, now: Duration) -> DedupWindow {
        // So many entries mean that the writer's window was cut by its bound.
        if self.loaded + 1 >= self.window.max_entries {
            self.window.cut_at = Some(now);
        }
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(seq: u64) -> Place {
        Place { seq: Seq(seq), id: MessageId(uuid::Uuid::from_u128(u128::from(seq))), time: Timestamp(seq) }
    }

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_retry_is_known_for_the_window_and_refused_after_it() {
        let alice = UserId::new("alice").expect("valid");
        let id = ClientId::random();
        let mut window = DedupWindow::new();
        assert_eq!(window.look_up(&alice, id, 1, secs(0), secs(0)), Known::New);
        window.begin(alice.clone(), id);
        assert_eq!(window.look_up(&alice, id, 2, secs(1), secs(1)), Known::Pending);
        window.commit(alice.clone(), id, place(1), secs(1));
        assert_eq!(window.look_up(&alice, id, 2, secs(2), secs(2)), Known::Committed(place(1)));
        window.expire(secs(152));
        assert!(window.is_empty());
        assert_eq!(window.look_up(&alice, id, 3, secs(152), secs(152)), Known::TooOld);
        assert_eq!(window.look_up(&alice, ClientId::random(), 2, secs(5), secs(152)), Known::New);
    }

    #[test]
    fn what_the_bound_pushed_out_is_refused_rather_than_risked() {
        let alice = UserId::new("alice").expect("valid");
        let mut window = DedupWindow::with_capacity_limit(2);
        let ids: Vec<_> = (0..3).map(|_| ClientId::random()).collect();
        for (n, id) in ids.iter().enumerate() {
            window.commit(alice.clone(), *id, place(n as u64 + 1), secs(60 + n as u64));
        }
        assert_eq!(window.lowest(), Some(Seq(2)));
        assert_eq!(window.look_up(&alice, ids[0], 2, secs(3), secs(62)), Known::TooOld);
        assert_eq!(window.look_up(&alice, ids[1], 2, secs(3), secs(62)), Known::Committed(place(2)));
        // A first attempt that is younger than anything pushed out, with room for its way, is safe.
        assert_eq!(window.look_up(&alice, ClientId::random(), 2, secs(3), secs(100)), Known::New);
    }
}
