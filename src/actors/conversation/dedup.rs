//! The window in which a retry is recognised (I3), pure.
//!
//! An entry stays for [`RETENTION`] after it was committed, or until [`MAX_ENTRIES`] newer ones pushed it out. A retry
//! that is not found is executed only if its first attempt is so young that its commit would still be here.

mod chunks;
mod senders;

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use convoke_protocol::id::{ClientId, MessageId, Seq, Timestamp, UserId};

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::storage::LogRow;

use chunks::Chunks;
use senders::Senders;

/// For how long after the first attempt a retry is recognised; told to clients in `Welcome`.
pub const WINDOW: Duration = Duration::from_secs(120);

/// For how long an entry stays: the window, and a margin for the time a frame spends on its way.
pub const RETENTION: Duration = Duration::from_secs(150);

/// The most entries a window holds. A constant, since who goes on from a stored window must know how it was cut.
pub const MAX_ENTRIES: usize = 200_000;

/// So many entries are looked through, which takes a fraction of a microsecond; more are found by a table, which most conversations
/// then do not have.
const SCANNED: usize = 256;

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

/// A committed send, in as few bytes as it can be told from others by: a busy conversation has many thousands. What is of the same
/// two and a half minutes is known by its low bits.
#[derive(Debug, Clone, Copy)]
struct Entry {
    client_id: ClientId,
    /// Holds when it was numbered.
    id: MessageId,
    /// The low bits of its number.
    seq: u32,
    /// The low bits of the milliseconds of when it was committed.
    since: u32,
    /// The number of its sender.
    sender: u32,
}

impl Entry {
    /// How long ago it was committed.
    fn age(&self, now: Duration) -> Duration {
        let millis = low_millis(now).wrapping_sub(self.since).cast_signed();
        Duration::from_millis(u64::try_from(millis).unwrap_or_default())
    }

    /// The place it got, if `last` is what the last one got.
    fn place(&self, last: Seq) -> Place {
        let before = (last.0 as u32).wrapping_sub(self.seq);
        Place { seq: Seq(last.0 - u64::from(before)), id: self.id, time: self.id.time() }
    }
}

/// The low bits of the milliseconds.
fn low_millis(time: Duration) -> u32 {
    time.as_millis() as u32
}

/// What is committed, in the order of the commits.
#[derive(Debug, Clone, Default)]
struct Committed {
    entries: Chunks<Entry>,
    /// The number of the first, without what does not fit.
    first: u32,
    senders: Senders,
    hashing: RandomState,
}

impl Committed {
    /// The entry with this number, which is there.
    fn entry(&self, number: u32) -> &Entry {
        &self.entries[number.wrapping_sub(self.first) as usize]
    }

    fn is_of(&self, entry: &Entry, sender: &UserId, client_id: ClientId) -> bool {
        entry.client_id == client_id && self.senders.name(entry.sender) == sender
    }

    /// The number of the last entry of this send.
    fn scan(&self, sender: &UserId, client_id: ClientId) -> Option<u32> {
        let found = self.entries.iter().enumerate().filter(|(_, entry)| self.is_of(entry, sender, client_id));
        found.last().map(|(at, _)| self.first.wrapping_add(at as u32))
    }

    /// Numbers by what they are found by.
    fn table(&self) -> HashTable<u32> {
        let mut table = HashTable::with_capacity(self.entries.len());
        for at in 0..self.entries.len() {
            self.put(&mut table, self.first.wrapping_add(at as u32));
        }
        table
    }

    /// Puts an entry into the table.
    fn put(&self, table: &mut HashTable<u32>, number: u32) {
        let entry = self.entry(number);
        let (sender, client_id) = (self.senders.name(entry.sender), entry.client_id);
        let hash = self.hash(sender, client_id);
        match table.find_mut(hash, |other| self.is_of(self.entry(*other), sender, client_id)) {
            // Two rows of one send: only a log that was written by no owner has them. The later one counts.
            Some(known) => *known = number,
            None => drop(table.insert_unique(hash, number, |other| self.hash_of(*other))),
        }
    }

    /// What an entry is found by.
    fn hash(&self, sender: &UserId, client_id: ClientId) -> u64 {
        self.hashing.hash_one((sender, client_id))
    }

    /// What the entry with this number is found by.
    fn hash_of(&self, number: u32) -> u64 {
        let entry = self.entry(number);
        self.hash(self.senders.name(entry.sender), entry.client_id)
    }
}

/// The dedup window of one conversation. Times are of the owner's monotonic clock.
///
/// Each committed send is kept once, in the order of the commits; the table, if there are many, has only the numbers of the places
/// in that order.
#[derive(Debug, Clone, Default)]
pub struct DedupWindow {
    pending: HashSet<Key>,
    committed: Committed,
    /// Numbers of the committed, by their senders and client ids; none while there are few.
    by_key: Option<HashTable<u32>>,
    /// The highest seq that was committed.
    last: Seq,
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
        let committed = &self.committed;
        let is_it = |number: &u32| committed.is_of(committed.entry(*number), sender, client_id);
        let found = match &self.by_key {
            Some(table) => table.find(committed.hash(sender, client_id), is_it).copied(),
            None => committed.scan(sender, client_id),
        };
        match found {
            Some(number) => Known::Committed(committed.entry(number).place(self.last)),
            None if self.pending.contains(&(sender.clone(), client_id)) => Known::Pending,
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
        let (sender, _) = key;
        let Self { committed, by_key, .. } = self;
        // There are never as many as a `u32` counts.
        let number = committed.first.wrapping_add(committed.entries.len() as u32);
        let Place { seq, id, .. } = place;
        let sender = committed.senders.take(sender);
        let entry = Entry { client_id, id, seq: seq.0 as u32, since: low_millis(now), sender };
        committed.entries.push_back(entry);
        match by_key {
            Some(table) => committed.put(table, number),
            None if committed.entries.len() > SCANNED => *by_key = Some(committed.table()),
            None => {}
        }
        self.last = seq;
        self.expire(now);
    }

    /// Lets go of what is over its time or over the bound.
    pub fn expire(&mut self, now: Duration) {
        let Self { committed, by_key, .. } = self;
        while let Some(entry) = committed.entries.front() {
            let age = entry.age(now);
            let is_old = age >= RETENTION;
            if !is_old && committed.entries.len() <= self.max_entries {
                break;
            }
            let (sender, first) = (entry.sender, committed.first);
            if let Some(table) = by_key
                && let Ok(known) = table.find_entry(committed.hash_of(first), |number| *number == first)
            {
                known.remove();
            }
            committed.senders.release(sender);
            committed.entries.pop_front();
            committed.first = first.wrapping_add(1);
            if !is_old {
                self.cut_at = Some(now.saturating_sub(age));
            }
        }
        if let Some(numbers) = committed.senders.compact() {
            committed.entries.iter_mut().for_each(|entry| entry.sender = numbers[entry.sender as usize]);
        }
        // After a burst the room it took is given back.
        if committed.entries.len() < SCANNED / 2 {
            *by_key = None;
        } else if let Some(table) = by_key
            && table.capacity() > 1024
            && table.len() * 8 < table.capacity()
        {
            table.shrink_to_fit(|number| committed.hash_of(*number));
        }
    }

    /// The lowest committed seq in the window.
    pub fn lowest(&self) -> Option<Seq> {
        self.committed.entries.front().map(|entry| entry.place(self.last).seq)
    }

    /// Bytes on the heap, about.
    pub fn held_bytes(&self) -> usize {
        self.committed.entries.held_bytes()
            + self.committed.senders.held_bytes()
            + self.by_key.as_ref().map_or(0, HashTable::capacity) * size_of::<(u32, u8)>()
            + self.pending.capacity() * size_of::<(Key, u8)>()
    }

    /// How many sends the window knows.
    pub fn len(&self) -> usize {
        self.committed.entries.len() + self.pending.len()
    }

    /// Whether the window knows nothing.
    pub fn is_empty(&self) -> bool {
        self.committed.entries.is_empty() && self.pending.is_empty()
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
        let id = uuid::Builder::from_unix_timestamp_millis(seq, &[0; 10]).into_uuid();
        Place { seq: Seq(seq), id: MessageId(id), time: Timestamp(seq) }
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
        // Numbers of places, seqs and times pass what their low bits can tell.
        const BEGIN: u64 = u32::MAX as u64 - 1_000;
        let mut window = DedupWindow::new();
        window.committed.first = u32::MAX - 1_000;
        let mut all: Vec<(u64, UserId, ClientId)> = Vec::new();
        for n in 0..6_000u64 {
            // Bursts of a thousand, and then next to nothing for two windows.
            let at = BEGIN + (n / 1_000) * 300_000 + n % 1_000;
            let (user, id) = (&users[(n % 2) as usize], ClientId(uuid::Uuid::from_u128(u128::from(n / 2))));
            window.begin(user.clone(), id);
            assert_eq!(window.look_up(user, id, 2, secs(0), Duration::from_millis(at)), Known::Pending);
            window.commit(user.clone(), id, place(BEGIN + n), Duration::from_millis(at));
            all.push((at, user.clone(), id));
            if n % 250 != 0 {
                continue;
            }
            let mut left = 0;
            for (seq, (since, user, id)) in (BEGIN..).zip(&all) {
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
        window.expire(secs(10_000_000));
        assert!(window.is_empty());
        assert!(window.held_bytes() < 100_000, "{}", window.held_bytes());
    }

    /// Of two rows of one send the later counts, also when the earlier one goes.
    #[test]
    fn a_send_that_is_there_twice_is_where_it_was_last() {
        let (alice, twice) = (UserId::new("alice").expect("valid"), ClientId::random());
        for others in [10, SCANNED as u64 * 2] {
            let mut window = DedupWindow::new();
            for n in 1..=others {
                let id = if n == 2 || n == 5 { twice } else { ClientId::random() };
                window.commit(alice.clone(), id, place(n), secs(n));
                if n >= 5 && n < 5 + RETENTION.as_secs() {
                    assert_eq!(
                        window.look_up(&alice, twice, 2, secs(0), secs(n)),
                        Known::Committed(place(5))
                    );
                }
            }
            // All at one time, so that none goes before the table is there.
            let mut window = DedupWindow::new();
            for n in 1..=others {
                let id = if n == 2 || n == 5 { twice } else { ClientId::random() };
                window.commit(alice.clone(), id, place(n), secs(if n < 5 { 1 } else { 9 }));
            }
            assert_eq!(window.by_key.is_some(), others > SCANNED as u64);
            for now in [9, 155] {
                window.expire(secs(now));
                let known = window.look_up(&alice, twice, 2, secs(0), secs(now));
                assert_eq!(known, Known::Committed(place(5)), "{now}");
            }
        }
    }

    /// Senders who are gone are let go of, and who is left is not taken for another.
    #[test]
    fn senders_come_and_go() {
        let user = |n: u64| UserId::new(&format!("user-{n}")).expect("valid");
        let client_id = ClientId::random();
        let mut window = DedupWindow::new();
        for n in 1..=1_000 {
            // All of them choose the same client id.
            window.commit(user(n), client_id, place(n), secs(n));
            let left = n.saturating_sub(RETENTION.as_secs());
            for m in (1..=n).step_by(7) {
                let known = window.look_up(&user(m), client_id, 1, secs(0), secs(n));
                assert_eq!(
                    known,
                    if m > left { Known::Committed(place(m)) } else { Known::New },
                    "{m} at {n}"
                );
            }
        }
        assert_eq!(window.len() as u64, RETENTION.as_secs());
        assert!(window.held_bytes() < 40_000, "{}", window.held_bytes());
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
