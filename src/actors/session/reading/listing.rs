//! The user's list of conversations: what was last said in first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::ListChanged;
use convoke_protocol::frame::Event;
use convoke_protocol::id::{ConversationId, GroupId, Seq, Timestamp};
use convoke_protocol::message::Message;
use convoke_protocol::request::conversations::{
    ConversationList, ConversationSet, Conversations, ListedConversation, ListedGroup, MAX_LABEL_BYTES,
    MAX_LISTED, SetConversation,
};
use futures_util::future;
use xxhash_rust::xxh3::Xxh3;

use super::marks::Standing;
use super::{Budget, Reader, invalid, unavailable};
use crate::storage::{ConversationSettings, LogRow, ReadLimit, SettingsChange};

/// Versions are numbers that JSON's readers keep exact.
const VERSION_BITS: u32 = 53;

type Settings = BTreeMap<ConversationId, ConversationSettings>;

/// Which conversations there are and how the user wants them: equal lists have equal versions, wherever and whenever
/// they are made, so no version is stored.
fn version(ids: &[ConversationId], settings: &Settings, left: &HashSet<ConversationId>) -> u64 {
    let mut hash = Xxh3::new();
    let default = ConversationSettings::default();
    for id in ids {
        let ConversationSettings { label, muted, pinned } = settings.get(id).unwrap_or(&default);
        // Neither an id nor a label holds a zero byte.
        hash.update(id.as_str().as_bytes());
        hash.update(&[0, u8::from(*muted), u8::from(*pinned), u8::from(left.contains(id))]);
        hash.update(label.as_deref().unwrap_or_default().as_bytes());
        hash.update(&[0]);
    }
    hash.digest() >> (u64::BITS - VERSION_BITS)
}

/// Where a conversation stands in the list.
type Place = (Reverse<Timestamp>, ConversationId);

fn place(standing: &Standing) -> Place {
    (Reverse(standing.seen.head.time), standing.conversation.clone())
}

fn write_place((Reverse(time), conversation): &Place) -> String {
    format!("{time} {conversation}")
}

fn read_place(text: &str) -> Result<Place, RequestError> {
    let place = || {
        let (time, conversation) = text.split_once(' ')?;
        Some((Reverse(Timestamp(time.parse().ok()?)), ConversationId::new(conversation).ok()?))
    };
    place().ok_or_else(|| invalid("after is not the next of a former page"))
}

impl Reader<'_> {
    /// Those of the groups that the user left.
    async fn left(&self, ids: &[ConversationId]) -> Result<HashSet<ConversationId>, RequestError> {
        let groups: Vec<GroupId> = ids.iter().filter_map(ConversationId::group_id).collect();
        let stores = &self.services.stores;
        let members = stores.groups.memberships(&self.session.user, &groups).await;
        let members = members.map_err(|error| unavailable(&error))?.into_iter();
        let gone =
            members.zip(&groups).filter(|(member, _)| member.as_ref().is_some_and(|one| one.left.is_some()));
        Ok(gone.map(|(_, group)| ConversationId::group(group)).collect())
    }

    async fn list_and_settings(&self) -> Result<(Vec<ConversationId>, Settings, bool), RequestError> {
        let (ids, cut) = self.all_conversations().await?;
        let settings = self.services.stores.settings.settings(&self.session.user, 2 * MAX_LISTED).await;
        let settings = settings.map_err(|error| unavailable(&error))?.into_iter().collect();
        Ok((ids, settings, cut))
    }

    pub(in crate::actors::session) async fn conversations(
        &self,
        ask: Conversations,
    ) -> Result<ConversationList, RequestError> {
        if ask.limit == 0 {
            return Err(invalid("a page has at least one conversation"));
        }
        let after = ask.after.as_deref().map(read_place).transpose()?;
        let (ids, mut settings, cut) = self.list_and_settings().await?;
        let version = version(&ids, &settings, &self.left(&ids).await?);
        let mut list = ConversationList {
            version,
            not_modified: after.is_none() && ask.known_version == Some(version),
            conversations: Vec::new(),
            unread: 0,
            cut,
            next: None,
        };
        if list.not_modified {
            return Ok(list);
        }
        let mut standings = self.standings(self.seen(ids).await?).await?;
        list.unread = standings.iter().map(|one| one.unread).sum();
        standings.sort_by_cached_key(place);
        if let Some(after) = after {
            standings.retain(|one| place(one) > after);
        }
        let mut budget = self.budget();
        let limit = budget.messages.min(ask.limit as usize);
        if standings.len() > limit {
            standings.truncate(limit);
            list.next = standings.last().map(|last| write_place(&place(last)));
        }
        let groups: Vec<GroupId> = standings.iter().filter_map(|one| one.conversation.group_id()).collect();
        let rows = self.services.stores.groups.groups_of(&groups).await;
        let mut rows = rows.map_err(|error| unavailable(&error))?.into_iter();
        let last = self.last_messages(&mut standings, &mut budget).await?;
        for (Standing { conversation, seen, mark, unread }, last) in standings.into_iter().zip(last) {
            let head = seen.head.seq;
            let row = if conversation.group_id().is_some() { rows.next().flatten() } else { None };
            let group = row.map(|row| ListedGroup {
                name: row.name,
                avatar: row.avatar,
                ended: seen.left || row.disbanded_at.is_some(),
            });
            let ConversationSettings { label, muted, pinned } =
                settings.remove(&conversation).unwrap_or_default();
            let (first, read) = (seen.from, mark.seq.min(head));
            list.conversations.push(ListedConversation {
                conversation,
                label,
                muted,
                pinned,
                group,
                first,
                head,
                read,
                unread,
                last,
            });
        }
        Ok(list)
    }

    /// The last message of each, as long as the budget lasts.
    async fn last_messages(
        &self,
        standings: &mut [Standing],
        budget: &mut Budget,
    ) -> Result<Vec<Option<Message>>, RequestError> {
        let stores = &self.services.stores;
        let mut rows: Vec<Option<LogRow>> = Vec::with_capacity(standings.len());
        for Standing { conversation, seen, .. } in standings.iter_mut() {
            let head = seen.head.seq;
            let row = match seen.last.take() {
                _ if budget.is_spent() || head < seen.from => None,
                Some(row) => Some(*row),
                // It goes on meanwhile, or the user left it.
                None => {
                    let rows = stores.log.read(conversation, head, head, ReadLimit::rows(1)).await;
                    rows.map_err(|error| unavailable(&error))?.pop()
                }
            };
            budget.take(row.as_slice());
            rows.push(row);
        }
        let messages: Vec<(ConversationId, Seq)> =
            standings.iter().map(|one| (one.conversation.clone(), one.seen.head.seq)).collect();
        let reactions = stores.reactions.reaction_counts_of(&messages);
        let hidden = stores.hidden.are_hidden(&self.session.user, &messages);
        let (reactions, hidden) =
            future::try_join(reactions, hidden).await.map_err(|error| unavailable(&error))?;
        let shown = rows.iter().zip(reactions).zip(hidden);
        Ok(shown
            .map(|((row, reactions), is_hidden)| Some(self.show(row.as_ref()?, reactions, is_hidden)))
            .collect())
    }

    pub(in crate::actors::session) async fn set_conversation(
        &self,
        set: SetConversation,
    ) -> Result<ConversationSet, RequestError> {
        let SetConversation { retry: _, conversation, label, muted, pinned } = set;
        if let Some(label) = &label
            && (label.len() > MAX_LABEL_BYTES || label.chars().any(char::is_control))
        {
            let text = format!("a label has at most {MAX_LABEL_BYTES} bytes and no control characters");
            return Err(invalid(text));
        }
        if self.attend(&conversation).await?.head.seq == Seq::ZERO {
            return Err(RequestError::not_done(ErrorCode::NOT_FOUND, "nothing was said there yet"));
        }
        let change = SettingsChange { label, muted, pinned };
        let store = &self.services.stores.settings;
        let kept = store.set_conversation(&self.session.user, &conversation, &change).await;
        kept.map_err(|error| {
            tracing::warn!(%error, "a setting is not kept");
            RequestError::unknown(ErrorCode::UNAVAILABLE, "the setting may not be kept").retry_after(1_000)
        })?;
        self.tell_other_devices(&Event::ListChanged(ListChanged { conversation })).await;
        let (ids, settings, _) = self.list_and_settings().await?;
        Ok(ConversationSet { version: version(&ids, &settings, &self.left(&ids).await?) })
    }
}
