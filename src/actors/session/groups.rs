//! Groups: requests become commands of their conversations, which decide.

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::{JoinAnswered, JoinRequested, ListChanged};
use convoke_protocol::frame::Event;
use convoke_protocol::group::{JoinPolicy, MAX_JOIN_MESSAGE_BYTES, MAX_JOIN_REQUESTS};
use convoke_protocol::id::{ConversationId, GroupId, Seq, UserId};
use convoke_protocol::request::Retry;
use convoke_protocol::request::groups::{
    AddMembers, CreateGroup, DecideJoin, DisbandGroup, GetGroup, GroupCreated, GroupDisbanded, GroupJoined,
    GroupLeft, GroupMembers, GroupMembersPage, GroupState, GroupTransferred, GroupUpdated, JoinDecided,
    JoinGroup, JoinRequest, JoinRequests, JoinRequestsPage, LeaveGroup, MembersAdded, MembersRemoved, Mute,
    Muted, RemoveMembers, RoleSet, SetRole, TransferGroup, UpdateGroup,
};

use super::reading::{Reader, invalid, unavailable, unkept};
use crate::actors::conversation::core::Act;
use crate::actors::conversation::group::{
    Group, GroupCommand, MAX_UNIQUE_GROUPS, ProfileChange, not_found, unique_id, wire_member,
};
use crate::auth::Role;
use crate::storage::JoinRequestRow;

impl Reader<'_> {
    async fn command(
        &self,
        group: &GroupId,
        retry: Retry,
        command: GroupCommand,
    ) -> Result<Option<Seq>, RequestError> {
        let act = match &command {
            GroupCommand::Create { .. } => "create_group",
            GroupCommand::Update(_) => "update_group",
            GroupCommand::Add(_) => "add_members",
            GroupCommand::Remove(_) => "remove_members",
            GroupCommand::Leave => "leave_group",
            GroupCommand::SetRole(..) => "set_role",
            GroupCommand::Transfer(_) => "transfer_group",
            GroupCommand::Mute(..) => "mute",
            GroupCommand::Join => "join_group",
            GroupCommand::Admit(_) => "decide_join",
            GroupCommand::Disband => "disband_group",
        };
        let seq = self.act(&ConversationId::group(group), retry, Act::Group(command)).await?;
        if self.role == Role::Service {
            self.audit(act, group.as_str(), seq);
        }
        Ok(seq)
    }

    /// Looks at a group as one who may know of it: a member, or a service.
    async fn look<T: Send + 'static>(
        &self,
        act: &str,
        group: &GroupId,
        look: impl FnOnce(&Group, &UserId) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let (user, is_service) = (self.session.user.clone(), self.role == Role::Service);
        let look = move |group: Option<&Group>| {
            let group = group.filter(|group| is_service || group.member(&user).is_some());
            look(group.ok_or_else(not_found)?, &user)
        };
        let seen = self.services.conversations.look(ConversationId::group(group), look).await?;
        if seen.is_ok() {
            self.audit_read(act, &ConversationId::group(group));
        }
        seen
    }

    pub(super) async fn create_group(&self, ask: CreateGroup) -> Result<GroupCreated, RequestError> {
        let CreateGroup { retry, group, unique, profile, members } = ask;
        if unique {
            if group.is_some() {
                return Err(invalid("a unique group has no id of one's own choice"));
            }
            return self.create_unique(retry, profile, members).await;
        }
        let group = match group {
            Some(group) if group.as_str().starts_with("u-") => {
                return Err(invalid("ids that begin with u- are those of unique groups"));
            }
            Some(group) => group,
            None => {
                // Every attempt of this request gets the same one.
                let new = GroupId::new(&uuid::Uuid::now_v7().to_string()).expect("a uuid is a valid name");
                let store = &self.services.stores.groups;
                let claimed = store.claim_group_id(&self.session.user, retry.client_id, &new).await;
                claimed.map_err(|error| unkept(&error))?
            }
        };
        let command = GroupCommand::Create { profile, members: members.clone(), unique };
        let seq = self.command(&group, retry, command).await?.unwrap_or(Seq(1));
        let conversation = ConversationId::group(&group);
        self.tell_list_changed(&members, &conversation).await;
        Ok(GroupCreated { group, conversation, created: true, seq })
    }

    async fn create_unique(
        &self,
        retry: Retry,
        profile: convoke_protocol::group::GroupProfile,
        members: Vec<UserId>,
    ) -> Result<GroupCreated, RequestError> {
        let own = (self.role == Role::User).then(|| self.session.user.clone());
        let mut participants: Vec<UserId> = members.iter().cloned().chain(own).collect();
        participants.sort();
        participants.dedup();
        for nth in 0..MAX_UNIQUE_GROUPS {
            let group = unique_id(&participants, nth);
            let conversation = ConversationId::group(&group);
            let there = |seq, created| GroupCreated {
                group: group.clone(),
                conversation: conversation.clone(),
                created,
                seq,
            };
            // First the command: a retry of the one that made it is recognised by its conversation.
            let command =
                GroupCommand::Create { profile: profile.clone(), members: members.clone(), unique: true };
            match self.command(&group, retry, command).await {
                Ok(seq) => {
                    self.tell_list_changed(&members, &conversation).await;
                    return Ok(there(seq.unwrap_or(Seq(1)), true));
                }
                Err(error) if error.code == ErrorCode::GROUP_EXISTS => {
                    if self.is_unique_of(&conversation, participants.clone()).await? {
                        return Ok(there(Seq(1), false));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(RequestError::not_done(ErrorCode::TOO_MANY, "these participants disbanded too many groups"))
    }

    /// Whether a group goes on and has exactly these members.
    async fn is_unique_of(
        &self,
        conversation: &ConversationId,
        participants: Vec<UserId>,
    ) -> Result<bool, RequestError> {
        let look = move |group: Option<&Group>| {
            group.is_some_and(|group| {
                let members = group.members_after(None).map(|member| &member.user);
                group.row().disbanded_at.is_none() && members.eq(&participants)
            })
        };
        self.services.conversations.look(conversation.clone(), look).await
    }

    pub(super) async fn get_group(&self, ask: GetGroup) -> Result<GroupState, RequestError> {
        let GetGroup { group: id, known_version } = ask;
        let shown = id.clone();
        self.look("get_group", &id, move |group, user| {
            let version = group.version().0;
            let not_modified = known_version == Some(version);
            let state = GroupState {
                version,
                not_modified,
                info: None,
                owner: None,
                members: u32::try_from(group.count()).unwrap_or(u32::MAX),
                me: None,
            };
            if not_modified {
                return Ok(GroupState { members: 0, ..state });
            }
            Ok(GroupState {
                info: Some(group.info(&shown)),
                owner: group.owner().cloned(),
                me: group.member(user).map(wire_member),
                ..state
            })
        })
        .await
    }

    pub(super) async fn update_group(&self, ask: UpdateGroup) -> Result<GroupUpdated, RequestError> {
        let UpdateGroup { retry, group, name, description, avatar, announcement, custom, .. } = ask;
        let change = ProfileChange {
            name,
            description,
            avatar,
            announcement,
            custom,
            join_policy: ask.join_policy,
            add_policy: ask.add_policy,
            history_for_new_members: ask.history_for_new_members,
        };
        let seq = self.command(&group, retry, GroupCommand::Update(change)).await?;
        Ok(GroupUpdated { group, seq })
    }

    pub(super) async fn add_members(&self, ask: AddMembers) -> Result<MembersAdded, RequestError> {
        let AddMembers { retry, group, users } = ask;
        let seq = self.command(&group, retry, GroupCommand::Add(users.clone())).await?;
        if seq.is_some() {
            self.tell_list_changed(&users, &ConversationId::group(&group)).await;
        }
        Ok(MembersAdded { group, seq })
    }

    pub(super) async fn remove_members(&self, ask: RemoveMembers) -> Result<MembersRemoved, RequestError> {
        let RemoveMembers { retry, group, users } = ask;
        let seq = self.command(&group, retry, GroupCommand::Remove(users.clone())).await?;
        if seq.is_some() {
            self.tell_list_changed(&users, &ConversationId::group(&group)).await;
        }
        Ok(MembersRemoved { group, seq })
    }

    pub(super) async fn leave_group(&self, ask: LeaveGroup) -> Result<GroupLeft, RequestError> {
        let LeaveGroup { retry, group } = ask;
        let seq = self.command(&group, retry, GroupCommand::Leave).await?;
        Ok(GroupLeft { group, seq })
    }

    pub(super) async fn set_role(&self, ask: SetRole) -> Result<RoleSet, RequestError> {
        let SetRole { retry, group, user, role } = ask;
        let seq = self.command(&group, retry, GroupCommand::SetRole(user, role)).await?;
        Ok(RoleSet { group, seq })
    }

    pub(super) async fn transfer_group(&self, ask: TransferGroup) -> Result<GroupTransferred, RequestError> {
        let TransferGroup { retry, group, to } = ask;
        let seq = self.command(&group, retry, GroupCommand::Transfer(to)).await?;
        Ok(GroupTransferred { group, seq })
    }

    pub(super) async fn mute(&self, ask: Mute) -> Result<Muted, RequestError> {
        let Mute { retry, group, user, until } = ask;
        let seq = self.command(&group, retry, GroupCommand::Mute(user, until)).await?;
        Ok(Muted { group, seq })
    }

    pub(super) async fn disband_group(&self, ask: DisbandGroup) -> Result<GroupDisbanded, RequestError> {
        let DisbandGroup { retry, group } = ask;
        let seq = self.command(&group, retry, GroupCommand::Disband).await?;
        Ok(GroupDisbanded { group, seq })
    }

    pub(super) async fn join_group(&self, ask: JoinGroup) -> Result<GroupJoined, RequestError> {
        let JoinGroup { retry, group, message } = ask;
        if message.len() > MAX_JOIN_MESSAGE_BYTES {
            return Err(invalid(format!("the message has more than {MAX_JOIN_MESSAGE_BYTES} bytes")));
        }
        let user = self.session.user.clone();
        let asks = move |group: Option<&Group>| {
            let group = group.ok_or_else(not_found)?;
            let row = group.row();
            let may_ask = row.join_policy == JoinPolicy::APPROVAL && !row.unique;
            if group.member(&user).is_some() || !may_ask {
                return Ok(None);
            }
            if row.disbanded_at.is_some() {
                return Err(not_found());
            }
            Ok(Some(group.admins().cloned().collect::<Vec<_>>()))
        };
        let admins = self.services.conversations.look(ConversationId::group(&group), asks).await??;
        let Some(admins) = admins else {
            let seq = self.command(&group, retry, GroupCommand::Join).await?;
            return Ok(GroupJoined { group, seq, requested: false });
        };
        self.ask_to_join(&group, message, &admins).await?;
        Ok(GroupJoined { group, seq: None, requested: true })
    }

    async fn ask_to_join(
        &self,
        group: &GroupId,
        message: String,
        admins: &[UserId],
    ) -> Result<(), RequestError> {
        let (store, user) = (&self.services.stores.groups, &self.session.user);
        let waiting = store.join_requests(group, None, MAX_JOIN_REQUESTS).await;
        let waiting = waiting.map_err(|error| unavailable(&error))?;
        let before = waiting.iter().find(|request| request.user == *user);
        if before.is_none() && waiting.len() >= MAX_JOIN_REQUESTS {
            let error = RequestError::not_done(ErrorCode::TOO_MANY, "too many wait to be let in");
            return Err(error.retry_after(60_000));
        }
        let asked_at = before.map_or_else(|| self.services.clock.wall(), |request| request.asked_at);
        let request = JoinRequestRow { user: user.clone(), message: message.clone(), asked_at };
        store.put_join_request(group, &request).await.map_err(|error| unkept(&error))?;
        let event = Event::JoinRequested(JoinRequested { group: group.clone(), user: user.clone(), message });
        self.tell_users(admins, &event).await;
        Ok(())
    }

    pub(super) async fn join_requests(&self, ask: JoinRequests) -> Result<JoinRequestsPage, RequestError> {
        let limit = self.page_limit(ask.limit)?;
        self.must_be_admin(&ask.group).await?;
        let store = &self.services.stores.groups;
        let waiting = store.join_requests(&ask.group, ask.after.as_ref(), limit + 1).await;
        let mut waiting = waiting.map_err(|error| unavailable(&error))?;
        let next = (waiting.len() > limit).then(|| waiting[limit - 1].user.clone());
        waiting.truncate(limit);
        let request = |row: JoinRequestRow| JoinRequest {
            user: row.user,
            message: row.message,
            asked_at: row.asked_at,
        };
        Ok(JoinRequestsPage { requests: waiting.into_iter().map(request).collect(), next })
    }

    async fn must_be_admin(&self, group: &GroupId) -> Result<(), RequestError> {
        let is_service = self.role == Role::Service;
        self.look("look_at_group", group, move |group, user| {
            if is_service || group.is_admin(user) {
                return Ok(());
            }
            Err(RequestError::not_done(ErrorCode::NOT_PERMITTED, "this is for admins"))
        })
        .await
    }

    pub(super) async fn decide_join(&self, ask: DecideJoin) -> Result<JoinDecided, RequestError> {
        let DecideJoin { retry, group, user, accept } = ask;
        self.must_be_admin(&group).await?;
        let store = &self.services.stores.groups;
        let waiting = store.join_requests(&group, None, MAX_JOIN_REQUESTS).await;
        let is_waiting =
            waiting.map_err(|error| unavailable(&error))?.iter().any(|request| request.user == user);
        let mut seq = None;
        if accept {
            let of = user.clone();
            let is_member =
                self.look("look_at_group", &group, move |group, _| Ok(group.member(&of).is_some())).await?;
            if !is_waiting && !is_member {
                return Err(RequestError::not_done(
                    ErrorCode::NOT_FOUND,
                    format!("{user} did not ask to join"),
                ));
            }
            seq = self.command(&group, retry, GroupCommand::Admit(user.clone())).await?;
        } else if is_waiting {
            store.drop_join_request(&group, &user).await.map_err(|error| unkept(&error))?;
            if self.role == Role::Service {
                self.audit("decide_join", group.as_str(), None);
            }
        }
        if is_waiting {
            let event = Event::JoinAnswered(JoinAnswered { group: group.clone(), accepted: accept });
            self.tell_users(std::slice::from_ref(&user), &event).await;
        }
        Ok(JoinDecided { group, seq })
    }

    pub(super) async fn group_members(&self, ask: GroupMembers) -> Result<GroupMembersPage, RequestError> {
        let limit = self.page_limit(ask.limit)?;
        let GroupMembers { group, after, known_version, .. } = ask;
        self.look("group_members", &group, move |group, _| {
            let version = group.members_version().0;
            let not_modified = after.is_none() && known_version == Some(version);
            let mut page =
                GroupMembersPage { version, not_modified, members: Vec::new(), total: 0, next: None };
            if not_modified {
                return Ok(page);
            }
            page.total = u32::try_from(group.count()).unwrap_or(u32::MAX);
            page.members = group.members_after(after.as_ref()).take(limit + 1).map(wire_member).collect();
            if page.members.len() > limit {
                page.members.truncate(limit);
                page.next = page.members.last().map(|member| member.user.clone());
            }
            Ok(page)
        })
        .await
    }

    async fn tell_list_changed(&self, users: &[UserId], conversation: &ConversationId) {
        let event = Event::ListChanged(ListChanged { conversation: conversation.clone() });
        self.tell_users(users, &event).await;
    }
}
