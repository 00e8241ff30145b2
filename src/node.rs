//! The composition root: configuration → store → actors → listeners, and the order of shutdown.
//!
//! # Start
//! Store (locks the data directory), token key, actors, listeners, `node.json`, the ready line.
//!
//! # Shutdown
//! 1. Listeners accept no more; `readyz` says so.
//! 2. Every session is told `GoAway`; what it asked before is still answered; then its connection closes.
//! 3. In a cluster, the shards are given back.
//! 4. The store writes what waits and closes.
//! 5. `node.json` goes; the process ends with 0.
//!
//! A second signal ends the process at once. What was acknowledged is durable either way.

mod admin_api;
mod canary;
mod cluster;
mod engine;
mod faults;
mod online;
mod retention;
mod store;
mod supervisor;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::event::{GoAway, NodeAddress};
use convoke_protocol::id::UserId;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::admin_api::{Behind, NodeAdmin};
use self::canary::Canary;
use self::cluster::{ClusterPart, Joining};
use self::engine::{SessionEngine, core_limits, session_rules};
use self::faults::Faults;
use self::online::OnlineCopy;
use self::store::NodeStore;
use self::supervisor::Supervisor;
use crate::actors::conversation::Surroundings;
use crate::actors::directory::{Directory, DirectoryCopy};
use crate::actors::hub::Hub;
use crate::actors::peer::hubs::Hubs;
use crate::actors::peer::outgoing::Peers;
use crate::actors::peer::routed::RoutedConversations;
use crate::actors::session::SessionTable;
use crate::actors::session::dispatch::Services;
use crate::actors::shard::Conversations;
use crate::auth::{Role, SigningKey, Verifier};
use crate::cluster::owner::Owner;
use crate::cluster::shard_map::ShardMap;
use crate::cmd::serve::{Setup, page_text, welcome_text};
use crate::config::{Config, tls};
use crate::hooks::{Hooks, NoHooks};
use crate::net::admin::{AdminConfig, AdminHandle, AdminListener};
use crate::net::listener::slots::ConnectionLimits;
use crate::net::listener::{Listener, ListenerConfig, Net, NetConfig, TlsMode, Transport};
use crate::net::tls::{TlsAcceptor, TlsFiles};
use crate::net::websocket::chat_page;
use crate::net::websocket::upgrade::{Pages, WebSocketConfig};
use crate::node_file::NodeFile;
use crate::telemetry::audit::Audit;
use crate::telemetry::line_limit::LineLimit;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;

/// How often sessions are looked over: silent ones, overdue acknowledgements.
const SESSION_SWEEP: Duration = Duration::from_secs(1);

/// How often conversations are looked over: those that may sleep.
const CONVERSATION_SWEEP: Duration = Duration::from_secs(5);

/// Beside the store's reads so much may wait for the system on threads of its own: a backup, names that are looked up.
const OTHER_BLOCKING: usize = 4;

/// Lines that refused logins may take in a second, of all connections together.
const REFUSED_LOGINS_LOGGED_PER_S: u32 = 50;

/// How long the links to the web chat are good that are printed at the start.
const LINK_TTL: Duration = Duration::from_secs(3_600);

/// How long a client waits before it comes back to a node that restarts, in milliseconds.
const COME_BACK_MS: u32 = 500;

/// Runs a node until it is told to stop.
///
/// # Errors
/// It could not start, or not stop in order.
pub fn run(setup: Setup) -> anyhow::Result<()> {
    runtime(&setup.config)?.block_on(async {
        let mut signals = Signals::listen()?;
        let node = Node::start(setup).await?;
        let broken = tokio::select! {
            () = signals.next() => None,
            () = node.drain_asked() => None,
            () = node.part_ended() => Some("the node's part in its cluster ended: see the log"),
        };
        tracing::info!("stopping; a second signal ends the process at once");
        tokio::select! {
            stopped = node.stop() => broken.map_or(stopped, |why| Err(anyhow::anyhow!(why))),
            () = signals.next() => abort(),
        }
    })
}

fn runtime(config: &Config) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if config.node.threads > 0 {
        builder.worker_threads(config.node.threads);
    }
    // Without a bound a moment with many reads makes threads that stay, each with caches of its own.
    builder.max_blocking_threads(config.storage.reads + OTHER_BLOCKING).enable_all().build()
}

#[expect(clippy::disallowed_methods, reason = "a second signal asks for exactly this")]
fn abort() -> ! {
    std::process::exit(130)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A node that serves.
struct Node {
    config: Config,
    store: NodeStore,
    part: Option<ClusterPart>,
    online: Option<Arc<OnlineCopy>>,
    services: Arc<Services>,
    net: Net<SessionEngine>,
    admin: AdminHandle,
    stopping: Arc<AtomicBool>,
}

impl Node {
    async fn start(setup: Setup) -> anyhow::Result<Self> {
        let config = setup.config.clone();
        let data = &config.node.data;
        std::fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
        let faults = Faults::from_environment();
        let store = NodeStore::open(&config, setup.clock, faults.as_ref()).await?;
        let (joining, owner) = match &store {
            NodeStore::Embedded(store) => (None, Owner::Permanent(store.epoch())),
            NodeStore::Servers(store) => {
                let (joining, owner) = Joining::prepare(store.clone(), &config).await?;
                (Some(joining), owner)
            }
        };
        let peers = joining.as_ref().map_or_else(Peers::none, Joining::peers);
        let key = SigningKey::load_or_create(data)?;
        let verifier = Verifier::new(&key, &config.auth)?;
        let metrics = Arc::new(Metrics::new());
        let watched = store.clone();
        metrics.watch_store(move || watched.numbers());
        let (services, online) = start_actors(&setup, &store, (owner, peers), verifier, metrics).await?;
        let net = Net::new(Arc::new(SessionEngine::new(services.clone(), &config)), net_config(&config));
        let counters = net.counters().clone();
        services.metrics.watch_door(move || engine::door_numbers(&counters));
        let tls = load_tls(&config)?;
        let tcp = bind(Transport::Tcp, config.tcp.listen, &config, tls.as_ref())?;
        let ws = bind(Transport::WebSocket, config.websocket.listen, &config, tls.as_ref())?;
        let admin =
            AdminListener::bind(AdminConfig { address: config.admin.listen, public: config.admin.public })?;
        let file = NodeFile {
            pid: std::process::id(),
            tcp: tcp.local_addr(),
            ws: ws.local_addr(),
            admin: admin.local_addr(),
        };
        services.nodes.store(Arc::new(advertised(&config)));
        let part = match joining {
            Some(joining) => Some(joining.join(&config, &services, &key, (file.tcp, file.ws)).await?),
            None => None,
        };
        let canary = match &part {
            Some(_) => Some(Canary::start(&services).await?),
            None => None,
        };
        if let (Some(part), Some(canary)) = (part.clone(), canary.clone()) {
            services.metrics.watch_cluster(move || part.state(canary.age()));
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let link_key = key.clone();
        let api = NodeAdmin::new(
            setup,
            key,
            Behind {
                store: store.clone(),
                part: part.clone(),
                canary,
                services: services.clone(),
                net: net.clone(),
                tls,
                stopping: stopping.clone(),
                faults,
            },
        );
        net.start(tcp);
        net.start(ws);
        let admin = admin.start(Arc::new(api));
        file.write(data).with_context(|| format!("cannot write node.json in {}", data.display()))?;
        let has_page = config.websocket.chat && file.ws.ip().is_loopback() && !config.tls.applies_to(file.ws);
        let token = |user: &str| Some(link_key.sign(&UserId::new(user).ok()?, Role::User, LINK_TTL));
        announce(&file, data, if has_page { &token } else { &|_| None });
        start_sweeps(&services, part.clone(), config.conversations.passivate_after_ms.duration());
        let interval = config.retention.sweep_interval_ms.duration();
        retention::start_sweep(&services, engine::default_retention(&config), interval);
        Ok(Self { config, store, part, online, services, net, admin, stopping })
    }

    /// Waits until an operator wants the node to end by what it is asked on some node; for ever on the embedded store.
    async fn drain_asked(&self) {
        match &self.part {
            Some(part) => part.drain_asked().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until this node cannot own anything any more; for ever on the embedded store.
    async fn part_ended(&self) {
        match &self.part {
            Some(part) => part.membership.ended().await,
            None => std::future::pending().await,
        }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stopping.store(true, Ordering::Relaxed);
        self.net.stop_accepting();
        let mut nodes = self.services.nodes.load().to_vec();
        nodes.retain(|node| node.node != self.config.node.id);
        if let Some(part) = self.part.as_ref().filter(|_| !nodes.is_empty()) {
            // The others see it, and want what it has, while sessions are sent to them. The last node gives its shards back
            // when what its sessions asked is answered.
            part.membership.begin_drain();
        }
        let retry_after_ms = if nodes.is_empty() { COME_BACK_MS } else { 0 };
        for session in self.services.sessions.all() {
            let go_away = GoAway { reason: ErrorCode::SHUTDOWN, retry_after_ms, nodes: nodes.clone() };
            session.go_away(go_away);
            // Each begins with another one, so that they do not all come to the first.
            if !nodes.is_empty() {
                nodes.rotate_left(1);
            }
        }
        let within = self.config.node.stop_within_ms.duration();
        if tokio::time::timeout(within, self.net.closed()).await.is_err() {
            tracing::warn!(connections = self.net.slots().taken(), "connections did not close in time");
        }
        self.admin.stop().await;
        if let Some(part) = &self.part
            && !part.leave(within).await
        {
            tracing::warn!("not all shards could be given back in time: others take them after the lease");
        }
        self.store.shutdown().await;
        if let Some(online) = &self.online {
            online.shutdown().await;
        }
        let services = self.services.clone();
        tokio::task::spawn_blocking(move || services.traces.shutdown()).await?;
        NodeFile::remove(&self.config.node.data)?;
        tracing::info!("stopped");
        Ok(())
    }
}

async fn start_actors(
    setup: &Setup,
    store: &NodeStore,
    (owner, peers): (Owner, Peers),
    verifier: Verifier,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Arc<Services>, Option<Arc<OnlineCopy>>)> {
    let (config, clock) = (&setup.config, setup.clock);
    let (supervisor, cell) = Supervisor::start().await?;
    let stripes = std::thread::available_parallelism().map_or(1, usize::from);
    let sessions = SessionTable::default();
    let online = OnlineCopy::start(config, clock, &sessions)?;
    if let Some(online) = online.clone() {
        metrics.watch_redis(move || online.numbers());
    }
    let copy = online.clone().map(|online| online as Arc<dyn DirectoryCopy>);
    let shards = ShardMap::new(config.node.shards);
    let known = (peers.clone(), shards, config.node.id.as_str());
    let directory = Directory::start(stripes, copy, known, &cell).await?;
    let hub = Hub::start(stripes, sessions.clone(), shards, clock, &cell).await?;
    let stores = faults::tampered(store.stores())?;
    let hooks: Arc<dyn Hooks> = Arc::new(NoHooks);
    let surroundings = Surroundings {
        stores: stores.clone(),
        directory: directory.clone(),
        hubs: Hubs::new(hub.clone(), peers.clone()),
        clock,
        limits: core_limits(config),
        metrics: metrics.clone(),
        hooks: hooks.clone(),
    };
    let conversations = Conversations::new(shards, owner, surroundings, cell.clone());
    supervisor.supervise(supervisor::Supervised {
        directory: directory.clone(),
        hub: hub.clone(),
        conversations: conversations.clone(),
        sessions: sessions.clone(),
        metrics: metrics.clone(),
    });
    let services = Arc::new(Services {
        node: config.node.id.clone(),
        nodes: ArcSwap::default(),
        rules: ArcSwap::from_pointee(session_rules(config)),
        verifier: ArcSwap::from_pointee(verifier),
        directory,
        sessions,
        conversations: RoutedConversations::new(conversations, peers, shards),
        stores,
        hooks,
        clock,
        metrics,
        audit: Audit::new(clock),
        traces: Traces::start(&config.traces, &config.node.id)?,
        hub,
        refused_logins: LineLimit::per_second(REFUSED_LOGINS_LOGGED_PER_S),
        supervisor: cell,
    });
    Ok((services, online))
}

fn net_config(config: &Config) -> NetConfig {
    NetConfig {
        limits: connection_limits(config),
        handshake_time: config.sessions.login_deadline_ms.duration(),
        websocket: WebSocketConfig {
            origins: config.websocket.origins.clone(),
            pages: config.websocket.chat.then(|| Arc::new(chat_page::page) as Arc<Pages>),
        },
        ..NetConfig::default()
    }
}

fn connection_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: config.limits.max_connections,
        max_per_address: config.limits.max_connections_per_ip,
    }
}

fn load_tls(config: &Config) -> anyhow::Result<Option<Arc<TlsAcceptor>>> {
    if !config.tls.has_certificate() {
        return Ok(None);
    }
    let files = TlsFiles { certificate: config.tls.certificate.clone(), key: config.tls.key.clone() };
    Ok(Some(Arc::new(TlsAcceptor::load(files)?)))
}

fn bind(
    transport: Transport,
    address: std::net::SocketAddr,
    config: &Config,
    acceptor: Option<&Arc<TlsAcceptor>>,
) -> anyhow::Result<Listener> {
    let tls = match (config.tls.applies_to(address), acceptor) {
        (true, Some(acceptor)) => TlsMode::On(acceptor.clone()),
        (false, _) if config.tls.mode == tls::TlsMode::Off => TlsMode::Off,
        // A listener that needs TLS and has no certificate refuses by itself.
        _ => TlsMode::Unsaid,
    };
    let config = ListenerConfig { tls, ..ListenerConfig::new(transport, address) };
    Ok(Listener::bind(config)?)
}

fn advertised(config: &Config) -> Vec<NodeAddress> {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (tcp, ws) = (given(&config.node.advertise_tcp), given(&config.node.advertise_ws));
    if tcp.is_none() && ws.is_none() {
        return Vec::new();
    }
    vec![NodeAddress { node: config.node.id.clone(), tcp, ws }]
}

fn announce(file: &NodeFile, data: &Path, token: &dyn Fn(&str) -> Option<String>) {
    // A caller that closed its end does not want to know.
    let _ = writeln!(std::io::stdout().lock(), "{}", file.ready_line());
    let pages = ["alice", "bob"].map(|user| token(user).map(|token| (user, token)));
    let text = welcome_text(data, file.tcp) + &page_text(file.ws, pages.into_iter().flatten());
    let _ = write!(std::io::stderr().lock(), "{text}");
}

fn start_sweeps(services: &Arc<Services>, part: Option<ClusterPart>, idle: Duration) {
    let swept = services.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(SESSION_SWEEP);
        loop {
            ticks.tick().await;
            sweep_sessions(&swept);
        }
    });
    let conversations = services.conversations.here().clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(CONVERSATION_SWEEP.min(idle));
        loop {
            ticks.tick().await;
            conversations.sweep(idle);
            if let Some(part) = &part {
                part.membership.renew(conversations.worn());
            }
        }
    });
}

fn sweep_sessions(services: &Services) {
    let now_ms = services.clock.monotonic_ms();
    let rules = services.rules.load();
    let ack_deadline_ms = u64::from(rules.limits.ack_deadline_ms);
    let idle_ms = u64::from(rules.heartbeat_ms) * 3;
    services.sessions.for_each(|session| {
        if session.egress.unacked_for_ms(now_ms) > ack_deadline_ms {
            session.go_away(GoAway { reason: ErrorCode::ACKS_OVERDUE, retry_after_ms: 0, nodes: Vec::new() });
        } else if session.egress.silent_for_ms(now_ms) > idle_ms {
            session.go_away(GoAway { reason: ErrorCode::IDLE, retry_after_ms: 0, nodes: Vec::new() });
        }
    });
}
