//! A backup: every row of the store as of one moment, in one file, while the node goes on; and the way back.
//!
//! ```text
//! "convoke backup 1\n"                     says what the file is
//! length u32, JSON                         [`Contents`]: of what it is
//! (length u32, xxh3 u64, records)*         at most about 1 MiB each
//! 0 u32, count u64, xxh3 u64               how many records there are; the hash of all hashes
//! ```
//! A record is `keyspace u8, key length u32, value length u32, key, value`; numbers are big-endian. The layout of the
//! rows themselves is the store's ([`super::format`]), which is why a backup names the store's format.
//!
//! A snapshot of the database holds all keyspaces at one batch, so what one commit wrote is in it whole or not at all:
//! everything that was acknowledged before the backup began is in it. Cursors and read marks of the last seconds, which
//! wait in memory, are not.
//!
//! # Bounds
//! One chunk, and a few that wait for whoever reads.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use bytes::Bytes;
use fjall::{Keyspace, PersistMode, Readable as _};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::database::{self, Rows, RowsOptions};
use super::format::FORMAT_VERSION;
use super::{EmbeddedStore, OpenError};

/// The first bytes of a file.
const MAGIC: &[u8] = b"convoke backup 1\n";

/// A chunk ends behind the record with which it reaches so many bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// The longest chunk that is believed: the longest key and value, and what else is in a chunk.
const MAX_CHUNK_BYTES: u32 = 64 << 20;

/// The longest description that is believed.
const MAX_CONTENTS_BYTES: u32 = 64 << 10;

/// Chunks that wait for whoever reads.
const CHUNKS_AHEAD: usize = 4;

/// Rows are moved from memory into a table when so many bytes have gathered.
const FLUSH_BYTES: u64 = 64 << 20;

/// Of what a backup is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The program that made it.
    pub made_by: String,
    /// The format of the store's rows.
    pub store_format: u32,
    /// Into how many shards its ids are divided.
    pub shards: u32,
    /// When it was made, in milliseconds since 1970.
    pub made_at_ms: u64,
    /// The keyspaces, in the order of their numbers.
    pub keyspaces: Vec<String>,
}

/// What went into a backup, or came out of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Rows of all kinds.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// Why there is no backup, or no store from it.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store cannot be read or written.
    #[error("the database: {0}")]
    Database(#[from] fjall::Error),
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is no backup, or not a whole one.
    #[error("this is no whole backup: {0}")]
    Damaged(&'static str),
    /// Another version made it.
    #[error("the backup has rows of format {found}; this version knows format {FORMAT_VERSION}")]
    UnknownFormat {
        /// What it says.
        found: u32,
    },
    /// A store is where one was to be made.
    #[error("there is a store at {0} already: nothing is written over")]
    Exists(std::path::PathBuf),
}

fn damaged<T>(what: &'static str) -> Result<T, BackupError> {
    Err(BackupError::Damaged(what))
}

/// Writes a whole backup, piece by piece.
fn write(
    rows: &Rows,
    made_at_ms: u64,
    mut put: impl FnMut(Vec<u8>) -> Result<(), BackupError>,
) -> Result<Volume, BackupError> {
    let keyspaces = rows.keyspaces();
    let contents = Contents {
        made_by: concat!("convoke ", env!("CARGO_PKG_VERSION")).into(),
        store_format: rows.format.version,
        shards: rows.format.shards,
        made_at_ms,
        keyspaces: keyspaces.iter().map(|one| one.name().to_string()).collect(),
    };
    let contents = serde_json::to_vec(&contents).expect("names and numbers can be JSON");
    let length = u32::try_from(contents.len()).expect("a few names");
    put([MAGIC, &length.to_be_bytes(), &contents].concat())?;
    let snapshot = rows.database.snapshot();
    let (mut volume, mut chunk, mut hashes) = (Volume::default(), Chunk::default(), Xxh3::new());
    for (number, keyspace) in (0_u8..).zip(keyspaces) {
        for guard in snapshot.iter(keyspace) {
            let (key, value) = guard.into_inner()?;
            chunk.add(number, &key, &value);
            volume.records += 1;
            volume.bytes += (key.len() + value.len()) as u64;
            if chunk.0.len() >= CHUNK_BYTES {
                put(chunk.take(&mut hashes))?;
            }
        }
    }
    if !chunk.0.is_empty() {
        put(chunk.take(&mut hashes))?;
    }
    put([&0_u32.to_be_bytes()[..], &volume.records.to_be_bytes(), &hashes.digest().to_be_bytes()].concat())?;
    Ok(volume)
}

#[derive(Default)]
struct Chunk(Vec<u8>);

impl Chunk {
    fn add(&mut self, keyspace: u8, key: &[u8], value: &[u8]) {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB");
        self.0.push(keyspace);
        self.0.extend_from_slice(&length(key).to_be_bytes());
        self.0.extend_from_slice(&length(value).to_be_bytes());
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(value);
    }

    /// The chunk as it stands in the file; what follows begins a new one.
    fn take(&mut self, hashes: &mut Xxh3) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a chunk is far below 4 GiB");
        let hash = xxh3_64(&self.0).to_be_bytes();
        hashes.update(&hash);
        let whole = [&length.to_be_bytes()[..], &hash, &self.0].concat();
        self.0.clear();
        whole
    }
}

impl EmbeddedStore {
    /// A backup of everything that is durable when it begins, to be read while the store goes on. It is whole only if
    /// the stream ends without an error. Dropped early it stops.
    pub fn backup(&self, made_at_ms: u64) -> BoxStream<'static, io::Result<Bytes>> {
        let (chunks, read) = mpsc::channel(CHUNKS_AHEAD);
        let rows = self.rows.load_full();
        tokio::task::spawn_blocking(move || {
            let Some(rows) = rows else {
                let gone = io::Error::other("the store is shut down");
                // Nobody reads any more: fine, here and below.
                let _ = chunks.blocking_send(Err(gone));
                return;
            };
            let put = |piece: Vec<u8>| match chunks.blocking_send(Ok(piece.into())) {
                Ok(()) => Ok(()),
                Err(_) => Err(BackupError::Io(io::ErrorKind::BrokenPipe.into())),
            };
            match write(&rows, made_at_ms, put) {
                Ok(volume) => tracing::info!(records = volume.records, bytes = volume.bytes, "backup made"),
                Err(error) => {
                    tracing::warn!(%error, "no backup was made");
                    let _ = chunks.blocking_send(Err(io::Error::other(error.to_string())));
                }
            }
        });
        stream::unfold(read, |mut read| async { read.recv().await.map(|piece| (piece, read)) }).boxed()
    }
}

/// Writes a backup of a store that nobody has open. Blocks.
///
/// # Errors
/// The store cannot be opened or read, or `out` not written; what was written then is no whole backup.
pub fn backup(dir: &Path, made_at_ms: u64, out: &mut impl Write) -> Result<Volume, BackupError> {
    let rows = open(dir)?;
    write(&rows, made_at_ms, |piece| Ok(out.write_all(&piece)?))
}

fn open(dir: &Path) -> Result<Rows, OpenError> {
    Rows::open(dir, RowsOptions { cache_bytes: 16 << 20, create_with_shards: None, background: true })
}

/// What a backup says about itself.
fn read_contents(input: &mut impl Read) -> Result<Contents, BackupError> {
    let mut magic = [0; MAGIC.len()];
    if input.read_exact(&mut magic).is_err() || magic != MAGIC {
        return damaged("it does not begin as one");
    }
    let contents = block(input, MAX_CONTENTS_BYTES)?;
    let Ok(contents) = serde_json::from_slice::<Contents>(&contents) else {
        return damaged("it does not say what is in it");
    };
    if contents.store_format != FORMAT_VERSION {
        return Err(BackupError::UnknownFormat { found: contents.store_format });
    }
    Ok(contents)
}

fn number<const N: usize>(input: &mut impl Read) -> Result<[u8; N], BackupError> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::Damaged("it ends before its end"),
        _ => BackupError::Io(error),
    })?;
    Ok(bytes)
}

fn block(input: &mut impl Read, longest: u32) -> Result<Vec<u8>, BackupError> {
    let length = u32::from_be_bytes(number(input)?);
    if length > longest {
        return damaged("a length is beyond all measure");
    }
    exactly(input, length)
}

fn exactly(input: &mut impl Read, length: u32) -> Result<Vec<u8>, BackupError> {
    let mut bytes = Vec::new();
    input.take(u64::from(length)).read_to_end(&mut bytes)?;
    if bytes.len() != length as usize {
        return damaged("it ends before its end");
    }
    Ok(bytes)
}

/// Takes the next record off a chunk.
fn record<'a>(chunk: &mut &'a [u8]) -> Option<(u8, &'a [u8], &'a [u8])> {
    let (keyspace, rest) = chunk.split_first()?;
    let (key, rest) = rest.split_first_chunk()?;
    let (value, rest) = rest.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(u32::from_be_bytes(*key) as usize)?;
    let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*value) as usize)?;
    *chunk = rest;
    Some((*keyspace, key, value))
}

/// Makes a store from a backup, in a directory that has none. Nothing is in its place until all of it is there and was
/// found whole. Blocks.
///
/// # Errors
/// The file is no whole backup, there is a store already, or it cannot be written.
pub fn restore(file: &Path, dir: &Path) -> Result<(Contents, Volume), BackupError> {
    let mut input = BufReader::with_capacity(CHUNK_BYTES, File::open(file)?);
    let contents = read_contents(&mut input)?;
    let place = dir.join("store");
    if place.exists() {
        return Err(BackupError::Exists(place));
    }
    let beside = dir.join("store.restoring");
    if beside.exists() {
        std::fs::remove_dir_all(&beside)?;
    }
    std::fs::create_dir_all(&beside)?;
    let _lock = database::lock(&dir.join("store.lock"))?;
    let volume = {
        let options = RowsOptions {
            cache_bytes: 16 << 20,
            create_with_shards: Some(contents.shards),
            background: true,
        };
        let rows = Rows::open(&beside, options)?;
        let volume = fill(&rows, &contents, &mut input)?;
        rows.database.persist(PersistMode::SyncAll)?;
        volume
    };
    std::fs::rename(beside.join("store"), &place)?;
    File::open(dir)?.sync_all()?;
    std::fs::remove_dir_all(&beside)?;
    Ok((contents, volume))
}

fn fill(rows: &Rows, contents: &Contents, input: &mut impl Read) -> Result<Volume, BackupError> {
    let all = rows.keyspaces();
    let named = |name: &String| all.iter().copied().find(|one| **one.name() == **name);
    let keyspaces: Vec<Option<&Keyspace>> = contents.keyspaces.iter().map(named).collect();
    let (mut volume, mut hashes, mut unflushed) = (Volume::default(), Xxh3::new(), 0);
    loop {
        let length = u32::from_be_bytes(number(input)?);
        if length == 0 {
            break;
        }
        if length > MAX_CHUNK_BYTES {
            return damaged("a length is beyond all measure");
        }
        let hash: [u8; 8] = number(input)?;
        hashes.update(&hash);
        let chunk = exactly(input, length)?;
        if xxh3_64(&chunk).to_be_bytes() != hash {
            return damaged("a part of it is not as it was written");
        }
        let mut rest = &chunk[..];
        let mut batch = rows.database.batch();
        while !rest.is_empty() {
            let Some((keyspace, key, value)) = record(&mut rest) else {
                return damaged("a record is not whole");
            };
            let Some(Some(keyspace)) = keyspaces.get(usize::from(keyspace)) else {
                return damaged("it has rows of a kind that is not known");
            };
            batch.insert(keyspace, key, value);
            volume.records += 1;
            volume.bytes += (key.len() + value.len()) as u64;
        }
        batch.commit()?;
        unflushed += u64::from(length);
        if unflushed >= FLUSH_BYTES {
            unflushed = 0;
            rows.keyspaces().into_iter().try_for_each(Keyspace::rotate_memtable_and_wait)?;
        }
    }
    let (count, digest): ([u8; 8], [u8; 8]) = (number(input)?, number(input)?);
    if u64::from_be_bytes(count) != volume.records || u64::from_be_bytes(digest) != hashes.digest() {
        return damaged("parts of it are missing");
    }
    Ok(volume)
}

#[cfg(test)]
mod tests;
