//! What nodes say to each other, and what becomes of it at the other end.
//!
//! Three lanes: who serves what and who is where ([`Control`]), requests for what the other one serves ([`Ask`]), and
//! listeners and pushes ([`Pushed`]), in one order. Each message is one value in the codec of the wire; what a later version
//! adds, it adds as new variants at the end, sent only where both speak it.

pub mod hubs;
pub mod incoming;
pub mod outgoing;
mod recent;
pub mod routed;

use convoke_protocol::codec;
use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::frame::{Codec, Event};
use convoke_protocol::id::{ConversationId, DeviceId, Seq, SessionId, Timestamp, UserId};
use convoke_protocol::request::session::DeviceClass;
use serde::{Deserialize, Serialize};

use crate::actors::conversation::core::{ActCommand, SendCommand};
use crate::actors::conversation::dedup::Place;
use crate::actors::conversation::group::Group;
use crate::actors::conversation::{Attended, Attending};
use crate::cluster::membership::PeerId;
use crate::storage::{Epoch, LogRow};

/// The version of what is said here. 2 added what operators want of other nodes: [`Control::Pin`], [`Control::Drain`]; 3 that somebody
/// waits for a shard, and in which epoch one was given back: [`Control::Wanted`], [`Control::Free`].
pub const VERSION: u16 = 3;

/// The oldest version that this node still speaks.
pub const LEAST_VERSION: u16 = 1;

/// The node that was asked does not serve it, or serves it no more while it waited: to be asked again of who does. Never leaves
/// a node towards a client.
pub const MOVED: ErrorCode = ErrorCode(u16::MAX);

/// A request reached a node that does not serve what it is for, and did nothing.
pub fn not_ours() -> RequestError {
    RequestError::not_done(MOVED, "the conversation is not served here now").retry_after(500)
}

/// A request was lost with what served it: it may have been done.
pub fn perhaps_moved() -> RequestError {
    RequestError::unknown(MOVED, "the conversation is restarting or moves").retry_after(500)
}

/// An error as a client may see it.
pub fn told_to_clients(error: RequestError) -> RequestError {
    if error.code == MOVED { RequestError { code: ErrorCode::UNAVAILABLE, ..error } } else { error }
}

/// An event as nodes pass it on: a frame of the wire.
pub fn frame_of(event: &Event) -> Vec<u8> {
    event.encode(Codec::Bincode, 0)
}

/// The event that such a frame is; `None` if this node knows none of that kind.
pub fn event_of(frame: &[u8]) -> Option<Event> {
    let read = codec::with_frame(Codec::Bincode, frame, |raw| {
        Event::decode(Codec::Bincode, raw.head.type_number, raw.body)
    });
    read.ok().flatten()
}

/// A session as nodes know it of each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEntry {
    /// The node's name.
    pub node: String,
    /// Its id.
    pub session: SessionId,
    /// Whose it is.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// What kind of device it is.
    pub device_class: DeviceClass,
    /// The client's name and version.
    pub app: String,
    /// When it logged in.
    pub since: Timestamp,
}

/// A session, and on which process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seat {
    /// The process.
    pub at: PeerId,
    /// The session.
    pub session: SessionId,
}

/// Who serves what, and who is where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// The teller serves these now.
    Serves(Vec<(u32, Epoch)>),
    /// And these no more.
    Stops(Vec<(u32, Epoch)>),
    /// These were given back: who should serve them may take them. Said to versions below 3 only.
    Released(Vec<u32>),
    /// Sessions of the teller, of users whose directory the told one serves: they were admitted before.
    Restore(Vec<SessionEntry>),
    /// A session of the teller ended.
    Unregister(UserId, SessionId),
    /// A conversation of the teller wants to know of these users' sessions.
    Watch(ConversationId, Vec<UserId>),
    /// It does not any more.
    Unwatch(ConversationId, Vec<UserId>),
    /// The answer to a watch: so many users are watched, and have these sessions.
    Watched(ConversationId, u32, Vec<(UserId, Seat)>),
    /// A watched user's session came or went. `known` says that it was there before and is told of late.
    SessionChanged {
        /// To which conversation of the told one.
        conversation: ConversationId,
        /// Whose.
        user: UserId,
        /// Which.
        seat: Seat,
        /// Whether it came.
        online: bool,
        /// Whether it may have missed something.
        late: bool,
    },
    /// Close a session of the told one.
    Kick(SessionId, ErrorCode, String),
    /// Tell sessions of the told one an event that is not kept (a frame of the wire).
    Event(Vec<SessionId>, Vec<u8>),
    /// Tell all sessions of a user but one an event that is not kept.
    TellUser(UserId, Option<SessionId>, Vec<u8>),
    /// The teller lost what it knew of users: its sessions and watches are to be told again.
    Forgot,
    /// An operator wants these shards to be on these nodes; or, without one, where they would be.
    Pin(Vec<(u32, Option<String>)>),
    /// An operator wants the told one to give everything back and end.
    Drain,
    /// These were given back, having been served in these epochs: who should serve them may take them.
    Free(Vec<(u32, Epoch)>),
    /// Nobody serves these, and somebody waits for them: who should serve them takes them before others.
    Wanted(Vec<u32>),
}

impl Control {
    /// The version that it came with.
    fn since(&self) -> u16 {
        match self {
            Self::Free(_) | Self::Wanted(_) => 3,
            Self::Pin(_) | Self::Drain => 2,
            _ => 1,
        }
    }
}

/// Listeners of the told one and what they are to get, in one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pushed {
    /// These listen too.
    Listen(ConversationId, Vec<SessionId>),
    /// These listen too, and may have missed what was said up to here.
    ListenLate(ConversationId, Vec<SessionId>, Seq),
    /// This one does not any more.
    Leave(ConversationId, SessionId),
    /// These and no others; what was said up to here may have been missed.
    Reset(ConversationId, Vec<SessionId>, Seq),
    /// Nobody does any more.
    Forget(ConversationId),
    /// This was said; the sessions named said it themselves.
    Publish(ConversationId, Vec<LogRow>, Vec<(Seq, SessionId)>),
    /// An event that is not kept (a frame of the wire), for all but one.
    Signal(ConversationId, Vec<u8>, SessionId),
}

/// What a node asks of the one that serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Number, keep and deliver this. Answered by [`PlaceAnswer`].
    Send(ConversationId, Box<SendCommand>, Option<SessionId>),
    /// Change something. Answered by [`ActAnswer`].
    Act(ConversationId, Box<ActCommand>),
    /// Make a session of the asker a listener, and tell what there is. Answered by [`AttendAnswer`].
    Attend(Vec<ConversationId>, Attending),
    /// The group. Answered by [`LookAnswer`].
    Look(ConversationId),
    /// Pass an event (a frame of the wire) on to the other listeners. Answered by [`SignalAnswer`].
    Signal(ConversationId, Vec<u8>, Attending),
    /// Admit a session of the asker. Answered by [`RegisterAnswer`].
    Register(SessionEntry),
    /// The sessions of a user. Answered by [`SessionsAnswer`].
    Sessions(UserId),
    /// The heads of conversations, which are activated if only that tells. Answered by [`HeadsAnswer`].
    Heads(Vec<ConversationId>),
    /// What a conversation is about. Answered by [`ActivityAnswer`]; a version that does not know it refuses.
    Activity(ConversationId),
}

/// What an active conversation holds, as its owner knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Bytes of memory, about: its own structures and what it remembers, without the store's.
    pub memory_bytes: usize,
    /// Sessions that get its pushes, on all nodes.
    pub listeners: usize,
}

/// To [`Ask::Send`].
pub type PlaceAnswer = Result<Place, RequestError>;
/// To [`Ask::Act`].
pub type ActAnswer = Result<Option<Place>, RequestError>;
/// To [`Ask::Attend`].
pub type AttendAnswer = Result<Vec<Option<Attended>>, RequestError>;
/// To [`Ask::Look`].
pub type LookAnswer = Result<Option<Group>, RequestError>;
/// To [`Ask::Signal`].
pub type SignalAnswer = Result<(), RequestError>;
/// To [`Ask::Register`].
pub type RegisterAnswer = Result<(), RequestError>;
/// To [`Ask::Sessions`].
pub type SessionsAnswer = Result<Vec<(Seat, SessionEntry)>, RequestError>;
/// To [`Ask::Heads`].
pub type HeadsAnswer = Result<Vec<Seq>, RequestError>;
/// To [`Ask::Activity`]; `None` if it sleeps.
pub type ActivityAnswer = Result<Option<Activity>, RequestError>;
