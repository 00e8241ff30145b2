//! What operators look at: sessions, conversations, groups, memory.

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::group::GroupRole;
use convoke_protocol::id::{ConversationId, GroupId, Seq, UserId};

use crate::actors::conversation::Attending;
use crate::actors::conversation::core::Head;
use crate::actors::session::SessionShared;
use crate::actors::session::dispatch::Services;
use crate::node::store::NodeStore;
use crate::operator::{
    ConversationLine, ConversationLines, ConversationState, DEFAULT_LINES, GroupLine, GroupLines, Kicked,
    MAX_LINES, Memory, PageOf, SessionLine, SessionLines, WhichSessions,
};
use crate::storage::{MemberRow, ReadError};
use crate::telemetry::process;

/// Members that are read at a time.
const MEMBERS_PER_READ: usize = 1_000;

fn is_meant(which: &WhichSessions, session: &SessionShared) -> bool {
    which.user.as_ref().is_none_or(|user| *user == session.user)
        && which.device.as_ref().is_none_or(|device| *device == session.device)
        && which.session.is_none_or(|id| id == session.id)
}

pub(super) fn sessions(services: &Services, which: &WhichSessions) -> SessionLines {
    let now_ms = services.clock.monotonic_ms();
    let mut meant = Vec::new();
    services.sessions.for_each(|session| {
        if is_meant(which, session) {
            meant.push(session.clone());
        }
    });
    let total = meant.len();
    // Ids that were made in the same millisecond rise, too.
    meant.sort_by(|one, other| {
        one.user.cmp(&other.user).then(one.since.cmp(&other.since)).then(one.id.cmp(&other.id))
    });
    meant.truncate(which.limit.unwrap_or(DEFAULT_LINES).min(MAX_LINES));
    let line = |session: &std::sync::Arc<SessionShared>| SessionLine {
        session: session.id,
        user: session.user.clone(),
        device: session.device.clone(),
        device_class: session.device_class.to_string(),
        app: session.app.clone(),
        framing: session.egress.framing().name().to_owned(),
        since: session.since,
        queued_bytes: session.egress.queued_bytes(),
        in_flight: session.egress.in_flight(),
        unacked_ms: session.egress.unacked_for_ms(now_ms),
        silent_ms: session.egress.silent_for_ms(now_ms),
    };
    SessionLines { total, sessions: meant.iter().map(line).collect() }
}

/// Closes sessions; `Err` if it is not said whose.
pub(super) fn kick(services: &Services, which: &WhichSessions) -> Result<Kicked, &'static str> {
    if which.user.is_none() && which.session.is_none() {
        return Err("say whose: a user or a session");
    }
    let mut kicked = 0;
    services.sessions.for_each(|session| {
        if is_meant(which, session) {
            session.kick(ErrorCode::CLOSED_BY_USER, "closed by an operator");
            kicked += 1;
        }
    });
    Ok(Kicked { kicked })
}

pub(super) async fn conversations(
    services: &Services,
    page: &PageOf,
) -> Result<ConversationLines, ReadError> {
    let limit = page.limit.clamp(1, MAX_LINES);
    let after = page.after.as_ref();
    let ids = match page.active {
        true => services.conversations.here().active_after(after, limit),
        false => services.stores.retention.logs(after, limit).await?,
    };
    let tails = services.stores.log.tails(&ids).await?;
    let next = (ids.len() == limit).then(|| ids.last().cloned()).flatten();
    let line = |(conversation, tail): (ConversationId, crate::storage::Tail)| ConversationLine {
        active: services.conversations.here().activity(&conversation).is_some(),
        head: tail.hinted.as_ref().map_or(Seq::ZERO, |row| row.seq),
        last: tail.hinted.map(|row| row.entry.time),
        conversation,
    };
    Ok(ConversationLines {
        active: services.conversations.here().active(),
        conversations: ids.into_iter().zip(tails).map(line).collect(),
        next,
    })
}

async fn group_line(services: &Services, group: &GroupId) -> Result<Option<GroupLine>, ReadError> {
    let Some(row) = services.stores.groups.group(group).await? else { return Ok(None) };
    let (mut members, mut owner, mut after): (usize, Option<UserId>, Option<UserId>) = (0, None, None);
    loop {
        let page = services.stores.groups.members(group, after.as_ref(), MEMBERS_PER_READ).await?;
        let present = || page.iter().filter(|member: &&MemberRow| member.left.is_none());
        members += present().count();
        owner =
            owner.or_else(|| present().find(|one| one.role == GroupRole::OWNER).map(|one| one.user.clone()));
        if page.len() < MEMBERS_PER_READ {
            break;
        }
        after = page.last().map(|member| member.user.clone());
    }
    Ok(Some(GroupLine {
        group: group.clone(),
        name: row.name,
        owner,
        members,
        created_at: row.created_at,
        disbanded: row.disbanded_at.is_some(),
        active: services.conversations.here().activity(&ConversationId::group(group)).is_some(),
    }))
}

/// What there is to say about a conversation; `None` if there is none of that id.
pub(super) async fn conversation(
    services: &Services,
    id: &ConversationId,
) -> Result<Option<ConversationState>, ReadError> {
    let tail = services.stores.log.tails(std::slice::from_ref(id)).await?.pop();
    let activity = services.conversations.activity(id).await;
    let Some(tail) = tail.filter(|tail| tail.hinted.is_some() || !tail.settled || activity.is_some()) else {
        return Ok(None);
    };
    // Its owner knows where it ends; the store alone knows up to where it was when it last slept.
    let attending = Attending::of_the_node(services.conversations.peers().me());
    let seen = services.conversations.attend(id, &attending).await.ok();
    let hinted = tail.hinted.as_ref();
    let head = seen.map_or_else(|| hinted.map_or(Head::EMPTY, Head::of), |seen| seen.head);
    let retention = services.stores.retention.retention(id).await?;
    let group = match id.group_id() {
        Some(group) => group_line(services, &group).await?,
        None => None,
    };
    Ok(Some(ConversationState {
        conversation: id.clone(),
        shard: None,
        owner: None,
        active: activity.is_some(),
        memory_bytes: activity.map(|activity| activity.memory_bytes),
        listeners: activity.map_or(0, |activity| activity.listeners),
        head: head.seq,
        last: (head.seq > Seq::ZERO).then_some(head.time),
        first: tail.start.seq,
        retention: retention.map(|rule| serde_json::json!(rule)),
        group,
    }))
}

pub(super) async fn groups(services: &Services, page: &PageOf) -> Result<GroupLines, ReadError> {
    let limit = page.limit.clamp(1, MAX_LINES);
    // The ids of groups' conversations are one after the other: `d:` lies before them all.
    let first = || ConversationId::new("d:~:~").ok();
    let mut after = page.after.clone().filter(|id| id.group_id().is_some()).or_else(first);
    let mut lines = GroupLines { groups: Vec::new(), next: None };
    loop {
        let ids = services.stores.retention.logs(after.as_ref(), limit).await?;
        let is_last = ids.len() < limit;
        for id in ids {
            if lines.groups.len() == limit {
                lines.next = after;
                return Ok(lines);
            }
            let group = id.group_id();
            after = Some(id);
            if let Some(group) = group
                && let Some(line) = group_line(services, &group).await?
                && (!page.active || line.active)
            {
                lines.groups.push(line);
            }
        }
        if is_last {
            return Ok(lines);
        }
    }
}

pub(super) async fn memory(services: &Services, store: &NodeStore) -> Memory {
    let (mut session_bytes, mut session_queue_bytes) = (0, 0);
    services.sessions.for_each(|session| {
        session_bytes += session.held_bytes();
        session_queue_bytes += session.egress.held_bytes();
    });
    let hub = services.hub.memory().await;
    let stored = store.memory();
    Memory {
        sessions: services.sessions.len(),
        session_bytes,
        session_queue_bytes,
        conversations: services.conversations.here().active(),
        conversation_bytes: services.conversations.here().held_bytes(),
        listeners: hub.listeners,
        listener_bytes: hub.bytes,
        store_queue_bytes: stored.queue_bytes,
        store_memtable_bytes: stored.memtable_bytes,
        store_cache_bytes: stored.cache_bytes,
        resident_bytes: process::resident_bytes().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0),
    }
}
