//! Reading what was said: pages bounded by the head that the conversation's owner tells (I6).

mod listing;
mod marks;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{ConversationId, Seq, Timestamp};
use convoke_protocol::message::{Cursor, Message};
use convoke_protocol::request::messages::{
    Direction, History, HistoryFrom, HistoryPage, Page, Pull, PullRange, Pulled,
};
use convoke_protocol::request::sync::{Sync, Synced, SyncedConversation};

use self::marks::Standing;
use super::SessionShared;
use super::dispatch::Services;
use crate::actors::conversation::core::Head;
use crate::storage::{LogRow, ReadError, ReadLimit};

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

/// One session reads.
pub(super) struct Reader<'a> {
    pub(super) services: &'a Services,
    pub(super) session: &'a SessionShared,
}

fn unavailable(error: &ReadError) -> RequestError {
    tracing::warn!(%error, "a read failed");
    RequestError::not_done(ErrorCode::UNAVAILABLE, "the store cannot be read").retry_after(1_000)
}

fn invalid(message: impl Into<String>) -> RequestError {
    RequestError::not_done(ErrorCode::INVALID_REQUEST, message)
}

fn messages(rows: &[LogRow]) -> Vec<Message> {
    rows.iter().map(LogRow::to_message).collect()
}

impl Reader<'_> {
    fn budget(&self) -> Budget {
        let limits = self.services.rules.load().limits;
        Budget { messages: limits.max_page_messages as usize, bytes: limits.max_page_bytes as usize }
    }

    /// Whether the user may read the conversation. One that does not exist and one of others answer the same.
    fn may_read(&self, conversation: &ConversationId) -> Result<(), RequestError> {
        if conversation.is_direct_with(&self.session.user) {
            return Ok(());
        }
        Err(RequestError::not_done(ErrorCode::NOT_FOUND, "there is no such conversation, or it is not yours"))
    }

    /// The first number there is and the head; from then on the session listens.
    async fn bounds(&self, conversation: &ConversationId) -> Result<(Seq, Seq), RequestError> {
        let (first, head) = self.ends(conversation).await?;
        Ok((first, head.seq))
    }

    /// The same with all that is known of the head.
    async fn ends(&self, conversation: &ConversationId) -> Result<(Seq, Head), RequestError> {
        self.may_read(conversation)?;
        let head = self.services.conversations.attend(conversation, self.session.id).await?;
        let first =
            self.services.stores.log.start(conversation).await.map_err(|error| unavailable(&error))?.seq;
        Ok((first, head))
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
        let (first, head) = self.bounds(&range.conversation).await?;
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
        page.messages = messages(&rows);
        Ok(page)
    }

    pub(super) async fn history(&self, history: History) -> Result<HistoryPage, RequestError> {
        if history.limit == 0 {
            return Err(invalid("a page has at least one message"));
        }
        let conversation = &history.conversation;
        let (first, head) = self.bounds(conversation).await?;
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
            page.messages = messages(&rows);
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
        let max = self.services.rules.load().limits.max_ranges as usize;
        if sync.cursors.len() > max {
            return Err(invalid(format!("{} cursors are more than {max}", sync.cursors.len())));
        }
        let Self { services, session } = self;
        let index = &services.stores.index;
        let ids = index
            .conversations(&session.user, sync.after.as_ref(), SYNC_CONVERSATIONS)
            .await
            .map_err(|error| unavailable(&error))?;
        let kept = self.kept_cursors(&sync, &ids).await?;
        let cursor_of = |id: &ConversationId| {
            let named = sync.cursors.iter().find(|cursor| cursor.conversation == *id);
            named.or_else(|| kept.iter().find(|cursor| cursor.conversation == *id)).map(|cursor| cursor.seq)
        };
        let next = (ids.len() == SYNC_CONVERSATIONS).then(|| ids.last().cloned()).flatten();
        let mut budget = self.budget();
        let (mut heads, mut pages) = (Vec::new(), Vec::new());
        for conversation in ids {
            let (first, whole_head) = self.ends(&conversation).await?;
            let head = whole_head.seq;
            let cursor = cursor_of(&conversation);
            if let Some(cursor) = cursor
                && cursor < head
                && !budget.is_spent()
            {
                let from = cursor.next().max(first);
                pages.push(self.page(&conversation, (from, head), (first, head), &mut budget).await?);
            }
            heads.push((conversation, whole_head));
        }
        let standings = self.standings(heads).await?.into_iter();
        let synced = |Standing { conversation, head, mark, unread }| SyncedConversation {
            head: head.seq,
            cursor: cursor_of(&conversation),
            read: head.seq.min(mark.seq),
            unread,
            conversation,
        };
        let conversations = standings.map(synced).collect();
        Ok(Synced { conversations, pages, next })
    }

    async fn kept_cursors(&self, sync: &Sync, ids: &[ConversationId]) -> Result<Vec<Cursor>, RequestError> {
        if !sync.use_device_cursors {
            return Ok(Vec::new());
        }
        let Self { services, session } = self;
        let cursors = services.stores.cursors.cursors(&session.user, &session.device, ids).await;
        cursors.map_err(|error| unavailable(&error))
    }
}
