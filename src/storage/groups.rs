//! Groups, their members, and who wants to become one.
//!
//! Groups and members are written by entries of the group's conversation only ([`super::MessageLog::project`]); what is here
//! reads them.

use std::collections::BTreeMap;

use convoke_protocol::group::{AddPolicy, GroupRole, HistoryForNewMembers, JoinPolicy};
use convoke_protocol::id::{ClientId, GroupId, Seq, Timestamp, UserId};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{ReadError, WriteError};

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub description: String,
    /// Where its picture is.
    pub avatar: String,
    /// What every member should know.
    pub announcement: String,
    /// Whatever else the application keeps with it.
    pub custom: BTreeMap<String, String>,
    /// How somebody becomes a member by themselves.
    pub join_policy: JoinPolicy,
    /// Who may add members.
    pub add_policy: AddPolicy,
    /// What of the past a new member may read.
    pub history_for_new_members: HistoryForNewMembers,
    /// Whether it is the one group of exactly its members.
    pub unique: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: UserId,
    /// Until when only admins may speak.
    pub muted_until: Option<Timestamp>,
    /// When it was disbanded.
    pub disbanded_at: Option<Timestamp>,
    /// The entry that wrote it.
    pub version: Seq,
}

/// How a member left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The entry with which they left, the last one they may read.
    pub seq: Seq,
    /// Its ordinal.
    pub ordinal: u64,
    /// Its time.
    pub time: Timestamp,
}

/// A member of a group, or somebody who was one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    /// Who.
    pub user: UserId,
    /// What they may do.
    pub role: GroupRole,
    /// When they came.
    pub joined_at: Timestamp,
    /// Who added them.
    pub added_by: UserId,
    /// Until when they may not speak.
    pub muted_until: Option<Timestamp>,
    /// The first message they may read.
    pub visible_from: Seq,
    /// The ordinal before that message: unread starts there.
    pub from_ordinal: u64,
    /// Set when they are no member any more.
    pub left: Option<Left>,
    /// The entry that wrote this.
    pub version: Seq,
}

/// Somebody wants to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequestRow {
    /// Who.
    pub user: UserId,
    /// What they said.
    pub message: String,
    /// When they asked.
    pub asked_at: Timestamp,
}

/// The groups.
pub trait GroupStore: Send + Sync + 'static {
    /// The group, disbanded or not; `None` if there never was one of that id.
    fn group<'a>(&'a self, group: &'a GroupId) -> BoxFuture<'a, Result<Option<GroupRow>, ReadError>>;

    /// Several groups, in the order of the ids.
    fn groups_of<'a>(
        &'a self,
        groups: &'a [GroupId],
    ) -> BoxFuture<'a, Result<Vec<Option<GroupRow>>, ReadError>>;

    /// The members whose id is above `after`, by id (bytes), those who left included, at most `limit`.
    fn members<'a>(
        &'a self,
        group: &'a GroupId,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<MemberRow>, ReadError>>;

    /// How one user stands to each of several groups, in the order of the ids.
    fn memberships<'a>(
        &'a self,
        user: &'a UserId,
        groups: &'a [GroupId],
    ) -> BoxFuture<'a, Result<Vec<Option<MemberRow>>, ReadError>>;

    /// Who waits to be let in, by id (bytes), above `after`, at most `limit`.
    fn join_requests<'a>(
        &'a self,
        group: &'a GroupId,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<JoinRequestRow>, ReadError>>;

    /// Keeps a request, in the place of an earlier one of the same user. Durable with `Ok`.
    fn put_join_request<'a>(
        &'a self,
        group: &'a GroupId,
        request: &'a JoinRequestRow,
    ) -> BoxFuture<'a, Result<(), WriteError>>;

    /// Forgets a request; one that is not there is fine. Durable with `Ok`.
    fn drop_join_request<'a>(
        &'a self,
        group: &'a GroupId,
        user: &'a UserId,
    ) -> BoxFuture<'a, Result<(), WriteError>>;

    /// The id under which this request of this creator makes its group: `candidate` if it is the first to ask, else what
    /// the first attempt was given. Durable with `Ok`; so every attempt makes the same group.
    fn claim_group_id<'a>(
        &'a self,
        creator: &'a UserId,
        client_id: ClientId,
        candidate: &'a GroupId,
    ) -> BoxFuture<'a, Result<GroupId, WriteError>>;
}
