//! The stores in memory: the reference of the contract, for tests and simulations.
//!
//! Nothing outlives the process, so "durable" means "in the map". Every append takes effect and is answered within the
//! call.

mod groups;
mod read_state;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use convoke_protocol::message::Cursor;
use futures_util::future::{self, BoxFuture, FutureExt};
use parking_lot::Mutex;

use self::groups::Projected;
use self::read_state::ReadState;
use super::{
    Append, AppendDone, AppendError, ConversationIndex, CursorStore, Hint, LogRow, LogStart, MessageLog,
    Projection, ReadError, ReadLimit, Tail, WriteError, WriteStamp,
};

/// All stores of one node, in memory.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    logs: HashMap<ConversationId, BTreeMap<Seq, Stored>>,
    lists: HashMap<UserId, BTreeSet<ConversationId>>,
    cursors: HashMap<(UserId, DeviceId), HashMap<ConversationId, Seq>>,
    read_state: ReadState,
    projected: Projected,
    hints: HashMap<ConversationId, Hint>,
    shut_down: bool,
}

struct Stored {
    row: LogRow,
    stamp: WriteStamp,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends writing: every later append is answered [`AppendError::NotStored`].
    pub fn shutdown(&self) {
        self.state.lock().shut_down = true;
    }
}

impl State {
    fn append(&mut self, append: Append) -> Result<(), AppendError> {
        if self.shut_down {
            return Err(AppendError::NotStored("the store is shut down".into()));
        }
        let Append { conversation, rows, stamp, listed_for } = append;
        for user in listed_for {
            self.lists.entry(user).or_default().insert(conversation.clone());
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.read_state.appended(&conversation, &rows);
        self.write(conversation, rows, stamp);
        Ok(())
    }

    fn write(&mut self, conversation: ConversationId, rows: Vec<LogRow>, stamp: WriteStamp) {
        let log = self.logs.entry(conversation).or_default();
        for row in rows {
            // An equal stamp never carries another content, so it does not matter which of two equals stays.
            if log.get(&row.seq).is_none_or(|there| there.stamp < stamp) {
                log.insert(row.seq, Stored { row, stamp });
            }
        }
    }

    fn project(&mut self, mut projection: Projection) -> Result<(), AppendError> {
        if self.shut_down {
            return Err(AppendError::NotStored("the store is shut down".into()));
        }
        let rows = std::mem::take(&mut projection.rows);
        if !rows.is_empty() {
            self.read_state.appended(&projection.conversation, &rows);
            self.write(projection.conversation.clone(), rows, projection.stamp);
        }
        self.projected.project(projection);
        Ok(())
    }

    fn hint(&self, conversation: &ConversationId) -> Option<Hint> {
        let log = self.logs.get(conversation)?;
        let told = Hint::told_by(log.values().rev().map(|stored| &stored.row));
        Hint::higher(self.hints.get(conversation).copied(), told)
    }

    fn tail(&self, conversation: &ConversationId) -> Tail {
        let hint = self.hint(conversation);
        let log = self.logs.get(conversation);
        let last = log.and_then(|log| log.last_key_value()).map_or(Seq::ZERO, |(seq, _)| *seq);
        let at = hint.map_or(Seq::ZERO, |hint| hint.base);
        Tail {
            hinted: log.and_then(|log| log.get(&at)).map(|stored| stored.row.clone()),
            settled: last <= at,
            start: self.projected.starts.get(conversation).copied().unwrap_or_default(),
        }
    }
}

/// The rows that `rows` yields until the limit is reached.
fn page<'a>(rows: impl Iterator<Item = &'a Stored>, limit: ReadLimit) -> Vec<LogRow> {
    let mut budget = limit.budget();
    let mut page = Vec::new();
    for Stored { row, .. } in rows {
        page.push(row.clone());
        if !budget.take(row) {
            break;
        }
    }
    page
}

impl MessageLog for MemoryStore {
    fn append(&self, append: Append, done: AppendDone) {
        let result = self.state.lock().append(append);
        // After the lock: who is told may append again at once.
        done(result);
    }

    fn project(&self, projection: Projection, done: AppendDone) {
        let result = self.state.lock().project(projection);
        done(result);
    }

    fn hint<'a>(
        &'a self,
        conversation: &'a ConversationId,
    ) -> BoxFuture<'a, Result<Option<Hint>, ReadError>> {
        future::ready(Ok(self.state.lock().hint(conversation))).boxed()
    }

    fn put_hint<'a>(
        &'a self,
        conversation: &'a ConversationId,
        hint: Hint,
        _: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        let mut state = self.state.lock();
        if state.shut_down {
            return future::ready(Err(WriteError("the store is shut down".into()))).boxed();
        }
        let kept = state.hints.entry(conversation.clone()).or_insert(hint);
        if kept.base < hint.base {
            *kept = hint;
        }
        future::ready(Ok(())).boxed()
    }

    fn tails<'a>(
        &'a self,
        conversations: &'a [ConversationId],
    ) -> BoxFuture<'a, Result<Vec<Tail>, ReadError>> {
        let state = self.state.lock();
        future::ready(Ok(conversations.iter().map(|id| state.tail(id)).collect())).boxed()
    }

    fn read<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>> {
        let state = self.state.lock();
        let rows = match state.logs.get(conversation) {
            Some(log) if from <= to => page(log.range(from..=to).map(|(_, stored)| stored), limit),
            _ => Vec::new(),
        };
        future::ready(Ok(rows)).boxed()
    }

    fn read_back<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>> {
        let state = self.state.lock();
        let rows = match state.logs.get(conversation) {
            Some(log) if from <= to => page(log.range(from..=to).rev().map(|(_, stored)| stored), limit),
            _ => Vec::new(),
        };
        future::ready(Ok(rows)).boxed()
    }

    fn start<'a>(&'a self, conversation: &'a ConversationId) -> BoxFuture<'a, Result<LogStart, ReadError>> {
        let start = self.state.lock().projected.starts.get(conversation).copied();
        future::ready(Ok(start.unwrap_or_default())).boxed()
    }

    fn trim<'a>(
        &'a self,
        conversation: &'a ConversationId,
        start: LogStart,
        _: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        let mut state = self.state.lock();
        if state.shut_down {
            return future::ready(Err(WriteError("the store is shut down".into()))).boxed();
        }
        let kept = state.projected.starts.get(conversation).copied().unwrap_or_default();
        if kept < start {
            let log = state.logs.entry(conversation.clone()).or_default();
            log.retain(|seq, _| *seq >= start.seq);
            state.read_state.trim(conversation, start.seq);
            state.projected.trim(conversation, start);
        }
        future::ready(Ok(())).boxed()
    }
}

impl ConversationIndex for MemoryStore {
    fn conversations<'a>(
        &'a self,
        user: &'a UserId,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, ReadError>> {
        let state = self.state.lock();
        let above = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let found = state
            .lists
            .get(user)
            .map(|list| list.range::<ConversationId, _>(above).take(limit).cloned().collect::<Vec<_>>());
        future::ready(Ok(found.unwrap_or_default())).boxed()
    }
}

impl CursorStore for MemoryStore {
    fn put_cursors<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        cursors: &'a [Cursor],
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        let mut state = self.state.lock();
        if state.shut_down {
            return future::ready(Err(WriteError("the store is shut down".into()))).boxed();
        }
        let kept = state.cursors.entry((user.clone(), device.clone())).or_default();
        for cursor in cursors {
            let seq = kept.entry(cursor.conversation.clone()).or_default();
            *seq = cursor.seq.max(*seq);
        }
        future::ready(Ok(())).boxed()
    }

    fn cursors<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        conversations: &'a [ConversationId],
    ) -> BoxFuture<'a, Result<Vec<Cursor>, ReadError>> {
        let state = self.state.lock();
        let kept = state.cursors.get(&(user.clone(), device.clone()));
        let found = conversations.iter().filter_map(|conversation| {
            let seq = *kept?.get(conversation)?;
            Some(Cursor { conversation: conversation.clone(), seq })
        });
        future::ready(Ok(found.collect())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::conformance::{self, Fixture};
    use crate::storage::{Epoch, Stores};

    struct InMemory(Arc<MemoryStore>);

    impl Fixture for InMemory {
        fn stores(&self) -> Stores {
            Stores::of(self.0.clone())
        }
        fn shutdown(&mut self) -> BoxFuture<'_, ()> {
            self.0.shutdown();
            future::ready(()).boxed()
        }
        fn reopen(&mut self) -> BoxFuture<'_, bool> {
            future::ready(false).boxed()
        }
    }

    crate::conformance_tests!(InMemory(Arc::new(MemoryStore::new())));

    #[tokio::test]
    async fn the_higher_stamp_stays_in_whatever_order_they_come() {
        let store = MemoryStore::new();
        let conversation = conformance::conversation("stamps");
        let (first, second) = (conformance::row(1, None, "first"), conformance::row(1, None, "second"));
        for (row, stamp) in [(&second, 2), (&first, 1)] {
            let stamp = WriteStamp::new(Epoch(1), stamp);
            let append = Append {
                conversation: conversation.clone(),
                rows: vec![row.clone()],
                stamp,
                listed_for: Vec::new(),
            };
            store.append(append, Box::new(|result| assert_eq!(result, Ok(()))));
        }
        let rows = store.read(&conversation, Seq(1), Seq(9), ReadLimit::rows(9)).await;
        assert_eq!(rows, Ok(vec![second]));
    }
}
