//! Reading what was said: pages bounded by the head that the conversation's owner tells (I6).

mod listing;
mod marks;

use std::collections::HashMap;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::frame::Event;
use convoke_protocol::id::{ConversationId, ConversationKind, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, Cursor, Message, ReactionCount};
use convoke_protocol::request::messages::{
    Direction, History, HistoryFrom, HistoryPage, Page, Pull, PullRange, Pulled,
};
use convoke_protocol::request::sync::{
    MAX_SYNC_TOKEN_BYTES, Sync, SyncSince, Synced, SyncedConversation, SyncedSince,
};

use futures_util::future;

use self::marks::Standing;
use super::SessionShared;
use super::dispatch::Services;
use crate::actors::conversation::group::{Asking, not_found};
use crate::actors::conversation::{Attended, Attending};
use crate::actors::peer::Seat;
use crate::auth::Role;
use crate::storage::{LogRow, ReadError, ReadLimit, WriteError};

/// Conversations in one page of a `Sync`.
const SYNC_CONVERSATIONS: usize = 50;

/// What is left of an answer's bound.
struct Budget {
    messages: usize,
    bytes: usize,
}

impl Budget {
    fn take(&mut self, rows: &[LogRow]) {
        let bytes: usize = rows.iter().map(|row| row.entry.content.body.len()).sum();
        self.messages = self.messages.saturating_sub(rows.len());
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn is_spent(&self) -> bool {
        self.messages == 0 || self.bytes == 0
    }

    fn limit(&self) -> ReadLimit {
        ReadLimit { rows: self.messages, bytes: self.bytes }
    }
}

/// One session asks.
pub(super) struct Reader<'a> {
    pub(super) services: &'a Services,
    pub(super) session: &'a SessionShared,
    /// For what its token is.
    pub(super) role: Role,
}

pub(super) fn unavailable(error: &ReadError) -> RequestError {
    tracing::warn!(%error, "a read failed");
    RequestError::not_done(ErrorCode::UNAVAILABLE, "the store cannot be read").retry_after(1_000)
}

/// A small write failed: it may be there all the same, and may be repeated.
pub(super) fn unkept(error: &WriteError) -> RequestError {
    tracing::warn!(%error, "a small write failed");
    RequestError::unknown(ErrorCode::UNAVAILABLE, "it may not be kept").retry_after(1_000)
}

pub(super) fn invalid(message: impl Into<String>) -> RequestError {
    RequestError::not_done(ErrorCode::INVALID_REQUEST, message)
}

impl Reader<'_> {
    fn budget(&self) -> Budget {
        let limits = self.services.rules.load().limits;
        Budget { messages: limits.max_page_messages as usize, bytes: limits.max_page_bytes as usize }
    }

    /// How many entries a page may have of which so many are asked for.
    pub(super) fn page_limit(&self, asked: u32) -> Result<usize, RequestError> {
        match asked {
            0 => Err(invalid("a page has at least one entry")),
            asked => Ok(asked.min(self.services.rules.load().limits.max_page_messages) as usize),
        }
    }

    pub(super) fn asking(&self) -> Asking {
        Asking { user: self.session.user.clone(), role: self.role }
    }

    pub(super) fn attending(&self) -> Attending {
        let at = self.services.conversations.peers().me();
        Attending { seat: Seat { at, session: self.session.id }, asking: self.asking() }
    }

    /// Whether the user may know of the conversation, as far as its id tells: of a group its members decide. One that does
    /// not exist and one of others answer the same.
    pub(super) fn may_know(&self, conversation: &ConversationId) -> Result<(), RequestError> {
        let is_own = conversation.is_direct_with(&self.session.user);
        if is_own || self.role == Role::Service || matches!(conversation.kind(), ConversationKind::Group(_)) {
            return Ok(());
        }
        Err(not_found())
    }

    /// What the user may see of a conversation; from then on the session listens.
    pub(super) async fn attend(&self, conversation: &ConversationId) -> Result<Attended, RequestError> {
        self.may_know(conversation)?;
        self.services.conversations.attend(conversation, &self.attending()).await
    }

    /// A service that reads what is not its own does so in the record.
    pub(super) fn audit_read(&self, act: &str, conversation: &ConversationId) {
        if self.role == Role::Service && !conversation.is_direct_with(&self.session.user) {
            self.audit(act, conversation.as_str(), None);
        }
    }

    /// Tells an event that is not kept to the sessions of users who are online.
    pub(super) async fn tell_users(&self, users: &[UserId], event: &Event) {
        for user in users {
            self.services.directory.tell(user, event, None).await;
        }
    }

    /// The same to the user's other sessions.
    pub(super) async fn tell_other_devices(&self, event: &Event) {
        self.services.directory.tell(&self.session.user, event, Some(self.session.id)).await;
    }

    /// Rows as this user sees them: with the reactions to them, and without what the user hid.
    async fn shown(
        &self,
        conversation: &ConversationId,
        rows: &[LogRow],
    ) -> Result<Vec<Message>, RequestError> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(Vec::new()) };
        let (from, to) = (first.seq.min(last.seq), first.seq.max(last.seq));
        let stores = &self.services.stores;
        let reactions = stores.reactions.reaction_counts(conversation, from, to);
        let hidden = stores.hidden.hidden(&self.session.user, conversation, from, to);
        let (reactions, hidden) =
            future::try_join(reactions, hidden).await.map_err(|error| unavailable(&error))?;
        let mut reactions = reactions.into_iter().peekable();
        let show = |row: &LogRow| {
            while reactions.next_if(|(seq, _)| *seq < row.seq).is_some() {}
            let counts = reactions.next_if(|(seq, _)| *seq == row.seq);
            self.show(row, counts.map_or(Vec::new(), |(_, counts)| counts), hidden.has(row.seq))
        };
        Ok(rows.iter().map(show).collect())
    }

    /// A row as this user sees it.
    fn show(&self, row: &LogRow, reactions: Vec<ReactionCount>, is_hidden: bool) -> Message {
        let message = if self.role == Role::Service { row.to_moderated_message() } else { row.to_message() };
        if !is_hidden {
            return Message { reactions, ..message };
        }
        // What a user deleted for themselves reads as if it were deleted.
        let content = Content { body: bytes::Bytes::new(), ..message.content };
        let deleted_at = message.deleted_at.or(Some(message.time));
        Message { content, deleted_at, reactions: Vec::new(), ..message }
    }

    pub(super) async fn pull(&self, pull: Pull) -> Result<Pulled, RequestError> {
        let max_ranges = self.services.rules.load().limits.max_ranges as usize;
        if pull.ranges.len() > max_ranges {
            return Err(invalid(format!("{} ranges are more than {max_ranges}", pull.ranges.len())));
        }
        let mut budget = self.budget();
        let mut pages = Vec::with_capacity(pull.ranges.len());
        for range in pull.ranges {
            let page = match self.range(&range, &mut budget).await {
                Ok(page) => page,
                Err(error) => Page {
                    conversation: range.conversation,
                    messages: Vec::new(),
                    first: Seq(1),
                    head: Seq::ZERO,
                    next: None,
                    error: Some(error),
                },
            };
            pages.push(page);
        }
        Ok(Pulled { pages })
    }

    async fn range(&self, range: &PullRange, budget: &mut Budget) -> Result<Page, RequestError> {
        if range.from == Seq::ZERO || range.to < range.from {
            return Err(invalid("a range goes from at least 1 to at least its from"));
        }
        let seen = self.attend(&range.conversation).await?;
        self.audit_read("pull", &range.conversation);
        let (first, head) = (seen.from, seen.head.seq);
        let (from, to) = (range.from.max(first), range.to.min(head));
        self.page(&range.conversation, (from, to), (first, head), budget).await
    }

    async fn page(
        &self,
        conversation: &ConversationId,
        (from, to): (Seq, Seq),
        (first, head): (Seq, Seq),
        budget: &mut Budget,
    ) -> Result<Page, RequestError> {
        let mut page = Page {
            conversation: conversation.clone(),
            messages: Vec::new(),
            first,
            head,
            next: (from <= to).then_some(from),
            error: None,
        };
        if from > to || budget.is_spent() {
            return Ok(page);
        }
        let log = &self.services.stores.log;
        let rows =
            log.read(conversation, from, to, budget.limit()).await.map_err(|error| unavailable(&error))?;
        budget.take(&rows);
        let last = rows.last().map_or(to, |row| row.seq);
        page.next = (last < to).then_some(last.next());
        page.messages = self.shown(conversation, &rows).await?;
        Ok(page)
    }

    pub(super) async fn history(&self, history: History) -> Result<HistoryPage, RequestError> {
        if history.limit == 0 {
            return Err(invalid("a page has at least one message"));
        }
        let conversation = &history.conversation;
        let seen = self.attend(conversation).await?;
        self.audit_read("history", conversation);
        let (first, head) = (seen.from, seen.head.seq);
        let mut budget = self.budget();
        budget.messages = budget.messages.min(history.limit as usize);
        let start = self.start_of(&history, first, head).await?;
        if history.direction == Direction::Newer {
            let page = self.page(conversation, (start.max(first), head), (first, head), &mut budget).await?;
            return Ok(HistoryPage { page });
        }
        let mut page = Page {
            conversation: conversation.clone(),
            messages: Vec::new(),
            first,
            head,
            next: None,
            error: None,
        };
        let from = start.min(head);
        if from >= first {
            let log = &self.services.stores.log;
            let mut rows = log
                .read_back(conversation, first, from, budget.limit())
                .await
                .map_err(|error| unavailable(&error))?;
            rows.reverse();
            let lowest = rows.first().map_or(first, |row| row.seq);
            page.next = (lowest > first).then(|| Seq(lowest.0 - 1));
            page.messages = self.shown(conversation, &rows).await?;
        }
        Ok(HistoryPage { page })
    }

    async fn start_of(&self, history: &History, first: Seq, head: Seq) -> Result<Seq, RequestError> {
        match history.from {
            HistoryFrom::First => Ok(first),
            HistoryFrom::Last => Ok(head),
            HistoryFrom::Seq(seq) => Ok(seq),
            HistoryFrom::Time(time) => {
                let newer = self.first_at_or_after(&history.conversation, time, first, head).await?;
                if history.direction == Direction::Newer {
                    return Ok(newer);
                }
                // The last that is not newer: the messages of exactly this time are still in it.
                let after = Timestamp(time.0.saturating_add(1));
                let above = self.first_at_or_after(&history.conversation, after, first, head).await?;
                Ok(Seq(above.0.saturating_sub(1)))
            }
        }
    }

    /// The lowest seq whose time is not before `time`; above the head if there is none. Times never fall within a
    /// conversation, so a few single reads find it.
    async fn first_at_or_after(
        &self,
        conversation: &ConversationId,
        time: Timestamp,
        first: Seq,
        head: Seq,
    ) -> Result<Seq, RequestError> {
        let (mut low, mut high) = (first.0, head.0 + 1);
        while low < high {
            let middle = Seq(low + (high - low) / 2);
            let one = ReadLimit { rows: 1, bytes: 1 };
            let log = &self.services.stores.log;
            let rows =
                log.read(conversation, middle, head, one).await.map_err(|error| unavailable(&error))?;
            match rows.first() {
                Some(row) if row.entry.time < time => low = row.seq.0 + 1,
                _ => high = middle.0,
            }
        }
        Ok(Seq(low))
    }

    pub(super) async fn sync(&self, sync: Sync) -> Result<Synced, RequestError> {
        self.check_cursors(&sync.cursors)?;
        let Self { services, session, .. } = self;
        let index = &services.stores.index;
        let ids = index
            .conversations(&session.user, sync.after.as_ref(), SYNC_CONVERSATIONS)
            .await
            .map_err(|error| unavailable(&error))?;
        self.sync_of(sync, ids).await
    }

    /// The same of what changed. To a conversation that is left out the session need not be made a listener: an account is kept
    /// where one node serves all, and there every active conversation is told of a session before its login is answered.
    pub(super) async fn sync_since(&self, ask: SyncSince) -> Result<SyncedSince, RequestError> {
        self.check_cursors(&ask.cursors)?;
        let SyncSince { since, cursors, use_device_cursors, after } = ask;
        if since.as_ref().is_some_and(|token| token.len() > MAX_SYNC_TOKEN_BYTES) {
            return Err(invalid(format!("a token has at most {MAX_SYNC_TOKEN_BYTES} bytes")));
        }
        let Self { services, session, .. } = self;
        let index = &services.stores.index;
        let changed = index
            .changed(&session.user, since.as_deref(), after.as_ref(), SYNC_CONVERSATIONS)
            .await
            .map_err(|error| unavailable(&error))?;
        let sync = Sync { cursors, use_device_cursors, after };
        let Synced { conversations, pages, next } = self.sync_of(sync, changed.conversations).await?;
        Ok(SyncedSince { token: changed.token, all: changed.all, conversations, pages, next })
    }

    fn check_cursors(&self, cursors: &[Cursor]) -> Result<(), RequestError> {
        let max = self.services.rules.load().limits.max_ranges as usize;
        if cursors.len() > max {
            return Err(invalid(format!("{} cursors are more than {max}", cursors.len())));
        }
        Ok(())
    }

    /// One page of conversations and what they lack.
    async fn sync_of(&self, sync: Sync, ids: Vec<ConversationId>) -> Result<Synced, RequestError> {
        let kept = self.kept_cursors(&sync, &ids).await?;
        // Of a conversation that both know, what the request says counts.
        let cursors: HashMap<&ConversationId, Seq> =
            kept.iter().chain(&sync.cursors).map(|cursor| (&cursor.conversation, cursor.seq)).collect();
        let cursor_of = |id: &ConversationId| cursors.get(id).copied();
        let next = (ids.len() == SYNC_CONVERSATIONS).then(|| ids.last().cloned()).flatten();
        let mut budget = self.budget();
        let mut pages = Vec::new();
        let all = self.seen(ids).await?;
        for (conversation, seen) in &all {
            let (first, head) = (seen.from, seen.head.seq);
            if let Some(cursor) = cursor_of(conversation)
                && cursor < head
                && !budget.is_spent()
            {
                let from = cursor.next().max(first);
                pages.push(self.page(conversation, (from, head), (first, head), &mut budget).await?);
            }
        }
        let standings = self.standings(all).await?.into_iter();
        let synced = |Standing { conversation, seen, mark, unread }| SyncedConversation {
            head: seen.head.seq,
            cursor: cursor_of(&conversation),
            read: seen.head.seq.min(mark.seq),
            unread,
            conversation,
        };
        let conversations = standings.map(synced).collect();
        Ok(Synced { conversations, pages, next })
    }

    /// Those of the conversations that the user may see, and what of them.
    async fn seen(&self, ids: Vec<ConversationId>) -> Result<Vec<(ConversationId, Attended)>, RequestError> {
        let seen = self.services.conversations.attend_all(&ids, &self.attending()).await?;
        Ok(ids.into_iter().zip(seen).filter_map(|(id, seen)| Some((id, seen?))).collect())
    }

    async fn kept_cursors(&self, sync: &Sync, ids: &[ConversationId]) -> Result<Vec<Cursor>, RequestError> {
        if !sync.use_device_cursors || ids.is_empty() {
            return Ok(Vec::new());
        }
        let Self { services, session, .. } = self;
        let cursors = services.stores.cursors.cursors(&session.user, &session.device, ids).await;
        cursors.map_err(|error| unavailable(&error))
    }
}
