//! What users deleted for themselves alone.

use convoke_protocol::id::{ConversationId, Seq, UserId};
use futures_util::future::BoxFuture;

use super::{ReadError, WriteError};

/// Messages of one conversation that one user does not see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HiddenRows {
    /// All up to this one; 0 for none.
    pub up_to: Seq,
    /// And these, rising.
    pub seqs: Vec<Seq>,
}

impl HiddenRows {
    /// Whether a message is among them.
    pub fn has(&self, seq: Seq) -> bool {
        seq <= self.up_to || self.seqs.binary_search(&seq).is_ok()
    }
}

/// The hidden messages of users.
pub trait HiddenStore: Send + Sync + 'static {
    /// Adds to what is hidden; nothing is ever shown again, and `up_to` never falls. Durable with `Ok`.
    fn hide<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        rows: &'a HiddenRows,
    ) -> BoxFuture<'a, Result<(), WriteError>>;

    /// Whether single messages of several conversations are hidden, in the order asked.
    fn are_hidden<'a>(
        &'a self,
        user: &'a UserId,
        messages: &'a [(ConversationId, Seq)],
    ) -> BoxFuture<'a, Result<Vec<bool>, ReadError>>;

    /// What is hidden of `from..=to`: `up_to` as it is, and the single ones above it and within the range, at most as many
    /// as the range has messages.
    fn hidden<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'a, Result<HiddenRows, ReadError>>;
}
