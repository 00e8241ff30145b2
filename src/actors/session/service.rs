//! What only services do, and the record of it.

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::Seq;
use convoke_protocol::message::MessageKind;
use convoke_protocol::request::changes::{SendAs, SentAs};

use super::dispatch::checked_body;
use super::reading::Reader;
use crate::actors::conversation::core::SendCommand;
use crate::auth::{Role, system_user};

impl Reader<'_> {
    /// Writes down what a service did.
    pub(super) fn audit(&self, act: &str, on: &str, seq: Option<Seq>) {
        let from = (&self.session.device, self.session.id);
        self.services.audit.record(&self.session.user, Some(from), act, on, seq);
    }

    pub(super) async fn send_as(&self, ask: SendAs) -> Result<SentAs, RequestError> {
        if self.role != Role::Service {
            return Err(RequestError::not_done(ErrorCode::WRONG_ROLE, "this is for services"));
        }
        let SendAs { retry, sender, conversation, content, reply_to, priority } = ask;
        let kind = if sender.is_some() { MessageKind::USER } else { MessageKind::SYSTEM };
        let on_behalf = sender.is_some();
        let sender = sender.unwrap_or_else(system_user);
        let users = conversation.direct_users();
        if on_behalf && !users.is_empty() && !users.contains(&sender) {
            let text = format!("{sender} is not in that conversation");
            return Err(RequestError::not_done(ErrorCode::NOT_FOUND, text));
        }
        if priority.name().is_none() {
            return Err(super::reading::invalid("there is no such priority"));
        }
        let content = checked_body(self.services, &sender, &conversation, content)?;
        let command = SendCommand {
            sender,
            role: Role::Service,
            device: self.session.device.clone(),
            retry,
            kind,
            priority,
            content,
            reply_to,
            previous: None,
        };
        let place = self.services.conversations.send_told(conversation.clone(), Box::new(command)).await?;
        self.audit(
            if on_behalf { "send_on_behalf" } else { "send_as_system" },
            conversation.as_str(),
            Some(place.seq),
        );
        Ok(SentAs { conversation, seq: place.seq, message_id: place.id, time: place.time })
    }
}
