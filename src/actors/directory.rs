//! The directory: in the memory of a user's owner, which sessions the user has and which conversations want to know.
//!
//! One actor per stripe; a user always maps to the same one. It is soft: after a crash, or when another node serves the user's
//! shard, it is made again from the nodes' sessions and from the conversations that are active.

pub mod core;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::frame::Event;
use convoke_protocol::id::{ConversationId, SessionId, Timestamp, UserId};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use self::core::{DirectoryCore, Presence, SessionPolicy};
use crate::actors::conversation::ConversationHandle;
use crate::actors::peer::outgoing::{Peers, Server};
use crate::actors::peer::{Ask, Control, MOVED, Seat, SessionEntry, frame_of};
use crate::actors::session::{SessionShared, SessionTable};
use crate::cluster::membership::PeerId;
use crate::cluster::shard_map::{ShardId, ShardMap};

type SessionRef = Arc<SessionShared>;

/// How a session is reached.
#[derive(Debug, Clone)]
pub enum SessionPlace {
    /// It is on this node.
    Here(SessionRef),
    /// It is on a peer.
    There(PeerId, Arc<SessionEntry>),
}

impl SessionPlace {
    fn user(&self) -> &UserId {
        match self {
            Self::Here(session) => &session.user,
            Self::There(_, entry) => &entry.user,
        }
    }

    fn since(&self) -> Timestamp {
        match self {
            Self::Here(session) => session.since,
            Self::There(_, entry) => entry.since,
        }
    }

    fn presence(&self) -> Presence<Self> {
        let (session, device, device_class) = match self {
            Self::Here(session) => (session.id, &session.device, session.device_class),
            Self::There(_, entry) => (entry.session, &entry.device, entry.device_class),
        };
        Presence { session, device: device.clone(), device_class, since: self.since(), handle: self.clone() }
    }
}

/// Who wants to know of a user's sessions.
#[derive(Clone, PartialEq)]
pub enum Watcher {
    /// A conversation of this node.
    Here(ConversationHandle),
    /// A conversation of a peer.
    There(PeerId, ConversationId),
}

impl Watcher {
    fn is(&self, at: Option<PeerId>, conversation: &ConversationId) -> bool {
        match (self, at) {
            (Self::Here(handle), None) => handle.conversation() == conversation,
            (Self::There(peer, id), Some(at)) => *peer == at && id == conversation,
            _ => false,
        }
    }
}

enum Message {
    Register(SessionPlace, Arc<SessionPolicy>, oneshot::Sender<Result<Vec<SessionPlace>, RequestError>>),
    Restore(SessionPlace),
    Unregister(UserId, SessionId),
    Watch(Vec<UserId>, Watcher),
    /// The watcher of this conversation, on this peer or here.
    Unwatch(Vec<UserId>, Option<PeerId>, ConversationId),
    List(UserId, oneshot::Sender<Vec<SessionPlace>>),
    /// A peer is gone, with its sessions and conversations.
    Gone(PeerId),
    /// These shards are not served here any more.
    Lost(Arc<HashSet<ShardId>>),
    InjectPanic,
}

/// Who keeps a copy of the directory. Told of what comes and goes on this node; returns at once.
pub trait DirectoryCopy: Send + Sync + 'static {
    /// The session was registered; it has its device now.
    fn came(&self, session: &SessionShared);
    /// The session ended.
    fn went(&self, session: &SessionShared);
}

type Copy = Option<Arc<dyn DirectoryCopy>>;

struct DirectoryActor {
    peers: Peers,
    map: ShardMap,
}

type State = DirectoryCore<SessionPlace, Watcher>;

impl DirectoryActor {
    fn seat(&self, handle: &SessionPlace) -> Seat {
        match handle {
            SessionPlace::Here(session) => Seat { at: self.peers.me(), session: session.id },
            SessionPlace::There(at, entry) => Seat { at: *at, session: entry.session },
        }
    }

    /// Tells who watches. A watcher that is gone is taken out when it cannot be told.
    fn tell(&self, directory: &mut State, user: &UserId, seat: Seat, online: bool, late: bool) {
        let mut gone = Vec::new();
        for watcher in directory.watchers(user) {
            match watcher {
                Watcher::Here(handle) => {
                    if handle.session_changed(user, seat, online, late).is_err() {
                        gone.push(watcher.clone());
                    }
                }
                Watcher::There(peer, conversation) => {
                    let (conversation, user) = (conversation.clone(), user.clone());
                    let changed = Control::SessionChanged { conversation, user, seat, online, late };
                    self.peers.tell(*peer, &changed);
                }
            }
        }
        if !gone.is_empty() {
            directory.unwatch(user, |watcher| gone.contains(watcher));
        }
    }

    fn restore(&self, directory: &mut State, session: &SessionPlace) {
        let seat = self.seat(session);
        let replaced = directory.restore(session.user(), session.presence());
        if !replaced.iter().any(|other| other.session == seat.session) {
            self.tell(directory, session.user(), seat, true, true);
        }
        for other in replaced {
            kick(&self.peers, &other.handle, ErrorCode::DEVICE_REPLACED, "the device logged in again");
        }
    }

    fn watch(&self, directory: &mut State, users: &[UserId], watcher: &Watcher) {
        let mut online = Vec::new();
        for user in users {
            directory.watch(user, watcher.clone());
            let sessions = directory.sessions(user).iter();
            online.extend(sessions.map(|presence| (user.clone(), self.seat(&presence.handle))));
        }
        match watcher {
            Watcher::Here(handle) => {
                let _ = handle.watched(users.len(), online);
            }
            Watcher::There(peer, conversation) => {
                let count = u32::try_from(users.len()).unwrap_or(u32::MAX);
                self.peers.tell(*peer, &Control::Watched(conversation.clone(), count, online));
            }
        }
    }

    fn gone(&self, directory: &mut State, peer: PeerId) {
        let at = |handle: &SessionPlace| matches!(handle, SessionPlace::There(at, _) if *at == peer);
        let watches = |watcher: &Watcher| matches!(watcher, Watcher::There(at, _) if *at == peer);
        for (user, session) in directory.drop_where(at, watches) {
            self.tell(directory, &user, Seat { at: peer, session }, false, false);
        }
    }
}

/// Closes a session, wherever it is.
fn kick(peers: &Peers, session: &SessionPlace, reason: ErrorCode, message: &str) {
    match session {
        SessionPlace::Here(session) => session.kick(reason, message),
        SessionPlace::There(at, entry) => {
            peers.tell(*at, &Control::Kick(entry.session, reason, message.to_owned()));
        }
    }
}

impl Actor for DirectoryActor {
    type Msg = Message;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<State, ActorProcessingErr> {
        Ok(State::default())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        directory: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Register(session, policy, reply) => {
                let registered = directory.register(session.user(), session.presence(), &policy);
                if registered.is_ok() {
                    self.tell(directory, session.user(), self.seat(&session), true, false);
                }
                let replaced = registered.map(|all| all.into_iter().map(|one| one.handle).collect());
                // The connection that asked may be gone by now; its session then unregisters itself.
                let _ = reply.send(replaced);
            }
            Message::Restore(session) => self.restore(directory, &session),
            Message::Unregister(user, session) => {
                // A session that was replaced is no longer here, but conversations may still list it.
                let at = directory.sessions(&user).iter().find(|one| one.session == session);
                let at = at.map_or_else(|| self.peers.me(), |one| self.seat(&one.handle).at);
                directory.unregister(&user, session);
                self.tell(directory, &user, Seat { at, session }, false, false);
            }
            Message::Watch(users, watcher) => self.watch(directory, &users, &watcher),
            Message::Unwatch(users, at, conversation) => {
                for user in &users {
                    directory.unwatch(user, |watcher| watcher.is(at, &conversation));
                }
            }
            Message::List(user, reply) => {
                let sessions = directory.sessions(&user).iter().map(|one| one.handle.clone()).collect();
                let _ = reply.send(sessions);
            }
            Message::Gone(peer) => self.gone(directory, peer),
            Message::Lost(shards) => directory.retain(|user| !shards.contains(&self.map.of_user(user))),
            Message::InjectPanic => panic!("injected for a test"),
        }
        Ok(())
    }
}

/// Reaches the directory, of users of this node's shards and of others. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    stripes: Arc<[ArcSwap<ActorRef<Message>>]>,
    copy: Copy,
    peers: Peers,
    map: ShardMap,
    /// The node's name.
    node: Arc<str>,
}

impl Directory {
    /// Starts as many stripes as asked for, and tells whoever keeps a copy.
    ///
    /// # Errors
    /// An actor cannot be started.
    pub async fn start(
        stripes: usize,
        copy: Copy,
        (peers, map, node): (Peers, ShardMap, &str),
        supervisor: &ActorCell,
    ) -> Result<Self, ractor::SpawnErr> {
        let mut actors = Vec::new();
        for _ in 0..stripes.max(1) {
            actors.push(ArcSwap::from_pointee(Self::spawn(&peers, map, supervisor).await?));
        }
        Ok(Self { stripes: actors.into(), copy, peers, map, node: node.into() })
    }

    async fn spawn(
        peers: &Peers,
        map: ShardMap,
        supervisor: &ActorCell,
    ) -> Result<ActorRef<Message>, ractor::SpawnErr> {
        let actor = DirectoryActor { peers: peers.clone(), map };
        Ok(Actor::spawn_linked(None, actor, (), supervisor.clone()).await?.0)
    }

    /// If `dead` was one of the stripes, starts it anew and says so; the caller then restores sessions and watches.
    ///
    /// # Errors
    /// The actor cannot be started.
    pub async fn restart(&self, dead: &ActorCell, supervisor: &ActorCell) -> Result<bool, ractor::SpawnErr> {
        for stripe in self.stripes.iter() {
            if stripe.load().get_id() == dead.get_id() {
                stripe.store(Arc::new(Self::spawn(&self.peers, self.map, supervisor).await?));
                self.peers.tell_all(&Control::Forgot);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn stripe_of(&self, user: &UserId) -> usize {
        // The remainder is below the number of stripes.
        (xxh3_64(user.as_str().as_bytes()) % self.stripes.len() as u64) as usize
    }

    fn cast(&self, user: &UserId, message: Message) {
        // A stripe that is being restarted loses this; it is restored from the nodes' sessions afterwards.
        let _ = self.stripes[self.stripe_of(user)].load().cast(message);
    }

    /// Whether there may be other nodes.
    pub fn has_peers(&self) -> bool {
        !self.peers.are_none()
    }

    /// The mapping of users to shards.
    pub fn map(&self) -> ShardMap {
        self.map
    }

    fn server(&self, user: &UserId) -> Option<Server> {
        self.peers.server(self.map.of_user(user))
    }

    /// A session of this node, as others know it.
    pub fn entry(&self, session: &SessionShared) -> SessionEntry {
        SessionEntry {
            node: (*self.node).to_owned(),
            session: session.id,
            user: session.user.clone(),
            device: session.device.clone(),
            device_class: session.device_class,
            app: session.app.clone(),
            since: session.since,
        }
    }

    /// Adds a session of this node, and closes those that it replaces. When the user's directory is away it goes ahead: what
    /// it would have replaced is closed once the directory is back.
    ///
    /// # Errors
    /// The policy refuses it, or the directory is being restarted.
    pub async fn register(
        &self,
        session: &SessionRef,
        policy: Arc<SessionPolicy>,
    ) -> Result<(), RequestError> {
        match self.server(&session.user) {
            Some(Server::Here) => {
                self.register_here(SessionPlace::Here(session.clone()), policy).await?;
            }
            Some(Server::At(peer)) => {
                let ask = Ask::Register(self.entry(session));
                match self.peers.ask::<()>(peer, &ask).await {
                    Err(error) if error.code != MOVED && error.code != ErrorCode::BUSY => return Err(error),
                    // Away, or not its any more: it is told again by whoever serves it next.
                    _ => {}
                }
            }
            None => {}
        }
        if let Some(copy) = &self.copy {
            copy.came(session);
        }
        Ok(())
    }

    /// Adds a session of whatever node to the directory of this one.
    ///
    /// # Errors
    /// The policy refuses it, or the directory is being restarted.
    pub async fn register_here(
        &self,
        session: SessionPlace,
        policy: Arc<SessionPolicy>,
    ) -> Result<(), RequestError> {
        let (reply, answer) = oneshot::channel();
        let user = session.user().clone();
        self.cast(&user, Message::Register(session, policy, reply));
        let replaced = answer.await.unwrap_or_else(|_| {
            Err(RequestError::not_done(ErrorCode::UNAVAILABLE, "the directory is restarting")
                .retry_after(200))
        })?;
        for older in replaced {
            kick(&self.peers, &older, ErrorCode::DEVICE_REPLACED, "the device logged in again");
        }
        Ok(())
    }

    /// Adds sessions of this node that were admitted before their directory was lost, or served by another.
    pub fn restore(&self, sessions: impl IntoIterator<Item = SessionRef>) {
        let mut elsewhere: HashMap<PeerId, Vec<SessionEntry>> = HashMap::new();
        for session in sessions {
            match self.server(&session.user) {
                Some(Server::Here) => self.restore_here(SessionPlace::Here(session)),
                Some(Server::At(peer)) => elsewhere.entry(peer).or_default().push(self.entry(&session)),
                // It is told when somebody serves it.
                None => {}
            }
        }
        for (peer, entries) in elsewhere {
            for some in entries.chunks(ENTRIES_PER_MESSAGE) {
                self.peers.tell(peer, &Control::Restore(some.to_vec()));
            }
        }
    }

    /// The same of whatever node, in the directory of this one.
    pub fn restore_here(&self, session: SessionPlace) {
        let user = session.user().clone();
        self.cast(&user, Message::Restore(session));
    }

    /// Takes a session of this node out.
    pub fn unregister(&self, session: &SessionRef) {
        match self.server(&session.user) {
            Some(Server::Here) => self.unregister_here(&session.user, session.id),
            Some(Server::At(peer)) => {
                self.peers.tell(peer, &Control::Unregister(session.user.clone(), session.id));
            }
            None => {}
        }
        if let Some(copy) = &self.copy {
            copy.went(session);
        }
    }

    /// Takes a session of whatever node out of the directory of this one.
    pub fn unregister_here(&self, user: &UserId, session: SessionId) {
        self.cast(user, Message::Unregister(user.clone(), session));
    }

    /// Watches users for a conversation of this node; answers come as [`ConversationHandle::watched`]. Of users whose
    /// directory nobody serves now nothing is known: they are watched again when somebody does.
    pub fn watch(&self, users: Vec<UserId>, watcher: &ConversationHandle) {
        for (server, users) in self.by_server(users) {
            match server {
                Some(Server::Here) => self.watch_here(users, &Watcher::Here(watcher.clone())),
                Some(Server::At(peer)) => {
                    self.peers.tell(peer, &Control::Watch(watcher.conversation().clone(), users));
                }
                None => {
                    let _ = watcher.watched(users.len(), Vec::new());
                }
            }
        }
    }

    /// Watches users of this node's directory, one message per stripe.
    pub fn watch_here(&self, users: Vec<UserId>, watcher: &Watcher) {
        for (stripe, users) in self.by_stripe(users) {
            let _ = self.stripes[stripe].load().cast(Message::Watch(users, watcher.clone()));
        }
    }

    /// Ends the watches of a conversation of this node.
    pub fn unwatch(&self, users: Vec<UserId>, conversation: &ConversationId) {
        for (server, users) in self.by_server(users) {
            match server {
                Some(Server::Here) => self.unwatch_here(users, None, conversation),
                Some(Server::At(peer)) => {
                    self.peers.tell(peer, &Control::Unwatch(conversation.clone(), users));
                }
                None => {}
            }
        }
    }

    /// Ends the watches that a conversation of a peer, or of this node, has in this node's directory.
    pub fn unwatch_here(&self, users: Vec<UserId>, at: Option<PeerId>, conversation: &ConversationId) {
        for (stripe, users) in self.by_stripe(users) {
            let _ = self.stripes[stripe].load().cast(Message::Unwatch(users, at, conversation.clone()));
        }
    }

    fn by_server(&self, users: Vec<UserId>) -> Vec<(Option<Server>, Vec<UserId>)> {
        if self.peers.are_none() {
            return vec![(Some(Server::Here), users)];
        }
        let mut servers: Vec<(Option<Server>, Vec<UserId>)> = Vec::new();
        for user in users {
            let server = self.server(&user);
            match servers.iter_mut().find(|(other, _)| *other == server) {
                Some((_, users)) => users.push(user),
                None => servers.push((server, vec![user])),
            }
        }
        servers
    }

    fn by_stripe(&self, users: Vec<UserId>) -> impl Iterator<Item = (usize, Vec<UserId>)> {
        let mut stripes: Vec<Vec<UserId>> = vec![Vec::new(); self.stripes.len()];
        for user in users {
            stripes[self.stripe_of(&user)].push(user);
        }
        stripes.into_iter().enumerate().filter(|(_, users)| !users.is_empty())
    }

    /// A peer is gone for good, with its sessions and conversations.
    pub fn peer_gone(&self, peer: PeerId) {
        for stripe in self.stripes.iter() {
            let _ = stripe.load().cast(Message::Gone(peer));
        }
    }

    /// These shards are not served here any more: their users are another's.
    pub fn shards_lost(&self, shards: &Arc<HashSet<ShardId>>) {
        for stripe in self.stripes.iter() {
            let _ = stripe.load().cast(Message::Lost(shards.clone()));
        }
    }

    async fn handles(&self, user: &UserId) -> Vec<SessionPlace> {
        let (reply, answer) = oneshot::channel();
        self.cast(user, Message::List(user.clone(), reply));
        answer.await.unwrap_or_default()
    }

    /// The user's sessions that this node's directory has, oldest first.
    pub async fn sessions_here(&self, user: &UserId) -> Vec<(Seat, SessionEntry)> {
        let me = self.peers.me();
        let entry = |handle: &SessionPlace| match handle {
            SessionPlace::Here(session) => (Seat { at: me, session: session.id }, self.entry(session)),
            SessionPlace::There(at, entry) => (Seat { at: *at, session: entry.session }, (**entry).clone()),
        };
        self.handles(user).await.iter().map(entry).collect()
    }

    /// The user's sessions, oldest first.
    ///
    /// # Errors
    /// The user's directory cannot be asked.
    pub async fn sessions(&self, user: &UserId) -> Result<Vec<(Seat, SessionEntry)>, RequestError> {
        let shard = self.map.of_user(user);
        let asked = self.peers.served(shard, |attempt| async move {
            match attempt.server {
                Server::Here => Ok(self.sessions_here(user).await),
                Server::At(peer) => self.peers.ask(peer, &Ask::Sessions(user.clone())).await,
            }
        });
        asked.await
    }

    /// Closes a session, wherever it is.
    pub fn close(&self, seat: Seat, sessions: &SessionTable, reason: ErrorCode, message: &str) {
        if seat.at == self.peers.me() {
            if let Some(session) = sessions.get(seat.session) {
                session.kick(reason, message);
            }
        } else {
            self.peers.tell(seat.at, &Control::Kick(seat.session, reason, message.to_owned()));
        }
    }

    /// Tells an event that is not kept to the sessions of a user, but one: left out where much waits, or nobody knows where
    /// they are now.
    pub async fn tell(&self, user: &UserId, event: &Event, except: Option<SessionId>) {
        match self.server(user) {
            Some(Server::Here) => self.tell_here(user, event, except).await,
            Some(Server::At(peer)) => {
                self.peers.tell(peer, &Control::TellUser(user.clone(), except, frame_of(event)));
            }
            None => {}
        }
    }

    /// The same for a user whose directory this node has.
    pub async fn tell_here(&self, user: &UserId, event: &Event, except: Option<SessionId>) {
        let mut elsewhere: HashMap<PeerId, Vec<SessionId>> = HashMap::new();
        for handle in self.handles(user).await {
            match handle {
                SessionPlace::Here(session) if Some(session.id) != except => session.tell_if_room(event),
                SessionPlace::There(at, entry) if Some(entry.session) != except => {
                    elsewhere.entry(at).or_default().push(entry.session);
                }
                _ => {}
            }
        }
        for (peer, sessions) in elsewhere {
            self.peers.tell(peer, &Control::Event(sessions, frame_of(event)));
        }
    }

    /// Makes the stripe of a user panic (tests of supervision).
    pub fn inject_panic(&self, user: &UserId) {
        self.cast(user, Message::InjectPanic);
    }
}

/// Sessions that are told together.
const ENTRIES_PER_MESSAGE: usize = 200;
