//! Groups as their members see them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{GroupId, Seq, Timestamp, UserId};
use crate::open_enum::open_enum;

/// The longest name of a group, in bytes.
pub const MAX_GROUP_NAME_BYTES: usize = 256;

/// The longest description, in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 2_048;

/// The longest reference to an avatar, in bytes.
pub const MAX_AVATAR_BYTES: usize = 1_024;

/// The longest announcement, in bytes.
pub const MAX_ANNOUNCEMENT_BYTES: usize = 8_192;

/// The most entries of a group's custom map.
pub const MAX_CUSTOM_ENTRIES: usize = 64;

/// The longest key of a group's custom map, in bytes; it has at least 1.
pub const MAX_CUSTOM_KEY_BYTES: usize = 64;

/// The longest value of a group's custom map, in bytes.
pub const MAX_CUSTOM_VALUE_BYTES: usize = 1_024;

/// The most users in one request that adds or removes members.
pub const MAX_MEMBERS_PER_REQUEST: usize = 500;

/// The longest message with which somebody asks to join, in bytes.
pub const MAX_JOIN_MESSAGE_BYTES: usize = 512;

/// The most requests to join that wait in one group.
pub const MAX_JOIN_REQUESTS: usize = 1_000;

open_enum! {
    /// What a member may do.
    GroupRole {
        /// Speaks and reads.
        MEMBER = 0 "member",
        /// Changes the group, adds, removes and mutes members, recalls messages of others.
        ADMIN = 1 "admin",
        /// All of that, names admins, and may transfer or disband the group. There is one.
        OWNER = 2 "owner",
    }
}

open_enum! {
    /// How somebody becomes a member by themselves.
    JoinPolicy {
        /// Not at all: members are added.
        INVITATION = 0 "invitation",
        /// By asking; an admin decides.
        APPROVAL = 1 "approval",
        /// By joining.
        OPEN = 2 "open",
    }
}

open_enum! {
    /// Who may add members.
    AddPolicy {
        /// Admins and the owner.
        ADMINS = 0 "admins",
        /// Every member.
        MEMBERS = 1 "members",
    }
}

open_enum! {
    /// What of the past a new member may read.
    HistoryForNewMembers {
        /// Nothing before the entry by which they came.
        NONE = 0 "none",
        /// All that there is.
        EVERYTHING = 1 "all",
    }
}

/// What a group says about itself, and its rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupProfile {
    /// Its name; at most [`MAX_GROUP_NAME_BYTES`].
    #[serde(default)]
    pub name: String,
    /// What it is about; at most [`MAX_DESCRIPTION_BYTES`].
    #[serde(default)]
    pub description: String,
    /// Where its picture is, in whatever form the application uses; at most [`MAX_AVATAR_BYTES`].
    #[serde(default)]
    pub avatar: String,
    /// What every member should know; at most [`MAX_ANNOUNCEMENT_BYTES`].
    #[serde(default)]
    pub announcement: String,
    /// Whatever else the application keeps with it; at most [`MAX_CUSTOM_ENTRIES`].
    #[serde(default)]
    pub custom: BTreeMap<String, String>,
    /// How somebody becomes a member by themselves.
    #[serde(default)]
    pub join_policy: JoinPolicy,
    /// Who may add members.
    #[serde(default)]
    pub add_policy: AddPolicy,
    /// What of the past a new member may read.
    #[serde(default)]
    pub history_for_new_members: HistoryForNewMembers,
}

impl Default for JoinPolicy {
    fn default() -> Self {
        Self::INVITATION
    }
}

impl Default for AddPolicy {
    fn default() -> Self {
        Self::ADMINS
    }
}

impl Default for HistoryForNewMembers {
    fn default() -> Self {
        Self::NONE
    }
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its id.
    pub group: GroupId,
    /// What it says about itself, and its rules.
    pub profile: GroupProfile,
    /// Whether it was made as the one group of exactly its members; then its members never change.
    pub unique: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: UserId,
    /// Until when only admins may speak; absent if everybody may.
    pub muted_until: Option<Timestamp>,
    /// When it was disbanded; from then on nothing is said in it.
    pub disbanded_at: Option<Timestamp>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    /// Who.
    pub user: UserId,
    /// What they may do.
    pub role: GroupRole,
    /// When they came.
    pub joined_at: Timestamp,
    /// Who added them; themselves if they joined.
    pub added_by: UserId,
    /// Until when they may not speak; absent if they may.
    pub muted_until: Option<Timestamp>,
    /// The first message they may read.
    pub visible_from: Seq,
    /// The last message they may read: they left with it; absent while they are a member.
    pub visible_to: Option<Seq>,
}

open_enum! {
    /// What happened to a member.
    MemberEvent {
        /// Somebody added them, or let them in.
        ADDED = 0 "added",
        /// They joined an open group.
        JOINED = 1 "joined",
        /// Somebody removed them.
        REMOVED = 2 "removed",
        /// They left.
        LEFT = 3 "left",
        /// They have another role.
        ROLE = 4 "role",
        /// They may not speak for a time, or may again.
        MUTED = 5 "muted",
    }
}

open_enum! {
    /// What happened to a group.
    GroupEvent {
        /// It was made.
        CREATED = 0 "created",
        /// Its profile is another.
        UPDATED = 1 "updated",
        /// Only admins may speak for a time, or everybody may again.
        MUTED = 2 "muted",
        /// It was disbanded.
        DISBANDED = 3 "disbanded",
    }
}

/// What happened to one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberChange {
    /// What.
    pub event: MemberEvent,
    /// The member as they are now.
    pub member: GroupMember,
}

/// The body of an entry of kind `members`, as JSON in both codecs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersChanged {
    /// Who did it.
    pub by: UserId,
    /// What happened, to one or several.
    pub changes: Vec<MemberChange>,
}

/// The body of an entry of kind `group`, as JSON in both codecs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupChanged {
    /// Who did it.
    pub by: UserId,
    /// What happened.
    pub event: GroupEvent,
    /// The group as it is now.
    pub group: GroupInfo,
    /// With what members it was made; empty in later entries.
    pub changes: Vec<MemberChange>,
}
