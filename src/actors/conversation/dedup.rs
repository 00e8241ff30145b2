//! The window in which a retry is recognised (I3), pure.
//!
//! An entry stays for [`RETENTION`] after it was committed, or until [`MAX_ENTRIES`] newer ones pushed it out. A retry
//! that is not found is executed only if its first attempt is so young that its commit would still be here.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use convoke_protocol::id::{ClientId, MessageId, Seq, Timestamp, UserId};

use hashbrown::{HashTable, hash_table};
use serde::{Deserialize, Serialize};

use crate::storage::LogRow;

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

/// A committed send.
#[derive(Debug, Clone)]
struct Entry {
    /// When it was committed, in nanoseconds.
    since: u64,
    key: Key,
    place: Place,
}

/// The entry with this number, which is there.
fn entry(committed: &VecDeque<Entry>, first: u32, number: u32) -> &Entry {
    &committed[number.wrapping_sub(first) as usize]
}

/// Nanoseconds of the monotonic clock: half of what a [`Duration`] takes.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The dedup window of one conversation. Times are of the owner's monotonic clock.
///
/// Each committed send is kept once, in the order of the commits; the table has only the numbers of the places in that order. A busy
/// conversation has many thousands of them.
#[derive(Debug, Clone, Default)]
pub struct DedupWindow {
    pending: HashSet<Key>,
    committed: VecDeque<Entry>,
    /// The number of the first of `committed`, without what does not fit.
    first: u32,
    /// Numbers of the committed, by their keys.
    by_key: HashTable<u32>,
    hashing: RandomState,
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
        let key = (sender.clone(), client_id);
        let committed = self.by_key.find(self.hash(&key), |number| self.entry(*number).key == key);
        match committed {
            Some(number) => Known::Committed(self.entry(*number).place),
            None if self.pending.contains(&key) => Known::Pending,
            None if attempt <= 1 => Known::New,
            None if age >= WINDOW => Known::TooOld,
            None => match self.cut_at {
                // The first attempt may have been committed and pushed out again.
                Some(cut_at) if now.saturating_sub(age) <= cut_at + (RETENTION - WINDOW) => Known::TooOld,
                _ => Known::New,
            },
        }
    }

    fn hash(&self, key: &Key) -> u64 {
        self.hashing.hash_one(key)
    }

    fn entry(&self, number: u32) -> &Entry {
        entry(&self.committed, self.first, number)
    }

    /// Notes that a send is on its way.
    pub fn begin(&mut self, sender: UserId, client_id: ClientId) {
        self.pending.insert((sender, client_id));
    }

    /// Forgets a send that certainly did not happen.
    pub fn abandon(&mut self, sender: &UserId, client_id: ClientId) {
        self.pending.remove(&(sender.clone(), client_id));
    }

    /// Notes where a send ended up. Called in the order of the seqs.
    pub fn commit(&mut self, sender: UserId, client_id: ClientId, place: Place, now: Duration) {
        let key = (sender, client_id);
        self.pending.remove(&key);
        let hash = self.hash(&key);
        // There are never as many as a `u32` counts.
        let number = self.first.wrapping_add(self.committed.len() as u32);
        self.committed.push_back(Entry { since: nanos(now), key, place });
        let Self { committed, first, by_key, hashing, .. } = self;
        let key_of = |number: &u32| &entry(committed, *first, *number).key;
        let same = |other: &u32| key_of(other) == key_of(&number);
        match by_key.entry(hash, same, |number| hashing.hash_one(key_of(number))) {
            // Two rows of one send: only a log that was written by no owner has them. The later one counts.
            hash_table::Entry::Occupied(mut known) => *known.get_mut() = number,
            hash_table::Entry::Vacant(place) => drop(place.insert(number)),
        }
        self.expire(now);
    }

    /// Lets go of what is over its time or over the bound.
    pub fn expire(&mut self, now: Duration) {
        while let Some(Entry { since, key, .. }) = self.committed.front() {
            let since = Duration::from_nanos(*since);
            let is_old = now.saturating_sub(since) >= RETENTION;
            if !is_old && self.committed.len() <= self.max_entries {
                break;
            }
            if let Ok(known) = self.by_key.find_entry(self.hash(key), |number| *number == self.first) {
                known.remove();
            }
            self.committed.pop_front();
            self.first = self.first.wrapping_add(1);
            if !is_old {
                self.cut_at = Some(since);
            }
        }
        // After a burst the room it took is given back.
        if self.committed.capacity() > 1024 && self.committed.len() * 8 < self.committed.capacity() {
            self.committed.shrink_to_fit();
            let Self { committed, first, by_key, hashing, .. } = self;
            by_key.shrink_to_fit(|number| hashing.hash_one(&entry(committed, *first, *number).key));
        }
    }

    /// The lowest committed seq in the window.
    pub fn lowest(&self) -> Option<Seq> {
        self.committed.front().map(|entry| entry.place.seq)
    }

    /// Bytes on the heap, about.
    pub fn held_bytes(&self) -> usize {
        self.committed.capacity() * size_of::<Entry>()
            + self.by_key.capacity() * size_of::<(u32, u8)>()
            + self.pending.capacity() * size_of::<(Key, u8)>()
    }

    /// How many sends the window knows.
    pub fn len(&self) -> usize {
        self.committed.len() + self.pending.len()
    }

    /// Whether the window knows nothing.
    pub fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.pending.is_empty()
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

    /// Against a list of what was committed when, over several rounds of growing and shrinking.
    #[test]
    fn whatever_is_committed_is_known_until_its_time_is_over() {
        let users: Vec<_> = ["alice", "bob"].map(|name| UserId::new(name).expect("valid")).into();
        let mut window = DedupWindow { first: u32::MAX - 1_000, ..DedupWindow::new() };
        let mut all: Vec<(u64, UserId, ClientId)> = Vec::new();
        for n in 0..6_000u64 {
            // Bursts of a thousand, and then next to nothing for two windows.
            let at = (n / 1_000) * 300_000 + n % 1_000;
            let (user, id) = (&users[(n % 2) as usize], ClientId(uuid::Uuid::from_u128(u128::from(n / 2))));
            window.begin(user.clone(), id);
            assert_eq!(window.look_up(user, id, 2, secs(0), Duration::from_millis(at)), Known::Pending);
            window.commit(user.clone(), id, place(n + 1), Duration::from_millis(at));
            all.push((at, user.clone(), id));
            if n % 250 != 0 {
                continue;
            }
            let mut left = 0;
            for (seq, (since, user, id)) in (1..).zip(&all) {
                let is_there = at - since < RETENTION.as_millis() as u64;
                left += usize::from(is_there);
                let known = window.look_up(user, *id, 1, secs(0), Duration::from_millis(at));
                assert_eq!(
                    known,
                    if is_there { Known::Committed(place(seq)) } else { Known::New },
                    "{seq} at {n}"
                );
            }
            assert_eq!(window.len(), left);
        }
        window.expire(secs(10_000));
        assert!(window.is_empty());
        assert!(window.held_bytes() < 100_000, "{}", window.held_bytes());
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
