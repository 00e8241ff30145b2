//! The session engine as the connections see it, and the configuration as the actors see it.

use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::framing::Framing;
use convoke_protocol::request::changes::Retention;
use tokio::time::Instant;

use crate::actors::conversation::change::ChangePolicy;
use crate::actors::conversation::core::CoreLimits;
use crate::actors::conversation::group::GroupLimits;
use crate::actors::directory::core::{DeviceConflict, SessionPolicy};
use crate::actors::session::dispatch::{Services, SessionConnection, SessionRules};
use crate::actors::session::egress::{Egress, EgressLimits, SocketWriter};
use crate::config::{Config, sessions};
use crate::net::connection::{Engine, FrameHandler, PeerInfo};
use crate::net::listener::NetCounters;
use crate::storage::stats::StoreStats;
use crate::telemetry::door::DoorNumbers;
use crate::telemetry::store::{Distribution, StoreNumbers};

/// Makes a session's side for each connection.
pub(super) struct SessionEngine {
    services: Arc<Services>,
    limits: EgressLimits,
    login_bytes: usize,
    login_deadline: Duration,
}

impl SessionEngine {
    pub(super) fn new(services: Arc<Services>, config: &Config) -> Self {
        let limits = EgressLimits {
            max_bytes: config.limits.max_outbound_bytes,
            max_in_flight: config.limits.max_in_flight,
        };
        Self {
            services,
            limits,
            login_bytes: config.sessions.login_bytes,
            login_deadline: config.sessions.login_deadline_ms.duration(),
        }
    }
}

impl Engine for SessionEngine {
    type Handler = Handler;

    fn accept(&self, peer: PeerInfo, framing: Framing, writer: Box<dyn SocketWriter>) -> Handler {
        let egress = Arc::new(Egress::new(framing, self.limits, writer, self.now_ms()));
        let connection = SessionConnection::new(self.services.clone(), egress, peer.address);
        Handler {
            connection,
            login_bytes_left: self.login_bytes,
            login_deadline: Instant::now() + self.login_deadline,
        }
    }

    fn now_ms(&self) -> u64 {
        self.services.clock.monotonic_ms()
    }
}

/// One connection's handler.
pub(super) struct Handler {
    connection: SessionConnection,
    login_bytes_left: usize,
    login_deadline: Instant,
}

impl FrameHandler for Handler {
    fn egress(&self) -> &Arc<Egress> {
        self.connection.egress()
    }

    async fn on_frame(&mut self, frame: &[u8]) -> Result<(), ErrorCode> {
        if !self.connection.is_live() {
            // `max_frame_bytes` kept the frame within what is left.
            self.login_bytes_left = self.login_bytes_left.saturating_sub(frame.len());
        }
        self.connection.on_frame(frame).await
    }

    fn max_frame_bytes(&self) -> usize {
        if self.connection.is_live() { self.connection.max_frame_bytes() } else { self.login_bytes_left }
    }

    fn login_deadline(&self) -> Option<Instant> {
        (!self.connection.is_live()).then_some(self.login_deadline)
    }

    fn on_bad_input(&mut self, code: ErrorCode) {
        let before_login = !self.connection.is_live() && code == ErrorCode::FRAME_TOO_LARGE;
        let message = match code {
            ErrorCode::FRAME_TOO_LARGE if before_login => {
                "more bytes than a connection has before it logs in"
            }
            ErrorCode::FRAME_TOO_LARGE => "the frame is longer than allowed",
            ErrorCode::LOGIN_OVERDUE => "no login within the time that a connection has for it",
            _ => "these bytes are no frame",
        };
        self.connection.bad_input(code, message);
    }

    fn on_closed(&mut self, reason: ErrorCode) {
        self.connection.on_closed(reason);
    }
}

/// What sessions follow, from the configuration.
pub(super) fn session_rules(config: &Config) -> SessionRules {
    let sessions = &config.sessions;
    let device_conflict = match sessions.device_conflict {
        sessions::DeviceConflict::Replace => DeviceConflict::Replace,
        sessions::DeviceConflict::Refuse => DeviceConflict::Refuse,
    };
    let per_class = sessions.max_per_class.iter();
    SessionRules {
        limits: config.wire_limits(),
        heartbeat_ms: sessions.heartbeat_ms.as_u32(),
        policy: Arc::new(SessionPolicy {
            device_conflict,
            max_per_user: sessions.max_per_user as usize,
            max_per_class: per_class.map(|(class, limit)| (*class, *limit as usize)).collect(),
        }),
        send_rate_per_s: config.limits.send_rate_per_s,
        send_burst: config.limits.send_burst,
    }
}

/// What conversations are bound by, from the configuration.
pub(super) fn core_limits(config: &Config) -> CoreLimits {
    let Config { messages, groups, conversations: config, .. } = config;
    CoreLimits {
        changes: ChangePolicy {
            recall: messages.recall,
            recall_window_ms: messages.recall_window_ms.0,
            edit: messages.edit,
            edit_window_ms: messages.edit_window_ms.0,
            delete: messages.delete_for_all,
            recall_on_delete: messages.recall_on_delete,
            reactions: messages.reactions,
            push_recalls: messages.push_recalls,
            push_edits: messages.push_edits,
            push_deletes: messages.push_deletes,
            push_reactions: messages.push_reactions,
        },
        groups: GroupLimits { max_members: groups.max_members },
        max_pending: config.max_pending,
        max_pending_bytes: config.max_pending_bytes,
        max_batch: config.max_batch,
        max_batch_bytes: config.max_batch_bytes,
        answer_within: config.answer_within_ms.duration(),
        retry_pause: config.retry_pause_ms.duration(),
    }
}

/// For how long conversations without a rule of their own are kept, from the configuration.
pub(super) fn default_retention(config: &Config) -> Retention {
    let says = |bound: u64| (bound > 0).then_some(bound);
    Retention {
        max_age_ms: says(config.retention.max_age_ms),
        max_messages: says(config.retention.max_messages),
    }
}

/// What the store counts, as the metrics show it.
pub(super) fn store_numbers(stats: &StoreStats, poisoned: bool) -> StoreNumbers {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    StoreNumbers {
        commits: load(&stats.commits),
        rows: load(&stats.rows),
        bytes: load(&stats.bytes),
        cursors: load(&stats.cursors),
        asked_twice: load(&stats.asked_twice),
        refused: load(&stats.overloaded),
        failed: load(&stats.failed),
        queue_bytes: load(&stats.queue_bytes),
        poisoned,
        commit_micros: Distribution { buckets: stats.commit_micros.counts(), sum: stats.commit_micros.sum() },
        commit_appends: Distribution {
            buckets: stats.batch_appends.counts(),
            sum: stats.batch_appends.sum(),
        },
    }
}

/// What the listeners count, as the metrics show it.
pub(super) fn door_numbers(counters: &NetCounters) -> DoorNumbers {
    let seen = counters.snapshot();
    DoorNumbers {
        accepted: seen.accepted,
        refused_node: seen.refused_node,
        refused_address: seen.refused_address,
        accept_errors: seen.accept_errors,
        accept_pauses: seen.accept_pauses,
        failed_handshakes: seen.failed_handshakes,
    }
}
