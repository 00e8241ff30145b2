//! A group as its conversation's actor knows it, pure: who is in it, who may do what, and what an entry says of it.
//!
//! Everything that changes a group is an entry of its log. [`decide`] makes the entry from a command, or says why not;
//! [`Group::apply`] takes an entry that is committed. Nothing else changes a group, so what the entries say, one after the
//! other, is the group.

mod decide;
mod profile;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::group::{GroupInfo, GroupMember, GroupProfile, GroupRole};
use convoke_protocol::id::{GroupId, Seq, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

pub(in crate::actors) use self::decide::json;
pub use self::decide::{Decided, EntryPlace, GroupCommand, ProfileChange, decide};
use crate::auth::Role;
use crate::storage::{Change, GroupRow, Left, MemberRow};

/// The bounds of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    /// Members of one group.
    pub max_members: usize,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self { max_members: 10_000 }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asking {
    /// The user.
    pub user: UserId,
    /// What the token is for: a service may do everything.
    pub role: Role,
}

/// What of a conversation somebody may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visibility {
    /// The first message.
    pub from: Seq,
    /// The ordinal before it.
    pub from_ordinal: u64,
    /// The last message, for who left.
    pub to: Option<Left>,
}

impl Visibility {
    /// All of it.
    pub const ALL: Self = Self { from: Seq(1), from_ordinal: 0, to: None };

    /// What a member, or somebody who was one, may read.
    pub fn of(member: &MemberRow) -> Self {
        Self { from: member.visible_from, from_ordinal: member.from_ordinal, to: member.left }
    }
}

/// The answer to whoever may not know whether there is such a group.
pub fn not_found() -> RequestError {
    RequestError::not_done(ErrorCode::NOT_FOUND, "there is no such group, or it is not yours")
}

fn not_permitted(why: &str) -> RequestError {
    RequestError::not_done(ErrorCode::NOT_PERMITTED, why)
}

fn ended() -> RequestError {
    RequestError::not_done(ErrorCode::GROUP_ENDED, "the group was disbanded")
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    row: GroupRow,
    /// Those who left too: they may read what was said before.
    members: BTreeMap<UserId, MemberRow>,
    present: usize,
    members_version: Seq,
}

impl Group {
    /// The group as the store has it.
    pub fn load(row: GroupRow, members: Vec<MemberRow>) -> Self {
        let members_version = members.iter().map(|member| member.version).max().unwrap_or(row.version);
        let present = members.iter().filter(|member| member.left.is_none()).count();
        let members = members.into_iter().map(|member| (member.user.clone(), member)).collect();
        Self { row, members, present, members_version }
    }

    /// Takes what a committed entry says.
    pub fn apply(group: &mut Option<Self>, change: &Change) {
        if let Change::Group(row, members) = change {
            match group {
                Some(group) => group.row = (**row).clone(),
                None => *group = Some(Self::load((**row).clone(), members.clone())),
            }
        }
        if let Some(group) = group {
            change.members().iter().for_each(|member| group.put(member.clone()));
        }
    }

    fn put(&mut self, member: MemberRow) {
        self.members_version = self.members_version.max(member.version);
        let is_present = member.left.is_none();
        let before = self.members.insert(member.user.clone(), member);
        let was_present = before.is_some_and(|before| before.left.is_none());
        self.present = self.present + usize::from(is_present) - usize::from(was_present);
    }

    /// The group's own row.
    pub fn row(&self) -> &GroupRow {
        &self.row
    }

    /// A member; not somebody who left.
    pub fn member(&self, user: &UserId) -> Option<&MemberRow> {
        self.members.get(user).filter(|member| member.left.is_none())
    }

    /// The members, by id, above `after`.
    pub fn members_after(&self, after: Option<&UserId>) -> impl Iterator<Item = &MemberRow> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        self.members
            .range::<UserId, _>(range)
            .map(|(_, member)| member)
            .filter(|member| member.left.is_none())
    }

    /// How many members there are.
    pub fn count(&self) -> usize {
        self.present
    }

    /// Bytes on the heap, about: its members and their names.
    pub fn held_bytes(&self) -> usize {
        /// A name's text with its counts, and a place in a tree that is two thirds full.
        const BESIDE: usize = 64;
        self.members.len() * (size_of::<(UserId, MemberRow)>() * 3 / 2 + BESIDE)
    }

    /// Who owns it.
    pub fn owner(&self) -> Option<&UserId> {
        self.members_after(None).find(|member| member.role == GroupRole::OWNER).map(|member| &member.user)
    }

    /// The seq of the last entry that changed the group or a member.
    pub fn version(&self) -> Seq {
        self.row.version.max(self.members_version)
    }

    /// The seq of the last entry that changed a member.
    pub fn members_version(&self) -> Seq {
        self.members_version
    }

    /// What a user may read; `None` for who never was a member.
    pub fn visibility(&self, user: &UserId) -> Option<Visibility> {
        self.members.get(user).map(Visibility::of)
    }

    /// Whether a user may do what admins may.
    pub fn is_admin(&self, user: &UserId) -> bool {
        self.member(user).is_some_and(|member| member.role >= GroupRole::ADMIN)
    }

    /// The owner and the admins.
    pub fn admins(&self) -> impl Iterator<Item = &UserId> {
        self.members_after(None).filter(|member| member.role >= GroupRole::ADMIN).map(|member| &member.user)
    }

    /// Whether a user may say something now.
    ///
    /// # Errors
    /// As the wire says.
    pub fn may_speak(&self, user: &UserId, now: Timestamp) -> Result<(), RequestError> {
        let Some(member) = self.member(user) else {
            // Who left may know that there is a group.
            return Err(if self.members.contains_key(user) {
                not_permitted("you are no member of the group any more")
            } else {
                not_found()
            });
        };
        if self.row.disbanded_at.is_some() {
            return Err(ended());
        }
        let all = self.row.muted_until.filter(|_| member.role == GroupRole::MEMBER);
        match member.muted_until.max(all).filter(|until| *until > now) {
            None => Ok(()),
            Some(until) => {
                let error = RequestError::not_done(ErrorCode::MUTED, "you may not speak here for now");
                Err(error.retry_after(u32::try_from(until.0 - now.0).unwrap_or(u32::MAX)))
            }
        }
    }

    /// The group as its members see it.
    pub fn info(&self, group: &GroupId) -> GroupInfo {
        info(group, &self.row)
    }
}

fn info(group: &GroupId, row: &GroupRow) -> GroupInfo {
    GroupInfo {
        group: group.clone(),
        profile: GroupProfile {
            name: row.name.clone(),
            description: row.description.clone(),
            avatar: row.avatar.clone(),
            announcement: row.announcement.clone(),
            custom: row.custom.clone(),
            join_policy: row.join_policy,
            add_policy: row.add_policy,
            history_for_new_members: row.history_for_new_members,
        },
        unique: row.unique,
        created_at: row.created_at,
        created_by: row.created_by.clone(),
        muted_until: row.muted_until,
        disbanded_at: row.disbanded_at,
    }
}

/// A member as the wire shows one.
pub fn wire_member(member: &MemberRow) -> GroupMember {
    GroupMember {
        user: member.user.clone(),
        role: member.role,
        joined_at: member.joined_at,
        added_by: member.added_by.clone(),
        muted_until: member.muted_until,
        visible_from: member.visible_from,
        visible_to: member.left.map(|left| left.seq),
    }
}

/// How many ids one set of participants may use up by disbanding its group.
pub const MAX_UNIQUE_GROUPS: u32 = 16;

/// The id of the one group of exactly these participants (sorted, none twice); `nth` counts those that were disbanded.
pub fn unique_id(participants: &[UserId], nth: u32) -> GroupId {
    // No id holds a zero byte.
    let joined: Vec<&[u8]> = participants.iter().flat_map(|user| [user.as_str().as_bytes(), b"\0"]).collect();
    let hash = xxh3_128(&joined.concat());
    let id = if nth == 0 { format!("u-{hash:032x}") } else { format!("u-{hash:032x}-{}", nth + 1) };
    GroupId::new(&id).expect("a hash is a valid name")
}
