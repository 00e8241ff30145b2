//! The directory: in the memory of a user's owner, which sessions the user has and which conversations want to know.
//!
//! One actor per stripe; a user always maps to the same one. It is soft: after a crash it is made again from the node's
//! sessions and from the conversations that are active.

pub mod core;

use std::sync::Arc;

use arc_swap::ArcSwap;
use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{ConversationId, SessionId, UserId};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use self::core::{DirectoryCore, Presence, SessionPolicy};
use crate::actors::conversation::ConversationHandle;
use crate::actors::session::SessionShared;

type SessionRef = Arc<SessionShared>;

enum Message {
    Register(SessionRef, Arc<SessionPolicy>, oneshot::Sender<Result<Vec<SessionRef>, RequestError>>),
    Restore(SessionRef),
    Unregister(SessionRef),
    Watch(Vec<UserId>, ConversationHandle),
    Unwatch(Vec<UserId>, ConversationId),
    List(UserId, oneshot::Sender<Vec<SessionRef>>),
    InjectPanic,
}

/// Who keeps a copy of the directory. Told of what comes and goes, in order; returns at once.
pub trait DirectoryCopy: Send + Sync + 'static {
    /// The session was registered; it has its device now.
    fn came(&self, session: &SessionShared);
    /// The session ended.
    fn went(&self, session: &SessionShared);
}

type Copy = Option<Arc<dyn DirectoryCopy>>;

struct DirectoryActor {
    copy: Copy,
}

fn presence(session: &SessionRef) -> Presence<SessionRef> {
    Presence {
        session: session.id,
        device: session.device.clone(),
        device_class: session.device_class,
        handle: session.clone(),
    }
}

type State = DirectoryCore<SessionRef, ConversationHandle>;

fn tell(directory: &mut State, user: &UserId, session: SessionId, online: bool) {
    // A watcher that is gone is taken out when it cannot be told.
    let gone: Vec<_> = directory
        .watchers(user)
        .iter()
        .filter(|watcher| watcher.session_changed(user, session, online).is_err())
        .cloned()
        .collect();
    if !gone.is_empty() {
        directory.unwatch(user, |watcher| gone.contains(watcher));
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
                let registered = directory.register(&session.user, presence(&session), &policy);
                if registered.is_ok() {
                    tell(directory, &session.user, session.id, true);
                    if let Some(copy) = &self.copy {
                        copy.came(&session);
                    }
                }
                let replaced = registered.map(|all| all.into_iter().map(|one| one.handle).collect());
                // The connection that asked may be gone by now; its session then unregisters itself.
                let _ = reply.send(replaced);
            }
            Message::Restore(session) => {
                directory.restore(&session.user, presence(&session));
                tell(directory, &session.user, session.id, true);
            }
            Message::Unregister(session) => {
                // A session that was replaced is no longer here, but conversations may still list it.
                directory.unregister(&session.user, session.id);
                tell(directory, &session.user, session.id, false);
                if let Some(copy) = &self.copy {
                    copy.went(&session);
                }
            }
            Message::Watch(users, watcher) => {
                let mut online = Vec::new();
                for user in &users {
                    directory.watch(user, watcher.clone());
                    let sessions = directory.sessions(user).iter();
                    online.extend(sessions.map(|presence| (user.clone(), presence.session)));
                }
                let _ = watcher.watched(users.len(), online);
            }
            Message::Unwatch(users, conversation) => {
                for user in &users {
                    directory.unwatch(user, |watcher| *watcher.conversation() == conversation);
                }
            }
            Message::List(user, reply) => {
                let sessions = directory.sessions(&user).iter().map(|one| one.handle.clone()).collect();
                let _ = reply.send(sessions);
            }
            Message::InjectPanic => panic!("injected for a test"),
        }
        Ok(())
    }
}

/// Reaches the directory. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    stripes: Arc<[ArcSwap<ActorRef<Message>>]>,
    copy: Copy,
}

impl Directory {
    /// Starts as many stripes as asked for, and tells whoever keeps a copy.
    ///
    /// # Errors
    /// An actor cannot be started.
    pub async fn start(stripes: usize, copy: Copy, supervisor: &ActorCell) -> Result<Self, ractor::SpawnErr> {
        let mut actors = Vec::new();
        for _ in 0..stripes.max(1) {
            actors.push(ArcSwap::from_pointee(Self::spawn(&copy, supervisor).await?));
        }
        Ok(Self { stripes: actors.into(), copy })
    }

    async fn spawn(copy: &Copy, supervisor: &ActorCell) -> Result<ActorRef<Message>, ractor::SpawnErr> {
        let actor = DirectoryActor { copy: copy.clone() };
        Ok(Actor::spawn_linked(None, actor, (), supervisor.clone()).await?.0)
    }

    /// If `dead` was one of the stripes, starts it anew and says so; the caller then restores sessions and watches.
    ///
    /// # Errors
    /// The actor cannot be started.
    pub async fn restart(&self, dead: &ActorCell, supervisor: &ActorCell) -> Result<bool, ractor::SpawnErr> {
        for stripe in self.stripes.iter() {
            if stripe.load().get_id() == dead.get_id() {
                stripe.store(Arc::new(Self::spawn(&self.copy, supervisor).await?));
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

    /// Adds a session. Answers with those that must be closed for it.
    ///
    /// # Errors
    /// The policy refuses it, or the directory is being restarted.
    pub async fn register(
        &self,
        session: SessionRef,
        policy: Arc<SessionPolicy>,
    ) -> Result<Vec<SessionRef>, RequestError> {
        let (reply, answer) = oneshot::channel();
        let user = session.user.clone();
        self.cast(&user, Message::Register(session, policy, reply));
        answer.await.unwrap_or_else(|_| {
            Err(RequestError::not_done(ErrorCode::UNAVAILABLE, "the directory is restarting")
                .retry_after(200))
        })
    }

    /// Adds a session that was admitted before the directory was lost.
    pub fn restore(&self, session: SessionRef) {
        let user = session.user.clone();
        self.cast(&user, Message::Restore(session));
    }

    /// Takes a session out.
    pub fn unregister(&self, session: SessionRef) {
        let user = session.user.clone();
        self.cast(&user, Message::Unregister(session));
    }

    /// Watches users for a conversation, one message per stripe; answers come as [`ConversationHandle::watched`].
    pub fn watch(&self, users: Vec<UserId>, watcher: &ConversationHandle) {
        for (stripe, users) in self.by_stripe(users) {
            let message = Message::Watch(users, watcher.clone());
            let _ = self.stripes[stripe].load().cast(message);
        }
    }

    /// Ends the watches of a conversation.
    pub fn unwatch(&self, users: Vec<UserId>, conversation: &ConversationId) {
        for (stripe, users) in self.by_stripe(users) {
            let _ = self.stripes[stripe].load().cast(Message::Unwatch(users, conversation.clone()));
        }
    }

    fn by_stripe(&self, users: Vec<UserId>) -> impl Iterator<Item = (usize, Vec<UserId>)> {
        let mut stripes: Vec<Vec<UserId>> = vec![Vec::new(); self.stripes.len()];
        for user in users {
            stripes[self.stripe_of(&user)].push(user);
        }
        stripes.into_iter().enumerate().filter(|(_, users)| !users.is_empty())
    }

    /// The user's sessions, oldest first; none while the directory restarts.
    pub async fn sessions(&self, user: &UserId) -> Vec<SessionRef> {
        let (reply, answer) = oneshot::channel();
        self.cast(user, Message::List(user.clone(), reply));
        answer.await.unwrap_or_default()
    }

    /// Makes the stripe of a user panic (tests of supervision).
    pub fn inject_panic(&self, user: &UserId) {
        self.cast(user, Message::InjectPanic);
    }
}
