//! How far users have read, and what is unread above that.

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::{ReadMoved, Receipt};
use convoke_protocol::frame::Event;
use convoke_protocol::id::{ConversationId, ConversationKind, Seq, UserId};
use convoke_protocol::message::MessageKind;
use convoke_protocol::request::conversations::MAX_LISTED;
use convoke_protocol::request::read_state::{
    AllRead, MarkAllRead, Read, ReadDone, ReadMarks, ReadMarksPage, UserRead,
};

use super::{Reader, unavailable};
use crate::actors::conversation::Attended;
use crate::actors::conversation::core::Head;
use crate::actors::conversation::group::Group;
use crate::storage::{MarkKey, ReadLimit, ReadMark, RowsAbove, read_marks};

/// Entries of a list that are read at a time.
const LIST_PAGE: usize = 1_000;

/// How a user stands to a conversation.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) conversation: ConversationId,
    pub(super) seen: Attended,
    pub(super) mark: ReadMark,
    pub(super) unread: u64,
}

/// The mark that everybody has who may see no more than this: what was before it is not unread.
fn floor(seen: &Attended) -> ReadMark {
    ReadMark { seq: Seq(seen.from.0.saturating_sub(1)), ordinal: seen.from_ordinal }
}

impl Reader<'_> {
    fn mark_key(&self, conversation: &ConversationId) -> MarkKey {
        MarkKey { user: self.session.user.clone(), conversation: conversation.clone() }
    }

    /// The user's conversations by id, at most [`MAX_LISTED`], and whether there are more.
    pub(super) async fn all_conversations(&self) -> Result<(Vec<ConversationId>, bool), RequestError> {
        let index = &self.services.stores.index;
        let mut ids: Vec<ConversationId> = Vec::new();
        while ids.len() <= MAX_LISTED {
            let page = index.conversations(&self.session.user, ids.last(), LIST_PAGE).await;
            let page = page.map_err(|error| unavailable(&error))?;
            let is_last = page.len() < LIST_PAGE;
            ids.extend(page);
            if is_last {
                break;
            }
        }
        let cut = ids.len() > MAX_LISTED;
        ids.truncate(MAX_LISTED);
        Ok((ids, cut))
    }

    /// How the user stands to conversations whose heads are known. The marks are read after the heads: what the user
    /// sends meanwhile counts as read, not as unread.
    pub(super) async fn standings(
        &self,
        all: Vec<(ConversationId, Attended)>,
    ) -> Result<Vec<Standing>, RequestError> {
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let store = &self.services.stores.marks;
        let keys: Vec<_> = all.iter().map(|(conversation, _)| self.mark_key(conversation)).collect();
        let marks = store.marks(&keys).await.map_err(|error| unavailable(&error))?;
        let standing = |((conversation, seen), mark): ((ConversationId, Attended), ReadMark)| {
            let mark = mark.max(floor(&seen));
            Standing { unread: read_marks::unread(seen.head.ordinal, mark, 0), conversation, seen, mark }
        };
        let mut standings: Vec<Standing> = all.into_iter().zip(marks).map(standing).collect();
        let mut open: Vec<&mut Standing> = standings.iter_mut().filter(|one| one.unread > 0).collect();
        let above = |one: &&mut Standing| RowsAbove {
            conversation: one.conversation.clone(),
            after: one.mark.seq,
            to: one.seen.head.seq,
        };
        let ranges: Vec<_> = open.iter().map(above).collect();
        if !ranges.is_empty() {
            let uncounted = store.uncounted(&ranges).await.map_err(|error| unavailable(&error))?;
            for (one, uncounted) in open.iter_mut().zip(uncounted) {
                one.unread = read_marks::unread(one.seen.head.ordinal, one.mark, uncounted);
            }
        }
        Ok(standings)
    }

    async fn standing(
        &self,
        conversation: &ConversationId,
        seen: Attended,
    ) -> Result<Standing, RequestError> {
        let mut standings = self.standings(vec![(conversation.clone(), seen)]).await?;
        Ok(standings.pop().expect("one conversation gives one standing"))
    }

    /// The mark of somebody who has read up to `seq`, which is at most the head.
    async fn mark_at(
        &self,
        conversation: &ConversationId,
        seq: Seq,
        head: Head,
    ) -> Result<ReadMark, RequestError> {
        if seq == head.seq {
            return Ok(ReadMark { seq, ordinal: head.ordinal });
        }
        let log = &self.services.stores.log;
        let rows = log.read(conversation, seq, head.seq, ReadLimit::rows(1)).await;
        let rows = rows.map_err(|error| unavailable(&error))?;
        Ok(match rows.first() {
            Some(row) if row.seq == seq => row.mark(),
            // It was trimmed: what counts is what is before the first row that is there.
            Some(row) => {
                let counts = u64::from(row.entry.kind == MessageKind::USER);
                ReadMark { seq, ordinal: row.entry.ordinal.saturating_sub(counts) }
            }
            None => ReadMark { seq, ordinal: head.ordinal },
        })
    }

    pub(super) async fn put_marks(&self, marks: &[(MarkKey, ReadMark)]) -> Result<(), RequestError> {
        self.services.stores.marks.put_marks(marks).await.map_err(|error| {
            tracing::warn!(%error, "read marks are not kept");
            RequestError::not_done(ErrorCode::UNAVAILABLE, "the mark is not kept").retry_after(1_000)
        })
    }

    pub(in crate::actors::session) async fn read(&self, read: Read) -> Result<ReadDone, RequestError> {
        let conversation = &read.conversation;
        let seen = self.attend(conversation).await?;
        let head = seen.head;
        let mut standing = self.standing(conversation, seen.clone()).await?;
        let seq = read.seq.min(head.seq);
        if seq > standing.mark.seq {
            let mark = self.mark_at(conversation, seq, head).await?;
            self.put_marks(&[(self.mark_key(conversation), mark)]).await?;
            standing = self.standing(conversation, seen).await?;
            self.tell_moved(std::slice::from_ref(&standing)).await;
        }
        Ok(ReadDone { conversation: standing.conversation, seq: standing.mark.seq, unread: standing.unread })
    }

    pub(in crate::actors::session) async fn mark_all_read(
        &self,
        _: MarkAllRead,
    ) -> Result<AllRead, RequestError> {
        let (ids, _) = self.all_conversations().await?;
        let all = self.seen(ids).await?;
        let standings = self.standings(all).await?.into_iter();
        let mut moved: Vec<Standing> = standings.filter(|one| one.mark.seq < one.seen.head.seq).collect();
        for one in &mut moved {
            one.mark = ReadMark { seq: one.seen.head.seq, ordinal: one.seen.head.ordinal };
            one.unread = 0;
        }
        let marks: Vec<_> = moved.iter().map(|one| (self.mark_key(&one.conversation), one.mark)).collect();
        self.put_marks(&marks).await?;
        self.tell_moved(&moved).await;
        Ok(AllRead { moved: u32::try_from(moved.len()).unwrap_or(u32::MAX) })
    }

    /// Tells the user's other devices, and of each direct conversation the peer. Members of a group ask for marks.
    async fn tell_moved(&self, moved: &[Standing]) {
        let Self { services, session, .. } = self;
        for Standing { conversation, mark, unread, .. } in moved {
            let event = Event::ReadMoved(ReadMoved {
                conversation: conversation.clone(),
                seq: mark.seq,
                unread: *unread,
            });
            services.directory.tell(&session.user, &event, Some(session.id)).await;
            let Some(peer) = conversation.peer_of(&session.user).filter(|peer| *peer != session.user) else {
                continue;
            };
            let event = Event::Receipt(Receipt {
                conversation: conversation.clone(),
                user: session.user.clone(),
                seq: mark.seq,
            });
            services.directory.tell(&peer, &event, None).await;
        }
    }

    pub(in crate::actors::session) async fn read_marks(
        &self,
        ask: ReadMarks,
    ) -> Result<ReadMarksPage, RequestError> {
        let limit = self.page_limit(ask.limit)?;
        let head = self.attend(&ask.conversation).await?.head;
        self.audit_read("read_marks", &ask.conversation);
        let members = match ask.conversation.kind() {
            ConversationKind::Direct(..) => ask.conversation.direct_users(),
            ConversationKind::Group(_) => {
                let after = ask.after.clone();
                let look = move |group: Option<&Group>| {
                    let members = group.into_iter().flat_map(|group| group.members_after(after.as_ref()));
                    members.take(limit + 1).map(|member| member.user.clone()).collect::<Vec<_>>()
                };
                self.services.conversations.look(ask.conversation.clone(), look).await?
            }
        };
        let after = |user: &UserId| ask.after.as_ref().is_none_or(|after| user > after);
        let mut users: Vec<_> = members.into_iter().filter(after).collect();
        let next = (users.len() > limit).then(|| users[limit - 1].clone());
        users.truncate(limit);
        let key = |user: &UserId| MarkKey { user: user.clone(), conversation: ask.conversation.clone() };
        let keys: Vec<_> = users.iter().map(key).collect();
        let marks = self.services.stores.marks.marks(&keys).await.map_err(|error| unavailable(&error))?;
        let marks = users.into_iter().zip(marks);
        // A message that was stored and is not yet committed moves no mark that anybody sees.
        let marks = marks.map(|(user, mark)| UserRead { user, seq: mark.seq.min(head.seq) }).collect();
        Ok(ReadMarksPage { marks, next })
    }
}
