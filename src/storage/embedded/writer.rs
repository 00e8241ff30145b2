//! The one thread that writes.
//!
//! It takes what has gathered while the last sync ran, writes it as one batch of fjall, syncs, and answers: the more
//! comes in, the more one sync carries. After any error nothing is written again until the process restarts, because
//! what the disk holds is no longer known.
//!
//! # Supervision
//! If the thread ends for any reason, a panic in a `done` included, the queue is ended with it and every append is
//! answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fjall::PersistMode;
use parking_lot::Mutex;

use super::changes::{Changes, Dating};
use super::cursors::PendingCursors;
use super::database::Rows;
use super::keys;
use super::marks::{self, PendingMarks};
use super::queue::{BatchLimits, Job, Next, Queue, Small};
use crate::storage::stats::StoreStats;
use crate::storage::{AppendError, Health};

/// fjall makes its writers sleep at 4 full memtables that wait to be flushed and at 30 sorted runs. It would do so
/// between a sync and its answers, and for ever if its worker has died; so memtables are filled further instead of
/// closed when it comes near to that.
const MAX_WAITING_MEMTABLES: usize = 2;
const MAX_RUNS: usize = 20;

/// A memtable that cannot be closed for that reason may grow to so many times its size; then the writer waits.
const MAX_MEMTABLE_GROWTH: u64 = 4;

/// While it waits, it looks again this often.
const ROOM_POLL: Duration = Duration::from_millis(5);

/// When a fault strikes that a test asks for.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InjectedFault {
    /// Before anything of the batch is written.
    BeforeWrite,
    /// When the batch is written and synced.
    AfterWrite,
}

/// Asked before each commit, with its number from 1.
#[doc(hidden)]
pub type FaultHook = Arc<dyn Fn(u64) -> Option<InjectedFault> + Send + Sync>;

/// What the thread and the handles of the store share.
pub(super) struct Shared {
    pub(super) queue: Arc<Queue>,
    pub(super) cursors: PendingCursors,
    pub(super) marks: PendingMarks,
    pub(super) changes: Changes,
    pub(super) stats: Arc<StoreStats>,
    pub(super) health: Mutex<Health>,
}

impl Shared {
    fn poison(&self, reason: &str) {
        {
            let mut health = self.health.lock();
            if *health == Health::Good {
                tracing::error!(reason, "the store cannot write any more until the process is restarted");
                *health = Health::Poisoned(reason.to_owned());
            }
        }
        self.cursors.close(reason);
        self.marks.close(reason);
        self.queue.end(reason);
    }
}

/// The writer's own state.
pub(super) struct Writer {
    pub(super) rows: Arc<Rows>,
    pub(super) shared: Arc<Shared>,
    pub(super) limits: BatchLimits,
    /// A memtable is closed and flushed when it has so many bytes.
    pub(super) memtable_bytes: u64,
    /// What was written since memtables were closed.
    pub(super) unflushed_bytes: u64,
    /// Memtables are being flushed, and nothing has freed them yet.
    pub(super) frees: bool,
    pub(super) commits: u64,
    pub(super) dating: Dating,
    pub(super) fault: Option<FaultHook>,
}

/// Ends the queue when the thread ends, however that happens.
struct EndWithThread(Arc<Shared>);

impl Drop for EndWithThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poison("the store's writer panicked");
        } else {
            self.0.cursors.close("the store is shut down");
            self.0.marks.close("the store is shut down");
            self.0.queue.end("the store is shut down");
        }
    }
}

impl Writer {
    /// Writes until the queue is closed and drained, or an error.
    pub(super) fn run(mut self) {
        let _end = EndWithThread(self.shared.clone());
        loop {
            let (jobs, cursors) = match self.shared.queue.next(self.limits) {
                Next::Write { jobs, cursors } => (jobs, cursors),
                Next::End => return self.write_last_cursors(),
            };
            if !self.write(jobs, cursors) {
                return;
            }
            if let Err(reason) = self.make_room() {
                self.shared.poison(&reason);
                return;
            }
        }
    }

    /// Cursors may come in until the very end.
    fn write_last_cursors(&mut self) {
        self.shared.cursors.close("the store is shut down");
        self.shared.marks.close("the store is shut down");
        self.write(Vec::new(), true);
    }

    /// Commits and answers; says whether the store still works.
    fn write(&mut self, mut jobs: Vec<Job>, cursors: bool) -> bool {
        let begin = Instant::now();
        let shared = self.shared.clone();
        let rows = jobs.iter().map(|job| job.rows.len()).sum();
        match self.commit(&mut jobs, cursors) {
            Ok(bytes) => {
                if !jobs.is_empty() {
                    shared.stats.committed(jobs.len(), rows, bytes, begin.elapsed());
                }
                for job in jobs {
                    shared.queue.answer(job, Ok(()));
                }
                true
            }
            Err(error) => {
                // Before the answers: who is told and tries again must find the store poisoned.
                let (AppendError::Unknown(reason) | AppendError::NotStored(reason)) = &error else {
                    unreachable!("a commit is never refused for load")
                };
                shared.poison(reason);
                shared.stats.failed.fetch_add(jobs.len() as u64, Ordering::Relaxed);
                for job in jobs {
                    shared.queue.answer(job, Err(error.clone()));
                }
                false
            }
        }
    }

    /// Writes one batch and syncs it. Returns the bytes of the appends.
    fn commit(&mut self, jobs: &mut [Job], cursors: bool) -> Result<usize, AppendError> {
        let rows = &self.rows;
        let items = jobs.iter().map(|job| job.rows.len() + job.lists.len() + job.small.len()).sum();
        let mut batch = fjall::OwnedWriteBatch::with_capacity(rows.database.clone(), items)
            .durability(Some(PersistMode::SyncData));
        let entry = self.dating.value(&self.shared.changes);
        let mut bytes = 0;
        for job in jobs {
            bytes += job.bytes();
            if let Some(conversation) = job.changed.take() {
                for key in self.dating.entries(&conversation) {
                    bytes += key.len() + entry.len();
                    batch.insert(&rows.lists, key, entry.clone());
                }
            }
            for (key, value) in job.rows.drain(..) {
                batch.insert(&rows.messages, key, value);
            }
            for key in job.lists.drain(..) {
                batch.insert(&rows.lists, key, entry.clone());
            }
            for row in job.small.drain(..) {
                let keyspace = match row.keyspace {
                    Small::Marks => &rows.marks,
                    Small::Settings => &rows.settings,
                    Small::Groups => &rows.groups,
                    Small::Reactions => &rows.reactions,
                    Small::Hidden => &rows.hidden,
                    Small::Logs => &rows.logs,
                    Small::Messages => &rows.messages,
                };
                match row.value {
                    Some(value) => batch.insert(keyspace, row.key, value),
                    None => batch.remove(keyspace, row.key),
                }
            }
        }
        let mut cursors_written = 0;
        if cursors {
            for pending in self.shared.cursors.take() {
                let key = keys::cursor(&pending.user, &pending.device, &pending.cursor.conversation);
                let kept = rows.cursors.get(&key).map_err(|e| AppendError::NotStored(e.to_string()))?;
                // A damaged one is written over: a lost cursor costs a repeated page.
                let kept = kept.and_then(|value| keys::read_seq(&value));
                if kept.is_none_or(|kept| kept < pending.cursor.seq) {
                    batch.insert(&rows.cursors, key, keys::seq_value(pending.cursor.seq));
                    cursors_written += 1;
                }
            }
        }
        let mut marks_written = 0;
        if cursors {
            for (of, mark) in self.shared.marks.take() {
                let raised = marks::raised(rows, &of, mark);
                let raised = raised.map_err(|e| AppendError::NotStored(e.to_string()))?;
                if let Some((key, value)) = raised {
                    batch.insert(&rows.marks, key, value);
                    marks_written += 1;
                    // The user's other devices are to learn of it.
                    if of.conversation.is_direct_with(&of.user) {
                        batch.insert(&rows.lists, keys::list(&of.user, &of.conversation), entry.clone());
                    }
                }
            }
        }
        self.unflushed_bytes += (bytes + (cursors_written + marks_written) * 64) as u64;
        if !batch.is_empty() {
            self.commit_batch(batch)?;
        }
        if cursors {
            self.shared.cursors.written();
            self.shared.marks.written();
            self.shared.stats.cursors.fetch_add(cursors_written as u64, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    fn commit_batch(&mut self, batch: fjall::OwnedWriteBatch) -> Result<(), AppendError> {
        self.commits += 1;
        let fault = self.fault.as_ref().and_then(|fault| fault(self.commits));
        if fault == Some(InjectedFault::BeforeWrite) {
            return Err(AppendError::Unknown("an injected fault".into()));
        }
        batch.commit().map_err(|error| match error {
            // fjall looks before it writes: a background flush has failed earlier.
            fjall::Error::Poisoned => AppendError::NotStored("a background write of the store failed".into()),
            error => AppendError::Unknown(error.to_string()),
        })?;
        match fault {
            Some(_) => Err(AppendError::Unknown("an injected fault".into())),
            None => Ok(()),
        }
    }

    /// Closes full memtables, so that they are flushed and the journals behind them can go. All of them at once: a
    /// journal is kept for as long as one keyspace has rows in it that are nowhere else.
    fn make_room(&mut self) -> Result<(), String> {
        if self.frees && self.rows.keyspaces().iter().all(|keyspace| keyspace.sealed_memtable_count() == 0) {
            self.free_flushed().map_err(|e| e.to_string())?;
            self.frees = false;
        }
        if self.unflushed_bytes < self.memtable_bytes {
            return Ok(());
        }
        let messages = &self.rows.messages;
        while messages.sealed_memtable_count() >= MAX_WAITING_MEMTABLES
            || messages.l0_table_count() >= MAX_RUNS
        {
            if self.unflushed_bytes < MAX_MEMTABLE_GROWTH * self.memtable_bytes {
                return Ok(());
            }
            // Costs nothing and tells whether the worker, for which this waits, has failed.
            self.rows.database.persist(PersistMode::Buffer).map_err(|e| e.to_string())?;
            #[expect(
                clippy::disallowed_methods,
                reason = "the writer's own thread; the database has nothing to wait on"
            )]
            std::thread::sleep(ROOM_POLL);
        }
        self.unflushed_bytes = 0;
        for keyspace in self.rows.keyspaces() {
            keyspace.rotate_memtable().map_err(|e| e.to_string())?;
        }
        self.frees = true;
        Ok(())
    }

    /// fjall keeps a memtable that was flushed until one is closed after that, of whatever keyspace: otherwise the next full ones,
    /// so that all rows would be in memory twice. What the store says of itself is written once more, and closed.
    fn free_flushed(&self) -> fjall::Result<()> {
        let Rows { database, format, meta, .. } = &*self.rows;
        let mut batch = database.batch();
        format.write(&mut batch, meta);
        batch.commit()?;
        meta.rotate_memtable().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use fjall::AbstractTree as _;

    use super::*;
    use crate::storage::conformance::{append_of, conversation, rows, store};
    use crate::storage::embedded::{EmbeddedConfig, EmbeddedStore};

    async fn until(holds: impl Fn() -> bool) {
        let looked = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), looked).await.expect("it holds before long");
    }

    #[tokio::test]
    async fn memtables_that_were_flushed_are_freed_before_the_next_are_full() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = EmbeddedConfig { memtable_bytes: 100_000, ..EmbeddedConfig::default() };
        let embedded = EmbeddedStore::open(dir.path(), config).expect("opens");
        let all = embedded.rows.load_full().expect("open");
        let append =
            async |from, to| store(&embedded, append_of(&conversation("a"), &rows(from, to, "a"), 0)).await;

        let mut next = 1;
        // The writer closes them after it answered.
        while all.messages.l0_table_count() == 0 {
            append(next, next + 9).await.expect("stored");
            next += 10;
        }
        until(|| all.keyspaces().iter().all(|keyspace| keyspace.sealed_memtable_count() == 0)).await;
        append(next, next).await.expect("stored");
        until(|| all.messages.tree.version_free_list_len() == 0).await;
        let held: u64 = all.keyspaces().iter().map(|keyspace| keyspace.tree.active_memtable().size()).sum();
        assert!(held < 100_000, "{held} bytes: the next were full");
    }
}
