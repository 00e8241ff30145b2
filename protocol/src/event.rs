//! What a server says unasked. Events have request id 0.

use serde::{Deserialize, Serialize};

use crate::error_code::ErrorCode;
use crate::id::{ConversationId, DeviceId, GroupId, Seq, UserId};
use crate::message::{Content, Message};

/// A new message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Where it was said.
    pub conversation: ConversationId,
    /// The number before it in its lane. An ordinary conversation has one lane, whatever the priorities: `seq - 1`.
    pub lane_previous: Seq,
    /// What was said.
    pub message: Message,
}

/// Pushes of a conversation were left out because this session did not read fast enough, or were shed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lagged {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its head when this was written: pull from your cursor to here.
    pub head: Seq,
    /// How many messages were shed for good (live rooms and ephemeral messages only).
    pub shed: u64,
}

/// A node of the cluster as clients reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The node's id.
    pub node: String,
    /// `host:port` of its TCP listener, if it has one for clients.
    pub tcp: Option<String>,
    /// `host:port` of its WebSocket listener, if it has one for clients.
    pub ws: Option<String>,
}

/// The server is about to close the connection: come back, here or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoAway {
    /// Why.
    pub reason: ErrorCode,
    /// How long to wait before connecting again, in milliseconds.
    pub retry_after_ms: u32,
    /// Where to connect; empty for the same address.
    pub nodes: Vec<NodeAddress>,
}

/// The session is over and is not to be resumed by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kicked {
    /// Why.
    pub reason: ErrorCode,
    /// The same for a person.
    pub message: String,
}

/// The nodes that clients may connect to are now these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesChanged {
    /// All of them.
    pub nodes: Vec<NodeAddress>,
}

/// The user read on another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadMoved {
    /// The conversation.
    pub conversation: ConversationId,
    /// The user's mark.
    pub seq: Seq,
    /// How many messages are unread above it.
    pub unread: u64,
}

/// The other user of a direct conversation read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The conversation.
    pub conversation: ConversationId,
    /// Who read.
    pub user: UserId,
    /// Up to where.
    pub seq: Seq,
}

/// Somebody signals something: without a number, not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signalled {
    /// Where.
    pub conversation: ConversationId,
    /// Who.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// What it is: `typing`, or whatever an application makes of it.
    pub kind: String,
    /// What goes with it.
    pub content: Content,
}

/// The user deleted messages for themselves on another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hid {
    /// The conversation.
    pub conversation: ConversationId,
    /// These messages.
    pub seqs: Vec<Seq>,
    /// And all up to this one.
    pub up_to: Option<Seq>,
}

/// The user's list of conversations is another: which there are, or a label, mute or pin set on another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListChanged {
    /// The conversation that changed.
    pub conversation: ConversationId,
}

/// Somebody asks to join a group of which the user is an admin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequested {
    /// The group.
    pub group: GroupId,
    /// Who asks.
    pub user: UserId,
    /// What they say.
    pub message: String,
}

/// The user's request to join a group was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswered {
    /// The group.
    pub group: GroupId,
    /// Whether the user is a member now.
    pub accepted: bool,
}
