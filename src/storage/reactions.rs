//! Reactions to messages. Written by entries only ([`super::MessageLog::project`]).

use convoke_protocol::id::{ConversationId, Seq, UserId};
use convoke_protocol::message::ReactionCount;
use futures_util::future::BoxFuture;

use super::ReadError;

/// Messages with their counts, one for each kind.
pub type ReactionCounts = Vec<(Seq, Vec<ReactionCount>)>;

/// Who reacted to what.
pub trait ReactionStore: Send + Sync + 'static {
    /// The counts of the messages in `from..=to` that have any, by seq; the kinds by name (bytes), none with count 0.
    fn reaction_counts<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'a, Result<ReactionCounts, ReadError>>;

    /// The counts of single messages of several conversations, in the order asked; none is an empty list.
    fn reaction_counts_of<'a>(
        &'a self,
        messages: &'a [(ConversationId, Seq)],
    ) -> BoxFuture<'a, Result<Vec<Vec<ReactionCount>>, ReadError>>;

    /// For each (message, kind) whether the user gives it, in the order asked.
    fn gives_reactions<'a>(
        &'a self,
        conversation: &'a ConversationId,
        user: &'a UserId,
        of: &'a [(Seq, String)],
    ) -> BoxFuture<'a, Result<Vec<bool>, ReadError>>;

    /// The users above `after` who give a message this reaction, by id (bytes), at most `limit`.
    fn reactors<'a>(
        &'a self,
        conversation: &'a ConversationId,
        seq: Seq,
        kind: &'a str,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<UserId>, ReadError>>;
}
