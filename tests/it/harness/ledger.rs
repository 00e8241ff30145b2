//! What senders were told, to be compared with what is there.

use std::collections::HashMap;

use convoke_protocol::id::{ClientId, ConversationId, MessageId, Seq};
use convoke_protocol::message::Message;
use convoke_protocol::request::messages::Sent;

/// What became of each send of one conversation.
#[derive(Debug)]
pub(crate) struct Ledger {
    conversation: ConversationId,
    acked: HashMap<ClientId, (Seq, MessageId)>,
}

impl Ledger {
    /// Nothing was sent yet.
    pub(crate) fn of(conversation: ConversationId) -> Self {
        Self { conversation, acked: HashMap::new() }
    }

    /// The conversation it is about.
    pub(crate) fn conversation(&self) -> &ConversationId {
        &self.conversation
    }

    /// Notes an answer; another answer to the same send must be the same.
    pub(crate) fn acked(&mut self, client_id: ClientId, sent: &Sent) {
        assert_eq!(sent.conversation, self.conversation);
        let place = (sent.seq, sent.message_id);
        let known = *self.acked.entry(client_id).or_insert(place);
        assert_eq!(known, place, "one send, two answers");
    }

    /// How many sends were acknowledged.
    pub(crate) fn len(&self) -> usize {
        self.acked.len()
    }

    /// Every acknowledged message is there once, with its number and id.
    pub(crate) fn compare(&self, messages: &[Message]) {
        let mut there = HashMap::new();
        for message in messages {
            let before = there.insert(message.client_id, (message.seq, message.message_id));
            assert_eq!(before, None, "{} is there twice", message.client_id);
        }
        for (client_id, place) in &self.acked {
            assert_eq!(there.get(client_id), Some(place), "{client_id} was acknowledged as {place:?}");
        }
    }
}
