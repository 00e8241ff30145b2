//! Recall, edit, delete and reactions, pure: who may change what was said, and what an entry then changes.

use std::collections::{BTreeMap, HashMap};

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, MessageKind};
use convoke_protocol::request::changes::{MAX_REACTION_KINDS, ReactionChanged};

use super::group::{Asking, Decided};
use crate::auth::Role;
use crate::storage::row::OUTDATED;
use crate::storage::{Change, LogRow, Projection, ReactionRow, WriteStamp};
use serde::{Deserialize, Serialize};

/// What is to happen to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeCommand {
    /// It is taken back.
    Recall {
        /// The message.
        seq: Seq,
    },
    /// It says something else.
    Edit {
        /// The message.
        seq: Seq,
        /// What it says.
        content: Content,
    },
    /// It is deleted for all.
    Delete {
        /// The message.
        seq: Seq,
        /// From the store too.
        hard: bool,
    },
    /// Who asks gives it a reaction, or takes it back.
    React {
        /// The message.
        seq: Seq,
        /// Which reaction.
        kind: String,
        /// Whether it is given.
        give: bool,
    },
}

impl ChangeCommand {
    /// The message that is to be changed.
    pub fn target(&self) -> Seq {
        match self {
            Self::Recall { seq }
            | Self::Edit { seq, .. }
            | Self::Delete { seq, .. }
            | Self::React { seq, .. } => *seq,
        }
    }

    /// The bytes that it brings.
    pub fn body_bytes(&self) -> usize {
        match self {
            Self::Edit { content, .. } => content.body.len(),
            _ => 0,
        }
    }
}

/// What this server allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangePolicy {
    /// Whether messages may be recalled.
    pub recall: bool,
    /// For how long their sender may, in milliseconds.
    pub recall_window_ms: u64,
    /// Whether messages may be edited.
    pub edit: bool,
    /// For how long their sender may, in milliseconds.
    pub edit_window_ms: u64,
    /// Whether messages may be deleted for all.
    pub delete: bool,
    /// Whether who deletes a message for all recalls it.
    pub recall_on_delete: bool,
    /// Whether there are reactions.
    pub reactions: bool,
    /// Whether entries that recall are pushed.
    pub push_recalls: bool,
    /// Whether entries that edit are pushed.
    pub push_edits: bool,
    /// Whether entries that delete are pushed.
    pub push_deletes: bool,
    /// Whether reactions are pushed.
    pub push_reactions: bool,
}

impl Default for ChangePolicy {
    fn default() -> Self {
        Self {
            recall: true,
            recall_window_ms: 120_000,
            edit: true,
            edit_window_ms: 86_400_000,
            delete: true,
            recall_on_delete: false,
            reactions: true,
            push_recalls: true,
            push_edits: true,
            push_deletes: true,
            push_reactions: true,
        }
    }
}

impl ChangePolicy {
    /// Whether entries of a kind are pushed. One that is not is found by its number: the next push shows the gap.
    pub fn pushes(&self, kind: MessageKind) -> bool {
        match kind {
            MessageKind::RECALL => self.push_recalls,
            MessageKind::EDIT => self.push_edits,
            MessageKind::DELETE => self.push_deletes,
            MessageKind::REACTION => self.push_reactions,
            _ => true,
        }
    }
}

/// The reactions to one message, as far as a command needs them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReactionState {
    /// How many give each kind; none with 0.
    pub counts: BTreeMap<String, u32>,
    /// Which of the kinds that were asked about which user gives.
    pub given: HashMap<(UserId, String), bool>,
}

/// What the commands of one batch are decided against: rows and reactions as the store has them, and what the earlier
/// commands of the batch made of them.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// The rows that commands name, and the entries that edited them last.
    pub rows: BTreeMap<Seq, LogRow>,
    /// The reactions to them.
    pub reactions: BTreeMap<Seq, ReactionState>,
}

fn refused(code: ErrorCode, text: &str) -> RequestError {
    RequestError::not_done(code, text)
}

/// How somebody stands to the messages of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Whether they may change messages of others.
    pub admin: bool,
    /// The first message they may read.
    pub from: Seq,
}

/// Makes the entry that carries out a command; `None` if there is nothing to change.
///
/// # Errors
/// As the wire says.
pub fn decide_change(
    command: &ChangeCommand,
    asking: &Asking,
    rights: Rights,
    targets: &Targets,
    policy: &ChangePolicy,
    now: Timestamp,
) -> Result<Option<Decided>, RequestError> {
    let seq = command.target();
    let row = targets.rows.get(&seq).filter(|row| row.seq >= rights.from);
    let row = row.ok_or_else(|| refused(ErrorCode::NOT_FOUND, "there is no such message"))?;
    let entry = &row.entry;
    if entry.kind != MessageKind::USER && entry.kind != MessageKind::SYSTEM {
        return Err(refused(ErrorCode::NOT_PERMITTED, "only what was said can be changed"));
    }
    let is_service = asking.role == Role::Service;
    let is_own = entry.sender == asking.user && entry.kind == MessageKind::USER;
    let gone = entry.recalled_at.is_some() || entry.deleted_at.is_some();
    let in_time = |window_ms: u64| now.0.saturating_sub(entry.time.0) < window_ms;
    let too_late = || refused(ErrorCode::TOO_LATE, "the time in which its sender could do this is over");
    let not_yours = || refused(ErrorCode::NOT_PERMITTED, "this is for its sender and for admins");
    let allowed = |on: bool| match on || is_service {
        true => Ok(()),
        false => Err(refused(ErrorCode::SWITCHED_OFF, "this server does not do that")),
    };
    let last_edit = entry.last_edit;
    match command {
        ChangeCommand::Recall { .. } => {
            allowed(policy.recall)?;
            if !is_own && !rights.admin {
                return Err(not_yours());
            }
            if gone {
                return Ok(None);
            }
            if !rights.admin && !in_time(policy.recall_window_ms) {
                return Err(too_late());
            }
            Ok(Some(recall(seq, last_edit)))
        }
        ChangeCommand::Edit { content, .. } => {
            allowed(policy.edit)?;
            if !is_own && !rights.admin {
                return Err(not_yours());
            }
            if gone {
                return Err(refused(ErrorCode::MESSAGE_GONE, "the message was recalled or deleted"));
            }
            if !rights.admin && !in_time(policy.edit_window_ms) {
                return Err(too_late());
            }
            if entry.content == *content {
                return Ok(None);
            }
            let change = Change::Edit { target: seq, last_edit };
            Ok(Some(Decided { kind: MessageKind::EDIT, content: content.clone(), change }))
        }
        ChangeCommand::Delete { hard, .. } => {
            allowed(policy.delete)?;
            if *hard && !is_service {
                return Err(refused(ErrorCode::WRONG_ROLE, "deleting from the store is for services"));
            }
            if !is_own && !rights.admin {
                return Err(not_yours());
            }
            if *hard {
                // Also what was recalled or deleted softly; a second time there is nothing left.
                if entry.deleted_at.is_some() && entry.content.body.is_empty() {
                    return Ok(None);
                }
            } else if gone {
                return Ok(None);
            }
            if policy.recall_on_delete && !*hard {
                return Ok(Some(recall(seq, last_edit)));
            }
            let change = Change::Delete { target: seq, last_edit, hard: *hard };
            Ok(Some(Decided { kind: MessageKind::DELETE, content: Content::text(""), change }))
        }
        ChangeCommand::React { kind, give, .. } => {
            allowed(policy.reactions)?;
            if gone {
                return Err(refused(ErrorCode::MESSAGE_GONE, "the message was recalled or deleted"));
            }
            react(seq, &asking.user, kind, *give, targets.reactions.get(&seq))
        }
    }
}

fn recall(target: Seq, last_edit: Option<Seq>) -> Decided {
    let change = Change::Recall { target, last_edit };
    Decided { kind: MessageKind::RECALL, content: Content::text(""), change }
}

fn react(
    target: Seq,
    user: &UserId,
    kind: &str,
    give: bool,
    state: Option<&ReactionState>,
) -> Result<Option<Decided>, RequestError> {
    let none = ReactionState::default();
    let state = state.unwrap_or(&none);
    let gives = state.given.get(&(user.clone(), kind.to_owned())).copied().unwrap_or(false);
    if gives == give {
        return Ok(None);
    }
    let before = state.counts.get(kind).copied().unwrap_or(0);
    if before == 0 && give && state.counts.len() >= MAX_REACTION_KINDS {
        return Err(refused(ErrorCode::TOO_MANY, "a message has as many kinds of reactions as it may"));
    }
    let count = if give { before.saturating_add(1) } else { before.saturating_sub(1) };
    let body = ReactionChanged { kind: kind.to_owned(), given: give, count };
    let change = Change::React { target, kind: kind.to_owned(), user: user.clone(), given: give, count };
    Ok(Some(Decided { kind: MessageKind::REACTION, content: super::group::json(&body), change }))
}

impl Targets {
    /// The earlier rows that an entry changes.
    pub fn of(change: &Change) -> impl Iterator<Item = Seq> {
        let last_edit = match change {
            Change::Edit { last_edit, .. }
            | Change::Recall { last_edit, .. }
            | Change::Delete { last_edit, .. } => *last_edit,
            _ => None,
        };
        let target = match change {
            Change::React { .. } => None,
            _ => change.target(),
        };
        target.into_iter().chain(last_edit)
    }

    /// Takes what an entry changes; a row that is not here (it was trimmed) stays away.
    pub fn apply(&mut self, entry: &LogRow) {
        let Some(change) = &entry.entry.change else { return };
        let outdated = |rows: &mut BTreeMap<Seq, LogRow>, seq: &Option<Seq>, hard: bool| {
            if let Some(row) = seq.and_then(|seq| rows.get_mut(&seq)) {
                row.entry.flags |= OUTDATED;
                if hard {
                    row.entry.content.body = bytes::Bytes::new();
                }
            }
        };
        match change {
            Change::Edit { target, last_edit } => {
                outdated(&mut self.rows, last_edit, false);
                if let Some(row) = self.rows.get_mut(target) {
                    row.entry.content = entry.entry.content.clone();
                    row.entry.edited_at = Some(entry.entry.time);
                    row.entry.last_edit = Some(entry.seq);
                }
                // A later command of the batch may recall it, and with it this entry.
                self.rows.insert(entry.seq, entry.clone());
            }
            Change::Recall { target, last_edit } => {
                outdated(&mut self.rows, last_edit, false);
                if let Some(row) = self.rows.get_mut(target) {
                    row.entry.recalled_at = Some(entry.entry.time);
                }
            }
            Change::Delete { target, last_edit, hard } => {
                outdated(&mut self.rows, last_edit, *hard);
                if let Some(row) = self.rows.get_mut(target) {
                    row.entry.deleted_at = Some(entry.entry.time);
                    if *hard {
                        row.entry.content.body = bytes::Bytes::new();
                    }
                }
            }
            Change::React { target, kind, user, given, count } => {
                let state = self.reactions.entry(*target).or_default();
                state.given.insert((user.clone(), kind.clone()), *given);
                match count {
                    0 => drop(state.counts.remove(kind)),
                    count => drop(state.counts.insert(kind.clone(), *count)),
                }
            }
            Change::Members(_) | Change::Group(..) => {}
        }
    }
}

/// What committed entries change, as it is to be written: the rows with all that the entries say of them, in the order of
/// the entries, and for all else the last that one says. `targets` holds the rows as the store has them, or newer.
pub fn projection(
    conversation: &convoke_protocol::id::ConversationId,
    entries: &[LogRow],
    mut targets: Targets,
    stamp: WriteStamp,
) -> Projection {
    let mut projection = Projection::empty(conversation, stamp);
    let mut touched: Vec<Seq> = Vec::new();
    for entry in entries {
        let Some(change) = &entry.entry.change else { continue };
        targets.apply(entry);
        touched.extend(Targets::of(change));
        match change {
            Change::React { target, kind, user, given, count } => projection.reactions.push(ReactionRow {
                target: *target,
                kind: kind.clone(),
                user: user.clone(),
                given: *given,
                count: *count,
            }),
            Change::Group(row, _) => projection.group = Some(row.clone()),
            _ => {}
        }
        for member in change.members() {
            projection.members.retain(|other| other.user != member.user);
            projection.members.push(member.clone());
        }
    }
    touched.sort();
    touched.dedup();
    projection.rows = touched.iter().filter_map(|seq| targets.rows.get(seq).cloned()).collect();
    projection
}
