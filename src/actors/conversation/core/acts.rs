//! Commands that change messages or the group: they wait until what they name is loaded, then are decided with the sends,
//! in the order in which they came into the queue.
//!
//! ```text
//!   waiting ──nothing that changes messages is under way──▶ loading ──loaded──▶ queue ──batch──▶ decided
//! ```
//! What is loaded is what the store has when no change is on its way to it: all that wait are loaded together, and the next
//! ones only when the changes of these are written. A command of a group needs nothing loaded: the group is in memory.

use std::collections::VecDeque;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{DeviceId, Seq, Timestamp, UserId};
use convoke_protocol::message::{MessageKind, Priority};
use convoke_protocol::request::Retry;

use super::outcome::refuse;
use super::{Command, ConversationCore, Effect, Head, IdSource, Pending, SendCommand, unavailable};
use crate::actors::conversation::change::{ChangeCommand, Rights, Targets, decide_change};
use crate::actors::conversation::group::{
    Asking, Decided, EntryPlace, Group, GroupCommand, Visibility, decide, not_found,
};
use crate::auth::Role;
use crate::clock::Now;
use crate::storage::{Entry, LogRow};
use serde::{Deserialize, Serialize};

/// The most commands that are loaded together.
const MAX_LOADED: usize = 256;

/// What is to happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// A message is changed.
    Change(ChangeCommand),
    /// The group is changed.
    Group(GroupCommand),
}

/// Who wants what to happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActCommand {
    /// Who asks.
    pub asking: Asking,
    /// From which device.
    pub device: DeviceId,
    /// What makes it safe to repeat.
    pub retry: Retry,
    /// What.
    pub act: Act,
}

impl ActCommand {
    pub(super) fn body_bytes(&self) -> usize {
        match &self.act {
            Act::Change(change) => change.body_bytes(),
            Act::Group(_) => 0,
        }
    }
}

/// A message to be loaded, with the entry that edited it last and its reactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadTarget {
    /// The message.
    pub seq: Seq,
    /// Of which users it must be known whether they give which reactions; if any, the counts are needed too.
    pub reactions: Vec<(UserId, String)>,
}

#[derive(Debug, Clone)]
pub(super) struct Waiting<R> {
    /// Not loaded yet.
    waiting: VecDeque<Pending<R>>,
    /// Being loaded.
    loading: Vec<Pending<R>>,
}

impl<R> Default for Waiting<R> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), loading: Vec::new() }
    }
}

impl<R> Waiting<R> {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.loading.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.loading.len()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Pending<R>> {
        self.waiting.iter_mut().chain(&mut self.loading)
    }

    /// Takes those that are not being loaded and that `over` says so of, from the oldest on.
    pub(super) fn take_overdue(&mut self, over: impl Fn(&Pending<R>) -> bool) -> Vec<Pending<R>> {
        let count = self.waiting.iter().take_while(|pending| over(pending)).count();
        self.waiting.drain(..count).collect()
    }

    pub(super) fn take_all(&mut self) -> Vec<Pending<R>> {
        self.waiting.drain(..).chain(std::mem::take(&mut self.loading)).collect()
    }
}

/// A batch in the making.
pub(super) struct Made<R> {
    pub(super) rows: Vec<LogRow>,
    pub(super) pending: Vec<Pending<R>>,
    pub(super) bytes: usize,
    head: Head,
    /// The group as the entries so far will have made it, once one of them changes it.
    group: Option<Option<Group>>,
}

impl<R> Made<R> {
    pub(super) fn new(head: Head) -> Self {
        Self { rows: Vec::new(), pending: Vec::new(), bytes: 0, head, group: None }
    }
}

impl<R> ConversationCore<R> {
    /// Takes a command that changes something, or answers it at once.
    pub fn act(
        &mut self,
        command: ActCommand,
        to: R,
        now: Now,
        ids: &mut impl IdSource,
        effects: &mut Vec<Effect<R>>,
    ) {
        let Some(to) = self.recognise(&command.asking.user, command.retry, to, now, effects) else { return };
        if let Err(error) = self.admit_act(&command) {
            return effects.push(Effect::Answer { to, result: Err(error) });
        }
        self.dedup.begin(command.asking.user.clone(), command.retry.client_id);
        self.queue_bytes += command.body_bytes();
        let needs_loading = matches!(command.act, Act::Change(_));
        let pending = Pending {
            command: Command::Act(command),
            waiting: Some(to),
            also_waiting: Vec::new(),
            since: now.monotonic,
        };
        if needs_loading {
            self.waiting.waiting.push_back(pending);
            self.load(effects);
        } else {
            self.queue.push_back(pending);
            self.start_batch(now, ids, effects);
        }
    }

    fn admit_act(&self, command: &ActCommand) -> Result<(), RequestError> {
        self.has_room(command.body_bytes())?;
        match &command.act {
            Act::Group(_) if self.group_id.is_none() => Err(not_found()),
            Act::Group(_) => Ok(()),
            Act::Change(change) => {
                self.rights(&command.asking, self.group.as_ref())?;
                let there = self.start.seq <= change.target() && change.target() <= self.head.seq;
                if there { Ok(()) } else { Err(no_such_message()) }
            }
        }
    }

    /// How somebody stands to the messages.
    fn rights(&self, asking: &Asking, group: Option<&Group>) -> Result<Rights, RequestError> {
        let is_service = asking.role == Role::Service;
        if self.group_id.is_none() {
            return Ok(Rights { admin: is_service, from: self.start.seq });
        }
        let group = group.ok_or_else(not_found)?;
        if is_service {
            return Ok(Rights { admin: true, from: self.start.seq });
        }
        let Visibility { from, to, .. } = group.visibility(&asking.user).ok_or_else(not_found)?;
        if to.is_some() {
            let text = "you are no member of the group any more";
            return Err(RequestError::not_done(ErrorCode::NOT_PERMITTED, text));
        }
        if group.row().disbanded_at.is_some() {
            return Err(RequestError::not_done(ErrorCode::GROUP_ENDED, "the group was disbanded"));
        }
        Ok(Rights { admin: group.is_admin(&asking.user), from })
    }

    /// Whether a send may be numbered.
    pub(super) fn may_send(
        &self,
        command: &SendCommand,
        group: Option<&Group>,
        now: Timestamp,
    ) -> Result<(), RequestError> {
        if self.group_id.is_none() {
            return Ok(());
        }
        let group = group.ok_or_else(not_found)?;
        match command.role {
            Role::User => group.may_speak(&command.sender, now),
            Role::Service if group.row().disbanded_at.is_some() => {
                Err(RequestError::not_done(ErrorCode::GROUP_ENDED, "the group was disbanded"))
            }
            Role::Service if command.kind != MessageKind::USER => Ok(()),
            Role::Service => group.member(&command.sender).map(drop).ok_or_else(not_found),
        }
    }

    pub(super) fn is_change(pending: &Pending<R>) -> bool {
        matches!(&pending.command, Command::Act(ActCommand { act: Act::Change(_), .. }))
    }

    /// Begins to load what waiting commands name, if no change is under way.
    pub(super) fn load(&mut self, effects: &mut Vec<Effect<R>>) {
        let in_flight = self.in_flight.iter().flat_map(|batch| &batch.rows[..]);
        let changing = in_flight.filter(|row| row.entry.change.is_some()).count() > 0;
        let busy = changing
            || self.projecting.is_some()
            || !self.waiting.loading.is_empty()
            || self.commit.is_fenced()
            || self.queue.iter().any(Self::is_change);
        if busy || self.waiting.waiting.is_empty() {
            return;
        }
        let count = self.waiting.waiting.len().min(MAX_LOADED);
        self.waiting.loading = self.waiting.waiting.drain(..count).collect();
        let mut targets: Vec<LoadTarget> = Vec::new();
        for pending in &self.waiting.loading {
            let Command::Act(ActCommand { act: Act::Change(change), asking, .. }) = &pending.command else {
                continue;
            };
            let seq = change.target();
            let at = targets.iter().position(|target| target.seq == seq).unwrap_or_else(|| {
                targets.push(LoadTarget { seq, reactions: Vec::new() });
                targets.len() - 1
            });
            if let ChangeCommand::React { kind, .. } = change {
                targets[at].reactions.push((asking.user.clone(), kind.clone()));
            }
        }
        effects.push(Effect::Load(targets));
    }

    /// What [`Effect::Load`] asked for, or why it cannot be read.
    pub fn loaded(
        &mut self,
        targets: Result<Targets, String>,
        now: Now,
        ids: &mut impl IdSource,
        effects: &mut Vec<Effect<R>>,
    ) {
        let loaded = std::mem::take(&mut self.waiting.loading);
        match targets {
            Ok(targets) => {
                self.targets = targets;
                self.queue.extend(loaded);
                self.start_batch(now, ids, effects);
            }
            Err(reason) => {
                for pending in loaded {
                    self.forget(&pending);
                    refuse(pending, &unavailable(&reason), effects);
                }
            }
        }
        self.load(effects);
    }

    /// A command that will not be carried out: its client id is free again.
    pub(super) fn forget(&mut self, pending: &Pending<R>) {
        self.queue_bytes -= pending.command.body_bytes();
        self.dedup.abandon(pending.command.sender(), pending.command.client_id());
    }

    /// Decides a command, which left the queue, and adds its row to the batch, or answers it.
    pub(super) fn make(
        &mut self,
        mut pending: Pending<R>,
        batch: &mut Made<R>,
        wall: Timestamp,
        ids: &mut impl IdSource,
        effects: &mut Vec<Effect<R>>,
    ) {
        let group = batch.group.as_ref().map_or(self.group.as_ref(), Option::as_ref);
        let time = wall.max(batch.head.time);
        let entry = match &pending.command {
            Command::Send(send) => {
                self.may_send(send, group, wall).map(|()| Some(send_entry(send, batch.head, time)))
            }
            Command::Act(act) => self
                .decide(act, group, batch.head, time)
                .map(|decided| decided.map(|decided| act_entry(act, decided, batch.head, time))),
        };
        match entry {
            Ok(Some(entry)) => {
                let row = self.row(batch.head, entry, ids);
                if let Some(change) = &row.entry.change {
                    self.targets.apply(&row);
                    if self.group_id.is_some()
                        && (row.entry.kind == MessageKind::MEMBERS || row.entry.kind == MessageKind::GROUP)
                    {
                        Group::apply(batch.group.get_or_insert_with(|| self.group.clone()), change);
                    }
                }
                batch.head = Head::of(&row);
                batch.rows.push(row);
                batch.pending.push(pending);
            }
            undone => {
                self.dedup.abandon(pending.command.sender(), pending.command.client_id());
                let result = undone.map(|_| None);
                let waiting = pending.take_waiting();
                effects.extend(waiting.map(|to| Effect::Answer { to, result: result.clone() }));
            }
        }
    }

    fn decide(
        &self,
        command: &ActCommand,
        group: Option<&Group>,
        head: Head,
        time: Timestamp,
    ) -> Result<Option<Decided>, RequestError> {
        match &command.act {
            Act::Change(change) => {
                let rights = self.rights(&command.asking, group)?;
                decide_change(change, &command.asking, rights, &self.targets, &self.limits.changes, time)
            }
            Act::Group(act) => {
                let id = self.group_id.as_ref().ok_or_else(not_found)?;
                let at = EntryPlace { seq: head.seq.next(), time, ordinal: head.ordinal, start: self.start };
                decide(id, group, &command.asking, act, at, self.limits.groups)
            }
        }
    }
}

fn no_such_message() -> RequestError {
    RequestError::not_done(ErrorCode::NOT_FOUND, "there is no such message")
}

fn send_entry(send: &SendCommand, head: Head, time: Timestamp) -> Entry {
    Entry {
        sender: send.sender.clone(),
        device: send.device.clone(),
        client_id: send.retry.client_id,
        time,
        kind: send.kind,
        flags: 0,
        priority: send.priority,
        content: send.content.clone(),
        reply_to: send.reply_to,
        previous: send.previous,
        ordinal: head.ordinal + u64::from(send.kind == MessageKind::USER),
        edited_at: None,
        recalled_at: None,
        deleted_at: None,
        last_edit: None,
        change: None,
    }
}

fn act_entry(act: &ActCommand, decided: Decided, head: Head, time: Timestamp) -> Entry {
    Entry {
        sender: act.asking.user.clone(),
        device: act.device.clone(),
        client_id: act.retry.client_id,
        time,
        kind: decided.kind,
        flags: 0,
        priority: Priority::NORMAL,
        content: decided.content,
        reply_to: None,
        previous: None,
        ordinal: head.ordinal,
        edited_at: None,
        recalled_at: None,
        deleted_at: None,
        last_edit: None,
        change: Some(decided.change),
    }
}
