//! Whether what the servers keep is what the invariants promise.
//!
//! Nodes may run meanwhile, but what they are just writing can then look wrong: a report about a cluster that is stopped
//! is certain. Rows above the last that names the one before it are ghosts: nobody committed them, and they are not looked
//! at. Memory follows the number of conversations, and the longest of them.

use std::collections::HashMap;

use convoke_protocol::id::{ConversationId, MessageId, Seq, UserId};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::log::count_uncounted;
use super::schema::SCHEMA_VERSION;
use super::{ScyllaStore, WIDTH};
use crate::cluster::shard_map::ShardMap;
use crate::storage::check::{CheckReport, LogCheck, Rule, is_done};
use crate::storage::walk::{UserRecord, UserTable, Walk as _};
use crate::storage::{
    Epoch, GroupStore as _, MarkKey, MessageLog as _, ReactionStore as _, ReadError, ReadLimit,
    ReadMarkStore as _, RetentionStore as _,
};

/// Conversations, records or users that are read at a time.
const PAGE: usize = 500;
const ROWS: ReadLimit = ReadLimit { rows: 500, bytes: 1 << 20 };

/// Where a log ends.
#[derive(Debug, Clone, Copy)]
struct End {
    head: Seq,
    /// Whether rows above it were left out.
    ghosts: bool,
}

/// Reads everything and says what is wrong.
///
/// # Errors
/// The servers cannot be read.
pub async fn check(store: &ScyllaStore) -> Result<CheckReport, ReadError> {
    let shards = store.shards().await?;
    let epochs: Vec<Epoch> = store.all_shards().await?.into_iter().map(|(_, row)| row.epoch).collect();
    let format = SCHEMA_VERSION.unsigned_abs();
    let mut report = CheckReport { format, shards, ..CheckReport::default() };
    let map = ShardMap::new(shards);
    let mut ends: HashMap<ConversationId, End> = HashMap::new();
    let mut after: Option<ConversationId> = None;
    loop {
        let ids = store.logs(after.as_ref(), PAGE).await?;
        let checks: Vec<_> = ids
            .iter()
            .map(|id| check_conversation(store, id, epochs[map.of_conversation(id).0 as usize]))
            .collect();
        let checked: Vec<(End, CheckReport)> = stream::iter(checks).buffered(WIDTH).try_collect().await?;
        for (id, (end, found)) in ids.iter().zip(checked) {
            report.absorb(found);
            ends.insert(id.clone(), end);
        }
        after = ids.into_iter().next_back();
        if after.is_none() {
            break;
        }
    }
    for table in
        [UserTable::Lists, UserTable::Cursors, UserTable::Marks, UserTable::Settings, UserTable::Hidden]
    {
        let mut at: Option<String> = None;
        loop {
            let page = store.user_records(table, at.as_deref(), PAGE).await?;
            for record in &page.records {
                check_record(record, &ends, &mut report);
            }
            at = page.next;
            if at.is_none() {
                break;
            }
        }
    }
    Ok(report)
}

fn check_record(record: &UserRecord, ends: &HashMap<ConversationId, End>, report: &mut CheckReport) {
    let is_above = |id: &ConversationId, seq: Seq| {
        let end = ends.get(id).copied().unwrap_or(End { head: Seq::ZERO, ghosts: false });
        // What a ghost's writer moved may name it.
        (seq > end.head && !end.ghosts).then_some(end.head)
    };
    match record {
        UserRecord::Listed(user, id) => {
            report.list_entries += 1;
            if !ends.contains_key(id) {
                report.find(Rule::ListedLog, Some(id), None, format!("{user} has it and it has no log"));
            }
        }
        UserRecord::Cursor(user, device, cursor) => {
            report.cursors += 1;
            if let Some(head) = is_above(&cursor.conversation, cursor.seq) {
                let what = format!("{device} of {user} has a cursor above the head {head}");
                report.find(Rule::Cursor, Some(&cursor.conversation), Some(cursor.seq), what);
            }
        }
        UserRecord::Mark(key, mark) => {
            report.marks += 1;
            if let Some(head) = is_above(&key.conversation, mark.seq) {
                let what = format!("{} has read above the head {head}", key.user);
                report.find(Rule::Mark, Some(&key.conversation), Some(mark.seq), what);
            }
        }
        UserRecord::Settings(..) => report.settings += 1,
        UserRecord::HiddenUpTo(..) | UserRecord::Hidden(..) => report.hidden += 1,
        UserRecord::Creation(..) => {}
    }
}

async fn check_conversation(
    store: &ScyllaStore,
    id: &ConversationId,
    epoch: Epoch,
) -> Result<(End, CheckReport), ReadError> {
    let mut report = CheckReport { conversations: 1, ..CheckReport::default() };
    let (start, hint) = (store.start(id).await?, store.hint(id).await?);
    let mut log = LogCheck::new(id.clone(), start.seq);
    let mut base = hint.map_or(Seq::ZERO, |hint| hint.base);
    let (mut hinted, mut ghosts): (Option<MessageId>, bool) = (None, false);
    let mut changes = Vec::new();
    let mut next = start.seq;
    'rows: loop {
        let rows = store.read(id, next, Seq(u64::MAX), ROWS).await?;
        let Some(last) = rows.last() else { break };
        next = last.seq.next();
        for row in rows {
            // What a base covers is committed, so one that does not follow there is wrong; above it nobody knows of it.
            if !log.follows(&row) && row.seq > base {
                ghosts = true;
                break 'rows;
            }
            report.messages += 1;
            base = base.max(row.base);
            if hint.is_some_and(|hint| hint.base == row.seq) {
                hinted = Some(row.id);
            }
            if row.epoch > epoch {
                let what = format!("has epoch {}, its shard {}", row.epoch.0, epoch.0);
                report.find(Rule::Epoch, Some(id), Some(row.seq), what);
            }
            if let Some(change) = &row.entry.change {
                changes.push((row.seq, change.clone()));
            }
            log.row(row, &mut report);
        }
    }
    let head = log.last.as_ref().map_or(Seq::ZERO, |last| last.seq);
    if hinted != hint.map(|hint| hint.id) {
        report.find(
            Rule::Hint,
            Some(id),
            hint.map(|hint| hint.base),
            "is not the row that the hint names".into(),
        );
    }
    if start.seq > head.next() {
        report.find(
            Rule::Start,
            Some(id),
            Some(start.seq),
            format!("is where it begins, above its head {head}"),
        );
    }
    for (entry, change) in changes {
        let Some(target) = change.target() else { continue };
        if target >= entry {
            report.find(Rule::Projected, Some(id), Some(entry), "changes what comes after it".into());
        } else if entry <= base {
            let row = store.read(id, target, target, ReadLimit::rows(1)).await?.pop();
            if row.is_some_and(|row| !is_done(&change, entry, &row)) {
                let what = format!("what it does to {target} is not there");
                report.find(Rule::Projected, Some(id), Some(entry), what);
            }
        }
    }
    check_beside(store, &log, head, &mut report).await?;
    Ok((End { head, ghosts }, report))
}

/// What belongs to a log and is kept beside it.
async fn check_beside(
    store: &ScyllaStore,
    log: &LogCheck,
    head: Seq,
    report: &mut CheckReport,
) -> Result<(), ReadError> {
    let id = &log.conversation;
    for user in id.direct_users() {
        let listed: Option<(String,)> =
            store.cql().row(&store.cql().statements.is_listed, (user.as_str(), id.as_str())).await?;
        if listed.is_none() {
            report.find(Rule::Listed, Some(id), None, format!("is not in the list of {user}"));
        }
    }
    let keys: Vec<MarkKey> =
        log.sent.keys().map(|user| MarkKey { user: user.clone(), conversation: id.clone() }).collect();
    for (key, mark) in keys.iter().zip(store.marks(&keys).await?) {
        let last = log.sent[&key.user];
        if mark < last {
            let what = format!("the last message of {} is {}, its mark is {mark:?}", key.user, last.seq);
            report.find(Rule::SentMark, Some(id), Some(last.seq), what);
        }
    }
    let uncounted = count_uncounted(store.cql(), id, Seq::ZERO, head).await?;
    if uncounted != log.uncounted.len() as u64 {
        let what = format!("{} do not count as unread, the index has {uncounted}", log.uncounted.len());
        report.find(Rule::Uncounted, Some(id), None, what);
    }
    check_reactions(store, id, head, report).await?;
    check_group(store, id, head, report).await
}

async fn check_reactions(
    store: &ScyllaStore,
    id: &ConversationId,
    head: Seq,
    report: &mut CheckReport,
) -> Result<(), ReadError> {
    for (seq, counts) in store.reaction_counts(id, Seq(1), head).await? {
        for one in counts {
            let mut given = 0;
            let mut after: Option<UserId> = None;
            loop {
                let users = store.reactors(id, seq, &one.kind, after.as_ref(), PAGE).await?;
                given += users.len() as u64;
                after = users.into_iter().next_back();
                if after.is_none() {
                    break;
                }
            }
            report.reactions += given;
            if given != u64::from(one.count) {
                let what = format!("{given} give it {:?}, the count says {}", one.kind, one.count);
                report.find(Rule::Reactions, Some(id), Some(seq), what);
            }
        }
    }
    Ok(())
}

async fn check_group(
    store: &ScyllaStore,
    id: &ConversationId,
    head: Seq,
    report: &mut CheckReport,
) -> Result<(), ReadError> {
    let Some(group) = id.group_id() else { return Ok(()) };
    let row = store.group(&group).await?;
    report.groups += u64::from(row.is_some());
    let mut versions: Vec<Seq> = row.iter().map(|row| row.version).collect();
    let mut after: Option<UserId> = None;
    loop {
        let members = store.members(&group, after.as_ref(), PAGE).await?;
        report.members += members.len() as u64;
        versions.extend(members.iter().map(|member| member.version));
        after = members.into_iter().next_back().map(|member| member.user);
        if after.is_none() {
            break;
        }
    }
    if row.is_none() && !versions.is_empty() {
        report.find(Rule::Group, Some(id), None, "has members and is no group".into());
    }
    for version in versions.into_iter().filter(|version| *version > head) {
        report.find(Rule::Group, Some(id), Some(version), format!("is above the head {head}"));
    }
    Ok(())
}
