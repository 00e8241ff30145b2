//! Read marks and settings that fail on purpose.

use convoke_protocol::id::{ConversationId, UserId};
use futures_util::future::{BoxFuture, FutureExt};

use super::FaultyStore;
use crate::storage::read_marks::{MarkKey, ReadMark, ReadMarkStore, RowsAbove};
use crate::storage::user_conversations::{ConversationSettings, SettingsChange, UserConversationStore};
use crate::storage::{ReadError, WriteError};

impl ReadMarkStore for FaultyStore {
    fn put_marks<'a>(&'a self, marks: &'a [(MarkKey, ReadMark)]) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.small_write_fails()?;
            self.inner.marks.put_marks(marks).await
        }
        .boxed()
    }

    fn marks<'a>(&'a self, of: &'a [MarkKey]) -> BoxFuture<'a, Result<Vec<ReadMark>, ReadError>> {
        async move {
            self.read_fails()?;
            self.inner.marks.marks(of).await
        }
        .boxed()
    }

    fn uncounted<'a>(&'a self, ranges: &'a [RowsAbove]) -> BoxFuture<'a, Result<Vec<u64>, ReadError>> {
        async move {
            self.read_fails()?;
            self.inner.marks.uncounted(ranges).await
        }
        .boxed()
    }
}

impl UserConversationStore for FaultyStore {
    fn set_conversation<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        change: &'a SettingsChange,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.small_write_fails()?;
            self.inner.settings.set_conversation(user, conversation, change).await
        }
        .boxed()
    }

    fn settings<'a>(
        &'a self,
        user: &'a UserId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(ConversationId, ConversationSettings)>, ReadError>> {
        async move {
            self.read_fails()?;
            self.inner.settings.settings(user, limit).await
        }
        .boxed()
    }
}
