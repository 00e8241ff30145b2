//! Which answer belongs to which request.

use convoke_protocol::frame::{Answer, Request};
use convoke_protocol::request::changes::{
    Delete, Deleted, Edit, Edited, Hidden, Hide, React, Reacted, Reactions, ReactionsPage, Recall, Recalled,
    RetentionSet, SendAs, SentAs, SetRetention,
};
use convoke_protocol::request::groups::{
    AddMembers, CreateGroup, DecideJoin, DisbandGroup, GetGroup, GroupCreated, GroupDisbanded, GroupJoined,
    GroupLeft, GroupMembers, GroupMembersPage, GroupState, GroupTransferred, GroupUpdated, JoinDecided,
    JoinGroup, JoinRequests, JoinRequestsPage, LeaveGroup, MembersAdded, MembersRemoved, Mute, Muted,
    RemoveMembers, RoleSet, SetRole, TransferGroup, UpdateGroup,
};

use crate::error::ClientError;

/// A request for [`Client::call`](crate::Client::call), with its answer.
pub trait Ask: Into<Request> {
    /// What answers it.
    type Answer;

    /// Takes the answer.
    ///
    /// # Errors
    /// It belongs to another request.
    fn answered(answer: Answer) -> Result<Self::Answer, ClientError>;
}

macro_rules! asks {
    ($($ask:ident => $answer:ident),* $(,)?) => { $(
        impl Ask for $ask {
            type Answer = $answer;

            fn answered(answer: Answer) -> Result<$answer, ClientError> {
                match answer {
                    Answer::$answer(answer) => Ok(answer),
                    other => Err(ClientError::Unexpected(other.name())),
                }
            }
        }
    )* };
}

asks! {
    CreateGroup => GroupCreated,
    GetGroup => GroupState,
    UpdateGroup => GroupUpdated,
    AddMembers => MembersAdded,
    RemoveMembers => MembersRemoved,
    LeaveGroup => GroupLeft,
    SetRole => RoleSet,
    TransferGroup => GroupTransferred,
    Mute => Muted,
    JoinGroup => GroupJoined,
    JoinRequests => JoinRequestsPage,
    DecideJoin => JoinDecided,
    DisbandGroup => GroupDisbanded,
    GroupMembers => GroupMembersPage,
    SetRetention => RetentionSet,
    Recall => Recalled,
    Edit => Edited,
    Delete => Deleted,
    React => Reacted,
    Hide => Hidden,
    Reactions => ReactionsPage,
    SendAs => SentAs,
}
