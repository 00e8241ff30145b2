//! What operators ask a node, and what it answers: JSON on the admin listener, the same for `convoke admin` and for
//! programs of theirs. `docs/operations.md` lists the calls.

use convoke_protocol::id::{ConversationId, DeviceId, GroupId, Seq, SessionId, Timestamp, UserId};
use serde::{Deserialize, Serialize};

/// The most lines of one answer.
pub const MAX_LINES: usize = 1_000;

/// Lines of an answer if nothing is said about them.
pub const DEFAULT_LINES: usize = 100;

fn default_lines() -> usize {
    DEFAULT_LINES
}

/// Which sessions are asked for, or are to be closed. `{}` is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WhichSessions {
    /// Of this user.
    pub user: Option<UserId>,
    /// On this device.
    pub device: Option<DeviceId>,
    /// With this id.
    pub session: Option<SessionId>,
    /// At most so many lines; [`MAX_LINES`] at most.
    pub limit: Option<usize>,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SessionLine {
    pub session: SessionId,
    pub user: UserId,
    pub device: DeviceId,
    pub device_class: String,
    pub app: String,
    /// How it is connected.
    pub framing: String,
    pub since: Timestamp,
    /// Bytes that wait for its socket.
    pub queued_bytes: usize,
    /// Requests without an answer.
    pub in_flight: u32,
    /// Milliseconds for which pushes have not been acknowledged.
    pub unacked_ms: u64,
    /// Milliseconds since something was heard.
    pub silent_ms: u64,
}

/// The sessions, by user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLines {
    /// How many there are, shown or not.
    pub total: usize,
    /// Those that are shown.
    pub sessions: Vec<SessionLine>,
}

/// How many sessions were closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kicked {
    /// As many.
    pub kicked: usize,
}

/// A page of a list that is ordered by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PageOf {
    /// Those above this id.
    pub after: Option<ConversationId>,
    /// At most so many lines; [`MAX_LINES`] at most.
    #[serde(default = "default_lines")]
    pub limit: usize,
    /// Only those that are in memory.
    pub active: bool,
}

impl Default for PageOf {
    fn default() -> Self {
        Self { after: None, limit: DEFAULT_LINES, active: false }
    }
}

/// One conversation of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversationLine {
    /// Its id.
    pub conversation: ConversationId,
    /// Whether it is in memory.
    pub active: bool,
    /// The number of its last message.
    pub head: Seq,
    /// When that was sent; absent in an empty one.
    pub last: Option<Timestamp>,
}

/// A page of conversations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversationLines {
    /// How many are in memory.
    pub active: usize,
    /// The page, by id.
    pub conversations: Vec<ConversationLine>,
    /// Go on with this as `after`; absent at the end.
    pub next: Option<ConversationId>,
}

/// Which conversation is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhichConversation {
    /// Its id.
    pub conversation: ConversationId,
}

/// What there is to say about one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct ConversationState {
    pub conversation: ConversationId,
    /// In which shard it is, and which node serves that; absent on a node that is alone.
    pub shard: Option<u32>,
    pub owner: Option<String>,
    /// Whether it is in memory on the node that owns it.
    pub active: bool,
    /// Bytes of memory it holds there while it is active.
    pub memory_bytes: Option<usize>,
    /// Sessions that get its pushes, on all nodes; none while it sleeps.
    pub listeners: usize,
    pub head: Seq,
    pub last: Option<Timestamp>,
    /// The first message that is still there.
    pub first: Seq,
    /// For how long messages are kept, if a rule of its own says so.
    pub retention: Option<serde_json::Value>,
    pub group: Option<GroupLine>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct GroupLine {
    pub group: GroupId,
    pub name: String,
    pub owner: Option<UserId>,
    pub members: usize,
    pub created_at: Timestamp,
    pub disbanded: bool,
    pub active: bool,
}

/// A page of groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLines {
    /// The page, by id.
    pub groups: Vec<GroupLine>,
    /// Go on with this as `after`; absent at the end.
    pub next: Option<ConversationId>,
}

/// What the node holds in memory, in bytes. What is not named is code, tasks, the runtime and the allocator's reserve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Memory {
    pub sessions: usize,
    pub session_bytes: usize,
    /// What waits for the sessions' sockets.
    pub session_queue_bytes: usize,
    pub conversations: usize,
    pub conversation_bytes: usize,
    /// Listeners: a pointer each.
    pub listeners: usize,
    pub listener_bytes: usize,
    /// Appends that wait for the store.
    pub store_queue_bytes: usize,
    /// Rows that are in the journal and not yet in a table.
    pub store_memtable_bytes: usize,
    /// Blocks that were read.
    pub store_cache_bytes: usize,
    /// The process, as the kernel says.
    pub resident_bytes: usize,
}

/// How much of the record of what services and operators did is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditPage {
    /// At most so many of the last lines.
    pub limit: Option<usize>,
}

/// Something a service or an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLine {
    /// When.
    pub time: Timestamp,
    /// Who.
    pub who: UserId,
    /// What.
    pub act: String,
    /// To what: a conversation, a group, a user.
    pub on: String,
    /// The entry that says so, if there is one.
    pub seq: Option<Seq>,
}

/// What services and operators did, the last at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLines {
    /// The lines that are still in memory; the log has them all.
    pub lines: Vec<AuditLine>,
}

/// The nodes of a cluster, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLines {
    /// All that give signs of life, as the node that is asked sees them.
    pub nodes: Vec<NodeLine>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct NodeLine {
    pub node: String,
    /// How many shards it serves.
    pub shards: usize,
    /// The version of the links' protocol in which the node that is asked reaches it; absent while it does not.
    pub linked: Option<u16>,
    pub draining: bool,
    pub tcp: String,
    pub ws: String,
    pub link: String,
    /// Whether it is the node that is asked.
    pub this: bool,
}

/// Who serves which shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLines {
    /// All of them, in order.
    pub shards: Vec<ShardLine>,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct ShardLine {
    pub shard: u32,
    /// Who serves it; absent while nobody does.
    pub node: Option<String>,
    /// How often it was claimed.
    pub epoch: Option<u64>,
}

/// Which node is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhichNode {
    /// Its name.
    pub node: String,
}

/// Where a shard is to be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveShard {
    /// Which.
    pub shard: u32,
    /// The node's name; without it, where it would be by itself.
    pub node: Option<String>,
}

/// Which user is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhichUser {
    /// The id.
    pub user: UserId,
}

/// What there is to say about a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct UserState {
    pub user: UserId,
    /// The shard of the user's directory; absent on a node that is alone.
    pub shard: Option<u32>,
    /// The node that has it.
    pub directory: Option<String>,
    /// The user's sessions on all nodes, oldest first.
    pub sessions: Vec<UserSession>,
}

/// A session, wherever it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct UserSession {
    pub session: SessionId,
    pub node: String,
    pub device: DeviceId,
    pub device_class: String,
    pub app: String,
    pub since: Timestamp,
}
