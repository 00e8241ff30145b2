//! How users want their conversations: what belongs to a user, not to the conversation.

use convoke_protocol::id::{ConversationId, UserId};
use futures_util::future::BoxFuture;

use super::{ReadError, WriteError};

/// How a user wants one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConversationSettings {
    /// The user's own name for it.
    pub label: Option<String>,
    /// No notices of it.
    pub muted: bool,
    /// It stands on top.
    pub pinned: bool,
}

/// A change of [`ConversationSettings`]; what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingsChange {
    /// The new label; an empty one takes it away.
    pub label: Option<String>,
    /// Whether it is muted.
    pub muted: Option<bool>,
    /// Whether it is pinned.
    pub pinned: Option<bool>,
}

/// The settings of users.
pub trait UserConversationStore: Send + Sync + 'static {
    /// Applies a change, field by field: two that come at the same time and change different fields both have their
    /// effect. Durable with `Ok`; with an error it may be stored all the same.
    fn set_conversation<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        change: &'a SettingsChange,
    ) -> BoxFuture<'a, Result<(), WriteError>>;

    /// Those of the user's conversations that ever had a setting, by id (bytes); at most `limit`.
    fn settings<'a>(
        &'a self,
        user: &'a UserId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(ConversationId, ConversationSettings)>, ReadError>>;
}
