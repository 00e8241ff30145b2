//! What becomes of a batch: written, confirmed, its changes projected; and what happens when the store does not answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::error_code::RequestError;
use convoke_protocol::id::Seq;

use super::{ConversationCore, Effect, Head, IdSource, Pending, busy, unavailable, unknown};
use crate::actors::conversation::change::{self, Targets};
use crate::actors::conversation::dedup::Place;
use crate::actors::conversation::group::Group;
use crate::actors::conversation::log::commit::Confirmed;
use crate::clock::Now;
use crate::storage::{AppendError, Hint, LogStart, Projection};

/// Committed entries whose changes are being written.
#[derive(Debug, Clone)]
pub(super) struct Projecting<R> {
    projection: Arc<Projection>,
    /// From the first entry that changes something on, who waits for which place.
    waiting: Vec<(R, Place)>,
    /// The places of those entries: a retry joins.
    from: Seq,
    since: Duration,
    pausing: Option<Duration>,
}

/// Answers all that wait for a command with an error.
pub(super) fn refuse<R>(mut pending: Pending<R>, error: &RequestError, effects: &mut Vec<Effect<R>>) {
    let waiting = pending.take_waiting();
    effects.extend(waiting.map(|to| Effect::Answer { to, result: Err(error.clone()) }));
}

impl<R> ConversationCore<R> {
    /// Takes the outcome of the append in flight.
    pub fn written(
        &mut self,
        outcome: Result<(), AppendError>,
        now: Now,
        ids: &mut impl IdSource,
        effects: &mut Vec<Effect<R>>,
    ) {
        let Some(batch) = &mut self.in_flight else { return };
        match outcome {
            Ok(()) => {
                batch.pausing = None;
                if self.commit.durable() {
                    effects.push(Effect::Confirm);
                }
            }
            Err(AppendError::NotStored(reason)) if !batch.perhaps_stored => {
                self.refuse_in_flight(&unavailable(&reason), effects);
                self.go_on(now, ids, effects);
            }
            Err(error) => {
                batch.perhaps_stored |= matches!(error, AppendError::Unknown(_));
                batch.pausing = Some(now.monotonic + self.limits.retry_pause);
                effects.push(Effect::Wake(self.limits.retry_pause));
            }
        }
    }

    /// The projection in flight is durable, or may not be. What it writes is committed: it is repeated until it is there.
    pub fn projected(&mut self, stored: bool, now: Now, effects: &mut Vec<Effect<R>>) {
        let Some(projecting) = &mut self.projecting else { return };
        if stored {
            projecting.pausing = None;
            if self.commit.durable() {
                effects.push(Effect::Confirm);
            }
        } else {
            projecting.pausing = Some(now.monotonic + self.limits.retry_pause);
            effects.push(Effect::Wake(self.limits.retry_pause));
        }
    }

    /// Takes the outcome of the confirmation in flight: `false` means that this owner is fenced, for good.
    pub fn confirmed(
        &mut self,
        still_owner: bool,
        now: Now,
        ids: &mut impl IdSource,
        effects: &mut Vec<Effect<R>>,
    ) {
        match self.commit.confirmed(still_owner) {
            Confirmed::Fenced => return self.fence(effects),
            Confirmed::Nothing => return,
            Confirmed::Overwritten => self.overwritten(ids, effects),
            Confirmed::Committed { overwrites, .. } => {
                self.committed(!overwrites.is_empty(), now, ids, effects);
            }
        }
        self.go_on(now, ids, effects);
    }

    fn go_on(&mut self, now: Now, ids: &mut impl IdSource, effects: &mut Vec<Effect<R>>) {
        self.load(effects);
        self.start_batch(now, ids, effects);
    }

    fn committed(&mut self, changes: bool, now: Now, ids: &mut impl IdSource, effects: &mut Vec<Effect<R>>) {
        let Some(mut batch) = self.in_flight.take() else { return };
        let first_change = batch.rows.iter().find(|row| row.entry.change.is_some()).map(|row| row.seq);
        let mut waiting = Vec::new();
        for (row, pending) in batch.rows.iter().zip(&mut batch.pending) {
            let place = Place { seq: row.seq, id: row.id, time: row.entry.time };
            self.dedup.commit(row.entry.sender.clone(), row.entry.client_id, place, now.monotonic);
            if first_change.is_some_and(|first| first <= row.seq) {
                waiting.extend(pending.take_waiting().map(|to| (to, place)));
            } else {
                effects
                    .extend(pending.take_waiting().map(|to| Effect::Answer { to, result: Ok(Some(place)) }));
            }
            if let (Some(change), Some(_)) = (&row.entry.change, &self.group_id) {
                Group::apply(&mut self.group, change);
            }
            self.head = Head::of(row);
        }
        effects.push(Effect::Publish(batch.rows.clone()));
        if changes && let Some(from) = first_change {
            let targets = self.targets.clone();
            let stamp = ids.write_stamp();
            let projection = change::projection(&self.conversation, &batch.rows, targets, stamp);
            let projection = Arc::new(projection);
            effects.push(Effect::Project(projection.clone()));
            effects.push(Effect::Wake(self.limits.answer_within));
            let since = now.monotonic;
            self.projecting = Some(Projecting { projection, waiting, from, since, pausing: None });
        }
    }

    fn overwritten(&mut self, ids: &mut impl IdSource, effects: &mut Vec<Effect<R>>) {
        let Some(projecting) = self.projecting.take() else { return };
        let answer = |(to, place)| Effect::Answer { to, result: Ok(Some(place)) };
        effects.extend(projecting.waiting.into_iter().map(answer));
        if !self.queue.iter().any(Self::is_change) {
            self.targets = Targets::default();
        }
        // A later owner need not write these changes again.
        self.propose_hint(ids, effects);
    }

    /// Whether the changes of the entry at this place, or of one before it in its batch, are still being written.
    pub(super) fn is_projecting(&self, seq: Seq) -> bool {
        self.projecting.as_ref().is_some_and(|projecting| projecting.from <= seq)
    }

    pub(super) fn join_projecting(&mut self, place: Place, to: R) {
        if let Some(projecting) = &mut self.projecting {
            projecting.waiting.push((to, place));
        }
    }

    /// Asks that what is confirmed by now be kept as the hint, if it is above the one that is.
    pub fn propose_hint(&mut self, ids: &mut impl IdSource, effects: &mut Vec<Effect<R>>) {
        if let Some((base, id)) = self.hints.propose(self.commit.base()) {
            effects.push(Effect::Hint(Hint { base, id }, ids.write_stamp()));
        }
    }

    /// How many confirmed rows lie above the hint: what a later owner would read for nothing.
    pub fn hint_lag(&self) -> u64 {
        self.hints.lag(self.commit.base().0)
    }

    /// The hint is durable, and a confirmation that began after that has ended; or it may not be kept (`None`).
    pub fn hinted(&mut self, still_owner: Option<bool>) {
        match still_owner {
            Some(still_owner) => {
                self.hints.durable();
                self.hints.confirmed(still_owner);
            }
            None => self.hints.give_up(),
        }
    }

    /// Rows below this may be trimmed.
    pub fn trim_below(&self) -> Seq {
        self.hints.trim_below(self.dedup.lowest().unwrap_or(self.head.seq.next()))
    }

    /// The log begins here from now on.
    pub fn trimmed(&mut self, start: LogStart) {
        self.start = self.start.max(start);
    }

    /// Repeats what paused and answers who has waited too long. May be called at any time.
    pub fn tick(&mut self, now: Now, ids: &mut impl IdSource, effects: &mut Vec<Effect<R>>) {
        self.dedup.expire(now.monotonic);
        let limits = self.limits;
        let overdue = |since: Duration| now.monotonic.saturating_sub(since) >= limits.answer_within;
        if let Some(batch) = &mut self.in_flight {
            if batch.pausing.is_some_and(|until| until <= now.monotonic) {
                batch.pausing = None;
                effects.push(Effect::Append { rows: batch.rows.clone(), stamp: self.stamp });
            }
            // A pause in which the write certainly is not stored may end the batch; otherwise it goes on by itself.
            let ends = batch.pausing.is_some() && !batch.perhaps_stored;
            for pending in batch.pending.iter_mut().filter(|pending| overdue(pending.since)) {
                for to in pending.take_waiting() {
                    let error = if ends { busy() } else { unknown("the store does not answer") };
                    effects.push(Effect::Answer { to, result: Err(error) });
                }
            }
            if ends && batch.pending.iter().all(|pending| overdue(pending.since)) {
                self.refuse_in_flight(&busy(), effects);
                return self.go_on(now, ids, effects);
            }
        }
        if let Some(projecting) = &mut self.projecting {
            if projecting.pausing.is_some_and(|until| until <= now.monotonic) {
                projecting.pausing = None;
                effects.push(Effect::Project(projecting.projection.clone()));
            }
            if overdue(projecting.since) {
                for (to, _) in std::mem::take(&mut projecting.waiting) {
                    let error = unknown("the change is not written into its places yet");
                    effects.push(Effect::Answer { to, result: Err(error) });
                }
            }
        }
        while self.queue.front().is_some_and(|pending| overdue(pending.since)) {
            let Some(pending) = self.queue.pop_front() else { break };
            self.forget(&pending);
            refuse(pending, &unavailable("the store does not answer"), effects);
        }
        for pending in self.waiting.take_overdue(|pending| overdue(pending.since)) {
            self.forget(&pending);
            refuse(pending, &unavailable("the store does not answer"), effects);
        }
        if !self.is_idle() {
            effects.push(Effect::Wake(limits.answer_within.min(Duration::from_secs(1))));
        }
    }

    fn refuse_in_flight(&mut self, error: &RequestError, effects: &mut Vec<Effect<R>>) {
        let Some(batch) = self.in_flight.take() else { return };
        self.commit.not_stored();
        let changed = batch.rows.iter().any(|row| row.entry.change.is_some());
        for pending in batch.pending {
            self.dedup.abandon(pending.command.sender(), pending.command.client_id());
            refuse(pending, error, effects);
        }
        if changed {
            // What waits was to be decided after these: what is loaded has their changes in it.
            let (changes, rest): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut self.queue).into_iter().partition(Self::is_change);
            self.queue = rest;
            for pending in changes {
                self.forget(&pending);
                refuse(pending, error, effects);
            }
        }
    }

    fn fence(&mut self, effects: &mut Vec<Effect<R>>) {
        let error = unknown("this node lost the conversation while it wrote");
        for pending in self.in_flight.take().into_iter().flat_map(|batch| batch.pending) {
            refuse(pending, &error, effects);
        }
        for (to, _) in self.projecting.take().into_iter().flat_map(|projecting| projecting.waiting) {
            effects.push(Effect::Answer { to, result: Err(error.clone()) });
        }
        let waiting = self.waiting.take_all();
        for pending in std::mem::take(&mut self.queue).into_iter().chain(waiting) {
            refuse(pending, &unavailable("this node lost the conversation"), effects);
        }
        self.queue_bytes = 0;
    }
}
