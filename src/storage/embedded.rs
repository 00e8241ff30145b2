//! The stores of one node on its own disk, in one fjall database.
//!
//! ```text
//!  append ─encode─▶ queue (64 MB) ─▶ writer thread ─▶ one batch ─▶ fdatasync ─▶ every `done`
//!  put_cursors ───▶ memory ──────────────┘ (every 5 s)
//!  read ─▶ a blocking thread (bounded) ─▶ what is durable
//! ```
//!
//! # Invariants
//! - A batch is applied, and so read, only after its sync; every batch that holds rows is synced before it is answered.
//! - One permanent owner writes each conversation in the order of its stamps, so the later write of a row stays.
//! - After an error of a write nothing is written any more: the batch's appends are [`AppendError::Unknown`], later
//!   ones [`AppendError::NotStored`], reads go on, [`EmbeddedStore::health`] tells. A restart heals: fjall replays what
//!   is whole, and what was torn was never acknowledged.
//!
//! # Faults
//! Tests inject a failing commit with `EmbeddedConfig::fault`. A really full disk is made with a small mount
//! (`unshare -rm sh -c 'mount -t tmpfs -o size=80m none DIR && …'`), or, without any rights, with
//! `sh -c 'trap "" XFSZ; ulimit -f BLOCKS; exec …'`, which makes writes beyond that file size fail with `EFBIG`.

mod backup;
mod changes;
mod check;
mod cursors;
mod database;
mod format;
mod groups;
mod hidden;
mod journal;
mod keys;
mod logs;
mod marks;
mod queue;
mod reactions;
#[cfg(test)]
mod tests;
mod walk;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use convoke_protocol::message::Cursor;
use fjall::UserKey;
use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use self::changes::{Changes, Dating};
use self::cursors::PendingCursors;
use self::database::{Rows, RowsOptions};
use self::marks::PendingMarks;
use self::queue::{BatchLimits, Job, Queue, SmallRow};
use self::writer::{Shared, Writer};
use super::{
    Append, AppendDone, AppendError, Changed, ConversationIndex, ConversationSettings, CursorStore, Epoch,
    Health, Hint, LogRow, LogStart, MarkKey, MessageLog, Projection, ReadError, ReadLimit, ReadMark,
    ReadMarkStore, RowsAbove, SettingsChange, Tail, UserConversationStore, WriteError, WriteStamp,
};

pub use self::backup::{BackupError, Contents, Volume, backup, restore};
pub use self::check::check;
pub use self::format::{FORMAT_VERSION, Format};
#[doc(hidden)]
pub use self::writer::{FaultHook, InjectedFault};
pub use super::stats::{BATCH_APPENDS, Buckets, COMMIT_MICROS, StoreStats};

/// The settings of the embedded store.
#[derive(Clone)]
pub struct EmbeddedConfig {
    /// Into how many shards the ids are divided: written when the store is created, compared ever after.
    pub shards: u32,
    /// Bytes of appends that wait or are being written; beyond that an append is [`AppendError::Overloaded`].
    pub queue_bytes: usize,
    /// Bytes of appends in one commit (one append is always taken).
    pub batch_bytes: usize,
    /// Appends in one commit.
    pub batch_appends: usize,
    /// Blocks of the database that are kept in memory, in bytes.
    pub cache_bytes: u64,
    /// After so many bytes the rows in memory are sorted into a file, in the background. They take about twice as much
    /// memory, and a start after a crash reads them again from the journal.
    pub memtable_bytes: u64,
    /// The latest time after which a cursor is written.
    pub cursor_interval: Duration,
    /// For so long a conversation is noted as changed once, however much is said in it: who asks what changed since a moment is
    /// told of everything from the beginning of the period in which it was.
    pub change_period: Duration,
    /// Reads that run at the same time, each on a blocking thread.
    pub reads: usize,
    /// Makes commits fail, for tests.
    #[doc(hidden)]
    pub fault: Option<FaultHook>,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            shards: 1024,
            queue_bytes: 64 << 20,
            batch_bytes: 8 << 20,
            batch_appends: 8_192,
            cache_bytes: 2 << 20,
            memtable_bytes: 4 << 20,
            cursor_interval: Duration::from_secs(5),
            change_period: Duration::from_secs(60),
            reads: 8,
            fault: None,
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another part of this one, has it open.
    #[error("{} is locked: {} has the store open", path.display(), match holder {
        Some(pid) => format!("process {pid}"),
        None => "another process".into(),
    })]
    Locked {
        /// The lock.
        path: PathBuf,
        /// The process that holds it.
        holder: Option<u32>,
    },
    /// There is no store, and none was to be created.
    #[error("there is no store at {}", .0.display())]
    Missing(PathBuf),
    /// Another version of this program wrote it.
    #[error("the store has format {found}; this version knows format {known}")]
    UnknownFormat {
        /// What the store says.
        found: String,
        /// What this version reads.
        known: u32,
    },
    /// The configuration and the store disagree on what was fixed when it was created.
    #[error("the store was created with {stored} shards, the configuration says {configured}")]
    Shards {
        /// What the store says.
        stored: u32,
        /// What the configuration says.
        configured: u32,
    },
    /// What was once whole is not any more.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// A file cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it cannot be done.
        source: std::io::Error,
    },
    /// The database cannot be opened.
    #[error("the database cannot be opened: {0}")]
    Database(#[from] fjall::Error),
}

impl OpenError {
    fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// The stores of one node on its own disk.
///
/// # Shutdown
/// [`Self::shutdown`] writes what waits, answers every append, and closes the database. A store that is only dropped
/// does the same in the background: its writer ends by itself, and the lock is free when it has.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    rows: ArcSwapOption<Rows>,
    format: Format,
    epoch: Epoch,
    reads: Arc<Semaphore>,
    read_permits: u32,
    writer: Mutex<Option<JoinHandle<()>>>,
    cursor_interval: Duration,
    /// Held by those who write what depends on what they read.
    claims: tokio::sync::Mutex<()>,
}

/// What a store holds in memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreMemory {
    /// What waits to be written.
    pub queue_bytes: usize,
    /// Rows that are in the journal and not yet in a table.
    pub memtable_bytes: usize,
    /// Blocks that were read.
    pub cache_bytes: usize,
}

impl EmbeddedStore {
    /// Opens the store in a directory, or creates it. Blocks.
    ///
    /// # Errors
    /// [`OpenError`] says what to do about it.
    pub fn open(dir: &Path, config: EmbeddedConfig) -> Result<Self, OpenError> {
        let rows = Rows::open(
            dir,
            RowsOptions {
                cache_bytes: config.cache_bytes,
                create_with_shards: Some(config.shards),
                background: true,
            },
        )?;
        let format = rows.format.clone();
        if format.shards != config.shards {
            return Err(OpenError::Shards { stored: format.shards, configured: config.shards });
        }
        let (epoch, lives) = format::begin_epoch(&rows.database, &rows.meta, rand::random())?;
        let rows = Arc::new(rows);
        let shared = Arc::new(Shared {
            queue: Queue::new(config.queue_bytes),
            cursors: PendingCursors::default(),
            marks: PendingMarks::default(),
            changes: Changes::new(epoch, lives),
            stats: Arc::new(StoreStats::default()),
            health: Mutex::new(Health::Good),
        });
        let writer = Writer {
            rows: rows.clone(),
            shared: shared.clone(),
            limits: BatchLimits { appends: config.batch_appends.max(1), bytes: config.batch_bytes },
            memtable_bytes: config.memtable_bytes,
            unflushed_bytes: rows.database.write_buffer_size(),
            frees: false,
            commits: 0,
            dating: Dating::new(config.change_period),
            fault: config.fault,
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::io("start the writer of", dir, source))?;
        let read_permits = u32::try_from(config.reads.max(1)).unwrap_or(u32::MAX);
        Ok(Self {
            shared,
            rows: ArcSwapOption::from(Some(rows)),
            format,
            epoch,
            reads: Arc::new(Semaphore::new(read_permits as usize)),
            read_permits,
            writer: Mutex::new(Some(writer)),
            cursor_interval: config.cursor_interval,
            claims: tokio::sync::Mutex::new(()),
        })
    }

    /// Whether it can still write.
    pub fn health(&self) -> Health {
        self.shared.health.lock().clone()
    }

    /// What it counts of itself; the bytes in the queue are as of now.
    pub fn stats(&self) -> Arc<StoreStats> {
        self.shared.stats.queue_bytes.store(self.shared.queue.weight() as u64, Ordering::Relaxed);
        self.shared.stats.clone()
    }

    /// What it holds in memory.
    pub fn memory(&self) -> StoreMemory {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let rows = self.rows.load();
        let database = rows.as_ref().map(|rows| &rows.database);
        StoreMemory {
            queue_bytes: self.shared.queue.weight(),
            memtable_bytes: database.map_or(0, |database| size(database.write_buffer_size())),
            cache_bytes: database.map_or(0, |database| size(database.cache_size())),
        }
    }

    /// The epoch of this owner: one more than that of whoever opened the store before.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What it says about itself.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Ends in order: takes no more, writes what waits, answers every append, waits for the reads that run, and closes
    /// the database. When it returns another process may open it. A second call waits for nothing.
    ///
    /// # Cancel-safety
    /// Once polled it goes on by itself, but the database is closed only when the store is dropped.
    pub async fn shutdown(&self) {
        self.shared.queue.close();
        let writer = self.writer.lock().take();
        if let Some(writer) = writer {
            // A panic of the writer was reported and answered when it happened.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
        // Nobody closes the semaphore.
        let _reads = self.reads.acquire_many(self.read_permits).await;
        if let Some(rows) = self.rows.swap(None) {
            let _ = tokio::task::spawn_blocking(move || drop(rows)).await;
        }
    }

    /// Runs a read on a blocking thread, all of them: it may wait for the disk, and a runtime's thread must not.
    /// Measured from memory, the way there and back included, a hint takes 36 µs and a page of 50 rows 150 µs: there is
    /// too little to save by guessing which reads would not wait.
    async fn reading<R: Send + 'static>(
        &self,
        read: impl FnOnce(&Rows) -> Result<R, ReadError> + Send + 'static,
    ) -> Result<R, ReadError> {
        let gone = |_| ReadError::Unavailable("the read was given up".into());
        let permit = self.reads.clone().acquire_owned().await.map_err(|_| closed())?;
        let rows = self.rows.load_full().ok_or_else(closed)?;
        let read = move || {
            let result = read(&rows);
            drop(rows);
            // Last: who holds all permits knows that nobody holds the rows.
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(read).await.map_err(gone)?
    }

    /// Writes small rows, all or none; durable with `Ok`.
    async fn writing(&self, rows: Vec<SmallRow>) -> Result<(), WriteError> {
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |result| drop(tell.send(result)));
        // A refused one is answered too.
        let _ = self.shared.queue.push(Job::new(Vec::new(), Vec::new(), done).with(rows));
        match told.await {
            Ok(result) => result.map_err(|error: AppendError| WriteError(error.to_string())),
            Err(_) => Err(WriteError("the store is shut down".into())),
        }
    }

    fn encoded(conversation: &ConversationId, rows: &[LogRow]) -> Vec<(UserKey, Vec<u8>)> {
        let encoded = |row: &LogRow| (keys::message(conversation, row.seq), super::values::encode_row(row));
        rows.iter().map(encoded).collect()
    }

    fn push(&self, job: Job) {
        let stats = &self.shared.stats;
        match self.shared.queue.push(job) {
            Ok(()) => {}
            Err(AppendError::Overloaded) => drop(stats.overloaded.fetch_add(1, Ordering::Relaxed)),
            Err(_) => drop(stats.failed.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

fn closed() -> ReadError {
    ReadError::Unavailable("the store is shut down".into())
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // Not joined: the last handle may go in a `done`, on the writer's own thread.
        self.shared.queue.close();
    }
}

impl MessageLog for EmbeddedStore {
    fn append(&self, append: Append, done: AppendDone) {
        let Append { conversation, rows, stamp: _, listed_for } = append;
        let bodies = rows.iter().map(|row| row.entry.content.body.len()).sum();
        let stats = &self.shared.stats;
        if self.shared.queue.refuses(bodies) {
            stats.overloaded.fetch_add(1, Ordering::Relaxed);
            return done(Err(AppendError::Overloaded));
        }
        // Here and not in the writer: the callers have more threads than it.
        let mut small = marks::rows_of(&conversation, &rows);
        small.extend(logs::rows_of(&conversation, &rows));
        let rows = Self::encoded(&conversation, &rows);
        let lists = listed_for.iter().map(|user| keys::list(user, &conversation)).collect();
        let is_barrier = rows.is_empty();
        let job = Job::new(rows, lists, done).with(small);
        self.push(if is_barrier { job } else { job.changing(conversation) });
    }

    fn project(&self, projection: Projection, done: AppendDone) {
        let Projection { conversation, rows, group, members, reactions, stamp: _ } = projection;
        let mut small = marks::rows_of(&conversation, &rows);
        if let Some(id) = conversation.group_id() {
            small.extend(groups::rows_of(&id, group.as_deref(), &members));
        }
        small.extend(reactions::rows_of(&conversation, &reactions));
        let job = Job::new(Self::encoded(&conversation, &rows), Vec::new(), done);
        self.push(job.with(small).changing(conversation));
    }

    fn put_hint<'a>(
        &'a self,
        conversation: &'a ConversationId,
        hint: Hint,
        _: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        self.keep_hint(conversation, hint).boxed()
    }

    fn tails<'a>(
        &'a self,
        conversations: &'a [ConversationId],
    ) -> BoxFuture<'a, Result<Vec<Tail>, ReadError>> {
        let conversations = conversations.to_vec();
        self.reading(move |rows| conversations.iter().map(|id| rows.tail(id)).collect()).boxed()
    }

    fn hint<'a>(
        &'a self,
        conversation: &'a ConversationId,
    ) -> BoxFuture<'a, Result<Option<Hint>, ReadError>> {
        let conversation = conversation.clone();
        self.reading(move |rows| rows.hint(&conversation)).boxed()
    }

    fn read<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>> {
        let conversation = conversation.clone();
        self.reading(move |rows| rows.read(&conversation, from, to, limit)).boxed()
    }

    fn read_back<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>> {
        let conversation = conversation.clone();
        self.reading(move |rows| rows.read_back(&conversation, from, to, limit)).boxed()
    }

    fn start<'a>(&'a self, conversation: &'a ConversationId) -> BoxFuture<'a, Result<LogStart, ReadError>> {
        let conversation = conversation.clone();
        self.reading(move |rows| rows.start(&conversation)).boxed()
    }

    fn trim<'a>(
        &'a self,
        conversation: &'a ConversationId,
        start: LogStart,
        _: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        self.trim_to(conversation, start).boxed()
    }
}

impl ConversationIndex for EmbeddedStore {
    fn conversations<'a>(
        &'a self,
        user: &'a UserId,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, ReadError>> {
        let (user, after) = (user.clone(), after.cloned());
        self.reading(move |rows| rows.conversations(&user, after.as_ref(), limit)).boxed()
    }

    fn changed<'a>(
        &'a self,
        user: &'a UserId,
        since: Option<&'a str>,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Changed, ReadError>> {
        let changes = &self.shared.changes;
        // Before the database is read: what is written meanwhile is then told the next time.
        let token = changes.token(changes.now());
        let since = since.and_then(|token| changes.moment(token));
        let waiting = self.shared.marks.conversations(user);
        let (user, after) = (user.clone(), after.cloned());
        let all = since.is_none();
        let found = self.reading(move |rows| match since {
            None => rows.conversations(&user, after.as_ref(), limit),
            Some(since) => rows.changed(&user, since, after.as_ref(), limit, &waiting),
        });
        async move { Ok(Changed { token, all, conversations: found.await? }) }.boxed()
    }
}

impl CursorStore for EmbeddedStore {
    fn put_cursors<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        cursors: &'a [Cursor],
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            let nudge = self.shared.cursors.put(user, device, cursors)?;
            self.shared.queue.cursors_wait(nudge, self.cursor_interval);
            Ok(())
        }
        .boxed()
    }

    fn cursors<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        conversations: &'a [ConversationId],
    ) -> BoxFuture<'a, Result<Vec<Cursor>, ReadError>> {
        // Before the database is read: one that is written meanwhile is then found there.
        let waiting = self.shared.cursors.get(user, device, conversations);
        let (user, device, conversations) = (user.clone(), device.clone(), conversations.to_vec());
        self.reading(move |rows| {
            let mut found = Vec::with_capacity(conversations.len());
            for (conversation, waiting) in conversations.iter().zip(waiting) {
                let kept = rows.cursor(&user, &device, conversation)?;
                let seq = waiting.max(kept.map(|cursor| cursor.seq));
                found.extend(seq.map(|seq| Cursor { conversation: conversation.clone(), seq }));
            }
            Ok(found)
        })
        .boxed()
    }
}

impl ReadMarkStore for EmbeddedStore {
    fn put_marks<'a>(&'a self, marks: &'a [(MarkKey, ReadMark)]) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            let nudge = self.shared.marks.put(marks)?;
            self.shared.queue.cursors_wait(nudge, self.cursor_interval);
            Ok(())
        }
        .boxed()
    }

    fn marks<'a>(&'a self, of: &'a [MarkKey]) -> BoxFuture<'a, Result<Vec<ReadMark>, ReadError>> {
        // Before the database is read: one that is written meanwhile is then found there.
        let waiting = self.shared.marks.get(of);
        let of = of.to_vec();
        self.reading(move |rows| {
            let kept = of.iter().zip(waiting);
            kept.map(|(key, waiting)| Ok(rows.mark(key)?.max(waiting.unwrap_or_default()))).collect()
        })
        .boxed()
    }

    fn uncounted<'a>(&'a self, ranges: &'a [RowsAbove]) -> BoxFuture<'a, Result<Vec<u64>, ReadError>> {
        let ranges = ranges.to_vec();
        self.reading(move |rows| ranges.iter().map(|range| rows.uncounted(range)).collect()).boxed()
    }
}

impl UserConversationStore for EmbeddedStore {
    fn set_conversation<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        change: &'a SettingsChange,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        self.writing(marks::setting_rows(user, conversation, change)).boxed()
    }

    fn settings<'a>(
        &'a self,
        user: &'a UserId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(ConversationId, ConversationSettings)>, ReadError>> {
        let user = user.clone();
        self.reading(move |rows| rows.settings(&user, limit)).boxed()
    }
}
