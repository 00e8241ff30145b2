//! What nodes say to each other over links, without the sockets: three lanes to each peer, each in order, each with a bound.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::membership::PeerId;

/// One of the lanes of a link: what goes in one does not wait for what goes in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Who serves what, who is where.
    Control,
    /// What is asked for, and the answers.
    Requests,
    /// Who listens, and what they are to get.
    Pushes,
}

/// All lanes.
pub const LANES: [Lane; 3] = [Lane::Control, Lane::Requests, Lane::Pushes];

/// Why something did not reach a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// There is no link to it.
    #[error("there is no link to the node")]
    Away,
    /// So much waits for it already.
    #[error("the link to the node is full")]
    Busy,
    /// The link broke while an answer was waited for: it may have been done.
    #[error("the link to the node broke")]
    Lost,
}

/// The links of a node.
pub trait Links: Send + Sync + 'static {
    /// Tells a peer something. In the order of the calls, as long as the link stands.
    ///
    /// # Errors
    /// It will not arrive: there is no link, or it is full.
    fn tell(&self, to: PeerId, lane: Lane, body: Vec<u8>) -> Result<(), LinkError>;

    /// Asks a peer something. What is asked is on its way, in the order of the calls, when this returns; the answer comes
    /// by the future.
    ///
    /// Cancel safe: an answer that nobody waits for is dropped.
    fn ask(
        &self,
        to: PeerId,
        body: Vec<u8>,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LinkError>>;

    /// The version that both ends of the link to a peer speak, if it stands.
    fn version(&self, peer: PeerId) -> Option<u16>;

    /// The peers to which a link stands.
    fn up(&self) -> Vec<PeerId>;

    /// Breaks the link to a peer; it is made anew. For when it could not take what must not be missed.
    fn reset(&self, peer: PeerId);
}

/// Gives back to the sender what it may send again, once this is dropped.
pub trait Credit: Send + Sync {}

/// Answers what was asked.
pub type Answering = Box<dyn FnOnce(Vec<u8>) + Send>;

/// Takes what peers say.
pub trait Incoming: Send + Sync + 'static {
    /// A peer tells something. Returns at once; the credit is dropped when it was dealt with.
    fn told(&self, from: PeerId, lane: Lane, body: Bytes, credit: Box<dyn Credit>);

    /// A peer asks something. What must keep its order is handed over before this ends.
    fn asked(&self, from: PeerId, body: Bytes, answer: Answering) -> BoxFuture<'_, ()>;

    /// A link to the peer stands: what it has to know is told anew.
    fn link_up(&self, to: PeerId);

    /// Nobody listens where the peer did, or somebody else: its process seems to be gone.
    fn peer_refuses(&self, peer: PeerId);

    /// The link to the peer broke.
    fn link_down(&self, to: PeerId);
}
