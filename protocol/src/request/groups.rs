//! Making groups, changing them, and who is in them.
//!
//! What changes a group is a numbered entry of its conversation: the answer names its seq, or none if there was nothing to
//! change.

use serde::{Deserialize, Serialize};

use crate::group::{
    AddPolicy, GroupInfo, GroupMember, GroupProfile, GroupRole, HistoryForNewMembers, JoinPolicy,
};
use crate::id::{ConversationId, GroupId, Seq, Timestamp, UserId};
use crate::request::Retry;

/// Makes a group. Who asks becomes its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateGroup {
    /// What makes a retry safe.
    pub retry: Retry,
    /// Its id; absent: the server gives it a UUIDv7. Not with `unique`.
    pub group: Option<GroupId>,
    /// Answer with the group that exists for exactly these participants, or make it. Its members never change.
    #[serde(default)]
    pub unique: bool,
    /// What it says about itself, and its rules.
    #[serde(default)]
    pub profile: GroupProfile,
    /// Its members besides the owner; at most [`crate::group::MAX_MEMBERS_PER_REQUEST`].
    #[serde(default)]
    pub members: Vec<UserId>,
}

/// The answer to [`CreateGroup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCreated {
    /// The group.
    pub group: GroupId,
    /// Its conversation.
    pub conversation: ConversationId,
    /// Whether it was made now, by this request or an earlier attempt of it; `false` if a unique one was there.
    pub created: bool,
    /// The entry that made it.
    pub seq: Seq,
}

/// Asks for a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetGroup {
    /// Which.
    pub group: GroupId,
    /// The version that the client has: if it is still the same, the answer says so and no more.
    pub known_version: Option<u64>,
}

/// The answer to [`GetGroup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// The seq of the last entry that changed the group or its members.
    pub version: u64,
    /// The client has this version: the rest is empty.
    pub not_modified: bool,
    /// The group.
    pub info: Option<GroupInfo>,
    /// Who owns it.
    pub owner: Option<UserId>,
    /// How many members it has.
    pub members: u32,
    /// The asking user as a member; absent for a service that is none.
    pub me: Option<GroupMember>,
}

/// Changes a group; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateGroup {
    /// What makes a retry safe.
    pub retry: Retry,
    /// Which.
    pub group: GroupId,
    /// Its new name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its new description.
    #[serde(default)]
    pub description: Option<String>,
    /// Its new avatar.
    #[serde(default)]
    pub avatar: Option<String>,
    /// Its new announcement.
    #[serde(default)]
    pub announcement: Option<String>,
    /// Entries of its custom map: a value sets, none takes away.
    #[serde(default)]
    pub custom: Vec<(String, Option<String>)>,
    /// Its new join policy.
    #[serde(default)]
    pub join_policy: Option<JoinPolicy>,
    /// Its new add policy.
    #[serde(default)]
    pub add_policy: Option<AddPolicy>,
    /// What later members may read.
    #[serde(default)]
    pub history_for_new_members: Option<HistoryForNewMembers>,
}

/// Adds members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddMembers {
    /// What makes a retry safe.
    pub retry: Retry,
    /// To which group.
    pub group: GroupId,
    /// Whom; those who are members already stay as they are. At most [`crate::group::MAX_MEMBERS_PER_REQUEST`].
    pub users: Vec<UserId>,
}

/// Removes members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveMembers {
    /// What makes a retry safe.
    pub retry: Retry,
    /// From which group.
    pub group: GroupId,
    /// Whom; those who are no members are passed over. At most [`crate::group::MAX_MEMBERS_PER_REQUEST`].
    pub users: Vec<UserId>,
}

/// Leaves a group. Its owner transfers or disbands it first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveGroup {
    /// What makes a retry safe.
    pub retry: Retry,
    /// Which.
    pub group: GroupId,
}

/// Makes a member an admin, or an admin a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRole {
    /// What makes a retry safe.
    pub retry: Retry,
    /// In which group.
    pub group: GroupId,
    /// Whose role.
    pub user: UserId,
    /// `member` or `admin`.
    pub role: GroupRole,
}

/// Makes another member the owner; who was becomes an admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferGroup {
    /// What makes a retry safe.
    pub retry: Retry,
    /// Which group.
    pub group: GroupId,
    /// To whom.
    pub to: UserId,
}

/// Silences a member, or everybody but the admins, until a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mute {
    /// What makes a retry safe.
    pub retry: Retry,
    /// In which group.
    pub group: GroupId,
    /// Whom; absent: everybody but the admins.
    pub user: Option<UserId>,
    /// Until when, by the server's clock; absent: they may speak again.
    pub until: Option<Timestamp>,
}

/// Ends a group: nothing is said in it any more; its members may still read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisbandGroup {
    /// What makes a retry safe.
    pub retry: Retry,
    /// Which.
    pub group: GroupId,
}

macro_rules! group_changed {
    ($( $(#[$doc:meta])* $name:ident ),* $(,)?) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            /// The group.
            pub group: GroupId,
            /// The entry that says so; absent if there was nothing to change.
            pub seq: Option<Seq>,
        }
    )* };
}

group_changed! {
    /// The answer to [`UpdateGroup`].
    GroupUpdated,
    /// The answer to [`AddMembers`].
    MembersAdded,
    /// The answer to [`RemoveMembers`].
    MembersRemoved,
    /// The answer to [`LeaveGroup`].
    GroupLeft,
    /// The answer to [`SetRole`].
    RoleSet,
    /// The answer to [`TransferGroup`].
    GroupTransferred,
    /// The answer to [`Mute`].
    Muted,
    /// The answer to [`DisbandGroup`].
    GroupDisbanded,
    /// The answer to [`DecideJoin`].
    JoinDecided,
}

/// Joins an open group, or asks to join one that approves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGroup {
    /// What makes a retry safe.
    pub retry: Retry,
    /// Which.
    pub group: GroupId,
    /// For those who decide; at most [`crate::group::MAX_JOIN_MESSAGE_BYTES`].
    #[serde(default)]
    pub message: String,
}

/// The answer to [`JoinGroup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupJoined {
    /// The group.
    pub group: GroupId,
    /// The entry by which the user came; absent if they were a member, or only asked.
    pub seq: Option<Seq>,
    /// Whether the user asked and waits for an admin.
    pub requested: bool,
}

/// Asks who wants to join, in pages. For admins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequests {
    /// Which group.
    pub group: GroupId,
    /// Where the former page ended: its `next`.
    pub after: Option<UserId>,
    /// At most so many; at least 1, cut to `limits.max_page_messages`.
    pub limit: u32,
}

/// Somebody wants to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Who.
    pub user: UserId,
    /// What they said.
    pub message: String,
    /// When they asked first.
    pub asked_at: Timestamp,
}

/// The answer to [`JoinRequests`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequestsPage {
    /// The requests of this page, in the order of the users' ids.
    pub requests: Vec<JoinRequest>,
    /// Ask again with this as `after`; absent at the end.
    pub next: Option<UserId>,
}

/// Lets somebody in who asked, or turns them away. For admins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecideJoin {
    /// What makes a retry safe.
    pub retry: Retry,
    /// Which group.
    pub group: GroupId,
    /// Who asked.
    pub user: UserId,
    /// Whether they may come in.
    pub accept: bool,
}

/// Asks for the members of a group, in pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMembers {
    /// Which.
    pub group: GroupId,
    /// Where the former page ended: its `next`.
    pub after: Option<UserId>,
    /// At most so many; at least 1, cut to `limits.max_page_messages`.
    pub limit: u32,
    /// The version that the client has: if it is still the same, and this is the first page, the answer says so and no
    /// more.
    pub known_version: Option<u64>,
}

/// The answer to [`GroupMembers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMembersPage {
    /// The seq of the last entry that changed a member.
    pub version: u64,
    /// The client has this version: the rest is empty.
    pub not_modified: bool,
    /// The members of this page, in the order of their ids.
    pub members: Vec<GroupMember>,
    /// How many members there are.
    pub total: u32,
    /// Ask again with this as `after`; absent at the end.
    pub next: Option<UserId>,
}
