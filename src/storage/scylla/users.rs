//! What belongs to users: lists of conversations, cursors, read marks, settings, what they hid.

use std::collections::HashMap;

use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use convoke_protocol::message::Cursor;
use futures_util::future::{BoxFuture, FutureExt, try_join, try_join_all};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::cql::{Failure, corrupt};
use super::log::count_uncounted;
use super::{ScyllaStore, Shared, WIDTH, bigint, number};
use crate::storage::{
    ConversationIndex, ConversationSettings, CursorStore, HiddenRows, HiddenStore, MarkKey, ReadError,
    ReadMark, ReadMarkStore, RowsAbove, SettingsChange, UserConversationStore, WriteError,
};

/// Keys in one `IN`.
const KEYS: usize = 100;

pub(super) fn conversation_id(text: &str) -> Result<ConversationId, ReadError> {
    ConversationId::new(text).map_err(corrupt)
}

/// A `LIMIT` as the servers take it: positive and an `int`.
pub(super) fn limit(limit: usize) -> i32 {
    i32::try_from(limit).unwrap_or(i32::MAX).max(1)
}

impl Shared {
    pub(super) async fn put_mark(&self, key: MarkKey, mark: ReadMark) -> Result<(), Failure> {
        let values = mark_values(&key.user, &key.conversation, mark);
        self.cql.write(&self.cql.statements.put_mark, values).await
    }
}

/// What `put_mark` takes. The highest stays, in whatever order they arrive.
pub(super) fn mark_values<'a>(
    user: &'a UserId,
    conversation: &'a ConversationId,
    mark: ReadMark,
) -> (&'a str, &'a str, i64, i64, i64) {
    let seq = bigint(mark.seq.0);
    (user.as_str(), conversation.as_str(), seq, bigint(mark.ordinal), seq)
}

impl ConversationIndex for ScyllaStore {
    fn conversations<'a>(
        &'a self,
        user: &'a UserId,
        after: Option<&'a ConversationId>,
        at_most: usize,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, ReadError>> {
        async move {
            // The empty text is below every id.
            let after = after.map_or("", ConversationId::as_str);
            let values = (user.as_str(), after, limit(at_most));
            let rows: Vec<(String,)> = self.cql().rows(&self.cql().statements.listed, values).await?;
            rows.iter().take(at_most).map(|(id,)| conversation_id(id)).collect()
        }
        .boxed()
    }
}

impl CursorStore for ScyllaStore {
    fn put_cursors<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        cursors: &'a [Cursor],
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.is_open()?;
            for cursors in cursors.chunks(KEYS) {
                let values = |cursor: &Cursor| {
                    let seq = bigint(cursor.seq.0);
                    (user.to_string(), device.to_string(), cursor.conversation.to_string(), seq, seq)
                };
                self.cursors.put(cursors.iter().map(values).collect()).await?;
            }
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
        async move {
            let mut kept: HashMap<String, i64> = HashMap::new();
            for ids in conversations.chunks(KEYS) {
                let ids: Vec<&str> = ids.iter().map(ConversationId::as_str).collect();
                let values = (user.as_str(), device.as_str(), ids);
                let rows: Vec<(String, i64)> =
                    self.cql().rows(&self.cql().statements.cursors, values).await?;
                kept.extend(rows);
            }
            let found = conversations.iter().filter_map(|conversation| {
                let seq = *kept.get(conversation.as_str())?;
                Some(Cursor { conversation: conversation.clone(), seq: Seq(number(seq)) })
            });
            Ok(found.collect())
        }
        .boxed()
    }
}

impl ScyllaStore {
    /// The marks of one user, by conversation.
    async fn marks_of(
        &self,
        user: &UserId,
        conversations: &[&str],
    ) -> Result<HashMap<String, ReadMark>, ReadError> {
        let mut found = HashMap::new();
        for ids in conversations.chunks(KEYS) {
            let rows: Vec<(String, i64, i64)> =
                self.cql().rows(&self.cql().statements.marks, (user.as_str(), ids)).await?;
            found.extend(rows.into_iter().map(|(id, seq, ordinal)| {
                (id, ReadMark { seq: Seq(number(seq)), ordinal: number(ordinal) })
            }));
        }
        Ok(found)
    }
}

impl ReadMarkStore for ScyllaStore {
    fn put_marks<'a>(&'a self, marks: &'a [(MarkKey, ReadMark)]) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.is_open()?;
            for marks in marks.chunks(WIDTH) {
                together(marks.iter().map(|(key, mark)| self.shared.put_mark(key.clone(), *mark))).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn marks<'a>(&'a self, of: &'a [MarkKey]) -> BoxFuture<'a, Result<Vec<ReadMark>, ReadError>> {
        async move {
            let mut by_user: HashMap<&UserId, Vec<&str>> = HashMap::new();
            for key in of {
                by_user.entry(&key.user).or_default().push(key.conversation.as_str());
            }
            let (users, ids): (Vec<&UserId>, Vec<Vec<&str>>) = by_user.into_iter().unzip();
            let mut reads = Vec::with_capacity(users.len());
            for (user, ids) in users.iter().zip(&ids) {
                reads.push(self.marks_of(user, ids));
            }
            let marks: Vec<_> = stream::iter(reads).buffered(WIDTH).try_collect().await?;
            let found: HashMap<&UserId, _> = users.into_iter().zip(marks).collect();
            let mark = |key: &MarkKey| found.get(&key.user)?.get(key.conversation.as_str()).copied();
            Ok(of.iter().map(|key| mark(key).unwrap_or_default()).collect())
        }
        .boxed()
    }

    fn uncounted<'a>(&'a self, ranges: &'a [RowsAbove]) -> BoxFuture<'a, Result<Vec<u64>, ReadError>> {
        stream::iter(ranges)
            .map(|range| count_uncounted(self.cql(), &range.conversation, range.after, range.to))
            .buffered(WIDTH)
            .try_collect()
            .boxed()
    }
}

impl UserConversationStore for ScyllaStore {
    fn set_conversation<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        change: &'a SettingsChange,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.is_open()?;
            let (cql, all) = (self.cql(), &self.cql().statements);
            let (user, id, now) = (user.as_str(), conversation.as_str(), self.shared.now_micros());
            let label = async {
                match &change.label {
                    Some(label) => cql.write(&all.put_label, (user, id, label.as_str(), now)).await,
                    None => Ok(()),
                }
            };
            let muted = async {
                match change.muted {
                    Some(muted) => cql.write(&all.put_muted, (user, id, muted, now)).await,
                    None => Ok(()),
                }
            };
            let pinned = async {
                match change.pinned {
                    Some(pinned) => cql.write(&all.put_pinned, (user, id, pinned, now)).await,
                    None => Ok(()),
                }
            };
            try_join(label, try_join(muted, pinned)).await?;
            Ok(())
        }
        .boxed()
    }

    fn settings<'a>(
        &'a self,
        user: &'a UserId,
        at_most: usize,
    ) -> BoxFuture<'a, Result<Vec<(ConversationId, ConversationSettings)>, ReadError>> {
        async move {
            type Kept = (String, Option<String>, Option<bool>, Option<bool>);
            let rows: Vec<Kept> =
                self.cql().rows(&self.cql().statements.settings, (user.as_str(), limit(at_most))).await?;
            let settings = |(id, label, muted, pinned): Kept| {
                let settings = ConversationSettings {
                    label: label.filter(|label| !label.is_empty()),
                    muted: muted.unwrap_or_default(),
                    pinned: pinned.unwrap_or_default(),
                };
                Ok((conversation_id(&id)?, settings))
            };
            rows.into_iter().take(at_most).map(settings).collect()
        }
        .boxed()
    }
}

impl HiddenStore for ScyllaStore {
    fn hide<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        rows: &'a HiddenRows,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.is_open()?;
            let (cql, user, id) = (self.cql(), user.as_str(), conversation.as_str());
            for seqs in rows.seqs.chunks(KEYS) {
                let values: Vec<_> =
                    seqs.iter().map(|seq| (user, id, bigint(seq.0), bigint(seq.0))).collect();
                cql.write_all(&cql.statements.hide_row, &values).await?;
            }
            if rows.up_to > Seq::ZERO {
                let up_to = bigint(rows.up_to.0);
                cql.write(&cql.statements.hide_up_to, (up_to, up_to, user, id)).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn are_hidden<'a>(
        &'a self,
        user: &'a UserId,
        messages: &'a [(ConversationId, Seq)],
    ) -> BoxFuture<'a, Result<Vec<bool>, ReadError>> {
        stream::iter(messages)
            .map(move |(conversation, seq)| async move {
                Ok(self.hidden(user, conversation, *seq, *seq).await?.has(*seq))
            })
            .buffered(WIDTH)
            .try_collect()
            .boxed()
    }

    fn hidden<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'a, Result<HiddenRows, ReadError>> {
        async move {
            let (cql, user, id) = (self.cql(), user.as_str(), conversation.as_str());
            let row: Option<(Option<i64>,)> = cql.row(&cql.statements.hidden_up_to, (user, id)).await?;
            let up_to = Seq(row.and_then(|(up_to,)| up_to).map_or(0, number));
            let from = from.max(up_to.next());
            if from > to {
                return Ok(HiddenRows { up_to, seqs: Vec::new() });
            }
            Ok(HiddenRows { up_to, seqs: self.hidden_between(user, id, from, to).await? })
        }
        .boxed()
    }
}

impl ScyllaStore {
    async fn hidden_between(&self, user: &str, id: &str, from: Seq, to: Seq) -> Result<Vec<Seq>, ReadError> {
        let values = (user, id, bigint(from.0), bigint(to.0));
        // A partition with no message has one row without a seq.
        let rows: Vec<(Option<i64>,)> = self.cql().rows(&self.cql().statements.hidden_rows, values).await?;
        Ok(rows.into_iter().filter_map(|(seq,)| seq).map(|seq| Seq(number(seq))).collect())
    }

    /// Every message that was hidden on its own, those below the place up to which all is hidden included.
    pub(super) async fn all_hidden(
        &self,
        user: &UserId,
        conversation: &ConversationId,
    ) -> Result<Vec<Seq>, ReadError> {
        self.hidden_between(user.as_str(), conversation.as_str(), Seq::ZERO, Seq(u64::MAX)).await
    }
}

/// Runs statements beside each other.
pub(super) async fn together<F>(writes: impl IntoIterator<Item = F>) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    try_join_all(writes).await.map(drop)
}
