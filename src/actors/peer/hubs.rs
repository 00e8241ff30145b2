//! The hubs of all nodes, as a conversation sees them: who listens where, and what they are to get, in one order per node.

use std::collections::{BTreeMap, HashMap};

use convoke_protocol::frame::Event;
use convoke_protocol::id::{ConversationId, Seq, SessionId};

use super::outgoing::Peers;
use super::{Pushed, Seat, frame_of};
use crate::actors::hub::{Hub, Publication};
use crate::cluster::membership::PeerId;

/// How many listeners a conversation has on which node.
pub type Places = BTreeMap<PeerId, usize>;

/// This node's hub and those of its peers. Cheap to clone.
#[derive(Clone)]
pub struct Hubs {
    here: Hub,
    peers: Peers,
}

fn by_node(seats: Vec<Seat>) -> HashMap<PeerId, Vec<SessionId>> {
    let mut nodes: HashMap<PeerId, Vec<SessionId>> = HashMap::new();
    for Seat { at, session } in seats {
        nodes.entry(at).or_default().push(session);
    }
    nodes
}

impl Hubs {
    /// The hub of this node, and the peers with theirs.
    pub fn new(here: Hub, peers: Peers) -> Self {
        Self { here, peers }
    }

    /// The nodes beside this one.
    fn elsewhere<'a>(&self, places: &'a Places) -> impl Iterator<Item = PeerId> + use<'a> {
        let me = self.peers.me();
        places.keys().copied().filter(move |at| *at != me)
    }

    /// Adds listeners; adding one twice changes nothing.
    pub fn listen(&self, conversation: &ConversationId, seats: Vec<Seat>) {
        for (at, sessions) in by_node(seats) {
            if at == self.peers.me() {
                self.here.listen(conversation, sessions);
            } else {
                self.peers.push(at, &Pushed::Listen(conversation.clone(), sessions));
            }
        }
    }

    /// Adds listeners of whom was known late: each is told up to where it may have missed something.
    pub fn listen_late(&self, conversation: &ConversationId, seats: Vec<Seat>, head: Seq) {
        for (at, sessions) in by_node(seats) {
            if at == self.peers.me() {
                self.here.listen_late(conversation, sessions, head);
            } else {
                self.peers.push(at, &Pushed::ListenLate(conversation.clone(), sessions, head));
            }
        }
    }

    /// Takes a listener out.
    pub fn leave(&self, conversation: &ConversationId, seat: Seat) {
        if seat.at == self.peers.me() {
            self.here.leave(conversation, seat.session);
        } else {
            self.peers.push(seat.at, &Pushed::Leave(conversation.clone(), seat.session));
        }
    }

    /// Replaces the listeners of the nodes on which some are, and tells each that it may have missed pushes up to `head`.
    pub fn reset(&self, conversation: &ConversationId, seats: Vec<Seat>, head: Seq) {
        for (at, sessions) in by_node(seats) {
            if at == self.peers.me() {
                self.here.reset(conversation, sessions, head);
            } else {
                self.peers.push(at, &Pushed::Reset(conversation.clone(), sessions, head));
            }
        }
    }

    /// Nobody listens any more, for the conversation goes to sleep.
    pub fn forget(&self, conversation: &ConversationId, places: &Places) {
        self.peers.push_all(self.elsewhere(places), || Pushed::Forget(conversation.clone()));
        self.here.forget(conversation);
    }

    /// Delivers to the listeners: one envelope to each node that has some.
    pub fn publish(&self, publication: Publication, places: &Places) {
        let Publication { conversation, rows, origins, .. } = &publication;
        let pushed = || Pushed::Publish(conversation.clone(), rows.to_vec(), origins.clone());
        self.peers.push_all(self.elsewhere(places), pushed);
        // Dropped where nobody listens, it writes the answers all the same.
        if places.contains_key(&self.peers.me()) {
            self.here.publish(publication);
        }
    }

    /// Tells an event that is not kept to all listeners but one.
    pub fn signal(&self, conversation: &ConversationId, event: Event, from: SessionId, places: &Places) {
        let pushed = || Pushed::Signal(conversation.clone(), frame_of(&event), from);
        self.peers.push_all(self.elsewhere(places), pushed);
        self.here.signal(conversation, event, from);
    }
}
