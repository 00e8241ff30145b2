//! Metrics, all of them made at the start: a hot path holds a handle and adds to an atomic, and looks nothing up.
//!
//! Names begin with `convoke_`, carry their unit, and stand in `docs/operations.md`, which a test compares.

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::frame::Request;
use convoke_protocol::framing::Framing;
use prometheus_client::encoding::text;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::cluster::{ClusterState, ClusterTimes};
use super::door::DoorNumbers;
use super::process::ProcessCollector;
use super::redis::RedisState;
use super::source::Source;
use super::store::StoreNumbers;
use crate::actors::session::egress::Delivery;
use crate::operator::Memory;

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Label = [(&'static str, &'static str); 1];

/// One metric per value of a label, each made beforehand and found by a small number.
#[derive(Debug, Clone)]
pub struct PerValue<M>(Vec<M>);

impl<M: Clone + Default + Metric + TypedMetric> PerValue<M> {
    fn register(
        registry: &mut Registry,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let family = Family::<Label, M>::default();
        let metrics = values.into_iter().map(|value| family.get_or_create_owned(&[(label, value)])).collect();
        registry.register(name, help, family);
        Self(metrics)
    }
}

/// One counter per [`ErrorCode`]; codes that are not known share one.
#[derive(Debug, Clone)]
pub struct PerCode {
    counters: PerValue<Counter>,
    /// Code number → place in `counters`.
    places: [u8; PLACES],
}

/// Code numbers below this have a place of their own.
const PLACES: usize = 256;

/// The label's value for a code that is not known.
const UNKNOWN_CODE: &str = "unknown_code";

impl PerCode {
    fn register(
        registry: &mut Registry,
        name: &'static str,
        help: &'static str,
        label: &'static str,
    ) -> Self {
        let mut places = [0; PLACES];
        for (place, code) in (1..).zip(ErrorCode::ALL) {
            if let Some(slot) = places.get_mut(usize::from(code.0)) {
                *slot = place;
            }
        }
        let names = std::iter::once(UNKNOWN_CODE).chain(ErrorCode::ALL.iter().map(|code| code.name()));
        Self { counters: PerValue::register(registry, name, help, label, names), places }
    }

    /// The counter of a code.
    pub fn of(&self, code: ErrorCode) -> &Counter {
        &self.counters.0[usize::from(self.places.get(usize::from(code.0)).copied().unwrap_or(0))]
    }
}

/// One metric per [`Framing`].
#[derive(Debug, Clone)]
pub struct PerFraming<M>(PerValue<M>);

impl<M> PerFraming<M> {
    /// The metric of a framing.
    pub fn of(&self, framing: Framing) -> &M {
        &self.0.0[framing.index()]
    }
}

/// One counter per type of request.
#[derive(Debug, Clone)]
pub struct PerRequest(PerValue<Counter>);

impl PerRequest {
    /// The counter of a type number; those that are not known share one.
    pub fn of(&self, type_number: u16) -> &Counter {
        let place = Request::TYPES.iter().position(|(number, _)| *number == type_number);
        &self.0.0[place.unwrap_or(Request::TYPES.len())]
    }
}

/// The values of a label, in the order of their variants.
trait Labelled {
    const NAMES: &'static [&'static str];
}

fn labelled<L: Labelled, M: Clone + Default + Metric + TypedMetric>(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    label: &'static str,
) -> PerValue<M> {
    PerValue::register(registry, name, help, label, L::NAMES.iter().copied())
}

macro_rules! labelled {
    ($(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $variant:ident $text:literal ),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $( $(#[$vdoc])* $variant ),* }

        impl Labelled for $name {
            const NAMES: &'static [&'static str] = &[$($text),*];
        }
    };
}

labelled! {
    /// What became of a push to one session.
    PushOutcome {
        /// Written or queued.
        Delivered "delivered",
        /// Left out, to be fetched by the client.
        Lagged "lagged",
        /// The session was over.
        Closed "closed",
    }
}

labelled! {
    /// What kind of actor.
    ActorKind {
        /// A session.
        Session "session",
        /// A conversation.
        Conversation "conversation",
        /// A shard.
        Shard "shard",
        /// A stripe of the directory.
        Directory "directory",
        /// A stripe of the hub.
        Hub "hub",
    }
}

labelled! {
    /// What holds memory.
    MemoryPart {
        /// Sessions, without what waits for them.
        Sessions "sessions",
        /// What waits for the sessions' sockets.
        SessionQueues "session_queues",
        /// Conversations.
        Conversations "conversations",
        /// Who listens to what.
        Listeners "listeners",
        /// What waits for the store.
        StoreQueue "store_queue",
        /// Rows that are in the journal and not yet in a table.
        StoreMemtables "store_memtables",
        /// Blocks that were read.
        StoreCache "store_cache",
    }
}

/// Every metric of a node. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Open connections.
    pub connections: PerFraming<Gauge>,
    /// Sessions that are logged in.
    pub sessions: Gauge,
    /// Logins that succeeded.
    pub logins: Counter,
    /// Logins that were refused.
    pub logins_refused: PerCode,
    /// Sessions and connections that ended.
    pub sessions_closed: PerCode,
    /// Requests that were read.
    pub requests: PerRequest,
    /// How often a session's socket was not read because as many of its requests as allowed had no answer.
    pub reads_paused: Counter,
    /// Requests that were answered with an error.
    pub request_errors: PerCode,
    /// Sends that reached a conversation.
    pub sends: Counter,
    /// Sends that were acknowledged.
    pub sends_acknowledged: Counter,
    /// Sends that were answered from the dedup window.
    pub sends_deduplicated: Counter,
    /// Receipts, signals and the like that were left out because much waited for a socket.
    pub events_dropped: Counter,
    pushes: PerValue<Counter>,
    /// Conversations in memory.
    pub conversations_active: Gauge,
    /// Conversations that came into memory.
    pub conversation_activations: Counter,
    /// Conversations that left memory because they were quiet.
    pub conversation_passivations: Counter,
    /// Messages in one batch of a conversation.
    pub conversation_batch_messages: Histogram,
    actor_restarts: PerValue<Counter>,
    memory: PerValue<Gauge>,
    store: Source<StoreNumbers>,
    door: Source<DoorNumbers>,
    redis: Source<RedisState>,
    cluster: Source<ClusterState>,
    /// How long things take that only a cluster does.
    pub cluster_times: ClusterTimes,
    registry: std::sync::Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn plain<M: Clone + Default + Metric + TypedMetric>(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

pub(super) fn histogram(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    (start, factor, buckets): (f64, f64, u16),
) -> Histogram {
    let histogram = Histogram::new(exponential_buckets(start, factor, buckets));
    registry.register(name, help, histogram.clone());
    histogram
}

fn per_framing<M: Clone + Default + Metric + TypedMetric>(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
) -> PerFraming<M> {
    PerFraming(PerValue::register(registry, name, help, "framing", Framing::ALL.map(Framing::name)))
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        /// 1, 2, 4 … 4,096.
        const COUNTS: (f64, f64, u16) = (1.0, 2.0, 13);
        let mut registry = Registry::with_prefix("convoke");
        let r = &mut registry;
        r.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register_collector(Box::new(ProcessCollector));
        let (store, door) = (Source::default(), Source::default());
        let (redis, cluster, cluster_times) = (Source::default(), Source::default(), ClusterTimes::new(r));
        r.register_collector(Box::new(store.clone()));
        r.register_collector(Box::new(door.clone()));
        r.register_collector(Box::new(redis.clone()));
        r.register_collector(Box::new(cluster.clone()));
        let types = Request::TYPES.iter().map(|(_, name)| *name).chain(["unknown"]);
        Self {
            connections: per_framing(r, "connections", "Open connections"),
            sessions: plain(r, "sessions", "Sessions that are logged in"),
            logins: plain(r, "logins", "Logins that succeeded"),
            logins_refused: PerCode::register(r, "logins_refused", "Logins that were refused", "code"),
            sessions_closed: PerCode::register(
                r,
                "sessions_closed",
                "Sessions and connections ended",
                "reason",
            ),
            requests: PerRequest(PerValue::register(r, "requests", "Requests that were read", "type", types)),
            reads_paused: plain(r, "reads_paused", "Sessions not read until an answer leaves"),
            request_errors: PerCode::register(r, "request_errors", "Requests answered with an error", "code"),
            sends: plain(r, "sends", "Sends that reached a conversation"),
            sends_acknowledged: plain(r, "sends_acknowledged", "Sends acknowledged: durable and confirmed"),
            sends_deduplicated: plain(r, "sends_deduplicated", "Sends answered from the dedup window"),
            events_dropped: plain(
                r,
                "events_dropped",
                "Receipts and signals left out for a client that reads slowly",
            ),
            pushes: labelled::<PushOutcome, _>(r, "pushes", "Messages pushed to one session each", "outcome"),
            conversations_active: plain(r, "conversations_active", "Conversations in memory"),
            conversation_activations: plain(
                r,
                "conversation_activations",
                "Conversations that came into memory",
            ),
            conversation_passivations: plain(
                r,
                "conversation_passivations",
                "Quiet conversations that left memory",
            ),
            conversation_batch_messages: histogram(
                r,
                "conversation_batch_messages",
                "Messages in one batch of a conversation",
                COUNTS,
            ),
            actor_restarts: labelled::<ActorKind, _>(
                r,
                "actor_restarts",
                "Actors that crashed and were restarted",
                "kind",
            ),
            memory: labelled::<MemoryPart, _>(
                r,
                "memory_bytes",
                "Memory that a part of the node holds",
                "part",
            ),
            store,
            door,
            redis,
            cluster,
            cluster_times,
            registry: std::sync::Arc::new(registry),
        }
    }

    /// Counts pushes to one session.
    pub fn delivery(&self, delivery: Delivery, pushes: u64) {
        let outcome = match delivery {
            Delivery::Taken => PushOutcome::Delivered,
            Delivery::Lagged => PushOutcome::Lagged,
            Delivery::Closed => PushOutcome::Closed,
        };
        self.pushes.0[outcome as usize].inc_by(pushes);
    }

    /// Counts a batch that is committed: its sends are acknowledged.
    pub fn committed(&self, messages: usize) {
        self.sends_acknowledged.inc_by(messages as u64);
        self.conversation_batch_messages.observe(messages as f64);
    }

    /// Counts a conversation that came into memory.
    pub fn activated(&self) {
        self.conversation_activations.inc();
        self.conversations_active.inc();
    }

    /// Counts conversations that left memory: quiet, crashed or handed over.
    pub fn deactivated(&self, conversations: usize) {
        self.conversations_active.dec_by(conversations as i64);
    }

    /// Says what holds how much memory now.
    pub fn set_memory(&self, memory: &Memory) {
        for (part, bytes) in [
            (MemoryPart::Sessions, memory.session_bytes),
            (MemoryPart::SessionQueues, memory.session_queue_bytes),
            (MemoryPart::Conversations, memory.conversation_bytes),
            (MemoryPart::Listeners, memory.listener_bytes),
            (MemoryPart::StoreQueue, memory.store_queue_bytes),
            (MemoryPart::StoreMemtables, memory.store_memtable_bytes),
            (MemoryPart::StoreCache, memory.store_cache_bytes),
        ] {
            self.memory.0[part as usize].set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Counts an actor that crashed and was restarted.
    pub fn actor_restarted(&self, kind: ActorKind) {
        self.actor_restarts.0[kind as usize].inc();
    }

    /// Counts a request that was read.
    pub fn request(&self, type_number: u16) {
        self.requests.of(type_number).inc();
    }

    /// Counts a request that was answered with an error.
    pub fn request_failed(&self, code: ErrorCode) {
        self.request_errors.of(code).inc();
    }

    /// Counts a login, with the code if it was refused.
    pub fn login(&self, refused: Option<ErrorCode>) {
        match refused {
            None => self.logins.inc(),
            Some(code) => self.logins_refused.of(code).inc(),
        };
    }

    /// Counts a connection that begins.
    pub fn connection_opened(&self, framing: Framing) {
        self.connections.of(framing).inc();
    }

    /// Counts a connection that ended.
    pub fn connection_closed(&self, framing: Framing, reason: ErrorCode) {
        self.connections.of(framing).dec();
        self.sessions_closed.of(reason).inc();
    }

    /// Names the store that is asked at each scrape; the first one named stays.
    pub fn watch_store(&self, numbers: impl Fn() -> StoreNumbers + Send + Sync + 'static) -> bool {
        self.store.watch(numbers)
    }

    /// Names the listeners that are asked at each scrape; the first ones named stay.
    pub fn watch_door(&self, numbers: impl Fn() -> DoorNumbers + Send + Sync + 'static) -> bool {
        self.door.watch(numbers)
    }

    /// Names what is asked about the cluster at each scrape; the first one named stays.
    pub fn watch_cluster(&self, state: impl Fn() -> ClusterState + Send + Sync + 'static) -> bool {
        self.cluster.watch(state)
    }

    /// Names what is asked about Redis at each scrape; the first one named stays.
    pub fn watch_redis(&self, state: impl Fn() -> RedisState + Send + Sync + 'static) -> bool {
        self.redis.watch(state)
    }

    /// All metrics as OpenMetrics text; see [`CONTENT_TYPE`].
    ///
    /// # Panics
    /// Never: text in memory takes everything.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(16 << 10);
        text::encode(&mut out, &self.registry).expect("a String takes everything");
        out
    }
}

#[cfg(test)]
mod deployed;
#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::telemetry::store::Distribution;

    fn value(text: &str, series: &str) -> f64 {
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("no {series} in\n{text}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    }

    #[test]
    fn handles_reach_the_series_of_their_label() {
        let metrics = Metrics::new();
        for framing in Framing::ALL {
            metrics.connections.of(framing).inc_by(framing.index() as i64 + 1);
        }
        for code in ErrorCode::ALL {
            metrics.request_errors.of(*code).inc_by(u64::from(code.0));
        }
        metrics.request_errors.of(ErrorCode(65_535)).inc();
        for (number, _) in Request::TYPES {
            metrics.requests.of(*number).inc_by(u64::from(*number));
        }
        metrics.requests.of(999).inc_by(7);
        metrics.delivery(Delivery::Lagged, 4);
        metrics.committed(3);
        metrics.actor_restarted(ActorKind::Hub);
        let text = metrics.render();
        for framing in Framing::ALL {
            let series = format!("convoke_connections{{framing=\"{}\"}}", framing.name());
            assert_eq!(value(&text, &series), framing.index() as f64 + 1.0);
        }
        for code in ErrorCode::ALL {
            let series = format!("convoke_request_errors_total{{code=\"{}\"}}", code.name());
            assert_eq!(value(&text, &series), f64::from(code.0));
        }
        for (number, name) in Request::TYPES {
            assert_eq!(
                value(&text, &format!("convoke_requests_total{{type=\"{name}\"}}")),
                f64::from(*number)
            );
        }
        for (series, expected) in [
            ("convoke_request_errors_total{code=\"unknown_code\"}", 1.0),
            ("convoke_requests_total{type=\"unknown\"}", 7.0),
            ("convoke_pushes_total{outcome=\"lagged\"}", 4.0),
            ("convoke_sends_acknowledged_total", 3.0),
            ("convoke_actor_restarts_total{kind=\"hub\"}", 1.0),
            ("convoke_conversation_batch_messages_bucket{le=\"2.0\"}", 0.0),
            ("convoke_conversation_batch_messages_bucket{le=\"4.0\"}", 1.0),
        ] {
            assert_eq!(value(&text, series), expected, "{series}");
        }
    }

    #[test]
    fn the_store_is_asked_at_each_scrape() {
        let metrics = Metrics::new();
        assert_eq!(value(&metrics.render(), "convoke_store_commits_total"), 0.0);
        let commits = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(1));
        let read = commits.clone();
        let micros = Distribution { buckets: vec![(1_000, 2), (5_000, 3), (u64::MAX, 1)], sum: 8_000_000 };
        assert!(metrics.watch_store(move || StoreNumbers {
            commits: read.load(std::sync::atomic::Ordering::Relaxed),
            poisoned: true,
            commit_micros: micros.clone(),
            ..StoreNumbers::default()
        }));
        assert!(!metrics.watch_store(StoreNumbers::default), "there is one store");
        commits.store(9, std::sync::atomic::Ordering::Relaxed);
        let text = metrics.render();
        for (series, expected) in [
            ("convoke_store_commits_total", 9.0),
            ("convoke_store_poisoned", 1.0),
            ("convoke_store_commit_seconds_bucket{le=\"0.001\"}", 2.0),
            ("convoke_store_commit_seconds_bucket{le=\"0.005\"}", 5.0),
            ("convoke_store_commit_seconds_bucket{le=\"+Inf\"}", 6.0),
            ("convoke_store_commit_seconds_count", 6.0),
            ("convoke_store_commit_seconds_sum", 8.0),
        ] {
            assert_eq!(value(&text, series), expected, "{series}");
        }
    }

    #[test]
    fn the_door_is_asked_at_each_scrape() {
        let metrics = Metrics::new();
        let numbers =
            DoorNumbers { accepted: 5, refused_node: 2, refused_address: 3, ..DoorNumbers::default() };
        assert!(metrics.watch_door(move || numbers));
        let text = metrics.render();
        for (series, expected) in [
            ("convoke_connections_accepted_total", 5.0),
            ("convoke_connections_refused_total{reason=\"too_many_connections\"}", 2.0),
            ("convoke_connections_refused_total{reason=\"too_many_from_address\"}", 3.0),
            ("convoke_accept_errors_total", 0.0),
        ] {
            assert_eq!(value(&text, series), expected, "{series}");
        }
    }

    #[test]
    fn the_process_is_read_at_each_scrape() {
        let metrics = Metrics::new();
        let open = value(&metrics.render(), "convoke_process_open_fds");
        let _files: Vec<_> =
            (0..64).map(|_| std::fs::File::open("/proc/self/status").expect("opened")).collect();
        let text = metrics.render();
        // Other tests of this process open and close files meanwhile.
        assert!(value(&text, "convoke_process_open_fds") >= open + 32.0);
        assert!(value(&text, "convoke_process_resident_memory_bytes") > 1e6);
        assert!(value(&text, "convoke_process_cpu_seconds_total") > 0.0);
        assert!(value(&text, "convoke_process_max_fds") > 64.0);
    }

    #[test]
    fn the_document_names_every_metric_and_no_other() {
        let text = Metrics::new().render();
        let registered: BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            })
            .collect();
        let document = include_str!("../../docs/operations.md");
        let table = document.split("## Metrics").nth(1).expect("a section Metrics");
        let table = table.split("\n## ").next().expect("its end");
        let documented: BTreeSet<String> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `convoke_")?.split(['`', '{']).next())
            .map(|name| format!("convoke_{name}"))
            .collect();
        assert_eq!(documented, registered);
    }
}
