//! The canary: a message that a node of a cluster says to itself again and again, and that goes the whole way of one: to the
//! conversation's owner, wherever that is, into the store, and back as a push through the hub to a session of this node. A
//! node that does not hear it in time is not ready.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use convoke_protocol::codec;
use convoke_protocol::frame::{Codec, Event};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, UserId};
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::Retention;
use parking_lot::Mutex;

use crate::actors::conversation::core::SendCommand;
use crate::actors::session::dispatch::Services;
use crate::actors::session::egress::{Egress, EgressLimits, SocketWriter};
use crate::actors::session::{SessionHandle, SessionShared};
use crate::auth::Role;

/// How often it speaks.
const EVERY: Duration = Duration::from_secs(5);

/// After so long without hearing itself the node is not ready.
pub(super) const LATE: Duration = Duration::from_secs(20);

/// How many of its messages are kept.
const KEPT: u64 = 100;

/// What of its session's egress is waited for: next to nothing.
const LIMITS: EgressLimits = EgressLimits { max_bytes: 64 << 10, max_in_flight: 1 };

/// The length before a frame.
const LENGTH: usize = 4;

#[derive(Default)]
struct Heard {
    /// What it said last.
    said: Mutex<Option<ClientId>>,
    /// When it heard that, on the node's monotonic clock.
    at_ms: AtomicU64,
    /// Pushes that came.
    pushes: AtomicU64,
}

/// Whether the canary is heard. Cheap to clone.
#[derive(Clone)]
pub(super) struct Canary {
    heard: Arc<Heard>,
    services: Arc<Services>,
}

/// Takes what is written to the canary's session.
struct Ear {
    heard: Arc<Heard>,
    services: Arc<Services>,
    /// The beginning of a frame whose end has not come.
    rest: Mutex<Vec<u8>>,
}

impl SocketWriter for Ear {
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut rest = self.rest.lock();
        let before = rest.len();
        slices.iter().for_each(|slice| rest.extend_from_slice(slice));
        let taken = rest.len() - before;
        while let Some(length) = rest.first_chunk::<LENGTH>() {
            let end = LENGTH + u32::from_be_bytes(*length) as usize;
            if rest.len() < end {
                break;
            }
            self.hear(&rest[LENGTH..end]);
            rest.drain(..end);
        }
        Ok(taken)
    }
}

impl Ear {
    fn hear(&self, frame: &[u8]) {
        let read = codec::with_frame(Codec::Bincode, frame, |raw| {
            Event::decode(Codec::Bincode, raw.head.type_number, raw.body)
        });
        let Ok(Some(Event::Push(push))) = read else { return };
        self.heard.pushes.fetch_add(1, Ordering::Relaxed);
        if *self.heard.said.lock() == Some(push.message.client_id) {
            self.heard.at_ms.store(self.services.clock.monotonic_ms(), Ordering::Relaxed);
        }
    }
}

impl Canary {
    /// Begins to speak.
    ///
    /// # Errors
    /// Its session cannot be started.
    pub(super) async fn start(services: &Arc<Services>) -> anyhow::Result<Self> {
        let heard = Arc::new(Heard::default());
        heard.at_ms.store(services.clock.monotonic_ms(), Ordering::Relaxed);
        let canary = Self { heard: heard.clone(), services: services.clone() };
        let user = UserId::new(&format!("canary-of-{}", services.node))?;
        let device = DeviceId::new("canary")?;
        let ear = Ear { heard, services: services.clone(), rest: Mutex::default() };
        let egress = Egress::new(Framing::Tcp, LIMITS, Box::new(ear), services.clock.monotonic_ms());
        let session = Arc::new(SessionShared::of_node(services, user.clone(), device.clone(), egress));
        let actor = SessionHandle::start(
            session.clone(),
            services.directory.clone(),
            &services.sessions,
            &services.supervisor,
        );
        let actor = actor.await.context("the canary's session")?;
        let policy = services.rules.load().policy.clone();
        services.directory.register(&session, policy).await.context("the canary's session")?;
        let speaks = canary.clone();
        tokio::spawn(async move { speaks.speak(&session, actor, &device).await });
        Ok(canary)
    }

    async fn speak(&self, session: &Arc<SessionShared>, _actor: SessionHandle, device: &DeviceId) {
        let Self { heard, services } = self;
        let conversation = ConversationId::direct(&session.user, &session.user);
        let keep = Retention { max_age_ms: None, max_messages: Some(KEPT) };
        if let Err(error) = services.stores.retention.set_retention(&conversation, Some(keep)).await {
            tracing::debug!(%error, "the canary's messages are kept like others");
        }
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now_ms = services.clock.monotonic_ms();
            session.egress.heard(now_ms);
            // What it counts is what was delivered: never more.
            let _ = session.egress.acked(heard.pushes.load(Ordering::Relaxed), now_ms);
            let retry = Retry::first();
            *heard.said.lock() = Some(retry.client_id);
            let command = SendCommand {
                sender: session.user.clone(),
                role: Role::User,
                device: device.clone(),
                retry,
                kind: MessageKind::USER,
                priority: Priority::NORMAL,
                content: Content::text("still there"),
                reply_to: None,
                previous: None,
            };
            if let Err(error) =
                services.conversations.send_told(conversation.clone(), Box::new(command)).await
            {
                tracing::warn!(%error, "the canary is not heard");
            }
        }
    }

    /// How long ago it was heard.
    pub(super) fn age(&self) -> Duration {
        let at_ms = self.heard.at_ms.load(Ordering::Relaxed);
        Duration::from_millis(self.services.clock.monotonic_ms().saturating_sub(at_ms))
    }
}
