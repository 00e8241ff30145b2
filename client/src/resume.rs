//! What was had, what is missing, what to ask for: the merge of pushes, pages and answers by their numbers.
//!
//! A pure core: time comes in as an argument, nothing is awaited, nothing is written. Whoever drives it tells it what
//! arrived ([`Resume::message`], [`Resume::lagged`], [`Resume::synced`], [`Resume::pulled`]) and takes from it what to
//! ask ([`Resume::next_request`]), what to deliver ([`Resume::next_delivery`]) and when to look again
//! ([`Resume::next_wake`]).
//!
//! # Invariants
//! - Per conversation, deliveries rise by one from the place where the conversation was begun: no message twice, none
//!   out of order. Numbers that the server no longer has (trimmed), or no longer shows, are reported as
//!   [`Delivery::Skipped`], never left out in silence.
//! - What is held above a gap has a bound; what exceeds it is forgotten and pulled again.
//! - Nothing is asked for while [`Resume::set_room`] says that the application does not keep up, and one conversation
//!   has at most one pull in flight.
//! - A message lost on the way is missed no longer than until the next message, `Lagged` or sync of its conversation.

mod conversation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use convoke_protocol::error_code::RequestError;
use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::message::{Cursor, Message};
use convoke_protocol::request::messages::{Page, PullRange, Pulled};
use convoke_protocol::request::sync::{SyncSince, SyncedSince};

use conversation::Conversation;

/// How long a gap may stay before it is pulled: an own answer, or a message of a higher lane, may overtake a push.
pub const GAP_GRACE: Duration = Duration::from_millis(300);

/// Messages of one conversation that are held above a gap.
pub const MAX_HELD_MESSAGES: usize = 1024;

/// Bytes of bodies that are held above gaps, of all conversations together.
pub const MAX_HELD_BYTES: usize = 8 << 20;

/// `Pull` requests in flight at one time.
pub const MAX_PULLS: usize = 4;

/// Ranges in one `Pull`, if the server's `max_ranges` does not allow fewer.
const MAX_RANGES_PER_PULL: usize = 32;

/// The wait after a pull that brought nothing; doubled each time up to [`MAX_PULL_BACKOFF`].
const MIN_PULL_BACKOFF: Duration = Duration::from_millis(200);
const MAX_PULL_BACKOFF: Duration = Duration::from_secs(5);

/// Where conversations begin that neither the application nor the server has a cursor for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// At their first message: nothing is missed, and a new device reads everything.
    FromFirst,
    /// After their head at the first sync. A conversation that comes into being later begins at its first message.
    FromNow,
}

/// Where a client begins to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Cursors that the application kept: these conversations go on behind them.
    pub cursors: Vec<Cursor>,
    /// Go on behind the cursors that the server keeps for this device.
    pub device_cursors: bool,
    /// Where all other conversations begin.
    pub otherwise: Otherwise,
}

impl Start {
    /// Only what is said from now on.
    pub fn from_now() -> Self {
        Self { cursors: Vec::new(), device_cursors: false, otherwise: Otherwise::FromNow }
    }

    /// Every message of every conversation.
    pub fn from_first() -> Self {
        Self { otherwise: Otherwise::FromFirst, ..Self::from_now() }
    }

    /// Behind the cursors the server keeps for this device, and new conversations from their first message.
    pub fn from_device() -> Self {
        Self { device_cursors: true, ..Self::from_first() }
    }

    /// Behind cursors that the application kept, and new conversations from their first message.
    pub fn from_cursors(cursors: Vec<Cursor>) -> Self {
        Self { cursors, ..Self::from_first() }
    }
}

/// What the application is to be told, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are messages")]
pub enum Delivery {
    /// The next message of a conversation.
    Message(ConversationId, Message),
    /// These numbers, both included, will not come: they were trimmed, or may not be read.
    Skipped(ConversationId, Seq, Seq),
    /// Everything that was missing when the connection began was delivered. Once per connection.
    CaughtUp,
}

/// What to ask the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// To be answered by [`Resume::synced`] or [`Resume::sync_failed`].
    Sync(SyncSince),
    /// To be answered by [`Resume::pulled`] or [`Resume::pull_failed`] with the same ranges.
    Pull(Vec<PullRange>),
}

/// Where the walk through the user's conversations stands.
///
/// ```text
/// Idle ──connected──▶ Wanted ──next_request──▶ Asked ──last page──▶ Over
///   ▲                    ▲────── next page ──────┘                   │
///   └────────────────────────── disconnected ────────────────────────┘
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
enum Walk {
    Idle,
    Wanted { after: Option<ConversationId>, at: Instant },
    Asked { after: Option<ConversationId> },
    Over { caught_up: bool },
}

/// What the conversations share: the ways out, and what is bounded in total.
#[derive(Debug, Default)]
struct Shared {
    out: VecDeque<Delivery>,
    due: BTreeSet<(Instant, ConversationId)>,
    held_bytes: usize,
}

/// The merge of all conversations of one session, across its connections.
#[derive(Debug)]
pub struct Resume {
    start: Start,
    max_ranges: usize,
    room: bool,
    /// A walk was completed: a conversation that is not known came into being since.
    familiar: bool,
    walk: Walk,
    /// Of the last walk that came to its end: the next one is told only what changed since.
    since: Option<String>,
    /// What `since` becomes when this walk ends.
    begun: Option<String>,
    failures: u32,
    pulls: usize,
    conversations: BTreeMap<ConversationId, Conversation>,
    shared: Shared,
}

impl Resume {
    /// A merge that begins where `start` says.
    pub fn new(start: Start) -> Self {
        let mut conversations = BTreeMap::new();
        for cursor in &start.cursors {
            conversations.insert(cursor.conversation.clone(), Conversation::at(Some(cursor.seq)));
        }
        Self {
            start,
            max_ranges: 1,
            room: true,
            familiar: false,
            walk: Walk::Idle,
            since: None,
            begun: None,
            failures: 0,
            pulls: 0,
            conversations,
            shared: Shared::default(),
        }
    }

    /// A session is live: the walk begins anew. `max_ranges` is the server's bound.
    pub fn connected(&mut self, max_ranges: usize, now: Instant) {
        self.disconnected();
        self.max_ranges = max_ranges.max(1);
        self.walk = Walk::Wanted { after: None, at: now };
    }

    /// The connection is gone, and with it every answer that was awaited.
    pub fn disconnected(&mut self) {
        self.walk = Walk::Idle;
        self.failures = 0;
        self.pulls = 0;
        self.shared.due.clear();
        for conversation in self.conversations.values_mut() {
            conversation.forget_requests();
        }
    }

    /// Says whether the application takes deliveries. Without room messages are only noted, to be pulled later.
    pub fn set_room(&mut self, room: bool) {
        self.room = room;
    }

    /// A push, or the answer to an own send.
    pub fn message(&mut self, id: &ConversationId, message: Message, now: Instant) {
        let (room, fresh) = (self.room, self.familiar.then_some(Seq::ZERO));
        let conversation = self.conversations.entry(id.clone()).or_insert_with(|| Conversation::at(fresh));
        conversation.message(id, message, room, &mut self.shared);
        conversation.schedule(id, now + GAP_GRACE, &mut self.shared);
    }

    /// Pushes were left out: everything up to `head` is to be pulled.
    pub fn lagged(&mut self, id: &ConversationId, head: Seq, now: Instant) {
        let fresh = self.familiar.then_some(Seq::ZERO);
        let conversation = self.conversations.entry(id.clone()).or_insert_with(|| Conversation::at(fresh));
        conversation.note_head(head);
        conversation.schedule(id, now, &mut self.shared);
    }

    /// The application had everything up to `seq` in some other way, from a page of history perhaps.
    pub fn skip_to(&mut self, id: &ConversationId, seq: Seq) {
        let conversation =
            self.conversations.entry(id.clone()).or_insert_with(|| Conversation::at(Some(seq)));
        conversation.skip_to(id, seq, &mut self.shared);
    }

    /// The answer to the last [`Ask::Sync`].
    pub fn synced(&mut self, answer: SyncedSince, now: Instant) {
        let Walk::Asked { after } = &self.walk else { return };
        if after.is_none() {
            self.begun = answer.token;
        }
        self.failures = 0;
        let from_first = self.familiar || self.start.otherwise == Otherwise::FromFirst;
        let mut begun_at = HashMap::new();
        for told in answer.conversations {
            let conversation =
                self.conversations.entry(told.conversation.clone()).or_insert_with(|| Conversation::at(None));
            conversation.note_head(told.head);
            if !conversation.is_decided() {
                let begin = match told.cursor {
                    Some(cursor) => cursor,
                    None if from_first => Seq::ZERO,
                    // What was pushed since the login is "now" as well.
                    None => told.head.min(conversation.before_seen()),
                };
                conversation.decide(&told.conversation, begin, &mut self.shared);
            }
            conversation.schedule(&told.conversation, now, &mut self.shared);
            if let Some(cursor) = told.cursor {
                begun_at.insert(told.conversation, cursor);
            }
        }
        for page in answer.pages {
            let from = match (begun_at.get(&page.conversation), page.messages.first()) {
                (Some(cursor), _) => Seq(cursor.0.saturating_add(1)),
                (None, Some(first)) => first.seq,
                (None, None) => continue,
            };
            self.merge(from, Seq(u64::MAX), page, now);
        }
        match answer.next {
            Some(after) => self.walk = Walk::Wanted { after: Some(after), at: now },
            None => self.end_walk(now),
        }
    }

    /// The last [`Ask::Sync`] failed. `None`: no answer; it is asked again.
    pub fn sync_failed(&mut self, error: Option<&RequestError>, now: Instant) {
        let Walk::Asked { after } = &self.walk else { return };
        self.failures += 1;
        let wait = advised(error).unwrap_or_else(|| backoff(self.failures));
        self.walk = Walk::Wanted { after: after.clone(), at: now + wait };
    }

    /// The answer to an [`Ask::Pull`].
    pub fn pulled(&mut self, ranges: &[PullRange], answer: Pulled, now: Instant) {
        self.pulls = self.pulls.saturating_sub(1);
        let mut pages = answer.pages.into_iter();
        let mut stuck = Vec::new();
        let mut any = false;
        for range in ranges {
            let Some(conversation) = self.conversations.get_mut(&range.conversation) else { continue };
            let page = pages.next().filter(|page| page.conversation == range.conversation);
            if let Some(error) = page.as_ref().and_then(|page| page.error.as_ref()) {
                any |= conversation.refused(&range.conversation, range.to, error, now, &mut self.shared);
                continue;
            }
            conversation.forget_requests();
            if page.is_some_and(|page| self.merge(range.from, range.to, page, now)) {
                any = true;
            } else {
                stuck.push(range);
            }
        }
        for range in stuck {
            let Some(conversation) = self.conversations.get_mut(&range.conversation) else { continue };
            // Where other ranges filled the answer, this one is next; where nothing came, patience.
            let wait = if any { Duration::ZERO } else { backoff(conversation.note_failure()) };
            conversation.pull_ended(&range.conversation, now + wait, &mut self.shared);
        }
        self.note_caught_up();
    }

    /// An [`Ask::Pull`] failed. `None`: no answer.
    pub fn pull_failed(&mut self, ranges: &[PullRange], error: Option<&RequestError>, now: Instant) {
        self.pulls = self.pulls.saturating_sub(1);
        for range in ranges {
            let Some(conversation) = self.conversations.get_mut(&range.conversation) else { continue };
            let failures = conversation.note_failure();
            let wait = advised(error).unwrap_or_else(|| backoff(failures));
            conversation.pull_ended(&range.conversation, now + wait, &mut self.shared);
        }
    }

    /// What to ask now, if anything; call again until there is nothing.
    pub fn next_request(&mut self, now: Instant) -> Option<Ask> {
        if !self.room || self.walk == Walk::Idle {
            return None;
        }
        if let Walk::Wanted { after, at } = &self.walk
            && *at <= now
        {
            let after = after.clone();
            self.walk = Walk::Asked { after: after.clone() };
            return Some(Ask::Sync(self.sync_after(after)));
        }
        if self.pulls >= MAX_PULLS {
            return None;
        }
        let mut ranges = Vec::new();
        while ranges.len() < self.max_ranges.min(MAX_RANGES_PER_PULL)
            && self.shared.due.first().is_some_and(|(at, _)| *at <= now)
        {
            let Some((_, id)) = self.shared.due.pop_first() else { break };
            let Some(conversation) = self.conversations.get_mut(&id) else { continue };
            if let Some((from, to)) = conversation.begin_pull() {
                ranges.push(PullRange { conversation: id, from, to });
            }
        }
        if ranges.is_empty() {
            self.note_caught_up();
            return None;
        }
        self.pulls += 1;
        Some(Ask::Pull(ranges))
    }

    /// What to deliver next, if anything.
    pub fn next_delivery(&mut self) -> Option<Delivery> {
        self.shared.out.pop_front()
    }

    /// When [`Resume::next_request`] may have something that it does not have now.
    pub fn next_wake(&self) -> Option<Instant> {
        if !self.room {
            return None;
        }
        let walk = match &self.walk {
            Walk::Idle => return None,
            Walk::Wanted { at, .. } => Some(*at),
            Walk::Asked { .. } | Walk::Over { .. } => None,
        };
        let pull = self.shared.due.first().map(|(at, _)| *at).filter(|_| self.pulls < MAX_PULLS);
        walk.into_iter().chain(pull).min()
    }

    /// How far each conversation was delivered.
    pub fn cursors(&self) -> impl Iterator<Item = Cursor> + '_ {
        self.conversations.iter().filter_map(|(id, conversation)| {
            conversation.cursor().map(|seq| Cursor { conversation: id.clone(), seq })
        })
    }

    /// The cursors behind `after` in the order of the ids, as the answer will have them. More than the server takes in
    /// one request follow with the next page; those the page names without a cursor are pulled.
    fn sync_after(&self, after: Option<ConversationId>) -> SyncSince {
        let bounds = match &after {
            Some(id) => (std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded),
            None => (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded),
        };
        let cursors = self
            .conversations
            .range::<ConversationId, _>(bounds)
            .filter_map(|(id, known)| known.cursor().map(|seq| Cursor { conversation: id.clone(), seq }))
            .take(self.max_ranges)
            .collect();
        let (since, use_device_cursors) = (self.since.clone(), self.start.device_cursors);
        SyncSince { since, cursors, use_device_cursors, after }
    }

    /// Takes in a page that holds what there is of `from..=to`; says whether that brought the conversation forward.
    fn merge(&mut self, from: Seq, to: Seq, page: Page, now: Instant) -> bool {
        if page.error.is_some() {
            return false;
        }
        let Some(conversation) = self.conversations.get_mut(&page.conversation) else { return false };
        let id = page.conversation.clone();
        let moved = conversation.page(from, to, page, &mut self.shared);
        if moved {
            conversation.schedule(&id, now, &mut self.shared);
        }
        moved
    }

    fn end_walk(&mut self, now: Instant) {
        self.familiar = true;
        self.since = self.begun.take();
        self.walk = Walk::Over { caught_up: false };
        for (id, conversation) in &mut self.conversations {
            if !conversation.is_decided() {
                // The server did not list it, so it came into being since: it begins at its first message.
                conversation.decide(id, Seq::ZERO, &mut self.shared);
            }
            conversation.schedule(id, now, &mut self.shared);
        }
        self.note_caught_up();
    }

    fn note_caught_up(&mut self) {
        if self.walk == (Walk::Over { caught_up: false }) && self.pulls == 0 && self.shared.due.is_empty() {
            self.walk = Walk::Over { caught_up: true };
            self.shared.out.push_back(Delivery::CaughtUp);
        }
    }
}

/// The wait that the server advised.
fn advised(error: Option<&RequestError>) -> Option<Duration> {
    error
        .and_then(|error| error.retry_after_ms)
        .map(|ms| Duration::from_millis(ms.into()).min(MAX_PULL_BACKOFF))
}

fn backoff(failures: u32) -> Duration {
    let doubled = MIN_PULL_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(10));
    doubled.min(MAX_PULL_BACKOFF)
}
