//! What the store says about itself, in rows that every version can read: plain text under fixed keys.

use fjall::{Database, Keyspace, OwnedWriteBatch, PersistMode};

use super::OpenError;
use super::changes::Lives;
use crate::storage::Epoch;

/// The format that this version writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;

const VERSION: &str = "format.version";
const CREATED_BY: &str = "format.created_by";
const SHARDS: &str = "format.shards";
const EPOCH: &str = "owner.epoch";
const LIVES: &str = "owner.lives";

/// What is written when a store is created, and never changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// The version of the layout.
    pub version: u32,
    /// The program that created the store.
    pub created_by: String,
    /// Into how many shards the ids are divided.
    pub shards: u32,
}

impl Format {
    /// What a new store says.
    pub(super) fn new(shards: u32) -> Self {
        Self {
            version: FORMAT_VERSION,
            created_by: concat!("convoke ", env!("CARGO_PKG_VERSION")).into(),
            shards,
        }
    }

    /// Adds the rows to the batch that creates the store.
    pub(super) fn write(&self, batch: &mut OwnedWriteBatch, meta: &Keyspace) {
        batch.insert(meta, VERSION, self.version.to_string().as_str());
        batch.insert(meta, CREATED_BY, self.created_by.as_str());
        batch.insert(meta, SHARDS, self.shards.to_string().as_str());
    }

    /// Reads the rows.
    ///
    /// # Errors
    /// They cannot be read, or another version wrote them.
    pub(super) fn read(meta: &Keyspace) -> Result<Self, OpenError> {
        let version = text(meta, VERSION)?;
        if version != FORMAT_VERSION.to_string() {
            return Err(OpenError::UnknownFormat { found: version, known: FORMAT_VERSION });
        }
        let shards = text(meta, SHARDS)?;
        let shards = shards.parse().map_err(|_| damaged(SHARDS, &shards))?;
        Ok(Self { version: FORMAT_VERSION, created_by: text(meta, CREATED_BY)?, shards })
    }
}

/// Begins the next epoch: the node that opens the store is its one owner until the next one opens it. Durable when it
/// returns, so that no two runs of a node write with the same epoch. Also begins a life with this random number.
pub(super) fn begin_epoch(
    database: &Database,
    meta: &Keyspace,
    number: u64,
) -> Result<(Epoch, Lives), OpenError> {
    let before = match meta.get(EPOCH)? {
        None => 0,
        Some(_) => {
            let text = text(meta, EPOCH)?;
            text.parse().map_err(|_| damaged(EPOCH, &text))?
        }
    };
    let epoch = Epoch(before + 1);
    let mut lives = match meta.get(LIVES)? {
        None => Lives::default(),
        Some(_) => Lives::read(&text(meta, LIVES)?),
    };
    lives.begin(epoch, number);
    let mut batch = database.batch().durability(Some(PersistMode::SyncData));
    batch.insert(meta, EPOCH, epoch.0.to_string().as_str());
    batch.insert(meta, LIVES, lives.write().as_str());
    batch.commit()?;
    Ok((epoch, lives))
}

fn text(meta: &Keyspace, key: &str) -> Result<String, OpenError> {
    let value = meta.get(key)?.ok_or_else(|| damaged(key, "nothing"))?;
    String::from_utf8(value.to_vec()).map_err(|_| damaged(key, "no text"))
}

fn damaged(key: &str, found: &str) -> OpenError {
    OpenError::Damaged(format!("{key} is {found:?}"))
}
