//! One conversation's place in the merge.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::message::Message;
use convoke_protocol::request::messages::Page;

use super::{Delivery, MAX_HELD_BYTES, MAX_HELD_MESSAGES, Shared, backoff};

/// No conversation gets this far: a number above it is not believed, so that counting on is always possible.
const MAX_SEQ: Seq = Seq(u64::MAX >> 1);

/// What one conversation has, holds and lacks.
#[derive(Debug)]
pub(super) struct Conversation {
    /// Everything up to here was delivered; `None` until it is known where to begin.
    cursor: Option<Seq>,
    /// The highest number that is known to exist.
    head: Seq,
    /// The lowest number that arrived before it was known where to begin.
    lowest_seen: Seq,
    /// Messages above the first one that is missing.
    held: BTreeMap<Seq, Message>,
    /// When the gap is to be pulled: its entry in [`Shared::due`].
    due: Option<Instant>,
    pulling: bool,
    failures: u32,
}

impl Conversation {
    pub(super) fn at(cursor: Option<Seq>) -> Self {
        Self {
            cursor: cursor.map(|cursor| cursor.min(MAX_SEQ)),
            lowest_seen: MAX_SEQ,
            head: cursor.unwrap_or_default(),
            held: BTreeMap::new(),
            due: None,
            pulling: false,
            failures: 0,
        }
    }

    pub(super) fn cursor(&self) -> Option<Seq> {
        self.cursor
    }

    pub(super) fn is_decided(&self) -> bool {
        self.cursor.is_some()
    }

    /// The place before the lowest message that has arrived so far.
    pub(super) fn before_seen(&self) -> Seq {
        Seq(self.lowest_seen.0.saturating_sub(1))
    }

    /// The place before the lowest message that is held; the highest place of all without one.
    fn before_held(&self) -> Seq {
        self.held.first_key_value().map_or(Seq(u64::MAX), |(seq, _)| Seq(seq.0 - 1))
    }

    pub(super) fn note_head(&mut self, head: Seq) {
        self.head = self.head.max(head.min(MAX_SEQ));
    }

    pub(super) fn note_failure(&mut self) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.failures
    }

    /// The connection that was asked is gone, or the answer is there. [`Shared::due`] is cleared by the caller.
    pub(super) fn forget_requests(&mut self) {
        self.pulling = false;
        self.due = None;
    }

    /// Says where the conversation begins, and delivers what is held from there.
    pub(super) fn decide(&mut self, id: &ConversationId, cursor: Seq, shared: &mut Shared) {
        self.cursor = Some(cursor.min(MAX_SEQ));
        self.note_head(cursor);
        self.drop_had(shared);
        self.advance(id, shared);
    }

    /// Moves the cursor up without deliveries.
    pub(super) fn skip_to(&mut self, id: &ConversationId, seq: Seq, shared: &mut Shared) {
        if self.cursor.is_none_or(|cursor| cursor < seq) {
            self.decide(id, seq, shared);
        }
    }

    pub(super) fn message(&mut self, id: &ConversationId, message: Message, room: bool, shared: &mut Shared) {
        let seq = message.seq;
        self.note_head(seq);
        if self.cursor.is_none() {
            self.lowest_seen = self.lowest_seen.min(seq);
        }
        if seq == Seq::ZERO || seq > MAX_SEQ || self.cursor.is_some_and(|cursor| seq <= cursor) || !room {
            return;
        }
        if self.cursor.is_some_and(|cursor| seq == cursor.next()) {
            self.deliver(id, message, shared);
            self.advance(id, shared);
        } else if self.held.len() < MAX_HELD_MESSAGES && shared.held_bytes < MAX_HELD_BYTES {
            self.hold(message, shared);
        }
    }

    /// Takes in a page with what there is of `from..=to`. Says whether the cursor moved.
    pub(super) fn page(&mut self, from: Seq, to: Seq, page: Page, shared: &mut Shared) -> bool {
        let Some(cursor) = self.cursor else { return false };
        let id = page.conversation;
        self.note_head(page.head);
        // The page is bounded by its sender's limits and by the longest frame, so it is taken whole.
        for message in page.messages {
            self.note_head(message.seq);
            if message.seq > cursor && message.seq <= MAX_SEQ {
                self.hold(message, shared);
            }
        }
        // Numbers of the page's range that are not in it no longer exist, and neither do those before the first.
        let covered = match page.next {
            Some(next) => Seq(next.0.saturating_sub(1)),
            None => to.min(page.head),
        };
        let gone = Seq(page.first.0.saturating_sub(1)).min(self.head);
        let settled = if from <= cursor.next() { covered.max(gone) } else { gone };
        self.advance_to(&id, settled, shared);
        self.advance(&id, shared);
        let moved = self.cursor != Some(cursor);
        if moved {
            self.failures = 0;
        }
        moved
    }

    /// A range was refused: what may not be read is given up; anything else is tried again later. Says whether the
    /// cursor moved.
    pub(super) fn refused(
        &mut self,
        id: &ConversationId,
        to: Seq,
        error: &RequestError,
        now: Instant,
        shared: &mut Shared,
    ) -> bool {
        let before = self.cursor;
        let failures = self.note_failure();
        let for_good = matches!(error.code, ErrorCode::NOT_FOUND | ErrorCode::NOT_PERMITTED);
        let mut wait = backoff(failures);
        if let Some(ms) = error.retry_after_ms {
            wait = wait.max(Duration::from_millis(ms.into()));
        } else if for_good {
            self.advance_to(id, to.min(self.head), shared);
            self.advance(id, shared);
            wait = Duration::ZERO;
        }
        self.pull_ended(id, now + wait, shared);
        self.cursor != before
    }

    /// The answer of a pull was taken in: what is still missing is asked for at `when`.
    pub(super) fn pull_ended(&mut self, id: &ConversationId, when: Instant, shared: &mut Shared) {
        self.pulling = false;
        self.schedule(id, when, shared);
    }

    /// Sees to it that a gap, if there is one, is pulled at `when` or earlier.
    pub(super) fn schedule(&mut self, id: &ConversationId, when: Instant, shared: &mut Shared) {
        let wanted = if self.pulling || self.missing().is_none() {
            None
        } else {
            Some(self.due.map_or(when, |due| due.min(when)))
        };
        if wanted != self.due {
            if let Some(due) = self.due.take() {
                shared.due.remove(&(due, id.clone()));
            }
            if let Some(due) = wanted {
                shared.due.insert((due, id.clone()));
            }
            self.due = wanted;
        }
    }

    /// The range to pull now; its entry in [`Shared::due`] was taken by the caller.
    pub(super) fn begin_pull(&mut self) -> Option<(Seq, Seq)> {
        self.due = None;
        let missing = self.missing();
        self.pulling = missing.is_some();
        missing
    }

    /// The lowest gap.
    fn missing(&self) -> Option<(Seq, Seq)> {
        let cursor = self.cursor?;
        (cursor < self.head).then(|| (cursor.next(), self.before_held().min(self.head)))
    }

    fn hold(&mut self, message: Message, shared: &mut Shared) {
        shared.held_bytes += message.content.body.len();
        if let Some(former) = self.held.insert(message.seq, message) {
            shared.held_bytes -= former.content.body.len();
        }
    }

    fn deliver(&mut self, id: &ConversationId, message: Message, shared: &mut Shared) {
        self.cursor = Some(message.seq);
        shared.out.push_back(Delivery::Message(id.clone(), message));
    }

    /// Delivers what follows the cursor without a gap.
    fn advance(&mut self, id: &ConversationId, shared: &mut Shared) {
        while let Some(cursor) = self.cursor
            && let Some(message) = self.held.remove(&cursor.next())
        {
            shared.held_bytes -= message.content.body.len();
            self.deliver(id, message, shared);
        }
    }

    /// Delivers what is held up to `limit`, and reports the numbers in between as skipped.
    fn advance_to(&mut self, id: &ConversationId, limit: Seq, shared: &mut Shared) {
        while let Some(cursor) = self.cursor
            && cursor < limit
        {
            self.advance(id, shared);
            let Some(cursor) = self.cursor.filter(|cursor| *cursor < limit) else { break };
            let last = self.before_held().min(limit);
            shared.out.push_back(Delivery::Skipped(id.clone(), cursor.next(), last));
            self.cursor = Some(last);
        }
    }

    fn drop_had(&mut self, shared: &mut Shared) {
        while let Some(entry) = self.held.first_entry()
            && self.cursor.is_some_and(|cursor| *entry.key() <= cursor)
        {
            shared.held_bytes -= entry.remove().content.body.len();
        }
    }
}
