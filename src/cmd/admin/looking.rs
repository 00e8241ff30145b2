//! Answers of a node, for people.

use convoke_protocol::id::Timestamp;

use super::table::{bytes, table};
use crate::load::report::conditions::utc;
use crate::operator::{
    AuditLines, ConversationLines, ConversationState, GroupLine, GroupLines, Memory, NodeLines, SessionLines,
    ShardLines, UserState,
};

/// A time as people write it, in UTC.
fn time(at: Timestamp) -> String {
    utc(at.0 / 1_000)
}

fn time_or_none(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "–".to_owned(), time)
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

pub(super) fn sessions(all: &SessionLines) -> String {
    let lines = all.sessions.iter().map(|one| {
        [
            one.user.to_string(),
            one.device.to_string(),
            one.framing.clone(),
            time(one.since),
            bytes(one.queued_bytes),
            one.in_flight.to_string(),
            format!("{} s", one.unacked_ms / 1_000),
            format!("{} s", one.silent_ms / 1_000),
            one.session.to_string(),
            one.app.clone(),
        ]
    });
    let headings =
        ["user", "device", "framing", "since", "queued", "in flight", "unacked", "silent", "session", "app"];
    format!("{}{} of {}\n", table(headings, lines), all.sessions.len(), all.total)
}

pub(super) fn conversations(page: &ConversationLines) -> String {
    let lines = page.conversations.iter().map(|one| {
        [one.conversation.to_string(), one.head.to_string(), time_or_none(one.last), yes(one.active)]
    });
    let next = page.next.as_ref().map_or(String::new(), |next| format!("more: --after {next}\n"));
    format!(
        "{}{} are in memory\n{next}",
        table(["conversation", "head", "last", "active"], lines),
        page.active
    )
}

fn group_cells(one: &GroupLine) -> [String; 7] {
    [
        one.group.to_string(),
        one.name.clone(),
        one.owner.as_ref().map_or_else(|| "–".to_owned(), ToString::to_string),
        one.members.to_string(),
        time(one.created_at),
        yes(one.disbanded),
        yes(one.active),
    ]
}

const GROUP_HEADINGS: [&str; 7] = ["group", "name", "owner", "members", "made", "disbanded", "active"];

pub(super) fn groups(page: &GroupLines) -> String {
    let next = page.next.as_ref().map_or(String::new(), |next| format!("more: --after {next}\n"));
    table(GROUP_HEADINGS, page.groups.iter().map(group_cells)) + &next
}

pub(super) fn conversation(one: &ConversationState) -> String {
    let mut lines = vec![
        ["conversation".to_owned(), one.conversation.to_string()],
        [
            "owner".into(),
            one.shard.map_or("this node".into(), |shard| {
                format!("{} (shard {shard})", or_none(one.owner.as_ref()))
            }),
        ],
        ["head".into(), one.head.to_string()],
        ["last".into(), time_or_none(one.last)],
        ["first".into(), one.first.to_string()],
        ["active".into(), one.memory_bytes.map_or("no".into(), |held| format!("yes, {}", bytes(held)))],
        ["listeners".into(), one.listeners.to_string()],
        ["kept".into(), one.retention.as_ref().map_or("as configured".into(), ToString::to_string)],
    ];
    if let Some(group) = &one.group {
        let cells = GROUP_HEADINGS.iter().zip(group_cells(group));
        lines.extend(cells.filter(|(name, _)| **name != "active").map(|(name, cell)| [(*name).into(), cell]));
    }
    table(["", ""], lines).trim_start().to_owned()
}

fn or_none(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "–".to_owned())
}

pub(super) fn nodes(all: &NodeLines) -> String {
    let lines = all.nodes.iter().map(|one| {
        [
            one.node.clone(),
            one.shards.to_string(),
            one.linked.map_or_else(|| "no".to_owned(), |version| format!("version {version}")),
            yes(one.draining),
            one.tcp.clone(),
            one.ws.clone(),
            one.link.clone(),
            if one.this { "this node" } else { "" }.to_owned(),
        ]
    });
    table(["node", "shards", "linked", "draining", "tcp", "ws", "link", ""], lines)
}

pub(super) fn shards(all: &ShardLines) -> String {
    let lines = all.shards.iter().map(|one| {
        let epoch = one.epoch.map_or_else(|| "–".to_owned(), |epoch| epoch.to_string());
        [one.shard.to_string(), or_none(one.node.as_ref()), epoch]
    });
    table(["shard", "node", "epoch"], lines)
}

pub(super) fn user(one: &UserState) -> String {
    let lines = one.sessions.iter().map(|session| {
        [
            session.device.to_string(),
            session.node.clone(),
            session.device_class.clone(),
            time(session.since),
            session.session.to_string(),
            session.app.clone(),
        ]
    });
    let place = one.shard.map_or_else(String::new, |shard| {
        format!("directory: shard {shard}, on {}\n", or_none(one.directory.as_ref()))
    });
    format!("{place}{}", table(["device", "node", "class", "since", "session", "app"], lines))
}

pub(super) fn memory(all: &Memory) -> String {
    let of = |what: &str, count: Option<usize>, held: usize| {
        [what.to_owned(), count.map_or_else(String::new, |count| count.to_string()), bytes(held)]
    };
    let named = [
        of("sessions", Some(all.sessions), all.session_bytes),
        of("their queues", None, all.session_queue_bytes),
        of("conversations", Some(all.conversations), all.conversation_bytes),
        of("listeners", Some(all.listeners), all.listener_bytes),
        of("store: queue", None, all.store_queue_bytes),
        of("store: rows not yet in a table", None, all.store_memtable_bytes),
        of("store: cache", None, all.store_cache_bytes),
    ];
    let sum = all.session_bytes
        + all.session_queue_bytes
        + all.conversation_bytes
        + all.listener_bytes
        + all.store_queue_bytes
        + all.store_memtable_bytes
        + all.store_cache_bytes;
    let rest = [
        of("all else: code, tasks, the runtime, the allocator", None, all.resident_bytes.saturating_sub(sum)),
        of("the process", None, all.resident_bytes),
    ];
    table(["", "count", "memory"], named.into_iter().chain(rest))
}

pub(super) fn audit(all: &AuditLines) -> String {
    let lines = all.lines.iter().map(|one| {
        [
            time(one.time),
            one.who.to_string(),
            one.act.clone(),
            one.on.clone(),
            one.seq.map_or_else(String::new, |seq| seq.to_string()),
        ]
    });
    table(["time", "who", "act", "on", "seq"], lines)
}
