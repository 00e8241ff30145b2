//! From a command to the entry that carries it out, or the reason why not.

use bytes::Bytes;
use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::group::{
    AddPolicy, GroupChanged, GroupEvent, GroupProfile, GroupRole, HistoryForNewMembers, JoinPolicy,
    MAX_MEMBERS_PER_REQUEST, MemberChange, MemberEvent, MembersChanged,
};
use convoke_protocol::id::{GroupId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, ContentType, MessageKind};

use super::{Asking, Group, GroupLimits, ended, info, not_found, not_permitted, profile, wire_member};
use crate::auth::{Role, SYSTEM_USER};
use crate::storage::{Change, GroupRow, Left, LogStart, MemberRow};
use serde::{Deserialize, Serialize};

/// What of a group's profile is to be another.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProfileChange {
    /// Its name.
    pub name: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// Its avatar.
    pub avatar: Option<String>,
    /// Its announcement.
    pub announcement: Option<String>,
    /// Entries of its custom map: a value sets, none takes away.
    pub custom: Vec<(String, Option<String>)>,
    /// Its join policy.
    pub join_policy: Option<JoinPolicy>,
    /// Who may add members.
    pub add_policy: Option<AddPolicy>,
    /// What later members may read.
    pub history_for_new_members: Option<HistoryForNewMembers>,
}

/// What is to happen to a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupCommand {
    /// It is made.
    Create {
        /// What it says about itself.
        profile: GroupProfile,
        /// Its members besides who asks. A service is none: it names them all, the owner first.
        members: Vec<UserId>,
        /// Whether its members never change.
        unique: bool,
    },
    /// Its profile is another.
    Update(ProfileChange),
    /// Members are added.
    Add(Vec<UserId>),
    /// Members are removed.
    Remove(Vec<UserId>),
    /// Who asks leaves.
    Leave,
    /// A member becomes an admin, or an admin a member.
    SetRole(UserId, GroupRole),
    /// Another member becomes the owner.
    Transfer(UserId),
    /// A member, or everybody but the admins, is silenced until a time, or no more.
    Mute(Option<UserId>, Option<Timestamp>),
    /// Who asks becomes a member of an open group.
    Join,
    /// Somebody who asked to join is let in.
    Admit(UserId),
    /// It ends.
    Disband,
}

/// The place of the entry that is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPlace {
    /// Its number.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// How many messages up to it count as unread.
    pub ordinal: u64,
    /// Where the log begins.
    pub start: LogStart,
}

/// An entry that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Its kind.
    pub kind: MessageKind,
    /// What readers see.
    pub content: Content,
    /// What it changes.
    pub change: Change,
}

/// A body that is JSON in both codecs.
pub(in crate::actors) fn json(body: &impl Serialize) -> Content {
    let content_type = ContentType::new("application/json").expect("a valid content type");
    let body = serde_json::to_vec(body).expect("a body of strings and numbers can be written");
    Content { content_type, body: Bytes::from(body) }
}

fn invalid(text: impl Into<String>) -> RequestError {
    RequestError::not_done(ErrorCode::INVALID_REQUEST, text)
}

/// Makes the entry that carries out a command; `None` if there is nothing to change.
///
/// # Errors
/// As the wire says: `NOT_FOUND` also for whoever may not know of the group.
pub fn decide(
    id: &GroupId,
    group: Option<&Group>,
    asking: &Asking,
    command: &GroupCommand,
    at: EntryPlace,
    limits: GroupLimits,
) -> Result<Option<Decided>, RequestError> {
    if let GroupCommand::Create { profile, members, unique } = command {
        return match group {
            Some(_) => Err(RequestError::not_done(ErrorCode::GROUP_EXISTS, "there is a group of that id")),
            None => create(id, asking, (profile, members, *unique), at, limits).map(Some),
        };
    }
    let group = group.ok_or_else(not_found)?;
    let decision = Decision { id, group, asking, at, limits };
    if group.row.disbanded_at.is_some() {
        decision.standing()?;
        return Err(ended());
    }
    match command {
        GroupCommand::Create { .. } => unreachable!("it was answered above"),
        GroupCommand::Update(change) => decision.update(change),
        GroupCommand::Add(users) => decision.add(users),
        GroupCommand::Remove(users) => decision.remove(users),
        GroupCommand::Leave => decision.leave(),
        GroupCommand::SetRole(user, role) => decision.set_role(user, *role),
        GroupCommand::Transfer(to) => decision.transfer(to),
        GroupCommand::Mute(Some(user), until) => decision.mute_member(user, *until),
        GroupCommand::Mute(None, until) => decision.mute_all(*until),
        GroupCommand::Join => decision.join(),
        GroupCommand::Admit(user) => decision.admit(user),
        GroupCommand::Disband => decision.disband(),
    }
}

fn check_users(users: &[UserId]) -> Result<(), RequestError> {
    if users.len() > MAX_MEMBERS_PER_REQUEST {
        return Err(invalid(format!("{} users are more than {MAX_MEMBERS_PER_REQUEST}", users.len())));
    }
    if users.iter().any(|user| user.as_str() == SYSTEM_USER) {
        return Err(invalid("the system is a member of no group"));
    }
    Ok(())
}

fn create(
    id: &GroupId,
    asking: &Asking,
    (profile, members, unique): (&GroupProfile, &[UserId], bool),
    at: EntryPlace,
    limits: GroupLimits,
) -> Result<Decided, RequestError> {
    check_users(members)?;
    profile::check(profile)?;
    let own = (asking.role == Role::User).then_some(&asking.user);
    let mut users: Vec<&UserId> = own.into_iter().collect();
    for user in members {
        if !users.contains(&user) {
            users.push(user);
        }
    }
    if users.is_empty() {
        return Err(invalid("a service names the members, the owner first"));
    }
    if users.len() > limits.max_members {
        return Err(full(limits));
    }
    let profile = profile.clone();
    let row = GroupRow {
        name: profile.name,
        description: profile.description,
        avatar: profile.avatar,
        announcement: profile.announcement,
        custom: profile.custom,
        join_policy: profile.join_policy,
        add_policy: profile.add_policy,
        history_for_new_members: profile.history_for_new_members,
        unique,
        created_at: at.time,
        created_by: asking.user.clone(),
        muted_until: None,
        disbanded_at: None,
        version: at.seq,
    };
    let member = |(n, user): (usize, &&UserId)| {
        let role = if n == 0 { GroupRole::OWNER } else { GroupRole::MEMBER };
        new_member(user, &asking.user, role, row.history_for_new_members, at)
    };
    let members: Vec<_> = users.iter().enumerate().map(member).collect();
    let changes = members.iter().map(|member| change_of(MemberEvent::ADDED, member)).collect();
    Ok(group_entry(id, asking, GroupEvent::CREATED, row, (members, changes)))
}

fn full(limits: GroupLimits) -> RequestError {
    RequestError::not_done(
        ErrorCode::GROUP_FULL,
        format!("a group has at most {} members", limits.max_members),
    )
}

fn new_member(
    user: &UserId,
    added_by: &UserId,
    role: GroupRole,
    history: HistoryForNewMembers,
    at: EntryPlace,
) -> MemberRow {
    let (visible_from, from_ordinal) = match history {
        HistoryForNewMembers::EVERYTHING => (at.start.seq, at.start.ordinal),
        _ => (at.seq, at.ordinal),
    };
    MemberRow {
        user: user.clone(),
        role,
        joined_at: at.time,
        added_by: added_by.clone(),
        muted_until: None,
        visible_from,
        from_ordinal,
        left: None,
        version: at.seq,
    }
}

fn change_of(event: MemberEvent, member: &MemberRow) -> MemberChange {
    MemberChange { event, member: wire_member(member) }
}

fn group_entry(
    id: &GroupId,
    asking: &Asking,
    event: GroupEvent,
    row: GroupRow,
    (members, changes): (Vec<MemberRow>, Vec<MemberChange>),
) -> Decided {
    let body = GroupChanged { by: asking.user.clone(), event, group: info(id, &row), changes };
    Decided { kind: MessageKind::GROUP, content: json(&body), change: Change::Group(Box::new(row), members) }
}

struct Decision<'a> {
    id: &'a GroupId,
    group: &'a Group,
    asking: &'a Asking,
    at: EntryPlace,
    limits: GroupLimits,
}

type Outcome = Result<Option<Decided>, RequestError>;

impl Decision<'_> {
    /// The role with which somebody asks. Who never was a member learns nothing of the group.
    fn standing(&self) -> Result<GroupRole, RequestError> {
        let Asking { user, role } = self.asking;
        match (role, self.group.members.get(user)) {
            (Role::Service, _) => Ok(GroupRole::OWNER),
            (Role::User, None) => Err(not_found()),
            (Role::User, Some(member)) if member.left.is_some() => {
                Err(not_permitted("you are no member of the group any more"))
            }
            (Role::User, Some(member)) => Ok(member.role),
        }
    }

    fn at_least(&self, role: GroupRole, what: &str) -> Result<GroupRole, RequestError> {
        let own = self.standing()?;
        if own < role { Err(not_permitted(&format!("{what} is for {role}s and above"))) } else { Ok(own) }
    }

    fn fixed(&self) -> Result<(), RequestError> {
        match self.group.row.unique {
            true => Err(not_permitted("the members of a unique group never change")),
            false => Ok(()),
        }
    }

    fn member_of(&self, user: &UserId) -> Result<&MemberRow, RequestError> {
        let missing = || RequestError::not_done(ErrorCode::NOT_FOUND, format!("{user} is no member"));
        self.group.member(user).ok_or_else(missing)
    }

    fn members_entry(&self, changed: Vec<(MemberEvent, MemberRow)>) -> Option<Decided> {
        if changed.is_empty() {
            return None;
        }
        let changes = changed.iter().map(|(event, member)| change_of(*event, member)).collect();
        let body = MembersChanged { by: self.asking.user.clone(), changes };
        let rows = changed.into_iter().map(|(_, member)| member).collect();
        Some(Decided { kind: MessageKind::MEMBERS, content: json(&body), change: Change::Members(rows) })
    }

    fn changed(&self, member: &MemberRow, change: impl FnOnce(&mut MemberRow)) -> MemberRow {
        let mut member = MemberRow { version: self.at.seq, ..member.clone() };
        change(&mut member);
        member
    }

    fn gone(&self, member: &MemberRow) -> MemberRow {
        let left = Left { seq: self.at.seq, ordinal: self.at.ordinal, time: self.at.time };
        self.changed(member, |member| {
            member.left = Some(left);
            member.role = GroupRole::MEMBER;
        })
    }

    fn row_entry(&self, event: GroupEvent, change: impl FnOnce(&mut GroupRow)) -> Option<Decided> {
        let mut row = self.group.row.clone();
        change(&mut row);
        if row == self.group.row {
            return None;
        }
        row.version = self.at.seq;
        Some(group_entry(self.id, self.asking, event, row, (Vec::new(), Vec::new())))
    }

    fn update(&self, change: &ProfileChange) -> Outcome {
        self.at_least(GroupRole::ADMIN, "changing the group")?;
        let mut profile = self.group.info(self.id).profile;
        let ProfileChange { name, description, avatar, announcement, custom, .. } = change.clone();
        for (field, new) in [
            (&mut profile.name, name),
            (&mut profile.description, description),
            (&mut profile.avatar, avatar),
            (&mut profile.announcement, announcement),
        ] {
            *field = new.unwrap_or(std::mem::take(field));
        }
        for (key, value) in custom {
            match value {
                Some(value) => drop(profile.custom.insert(key, value)),
                None => drop(profile.custom.remove(&key)),
            }
        }
        profile.join_policy = change.join_policy.unwrap_or(profile.join_policy);
        profile.add_policy = change.add_policy.unwrap_or(profile.add_policy);
        profile.history_for_new_members =
            change.history_for_new_members.unwrap_or(profile.history_for_new_members);
        profile::check(&profile)?;
        Ok(self.row_entry(GroupEvent::UPDATED, |row| {
            row.name = profile.name;
            row.description = profile.description;
            row.avatar = profile.avatar;
            row.announcement = profile.announcement;
            row.custom = profile.custom;
            row.join_policy = profile.join_policy;
            row.add_policy = profile.add_policy;
            row.history_for_new_members = profile.history_for_new_members;
        }))
    }

    fn add(&self, users: &[UserId]) -> Outcome {
        match self.group.row.add_policy {
            AddPolicy::MEMBERS => self.standing()?,
            _ => self.at_least(GroupRole::ADMIN, "adding members")?,
        };
        self.fixed()?;
        check_users(users)?;
        self.come(users, MemberEvent::ADDED)
    }

    fn come(&self, users: &[UserId], event: MemberEvent) -> Outcome {
        let mut new: Vec<(MemberEvent, MemberRow)> = Vec::new();
        for user in users {
            if self.group.member(user).is_none() && new.iter().all(|(_, member)| member.user != *user) {
                let history = self.group.row.history_for_new_members;
                let member = new_member(user, &self.asking.user, GroupRole::MEMBER, history, self.at);
                new.push((event, member));
            }
        }
        if self.group.count() + new.len() > self.limits.max_members {
            return Err(full(self.limits));
        }
        Ok(self.members_entry(new))
    }

    fn remove(&self, users: &[UserId]) -> Outcome {
        let own = self.at_least(GroupRole::ADMIN, "removing members")?;
        self.fixed()?;
        check_users(users)?;
        let mut gone: Vec<(MemberEvent, MemberRow)> = Vec::new();
        for member in users.iter().filter_map(|user| self.group.member(user)) {
            if member.role == GroupRole::OWNER {
                return Err(not_permitted("the owner transfers or disbands the group first"));
            }
            if member.role >= own {
                return Err(not_permitted("admins are removed by the owner"));
            }
            if gone.iter().all(|(_, other)| other.user != member.user) {
                gone.push((MemberEvent::REMOVED, self.gone(member)));
            }
        }
        Ok(self.members_entry(gone))
    }

    fn leave(&self) -> Outcome {
        if self.asking.role == Role::User {
            self.standing()?;
        }
        self.fixed()?;
        let Some(member) = self.group.member(&self.asking.user) else { return Ok(None) };
        if member.role == GroupRole::OWNER {
            return Err(not_permitted("the owner transfers or disbands the group first"));
        }
        Ok(self.members_entry(vec![(MemberEvent::LEFT, self.gone(member))]))
    }

    fn set_role(&self, user: &UserId, role: GroupRole) -> Outcome {
        self.at_least(GroupRole::OWNER, "naming admins")?;
        if role != GroupRole::MEMBER && role != GroupRole::ADMIN {
            return Err(invalid("a role that is given is member or admin"));
        }
        let member = self.member_of(user)?;
        if member.role == GroupRole::OWNER {
            return Err(not_permitted("the owner stays it until the group is transferred"));
        }
        if member.role == role {
            return Ok(None);
        }
        let member = self.changed(member, |member| member.role = role);
        Ok(self.members_entry(vec![(MemberEvent::ROLE, member)]))
    }

    fn transfer(&self, to: &UserId) -> Outcome {
        self.at_least(GroupRole::OWNER, "transferring the group")?;
        let heir = self.member_of(to)?;
        if heir.role == GroupRole::OWNER {
            return Ok(None);
        }
        let owner = self.group.owner().and_then(|owner| self.group.member(owner));
        let former = owner.map(|owner| self.changed(owner, |owner| owner.role = GroupRole::ADMIN));
        let heir = self.changed(heir, |heir| heir.role = GroupRole::OWNER);
        let changed = former.into_iter().chain([heir]).map(|member| (MemberEvent::ROLE, member));
        Ok(self.members_entry(changed.collect()))
    }

    /// Until when, if that is still to come.
    fn until(&self, until: Option<Timestamp>) -> Option<Timestamp> {
        until.filter(|until| *until > self.at.time)
    }

    fn mute_member(&self, user: &UserId, until: Option<Timestamp>) -> Outcome {
        let own = self.at_least(GroupRole::ADMIN, "muting members")?;
        let member = self.member_of(user)?;
        if member.role == GroupRole::OWNER || member.role >= own {
            return Err(not_permitted("admins mute members, the owner mutes admins"));
        }
        let until = self.until(until);
        if self.until(member.muted_until) == until {
            return Ok(None);
        }
        let member = self.changed(member, |member| member.muted_until = until);
        Ok(self.members_entry(vec![(MemberEvent::MUTED, member)]))
    }

    fn mute_all(&self, until: Option<Timestamp>) -> Outcome {
        self.at_least(GroupRole::ADMIN, "muting the group")?;
        let until = self.until(until);
        if self.until(self.group.row.muted_until) == until {
            return Ok(None);
        }
        Ok(self.row_entry(GroupEvent::MUTED, |row| row.muted_until = until))
    }

    fn join(&self) -> Outcome {
        let user = &self.asking.user;
        if self.group.member(user).is_some() {
            return Ok(None);
        }
        if self.group.row.join_policy != JoinPolicy::OPEN || self.group.row.unique {
            return Err(not_found());
        }
        self.come(std::slice::from_ref(user), MemberEvent::JOINED)
    }

    fn admit(&self, user: &UserId) -> Outcome {
        self.at_least(GroupRole::ADMIN, "letting somebody in")?;
        self.fixed()?;
        check_users(std::slice::from_ref(user))?;
        self.come(std::slice::from_ref(user), MemberEvent::ADDED)
    }

    fn disband(&self) -> Outcome {
        self.at_least(GroupRole::OWNER, "disbanding the group")?;
        Ok(self.row_entry(GroupEvent::DISBANDED, |row| row.disbanded_at = Some(self.at.time)))
    }
}
