//! One session: a (user, device) on one connection.
//!
//! The connection's task (in `net`) reads frames and hands them to a [`dispatch::SessionConnection`], which decodes and
//! dispatches them; answers and pushes leave through the session's [`egress::Egress`], written by whoever has them. The
//! `SessionActor` is what others talk to: it is told to kick or to drain, and its end is the session's end.
//!
//! # Supervision
//! Linked to the node's actor. Whether it stops or panics, its guard takes the session out of the directory and the
//! table and closes the connection.

mod acks;
mod acts;
pub mod dispatch;
pub mod egress;
mod groups;
mod reading;
mod service;
mod signals;
mod state;

use std::sync::{Arc, OnceLock};

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::{GoAway, Kicked};
use convoke_protocol::frame::Event;
use convoke_protocol::id::{DeviceId, SessionId, Timestamp, UserId};
use convoke_protocol::request::session::DeviceClass;
use dashmap::DashMap;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};

use self::dispatch::Services;
use self::egress::{Delivery, Egress};
use crate::actors::directory::Directory;
use crate::telemetry::line_limit::LineLimit;
use crate::telemetry::metrics::Metrics;

/// Lines that the failed requests of one session may take in a second.
const FAILURES_LOGGED_PER_S: u32 = 10;

/// What a node knows of a live session.
pub struct SessionShared {
    /// Its id.
    pub id: SessionId,
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
    /// Its outgoing half.
    pub egress: Arc<Egress>,
    metrics: Arc<Metrics>,
    failures: LineLimit,
    actor: OnceLock<ActorRef<Message>>,
}

impl std::fmt::Debug for SessionShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "session {} of {}", self.id, self.user)
    }
}

impl SessionShared {
    /// A session of the node itself.
    pub(crate) fn of_node(services: &Services, user: UserId, device: DeviceId, egress: Egress) -> Self {
        Self {
            id: SessionId::generate(),
            user,
            device,
            device_class: DeviceClass::DESKTOP,
            app: "the node itself".to_owned(),
            since: services.clock.wall(),
            egress: Arc::new(egress),
            metrics: services.metrics.clone(),
            failures: LineLimit::per_second(FAILURES_LOGGED_PER_S),
            actor: OnceLock::new(),
        }
    }

    /// Closes the session with a reason; the client is told and does not come back by itself.
    pub fn kick(&self, reason: ErrorCode, message: &str) {
        self.tell(Message::Kick(reason, message.to_owned()));
    }

    /// Asks the client to go elsewhere and closes the session.
    pub fn go_away(&self, go_away: GoAway) {
        self.tell(Message::GoAway(go_away));
    }

    /// Makes its actor panic (tests of supervision).
    pub fn inject_panic(&self) {
        self.tell(Message::InjectPanic);
    }

    /// Bytes of memory it holds beside its queue, about: itself and its names.
    pub fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.user.as_str().len() + self.device.as_str().len() + self.app.capacity()
    }

    fn tell(&self, message: Message) {
        if let Some(actor) = self.actor.get() {
            // An actor that is gone has closed the connection already.
            let _ = actor.cast(message);
        }
    }

    /// Tells the client something that it can do without: left out, and counted, while much waits for its socket.
    pub fn tell_if_room(&self, event: &Event) {
        if !self.egress.send_event_if_room(event) {
            self.metrics.events_dropped.inc();
        }
    }

    /// Counts what became of a delivery.
    pub fn count_delivery(&self, delivery: Delivery, pushes: u64) {
        self.metrics.delivery(delivery, pushes);
    }

    /// Counts that the socket is not read until an answer leaves.
    pub fn count_paused_read(&self) {
        self.metrics.reads_paused.inc();
    }

    /// One line for a request that failed: ids, never bodies. Of a session that floods only some.
    pub fn log_failed_request(&self, request_id: u64, error: &RequestError) {
        self.metrics.request_failed(error.code);
        let Some(more) = self.failures.take(self.egress.heard_at_ms()).ending() else { return };
        tracing::info!(
            target: "convoke::request",
            session = %self.id, user = %self.user, request_id, code = %error.code, outcome = %error.outcome,
            "request failed{more}"
        );
    }
}

/// The live sessions of this node. Cheap to clone.
#[derive(Clone, Default)]
pub struct SessionTable(Arc<DashMap<SessionId, Arc<SessionShared>>>);

impl SessionTable {
    /// The session with this id, if it is live here.
    pub fn get(&self, id: SessionId) -> Option<Arc<SessionShared>> {
        self.0.get(&id).map(|session| session.clone())
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<SessionShared>> {
        self.0.iter().map(|entry| entry.value().clone()).collect()
    }

    /// Calls `visit` with each, without holding them.
    pub fn for_each(&self, mut visit: impl FnMut(&Arc<SessionShared>)) {
        self.0.iter().for_each(|entry| visit(entry.value()));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

enum Message {
    Kick(ErrorCode, String),
    GoAway(GoAway),
    InjectPanic,
}

/// Ends the session when it is dropped, also by a panic.
struct Guard {
    session: Arc<SessionShared>,
    directory: Directory,
    table: SessionTable,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.table.0.remove(&self.session.id);
        self.directory.unregister(&self.session);
        // Closed already, unless the actor crashed.
        self.session.egress.close(ErrorCode::INTERNAL, None);
    }
}

struct SessionActor;

impl Actor for SessionActor {
    type Msg = Message;
    type State = Guard;
    type Arguments = Guard;

    async fn pre_start(&self, _: ActorRef<Message>, guard: Guard) -> Result<Guard, ActorProcessingErr> {
        Ok(guard)
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        guard: &mut Guard,
    ) -> Result<(), ActorProcessingErr> {
        let egress = &guard.session.egress;
        match message {
            Message::Kick(reason, message) => {
                egress.close(reason, Some(&Event::Kicked(Kicked { reason, message })));
            }
            Message::GoAway(go_away) => egress.close(go_away.reason, Some(&Event::GoAway(go_away))),
            Message::InjectPanic => panic!("injected for a test"),
        }
        Ok(())
    }
}

/// The session's actor as its connection holds it.
pub(crate) struct SessionHandle(ActorRef<Message>);

impl SessionHandle {
    /// Starts the actor of a session that the directory has admitted, and lists it in the table.
    pub(crate) async fn start(
        session: Arc<SessionShared>,
        directory: Directory,
        table: &SessionTable,
        supervisor: &ActorCell,
    ) -> Result<Self, ractor::SpawnErr> {
        let guard = Guard { session: session.clone(), directory, table: table.clone() };
        let (actor, _) = Actor::spawn_linked(None, SessionActor, guard, supervisor.clone()).await?;
        session.actor.get_or_init(|| actor.clone());
        table.0.insert(session.id, session);
        Ok(Self(actor))
    }

    fn stop(&self) {
        self.0.stop(None);
    }
}
