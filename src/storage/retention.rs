//! For how long conversations are kept.

use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::request::changes::Retention;
use futures_util::future::BoxFuture;

use super::{ReadError, WriteError};

/// Where a log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogStart {
    /// The lowest seq that was not trimmed; 1 for an untrimmed or empty log.
    pub seq: Seq,
    /// The ordinal of the row before it: how many messages of users are gone.
    pub ordinal: u64,
}

impl Default for LogStart {
    fn default() -> Self {
        Self { seq: Seq(1), ordinal: 0 }
    }
}

/// The rules of conversations that have their own.
pub trait RetentionStore: Send + Sync + 'static {
    /// Keeps a rule; `None` takes it away. Durable with `Ok`.
    fn set_retention<'a>(
        &'a self,
        conversation: &'a ConversationId,
        retention: Option<Retention>,
    ) -> BoxFuture<'a, Result<(), WriteError>>;

    /// The rule of a conversation.
    fn retention<'a>(
        &'a self,
        conversation: &'a ConversationId,
    ) -> BoxFuture<'a, Result<Option<Retention>, ReadError>>;

    /// The conversations that have a rule, by id (bytes), above `after`, at most `limit`.
    fn with_retention<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(ConversationId, Retention)>, ReadError>>;

    /// The conversations that have a log, by id (bytes), above `after`, at most `limit`.
    fn logs<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, ReadError>>;
}
