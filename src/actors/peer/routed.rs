//! Conversations wherever they are: a request goes to the node that serves it, and again when that moves. Whoever asks sees
//! neither.
//!
//! Everything that is asked is safe to repeat: sends and changes carry their client id, the rest changes nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::frame::{Answer, Event};
use convoke_protocol::id::{ConversationId, SessionId};
use convoke_protocol::request::Retry;
use convoke_protocol::request::messages::Sent;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::future::{BoxFuture, FutureExt as _, TryFutureExt as _};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::outgoing::{Attempt, PATIENCE, Peers, Server};
use super::{Activity, ActivityAnswer, Ask, MOVED, frame_of, not_ours, told_to_clients};
use crate::actors::conversation::core::{ActCommand, SendCommand};
use crate::actors::conversation::dedup::Place;
use crate::actors::conversation::group::{Group, not_found};
use crate::actors::conversation::{Attended, Attending};
use crate::actors::reply::Reply;
use crate::actors::shard::Conversations;
use crate::cluster::shard_map::{ShardId, ShardMap};

/// The conversations of all nodes. Cheap to clone.
#[derive(Clone)]
pub struct RoutedConversations {
    here: Conversations,
    peers: Peers,
    map: ShardMap,
    /// Where a send is not answered yet: what comes behind it. Bounded by what each session may have in flight.
    sending: Arc<DashMap<ThreadId, Thread>>,
}

/// A session, and the conversation to which it sends.
type ThreadId = (SessionId, ConversationId);

/// What a session sends to a conversation, behind what is being answered.
struct Thread {
    waiting: VecDeque<Sending>,
    /// Whom those in flight were given to.
    server: Option<Server>,
    /// Whether the conversation moves: what comes now waits until what came before it was given to the next owner.
    moves: bool,
}

/// A send that is to be answered.
struct Sending {
    command: Box<SendCommand>,
    reply: Reply,
    /// Its first attempt, if somebody could be asked at once; behind a lock that nobody holds, for a future is not shared.
    first: Mutex<Option<BoxFuture<'static, Result<Place, RequestError>>>>,
}

/// The request as its next attempt carries it.
fn repeated(retry: Retry, attempt: &Attempt) -> Retry {
    let age_ms = u64::try_from(attempt.age.as_millis()).unwrap_or(u64::MAX);
    Retry {
        attempt: retry.attempt.saturating_add(attempt.former),
        age_ms: retry.age_ms.saturating_add(age_ms),
        ..retry
    }
}

impl RoutedConversations {
    /// Those of this node, and of its peers.
    pub fn new(here: Conversations, peers: Peers, map: ShardMap) -> Self {
        Self { here, peers, map, sending: Arc::default() }
    }

    /// Those of this node.
    pub fn here(&self) -> &Conversations {
        &self.here
    }

    /// The other nodes.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    fn shard(&self, conversation: &ConversationId) -> ShardId {
        self.map.of_conversation(conversation)
    }

    /// Hands a send to its conversation, which answers it. What one session sends to one conversation is numbered and
    /// answered in the order of the calls, also when the conversation moves meanwhile.
    pub async fn send(&self, conversation: ConversationId, command: Box<SendCommand>, reply: Reply) {
        if self.peers.are_none() {
            return self.here.send(conversation, command, reply).await;
        }
        let thread = (reply.session_id(), conversation);
        // The first attempt is on its way before the next request of the session is read; to the same node as those before
        // it that are not answered, so that none overtakes them.
        let before = self.sending.get(&thread).map(|thread| (thread.server, thread.moves));
        let server = match before {
            None => self.peers.server(self.shard(&thread.1)),
            Some((server, false)) => server,
            Some((_, true)) => None,
        };
        let first = match server {
            Some(server) => Some(self.send_to(server, &thread.1, command.clone(), Some(thread.0)).await),
            None => None,
        };
        let sending = Sending { command, reply, first: Mutex::new(first) };
        match self.sending.entry(thread.clone()) {
            Entry::Occupied(mut open) => open.get_mut().waiting.push_back(sending),
            Entry::Vacant(none) => {
                none.insert(Thread { waiting: VecDeque::new(), server, moves: server.is_none() });
                let all = self.clone();
                tokio::spawn(async move { all.answer_in_order(thread, sending).await });
            }
        }
    }

    /// Answers what a session sent to a conversation, one after the other, until nothing more waits.
    async fn answer_in_order(self, thread: ThreadId, mut sending: Sending) {
        loop {
            self.answer(&thread, sending).await;
            let next = match self.sending.entry(thread.clone()) {
                Entry::Occupied(mut open) => match open.get_mut().waiting.pop_front() {
                    Some(next) => next,
                    None => {
                        open.remove();
                        return;
                    }
                },
                Entry::Vacant(_) => return,
            };
            sending = next;
            if sending.first.lock().is_none() {
                self.go_on_elsewhere(&thread, &mut sending).await;
            }
        }
    }

    /// What waited while the conversation moved is on its way again, in order.
    async fn go_on_elsewhere(&self, thread: &ThreadId, next: &mut Sending) {
        let Some(server) = self.peers.server(self.shard(&thread.1)) else { return };
        let (session, conversation) = (Some(thread.0), &thread.1);
        let first = self.send_to(server, conversation, next.command.clone(), session).await;
        *next.first.get_mut() = Some(first);
        // Only this task takes any out, so that their places stay.
        for place in 0.. {
            let Some(mut open) = self.sending.get_mut(thread) else { return };
            let Some(waiting) = open.waiting.get(place) else {
                open.server = Some(server);
                open.moves = false;
                return;
            };
            let command = waiting.first.lock().is_none().then(|| waiting.command.clone());
            drop(open);
            let Some(command) = command else { continue };
            let first = self.send_to(server, conversation, command, session).await;
            if let Some(open) = self.sending.get(thread)
                && let Some(waiting) = open.waiting.get(place)
            {
                *waiting.first.lock() = Some(first);
            }
        }
    }

    async fn answer(&self, thread: &ThreadId, sending: Sending) {
        let Sending { command, mut reply, first } = sending;
        let (session, conversation) = thread.clone();
        let first = match first.into_inner() {
            Some(first) => first.await,
            None => Err(not_ours()),
        };
        let sent = match first {
            Err(error) if error.code == MOVED => {
                // Whatever comes behind it waits.
                if let Some(mut open) = self.sending.get_mut(thread) {
                    open.moves = true;
                }
                self.send_anywhere(conversation.clone(), command, Some(session), 1).await
            }
            done => done,
        };
        let answer = place_answer(&mut reply, conversation, sent);
        reply.send(&answer);
    }

    /// Begins to ask one node.
    async fn send_to(
        &self,
        server: Server,
        conversation: &ConversationId,
        command: Box<SendCommand>,
        session: Option<SessionId>,
    ) -> BoxFuture<'static, Result<Place, RequestError>> {
        let conversation = conversation.clone();
        match server {
            Server::Here => self.here.send_told(conversation, command, session).await.boxed(),
            Server::At(peer) => {
                let peers = self.peers.clone();
                let asked = peers.ask(peer, &Ask::Send(conversation.clone(), command, session));
                asked.inspect_ok(move |_: &Place| peers.note_committed(&conversation)).boxed()
            }
        }
    }

    async fn send_anywhere(
        &self,
        conversation: ConversationId,
        command: Box<SendCommand>,
        session: Option<SessionId>,
        former: u32,
    ) -> Result<Place, RequestError> {
        let shard = self.shard(&conversation);
        let attempt = |attempt: Attempt| {
            let attempt = Attempt { former: attempt.former + former, ..attempt };
            let mut command = command.clone();
            command.retry = repeated(command.retry, &attempt);
            let conversation = conversation.clone();
            async move { self.send_to(attempt.server, &conversation, command, session).await.await }
        };
        self.peers.served(shard, attempt).await
    }

    /// Hands a send to its conversation and waits for its place. Every listener gets a push.
    ///
    /// # Errors
    /// As the wire says.
    pub async fn send_told(
        &self,
        conversation: ConversationId,
        command: Box<SendCommand>,
    ) -> Result<Place, RequestError> {
        self.send_anywhere(conversation, command, None, 0).await
    }

    /// Changes something, and waits for the place of the entry that says so; `None` if there was nothing to change.
    ///
    /// # Errors
    /// As the wire says.
    pub async fn act(
        &self,
        conversation: ConversationId,
        command: Box<ActCommand>,
    ) -> Result<Option<Place>, RequestError> {
        let attempt = |attempt: Attempt| {
            let mut command = command.clone();
            command.retry = repeated(command.retry, &attempt);
            let conversation = conversation.clone();
            async move {
                match attempt.server {
                    Server::Here => self.here.act(conversation, command).await,
                    Server::At(peer) => {
                        let acted = self.peers.ask(peer, &Ask::Act(conversation.clone(), command)).await;
                        acted.inspect(|_| self.peers.note_committed(&conversation))
                    }
                }
            }
        };
        self.peers.served(self.shard(&conversation), attempt).await
    }

    /// Looks at a group.
    ///
    /// # Errors
    /// It cannot be read now.
    pub async fn look<T: Send + 'static>(
        &self,
        conversation: ConversationId,
        look: impl FnOnce(Option<&Group>) -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        // Taken by the attempt that gets to look.
        let look = Arc::new(Mutex::new(Some(look)));
        let attempt = |attempt: Attempt| {
            let (look, conversation) = (look.clone(), conversation.clone());
            async move {
                let once = move |group: Option<&Group>| look.lock().take().map(|look| look(group));
                let looked = match attempt.server {
                    Server::Here => self.here.look(conversation, once).await?,
                    Server::At(peer) => {
                        let group: Option<Group> = self.peers.ask(peer, &Ask::Look(conversation)).await?;
                        once(group.as_ref())
                    }
                };
                looked.ok_or_else(not_ours)
            }
        };
        self.peers.served(self.shard(&conversation), attempt).await
    }

    /// Passes an event that is not kept on to the other listeners of a group.
    ///
    /// # Errors
    /// `NOT_FOUND`, if whoever it is from is no member.
    pub async fn signal(
        &self,
        conversation: ConversationId,
        event: Event,
        from: Attending,
    ) -> Result<(), RequestError> {
        let attempt = |attempt: Attempt| {
            let (conversation, event, from) = (conversation.clone(), event.clone(), from.clone());
            async move {
                match attempt.server {
                    Server::Here => self.here.signal(conversation, event, from).await,
                    Server::At(peer) => {
                        self.peers.ask(peer, &Ask::Signal(conversation, frame_of(&event), from)).await
                    }
                }
            }
        };
        self.peers.served(self.shard(&conversation), attempt).await
    }

    /// What its owner knows of a conversation that is active; `None` if it sleeps, or its owner does not say now.
    pub async fn activity(&self, conversation: &ConversationId) -> Option<Activity> {
        match self.peers.server(self.shard(conversation))? {
            Server::Here => self.here.activity(conversation),
            Server::At(peer) => {
                let told: ActivityAnswer = self.peers.ask(peer, &Ask::Activity(conversation.clone())).await;
                told.ok().flatten()
            }
        }
    }

    /// Makes the session a listener of the conversation if it is active, and tells what there is.
    ///
    /// # Errors
    /// As the wire says: `NOT_FOUND` also for a group that is not the user's.
    pub async fn attend(
        &self,
        conversation: &ConversationId,
        attending: &Attending,
    ) -> Result<Attended, RequestError> {
        let mut attended = self.attend_all(std::slice::from_ref(conversation), attending).await?;
        attended.pop().flatten().ok_or_else(not_found)
    }

    /// The same for several conversations, in the order of the ids; `None` for one that is not the user's. Those of one node
    /// are asked for together.
    ///
    /// # Errors
    /// One of them cannot be read now.
    pub async fn attend_all(
        &self,
        conversations: &[ConversationId],
        attending: &Attending,
    ) -> Result<Vec<Option<Attended>>, RequestError> {
        if self.peers.are_none() {
            return self.here.attend_all(conversations, attending).await.map_err(told_to_clients);
        }
        let begun = Instant::now();
        let mut all: Vec<Option<Attended>> = vec![None; conversations.len()];
        let mut open: Vec<usize> = (0..conversations.len()).collect();
        loop {
            let mut asked = Vec::new();
            let mut by_server: HashMap<Server, Vec<usize>> = HashMap::new();
            let mut left = Vec::new();
            for n in open {
                match self.peers.server(self.shard(&conversations[n])) {
                    Some(server) => by_server.entry(server).or_default().push(n),
                    None => left.push(n),
                }
            }
            for (server, places) in by_server {
                let ids: Vec<_> = places.iter().map(|n| conversations[*n].clone()).collect();
                asked.push(self.attend_at(server, ids, attending).map(|answer| (places, answer)));
            }
            for (places, answer) in futures_util::future::join_all(asked).await {
                match answer {
                    Ok(seen) => {
                        for (n, seen) in places.into_iter().zip(seen) {
                            all[n] = seen;
                        }
                    }
                    Err(error) if error.code == MOVED => left.extend(places),
                    Err(error) => return Err(error),
                }
            }
            if left.is_empty() {
                return Ok(all);
            }
            if begun.elapsed() >= PATIENCE {
                let text = "a conversation is not served by any node now";
                return Err(RequestError::not_done(ErrorCode::UNAVAILABLE, text).retry_after(1_000));
            }
            if let Some(owners) = self.peers.owners() {
                owners.changed(super::outgoing::PAUSE).await;
            }
            open = left;
        }
    }

    async fn attend_at(
        &self,
        server: Server,
        conversations: Vec<ConversationId>,
        attending: &Attending,
    ) -> Result<Vec<Option<Attended>>, RequestError> {
        match server {
            Server::Here => self.here.attend_all(&conversations, attending).await,
            Server::At(peer) => self.peers.ask(peer, &Ask::Attend(conversations, attending.clone())).await,
        }
    }
}

/// The answer to a send, with what became of it.
fn place_answer(
    reply: &mut Reply,
    conversation: ConversationId,
    sent: Result<Place, RequestError>,
) -> Answer {
    match sent {
        Ok(Place { seq, id, time }) => {
            if let Some(mut trace) = reply.take_trace() {
                trace.committed(&conversation, seq);
            }
            Answer::Sent(Sent { conversation, seq, message_id: id, time })
        }
        Err(error) => Answer::Error(told_to_clients(error)),
    }
}
