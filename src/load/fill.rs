//! `bench fill`: a data directory with many messages, written through the embedded store as a node writes it.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, ContentType, MessageKind, Priority};
use tokio::sync::{Semaphore, oneshot};

use super::LoadError;
use crate::clock::Clock;
use crate::storage::embedded::{EmbeddedConfig, EmbeddedStore};
use crate::storage::row::NO_MESSAGE;
use crate::storage::{Append, Entry, LogRow, MessageLog as _, WriteStamp};

/// Rows of one append.
const BATCH: u64 = 1_000;

/// Appends on their way at one time.
const APPENDS: usize = 16;

/// Bytes of each body.
const BODY_BYTES: usize = 128;

/// What a filled directory says when it stays open.
pub(super) const FILLED: &str = "filled";

/// A store that is being filled.
pub(super) struct Filling {
    store: Arc<EmbeddedStore>,
    room: Arc<Semaphore>,
    began: Timestamp,
    body: Bytes,
    next_id: u64,
}

impl Filling {
    /// Opens or creates the store of a data directory.
    pub(super) fn open(data: &Path) -> Result<Self, LoadError> {
        let failed = |error: &dyn std::fmt::Display| LoadError::Fill(error.to_string());
        std::fs::create_dir_all(data).map_err(LoadError::file(data))?;
        // As a node has it by default: what a start after a crash reads again is bounded by this.
        let memtable_bytes = crate::config::storage::Storage::default().memtable_bytes;
        let config = EmbeddedConfig { memtable_bytes, ..EmbeddedConfig::default() };
        let store = EmbeddedStore::open(data, config).map_err(|error| failed(&error))?;
        Ok(Self {
            store: Arc::new(store),
            room: Arc::new(Semaphore::new(APPENDS)),
            began: Clock::new(0).wall(),
            body: Bytes::from(vec![b'x'; BODY_BYTES]),
            next_id: 1,
        })
    }

    fn row(&mut self, users: &[UserId], before: Option<&LogRow>, base: Seq) -> LogRow {
        let seq = before.map_or(Seq(1), |row| row.seq.next());
        let id = self.next_id;
        self.next_id += 1;
        let uuid = |kind: u64| uuid::Uuid::from_u64_pair(kind, id);
        LogRow {
            seq,
            id: MessageId(uuid(1)),
            prev: before.map_or(NO_MESSAGE, |row| row.id),
            epoch: self.store.epoch(),
            base,
            // What was filled in was sent long ago: no retry of it will come.
            window: Seq(base.0.max(1)),
            entry: Entry {
                sender: users[usize::try_from(seq.0).unwrap_or_default() % users.len()].clone(),
                device: DeviceId::new("fill").expect("a valid name"),
                client_id: ClientId(uuid(2)),
                // A message a second, the last one now.
                time: Timestamp(self.began.0.saturating_sub(1 << 32) + seq.0 * 1_000),
                kind: MessageKind::USER,
                flags: 0,
                priority: Priority::NORMAL,
                content: Content { content_type: ContentType::text(), body: self.body.clone() },
                reply_to: None,
                previous: None,
                ordinal: seq.0,
                edited_at: None,
                recalled_at: None,
                deleted_at: None,
                last_edit: None,
                change: None,
            },
        }
    }

    /// Writes a conversation of so many messages.
    pub(super) async fn conversation(&mut self, id: &ConversationId, messages: u64) -> Result<(), LoadError> {
        let users = id.direct_users();
        let mut before: Option<LogRow> = None;
        let mut left = messages;
        while left > 0 {
            let count = left.min(BATCH);
            left -= count;
            let base = before.as_ref().map_or(Seq::ZERO, |row| row.seq);
            let mut rows = Vec::with_capacity(usize::try_from(count).unwrap_or_default());
            for _ in 0..count {
                let row = self.row(&users, before.as_ref(), base);
                before = Some(row.clone());
                rows.push(row);
            }
            let listed_for = if base == Seq::ZERO { users.clone() } else { Vec::new() };
            let stamp = WriteStamp::new(self.store.epoch(), 0);
            let append = Append { conversation: id.clone(), rows, stamp, listed_for };
            let permit = self.room.clone().acquire_owned().await;
            let permit = permit.map_err(|_| LoadError::Fill("the store failed".into()))?;
            let room = self.room.clone();
            let done = move |result: Result<(), crate::storage::AppendError>| {
                drop(permit);
                if result.is_err() {
                    // Whoever waits for room learns that there will be none.
                    room.close();
                }
            };
            self.store.append(append, Box::new(done));
        }
        Ok(())
    }

    /// Waits until all is durable.
    pub(super) async fn settle(&self) -> Result<(), LoadError> {
        let all = u32::try_from(APPENDS).unwrap_or(u32::MAX);
        let settled = self.room.acquire_many(all).await;
        settled.map(drop).map_err(|_| LoadError::Fill("the store failed".into()))
    }

    /// Closes the store.
    pub(super) async fn close(self) -> Result<(), LoadError> {
        self.settle().await?;
        self.store.shutdown().await;
        Ok(())
    }
}

/// The conversation with this number, of two users of its own.
fn pair(n: u32) -> ConversationId {
    let user = |side: &str| UserId::new(&format!("fill-{n}-{side}")).expect("a valid name");
    ConversationId::direct(&user("a"), &user("b"))
}

/// Fills a data directory.
///
/// # Errors
/// It cannot be opened or written.
pub fn run(data: &Path, messages: u64, conversations: u32, stay: bool) -> Result<(), LoadError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(LoadError::doing("starting a runtime"))?;
    runtime.block_on(async {
        let mut filling = Filling::open(data)?;
        for n in 0..conversations {
            let (all, n64) = (u64::from(conversations), u64::from(n));
            let count = messages * (n64 + 1) / all - messages * n64 / all;
            filling.conversation(&pair(n), count).await?;
        }
        if !stay {
            return filling.close().await;
        }
        filling.settle().await?;
        let mut out = std::io::stdout();
        writeln!(out, "{FILLED}").and_then(|()| out.flush()).map_err(LoadError::doing("saying so"))?;
        // Until it is killed.
        let (_never, wait) = oneshot::channel::<()>();
        let _ = wait.await;
        Ok(())
    })
}
