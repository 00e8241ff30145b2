//! Examples of the frames of groups.

use std::collections::BTreeMap;

use super::{NOON, retry, user};
use crate::frame::{Answer, Request};
use crate::group::{
    AddPolicy, GroupChanged, GroupEvent, GroupInfo, GroupMember, GroupProfile, GroupRole,
    HistoryForNewMembers, JoinPolicy, MemberChange, MemberEvent, MembersChanged,
};
use crate::id::{ConversationId, GroupId, Seq};
use crate::message::MessageKind;
use crate::request::groups::{
    AddMembers, CreateGroup, DecideJoin, DisbandGroup, GetGroup, GroupCreated, GroupDisbanded, GroupJoined,
    GroupLeft, GroupMembers, GroupMembersPage, GroupState, GroupTransferred, GroupUpdated, JoinDecided,
    JoinGroup, JoinRequest, JoinRequests, JoinRequestsPage, LeaveGroup, MembersAdded, MembersRemoved, Mute,
    Muted, RemoveMembers, RoleSet, SetRole, TransferGroup, UpdateGroup,
};

pub(super) fn team() -> GroupId {
    GroupId::new("team").expect("a valid sample")
}

fn profile() -> GroupProfile {
    GroupProfile {
        name: "The team".into(),
        description: "who works on it".into(),
        avatar: "team.png".into(),
        announcement: "Monday at ten".into(),
        custom: BTreeMap::from([("colour".into(), "blue".into())]),
        join_policy: JoinPolicy::APPROVAL,
        add_policy: AddPolicy::MEMBERS,
        history_for_new_members: HistoryForNewMembers::EVERYTHING,
    }
}

fn member() -> GroupMember {
    GroupMember {
        user: user("bob"),
        role: GroupRole::ADMIN,
        joined_at: NOON,
        added_by: user("alice"),
        muted_until: None,
        visible_from: Seq(4),
        visible_to: None,
    }
}

pub(super) fn text(body: &impl serde::Serialize) -> String {
    serde_json::to_string(body).expect("a sample can be written")
}

fn info() -> GroupInfo {
    GroupInfo {
        group: team(),
        profile: profile(),
        unique: false,
        created_at: NOON,
        created_by: user("alice"),
        muted_until: None,
        disbanded_at: None,
    }
}

pub(super) fn requests() -> Vec<Request> {
    let (group, retry) = (team(), retry());
    vec![
        CreateGroup {
            retry,
            group: Some(team()),
            unique: false,
            profile: profile(),
            members: vec![user("bob"), user("carol")],
        }
        .into(),
        GetGroup { group: team(), known_version: Some(7) }.into(),
        UpdateGroup {
            retry,
            group: team(),
            name: Some("Our team".into()),
            description: None,
            avatar: None,
            announcement: Some("Tuesday at ten".into()),
            custom: vec![("colour".into(), None), ("floor".into(), Some("3".into()))],
            join_policy: Some(JoinPolicy::OPEN),
            add_policy: None,
            history_for_new_members: None,
        }
        .into(),
        AddMembers { retry, group: team(), users: vec![user("dave")] }.into(),
        RemoveMembers { retry, group: team(), users: vec![user("dave")] }.into(),
        LeaveGroup { retry, group: team() }.into(),
        SetRole { retry, group: team(), user: user("bob"), role: GroupRole::ADMIN }.into(),
        TransferGroup { retry, group: team(), to: user("bob") }.into(),
        Mute { retry, group: team(), user: Some(user("bob")), until: Some(NOON) }.into(),
        JoinGroup { retry, group: team(), message: "let me in".into() }.into(),
        JoinRequests { group: team(), after: Some(user("bob")), limit: 50 }.into(),
        DecideJoin { retry, group: team(), user: user("carol"), accept: true }.into(),
        DisbandGroup { retry, group: team() }.into(),
        GroupMembers { group, after: Some(user("alice")), limit: 100, known_version: Some(7) }.into(),
    ]
}

pub(super) fn answers() -> Vec<Answer> {
    let seq = Some(Seq(7));
    let request = JoinRequest { user: user("carol"), message: "let me in".into(), asked_at: NOON };
    vec![
        GroupCreated {
            group: team(),
            conversation: ConversationId::group(&team()),
            created: true,
            seq: Seq(1),
        }
        .into(),
        GroupState {
            version: 7,
            not_modified: false,
            info: Some(info()),
            owner: Some(user("alice")),
            members: 3,
            me: Some(member()),
        }
        .into(),
        GroupUpdated { group: team(), seq }.into(),
        MembersAdded { group: team(), seq }.into(),
        MembersRemoved { group: team(), seq: None }.into(),
        GroupLeft { group: team(), seq }.into(),
        RoleSet { group: team(), seq }.into(),
        GroupTransferred { group: team(), seq }.into(),
        Muted { group: team(), seq }.into(),
        GroupJoined { group: team(), seq: None, requested: true }.into(),
        JoinRequestsPage { requests: vec![request], next: None }.into(),
        JoinDecided { group: team(), seq }.into(),
        GroupDisbanded { group: team(), seq }.into(),
        GroupMembersPage {
            version: 7,
            not_modified: false,
            members: vec![member()],
            total: 3,
            next: Some(user("bob")),
        }
        .into(),
    ]
}

/// The bodies of entries that are JSON in both codecs, by the kind of the entry.
pub(super) fn entry_bodies() -> Vec<(MessageKind, String)> {
    let change = |event| MemberChange { event, member: member() };
    let (by, info) = (user("alice"), info());
    let members = MembersChanged { by: by.clone(), changes: vec![change(MemberEvent::ROLE)] };
    let made = GroupChanged {
        by,
        event: GroupEvent::CREATED,
        group: info,
        changes: vec![change(MemberEvent::ADDED)],
    };
    vec![(MessageKind::MEMBERS, text(&members)), (MessageKind::GROUP, text(&made))]
}
