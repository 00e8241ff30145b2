//! Changing what was said: recall, edit, delete, react, hide; and for how long a conversation is kept.

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::Hid;
use convoke_protocol::frame::Event;
use convoke_protocol::id::{ConversationId, ConversationKind, Seq};
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::{
    Delete, Deleted, Edit, Edited, Hidden, Hide, MAX_HIDDEN_PER_REQUEST, MAX_REACTION_KIND_BYTES, React,
    Reacted, Reactions, ReactionsPage, Recall, Recalled, RetentionSet, SetRetention,
};

use super::dispatch::checked_body;
use super::reading::{Reader, invalid, unavailable, unkept};
use crate::actors::conversation::change::ChangeCommand;
use crate::actors::conversation::core::{Act, ActCommand};
use crate::auth::Role;
use crate::storage::HiddenRows;

impl Reader<'_> {
    /// Carries out a command and says which entry tells of it.
    pub(super) async fn act(
        &self,
        conversation: &ConversationId,
        retry: Retry,
        act: Act,
    ) -> Result<Option<Seq>, RequestError> {
        let command = ActCommand { asking: self.asking(), device: self.session.device.clone(), retry, act };
        let place = self.services.conversations.act(conversation.clone(), Box::new(command)).await?;
        Ok(place.map(|place| place.seq))
    }

    async fn change(
        &self,
        conversation: &ConversationId,
        retry: Retry,
        command: ChangeCommand,
    ) -> Result<Option<Seq>, RequestError> {
        self.may_know(conversation)?;
        let (act, target) = (format!("{command:?}"), command.target());
        let seq = self.act(conversation, retry, Act::Change(command)).await?;
        if self.role == Role::Service {
            let act = act.split([' ', '{']).next().unwrap_or_default().to_lowercase();
            self.audit(&act, conversation.as_str(), Some(target));
        }
        Ok(seq)
    }

    pub(super) async fn recall(&self, ask: Recall) -> Result<Recalled, RequestError> {
        let Recall { retry, conversation, seq } = ask;
        let seq = self.change(&conversation, retry, ChangeCommand::Recall { seq }).await?;
        Ok(Recalled { conversation, seq })
    }

    pub(super) async fn edit(&self, ask: Edit) -> Result<Edited, RequestError> {
        let Edit { retry, conversation, seq, content } = ask;
        self.may_know(&conversation)?;
        let content = checked_body(self.services, &self.session.user, &conversation, content)?;
        let seq = self.change(&conversation, retry, ChangeCommand::Edit { seq, content }).await?;
        Ok(Edited { conversation, seq })
    }

    pub(super) async fn delete(&self, ask: Delete) -> Result<Deleted, RequestError> {
        let Delete { retry, conversation, seq, hard } = ask;
        let seq = self.change(&conversation, retry, ChangeCommand::Delete { seq, hard }).await?;
        Ok(Deleted { conversation, seq })
    }

    pub(super) async fn react(&self, ask: React) -> Result<Reacted, RequestError> {
        let React { retry, conversation, seq, kind, give } = ask;
        check_kind(&kind)?;
        let seq = self.change(&conversation, retry, ChangeCommand::React { seq, kind, give }).await?;
        Ok(Reacted { conversation, seq })
    }

    /// Deletes for the user alone, and tells the user's other devices.
    pub(super) async fn hide(&self, ask: Hide) -> Result<Hidden, RequestError> {
        let Hide { retry: _, conversation, mut seqs, up_to } = ask;
        if seqs.len() > MAX_HIDDEN_PER_REQUEST {
            return Err(invalid(format!("{} messages are more than {MAX_HIDDEN_PER_REQUEST}", seqs.len())));
        }
        let seen = self.attend(&conversation).await?;
        let there = |seq: Seq| seen.from <= seq && seq <= seen.head.seq;
        if let Some(other) = seqs.iter().find(|seq| !there(**seq)) {
            return Err(RequestError::not_done(ErrorCode::NOT_FOUND, format!("there is no message {other}")));
        }
        seqs.sort();
        seqs.dedup();
        let rows = HiddenRows { up_to: up_to.unwrap_or(Seq::ZERO).min(seen.head.seq), seqs };
        let store = &self.services.stores.hidden;
        store.hide(&self.session.user, &conversation, &rows).await.map_err(|error| unkept(&error))?;
        let HiddenRows { up_to, seqs } = rows;
        let up_to = (up_to > Seq::ZERO).then_some(up_to);
        let event = Event::Hid(Hid { conversation: conversation.clone(), seqs, up_to });
        self.tell_other_devices(&event).await;
        Ok(Hidden { conversation })
    }

    pub(super) async fn reactions(&self, ask: Reactions) -> Result<ReactionsPage, RequestError> {
        check_kind(&ask.kind)?;
        let limit = self.page_limit(ask.limit)?;
        let seen = self.attend(&ask.conversation).await?;
        self.audit_read("reactions", &ask.conversation);
        if ask.seq < seen.from || ask.seq > seen.head.seq {
            return Err(RequestError::not_done(ErrorCode::NOT_FOUND, "there is no such message"));
        }
        let store = &self.services.stores.reactions;
        let users =
            store.reactors(&ask.conversation, ask.seq, &ask.kind, ask.after.as_ref(), limit + 1).await;
        let mut users = users.map_err(|error| unavailable(&error))?;
        let next = (users.len() > limit).then(|| users[limit - 1].clone());
        users.truncate(limit);
        Ok(ReactionsPage { users, next })
    }

    pub(super) async fn set_retention(&self, ask: SetRetention) -> Result<RetentionSet, RequestError> {
        let SetRetention { retry: _, conversation, retention } = ask;
        self.attend(&conversation).await?;
        let is_owner = match conversation.kind() {
            ConversationKind::Direct(..) => false,
            ConversationKind::Group(_) => {
                let user = self.session.user.clone();
                let look = self.services.conversations.look(conversation.clone(), move |group| {
                    group.and_then(|group| group.owner()).is_some_and(|owner| *owner == user)
                });
                look.await?
            }
        };
        if self.role != Role::Service && !is_owner {
            let text = "for how long is said by the owner of a group, and by services";
            return Err(RequestError::not_done(ErrorCode::NOT_PERMITTED, text));
        }
        let store = &self.services.stores.retention;
        store.set_retention(&conversation, retention).await.map_err(|error| unkept(&error))?;
        if self.role == Role::Service {
            self.audit("set_retention", conversation.as_str(), None);
        }
        Ok(RetentionSet { conversation })
    }
}

fn check_kind(kind: &str) -> Result<(), RequestError> {
    if kind.is_empty() || kind.len() > MAX_REACTION_KIND_BYTES || kind.chars().any(char::is_control) {
        let text = format!("a kind has 1 to {MAX_REACTION_KIND_BYTES} bytes and no control characters");
        return Err(invalid(text));
    }
    Ok(())
}
