//! The logs: rows in buckets, what belongs to them, and their two ends.

use std::ops::ControlFlow;

use bytes::Bytes;
use convoke_protocol::id::{ConversationId, MessageId, Seq};
use futures_util::future::{BoxFuture, FutureExt, try_join, try_join_all};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::cql::{Cql, Failure};
use super::retention::LOG_PARTS;
use super::users::mark_values;
use super::writer::Job;
use super::{BUCKET, ScyllaStore, Shared, WIDTH, bigint, bucket_of, number, part_of};
use crate::storage::{
    Append, AppendDone, AppendError, Hint, LogRow, LogStart, MarkKey, MessageLog, Projection, ReadBudget,
    ReadError, ReadLimit, Tail, WriteError, WriteStamp, read_marks, values,
};

/// Bytes of rows in one batch; a single row may have more.
const BATCH_BYTES: usize = 1 << 20;
/// Rows in one page of an answer.
const PAGE_ROWS: usize = 100;
/// Messages in one partition of what does not count as unread.
const UNCOUNTED_BUCKET: u64 = 1_000_000;

fn uncounted_bucket(seq: Seq) -> i64 {
    bigint(seq.0 / UNCOUNTED_BUCKET)
}

/// How a hint is kept.
fn hint_value(hint: Hint) -> Vec<u8> {
    [&hint.base.0.to_be_bytes()[..], hint.id.0.as_bytes()].concat()
}

fn hint_of(value: &[u8]) -> Option<Hint> {
    let (base, id) = value.split_first_chunk::<8>()?;
    let id = uuid::Uuid::from_slice(id).ok()?;
    Some(Hint { base: Seq(u64::from_be_bytes(*base)), id: MessageId(id) })
}

/// How a start is kept.
fn start_value(start: LogStart) -> Vec<u8> {
    [start.seq.0.to_be_bytes(), start.ordinal.to_be_bytes()].concat()
}

fn start_of(value: &[u8]) -> Option<LogStart> {
    let (seq, ordinal) = value.split_first_chunk::<8>()?;
    let ordinal = u64::from_be_bytes(ordinal.try_into().ok()?);
    Some(LogStart { seq: Seq(u64::from_be_bytes(*seq)), ordinal })
}

impl Shared {
    pub(super) async fn perform(&self, job: Job) -> Result<(), AppendError> {
        match job {
            Job::Append(append) => self.append(append).await,
            Job::Project(projection) => self.project(projection).await,
        }
    }

    async fn append(&self, append: Append) -> Result<(), AppendError> {
        let Append { conversation, rows, stamp, listed_for } = append;
        let (cql, stamp) = (&self.cql, bigint(stamp.0));
        let id = conversation.as_str();
        let logged = async {
            if rows.first().is_some_and(|row| row.seq == Seq(1)) {
                cql.write(&cql.statements.put_log, (part_of(id, LOG_PARTS), id, stamp)).await?;
            }
            Ok(())
        };
        let listed =
            listed_for.iter().map(|user| cql.write(&cql.statements.put_listed, (user.as_str(), id, stamp)));
        // Before the rows: no row is ever there of which nobody could know.
        try_join(logged, try_join_all(listed)).await?;
        self.write_rows(&conversation, &rows, stamp).await?;
        Ok(())
    }

    /// Writes rows, what they say about unread messages, and their senders' marks.
    pub(super) async fn write_rows(
        &self,
        conversation: &ConversationId,
        rows: &[LogRow],
        stamp: i64,
    ) -> Result<(), Failure> {
        let (cql, id) = (&self.cql, conversation.as_str());
        let moved = read_marks::moved_by(rows);
        if let ([row], [(user, mark)]) = (rows, &moved[..])
            && !row.is_uncounted()
        {
            // What most appends are when there is no hurry: one request.
            let value = values::encode_row(row);
            let values = (row_values(id, row.seq, &value, stamp), mark_values(user, conversation, *mark));
            return cql.write_both([&cql.statements.put_row, &cql.statements.put_mark], values).await;
        }
        let log = async {
            for batch in batches(rows) {
                let values: Vec<_> =
                    batch.iter().map(|(row, value)| row_values(id, row.seq, value, stamp)).collect();
                cql.write_all(&cql.statements.put_row, &values).await?;
            }
            Ok(())
        };
        let uncounted = rows.iter().filter(|row| row.is_uncounted()).map(|row| {
            let values = (id, uncounted_bucket(row.seq), bigint(row.seq.0), stamp);
            cql.write(&cql.statements.put_uncounted, values)
        });
        let marks = moved.into_iter().map(|(user, mark)| {
            self.put_mark(MarkKey { user: user.clone(), conversation: conversation.clone() }, mark)
        });
        try_join(log, try_join(try_join_all(uncounted), try_join_all(marks))).await.map(drop)
    }
}

/// What `put_row` takes.
fn row_values<'a>(id: &'a str, seq: Seq, value: &'a [u8], stamp: i64) -> (&'a str, i64, i64, &'a [u8], i64) {
    (id, bucket_of(seq), bigint(seq.0), value, stamp)
}

/// Rows with their values, in batches of one partition each.
fn batches(rows: &[LogRow]) -> Vec<Vec<(&LogRow, Vec<u8>)>> {
    let mut batches: Vec<Vec<(&LogRow, Vec<u8>)>> = Vec::new();
    let mut bytes = 0;
    for row in rows {
        let value = values::encode_row(row);
        let fits = batches.last().and_then(|batch| batch.last()).is_some_and(|(last, _)| {
            bucket_of(last.seq) == bucket_of(row.seq) && bytes + value.len() <= BATCH_BYTES
        });
        if !fits {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += value.len();
        if let Some(batch) = batches.last_mut() {
            batch.push((row, value));
        }
    }
    batches
}

/// Rows that a read has found.
struct Found {
    rows: Vec<LogRow>,
    budget: ReadBudget,
    full: bool,
    page_rows: i32,
}

impl Found {
    fn new(limit: ReadLimit) -> Self {
        // At most `PAGE_ROWS`.
        let page_rows = limit.rows.clamp(1, PAGE_ROWS) as i32;
        Self { rows: Vec::new(), budget: limit.budget(), full: false, page_rows }
    }

    fn take(&mut self, seq: i64, value: &[u8]) -> Result<ControlFlow<()>, ReadError> {
        let seq = Seq(number(seq));
        let row =
            values::decode_row(seq, value).map_err(|why| ReadError::Corrupt(format!("row {seq}: {why}")))?;
        self.full = !self.budget.take(&row);
        self.rows.push(row);
        Ok(if self.full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

impl ScyllaStore {
    /// Reads what a bucket has of `from..=to`; says whether that was anything.
    async fn read_bucket(
        &self,
        conversation: &ConversationId,
        (from, to): (u64, u64),
        up: bool,
        found: &mut Found,
    ) -> Result<bool, ReadError> {
        let statements = &self.cql().statements;
        let mut statement = if up { statements.rows_up.clone() } else { statements.rows_down.clone() };
        statement.set_page_size(found.page_rows);
        let before = found.rows.len();
        let values = (conversation.as_str(), bucket_of(Seq(from)), bigint(from), bigint(to));
        self.cql().for_each(&statement, values, |(seq, value): (i64, Bytes)| found.take(seq, &value)).await?;
        Ok(found.rows.len() > before)
    }

    async fn read_up(
        &self,
        conversation: &ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<LogRow>, ReadError> {
        let mut found = Found::new(limit);
        let (mut from, to) = (from.0.max(1), to.0.min(i64::MAX as u64));
        let mut looked_for_start = false;
        while from <= to {
            let end = to.min(from / BUCKET * BUCKET + (BUCKET - 1));
            let any = self.read_bucket(conversation, (from, end), true, &mut found).await?;
            if found.full {
                break;
            }
            from = end + 1;
            if !any {
                // The end of the log, or what is before its start.
                if looked_for_start || !found.rows.is_empty() {
                    break;
                }
                looked_for_start = true;
                let start = self.log_start(conversation).await?;
                if start.seq.0 < from {
                    break;
                }
                from = start.seq.0;
            }
        }
        Ok(found.rows)
    }

    async fn read_down(
        &self,
        conversation: &ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> Result<Vec<LogRow>, ReadError> {
        let mut found = Found::new(limit);
        let from = from.0.max(1);
        let mut to = to.0.min(i64::MAX as u64);
        let mut looked_for_end = false;
        while from <= to {
            let end = from.max(to / BUCKET * BUCKET);
            let any = self.read_bucket(conversation, (end, to), false, &mut found).await?;
            if found.full || end == from {
                break;
            }
            to = end - 1;
            if !any {
                // Above the end of the log, or below its start.
                if looked_for_end || !found.rows.is_empty() {
                    break;
                }
                looked_for_end = true;
                to = to.min(self.last_of_log(conversation).await?);
            }
        }
        Ok(found.rows)
    }

    /// A seq in the last bucket of a log that has rows, or above it within that bucket.
    async fn last_of_log(&self, conversation: &ConversationId) -> Result<u64, ReadError> {
        let hint = self.kept_hint(conversation).await?.map_or(0, |hint| hint.base.0);
        let mut bucket = hint.max(self.log_start(conversation).await?.seq.0) / BUCKET;
        while self.has_row(conversation, Seq((bucket + 1) * BUCKET)).await? {
            bucket += 1;
        }
        Ok(bucket * BUCKET + (BUCKET - 1))
    }

    /// Whether the bucket of `from` has a row at or above it.
    async fn has_row(&self, conversation: &ConversationId, from: Seq) -> Result<bool, ReadError> {
        let values = (conversation.as_str(), bucket_of(from), bigint(from.0));
        let row: Option<(i64,)> = self.cql().row(&self.cql().statements.any_row, values).await?;
        Ok(row.is_some())
    }

    async fn kept_hint(&self, conversation: &ConversationId) -> Result<Option<Hint>, ReadError> {
        let row: Option<(Bytes,)> =
            self.cql().row(&self.cql().statements.hint, (conversation.as_str(),)).await?;
        let hint = |value: Bytes| {
            hint_of(&value).ok_or_else(|| ReadError::Corrupt(format!("the hint of {conversation}")))
        };
        row.map(|(value,)| hint(value)).transpose()
    }

    /// Where the log begins, and up to where its rows were deleted for certain.
    async fn start_and_trimmed(&self, conversation: &ConversationId) -> Result<(LogStart, Seq), ReadError> {
        let row: Option<(Option<Bytes>, Option<i64>)> =
            self.cql().row(&self.cql().statements.start, (conversation.as_str(),)).await?;
        let (start, trimmed) = row.unwrap_or_default();
        let start = match start {
            Some(value) => {
                start_of(&value).ok_or_else(|| ReadError::Corrupt(format!("the start of {conversation}")))?
            }
            None => LogStart::default(),
        };
        Ok((start, Seq(trimmed.map_or(1, number))))
    }

    async fn log_start(&self, conversation: &ConversationId) -> Result<LogStart, ReadError> {
        Ok(self.start_and_trimmed(conversation).await?.0)
    }

    async fn tail(&self, conversation: &ConversationId) -> Result<Tail, ReadError> {
        let (hint, start) = try_join(self.kept_hint(conversation), self.log_start(conversation)).await?;
        let at = hint.map_or(Seq::ZERO, |hint| hint.base);
        let above = at.next();
        let one = ReadLimit::rows(1);
        let hinted = async {
            if hint.is_none() { Ok(Vec::new()) } else { self.read_up(conversation, at, at, one).await }
        };
        let (mut hinted, more) = try_join(hinted, self.has_row(conversation, above)).await?;
        Ok(Tail { hinted: hinted.pop(), settled: !more, start })
    }

    /// Deletes what a log has below `start`, bucket by bucket.
    async fn trim_buckets(
        &self,
        conversation: &ConversationId,
        from: Seq,
        start: LogStart,
        stamp: i64,
    ) -> Result<(), Failure> {
        let (cql, id, end) = (self.cql(), conversation.as_str(), bigint(start.seq.0));
        let all = &cql.statements;
        let mut deletes = Vec::new();
        for bucket in bucket_of(from)..=bucket_of(start.seq) {
            for statement in [&all.trim_rows, &all.trim_reaction_counts, &all.trim_reaction_givers] {
                deletes.push(cql.write(statement, (stamp, id, bucket, end)));
            }
        }
        for bucket in uncounted_bucket(from)..=uncounted_bucket(start.seq) {
            deletes.push(cql.write(&all.trim_uncounted, (stamp, id, bucket, end)));
        }
        stream::iter(deletes).buffer_unordered(WIDTH).try_collect().await
    }

    async fn trim_log(
        &self,
        conversation: &ConversationId,
        start: LogStart,
        stamp: WriteStamp,
    ) -> Result<(), WriteError> {
        let (kept, trimmed) =
            self.start_and_trimmed(conversation).await.map_err(|error| WriteError(error.to_string()))?;
        // A lower one than is kept changes nothing, but what an earlier attempt did not come to is done now.
        let start = start.max(kept);
        if start.seq <= trimmed {
            return Ok(());
        }
        let (cql, id, seq) = (self.cql(), conversation.as_str(), bigint(start.seq.0));
        // A log that is copied from another store need not have had a first row here.
        cql.write(&cql.statements.put_log, (part_of(id, LOG_PARTS), id, bigint(stamp.0))).await?;
        cql.write(&cql.statements.put_start, (id, start_value(start), seq)).await?;
        self.trim_buckets(conversation, trimmed, start, bigint(stamp.0)).await?;
        cql.write(&cql.statements.put_trimmed, (id, seq, seq)).await?;
        Ok(())
    }

    pub(super) fn is_open(&self) -> Result<(), WriteError> {
        if self.writer.is_closed() { Err(WriteError("the store is shut down".into())) } else { Ok(()) }
    }
}

/// How many rows of a range do not count as unread.
pub(super) async fn count_uncounted(
    cql: &Cql,
    conversation: &ConversationId,
    after: Seq,
    to: Seq,
) -> Result<u64, ReadError> {
    if after >= to {
        return Ok(0);
    }
    let buckets = uncounted_bucket(after.next())..=uncounted_bucket(to);
    let counts = stream::iter(buckets).map(|bucket| async move {
        let values = (conversation.as_str(), bucket, bigint(after.0), bigint(to.0));
        let row: Option<(i64,)> = cql.row(&cql.statements.count_uncounted, values).await?;
        Ok(row.map_or(0, |(count,)| number(count)))
    });
    counts.buffered(WIDTH).try_fold(0, |sum, count| async move { Ok(sum + count) }).await
}

impl MessageLog for ScyllaStore {
    fn append(&self, append: Append, done: AppendDone) {
        self.writer.push(Job::Append(append), done);
    }

    fn project(&self, projection: Projection, done: AppendDone) {
        self.writer.push(Job::Project(projection), done);
    }

    fn hint<'a>(
        &'a self,
        conversation: &'a ConversationId,
    ) -> BoxFuture<'a, Result<Option<Hint>, ReadError>> {
        self.kept_hint(conversation).boxed()
    }

    fn put_hint<'a>(
        &'a self,
        conversation: &'a ConversationId,
        hint: Hint,
        _: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.is_open()?;
            // A hint is confirmed, so whoever wrote it, the highest is the best: its base is its timestamp.
            let values = (conversation.as_str(), hint_value(hint), bigint(hint.base.0));
            Ok(self.cql().write(&self.cql().statements.put_hint, values).await?)
        }
        .boxed()
    }

    fn tails<'a>(
        &'a self,
        conversations: &'a [ConversationId],
    ) -> BoxFuture<'a, Result<Vec<Tail>, ReadError>> {
        stream::iter(conversations).map(|id| self.tail(id)).buffered(WIDTH).try_collect().boxed()
    }

    fn read<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>> {
        self.read_up(conversation, from, to, limit).boxed()
    }

    fn read_back<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>> {
        self.read_down(conversation, from, to, limit).boxed()
    }

    fn start<'a>(&'a self, conversation: &'a ConversationId) -> BoxFuture<'a, Result<LogStart, ReadError>> {
        self.log_start(conversation).boxed()
    }

    fn trim<'a>(
        &'a self,
        conversation: &'a ConversationId,
        start: LogStart,
        stamp: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.is_open()?;
            self.trim_log(conversation, start, stamp).await
        }
        .boxed()
    }
}
