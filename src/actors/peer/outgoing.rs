//! Whom a node asks for what: itself, or a peer over its link.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use convoke_protocol::codec;
use convoke_protocol::error_code::{ErrorCode, Outcome, RequestError};
use convoke_protocol::id::ConversationId;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::recent::Recent;
use super::{Ask, Control, MOVED, Pushed, not_ours, perhaps_moved, told_to_clients};
use crate::cluster::link::{Lane, LinkError, Links};
use crate::cluster::membership::PeerId;
use crate::cluster::owners::Owners;
use crate::cluster::shard_map::ShardId;

/// How long an owner is looked for, and asked again, before a client is told to come back.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long one question is waited for before another is asked.
const ONE_ASK: Duration = Duration::from_secs(8);

/// The pause before the same peer is asked again.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

struct Cluster {
    me: PeerId,
    owners: Owners,
    links: OnceLock<Arc<dyn Links>>,
    recent: Mutex<Recent>,
    begun: Instant,
}

/// The other nodes, as actors see them. Cheap to clone. Of a node that is alone, everything is its own.
#[derive(Clone)]
pub struct Peers(Option<Arc<Cluster>>);

/// Who serves something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Server {
    /// This node.
    Here,
    /// A peer.
    At(PeerId),
}

/// Which attempt at something this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Whom it asks.
    pub server: Server,
    /// How many there were before.
    pub former: u32,
    /// How long ago the first one was.
    pub age: Duration,
}

impl Peers {
    /// No others.
    pub fn none() -> Self {
        Self(None)
    }

    /// Others, once [`Self::link`] was called.
    pub fn new(me: PeerId, owners: Owners) -> Self {
        let (links, recent) = (OnceLock::new(), Mutex::default());
        Self(Some(Arc::new(Cluster { me, owners, links, recent, begun: Instant::now() })))
    }

    /// From now on they are reached.
    pub fn link(&self, links: Arc<dyn Links>) {
        if let Some(cluster) = &self.0 {
            let _ = cluster.links.set(links);
        }
    }

    /// Whether this node is alone, so that everything is served here for ever.
    pub fn are_none(&self) -> bool {
        self.0.is_none()
    }

    /// This process.
    pub fn me(&self) -> PeerId {
        self.0.as_ref().map_or(PeerId::default(), |cluster| cluster.me)
    }

    /// Who serves what, if there are others.
    pub fn owners(&self) -> Option<&Owners> {
        self.0.as_ref().map(|cluster| &cluster.owners)
    }

    /// A peer has committed something to this conversation for this node.
    pub(super) fn note_committed(&self, conversation: &ConversationId) {
        if let Some(cluster) = &self.0 {
            cluster.recent.lock().note(conversation, cluster.begun.elapsed());
        }
    }

    /// To which conversations of these shards peers have committed something for this node in the last 15 seconds or more.
    pub(super) fn lately_committed(&self, shards: &HashSet<ShardId>) -> Vec<ConversationId> {
        let Some(cluster) = &self.0 else { return Vec::new() };
        let map = cluster.owners.map();
        let is_there = |conversation: &ConversationId| shards.contains(&map.of_conversation(conversation));
        cluster.recent.lock().find(cluster.begun.elapsed(), is_there)
    }

    fn links(&self) -> Option<&Arc<dyn Links>> {
        self.0.as_ref().and_then(|cluster| cluster.links.get())
    }

    /// Who serves a shard, if that is known.
    pub fn server(&self, shard: ShardId) -> Option<Server> {
        let Some(cluster) = &self.0 else { return Some(Server::Here) };
        let (peer, _) = cluster.owners.of(shard)?;
        Some(if peer == cluster.me { Server::Here } else { Server::At(peer) })
    }

    fn say(&self, to: PeerId, lane: Lane, body: Vec<u8>) {
        let Some(links) = self.links() else { return };
        // A link that is away, or breaks: when it stands again everything is told anew that the peer has to know.
        if links.tell(to, lane, body) == Err(LinkError::Busy) {
            tracing::warn!(peer = %to, ?lane, "a link is full: it is made anew");
            links.reset(to);
        }
    }

    /// Tells a peer who serves what or who is where. What does not arrive is told anew when the link stands again; what the
    /// peer's version does not know is left out.
    pub fn tell(&self, to: PeerId, what: &Control) {
        if self.knows(to, what) {
            self.say(to, Lane::Control, codec::encode(what));
        }
    }

    /// Whether a peer's version has this. All have what came with the first.
    fn knows(&self, peer: PeerId, what: &Control) -> bool {
        what.since() <= 1 || self.version(peer).is_some_and(|version| what.since() <= version)
    }

    /// The version that a peer and this node speak, if a link stands.
    pub fn version(&self, peer: PeerId) -> Option<u16> {
        self.links()?.version(peer)
    }

    /// Tells all peers; those of a version that does not know it, the other.
    pub fn tell_all_or(&self, what: &Control, to_older: &Control) {
        for peer in self.links().map_or(Vec::new(), |links| links.up()) {
            self.tell(peer, if self.knows(peer, what) { what } else { to_older });
        }
    }

    /// Tells all peers.
    pub fn tell_all(&self, what: &Control) {
        for peer in self.links().map_or(Vec::new(), |links| links.up()) {
            self.tell(peer, what);
        }
    }

    /// Pushes something to a peer's listeners. What does not arrive makes them catch up when the link stands again.
    pub fn push(&self, to: PeerId, what: &Pushed) {
        self.say(to, Lane::Pushes, codec::encode(what));
    }

    /// Pushes the same to listeners of several peers: made and encoded once, if there are any.
    pub fn push_all(&self, to: impl Iterator<Item = PeerId>, what: impl FnOnce() -> Pushed) {
        let mut to = to.peekable();
        if to.peek().is_some() {
            let body = codec::encode(&what());
            to.for_each(|peer| self.say(peer, Lane::Pushes, body.clone()));
        }
    }

    /// Asks a peer: what is asked is on its way, in the order of the calls, when this returns.
    ///
    /// # Errors
    /// By the future: `MOVED` if somebody else is to be asked, or what the peer answers.
    pub fn ask<T: DeserializeOwned>(
        &self,
        to: PeerId,
        ask: &Ask,
    ) -> impl Future<Output = Result<T, RequestError>> + Send + use<T> {
        let answer = self.links().map(|links| links.ask(to, codec::encode(ask), ONE_ASK));
        async move {
            let answered = match answer {
                Some(answer) => answer.await,
                None => Err(LinkError::Away),
            };
            match answered {
                Ok(body) => read(&body),
                Err(LinkError::Lost) => Err(perhaps_moved()),
                Err(LinkError::Away) => Err(not_ours()),
                Err(LinkError::Busy) => {
                    let busy = RequestError::not_done(ErrorCode::BUSY, "too much waits for another node");
                    Err(busy.retry_after(200))
                }
            }
        }
    }

    /// Finds who serves a shard and tries there, again and again while it moves, for as long as a client is kept waiting.
    ///
    /// # Errors
    /// What the last attempt answered.
    pub async fn served<T, F: Future<Output = Result<T, RequestError>> + Send>(
        &self,
        shard: ShardId,
        mut attempt: impl FnMut(Attempt) -> F + Send,
    ) -> Result<T, RequestError> {
        let Some(cluster) = &self.0 else {
            let only = Attempt { server: Server::Here, former: 0, age: Duration::ZERO };
            return attempt(only).await.map_err(told_to_clients);
        };
        let begun = Instant::now();
        let mut last = not_ours();
        let mut former = 0;
        while begun.elapsed() < PATIENCE {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let Some((peer, epoch)) = cluster.owners.find(shard, left).await else { break };
            let server = if peer == cluster.me { Server::Here } else { Server::At(peer) };
            match attempt(Attempt { server, former, age: begun.elapsed() }).await {
                Err(error) if error.code == MOVED => {
                    // What may have happened once stays possible, whatever later attempts say.
                    let outcome = if last.outcome == Outcome::UNKNOWN { last.outcome } else { error.outcome };
                    last = RequestError { outcome, ..error };
                }
                done => return done,
            }
            former += 1;
            // Until another serves it, or the same one in another epoch; else the same one is asked again.
            if cluster.owners.of(shard) == Some((peer, epoch)) {
                cluster.owners.changed(PAUSE).await;
            }
        }
        Err(told_to_clients(last))
    }
}

fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, RequestError> {
    let answer: Result<Result<T, RequestError>, _> = codec::decode(body);
    answer.unwrap_or_else(|error| {
        tracing::error!(%error, "another node answered what this one does not understand");
        Err(RequestError::unknown(ErrorCode::INTERNAL, "another node's answer is not understood"))
    })
}
