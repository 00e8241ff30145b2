//! The user's list of conversations: what was last said in first.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{ConversationId, Timestamp};
use convoke_protocol::request::conversations::{
    ConversationList, ConversationSet, Conversations, ListedConversation, MAX_LABEL_BYTES, MAX_LISTED,
    SetConversation,
};
use xxhash_rust::xxh3::Xxh3;

use super::marks::Standing;
use super::{Reader, invalid, unavailable};
use crate::storage::{ConversationSettings, ReadLimit, SettingsChange};

/// Versions are numbers that JSON's readers keep exact.
const VERSION_BITS: u32 = 53;

type Settings = BTreeMap<ConversationId, ConversationSettings>;

/// Which conversations there are and how the user wants them: equal lists have equal versions, wherever and whenever
/// they are made, so no version is stored.
fn version(ids: &[ConversationId], settings: &Settings) -> u64 {
    let mut hash = Xxh3::new();
    let default = ConversationSettings::default();
    for id in ids {
        let ConversationSettings { label, muted, pinned } = settings.get(id).unwrap_or(&default);
        // Neither an id nor a label holds a zero byte.
        hash.update(id.as_str().as_bytes());
        hash.update(&[0, u8::from(*muted), u8::from(*pinned)]);
        hash.update(label.as_deref().unwrap_or_default().as_bytes());
        hash.update(&[0]);
    }
    hash.digest() >> (u64::BITS - VERSION_BITS)
}

/// Where a conversation stands in the list.
type Place = (Reverse<Timestamp>, ConversationId);

fn place(standing: &Standing) -> Place {
    (Reverse(standing.head.time), standing.conversation.clone())
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
        let version = version(&ids, &settings);
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
        let heads = self.heads(ids).await?;
        let mut standings = self.standings(heads).await?;
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
        for Standing { conversation, head, mark, unread } in standings {
            let mut last = None;
            if !budget.is_spent() {
                let log = &self.services.stores.log;
                let rows = log.read(&conversation, head.seq, head.seq, ReadLimit::rows(1)).await;
                let rows = rows.map_err(|error| unavailable(&error))?;
                budget.take(&rows);
                last = rows.first().map(crate::storage::LogRow::to_message);
            }
            let ConversationSettings { label, muted, pinned } =
                settings.remove(&conversation).unwrap_or_default();
            let (head, read) = (head.seq, mark.seq.min(head.seq));
            let (group, first) = (None, convoke_protocol::id::Seq(1));
            let one = ListedConversation {
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
            };
            list.conversations.push(one);
        }
        Ok(list)
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
        self.may_read(&conversation)?;
        let head = self.services.conversations.attend(&conversation, self.session.id).await?;
        if head.seq == convoke_protocol::id::Seq::ZERO {
            return Err(RequestError::not_done(ErrorCode::NOT_FOUND, "nothing was said there yet"));
        }
        let change = SettingsChange { label, muted, pinned };
        let store = &self.services.stores.settings;
        let kept = store.set_conversation(&self.session.user, &conversation, &change).await;
        kept.map_err(|error| {
            tracing::warn!(%error, "a setting is not kept");
            RequestError::unknown(ErrorCode::UNAVAILABLE, "the setting may not be kept").retry_after(1_000)
        })?;
        let (ids, settings, _) = self.list_and_settings().await?;
        Ok(ConversationSet { version: version(&ids, &settings) })
    }
}
