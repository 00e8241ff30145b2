//! What peers tell and ask, given to whom it concerns on this node; and what follows when something moves.
//!
//! Nothing here is kept on disk, and nothing must arrive: whenever a link stands anew, or another node serves a shard, what the
//! other side has to know is told anew, and whoever may have missed pushes is told up to where.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use convoke_protocol::codec;
use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{ConversationId, Seq, UserId};
use futures_util::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;

use super::outgoing::Peers;
use super::{
    ActAnswer, ActivityAnswer, Ask, AttendAnswer, Control, HeadsAnswer, LookAnswer, PlaceAnswer, Pushed,
    RegisterAnswer, Seat, SessionEntry, SessionsAnswer, SignalAnswer, event_of, not_ours,
};
use crate::actors::conversation::Attending;
use crate::actors::directory::core::SessionPolicy;
use crate::actors::directory::{Directory, SessionPlace, Watcher};
use crate::actors::hub::{Hub, Publication};
use crate::actors::reply::Answered;
use crate::actors::session::SessionTable;
use crate::actors::shard::Conversations;
use crate::cluster::link::{Answering, Credit, Incoming, Lane};
use crate::cluster::membership::{NodeId, PeerId};
use crate::cluster::owners::{Owners, Served};
use crate::cluster::shard_map::ShardId;
use crate::storage::Epoch;

/// Moves that come one after the other are dealt with together.
const GATHER: Duration = Duration::from_millis(10);

/// Conversations whose heads are asked for together.
const HEADS_PER_ASK: usize = 200;

/// How often heads are asked for that could not be told.
const HEADS_TRIES: usize = 20;

/// The pause before they are asked for again.
const HEADS_PAUSE: Duration = Duration::from_millis(250);

/// Those of this node whom peers reach.
#[derive(Clone)]
pub struct Reached {
    /// The other nodes.
    pub peers: Peers,
    /// Who serves what.
    pub owners: Owners,
    /// The conversations of this node.
    pub conversations: Conversations,
    /// Its directory.
    pub directory: Directory,
    /// Its hub.
    pub hub: Hub,
    /// Its sessions.
    pub sessions: SessionTable,
    /// How many sessions a user may have.
    pub policy: Arc<dyn Fn() -> Arc<SessionPolicy> + Send + Sync>,
    /// The newest version that this node speaks.
    pub version: u16,
}

/// What peers and operators want of this node's part in the cluster.
pub trait Wishes: Send + Sync + 'static {
    /// Somebody gave these back: what should be here is taken.
    fn take(&self, released: Vec<(ShardId, Option<Epoch>)>);
    /// Somebody waits for these: what should be here is taken before others.
    fn hurry(&self, wanted: Vec<ShardId>);
    /// These shards should be on these nodes; or, without one, where they would be.
    fn pin(&self, pins: &[(ShardId, Option<NodeId>)]);
    /// This process seems to be gone.
    fn doubt(&self, peer: PeerId);
    /// Everything is to be given back, and the process to end.
    fn drain(&self);
}

/// Takes what peers say. Cheap to clone.
#[derive(Clone)]
pub struct FromPeers {
    reached: Reached,
    wishes: Arc<dyn Wishes>,
    /// What operators said of shards, for peers that come later.
    pins: Arc<Mutex<BTreeMap<ShardId, Option<NodeId>>>>,
    moved: Arc<Moved>,
}

/// Shards that are served by another than before, and were not dealt with yet.
#[derive(Default)]
struct Moved {
    shards: Mutex<HashMap<ShardId, PeerId>>,
    more: Notify,
}

fn read<T: serde::de::DeserializeOwned>(from: PeerId, body: &[u8]) -> Option<T> {
    match codec::decode(body) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(peer = %from, %error, "a peer says what this node does not understand");
            None
        }
    }
}

fn answer<T: Serialize>(answering: Answering, value: &T) {
    answering(codec::encode(value));
}

impl FromPeers {
    /// Nothing moved yet. Must be called within a runtime.
    pub fn new(reached: Reached, wishes: Arc<dyn Wishes>) -> Self {
        let (moved, pins) = (Arc::default(), Arc::default());
        let from_peers = Self { reached, wishes, pins, moved };
        let tells = from_peers.clone();
        tokio::spawn(async move {
            loop {
                let wanted = tells.reached.owners.waited_for().await;
                let numbers = wanted.iter().map(|shard| shard.0).collect();
                tells.reached.peers.tell_all(&Control::Wanted(numbers));
                tells.wishes.hurry(wanted);
            }
        });
        let follows = from_peers.clone();
        tokio::spawn(async move {
            loop {
                follows.moved.more.notified().await;
                tokio::time::sleep(GATHER).await;
                let moved = std::mem::take(&mut *follows.moved.shards.lock());
                follows.follow(moved).await;
            }
        });
        from_peers
    }

    /// This process serves a shard now.
    pub fn opened(&self, shard: ShardId, epoch: Epoch) {
        let Reached { peers, owners, .. } = &self.reached;
        self.note_moved(peers.me(), owners.serves(peers.me(), &[(shard, epoch)]));
        peers.tell_all(&Control::Serves(vec![(shard.0, epoch)]));
    }

    /// It serves it no more.
    pub fn closed(&self, shard: ShardId, epoch: Epoch) {
        let Reached { peers, owners, directory, .. } = &self.reached;
        owners.stops(peers.me(), &[(shard, epoch)]);
        directory.shards_lost(&Arc::new(HashSet::from([shard])));
        peers.tell_all(&Control::Stops(vec![(shard.0, epoch)]));
    }

    /// It gave it back.
    pub fn gave_back(&self, shard: ShardId, epoch: Epoch) {
        let free = Control::Free(vec![(shard.0, epoch)]);
        self.reached.peers.tell_all_or(&free, &Control::Released(vec![shard.0]));
    }

    /// An operator wants a shard to be on a node, or where it would be: told to all.
    pub fn pin(&self, shard: ShardId, node: Option<NodeId>) {
        let name = node.as_ref().map(|node| node.0.clone());
        self.reached.peers.tell_all(&Control::Pin(vec![(shard.0, name)]));
        self.note_pins(&[(shard, node)]);
    }

    fn note_pins(&self, pins: &[(ShardId, Option<NodeId>)]) {
        self.pins.lock().extend(pins.iter().cloned());
        self.wishes.pin(pins);
    }

    /// A process is gone for good.
    pub fn gone(&self, peer: PeerId) {
        self.reached.owners.forget(peer);
        self.reached.directory.peer_gone(peer);
        self.reached.conversations.for_each(|conversation| conversation.peer_gone(peer));
    }

    fn note_moved(&self, to: PeerId, shards: Vec<ShardId>) {
        if !shards.is_empty() {
            self.moved.shards.lock().extend(shards.into_iter().map(|shard| (shard, to)));
            self.moved.more.notify_one();
        }
    }

    /// What follows when shards are served by another than before: sessions and watches of their users are told there, and
    /// listeners of their conversations catch up with what the former owner could not push any more. Conversations to which this
    /// node has lately sent are begun anew, for nobody may listen to them yet.
    async fn follow(&self, moved: HashMap<ShardId, PeerId>) {
        let shards: Arc<HashSet<ShardId>> = Arc::new(moved.keys().copied().collect());
        self.tell_users(&shards);
        let mut by_owner: HashMap<PeerId, Vec<ConversationId>> = HashMap::new();
        let map = self.reached.owners.map();
        let mut conversations: HashSet<_> = self.reached.hub.listened(&shards).await.into_iter().collect();
        conversations.extend(self.reached.peers.lately_committed(&shards));
        for conversation in conversations {
            if let Some(owner) = moved.get(&map.of_conversation(&conversation)) {
                by_owner.entry(*owner).or_default().push(conversation);
            }
        }
        for (owner, conversations) in by_owner {
            let follows = self.clone();
            // Beside what moves next: an owner may be slow.
            tokio::spawn(async move { follows.catch_up(owner, conversations).await });
        }
    }

    /// The directories of these shards' users are told of this node's sessions and of its conversations' watches.
    fn tell_users(&self, shards: &Arc<HashSet<ShardId>>) {
        let map = self.reached.owners.map();
        let mut sessions = Vec::new();
        self.reached.sessions.for_each(|session| {
            if shards.contains(&map.of_user(&session.user)) {
                sessions.push(session.clone());
            }
        });
        self.reached.directory.restore(sessions);
        self.reached.conversations.for_each(|conversation| conversation.watch_again(shards));
    }

    async fn catch_up(&self, owner: PeerId, conversations: Vec<ConversationId>) {
        let Reached { owners, peers, hub, .. } = &self.reached;
        let is_there = |conversation: &ConversationId| {
            owners.of(owners.map().of_conversation(conversation)).is_some_and(|(peer, _)| peer == owner)
        };
        for some in conversations.chunks(HEADS_PER_ASK) {
            for _ in 0..HEADS_TRIES {
                // Those that moved on are caught up with by whoever has them now; one of them is no reason to leave the others.
                let some: Vec<_> =
                    some.iter().filter(|conversation| is_there(conversation)).cloned().collect();
                if some.is_empty() {
                    break;
                }
                let heads: HeadsAnswer = if owner == peers.me() {
                    self.heads(&some).await
                } else {
                    peers.ask(owner, &Ask::Heads(some.clone())).await
                };
                if let Ok(heads) = heads {
                    some.iter().zip(heads).for_each(|(conversation, head)| hub.catch_up(conversation, head));
                    break;
                }
                // Its link may be on its way, or it knows of its shard a moment later.
                tokio::time::sleep(HEADS_PAUSE).await;
            }
        }
    }

    async fn heads(&self, conversations: &[ConversationId]) -> HeadsAnswer {
        let attending = Attending::of_the_node(self.reached.peers.me());
        let seen = self.reached.conversations.attend_all(conversations, &attending).await?;
        Ok(seen.into_iter().map(|seen| seen.map_or(Seq::ZERO, |seen| seen.head.seq)).collect())
    }

    fn control(&self, from: PeerId, control: Control) {
        let Reached { owners, conversations, directory, sessions, .. } = &self.reached;
        let served = |all: Vec<(u32, Epoch)>| -> Vec<Served> {
            all.into_iter().map(|(shard, epoch)| (ShardId(shard), epoch)).collect()
        };
        match control {
            Control::Serves(all) => self.note_moved(from, owners.serves(from, &served(all))),
            Control::Stops(all) => owners.stops(from, &served(all)),
            Control::Released(all) => {
                self.wishes.take(all.into_iter().map(|shard| (ShardId(shard), None)).collect());
            }
            Control::Free(all) => {
                self.wishes
                    .take(all.into_iter().map(|(shard, epoch)| (ShardId(shard), Some(epoch))).collect());
            }
            Control::Pin(pins) => {
                let pins = pins.into_iter().map(|(shard, node)| (ShardId(shard), node.map(NodeId)));
                self.note_pins(&pins.collect::<Vec<_>>());
            }
            Control::Drain => self.wishes.drain(),
            Control::Wanted(all) => self.wishes.hurry(all.into_iter().map(ShardId).collect()),
            Control::Restore(entries) => {
                for entry in entries {
                    if self.serves_user(&entry.user) {
                        directory.restore_here(SessionPlace::There(from, Arc::new(entry)));
                    }
                }
            }
            Control::Unregister(user, session) => directory.unregister_here(&user, session),
            Control::Watch(conversation, users) => {
                let (here, elsewhere): (Vec<_>, Vec<_>) =
                    users.into_iter().partition(|user| self.serves_user(user));
                // The conversation does not wait for these: it asks again once it knows who has them.
                if !elsewhere.is_empty() {
                    let count = u32::try_from(elsewhere.len()).unwrap_or(u32::MAX);
                    let nobody = Control::Watched(conversation.clone(), count, Vec::new());
                    self.reached.peers.tell(from, &nobody);
                }
                directory.watch_here(here, &Watcher::There(from, conversation));
            }
            Control::Unwatch(conversation, users) => {
                directory.unwatch_here(users, Some(from), &conversation);
            }
            Control::Watched(conversation, users, online) => match conversations.handle(&conversation) {
                // One that ended in between is taken out by its former watch's end.
                Some(handle) => drop(handle.watched(users as usize, online)),
                None => self.watches_no_more(from, conversation, online),
            },
            Control::SessionChanged { conversation, user, seat, online, late } => {
                match conversations.handle(&conversation) {
                    Some(handle) => drop(handle.session_changed(&user, seat, online, late)),
                    None => self.watches_no_more(from, conversation, vec![(user, seat)]),
                }
            }
            Control::Kick(session, reason, message) => {
                if let Some(session) = sessions.get(session) {
                    session.kick(reason, &message);
                }
            }
            Control::Event(to, event) => {
                let Some(event) = event_of(&event) else { return };
                for session in to.into_iter().filter_map(|id| sessions.get(id)) {
                    session.tell_if_room(&event);
                }
            }
            Control::TellUser(user, except, event) => {
                let Some(event) = event_of(&event) else { return };
                let directory = directory.clone();
                tokio::spawn(async move { directory.tell_here(&user, &event, except).await });
            }
            Control::Forgot => {
                let all = owners.of_process(from).into_iter().map(|(shard, _)| shard).collect();
                self.tell_users(&Arc::new(all));
            }
        }
    }

    /// A conversation that is not active here any more, or on another node, is told of users: its watches end.
    fn watches_no_more(&self, at: PeerId, conversation: ConversationId, of: Vec<(UserId, Seat)>) {
        let mut users: Vec<_> = of.into_iter().map(|(user, _)| user).collect();
        users.dedup();
        self.reached.peers.tell(at, &Control::Unwatch(conversation, users));
    }

    fn serves_user(&self, user: &UserId) -> bool {
        let Reached { owners, peers, .. } = &self.reached;
        owners.of(owners.map().of_user(user)).is_some_and(|(owner, _)| owner == peers.me())
    }

    fn pushed(&self, pushed: Pushed, credit: Box<dyn Credit>) {
        let hub = &self.reached.hub;
        match pushed {
            Pushed::Listen(conversation, sessions) => hub.listen(&conversation, sessions),
            Pushed::ListenLate(conversation, sessions, head) => {
                hub.listen_late(&conversation, sessions, head);
            }
            Pushed::Leave(conversation, session) => hub.leave(&conversation, session),
            Pushed::Reset(conversation, sessions, head) => hub.reset(&conversation, sessions, head),
            Pushed::Forget(conversation) => hub.forget(&conversation),
            Pushed::Publish(conversation, rows, origins) => {
                let (rows, answered, credit) = (rows.into(), Answered::default(), Some(credit));
                hub.publish(Publication { conversation, rows, origins, answered, credit });
            }
            Pushed::Signal(conversation, event, from) => {
                if let Some(event) = event_of(&event) {
                    hub.signal(&conversation, event, from);
                }
            }
        }
    }

    async fn register(&self, from: PeerId, entry: SessionEntry) -> RegisterAnswer {
        if !self.serves_user(&entry.user) {
            return Err(not_ours());
        }
        let policy = (self.reached.policy)();
        self.reached.directory.register_here(SessionPlace::There(from, Arc::new(entry)), policy).await
    }

    async fn ask(&self, from: PeerId, ask: Ask, answering: Answering) {
        let Reached { conversations, directory, .. } = &self.reached;
        match ask {
            // Sent before `asked` returned.
            Ask::Send(..) => {}
            Ask::Act(conversation, command) => {
                let done: ActAnswer = conversations.act(conversation, command).await;
                answer(answering, &done);
            }
            Ask::Attend(ids, attending) => {
                let seen: AttendAnswer = conversations.attend_all(&ids, &attending).await;
                answer(answering, &seen);
            }
            Ask::Look(conversation) => {
                let seen: LookAnswer = conversations.look(conversation, |group| group.cloned()).await;
                answer(answering, &seen);
            }
            Ask::Signal(conversation, event, attending) => {
                let passed: SignalAnswer = match event_of(&event) {
                    Some(event) => conversations.signal(conversation, event, attending).await,
                    None => Ok(()),
                };
                answer(answering, &passed);
            }
            Ask::Register(entry) => {
                let registered: RegisterAnswer = self.register(from, entry).await;
                answer(answering, &registered);
            }
            Ask::Sessions(user) => {
                let sessions: SessionsAnswer = Ok(directory.sessions_here(&user).await);
                answer(answering, &sessions);
            }
            Ask::Activity(conversation) => {
                let activity: ActivityAnswer = Ok(conversations.activity(&conversation));
                answer(answering, &activity);
            }
            Ask::Heads(ids) => {
                let heads: HeadsAnswer = self.heads(&ids).await;
                answer(answering, &heads);
            }
        }
    }
}

impl Incoming for FromPeers {
    fn told(&self, from: PeerId, lane: Lane, body: Bytes, credit: Box<dyn Credit>) {
        match lane {
            Lane::Pushes => {
                if let Some(pushed) = read(from, &body) {
                    self.pushed(pushed, credit);
                }
            }
            _ => {
                let known = |control: &Control| control.since() <= self.reached.version;
                match read(from, &body) {
                    Some(control) if known(&control) => self.control(from, control),
                    Some(_) => tracing::error!(peer = %from, "a peer says what this version does not know"),
                    None => {}
                }
            }
        }
    }

    fn asked(&self, from: PeerId, body: Bytes, answering: Answering) -> BoxFuture<'_, ()> {
        async move {
            let ask = match read(from, &body) {
                Some(Ask::Send(conversation, command, session)) => {
                    let place = self.reached.conversations.send_told(conversation, command, session).await;
                    tokio::spawn(async move {
                        let place: PlaceAnswer = place.await;
                        answer(answering, &place);
                    });
                    return;
                }
                Some(ask) => ask,
                None => {
                    let text = "the node that serves this does not understand the request";
                    let unsupported: SignalAnswer =
                        Err(RequestError::not_done(ErrorCode::UNAVAILABLE, text).retry_after(1_000));
                    return answer(answering, &unsupported);
                }
            };
            let asked = self.clone();
            tokio::spawn(async move { asked.ask(from, ask, answering).await });
        }
        .boxed()
    }

    fn link_up(&self, to: PeerId) {
        let Reached { peers, owners, conversations, .. } = &self.reached;
        // What this node's directory had to say may have been lost with the former link.
        peers.tell(to, &Control::Forgot);
        let mine = owners.of_process(peers.me());
        let mine = mine.into_iter().map(|(shard, epoch)| (shard.0, epoch)).collect();
        peers.tell(to, &Control::Serves(mine));
        let name = |node: &Option<NodeId>| node.as_ref().map(|node| node.0.clone());
        let pins = self.pins.lock().iter().map(|(shard, node)| (shard.0, name(node))).collect();
        peers.tell(to, &Control::Pin(pins));
        // Neither could it be told of sessions and watches, nor asked for heads.
        self.note_moved(to, owners.of_process(to).into_iter().map(|(shard, _)| shard).collect());
        conversations.for_each(|conversation| conversation.tell_again(to));
    }

    fn peer_refuses(&self, peer: PeerId) {
        self.wishes.doubt(peer);
    }

    fn link_down(&self, to: PeerId) {
        // What is asked there meanwhile waits for the link, or for another owner.
        tracing::debug!(peer = %to, "what goes to a peer waits");
    }
}
