//! How an activation begins: what the store has is adopted, written again where that is needed, and loaded.

use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::id::{ConversationId, Seq, UserId};
use tokio::sync::oneshot;

use super::change::{self, Targets};
use super::core::{Beginning, Head};
use super::dedup::Loading;
use super::group::Group;
use super::log::recovery::{OwnRows, ROWS_PER_READ, Recovery, RecoveryError, Step};
use super::{Owned, StampSource, Surroundings};
use crate::storage::{
    Append, AppendDone, AppendError, LogRow, MemberRow, ReadError, ReadLimit, Stores, WriteStamp,
};

/// Members that are loaded at a time.
const MEMBERS_PER_READ: usize = 1_000;

/// Why an activation could not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoveryFailed {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Log(#[from] RecoveryError),
    #[error("the store stopped while rows were written again")]
    Stopped,
    #[error("the shard is not served here any more")]
    Lost,
}

/// A pause between two attempts to write adopted rows again.
const REWRITE_PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn recover(
    surroundings: &Surroundings,
    conversation: ConversationId,
    owned: &Owned,
    stamps: &StampSource,
    stamp: WriteStamp,
) -> Result<Beginning, RecoveryFailed> {
    let Surroundings { stores, clock, .. } = surroundings;
    let hint = stores.log.hint(&conversation).await?.map(|hint| (hint.base, hint.id));
    // An earlier activation of this run may have written with the same epoch and a lower stamp.
    let (mut recovery, mut step) = Recovery::new(stamps.epoch, OwnRows::Possible, hint, ROWS_PER_READ);
    let mut window = Loading::new();
    let limit = ReadLimit::rows(ROWS_PER_READ);
    loop {
        step = match step {
            Step::Read(from) => {
                recovery.rows(stores.log.read(&conversation, from, Seq(u64::MAX), limit).await?)?
            }
            Step::Rewrite(rows) => {
                rewrite(stores, &conversation, owned, rows, stamp).await?;
                recovery.durable()
            }
            Step::Confirm => recovery.confirmed(owned.confirm().await)?,
            Step::Overwrite(overwrites) => {
                let entries: Vec<LogRow> =
                    overwrites.into_iter().map(|overwrite| (*overwrite.change.0).clone()).collect();
                project(stores, &conversation, owned, &entries, stamps.fresh()).await?;
                recovery.durable()
            }
            Step::Load(from, to) => {
                let rows = stores.log.read(&conversation, from, to, limit).await?;
                window.take(&rows, clock.now().monotonic);
                recovery.loaded(&rows)
            }
            Step::Done => {
                let head = recovery.finish().map_or(Head::EMPTY, |row| Head::of(&row));
                let dedup = window.finish(clock.now().monotonic);
                let start = stores.log.start(&conversation).await?;
                let group = load_group(stores, &conversation).await?;
                // A hint is kept when nothing waits to be told.
                let told = hint.map_or(Seq::ZERO, |(seq, _)| seq);
                return Ok(Beginning { head, dedup, start, group, told });
            }
        };
    }
}

/// Waits until no write of an earlier activation is under way: what it wrote late would else stand, unseen by the new
/// one, above the head.
pub(super) async fn settle(stores: &Stores, conversation: &ConversationId) {
    let (done, ended) = oneshot::channel();
    let barrier = Append {
        conversation: conversation.clone(),
        rows: Vec::new(),
        stamp: WriteStamp(0),
        listed_for: Vec::new(),
    };
    stores.log.append(barrier, Box::new(move |result| drop(done.send(result))));
    // Whatever it says, nothing that was called before it is under way any more.
    let _ = ended.await;
}

async fn rewrite(
    stores: &Stores,
    conversation: &ConversationId,
    owned: &Owned,
    rows: Arc<[LogRow]>,
    stamp: WriteStamp,
) -> Result<(), RecoveryFailed> {
    let append = || Append {
        conversation: conversation.clone(),
        rows: rows.to_vec(),
        stamp,
        listed_for: listed_for(conversation, &rows),
    };
    until_written(conversation, owned, |done| stores.log.append(append(), done)).await
}

/// In whose lists a conversation must be because of these rows: a direct one in those of its users, with its first message;
/// a group in those of who came.
pub(super) fn listed_for(conversation: &ConversationId, rows: &[LogRow]) -> Vec<UserId> {
    let first = rows.first().is_some_and(|row| row.seq == Seq(1));
    let mut listed = if first { conversation.direct_users() } else { Vec::new() };
    let changes = rows.iter().filter_map(|row| Some((row.seq, row.entry.change.as_ref()?)));
    for (seq, change) in changes {
        let came = |member: &&MemberRow| member.left.is_none() && member.version == seq;
        listed.extend(change.members().iter().filter(came).map(|member| member.user.clone()));
    }
    listed
}

/// Writes what committed entries change, until it is written.
async fn project(
    stores: &Stores,
    conversation: &ConversationId,
    owned: &Owned,
    entries: &[LogRow],
    stamp: WriteStamp,
) -> Result<(), RecoveryFailed> {
    let mut targets = Targets::default();
    for change in entries.iter().filter_map(|row| row.entry.change.as_ref()) {
        for seq in Targets::of(change) {
            let row = stores.log.read(conversation, seq, seq, ReadLimit::rows(1)).await?.pop();
            targets.rows.extend(row.map(|row| (seq, row)));
        }
    }
    let projection = change::projection(conversation, entries, targets, stamp);
    let write = |done: AppendDone| stores.log.project(projection.clone(), done);
    until_written(conversation, owned, write).await
}

async fn until_written(
    conversation: &ConversationId,
    owned: &Owned,
    write: impl Fn(AppendDone),
) -> Result<(), RecoveryFailed> {
    while owned.hold_open().is_some() {
        let (done, outcome) = oneshot::channel::<Result<(), AppendError>>();
        write(Box::new(move |result| drop(done.send(result))));
        match outcome.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(%conversation, %error, "what was adopted is not written again yet");
            }
            Err(_) => return Err(RecoveryFailed::Stopped),
        }
        tokio::time::sleep(REWRITE_PAUSE).await;
    }
    Err(RecoveryFailed::Lost)
}

async fn load_group(stores: &Stores, conversation: &ConversationId) -> Result<Option<Group>, ReadError> {
    let Some(id) = conversation.group_id() else { return Ok(None) };
    let Some(row) = stores.groups.group(&id).await? else { return Ok(None) };
    let mut members = Vec::new();
    loop {
        let after = members.last().map(|member: &MemberRow| member.user.clone());
        let page = stores.groups.members(&id, after.as_ref(), MEMBERS_PER_READ).await?;
        let is_last = page.len() < MEMBERS_PER_READ;
        members.extend(page);
        if is_last {
            return Ok(Some(Group::load(row, members)));
        }
    }
}
