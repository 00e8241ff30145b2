//! What is kept of each log beside its rows, and trimming.
//!
//! ```text
//! 'c' conversation   the last entry that changes something
//! 'h' conversation   the hint
//! 'l' conversation   there is a log
//! 'r' conversation   for how long it is kept
//! 's' conversation   where it begins, once it was trimmed
//! ```

use convoke_protocol::id::{ConversationId, MessageId, Seq};
use convoke_protocol::request::changes::Retention;
use fjall::{Readable, UserKey};
use futures_util::future::{BoxFuture, FutureExt};
use serde::Serialize;

use super::EmbeddedStore;
use super::database::{Rows, read_error};
use super::groups::encode;
use super::keys::{self, Mark};
use super::queue::{Small, SmallRow};
use crate::storage::values::decode;
use crate::storage::{Hint, LogRow, LogStart, ReadError, ReadLimit, RetentionStore, Tail, WriteError};

pub(super) const CHANGED: u8 = b'c';
pub(super) const HINT: u8 = b'h';
pub(super) const LOG: u8 = b'l';
pub(super) const RETENTION: u8 = b'r';
pub(super) const START: u8 = b's';

/// Rows that one commit of a trim deletes.
const TRIMMED_PER_COMMIT: usize = 1_000;

pub(super) fn key(kind: u8, conversation: &ConversationId) -> UserKey {
    UserKey::from([&[kind], conversation.as_str().as_bytes()].concat())
}

/// Takes a key apart.
pub(super) fn split(key: &[u8]) -> Option<(u8, ConversationId)> {
    let (kind, conversation) = key.split_first()?;
    Some((*kind, ConversationId::new(std::str::from_utf8(conversation).ok()?).ok()?))
}

fn small(kind: u8, conversation: &ConversationId, value: Option<&impl Serialize>) -> SmallRow {
    SmallRow { keyspace: Small::Logs, key: key(kind, conversation), value: value.map(encode) }
}

/// What an append of these rows says about their log, as rows that are written with it.
pub(super) fn rows_of(conversation: &ConversationId, rows: &[LogRow]) -> impl Iterator<Item = SmallRow> {
    let begins = rows.first().is_some_and(|row| row.seq == Seq(1));
    let changed = rows.iter().rev().find(|row| row.entry.change.is_some()).map(|row| row.seq);
    let log = begins.then(|| small(LOG, conversation, Some(&())));
    log.into_iter().chain(changed.map(|seq| small(CHANGED, conversation, Some(&seq))))
}

pub(super) fn read_hint(value: &[u8]) -> Result<Hint, ReadError> {
    let (base, id) = decode::<(Seq, MessageId)>("a hint", value)?;
    Ok(Hint { base, id })
}

pub(super) fn read_start(value: &[u8]) -> Result<LogStart, ReadError> {
    let (seq, ordinal) = decode("where a log begins", value)?;
    Ok(LogStart { seq, ordinal })
}

impl Rows {
    pub(super) fn kept_hint(&self, conversation: &ConversationId) -> Result<Option<Hint>, ReadError> {
        let kept = self.logs.get(key(HINT, conversation)).map_err(read_error)?;
        kept.map(|value| read_hint(&value)).transpose()
    }

    /// The last rows, from the last one down, and the hint that they and what is kept tell.
    fn end(&self, conversation: &ConversationId) -> Result<(Vec<LogRow>, Option<Hint>), ReadError> {
        let mut rows = self.read_back(conversation, Seq::ZERO, Seq(u64::MAX), ReadLimit::rows(1))?;
        let Some(last) = rows.first() else { return Ok((rows, None)) };
        let (last, id, base) = (last.seq, last.id, last.base);
        let changed = self.logs.get(key(CHANGED, conversation)).map_err(read_error)?;
        let changed = changed.map_or(Ok(Seq::ZERO), |value| decode("the last change of a log", &value))?;
        if changed <= base {
            // Nothing of the last batch changes anything: what is durable is all there is.
            return Ok((rows, Some(Hint { base: last, id })));
        }
        let above = usize::try_from(last.0.saturating_sub(base.0)).unwrap_or(usize::MAX).saturating_add(1);
        rows = self.read_back(conversation, Seq::ZERO, last, ReadLimit::rows(above))?;
        let told = Hint::told_by(rows.iter());
        Ok((rows, Hint::higher(self.kept_hint(conversation)?, told)))
    }

    pub(super) fn hint(&self, conversation: &ConversationId) -> Result<Option<Hint>, ReadError> {
        Ok(self.end(conversation)?.1)
    }

    pub(super) fn tail(&self, conversation: &ConversationId) -> Result<Tail, ReadError> {
        let (mut rows, hint) = self.end(conversation)?;
        let last = rows.first().map_or(Seq::ZERO, |row| row.seq);
        let at = hint.map_or(Seq::ZERO, |hint| hint.base);
        let hinted = match rows.iter().position(|row| row.seq == at) {
            Some(place) => Some(rows.swap_remove(place)),
            None => self.read(conversation, at, at, ReadLimit::rows(1))?.pop(),
        };
        Ok(Tail { hinted, settled: last <= at, start: self.start(conversation)? })
    }

    pub(super) fn start(&self, conversation: &ConversationId) -> Result<LogStart, ReadError> {
        let kept = self.logs.get(key(START, conversation)).map_err(read_error)?;
        kept.map_or(Ok(LogStart::default()), |value| read_start(&value))
    }

    /// Rows that go when the log begins at `start`, some of them.
    fn trimmed(&self, conversation: &ConversationId, start: Seq) -> Result<Vec<SmallRow>, ReadError> {
        let snapshot = self.database.snapshot();
        let message = |seq| keys::message(conversation, seq).to_vec();
        let uncounted = |seq| keys::mark(conversation, Mark::Uncounted(seq)).to_vec();
        let ranges = [
            (Small::Messages, &self.messages, message(Seq::ZERO)..message(start)),
            (Small::Reactions, &self.reactions, message(Seq::ZERO)..message(start)),
            (Small::Marks, &self.marks, uncounted(Seq::ZERO)..uncounted(start)),
        ];
        let mut gone = Vec::new();
        for (keyspace, rows, range) in ranges {
            for guard in snapshot.range(rows, range).take(TRIMMED_PER_COMMIT - gone.len()) {
                gone.push(SmallRow { keyspace, key: guard.key().map_err(read_error)?, value: None });
            }
        }
        Ok(gone)
    }

    fn ids<T>(
        &self,
        kind: u8,
        after: Option<&ConversationId>,
        limit: usize,
        read: impl Fn(ConversationId, &[u8]) -> Result<T, ReadError>,
    ) -> Result<Vec<T>, ReadError> {
        let from = match after {
            Some(after) => [&key(kind, after)[..], &[0]].concat(),
            None => vec![kind],
        };
        let one = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(read_error)?;
            let (_, conversation) =
                split(&key).ok_or_else(|| ReadError::Corrupt("a log has a bad key".into()))?;
            read(conversation, &value)
        };
        self.database.snapshot().range(&self.logs, from..vec![kind + 1]).take(limit).map(one).collect()
    }
}

impl EmbeddedStore {
    pub(super) async fn keep_hint(
        &self,
        conversation: &ConversationId,
        hint: Hint,
    ) -> Result<(), WriteError> {
        let id = conversation.clone();
        let kept = self.reading(move |rows| rows.kept_hint(&id)).await;
        if kept.map_err(|error| WriteError(error.to_string()))?.is_some_and(|kept| kept.base >= hint.base) {
            return Ok(());
        }
        self.writing(vec![small(HINT, conversation, Some(&(hint.base, hint.id)))]).await
    }

    pub(super) async fn trim_to(
        &self,
        conversation: &ConversationId,
        start: LogStart,
    ) -> Result<(), WriteError> {
        let failed = |error: ReadError| WriteError(error.to_string());
        let id = conversation.clone();
        let kept = self.reading(move |rows| rows.start(&id)).await.map_err(failed)?;
        if kept > start {
            return Ok(());
        }
        // First where it begins: what is not deleted then, if the process dies, is below and never read.
        if kept < start {
            let begins = small(START, conversation, Some(&(start.seq, start.ordinal)));
            // A log that is copied from another store need not have had a first row here.
            self.writing(vec![begins, small(LOG, conversation, Some(&()))]).await?;
        }
        loop {
            let id = conversation.clone();
            let gone = self.reading(move |rows| rows.trimmed(&id, start.seq)).await.map_err(failed)?;
            if gone.is_empty() {
                return Ok(());
            }
            self.writing(gone).await?;
        }
    }
}

impl RetentionStore for EmbeddedStore {
    fn set_retention<'a>(
        &'a self,
        conversation: &'a ConversationId,
        retention: Option<Retention>,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        self.writing(vec![small(RETENTION, conversation, retention.as_ref())]).boxed()
    }

    fn retention<'a>(
        &'a self,
        conversation: &'a ConversationId,
    ) -> BoxFuture<'a, Result<Option<Retention>, ReadError>> {
        let key = key(RETENTION, conversation);
        self.reading(move |rows| {
            let kept = rows.logs.get(&key).map_err(read_error)?;
            kept.map(|value| decode("a retention", &value)).transpose()
        })
        .boxed()
    }

    fn with_retention<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(ConversationId, Retention)>, ReadError>> {
        let after = after.cloned();
        self.reading(move |rows| {
            rows.ids(RETENTION, after.as_ref(), limit, |id, value| Ok((id, decode("a retention", value)?)))
        })
        .boxed()
    }

    fn logs<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, ReadError>> {
        let after = after.cloned();
        self.reading(move |rows| rows.ids(LOG, after.as_ref(), limit, |id, _| Ok(id))).boxed()
    }
}
