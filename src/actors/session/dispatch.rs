//! Requests: decoded, checked against the state of the connection, and handed to whoever answers them.
//!
//! The same for every transport: `net` knows how bytes become frames, this file what frames mean.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use convoke_protocol::PROTOCOL_VERSION;
use convoke_protocol::codec;
use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::NodeAddress;
use convoke_protocol::frame::{Answer, Request};
use convoke_protocol::id::{ConversationId, SessionId, UserId};
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::messages::Send;
use convoke_protocol::request::session::{
    CloseSession, HeartbeatAnswer, Hello, Limits, LoggedIn, LoggedOut, Login, SessionClosed, SessionInfo,
    Sessions, Welcome,
};
use ractor::ActorCell;

use super::egress::Egress;
use super::reading::Reader;
use super::signals;
use super::state::{Live, RateLimit, SessionState};
use super::{FAILURES_LOGGED_PER_S, SessionHandle, SessionShared, SessionTable};
use crate::actors::conversation::core::SendCommand;
use crate::actors::directory::Directory;
use crate::actors::directory::core::SessionPolicy;
use crate::actors::hub::Hub;
use crate::actors::peer::routed::RoutedConversations;
use crate::actors::peer::{Seat, SessionEntry};
use crate::actors::reply::Reply;
use crate::auth::{Role, Verifier};
use crate::clock::Clock;
use crate::hooks::{self, Hooks};
use crate::storage::Stores;
use crate::telemetry::audit::Audit;
use crate::telemetry::line_limit::LineLimit;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;

/// The longest text in a `Hello`, in bytes.
const MAX_HELLO_TEXT: usize = 128;

/// The most features in a `Hello`.
const MAX_FEATURES: usize = 32;

/// The longest token, in bytes.
const MAX_TOKEN_BYTES: usize = 3_000;

/// Requests of a session that are refused as above a rate without more ado, in a second.
const REFUSALS_PER_S: u32 = 200;

/// For so long a session is not read after each further one.
const FLOOD_PAUSE: Duration = Duration::from_millis(10);

/// What of a session's rules an operator may change while the node runs.
#[derive(Debug, Clone)]
pub struct SessionRules {
    /// Told to clients in `Welcome`.
    pub limits: Limits,
    /// Told to clients in `Welcome`; three times as long without a word ends a session.
    pub heartbeat_ms: u32,
    /// How many sessions, and what a device's second login does.
    pub policy: Arc<SessionPolicy>,
    /// Sends per second and session; 0 is no limit.
    pub send_rate_per_s: u32,
    /// Sends at once before the rate counts.
    pub send_burst: u32,
}

/// What sessions need of their node.
pub struct Services {
    /// The node's id.
    pub node: String,
    /// Where clients may connect.
    pub nodes: ArcSwap<Vec<NodeAddress>>,
    /// What may change while the node runs.
    pub rules: ArcSwap<SessionRules>,
    /// Checks tokens.
    pub verifier: ArcSwap<Verifier>,
    /// Who is online.
    pub directory: Directory,
    /// The live sessions of this node.
    pub sessions: SessionTable,
    /// Who listens to what.
    pub hub: Hub,
    /// Who numbers messages.
    pub conversations: RoutedConversations,
    /// What is kept.
    pub stores: Stores,
    /// The application's own rules.
    pub hooks: Arc<dyn Hooks>,
    /// The clocks.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What services and operators did.
    pub audit: Audit,
    /// Where messages are traced to.
    pub traces: Traces,
    /// Bounds the log's lines about logins that are refused.
    pub refused_logins: LineLimit,
    /// Whom the sessions' actors are linked to.
    pub supervisor: ActorCell,
}

/// The session engine's side of one connection.
pub struct SessionConnection {
    services: Arc<Services>,
    egress: Arc<Egress>,
    peer: SocketAddr,
    state: SessionState,
}

pub(super) fn not_done(code: ErrorCode, message: impl Into<String>) -> RequestError {
    RequestError::not_done(code, message)
}

impl SessionConnection {
    /// A connection that was just accepted. `peer` is for the log.
    pub fn new(services: Arc<Services>, egress: Arc<Egress>, peer: SocketAddr) -> Self {
        services.metrics.connection_opened(egress.framing());
        Self { services, egress, peer, state: SessionState::Greeting }
    }

    /// The outgoing half.
    pub fn egress(&self) -> &Arc<Egress> {
        &self.egress
    }

    /// Whether the session is live: the bounds of the time before login do not count any more.
    pub fn is_live(&self) -> bool {
        matches!(self.state, SessionState::Live(_))
    }

    /// The largest frame that is read once the session is live.
    pub fn max_frame_bytes(&self) -> usize {
        self.services.rules.load().limits.max_frame_bytes as usize
    }

    fn answer(&self, request_id: u64, answer: impl Into<Answer>) {
        self.egress.queue_answer(request_id, &answer.into());
    }

    /// Takes one frame.
    ///
    /// # Errors
    /// The connection is to be closed for this reason; what is to be said is queued.
    pub async fn on_frame(&mut self, frame: &[u8]) -> Result<(), ErrorCode> {
        self.egress.heard(self.services.clock.monotonic_ms());
        let codec = self.egress.framing().codec();
        let read = codec::with_frame(codec, frame, |raw| {
            Ok((raw.head, Request::decode(codec, raw.head.type_number, raw.body)))
        });
        let (head, request) = match read {
            Ok((head, request)) if head.request_id > 0 => (head, request),
            Ok(_) => return Err(self.bad_input(ErrorCode::MALFORMED_FRAME, "request ids begin at 1")),
            Err(error) => return Err(self.bad_input(ErrorCode::MALFORMED_FRAME, &error.to_string())),
        };
        let id = head.request_id;
        let request = match request {
            Ok(Some(request)) => request,
            Ok(None) => {
                let text = format!("there is no request of type {}", head.type_number);
                return self.refuse(id, not_done(ErrorCode::UNSUPPORTED, text));
            }
            Err(error) => {
                return self.refuse(id, not_done(ErrorCode::INVALID_REQUEST, error.to_string()));
            }
        };
        match (&mut self.state, request) {
            (SessionState::Live(_), request) => self.live(id, request).await,
            (SessionState::Greeting, Request::Hello(hello)) => self.hello(id, &hello),
            (SessionState::Authenticating { .. }, Request::Login(login)) => {
                Box::pin(self.login(id, login)).await
            }
            (_, other) => {
                let text = format!("{} does not fit the state of the connection", other.name());
                let _ = self.refuse(id, not_done(ErrorCode::OUT_OF_ORDER, text));
                Err(ErrorCode::OUT_OF_ORDER)
            }
        }
    }

    /// Answers with an error; before login that ends the connection.
    fn refuse(&mut self, id: u64, error: RequestError) -> Result<(), ErrorCode> {
        let code = error.code;
        self.services.metrics.request_failed(code);
        self.answer(id, error);
        if self.is_live() { Ok(()) } else { Err(code) }
    }

    /// Tells the client what is wrong with its bytes; the connection then closes.
    pub fn bad_input(&mut self, code: ErrorCode, message: &str) -> ErrorCode {
        self.services.metrics.request_failed(code);
        self.answer(0, not_done(code, message));
        code
    }

    fn hello(&mut self, id: u64, hello: &Hello) -> Result<(), ErrorCode> {
        let texts = [&hello.app, &hello.version, &hello.os].into_iter().chain(&hello.features);
        if texts.into_iter().any(|text| text.len() > MAX_HELLO_TEXT) || hello.features.len() > MAX_FEATURES {
            return self.refuse(id, not_done(ErrorCode::INVALID_REQUEST, "a text of Hello is too long"));
        }
        if hello.protocol != PROTOCOL_VERSION {
            let text = format!("this server speaks version {PROTOCOL_VERSION}, not {}", hello.protocol);
            return self.refuse(id, not_done(ErrorCode::UNSUPPORTED_VERSION, text));
        }
        let services = &self.services;
        let rules = services.rules.load();
        self.answer(
            id,
            Welcome {
                protocol: PROTOCOL_VERSION,
                version: env!("CARGO_PKG_VERSION").into(),
                node: services.node.clone(),
                features: Vec::new(),
                heartbeat_ms: rules.heartbeat_ms,
                limits: rules.limits,
                server_time: services.clock.wall(),
                nodes: services.nodes.load().to_vec(),
            },
        );
        self.state = SessionState::Authenticating { app: format!("{} {}", hello.app, hello.version) };
        Ok(())
    }

    async fn login(&mut self, id: u64, login: Login) -> Result<(), ErrorCode> {
        match self.admit(login).await {
            Ok((live, logged_in)) => {
                self.services.metrics.login(None);
                self.state = SessionState::Live(live);
                self.answer(id, logged_in);
                Ok(())
            }
            Err(error) => {
                self.services.metrics.login(Some(error.code));
                let line = self.services.refused_logins.take(self.services.clock.monotonic_ms());
                if let Some(more) = line.ending() {
                    tracing::info!(peer = %self.peer, code = %error.code, "login refused{more}");
                }
                self.state = SessionState::Over;
                self.refuse(id, error)
            }
        }
    }

    async fn admit(&mut self, login: Login) -> Result<(Live, LoggedIn), RequestError> {
        let services = &self.services;
        if login.token.len() > MAX_TOKEN_BYTES {
            return Err(not_done(ErrorCode::BAD_TOKEN, "the token is too long"));
        }
        let claims = services.verifier.load().verify(&login.token, services.clock.wall())?;
        let app = match std::mem::replace(&mut self.state, SessionState::Over) {
            SessionState::Authenticating { app } => app,
            _ => String::new(),
        };
        let shared = Arc::new(SessionShared {
            id: SessionId::generate(),
            user: claims.user.clone(),
            device: login.device,
            device_class: login.device_class,
            app,
            since: services.clock.wall(),
            egress: self.egress.clone(),
            metrics: services.metrics.clone(),
            failures: LineLimit::per_second(FAILURES_LOGGED_PER_S),
            actor: std::sync::OnceLock::new(),
        });
        let rules = services.rules.load_full();
        // In the table before the directory tells anyone of it: a hub that is told finds it.
        let actor = SessionHandle::start(
            shared.clone(),
            services.directory.clone(),
            &services.sessions,
            &services.supervisor,
        )
        .await
        .map_err(|error| {
            tracing::error!(%error, "a session cannot be started");
            not_done(ErrorCode::INTERNAL, "the session cannot be started")
        })?;
        if let Err(error) = services.directory.register(&shared, rules.policy.clone()).await {
            actor.stop();
            return Err(error);
        }
        let logged_in = LoggedIn { user: claims.user, session: shared.id, token_expires: claims.expires };
        Ok((Live::new(shared, actor, claims.role), logged_in))
    }

    async fn live(&mut self, id: u64, request: Request) -> Result<(), ErrorCode> {
        let SessionState::Live(live) = &mut self.state else { return Ok(()) };
        let services = &self.services;
        services.metrics.request(request.type_number());
        if makes_an_entry(&request)
            && let Err(error) = take_rate(services, &mut live.rate)
        {
            self.refuse_request(id, error).await;
            return Ok(());
        }
        if matches!(request, Request::Sync(_) | Request::SyncSince(_)) {
            // It may go on behind what was acknowledged.
            live.acks.settled().await;
        }
        let reader = Reader { services, session: &live.shared, role: live.role };
        let answer: Result<Answer, RequestError> = match request {
            Request::Send(send) => match self.send(id, send).await {
                Ok(()) => return Ok(()),
                Err(error) => Err(error),
            },
            Request::Ack(ack) => match live.acks.take(services, &live.shared, id, ack).await {
                Ok(()) => return Ok(()),
                Err(error) => Err(error),
            },
            Request::Heartbeat(_) => {
                Ok(Answer::HeartbeatAnswer(HeartbeatAnswer { server_time: services.clock.wall() }))
            }
            Request::Pull(pull) => Box::pin(reader.pull(pull)).await.map(Answer::Pulled),
            Request::History(history) => Box::pin(reader.history(history)).await.map(Answer::HistoryPage),
            Request::Sync(sync) => Box::pin(reader.sync(sync)).await.map(Answer::Synced),
            Request::SyncSince(ask) => Box::pin(reader.sync_since(ask)).await.map(Answer::SyncedSince),
            Request::Read(read) => Box::pin(reader.read(read)).await.map(Answer::ReadDone),
            Request::MarkAllRead(all) => Box::pin(reader.mark_all_read(all)).await.map(Answer::AllRead),
            Request::ReadMarks(ask) => Box::pin(reader.read_marks(ask)).await.map(Answer::ReadMarksPage),
            Request::Signal(signal) => {
                let signal = signals::signal(&reader, &mut live.signals, signal);
                Box::pin(signal).await.map(Answer::SignalTaken)
            }
            Request::Conversations(ask) => {
                Box::pin(reader.conversations(ask)).await.map(Answer::ConversationList)
            }
            Request::SetConversation(set) => {
                Box::pin(reader.set_conversation(set)).await.map(Answer::ConversationSet)
            }
            Request::CreateGroup(ask) => boxed(reader.create_group(ask)).await.map(Answer::GroupCreated),
            Request::GetGroup(ask) => boxed(reader.get_group(ask)).await.map(Answer::GroupState),
            Request::UpdateGroup(ask) => boxed(reader.update_group(ask)).await.map(Answer::GroupUpdated),
            Request::AddMembers(ask) => boxed(reader.add_members(ask)).await.map(Answer::MembersAdded),
            Request::RemoveMembers(ask) => {
                boxed(reader.remove_members(ask)).await.map(Answer::MembersRemoved)
            }
            Request::LeaveGroup(ask) => boxed(reader.leave_group(ask)).await.map(Answer::GroupLeft),
            Request::SetRole(ask) => boxed(reader.set_role(ask)).await.map(Answer::RoleSet),
            Request::TransferGroup(ask) => {
                boxed(reader.transfer_group(ask)).await.map(Answer::GroupTransferred)
            }
            Request::Mute(ask) => boxed(reader.mute(ask)).await.map(Answer::Muted),
            Request::JoinGroup(ask) => boxed(reader.join_group(ask)).await.map(Answer::GroupJoined),
            Request::JoinRequests(ask) => {
                boxed(reader.join_requests(ask)).await.map(Answer::JoinRequestsPage)
            }
            Request::DecideJoin(ask) => boxed(reader.decide_join(ask)).await.map(Answer::JoinDecided),
            Request::DisbandGroup(ask) => boxed(reader.disband_group(ask)).await.map(Answer::GroupDisbanded),
            Request::GroupMembers(ask) => {
                boxed(reader.group_members(ask)).await.map(Answer::GroupMembersPage)
            }
            Request::SetRetention(ask) => boxed(reader.set_retention(ask)).await.map(Answer::RetentionSet),
            Request::Recall(ask) => boxed(reader.recall(ask)).await.map(Answer::Recalled),
            Request::Edit(ask) => boxed(reader.edit(ask)).await.map(Answer::Edited),
            Request::Delete(ask) => boxed(reader.delete(ask)).await.map(Answer::Deleted),
            Request::React(ask) => boxed(reader.react(ask)).await.map(Answer::Reacted),
            Request::Hide(ask) => boxed(reader.hide(ask)).await.map(Answer::Hidden),
            Request::Reactions(ask) => boxed(reader.reactions(ask)).await.map(Answer::ReactionsPage),
            Request::SendAs(ask) => boxed(reader.send_as(ask)).await.map(Answer::SentAs),
            Request::ListSessions(_) => list_sessions(services, &live.shared).await.map(Answer::Sessions),
            Request::CloseSession(close) => {
                close_session(services, &live.shared.user, &close).await.map(Answer::SessionClosed)
            }
            Request::Logout(_) => {
                self.answer(id, LoggedOut {});
                return Err(ErrorCode::LOGGED_OUT);
            }
            Request::Hello(_) | Request::Login(_) => {
                let error = not_done(ErrorCode::OUT_OF_ORDER, "the session is live already");
                self.answer(id, error);
                return Err(ErrorCode::OUT_OF_ORDER);
            }
        };
        match answer {
            Ok(answer) => self.egress.queue_answer(id, &answer),
            Err(error) => self.refuse_request(id, error).await,
        }
        Ok(())
    }

    /// Answers with an error. A client that goes on beyond its rates although it is refused is not read for a moment: what
    /// it sends waits in its own socket, and costs the node nothing.
    async fn refuse_request(&mut self, id: u64, error: RequestError) {
        let code = error.code;
        let SessionState::Live(live) = &mut self.state else { return };
        live.shared.log_failed_request(id, &error);
        self.egress.queue_answer(id, &Answer::Error(error));
        let now = self.services.clock.now().monotonic;
        if code == ErrorCode::RATE_LIMITED && live.refusals.take(REFUSALS_PER_S, REFUSALS_PER_S, now).is_err()
        {
            self.egress.flush();
            live.shared.count_paused_read();
            tokio::time::sleep(FLOOD_PAUSE).await;
        }
    }

    async fn send(&mut self, id: u64, send: Send) -> Result<(), RequestError> {
        let SessionState::Live(live) = &mut self.state else { return Ok(()) };
        let services = &self.services;
        let is_service = live.role == Role::Service;
        if (send.priority == Priority::SYSTEM && !is_service) || send.priority.name().is_none() {
            return Err(not_done(ErrorCode::NOT_PERMITTED, "users send with priority high, normal or low"));
        }
        let user = &live.shared.user;
        let conversation = send.target.conversation(user);
        let content = checked_body(services, user, &conversation, send.content)?;
        let command = Box::new(SendCommand {
            sender: user.clone(),
            role: Role::User,
            device: live.shared.device.clone(),
            retry: send.retry,
            kind: MessageKind::USER,
            priority: send.priority,
            content,
            reply_to: send.reply_to,
            previous: send.previous,
        });
        let trace = services.traces.begin(user, live.shared.id);
        let reply = Reply::new(live.shared.clone(), id).traced(trace);
        services.conversations.send(conversation, command, reply).await;
        Ok(())
    }

    /// The connection is over.
    pub fn on_closed(&mut self, reason: ErrorCode) {
        let before = std::mem::replace(&mut self.state, SessionState::Over);
        self.services.metrics.connection_closed(self.egress.framing(), reason);
        match before {
            SessionState::Live(live) => {
                let session = &live.shared;
                tracing::info!(
                    target: "convoke::session",
                    session = %session.id, user = %session.user, device = %session.device,
                    peer = %self.peer, reason = %reason,
                    "session closed"
                );
                live.actor.stop();
            }
            _ => {
                tracing::debug!(target: "convoke::session", peer = %self.peer, reason = %reason, "connection closed");
            }
        }
    }
}

/// Whether a request, if it is carried out, is a numbered entry: such requests share one rate.
fn makes_an_entry(request: &Request) -> bool {
    matches!(
        request,
        Request::Send(_)
            | Request::SendAs(_)
            | Request::Recall(_)
            | Request::Edit(_)
            | Request::Delete(_)
            | Request::React(_)
            | Request::CreateGroup(_)
            | Request::UpdateGroup(_)
            | Request::AddMembers(_)
            | Request::RemoveMembers(_)
            | Request::LeaveGroup(_)
            | Request::SetRole(_)
            | Request::TransferGroup(_)
            | Request::Mute(_)
            | Request::JoinGroup(_)
            | Request::DecideJoin(_)
            | Request::DisbandGroup(_)
    )
}

fn take_rate(services: &Services, rate: &mut RateLimit) -> Result<(), RequestError> {
    let rules = services.rules.load();
    let now = services.clock.now().monotonic;
    rate.take(rules.send_rate_per_s, rules.send_burst, now).map_err(|wait_ms| {
        not_done(ErrorCode::RATE_LIMITED, "more sends per second than allowed").retry_after(wait_ms)
    })
}

/// Requests are large and most of a session's life is spent in none: each has its room only while it runs.
fn boxed<F: Future>(request: F) -> std::pin::Pin<Box<F>> {
    Box::pin(request)
}

/// A body that may be stored: within its bound, and as the application's own rules have it.
pub(super) fn checked_body(
    services: &Services,
    sender: &UserId,
    conversation: &ConversationId,
    content: Content,
) -> Result<Content, RequestError> {
    let max = services.rules.load().limits.max_body_bytes as usize;
    let check = |content: Content| {
        let bytes = content.body.len();
        if bytes > max {
            let text = format!("the body has {bytes} bytes, more than {max}");
            return Err(not_done(ErrorCode::BODY_TOO_LARGE, text));
        }
        Ok(content)
    };
    let admitted = hooks::admit(&*services.hooks, sender, conversation, check(content)?);
    // What stands in its place has the same bound.
    check(admitted.map_err(|why| not_done(ErrorCode::REFUSED, why))?)
}

async fn list_sessions(services: &Services, asking: &SessionShared) -> Result<Sessions, RequestError> {
    let sessions = services.directory.sessions(&asking.user).await?;
    let info = |(_, entry): (Seat, SessionEntry)| SessionInfo {
        session: entry.session,
        device: entry.device,
        device_class: entry.device_class,
        app: entry.app,
        node: entry.node,
        since: entry.since,
        current: entry.session == asking.id,
    };
    Ok(Sessions { sessions: sessions.into_iter().map(info).collect() })
}

async fn close_session(
    services: &Services,
    user: &UserId,
    close: &CloseSession,
) -> Result<SessionClosed, RequestError> {
    let sessions = services.directory.sessions(user).await?;
    if let Some((seat, _)) = sessions.into_iter().find(|(seat, _)| seat.session == close.session) {
        let message = "closed from another session of the user";
        services.directory.close(seat, &services.sessions, ErrorCode::CLOSED_BY_USER, message);
    }
    Ok(SessionClosed {})
}
