//! The handles of an application: [`Client`] to ask, [`Events`] to listen.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use convoke_protocol::error_code::{ErrorCode, Outcome};
use convoke_protocol::event::{Hid, JoinAnswered, JoinRequested, ListChanged, ReadMoved, Receipt, Signalled};
use convoke_protocol::frame::{Answer, Request};
use convoke_protocol::id::{ConversationId, MessageId, Seq, SessionId, Timestamp, UserId};
use convoke_protocol::message::{Content, Message, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::conversations::{ConversationList, Conversations, SetConversation};
use convoke_protocol::request::messages::{
    History, HistoryPage, Pull, PullRange, Pulled, Send, Sent, Target,
};
use convoke_protocol::request::read_state::{MarkAllRead, Read, ReadDone, ReadMarks, ReadMarksPage, Signal};
use convoke_protocol::request::session::{CloseSession, ListSessions, Logout, SessionInfo};
use convoke_protocol::request::sync::{Sync, Synced};
use tokio::sync::{mpsc, oneshot};

use crate::call::Ask;
use crate::config::ClientConfig;
use crate::connection::ConnectionError;
use crate::driver::{Driver, Had, Order, Outbox};
use crate::error::ClientError;

/// Requests that wait to be taken by the driver; it holds `MAX_OUTSTANDING` more that wait for their answers.
const QUEUE: usize = 64;

/// How long a logout may take before it is left to the server to notice.
const LOGOUT_DEADLINE: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DisconnectReason {
    /// It broke, or the server closed it.
    Lost(ConnectionError),
    /// Nothing was heard for too long.
    Silent,
    /// The server asked to come back later or elsewhere.
    GoAway(ErrorCode),
}

impl std::fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(error) => write!(f, "{error}"),
            Self::Silent => f.write_str("the server is silent"),
            Self::GoAway(reason) => write!(f, "sent away: {reason}"),
        }
    }
}

/// What an application hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// A session is live; what was missed follows.
    Connected {
        /// Who we are.
        user: UserId,
        /// The session's id.
        session: SessionId,
        /// The node.
        node: String,
        /// The address that was used.
        address: String,
    },
    /// What was missing when the session began was delivered.
    CaughtUp,
    /// The next message of a conversation, own ones included: each once, in rising order.
    Message {
        /// Where it was said.
        conversation: ConversationId,
        /// What was said.
        message: Message,
    },
    /// These messages, both ends included, are not to be had: trimmed, or not ours to read.
    Skipped {
        /// The conversation.
        conversation: ConversationId,
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// The user read on another device. News of now: without room, or without a connection, it is lost.
    ReadMoved(ReadMoved),
    /// The other user of a direct conversation read it. News of now, as above.
    Receipt(Receipt),
    /// Somebody signals something, such as typing. News of now, as above.
    Signalled(Signalled),
    /// The user deleted messages for themselves on another device. News of now, as above.
    Hid(Hid),
    /// The user's list of conversations is another. News of now, as above.
    ListChanged(ListChanged),
    /// Somebody asks to join a group of which the user is an admin. News of now, as above.
    JoinRequested(JoinRequested),
    /// A request of the user to join a group was decided. News of now, as above.
    JoinAnswered(JoinAnswered),
    /// The connection is gone; the client comes back by itself.
    Disconnected {
        /// Why.
        reason: DisconnectReason,
    },
    /// An attempt to connect failed; there will be another.
    ConnectFailed {
        /// Where.
        address: String,
        /// Why.
        error: ClientError,
    },
    /// The server ended the session. The last event: the client does not come back by itself.
    Kicked {
        /// Why.
        reason: ErrorCode,
        /// The same for a person.
        message: String,
    },
    /// The client gave up. The last event.
    Failed {
        /// Why.
        error: ClientError,
    },
}

/// What an application listens to.
///
/// The session lives as long as there is a [`Client`] or an `Events`. Without an `Events` messages are not kept for
/// anybody. An application that does not call [`Events::next`] for a while costs a bounded amount of memory: what
/// comes beyond that is pulled from the server once there is room.
#[derive(Debug)]
pub struct Events {
    channel: mpsc::Receiver<ClientEvent>,
    had: Arc<Had>,
    last: Option<(ConversationId, Seq)>,
}

impl Events {
    /// The next event; `None` after the last one.
    ///
    /// Calling it says that the former event was dealt with: its message counts as had, and the cursor the server
    /// keeps for the device moves behind it. A process that dies before is given the message again.
    ///
    /// # Cancel-safety
    /// No event is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<ClientEvent> {
        self.done();
        let event = self.channel.recv().await?;
        self.last = match &event {
            ClientEvent::Message { conversation, message } => Some((conversation.clone(), message.seq)),
            ClientEvent::Skipped { conversation, to, .. } => Some((conversation.clone(), *to)),
            _ => None,
        };
        Some(event)
    }

    /// Says that the last event was dealt with, without waiting for another.
    pub fn done(&mut self) {
        if let Some((conversation, seq)) = self.last.take() {
            self.had.note(conversation, seq);
        }
    }
}

/// The proof that a message is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentReceipt {
    /// Where it was said.
    pub conversation: ConversationId,
    /// Its number there.
    pub seq: Seq,
    /// Its global id.
    pub message_id: MessageId,
    /// When the server numbered it.
    pub time: Timestamp,
}

/// A message to be sent, with what a plain [`Client::send`] leaves at its default.
#[derive(Debug, Clone)]
pub struct Draft {
    target: Target,
    content: Content,
    reply_to: Option<Seq>,
    previous: Option<Seq>,
    priority: Priority,
}

impl Draft {
    /// A message of normal priority that answers none.
    pub fn new(target: Target, content: Content) -> Self {
        Self { target, content, reply_to: None, previous: None, priority: Priority::NORMAL }
    }

    /// It answers this message.
    #[must_use]
    pub fn reply_to(mut self, seq: Seq) -> Self {
        self.reply_to = Some(seq);
        self
    }

    /// The last message its writer had seen.
    #[must_use]
    pub fn previous(mut self, seq: Seq) -> Self {
        self.previous = Some(seq);
        self
    }

    /// Its lane.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }
}

/// A send on its way: a future of its receipt. Dropping it does not take the message back.
#[derive(Debug)]
#[must_use = "the receipt, or the reason why there is none, comes by awaiting this"]
pub struct Sending {
    answer: oneshot::Receiver<Result<Answer, ClientError>>,
}

impl Future for Sending {
    type Output = Result<SentReceipt, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| match answer {
            Ok(Ok(Answer::Sent(Sent { conversation, seq, message_id, time }))) => {
                Ok(SentReceipt { conversation, seq, message_id, time })
            }
            Ok(Ok(other)) => Err(ClientError::Unexpected(other.name())),
            Ok(Err(error)) => Err(error),
            // The driver's task is gone without a word: with its runtime, perhaps.
            Err(_) => Err(ClientError::Closed { reason: None, outcome: Outcome::UNKNOWN }),
        })
    }
}

/// A session of one device, over as many connections as it takes. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    orders: mpsc::Sender<Order>,
    ended: Arc<OnceLock<Option<ErrorCode>>>,
    send_deadline: Duration,
    request_deadline: Duration,
}

impl Client {
    /// Connects to one of the addresses and logs in. From then on the client reconnects by itself.
    ///
    /// # Cancel-safety
    /// When the future is dropped the attempt ends, and so does a session that has just begun.
    ///
    /// # Errors
    /// The configuration cannot work, the login was refused for good, or no address answered in
    /// [`ClientConfig::connect_deadline`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(config: ClientConfig) -> Result<(Self, Events), ClientError> {
        if config.addresses.is_empty() {
            return Err(ClientError::Config("no address to connect to".into()));
        }
        let (orders, taken) = mpsc::channel(QUEUE);
        let (events, channel) = mpsc::channel(crate::driver::CHANNEL);
        let (first, live) = oneshot::channel();
        let had = Arc::new(Had::default());
        let ended = Arc::new(OnceLock::new());
        let client = Self {
            orders,
            ended: Arc::clone(&ended),
            send_deadline: config.send_deadline,
            request_deadline: config.request_deadline,
        };
        let outbox = Outbox::new(events, Arc::clone(&had), config.keep_cursors);
        tokio::spawn(Driver::new(config, taken, outbox, first, ended).run());
        live.await.unwrap_or_else(|_| Err(client.closed()))?;
        Ok((client, Events { channel, had, last: None }))
    }

    /// Says something, and returns once it is durable. Lost connections and servers that are busy are dealt with: the
    /// same send is repeated under its client id, which the server recognises, so that there is never a second message.
    ///
    /// Sends that are in flight together keep their order unless one of them is refused as busy and repeated.
    ///
    /// # Cancel-safety
    /// When the future is dropped the message may or may not be sent, but never twice.
    ///
    /// # Errors
    /// [`ClientError::outcome`] tells whether it may have been sent all the same.
    pub async fn send(&self, target: Target, content: Content) -> Result<SentReceipt, ClientError> {
        self.send_draft(Draft::new(target, content)).await
    }

    /// [`Client::send`] of a message with more to it.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn send_draft(&self, draft: Draft) -> Result<SentReceipt, ClientError> {
        let (order, sending) = self.prepare(draft);
        self.orders.send(order).await.map_err(|_| self.closed())?;
        sending.await
    }

    /// Queues a message and returns at once; many may be on their way together.
    ///
    /// # Errors
    /// [`ClientError::QueueFull`] if too many wait already (await some of them), or the session is over.
    pub fn send_nowait(&self, draft: Draft) -> Result<Sending, ClientError> {
        let (order, sending) = self.prepare(draft);
        match self.orders.try_send(order) {
            Ok(()) => Ok(sending),
            Err(mpsc::error::TrySendError::Full(_)) => Err(ClientError::QueueFull),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.closed()),
        }
    }

    /// Reads ranges of several conversations, for the application's own use: they do not go through [`Events`].
    ///
    /// # Errors
    /// No page could be had. A single range that fails says so in its page.
    pub async fn pull(&self, ranges: Vec<PullRange>) -> Result<Pulled, ClientError> {
        match self.ask(Pull { ranges }.into()).await? {
            Answer::Pulled(pulled) => Ok(pulled),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// Reads one page of a conversation, for the application's own use: it does not go through [`Events`].
    ///
    /// # Errors
    /// There is no such conversation for this user, or it cannot be read now.
    pub async fn history(&self, history: History) -> Result<HistoryPage, ClientError> {
        match self.ask(history.into()).await? {
            Answer::HistoryPage(HistoryPage { page }) => match page.error {
                Some(error) => Err(ClientError::Refused(error)),
                None => Ok(HistoryPage { page }),
            },
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// Asks for the user's conversations, their heads, and what is missing behind the given cursors, for the
    /// application's own use; the client syncs by itself what goes through [`Events`].
    ///
    /// # Errors
    /// They cannot be read now.
    pub async fn sync(&self, sync: Sync) -> Result<Synced, ClientError> {
        match self.ask(sync.into()).await? {
            Answer::Synced(synced) => Ok(synced),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// Says that the user has read a conversation up to `seq`. Reading never falls, so it may be repeated.
    ///
    /// # Errors
    /// There is no such conversation for this user, or it cannot be kept now.
    pub async fn read(&self, conversation: ConversationId, seq: Seq) -> Result<ReadDone, ClientError> {
        match self.ask(Read { retry: Retry::first(), conversation, seq }.into()).await? {
            Answer::ReadDone(done) => Ok(done),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// Says that the user has read everything; tells in how many conversations that is new.
    ///
    /// # Errors
    /// It cannot be kept now.
    pub async fn mark_all_read(&self) -> Result<u32, ClientError> {
        match self.ask(MarkAllRead { retry: Retry::first() }.into()).await? {
            Answer::AllRead(all) => Ok(all.moved),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// How far the members of a conversation have read, in pages.
    ///
    /// # Errors
    /// There is no such conversation for this user, or it cannot be read now.
    pub async fn read_marks(&self, marks: ReadMarks) -> Result<ReadMarksPage, ClientError> {
        match self.ask(marks.into()).await? {
            Answer::ReadMarksPage(page) => Ok(page),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// Tells those who are there something that is worth knowing only now, such as `typing`.
    ///
    /// # Errors
    /// It is out of its bounds, or there were too many of them.
    pub async fn signal(
        &self,
        target: Target,
        kind: impl Into<String>,
        content: Content,
    ) -> Result<(), ClientError> {
        match self.ask(Signal { target, kind: kind.into(), content }.into()).await? {
            Answer::SignalTaken(_) => Ok(()),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// One page of the user's conversations, the one with the newest message first.
    ///
    /// # Errors
    /// They cannot be read now.
    pub async fn conversations(&self, page: Conversations) -> Result<ConversationList, ClientError> {
        match self.ask(page.into()).await? {
            Answer::ConversationList(list) => Ok(list),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// Says how the user wants a conversation; the list's new version.
    ///
    /// # Errors
    /// There is no such conversation for this user, or it cannot be kept now.
    pub async fn set_conversation(&self, set: SetConversation) -> Result<u64, ClientError> {
        match self.ask(set.into()).await? {
            Answer::ConversationSet(set) => Ok(set.version),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// The user's live sessions, oldest first.
    ///
    /// # Errors
    /// They cannot be listed now.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, ClientError> {
        match self.ask(ListSessions {}.into()).await? {
            Answer::Sessions(sessions) => Ok(sessions.sessions),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// Closes one of the user's sessions.
    ///
    /// # Errors
    /// It is not one of the user's, or cannot be closed now.
    pub async fn close_session(&self, session: SessionId) -> Result<(), ClientError> {
        match self.ask(CloseSession { retry: Retry::first(), session }.into()).await? {
            Answer::SessionClosed(_) => Ok(()),
            other => Err(ClientError::Unexpected(other.name())),
        }
    }

    /// Says that the application had everything of a conversation up to `seq` in another way, so that [`Events`] goes
    /// on behind it. What is already queued there may still come.
    ///
    /// # Errors
    /// The session is over.
    pub async fn skip_to(&self, conversation: ConversationId, seq: Seq) -> Result<(), ClientError> {
        self.orders.send(Order::SkipTo(conversation, seq)).await.map_err(|_| self.closed())
    }

    /// Tells the server what was had, ends the session, and with it this client. Sends that still wait for their
    /// receipts fail: await them first.
    ///
    /// # Errors
    /// The session was over already, or the server did not answer; it notices by itself then.
    pub async fn logout(&self) -> Result<(), ClientError> {
        let (order, answer) = prepare(Logout {}.into(), LOGOUT_DEADLINE);
        self.orders.send(order).await.map_err(|_| self.closed())?;
        let overdue = || ClientError::Overdue { outcome: Outcome::UNKNOWN, last: None };
        match tokio::time::timeout(LOGOUT_DEADLINE, answer).await {
            Ok(Ok(answer)) => answer.map(|_| ()),
            Ok(Err(_)) => Err(self.closed()),
            Err(_) => Err(overdue()),
        }
    }

    /// Asks whatever the protocol knows, and waits for the answer that belongs to it: groups, changes of messages, what
    /// services do. A request that changes something is repeated under its client id over lost connections and while the
    /// server is busy, so that it has its effect once; its `retry` should be [`Retry::first`].
    ///
    /// ```no_run
    /// # use convoke_client::Client;
    /// # use convoke_client::protocol::{group::GroupProfile, id::UserId, request::Retry, request::groups::CreateGroup};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let made = client
    ///     .call(CreateGroup {
    ///         retry: Retry::first(),
    ///         group: None,
    ///         unique: false,
    ///         profile: GroupProfile { name: "The team".into(), ..GroupProfile::default() },
    ///         members: vec![UserId::new("bob")?],
    ///     })
    ///     .await?;
    /// println!("{}", made.group);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel-safety
    /// When the future is dropped it may or may not happen, but never twice.
    ///
    /// # Errors
    /// [`ClientError::outcome`] tells whether it may have happened all the same.
    pub async fn call<A: Ask>(&self, ask: A) -> Result<A::Answer, ClientError> {
        A::answered(self.ask(ask.into()).await?)
    }

    async fn ask(&self, request: Request) -> Result<Answer, ClientError> {
        let (order, answer) = prepare(request, self.request_deadline);
        self.orders.send(order).await.map_err(|_| self.closed())?;
        answer.await.unwrap_or_else(|_| Err(ClientError::Closed { reason: None, outcome: Outcome::UNKNOWN }))
    }

    fn prepare(&self, draft: Draft) -> (Order, Sending) {
        let Draft { target, content, reply_to, previous, priority } = draft;
        let send = Send { retry: Retry::first(), target, content, reply_to, previous, priority };
        let (order, answer) = prepare(send.into(), self.send_deadline);
        (order, Sending { answer })
    }

    /// The session is over, and what was asked was never queued.
    fn closed(&self) -> ClientError {
        ClientError::Closed { reason: self.ended.get().copied().flatten(), outcome: Outcome::NOT_DONE }
    }
}

type Answering = oneshot::Receiver<Result<Answer, ClientError>>;

fn prepare(request: Request, within: Duration) -> (Order, Answering) {
    let (reply, answer) = oneshot::channel();
    let command = crate::outstanding::Command { request, deadline: Instant::now() + within, reply };
    (Order::Request(command), answer)
}
