//! Groups, reactions, what is hidden, and rules of retention that fail on purpose.

use convoke_protocol::id::{ClientId, ConversationId, GroupId, Seq, UserId};
use convoke_protocol::message::ReactionCount;
use convoke_protocol::request::changes::Retention;
use futures_util::future::{BoxFuture, FutureExt};

use super::FaultyStore;
use crate::storage::{
    GroupRow, GroupStore, HiddenRows, HiddenStore, JoinRequestRow, MemberRow, ReactionCounts, ReactionStore,
    ReadError, RetentionStore, WriteError,
};

macro_rules! passed_on {
    ($fails:ident, $store:ident; $(fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => { $(
        fn $name<'a>(&'a self, $($arg: $type),*) -> BoxFuture<'a, $result> {
            async move {
                self.$fails()?;
                self.inner.$store.$name($($arg),*).await
            }
            .boxed()
        }
    )* };
}

impl GroupStore for FaultyStore {
    passed_on! { read_fails, groups;
        fn group(group: &'a GroupId) -> Result<Option<GroupRow>, ReadError>;
        fn groups_of(groups: &'a [GroupId]) -> Result<Vec<Option<GroupRow>>, ReadError>;
        fn members(group: &'a GroupId, after: Option<&'a UserId>, limit: usize) -> Result<Vec<MemberRow>, ReadError>;
        fn memberships(user: &'a UserId, groups: &'a [GroupId]) -> Result<Vec<Option<MemberRow>>, ReadError>;
        fn join_requests(group: &'a GroupId, after: Option<&'a UserId>, limit: usize)
            -> Result<Vec<JoinRequestRow>, ReadError>;
    }
    passed_on! { small_write_fails, groups;
        fn put_join_request(group: &'a GroupId, request: &'a JoinRequestRow) -> Result<(), WriteError>;
        fn drop_join_request(group: &'a GroupId, user: &'a UserId) -> Result<(), WriteError>;
        fn claim_group_id(creator: &'a UserId, client_id: ClientId, candidate: &'a GroupId)
            -> Result<GroupId, WriteError>;
    }
}

impl ReactionStore for FaultyStore {
    passed_on! { read_fails, reactions;
        fn reaction_counts(conversation: &'a ConversationId, from: Seq, to: Seq)
            -> Result<ReactionCounts, ReadError>;
        fn reaction_counts_of(messages: &'a [(ConversationId, Seq)])
            -> Result<Vec<Vec<ReactionCount>>, ReadError>;
        fn gives_reactions(conversation: &'a ConversationId, user: &'a UserId, of: &'a [(Seq, String)])
            -> Result<Vec<bool>, ReadError>;
        fn reactors(conversation: &'a ConversationId, seq: Seq, kind: &'a str, after: Option<&'a UserId>, limit: usize)
            -> Result<Vec<UserId>, ReadError>;
    }
}

impl HiddenStore for FaultyStore {
    passed_on! { small_write_fails, hidden;
        fn hide(user: &'a UserId, conversation: &'a ConversationId, rows: &'a HiddenRows) -> Result<(), WriteError>;
    }
    passed_on! { read_fails, hidden;
        fn are_hidden(user: &'a UserId, messages: &'a [(ConversationId, Seq)]) -> Result<Vec<bool>, ReadError>;
        fn hidden(user: &'a UserId, conversation: &'a ConversationId, from: Seq, to: Seq)
            -> Result<HiddenRows, ReadError>;
    }
}

impl RetentionStore for FaultyStore {
    passed_on! { small_write_fails, retention;
        fn set_retention(conversation: &'a ConversationId, retention: Option<Retention>) -> Result<(), WriteError>;
    }
    passed_on! { read_fails, retention;
        fn retention(conversation: &'a ConversationId) -> Result<Option<Retention>, ReadError>;
        fn with_retention(after: Option<&'a ConversationId>, limit: usize)
            -> Result<Vec<(ConversationId, Retention)>, ReadError>;
        fn logs(after: Option<&'a ConversationId>, limit: usize) -> Result<Vec<ConversationId>, ReadError>;
    }
}
