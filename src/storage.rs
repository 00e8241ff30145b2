//! What is kept, and the contract of those who keep it.
//!
//! One trait per concern; the docs of each method are the specification that `storage::conformance` checks on every
//! implementation: [`memory`] (the reference), [`embedded`] (one node, fjall), and [`faulty`], which wraps any of them
//! and injects errors, delays and unknown outcomes.
//!
//! # Invariants
//! - `append` answers `Ok` only after the rows are durable.
//! - No read shows a row before its write is durable.
//! - Nothing in this module knows actors or sockets.

pub mod change;
pub mod check;
pub mod conformance;
pub mod copy;
pub mod embedded;
pub mod faulty;
pub mod groups;
pub mod hidden;
pub mod memory;
pub mod reactions;
pub mod read_marks;
pub mod redis;
pub mod retention;
pub mod row;
pub mod scylla;
pub mod stats;
pub mod user_conversations;
mod values;
pub mod walk;

use std::sync::Arc;

use convoke_protocol::id::{ConversationId, DeviceId, MessageId, Seq, UserId};
use convoke_protocol::message::Cursor;
use futures_util::future::BoxFuture;

pub use change::{Change, Projection, ReactionRow};
pub use groups::{GroupRow, GroupStore, JoinRequestRow, Left, MemberRow};
pub use hidden::{HiddenRows, HiddenStore};
pub use reactions::{ReactionCounts, ReactionStore};
pub use read_marks::{MarkKey, ReadMark, ReadMarkStore, RowsAbove};
pub use retention::{LogStart, RetentionStore};
pub use row::{Entry, Epoch, LogRow, WriteStamp};
pub use user_conversations::{ConversationSettings, SettingsChange, UserConversationStore};

/// Why an append did not answer `Ok`, and so whether its rows may be there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The writer's queue is at its bound. Nothing was stored; try again later.
    #[error("the store's queue is full")]
    Overloaded,
    /// Nothing was stored, and nothing will be by this call.
    #[error("not stored: {0}")]
    NotStored(String),
    /// It may be stored now or become so later: only the same rows with the same stamp may be written again.
    #[error("perhaps stored: {0}")]
    Unknown(String),
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store cannot be reached or is overloaded; try again later.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// What is stored cannot be understood; trying again does not help.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
}

/// Why a small write (an index, a cursor) failed. All of them may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not written: {0}")]
pub struct WriteError(pub String);

/// Rows of one conversation to be written as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The conversation.
    pub conversation: ConversationId,
    /// Rising, without a gap between them.
    pub rows: Vec<LogRow>,
    /// Which of two writes of one row wins: the higher.
    pub stamp: WriteStamp,
    /// Users in whose list of conversations this one must be, not later than the rows. Given with the first message
    /// of a direct conversation; idempotent.
    pub listed_for: Vec<UserId>,
}

/// How an append tells its end: called exactly once, from any thread; must not block.
pub type AppendDone = Box<dyn FnOnce(Result<(), AppendError>) + Send>;

/// A confirmed place of a log from which a new owner begins its scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// A seq known to be confirmed.
    pub base: Seq,
    /// The id of the message with that seq.
    pub id: MessageId,
}

impl Hint {
    /// The higher of two.
    pub(crate) fn higher(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        one.into_iter().chain(other).max_by_key(|hint| hint.base)
    }

    /// What the rows of a log that has one permanent owner tell, from the last one down: what is durable is confirmed, but
    /// what the entries above the last row's base change may not be written yet. So it is the last row, or the one before
    /// the first of those that changes something.
    pub(crate) fn told_by<R: std::borrow::Borrow<LogRow>>(rows: impl Iterator<Item = R>) -> Option<Self> {
        let hint = |row: &LogRow| Self { base: row.seq, id: row.id };
        let mut told: Option<Self> = None;
        let mut base = None;
        for row in rows {
            let row = row.borrow();
            let base = *base.get_or_insert(row.base);
            if row.seq <= base {
                return told.or_else(|| Some(hint(row)));
            }
            told = match row.entry.change {
                Some(_) => None,
                None => told.or_else(|| Some(hint(row))),
            };
        }
        told
    }
}

/// The two ends of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tail {
    /// The row that the hint names; `None` without a hint.
    pub hinted: Option<LogRow>,
    /// Whether no row lies above the hint: then the hinted row is the head. Otherwise only the owner knows the head.
    pub settled: bool,
    /// Where the log begins.
    pub start: LogStart,
}

/// How much a read returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// At most so many rows.
    pub rows: usize,
    /// It stops after the row with which the bodies reach so many bytes. One row is always returned, whatever the limit.
    pub bytes: usize,
}

impl ReadLimit {
    /// No more than so many rows, whatever their bodies have.
    pub const fn rows(rows: usize) -> Self {
        Self { rows, bytes: usize::MAX }
    }

    /// What is left of the limit while a read goes on.
    pub(crate) const fn budget(self) -> ReadBudget {
        ReadBudget { rows: self.rows, bytes: self.bytes }
    }
}

/// What a read may still return.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadBudget {
    rows: usize,
    bytes: usize,
}

impl ReadBudget {
    /// Counts a row that is returned; says whether another may follow.
    pub(crate) fn take(&mut self, row: &LogRow) -> bool {
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(row.entry.content.body.len());
        self.rows > 0 && self.bytes > 0
    }
}

/// The logs of the conversations.
pub trait MessageLog: Send + Sync + 'static {
    /// Writes rows; `done` learns the outcome.
    ///
    /// - `Ok` means that all rows (and the lists of `listed_for`) are durable at the store's write level.
    /// - The rows of one append are all there or none of them, whenever the process dies (a store that spreads rows over
    ///   partitions may keep a part; the reader tells by [`LogRow::prev`]).
    /// - Writing the same rows with the same stamp again changes nothing.
    /// - Of two writes of one row the one with the higher stamp stays. The embedded store has one owner that writes in
    ///   the order of its stamps, and relies on it.
    /// - Appends of one caller to one conversation take effect in the order of the calls.
    /// - An append without rows stores nothing and ends after every append that was called before it: a barrier.
    /// - With the rows the marks of their senders move ([`ReadMarkStore`]), as durable as the rows.
    /// - `done` is called exactly once, also when the store is shut down.
    fn append(&self, append: Append, done: AppendDone);

    /// Writes what committed entries change; `done` learns the outcome, as with [`Self::append`].
    ///
    /// - `Ok` means that all of it is durable. A part of it may be there without the rest if the process dies.
    /// - Writing the same with the same stamp again changes nothing; of two writes of one place the one with the higher
    ///   stamp stays.
    /// - It takes effect after the appends and projections of this conversation that were called before it.
    /// - A row that [`LogRow::is_uncounted`] counts as such in [`ReadMarkStore::uncounted`] from then on.
    /// - A member that is not one who left ends the request to join of that user ([`GroupStore::join_requests`]).
    fn project(&self, projection: Projection, done: AppendDone);

    /// The place from which a new owner scans: confirmed, with all that the entries up to it change, and as high as is known.
    /// `None` for a log without one: the scan begins with the first row.
    fn hint<'a>(&'a self, conversation: &'a ConversationId)
    -> BoxFuture<'a, Result<Option<Hint>, ReadError>>;

    /// Keeps a hint; one that is lower than what is kept changes nothing. Durable with `Ok`.
    fn put_hint<'a>(
        &'a self,
        conversation: &'a ConversationId,
        hint: Hint,
        stamp: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>>;

    /// The ends of several logs, in the order of the ids.
    fn tails<'a>(
        &'a self,
        conversations: &'a [ConversationId],
    ) -> BoxFuture<'a, Result<Vec<Tail>, ReadError>>;

    /// The rows with seq in `from..=to` that are there, in rising order, at most `limit`. A missing row is left out.
    fn read<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>>;

    /// The same rows from above: the highest of `from..=to` first, in falling order.
    fn read_back<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>>;

    /// Where the log begins.
    fn start<'a>(&'a self, conversation: &'a ConversationId) -> BoxFuture<'a, Result<LogStart, ReadError>>;

    /// Deletes the rows below `start`, with all that belongs to them (reactions, what is uncounted), and keeps where the log
    /// begins; a start that is not above what is kept changes nothing. The caller sees to it that a durable hint and the
    /// dedup window lie at or above it. Durable with `Ok`; after an error a part may be gone, and it may be repeated. The
    /// log is there from then on ([`RetentionStore::logs`]), whether or not it ever had a first row.
    fn trim<'a>(
        &'a self,
        conversation: &'a ConversationId,
        start: LogStart,
        stamp: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>>;
}

/// Which conversations a user has.
pub trait ConversationIndex: Send + Sync + 'static {
    /// The conversations of `user` whose id is above `after`, by id (bytes), at most `limit`.
    fn conversations<'a>(
        &'a self,
        user: &'a UserId,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, ReadError>>;

    /// Those of them in which something changed since `since`, the token of an earlier answer: a row was appended, or written over by
    /// a projection, or the mark moved that the user put. Of a group it is not known: all of them are told. A log's new
    /// beginning ([`MessageLog::trim`]) is no change.
    ///
    /// - What is durable after this call began is told by a later call with the answer's token, whether or not it is told now.
    /// - Without a token, and with one that is not known (any more), all conversations are told.
    /// - A token holds over restarts of the store. A copy that went another way does not know it.
    fn changed<'a>(
        &'a self,
        user: &'a UserId,
        _since: Option<&'a str>,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Changed, ReadError>> {
        Box::pin(async move {
            let conversations = self.conversations(user, after, limit).await?;
            Ok(Changed { token: None, all: true, conversations })
        })
    }
}

/// Conversations of a user that may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// To be asked with the next time; `None` where no account is kept. At most
    /// [`MAX_SYNC_TOKEN_BYTES`](convoke_protocol::request::sync::MAX_SYNC_TOKEN_BYTES).
    pub token: Option<String>,
    /// Whether these are all conversations of the user, changed or not.
    pub all: bool,
    /// By id (bytes).
    pub conversations: Vec<ConversationId>,
}

/// How far each device has each conversation.
pub trait CursorStore: Send + Sync + 'static {
    /// Keeps the cursors; one that is lower than what is kept changes nothing. `Ok` once readable by [`Self::cursors`];
    /// durability may lag behind (a lost cursor costs a client a repeated page, never a message).
    fn put_cursors<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        cursors: &'a [Cursor],
    ) -> BoxFuture<'a, Result<(), WriteError>>;

    /// The device's cursors of the given conversations; one that was never kept is left out.
    fn cursors<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        conversations: &'a [ConversationId],
    ) -> BoxFuture<'a, Result<Vec<Cursor>, ReadError>>;
}

/// Whether a store can do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Reads and writes work.
    Good,
    /// Writes fail until the process is restarted; reads go on. Says why.
    Poisoned(String),
}

/// The stores of a node.
#[derive(Clone)]
pub struct Stores {
    /// The logs.
    pub log: Arc<dyn MessageLog>,
    /// The lists of conversations.
    pub index: Arc<dyn ConversationIndex>,
    /// The devices' cursors.
    pub cursors: Arc<dyn CursorStore>,
    /// How far users have read.
    pub marks: Arc<dyn ReadMarkStore>,
    /// How users want their conversations.
    pub settings: Arc<dyn UserConversationStore>,
    /// The groups.
    pub groups: Arc<dyn GroupStore>,
    /// The reactions.
    pub reactions: Arc<dyn ReactionStore>,
    /// What users hid.
    pub hidden: Arc<dyn HiddenStore>,
    /// For how long conversations are kept.
    pub retention: Arc<dyn RetentionStore>,
}

impl Stores {
    /// One store that is all of them.
    pub fn of<S>(store: Arc<S>) -> Self
    where
        S: MessageLog
            + ConversationIndex
            + CursorStore
            + ReadMarkStore
            + UserConversationStore
            + GroupStore
            + ReactionStore
            + HiddenStore
            + RetentionStore,
    {
        Self {
            log: store.clone(),
            index: store.clone(),
            cursors: store.clone(),
            marks: store.clone(),
            settings: store.clone(),
            groups: store.clone(),
            reactions: store.clone(),
            hidden: store.clone(),
            retention: store,
        }
    }
}
