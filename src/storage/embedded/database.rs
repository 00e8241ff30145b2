//! The fjall database: how it is created, opened and read. Everything here blocks.
//!
//! ```text
//! DIR/store.lock   held while the store is open; the holder's pid is in it
//! DIR/store/       the database
//! DIR/store.new/   a database that is being created; nothing in it was ever acknowledged
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use convoke_protocol::message::Cursor;
use fjall::config::{CompressionPolicy, FilterPolicy, PartitioningPolicy};
use fjall::{CompressionType, Database, Iter, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use super::format::Format;
use super::{OpenError, journal, keys};
use crate::storage::{LogRow, ReadError, ReadLimit, values};

/// fjall asks for a file descriptor table; a node's sockets need the descriptors more.
const MAX_OPEN_FILES: usize = 256;

/// How many sorted runs gather before they are merged. A read looks into each.
const MERGE_RUNS: u8 = 8;

/// The open database. Reads are of what is durable: fjall shows a batch only once it is synced and applied, and every
/// batch of ours asks for the sync.
pub(super) struct Rows {
    pub(super) database: Database,
    pub(super) messages: Keyspace,
    pub(super) lists: Keyspace,
    pub(super) cursors: Keyspace,
    pub(super) marks: Keyspace,
    pub(super) settings: Keyspace,
    pub(super) groups: Keyspace,
    pub(super) reactions: Keyspace,
    pub(super) hidden: Keyspace,
    pub(super) logs: Keyspace,
    pub(super) meta: Keyspace,
    pub(super) format: Format,
    /// How many bytes of a torn batch were cut off when it was opened.
    pub(super) torn_bytes: u64,
    // Last: everything above is closed before another process may open it.
    _lock: File,
}

/// How the database is opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsOptions {
    pub(super) cache_bytes: u64,
    /// Shards of a store that does not exist yet; `None` opens only what exists.
    pub(super) create_with_shards: Option<u32>,
    /// Whether fjall may flush and merge in the background.
    pub(super) background: bool,
}

impl Rows {
    pub(super) fn open(dir: &Path, options: RowsOptions) -> Result<Self, OpenError> {
        let path = dir.join("store");
        if options.create_with_shards.is_some() {
            std::fs::create_dir_all(dir).map_err(|source| OpenError::io("create", dir, source))?;
        } else if !path.join("version").exists() {
            return Err(OpenError::Missing(path));
        }
        let lock = lock(&dir.join("store.lock"))?;
        if let (Some(shards), false) = (options.create_with_shards, path.exists()) {
            create(dir, &path, shards)?;
        }
        let torn_bytes = journal::mend(&path)?;
        let database = Database::builder(&path)
            .cache_size(options.cache_bytes)
            .max_cached_files(Some(MAX_OPEN_FILES))
            .journal_compression(CompressionType::None)
            .worker_threads_unchecked(usize::from(options.background))
            .open()?;
        let keyspace = |name| match database.keyspace_exists(name) {
            true => Ok(database.keyspace(name, || unreachable!("it exists"))?),
            false => Err(OpenError::Damaged(format!("there are no {name}"))),
        };
        let meta = keyspace("meta")?;
        let format = Format::read(&meta)?;
        Ok(Self {
            messages: keyspace("messages")?,
            lists: keyspace("lists")?,
            cursors: keyspace("cursors")?,
            marks: keyspace("marks")?,
            settings: keyspace("settings")?,
            groups: keyspace("groups")?,
            reactions: keyspace("reactions")?,
            hidden: keyspace("hidden")?,
            logs: keyspace("logs")?,
            meta,
            database: database.clone(),
            format,
            torn_bytes,
            _lock: lock,
        })
    }

    pub(super) fn keyspaces(&self) -> [&Keyspace; 10] {
        let Self { messages, lists, cursors, marks, settings, groups, reactions, hidden, logs, meta, .. } =
            self;
        [messages, lists, cursors, marks, settings, groups, reactions, hidden, logs, meta]
    }

    pub(super) fn read(
        &self,
        conversation: &ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<LogRow>, ReadError> {
        if from > to {
            return Ok(Vec::new());
        }
        page(self.range(conversation, from, to), limit)
    }

    pub(super) fn read_back(
        &self,
        conversation: &ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<LogRow>, ReadError> {
        if from > to {
            return Ok(Vec::new());
        }
        page(self.range(conversation, from, to).rev(), limit)
    }

    fn range(&self, conversation: &ConversationId, from: Seq, to: Seq) -> Iter {
        let (from, to) = (keys::message(conversation, from), keys::message(conversation, to));
        self.database.snapshot().range(&self.messages, from..=to)
    }

    /// The entries of a user's list above `after`.
    pub(super) fn list(&self, user: &UserId, after: Option<&ConversationId>) -> Iter {
        let (mut from, to) = keys::list_bounds(user);
        if let Some(after) = after {
            // The smallest key above `after`: ids hold no zero bytes.
            from = [&keys::list(user, after)[..], &[0]].concat();
        }
        self.database.snapshot().range(&self.lists, from..to)
    }

    pub(super) fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationId>, ReadError> {
        let mut found = Vec::new();
        for guard in self.list(user, after).take(limit) {
            let key = guard.key().map_err(read_error)?;
            let (_, conversation) = keys::split_list(&key).ok_or_else(|| bad_key("a list", &key))?;
            found.push(conversation);
        }
        Ok(found)
    }

    pub(super) fn cursor(
        &self,
        user: &UserId,
        device: &DeviceId,
        conversation: &ConversationId,
    ) -> Result<Option<Cursor>, ReadError> {
        let value = self.cursors.get(keys::cursor(user, device, conversation)).map_err(read_error)?;
        let Some(value) = value else { return Ok(None) };
        let seq = keys::read_seq(&value)
            .ok_or_else(|| ReadError::Corrupt(format!("a cursor of {user} has {} bytes", value.len())))?;
        Ok(Some(Cursor { conversation: conversation.clone(), seq }))
    }
}

fn page(guards: impl Iterator<Item = fjall::Guard>, limit: ReadLimit) -> Result<Vec<LogRow>, ReadError> {
    let mut budget = limit.budget();
    let mut page = Vec::new();
    for guard in guards {
        let (key, value) = guard.into_inner().map_err(read_error)?;
        let row = decode(&key, &value)?;
        let more = budget.take(&row);
        page.push(row);
        if !more {
            break;
        }
    }
    Ok(page)
}

pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<LogRow, ReadError> {
    let seq = key.last_chunk::<8>().ok_or_else(|| bad_key("a log", key))?;
    let seq = Seq(u64::from_be_bytes(*seq));
    values::decode_row(seq, value).map_err(|why| {
        let conversation = keys::split_message(key).map(|(conversation, _)| conversation.to_string());
        ReadError::Corrupt(format!("row {seq} of {}: {why}", conversation.unwrap_or_else(|| "?".into())))
    })
}

pub(super) fn bad_key(what: &str, key: &[u8]) -> ReadError {
    ReadError::Corrupt(format!("{what} has the key {:?}", String::from_utf8_lossy(key)))
}

pub(super) fn read_error(error: fjall::Error) -> ReadError {
    match error {
        fjall::Error::Io(_) | fjall::Error::Storage(fjall::LsmError::Io(_)) | fjall::Error::Poisoned => {
            ReadError::Unavailable(error.to_string())
        }
        error => ReadError::Corrupt(error.to_string()),
    }
}

/// Creates the database beside its place and moves it there when it is whole: a process that dies on the way leaves
/// nothing that looks like a store.
fn create(dir: &Path, path: &Path, shards: u32) -> Result<(), OpenError> {
    let new = dir.join("store.new");
    if new.exists() {
        std::fs::remove_dir_all(&new).map_err(|source| OpenError::io("remove", &new, source))?;
    }
    {
        let database = Database::builder(&new).worker_threads_unchecked(0).open()?;
        let meta = database.keyspace("meta", small_rows)?;
        database.keyspace("messages", message_rows)?;
        database.keyspace("lists", small_rows)?;
        database.keyspace("cursors", small_rows)?;
        database.keyspace("marks", small_rows)?;
        for name in ["settings", "groups", "reactions", "hidden", "logs"] {
            database.keyspace(name, small_rows)?;
        }
        let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
        Format::new(shards).write(&mut batch, &meta);
        batch.commit()?;
    }
    let moved = std::fs::rename(&new, path).and_then(|()| File::open(dir)?.sync_all());
    moved.map_err(|source| OpenError::io("move into place", &new, source))
}

/// These options are stored in the database when it is created.
fn small_rows() -> KeyspaceCreateOptions {
    // The writer decides when a memtable is flushed: fjall's own requests for it pile up in its workers' queue.
    KeyspaceCreateOptions::default().max_memtable_size(u64::MAX)
}

fn message_rows() -> KeyspaceCreateOptions {
    let merge = fjall::compaction::Leveled::default().with_l0_threshold(MERGE_RUNS);
    small_rows()
        // Rows are read by ranges, and a filter answers only for single keys.
        .filter_policy(FilterPolicy::disabled())
        // An index in one piece is kept in memory for as long as the file is young, and while it is written its keys keep
        // the blocks in memory from which they were read: 6 MB for a merge of 47.
        .index_block_partitioning_policy(PartitioningPolicy::all(true))
        .data_block_compression_policy(CompressionPolicy::new([
            CompressionType::None,
            CompressionType::None,
            CompressionType::Lz4,
        ]))
        .compaction_strategy(Arc::new(merge))
}

pub(super) fn lock(path: &PathBuf) -> Result<File, OpenError> {
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open().map_err(|source| OpenError::io("open", path, source))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: a holder that cannot be read is no other error.
            let _ = file.read_to_string(&mut holder);
            return Err(OpenError::Locked { path: path.clone(), holder: holder.trim().parse().ok() });
        }
        Err(TryLockError::Error(source)) => return Err(OpenError::io("lock", path, source)),
    }
    let mut note = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    note().map_err(|source| OpenError::io("write", path, source))?;
    Ok(file)
}
