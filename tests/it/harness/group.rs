//! Requests about groups and messages, as tests say them.

use convoke_protocol::event::Push;
use convoke_protocol::frame::{Codec, Event};
use convoke_protocol::framing::Framing;
use convoke_protocol::group::GroupProfile;
use convoke_protocol::id::{ConversationId, GroupId, Seq, UserId};
use convoke_protocol::message::{Content, Message, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::{Delete, Edit, React, Recall};
use convoke_protocol::request::groups::{AddMembers, CreateGroup, RemoveMembers};
use convoke_protocol::request::messages::{Send, Target};
use convoke_protocol::request::sync::{Sync, SyncedConversation};

use super::client::TestClient;
use super::node::TestNode;

/// TCP with bincode, and WebSocket with JSON.
pub(crate) const BOTH: [Framing; 2] = [Framing::Tcp, Framing::WebSocket(Codec::Json)];

pub(crate) fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

pub(crate) fn users(names: &[&str]) -> Vec<UserId> {
    names.iter().map(|name| user(name)).collect()
}

pub(crate) fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

pub(crate) fn group_conversation(name: &str) -> ConversationId {
    ConversationId::group(&group(name))
}

/// Makes a group of this id with these members.
pub(crate) fn create(id: &str, members: &[&str]) -> CreateGroup {
    CreateGroup {
        retry: Retry::first(),
        group: Some(group(id)),
        unique: false,
        profile: GroupProfile { name: format!("The {id}"), ..GroupProfile::default() },
        members: users(members),
    }
}

pub(crate) fn add(id: &str, members: &[&str]) -> AddMembers {
    AddMembers { retry: Retry::first(), group: group(id), users: users(members) }
}

pub(crate) fn remove(id: &str, members: &[&str]) -> RemoveMembers {
    RemoveMembers { retry: Retry::first(), group: group(id), users: users(members) }
}

pub(crate) fn to_group(id: &str, text: &str) -> Send {
    Send {
        retry: Retry::first(),
        target: Target::Group(group(id)),
        content: Content::text(text),
        reply_to: None,
        previous: None,
        priority: Priority::NORMAL,
    }
}

pub(crate) fn recall(conversation: &ConversationId, seq: u64) -> Recall {
    Recall { retry: Retry::first(), conversation: conversation.clone(), seq: Seq(seq) }
}

pub(crate) fn edit(conversation: &ConversationId, seq: u64, text: &str) -> Edit {
    let content = Content::text(text);
    Edit { retry: Retry::first(), conversation: conversation.clone(), seq: Seq(seq), content }
}

pub(crate) fn delete(conversation: &ConversationId, seq: u64, hard: bool) -> Delete {
    Delete { retry: Retry::first(), conversation: conversation.clone(), seq: Seq(seq), hard }
}

pub(crate) fn react(conversation: &ConversationId, seq: u64, kind: &str, give: bool) -> React {
    let kind = kind.to_owned();
    React { retry: Retry::first(), conversation: conversation.clone(), seq: Seq(seq), kind, give }
}

/// What a message says, as text.
pub(crate) fn text(message: &Message) -> &str {
    message.content.as_text().unwrap()
}

impl TestClient {
    /// Says something to a group; its number.
    pub(crate) async fn say_to(&mut self, id: &str, text: &str) -> u64 {
        ask!(self, to_group(id, text), Sent).seq.0
    }

    /// The next push, whatever other events come before it.
    pub(crate) async fn next_push(&mut self) -> Push {
        loop {
            if let Event::Push(push) = self.event().await {
                return push;
            }
        }
    }

    /// The next push of this number in a conversation.
    pub(crate) async fn push_of(&mut self, conversation: &ConversationId, seq: u64) -> Message {
        loop {
            let push = self.next_push().await;
            if push.conversation == *conversation && push.message.seq.0 >= seq {
                assert_eq!(push.message.seq.0, seq, "a push is missing");
                return push.message;
            }
        }
    }

    /// How the user stands to a conversation.
    pub(crate) async fn standing(&mut self, conversation: &ConversationId) -> Option<SyncedConversation> {
        let all = Sync { cursors: Vec::new(), use_device_cursors: false, after: None };
        let synced = ask!(self, all, Synced);
        synced.conversations.into_iter().find(|one| one.conversation == *conversation)
    }
}

impl TestNode {
    /// A session of a service.
    pub(crate) async fn service(&self, framing: Framing, name: &str) -> TestClient {
        let token = self.token_with(name, &["--role", "service"]).await;
        let mut client = TestClient::connect(self, framing).await;
        client.log_in(token, "backend").await;
        client
    }
}
