//! The task behind a client: it connects, writes, reads, merges, and comes back after a loss.
//!
//! # Shutdown
//! The task ends when the server kicks the session, after a logout, when a login is refused for good, or when neither a
//! [`crate::Client`] nor the [`crate::Events`] are left. Whoever still waits is told so.

mod establish;
mod outbox;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::GoAway;
use convoke_protocol::frame::{Answer, Event, Incoming, Request};
use convoke_protocol::id::{ConversationId, Seq, UserId};
use convoke_protocol::message::{Message, MessageKind};
use convoke_protocol::request::messages::{PullRange, Send, Sent};
use convoke_protocol::request::session::{Heartbeat, Limits, Logout};
use convoke_protocol::request::sync::{Sync, SyncSince, Synced, SyncedSince};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::acks::Acks;
use crate::addresses::Addresses;
use crate::client::{ClientEvent, DisconnectReason};
use crate::config::ClientConfig;
use crate::connection::{Connection, ConnectionError, FrameReader, FrameWriter};
use crate::error::{ClientError, is_passing};
use crate::outstanding::{Answered, Command, Outstanding};
use crate::pulse::Pulse;
use crate::resume::{Ask, Resume};

pub(crate) use outbox::{CHANNEL, Had, Outbox};

/// In-flight places that the SDK keeps for its own requests: syncs, pulls, acks, heartbeats.
const OWN_REQUESTS: u32 = 8;

/// Nothing more is queued for writing while so many bytes wait.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// How long answers are awaited after a `GoAway`.
const LEAVING: Duration = Duration::from_secs(5);

/// How long a timer without a purpose sleeps.
const FAR: Duration = Duration::from_secs(3600);

/// What the handles ask of the driver.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all are requests, and the queue of them is short")]
pub(crate) enum Order {
    /// Something to ask the server.
    Request(Command),
    /// The application has a conversation up to here by itself.
    SkipTo(ConversationId, Seq),
}

/// Why the driver ends.
#[derive(Debug)]
enum End {
    Kicked { reason: ErrorCode, message: String },
    LoggedOut(Option<oneshot::Sender<Result<Answer, ClientError>>>),
    Abandoned,
    Failed(ClientError),
}

/// What the SDK itself asked on this connection.
#[derive(Debug)]
enum Own {
    Sync,
    Pull(Vec<PullRange>),
    Ack,
    Heartbeat,
    Logout(oneshot::Sender<Result<Answer, ClientError>>),
}

/// The state of one live connection.
struct Live {
    writer: FrameWriter,
    limits: Limits,
    user: UserId,
    pulse: Pulse,
    own: HashMap<u64, Own>,
    leaving: Option<(GoAway, Instant)>,
    /// The server does not know `sync_since`: it is older than this program, and is asked with `sync`.
    is_older: bool,
}

pub(crate) struct Driver {
    config: Arc<ClientConfig>,
    orders: mpsc::Receiver<Order>,
    orders_open: bool,
    outbox: Outbox,
    resume: Resume,
    acks: Acks,
    outstanding: Outstanding,
    addresses: Addresses,
    /// Whom `connect` answers, until the first session is live.
    first: Option<oneshot::Sender<Result<(), ClientError>>>,
    /// Asked for by a logout that is not yet written.
    logout: Option<oneshot::Sender<Result<Answer, ClientError>>>,
    ended: Arc<OnceLock<Option<ErrorCode>>>,
    /// The wait before the next attempt to connect, if the server named one.
    away: Option<Duration>,
}

impl Driver {
    pub(crate) fn new(
        config: ClientConfig,
        orders: mpsc::Receiver<Order>,
        outbox: Outbox,
        first: oneshot::Sender<Result<(), ClientError>>,
        ended: Arc<OnceLock<Option<ErrorCode>>>,
    ) -> Self {
        Self {
            orders,
            orders_open: true,
            outbox,
            resume: Resume::new(config.start.clone()),
            acks: Acks::default(),
            outstanding: Outstanding::default(),
            addresses: Addresses::new(config.addresses.clone()),
            first: Some(first),
            logout: None,
            ended,
            away: None,
            config: Arc::new(config),
        }
    }

    pub(crate) async fn run(mut self) {
        let end = loop {
            let (address, connection) = match self.establish().await {
                Ok(connected) => connected,
                Err(end) => break end,
            };
            self.addresses.worked(&address);
            let lost = match self.live(address, connection).await {
                Ok(lost) => lost,
                Err(end) => break end,
            };
            let now = Instant::now();
            self.resume.disconnected();
            self.outstanding.connection_lost(now);
            self.flush_deliveries(now);
            self.outbox.put(ClientEvent::Disconnected { reason: lost });
        };
        self.finish(end).await;
    }

    async fn finish(&mut self, end: End) {
        let mut logout = self.logout.take();
        let (reason, last) = match end {
            End::Kicked { reason, message } => (Some(reason), Some(ClientEvent::Kicked { reason, message })),
            End::LoggedOut(reply) => {
                logout = reply.or(logout);
                (Some(ErrorCode::LOGGED_OUT), None)
            }
            End::Abandoned => (None, None),
            End::Failed(error) => {
                if let Some(first) = self.first.take() {
                    // `connect` may have been dropped.
                    let _ = first.send(Err(error.clone()));
                }
                (None, Some(ClientEvent::Failed { error }))
            }
        };
        debug!(?reason, "the session is over");
        let _ = self.ended.set(reason);
        // Orders that come from here on are answered by the closed queue; those already in it here.
        self.orders.close();
        while let Ok(order) = self.orders.try_recv() {
            if let Order::Request(command) = order {
                self.outstanding.add(command, Instant::now());
            }
        }
        self.outstanding.close(reason);
        if let Some(reply) = logout {
            let _ = reply.send(Ok(Answer::LoggedOut(convoke_protocol::request::session::LoggedOut {})));
        }
        self.flush_deliveries(Instant::now());
        if let Some(event) = last {
            self.outbox.put_last(event);
        }
        self.outbox.drain().await;
    }

    /// Awaits something while there is no connection: orders are taken, deadlines kept, events handed over.
    async fn meanwhile<F: Future>(&mut self, what: F) -> Result<F::Output, End> {
        tokio::pin!(what);
        loop {
            if let Some(reply) = self.logout.take() {
                return Err(End::LoggedOut(Some(reply)));
            }
            let wake = self.outstanding.deadline();
            tokio::select! {
                output = &mut what => return Ok(output),
                step = self.step(wake) => step?,
            }
        }
    }

    /// What there is to do with or without a connection.
    ///
    /// # Cancel-safety
    /// Nothing is lost when the future is dropped.
    async fn step(&mut self, wake: Option<Instant>) -> Result<(), End> {
        let wake = wake.unwrap_or_else(|| Instant::now() + FAR);
        let takes = self.orders_open && self.outstanding.has_room();
        tokio::select! {
            order = self.orders.recv(), if takes => match order {
                Some(order) => self.order(order),
                None => self.orders_open = false,
            },
            () = self.outbox.hand_over(), if self.outbox.wants() => {}
            () = tokio::time::sleep_until(wake.into()) => self.outstanding.expire(Instant::now()),
        }
        if !self.orders_open && !self.outbox.is_open() {
            return Err(End::Abandoned);
        }
        Ok(())
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::SkipTo(conversation, seq) => self.resume.skip_to(&conversation, seq),
            Order::Request(Command { request: Request::Logout(_), reply, .. }) => self.logout = Some(reply),
            Order::Request(command) => self.outstanding.add(command, Instant::now()),
        }
    }

    /// Moves what the merge delivers to the application's queue, and tells the merge whether that has room.
    fn flush_deliveries(&mut self, now: Instant) {
        while let Some(delivery) = self.resume.next_delivery() {
            self.outbox.deliver(delivery);
        }
        self.resume.set_room(self.outbox.has_room());
        // A logout is the last chance to tell what was had.
        for (conversation, seq) in self.outbox.had(self.logout.is_some(), now) {
            self.acks.had(conversation, seq, now);
        }
    }

    async fn live(&mut self, address: String, connection: Connection) -> Result<DisconnectReason, End> {
        let Connection { mut reader, writer, welcome, logged_in } = connection;
        let now = Instant::now();
        let asked_for = Duration::from_millis(welcome.heartbeat_ms.max(1).into());
        let heartbeat = self.config.heartbeat.map_or(asked_for, |own| own.min(asked_for));
        let mut live = Live {
            writer,
            limits: welcome.limits,
            user: logged_in.user.clone(),
            pulse: Pulse::new(heartbeat, self.config.answer_timeout, now),
            own: HashMap::new(),
            leaving: None,
            is_older: false,
        };
        self.addresses.learn(&welcome.nodes);
        self.resume.connected(welcome.limits.max_ranges as usize, now);
        self.acks.connected(now);
        self.outbox.put(ClientEvent::Connected {
            user: logged_in.user,
            session: logged_in.session,
            node: welcome.node,
            address,
        });
        if let Some(first) = self.first.take() {
            // `connect` may have been dropped; then the handles are gone too, and `step` ends this.
            let _ = first.send(Ok(()));
        }
        loop {
            match self.turn(&mut live, &mut reader).await {
                Ok(None) => {}
                Ok(Some(lost)) => return Ok(lost),
                Err(end) => return Err(end),
            }
        }
    }

    /// Writes what is due, then waits for one thing to happen and takes it in.
    async fn turn(
        &mut self,
        live: &mut Live,
        reader: &mut FrameReader,
    ) -> Result<Option<DisconnectReason>, End> {
        let now = Instant::now();
        self.flush_deliveries(now);
        self.write_due(live, now);
        if live.pulse.dead_at().is_some_and(|at| at <= now) {
            return Ok(Some(DisconnectReason::Silent));
        }
        if let Some((go_away, until)) = &live.leaving
            && (self.outstanding.in_flight() == 0 || *until <= now)
        {
            self.sent_away(go_away);
            return Ok(Some(DisconnectReason::GoAway(go_away.reason)));
        }
        let wake = self.wake(live);
        let outcome = tokio::select! {
            incoming = reader.next() => match incoming {
                Ok(incoming) => self.incoming(live, reader, incoming)?,
                Err(error) => Err(error),
            },
            written = live.writer.write(), if live.writer.pending() => written,
            step = self.step(wake) => { step?; Ok(()) }
        };
        let Err(error) = outcome else { return Ok(None) };
        if let Some(reply) = live.own.drain().find_map(|(_, own)| match own {
            Own::Logout(reply) => Some(reply),
            _ => None,
        }) {
            return Err(End::LoggedOut(Some(reply)));
        }
        Ok(Some(match live.leaving.take() {
            Some((go_away, _)) => {
                self.sent_away(&go_away);
                DisconnectReason::GoAway(go_away.reason)
            }
            None => DisconnectReason::Lost(error),
        }))
    }

    fn wake(&self, live: &Live) -> Option<Instant> {
        let requests = if self.may_write(live) { self.outstanding.next_at() } else { None };
        [
            self.outstanding.deadline(),
            self.resume.next_wake(),
            self.acks.due(),
            self.outbox.check_at(),
            live.pulse.beat_at(self.outstanding.awaiting_since()),
            live.pulse.dead_at(),
            live.leaving.as_ref().map(|(_, until)| *until),
            requests,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether another request of the application may be written now.
    fn may_write(&self, live: &Live) -> bool {
        let places = live.limits.max_in_flight.saturating_sub(OWN_REQUESTS).max(1) as usize;
        live.leaving.is_none()
            && self.outstanding.in_flight() < places
            && live.writer.queued() < MAX_QUEUED_BYTES
    }

    fn write_due(&mut self, live: &mut Live, now: Instant) {
        while let Some(ask) = self.resume.next_request(now) {
            let (request, own) = match ask {
                Ask::Sync(ask) if live.is_older => {
                    let SyncSince { since: _, cursors, use_device_cursors, after } = ask;
                    (Request::Sync(Sync { cursors, use_device_cursors, after }), Own::Sync)
                }
                Ask::Sync(ask) => (Request::SyncSince(ask), Own::Sync),
                Ask::Pull(ranges) => (
                    Request::Pull(convoke_protocol::request::messages::Pull { ranges: ranges.clone() }),
                    Own::Pull(ranges),
                ),
            };
            live.ask(&request, own, now);
        }
        let max_cursors = live.limits.max_ranges.max(1) as usize;
        if let Some(ack) = self.acks.next(max_cursors, self.logout.is_some(), now) {
            live.ask(&ack.into(), Own::Ack, now);
        }
        while self.may_write(live)
            && let Some((order, request)) = self.outstanding.next(now)
        {
            if let Some(error) = too_large(&request, &live.limits) {
                self.outstanding.refuse(order, error);
                continue;
            }
            let id = live.writer.put(&request);
            live.pulse.sent(now);
            self.outstanding.written(order, id, now);
        }
        if let Some(reply) = self.logout.take() {
            live.ask(&Logout {}.into(), Own::Logout(reply), now);
        }
        if live.pulse.beat_at(self.outstanding.awaiting_since()).is_some_and(|at| at <= now) {
            live.ask(&Heartbeat {}.into(), Own::Heartbeat, now);
            live.pulse.asked(now);
        }
    }

    /// Takes in a frame, and all that were read with it.
    fn incoming(
        &mut self,
        live: &mut Live,
        reader: &mut FrameReader,
        first: Incoming,
    ) -> Result<Result<(), ConnectionError>, End> {
        let now = Instant::now();
        live.pulse.heard(now);
        let mut next = Some(first);
        while let Some(incoming) = next {
            match incoming {
                Incoming::Answer(id, answer) => self.answer(live, id, answer, now)?,
                Incoming::Event(event) => self.event(live, event, now)?,
                Incoming::Unknown(head) => debug!(?head, "a frame of an unknown type"),
            }
            self.flush_deliveries(now);
            next = match reader.take() {
                Ok(next) => next,
                Err(error) => return Ok(Err(error)),
            };
        }
        Ok(Ok(()))
    }

    fn answer(&mut self, live: &mut Live, id: u64, answer: Answer, now: Instant) -> Result<(), End> {
        let Some(own) = live.own.remove(&id) else {
            if let Some(Answered { request, result, reply }) = self.outstanding.answered(id, answer, now) {
                if let (Request::Send(send), Ok(Answer::Sent(sent))) = (request, &result) {
                    let message = self.own_message(live, send, sent);
                    self.resume.message(&sent.conversation, message, now);
                }
                // Who waited may have gone.
                let _ = reply.send(result);
            }
            return Ok(());
        };
        match (own, answer) {
            (Own::Sync, Answer::SyncedSince(synced)) => self.resume.synced(synced, now),
            (Own::Sync, Answer::Synced(Synced { conversations, pages, next })) => {
                let all = SyncedSince { token: None, all: true, conversations, pages, next };
                self.resume.synced(all, now);
            }
            (Own::Sync, ref answer) => {
                debug!(answer = answer.name(), "a sync failed");
                live.is_older |= error_of(answer).is_some_and(|error| error.code == ErrorCode::UNSUPPORTED);
                self.resume.sync_failed(error_of(answer), now);
            }
            (Own::Pull(ranges), Answer::Pulled(pulled)) => self.resume.pulled(&ranges, pulled, now),
            (Own::Pull(ranges), ref answer) => self.resume.pull_failed(&ranges, error_of(answer), now),
            (Own::Ack, Answer::Acked(_)) => self.acks.answered(),
            (Own::Ack, ref answer) => match error_of(answer) {
                // Repeating it would not help: a conversation is not ours any more, perhaps.
                Some(error) if !is_passing(error.code, error.retry_after_ms) => self.acks.answered(),
                _ => self.acks.failed(now),
            },
            (Own::Heartbeat, _) => {}
            (Own::Logout(reply), _) => return Err(End::LoggedOut(Some(reply))),
        }
        Ok(())
    }

    fn event(&mut self, live: &mut Live, event: Event, now: Instant) -> Result<(), End> {
        match event {
            Event::Push(push) => {
                self.acks.received(now);
                self.resume.message(&push.conversation, push.message, now);
            }
            Event::Lagged(lagged) => self.resume.lagged(&lagged.conversation, lagged.head, now),
            Event::GoAway(go_away) => live.leaving = Some((go_away, now + LEAVING)),
            Event::Kicked(kicked) => {
                return Err(End::Kicked { reason: kicked.reason, message: kicked.message });
            }
            Event::ReadMoved(moved) => self.outbox.put(ClientEvent::ReadMoved(moved)),
            Event::Receipt(receipt) => self.outbox.put(ClientEvent::Receipt(receipt)),
            Event::Signalled(signalled) => self.outbox.put(ClientEvent::Signalled(signalled)),
            Event::NodesChanged(changed) => self.addresses.learn(&changed.nodes),
            Event::Hid(hid) => self.outbox.put(ClientEvent::Hid(hid)),
            Event::ListChanged(changed) => self.outbox.put(ClientEvent::ListChanged(changed)),
            Event::JoinRequested(asked) => self.outbox.put(ClientEvent::JoinRequested(asked)),
            Event::JoinAnswered(answered) => self.outbox.put(ClientEvent::JoinAnswered(answered)),
        }
        Ok(())
    }

    /// An own send as every other reader sees it.
    fn own_message(&self, live: &Live, send: Send, sent: &Sent) -> Message {
        Message {
            seq: sent.seq,
            message_id: sent.message_id,
            sender: live.user.clone(),
            device: self.config.device.clone(),
            client_id: send.retry.client_id,
            time: sent.time,
            kind: MessageKind::USER,
            priority: send.priority,
            content: send.content,
            reply_to: send.reply_to,
            previous: send.previous,
            target: None,
            edited_at: None,
            recalled_at: None,
            deleted_at: None,
            reactions: Vec::new(),
        }
    }
}

impl Live {
    fn ask(&mut self, request: &Request, own: Own, now: Instant) {
        let id = self.writer.put(request);
        self.own.insert(id, own);
        self.pulse.sent(now);
    }
}

fn error_of(answer: &Answer) -> Option<&RequestError> {
    match answer {
        Answer::Error(error) => Some(error),
        _ => None,
    }
}

/// A frame above the server's bound would cost the connection, and with it every other request: it is not written.
fn too_large(request: &Request, limits: &Limits) -> Option<RequestError> {
    let content = match request {
        Request::Send(send) => &send.content,
        Request::SendAs(send) => &send.content,
        Request::Edit(edit) => &edit.content,
        _ => return None,
    };
    let (bytes, max) = (content.body.len(), limits.max_body_bytes as usize);
    (bytes > max).then(|| {
        RequestError::not_done(
            ErrorCode::BODY_TOO_LARGE,
            format!("the body has {bytes} bytes, more than {max}"),
        )
    })
}
