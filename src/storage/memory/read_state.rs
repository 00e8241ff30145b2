//! Read marks and settings in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use convoke_protocol::id::{ConversationId, Seq, UserId};
use futures_util::future::{self, BoxFuture, FutureExt};

use super::MemoryStore;
use crate::storage::read_marks::{MarkKey, ReadMark, ReadMarkStore, RowsAbove};
use crate::storage::user_conversations::{ConversationSettings, SettingsChange, UserConversationStore};
use crate::storage::{LogRow, ReadError, WriteError, read_marks};

/// What belongs to users.
#[derive(Default)]
pub(super) struct ReadState {
    marks: HashMap<MarkKey, ReadMark>,
    uncounted: HashMap<ConversationId, BTreeSet<Seq>>,
    settings: HashMap<UserId, BTreeMap<ConversationId, ConversationSettings>>,
}

impl ReadState {
    /// Keeps what an append of these rows says about marks.
    pub(super) fn appended(&mut self, conversation: &ConversationId, rows: &[LogRow]) {
        for (user, mark) in read_marks::moved_by(rows) {
            self.raise(MarkKey { user: user.clone(), conversation: conversation.clone() }, mark);
        }
        for row in rows.iter().filter(|row| row.is_uncounted()) {
            self.uncounted.entry(conversation.clone()).or_default().insert(row.seq);
        }
    }

    /// Forgets what belongs to rows below `start`.
    pub(super) fn trim(&mut self, conversation: &ConversationId, start: Seq) {
        if let Some(rows) = self.uncounted.get_mut(conversation) {
            *rows = rows.split_off(&start);
        }
    }

    fn raise(&mut self, key: MarkKey, mark: ReadMark) {
        let kept = self.marks.entry(key).or_default();
        *kept = mark.max(*kept);
    }
}

fn closed() -> WriteError {
    WriteError("the store is shut down".into())
}

impl ReadMarkStore for MemoryStore {
    fn put_marks<'a>(&'a self, marks: &'a [(MarkKey, ReadMark)]) -> BoxFuture<'a, Result<(), WriteError>> {
        let mut state = self.state.lock();
        if state.shut_down {
            return future::ready(Err(closed())).boxed();
        }
        for (key, mark) in marks {
            state.read_state.raise(key.clone(), *mark);
        }
        future::ready(Ok(())).boxed()
    }

    fn marks<'a>(&'a self, of: &'a [MarkKey]) -> BoxFuture<'a, Result<Vec<ReadMark>, ReadError>> {
        let marks = &self.state.lock().read_state.marks;
        let found = of.iter().map(|key| marks.get(key).copied().unwrap_or_default()).collect();
        future::ready(Ok(found)).boxed()
    }

    fn uncounted<'a>(&'a self, ranges: &'a [RowsAbove]) -> BoxFuture<'a, Result<Vec<u64>, ReadError>> {
        let uncounted = &self.state.lock().read_state.uncounted;
        let count = |range: &RowsAbove| match uncounted.get(&range.conversation) {
            Some(rows) if range.after < range.to => rows.range(range.after.next()..=range.to).count() as u64,
            _ => 0,
        };
        future::ready(Ok(ranges.iter().map(count).collect())).boxed()
    }
}

impl UserConversationStore for MemoryStore {
    fn set_conversation<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        change: &'a SettingsChange,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        let mut state = self.state.lock();
        if state.shut_down {
            return future::ready(Err(closed())).boxed();
        }
        let settings = state.read_state.settings.entry(user.clone()).or_default();
        let kept = settings.entry(conversation.clone()).or_default();
        if let Some(label) = &change.label {
            kept.label = (!label.is_empty()).then(|| label.clone());
        }
        kept.muted = change.muted.unwrap_or(kept.muted);
        kept.pinned = change.pinned.unwrap_or(kept.pinned);
        future::ready(Ok(())).boxed()
    }

    fn settings<'a>(
        &'a self,
        user: &'a UserId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(ConversationId, ConversationSettings)>, ReadError>> {
        let settings = &self.state.lock().read_state.settings;
        let of_user = settings.get(user).into_iter().flatten();
        let found = of_user.map(|(id, settings)| (id.clone(), settings.clone())).take(limit).collect();
        future::ready(Ok(found)).boxed()
    }
}
