//! Everything that one store holds, copied into another of any kind, and compared afterwards.
//!
//! Nobody may write either store meanwhile. A copy is repeatable: what is there already is written again as it is, so one
//! that was interrupted goes on from the last place that was kept. What is compared is read from both stores anew: how
//! many records of each kind there are, where each log ends, and a digest of all. A store that keeps small writes in memory
//! for a while is opened anew in between.
//!
//! Write stamps and epochs belong to the store that rows lie in: a copy has the stamps of epoch 1, and its first owner
//! begins with a later one. Hints are taken over, for they say from where an owner repeats changes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::id::{ConversationId, GroupId, MessageId, Seq, UserId};
use convoke_protocol::request::changes::Retention;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use super::row::NO_MESSAGE;
use super::walk::{UserRecord, UserTable, Walk};
use super::{
    Append, AppendDone, AppendError, ConversationSettings, Epoch, GroupRow, HiddenRows, JoinRequestRow,
    LogRow, LogStart, MemberRow, Projection, ReactionRow, ReadError, ReadLimit, SettingsChange, Stores,
    WriteError, WriteStamp, values,
};

/// Conversations, or records of users, between two places that are kept.
const PAGE: usize = 256;
/// Conversations, or records, that are on their way at the same time.
const WIDTH: usize = 16;
/// What is read of a log at a time.
const ROWS: ReadLimit = ReadLimit { rows: 500, bytes: 1 << 20 };
/// Members, or users who give a reaction, that are read at a time.
const MEMBERS: usize = 500;

/// The epoch of everything that is copied.
pub const EPOCH: Epoch = Epoch(1);

/// The stamp of everything that is copied.
fn stamp() -> WriteStamp {
    WriteStamp::new(EPOCH, 0)
}

/// A store, as a copy needs it.
#[derive(Clone)]
pub struct Side {
    /// Its traits.
    pub stores: Stores,
    /// What belongs to users.
    pub walk: Arc<dyn Walk>,
    /// Whether rows above the head may be there that were never committed: then a log ends where a row does not name the
    /// one before it. Otherwise such a row is damage.
    pub has_ghosts: bool,
}

/// How far a copy is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Nothing is copied.
    #[default]
    Begin,
    /// The conversations up to this one are.
    Conversations(ConversationId),
    /// All conversations are, and the tables of users before this one; of this one, what lies before the place.
    Users(UserTable, Option<String>),
    /// Everything is.
    Copied,
}

/// Why a copy ended early. It may be run again.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A store cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A store cannot be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// A log is damaged.
    #[error("the log of {conversation} has no row {seq} that follows on the one before it: check the store")]
    Broken {
        /// Whose.
        conversation: ConversationId,
        /// Where.
        seq: Seq,
    },
    /// How far it is could not be kept.
    #[error("the place of the copy cannot be kept: {0}")]
    Place(#[from] std::io::Error),
}

/// What there is of everything, for the comparison of two stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is how many of them there are")]
pub struct Summary {
    pub conversations: u64,
    pub messages: u64,
    pub groups: u64,
    pub members: u64,
    pub join_requests: u64,
    pub reactions: u64,
    pub rules: u64,
    pub listed: u64,
    pub cursors: u64,
    pub marks: u64,
    pub settings: u64,
    pub hidden: u64,
    pub creations: u64,
    /// A digest of the last message of each log.
    pub heads: u64,
    /// A digest of all.
    pub digest: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { conversations, messages, groups, members, join_requests, reactions, .. } = self;
        let Self { rules, listed, cursors, marks, settings, hidden, creations, heads, digest, .. } = self;
        write!(
            f,
            "{conversations} conversations, {messages} messages, {groups} groups, {members} members, \
             {join_requests} requests to join, {reactions} reactions, {rules} rules of retention, {listed} list entries, \
             {cursors} cursors, {marks} marks, {settings} settings, {hidden} hidden, {creations} creations, \
             heads {heads:016x}, digest {digest:016x}"
        )
    }
}

impl Summary {
    /// Takes a record in; the order in which they come does not matter.
    fn take(&mut self, kind: u8, record: &impl Serialize) {
        self.digest = self.digest.wrapping_add(xxh3_64(&values::encode(&(kind, record))));
    }

    fn add(self, other: Self) -> Self {
        Self {
            conversations: self.conversations + other.conversations,
            messages: self.messages + other.messages,
            groups: self.groups + other.groups,
            members: self.members + other.members,
            join_requests: self.join_requests + other.join_requests,
            reactions: self.reactions + other.reactions,
            rules: self.rules + other.rules,
            listed: self.listed + other.listed,
            cursors: self.cursors + other.cursors,
            marks: self.marks + other.marks,
            settings: self.settings + other.settings,
            hidden: self.hidden + other.hidden,
            creations: self.creations + other.creations,
            heads: self.heads.wrapping_add(other.heads),
            digest: self.digest.wrapping_add(other.digest),
        }
    }

    fn user_record(&mut self, record: &UserRecord) {
        match record {
            UserRecord::Listed(user, id) => {
                self.listed += 1;
                self.take(b'l', &(user, id));
            }
            UserRecord::Cursor(user, device, cursor) => {
                self.cursors += 1;
                self.take(b'c', &(user, device, &cursor.conversation, cursor.seq));
            }
            UserRecord::Mark(key, mark) => {
                self.marks += 1;
                self.take(b'm', &(&key.user, &key.conversation, mark.seq, mark.ordinal));
            }
            UserRecord::Settings(user, id, ConversationSettings { label, muted, pinned }) => {
                self.settings += 1;
                self.take(b's', &(user, id, label, muted, pinned));
            }
            UserRecord::HiddenUpTo(user, id, seq) => {
                self.hidden += 1;
                self.take(b'u', &(user, id, seq));
            }
            UserRecord::Hidden(user, id, seq) => {
                self.hidden += 1;
                self.take(b'h', &(user, id, seq));
            }
            UserRecord::Creation(user, client_id, group) => {
                self.creations += 1;
                self.take(b'n', &(user, client_id, group));
            }
        }
    }
}

/// How often a write is tried: a store that is slower than the copy refuses what it cannot hold.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Tries a write until it succeeds. Every write of a copy may be repeated.
async fn patiently<E, F>(write: impl Fn() -> F) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
{
    for _ in 1..TRIES {
        if write().await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    write().await
}

/// Performs a write that tells its end by a callback until it succeeds.
async fn ended(write: impl Fn(AppendDone)) -> Result<(), AppendError> {
    patiently(|| {
        let (done, outcome) = oneshot::channel();
        write(Box::new(move |result| drop(done.send(result))));
        async { outcome.await.unwrap_or_else(|_| Err(AppendError::Unknown("the store stopped".into()))) }
    })
    .await
}

/// One thing of a conversation on its way.
enum Part {
    Rows(Vec<LogRow>),
    Reactions(Vec<ReactionRow>),
    Group(Box<GroupRow>),
    Members(Vec<MemberRow>),
}

/// Gives everything of a conversation to `each`, part after part.
async fn read_conversation<F>(
    side: &Side,
    id: &ConversationId,
    start: LogStart,
    mut each: impl FnMut(Part) -> F,
) -> Result<(), CopyError>
where
    F: Future<Output = Result<(), CopyError>>,
{
    let stores = &side.stores;
    let (mut next, mut last): (Seq, Option<MessageId>) = (start.seq, None);
    loop {
        let mut rows = stores.log.read(id, next, Seq(u64::MAX), ROWS).await?;
        let before = last;
        let mut follows = last.or((start.seq == Seq(1)).then_some(NO_MESSAGE));
        let whole = rows.iter().position(|row| {
            let breaks = row.seq != next || follows.is_some_and(|id| row.prev != id);
            if !breaks {
                (next, follows, last) = (row.seq.next(), Some(row.id), Some(row.id));
            }
            breaks
        });
        if let Some(end) = whole {
            if !side.has_ghosts {
                return Err(CopyError::Broken { conversation: id.clone(), seq: next });
            }
            rows.truncate(end);
        }
        for row in &mut rows {
            row.epoch = EPOCH;
        }
        if let (Some(first), Some(end)) = (rows.first(), rows.last()) {
            let reactions = reactions(stores, id, first.seq, end.seq).await?;
            each(Part::Rows(rows)).await?;
            for reactions in reactions.chunks(MEMBERS) {
                each(Part::Reactions(reactions.to_vec())).await?;
            }
        }
        if whole.is_some() || last == before {
            break;
        }
    }
    let Some(group) = id.group_id() else { return Ok(()) };
    if let Some(row) = stores.groups.group(&group).await? {
        each(Part::Group(Box::new(row))).await?;
    }
    let mut after: Option<UserId> = None;
    loop {
        let members = stores.groups.members(&group, after.as_ref(), MEMBERS).await?;
        after = members.last().map(|member| member.user.clone());
        if after.is_none() {
            return Ok(());
        }
        each(Part::Members(members)).await?;
    }
}

async fn reactions(
    stores: &Stores,
    id: &ConversationId,
    from: Seq,
    to: Seq,
) -> Result<Vec<ReactionRow>, ReadError> {
    let mut found = Vec::new();
    for (target, counts) in stores.reactions.reaction_counts(id, from, to).await? {
        for one in counts {
            let mut after: Option<UserId> = None;
            loop {
                let users = stores.reactions.reactors(id, target, &one.kind, after.as_ref(), MEMBERS).await?;
                after = users.last().cloned();
                if after.is_none() {
                    break;
                }
                found.extend(users.into_iter().map(|user| ReactionRow {
                    target,
                    kind: one.kind.clone(),
                    user,
                    given: true,
                    count: one.count,
                }));
            }
        }
    }
    Ok(found)
}

/// Everybody who waits to be let in.
async fn join_requests(stores: &Stores, group: &GroupId) -> Result<Vec<JoinRequestRow>, ReadError> {
    let mut requests: Vec<JoinRequestRow> = Vec::new();
    loop {
        let after = requests.last().map(|request| &request.user);
        let page = stores.groups.join_requests(group, after, MEMBERS).await?;
        if page.is_empty() {
            return Ok(requests);
        }
        requests.extend(page);
    }
}

async fn write_part(to: &Stores, id: &ConversationId, part: Part) -> Result<(), CopyError> {
    let mut projection = Projection::empty(id, stamp());
    match part {
        Part::Rows(rows) => {
            let append = Append { conversation: id.clone(), rows, stamp: stamp(), listed_for: Vec::new() };
            return Ok(ended(|done| to.log.append(append.clone(), done)).await?);
        }
        Part::Reactions(reactions) => projection.reactions = reactions,
        Part::Group(group) => projection.group = Some(group),
        Part::Members(members) => projection.members = members,
    }
    Ok(ended(|done| to.log.project(projection.clone(), done)).await?)
}

async fn copy_conversation(from: &Side, to: &Stores, id: &ConversationId) -> Result<(), CopyError> {
    let stores = &from.stores;
    let start = stores.log.start(id).await?;
    read_conversation(from, id, start, |part| write_part(to, id, part)).await?;
    if let Some(group) = id.group_id() {
        for request in join_requests(stores, &group).await? {
            to.groups.put_join_request(&group, &request).await?;
        }
    }
    if start > LogStart::default() {
        to.log.trim(id, start, stamp()).await?;
    }
    if let Some(hint) = stores.log.hint(id).await? {
        to.log.put_hint(id, hint, stamp()).await?;
    }
    Ok(())
}

async fn copy_record(to: &Stores, record: UserRecord) -> Result<(), CopyError> {
    match record {
        UserRecord::Listed(user, conversation) => {
            let listed_for = vec![user];
            let append = Append { conversation, rows: Vec::new(), stamp: stamp(), listed_for };
            ended(|done| to.log.append(append.clone(), done)).await?;
        }
        UserRecord::Cursor(user, device, cursor) => {
            let cursors = [cursor];
            patiently(|| to.cursors.put_cursors(&user, &device, &cursors)).await?;
        }
        UserRecord::Mark(key, mark) => {
            let marks = [(key, mark)];
            patiently(|| to.marks.put_marks(&marks)).await?;
        }
        UserRecord::Settings(user, id, ConversationSettings { label, muted, pinned }) => {
            let change = SettingsChange {
                label: Some(label.unwrap_or_default()),
                muted: Some(muted),
                pinned: Some(pinned),
            };
            to.settings.set_conversation(&user, &id, &change).await?;
        }
        UserRecord::HiddenUpTo(user, id, up_to) => {
            to.hidden.hide(&user, &id, &HiddenRows { up_to, seqs: Vec::new() }).await?;
        }
        UserRecord::Hidden(user, id, seq) => {
            to.hidden.hide(&user, &id, &HiddenRows { up_to: Seq::ZERO, seqs: vec![seq] }).await?;
        }
        UserRecord::Creation(user, client_id, group) => {
            to.groups.claim_group_id(&user, client_id, &group).await?;
        }
    }
    Ok(())
}

/// Every rule of retention: a conversation may have one and no log.
async fn rules(stores: &Stores) -> Result<Vec<(ConversationId, Retention)>, ReadError> {
    let mut rules: Vec<(ConversationId, Retention)> = Vec::new();
    loop {
        let page = stores.retention.with_retention(rules.last().map(|(id, _)| id), PAGE).await?;
        if page.is_empty() {
            return Ok(rules);
        }
        rules.extend(page);
    }
}

/// The table behind one.
fn table_after(table: UserTable) -> Option<UserTable> {
    UserTable::ALL.into_iter().find(|other| *other > table)
}

/// Copies everything, from a place on; `keep` is told each place that is reached, when all before it is durable.
///
/// # Errors
/// A store cannot be read or written, or a log is damaged. The copy may be run again from the last place.
pub async fn copy(
    from: &Side,
    to: &Side,
    mut place: Place,
    mut keep: impl FnMut(&Place) -> std::io::Result<()>,
) -> Result<(), CopyError> {
    loop {
        place = match place {
            Place::Copied => return Ok(()),
            Place::Begin | Place::Conversations(_) => {
                let after = if let Place::Conversations(after) = &place { Some(after) } else { None };
                let ids = from.stores.retention.logs(after, PAGE).await?;
                let copies: Vec<_> = ids.iter().map(|id| copy_conversation(from, &to.stores, id)).collect();
                stream::iter(copies).buffer_unordered(WIDTH).try_collect::<()>().await?;
                if let Some(last) = ids.into_iter().next_back() {
                    Place::Conversations(last)
                } else {
                    for (id, rule) in rules(&from.stores).await? {
                        to.stores.retention.set_retention(&id, Some(rule)).await?;
                    }
                    Place::Users(UserTable::ALL[0], None)
                }
            }
            Place::Users(table, at) => {
                let page = from.walk.user_records(table, at.as_deref(), PAGE).await?;
                let copies: Vec<_> =
                    page.records.into_iter().map(|record| copy_record(&to.stores, record)).collect();
                stream::iter(copies).buffer_unordered(WIDTH).try_collect::<()>().await?;
                match (page.next, table_after(table)) {
                    (Some(next), _) => Place::Users(table, Some(next)),
                    (None, Some(table)) => Place::Users(table, None),
                    (None, None) => Place::Copied,
                }
            }
        };
        keep(&place)?;
    }
}

async fn summary_of(side: &Side, id: &ConversationId) -> Result<Summary, CopyError> {
    let stores = &side.stores;
    let mut summary = Summary { conversations: 1, ..Summary::default() };
    let start = stores.log.start(id).await?;
    summary.take(b'b', &(id, start.seq, start.ordinal));
    let (mut head, mut parts) = (None, Summary::default());
    read_conversation(side, id, start, |part| {
        match part {
            Part::Rows(rows) => {
                parts.messages += rows.len() as u64;
                for row in &rows {
                    parts.take(b'r', &(id, row.seq, values::encode_row(row)));
                    head = Some((row.seq, row.id));
                }
            }
            Part::Reactions(reactions) => {
                parts.reactions += reactions.len() as u64;
                for one in &reactions {
                    parts.take(b'e', &(id, one.target, &one.kind, &one.user, one.count));
                }
            }
            Part::Group(group) => {
                parts.groups += 1;
                parts.take(b'g', &*group);
            }
            Part::Members(members) => {
                parts.members += members.len() as u64;
                for member in &members {
                    parts.take(b'a', &(id, member));
                }
            }
        }
        std::future::ready(Ok(()))
    })
    .await?;
    summary = summary.add(parts);
    summary.heads = xxh3_64(&values::encode(&(id, head)));
    if let Some(group) = id.group_id() {
        for request in join_requests(stores, &group).await? {
            summary.join_requests += 1;
            summary.take(b'j', &(id, &request));
        }
    }
    Ok(summary)
}

/// Reads everything and says what there is.
///
/// # Errors
/// The store cannot be read, or a log is damaged.
pub async fn summary(side: &Side) -> Result<Summary, CopyError> {
    let mut summary = Summary::default();
    let mut after: Option<ConversationId> = None;
    loop {
        let ids = side.stores.retention.logs(after.as_ref(), PAGE).await?;
        let reads: Vec<_> = ids.iter().map(|id| summary_of(side, id)).collect();
        let fold = |sum: Summary, one| async move { Ok(sum.add(one)) };
        summary = stream::iter(reads).buffer_unordered(WIDTH).try_fold(summary, fold).await?;
        after = ids.into_iter().next_back();
        if after.is_none() {
            break;
        }
    }
    for (id, rule) in rules(&side.stores).await? {
        summary.rules += 1;
        summary.take(b't', &(&id, rule.max_age_ms, rule.max_messages));
    }
    for table in UserTable::ALL {
        let mut at: Option<String> = None;
        loop {
            let page = side.walk.user_records(table, at.as_deref(), PAGE).await?;
            for record in &page.records {
                summary.user_record(record);
            }
            at = page.next;
            if at.is_none() {
                break;
            }
        }
    }
    Ok(summary)
}
