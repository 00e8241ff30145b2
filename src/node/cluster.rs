//! A node's part in its cluster: what it serves, its links, and what its clients are told of the other nodes.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use convoke_protocol::event::{NodeAddress, NodesChanged};
use convoke_protocol::frame::Event;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use crate::actors::membership::{ClusterObserver, Membership, MembershipSetup};
use crate::actors::peer::incoming::{FromPeers, Reached, Wishes};
use crate::actors::peer::outgoing::Peers;
use crate::actors::peer::{Control, LEAST_VERSION, VERSION};
use crate::actors::session::dispatch::Services;
use crate::auth::SigningKey;
use crate::cluster::lease::LeaseTimes;
use crate::cluster::link::Links as _;
use crate::cluster::membership::{Addresses, NodeId, PeerId, PeerRow};
use crate::cluster::owner::{Gates, Owner, WantsConfirmation};
use crate::cluster::owners::Owners;
use crate::cluster::shard_map::{ShardId, ShardMap};
use crate::cluster::store::OwnershipStore;
use crate::config::Config;
use crate::net::links::{Cookie, LinkConfig, LinkListener, LinkNet, LinkTls};
use crate::storage::Epoch;
use crate::storage::scylla::ScyllaStore;
use crate::telemetry::cluster::ClusterState;

/// Between two looks at the other nodes of a cluster.
const LOOK: Duration = Duration::from_millis(200);

/// Bytes on their way to a peer, per lane.
const WINDOW: usize = 4 << 20;

/// Makes a node speak an older version of the links' protocol; only tests set it.
const VERSION_VARIABLE: &str = "CONVOKE_TEST_LINK_VERSION";

/// The least bytes of a cookie.
const COOKIE_BYTES: usize = 16;

/// How a node owns what it serves: before the membership is started.
pub(super) struct Joining {
    store: Arc<ScyllaStore>,
    gates: Arc<Gates>,
    wanted: mpsc::Receiver<WantsConfirmation>,
    listener: LinkListener,
    peers: Peers,
}

impl Joining {
    /// Listens for other nodes, and prepares to own.
    ///
    /// # Errors
    /// The address cannot be had; another process runs under the node's name.
    pub(super) async fn prepare(store: Arc<ScyllaStore>, config: &Config) -> anyhow::Result<(Self, Owner)> {
        expect_no_namesake(&store, config).await?;
        let address = config.links.listen;
        let bound = LinkListener::bind(address).await;
        let listener = bound.with_context(|| format!("cannot listen for other nodes on {address}"))?;
        tracing::info!(target: "convoke::net::listener", listener = "links", address = %listener.local_addr(), "listening");
        let (owner, wanted) = Owner::claiming(config.node.shards);
        let Owner::Claimed(gates) = &owner else { bail!("an owner that claims has gates") };
        let owners = Owners::new(ShardMap::new(config.node.shards));
        let peers = Peers::new(PeerId(Uuid::now_v7()), owners);
        Ok((Self { store, gates: gates.clone(), wanted, listener, peers }, owner))
    }

    pub(super) fn peers(&self) -> Peers {
        self.peers.clone()
    }

    /// Joins, and waits until this node serves its share.
    ///
    /// # Errors
    /// Certificates or cookie cannot be used; the actor cannot be started.
    pub(super) async fn join(
        self,
        config: &Config,
        services: &Arc<Services>,
        key: &SigningKey,
        (tcp, ws): (SocketAddr, SocketAddr),
    ) -> anyhow::Result<ClusterPart> {
        let Self { store, gates, wanted, listener, peers } = self;
        let Some(owners) = peers.owners().cloned() else { bail!("a node of a cluster knows who owns what") };
        let addresses = Addresses {
            tcp: advertised(&config.node.advertise_tcp, tcp),
            ws: advertised(&config.node.advertise_ws, ws),
            link: advertised(&config.links.advertise, listener.local_addr()),
            process: peers.me(),
        };
        let version = spoken_version();
        let policies = services.clone();
        let reached = Reached {
            peers: peers.clone(),
            owners,
            conversations: services.conversations.here().clone(),
            directory: services.directory.clone(),
            hub: services.hub.clone(),
            sessions: services.sessions.clone(),
            policy: Arc::new(move || policies.rules.load().policy.clone()),
            version,
        };
        let asked: Arc<Asked> = Arc::default();
        let from_peers = FromPeers::new(reached, asked.clone());
        let link_config = LinkConfig {
            me: peers.me(),
            node: config.node.id.clone(),
            version,
            cookie: cookie(config, key)?,
            tls: config.links.is_encrypted().then(|| link_tls(config)).transpose()?,
            window: WINDOW,
            silence: config.cluster.lease_ms.duration(),
        };
        let links = LinkNet::start(link_config, listener, Arc::new(from_peers.clone()));
        peers.link(Arc::new(links.clone()));
        let own = NodeAddress {
            node: config.node.id.clone(),
            tcp: Some(addresses.tcp.clone()),
            ws: Some(addresses.ws.clone()),
        };
        services.nodes.store(Arc::new(vec![own.clone()]));
        let rows = Arc::default();
        let observer = Arc::new(Observer {
            from_peers: from_peers.clone(),
            rows: Arc::clone(&rows),
            links: links.clone(),
            services: services.clone(),
            own,
            known: Mutex::default(),
        });
        let setup = MembershipSetup {
            node: config.node.id.clone(),
            addresses: addresses.clone(),
            store,
            map: ShardMap::new(config.node.shards),
            gates,
            wanted,
            conversations: services.conversations.here().clone(),
            observer,
            cluster_times: services.metrics.cluster_times.clone(),
            times: LeaseTimes {
                lease: config.cluster.lease_ms.duration(),
                margin: config.cluster.margin_ms.duration(),
            },
            clock: services.clock,
        };
        let started = Membership::start(setup, &services.supervisor).await.context("the membership")?;
        let started = asked.membership.get_or_init(|| started).clone();
        if !started.serves_its_share(config.cluster.claim_within_ms.duration()).await {
            let (open, wanted) = (started.standing().open, started.standing().wanted);
            tracing::warn!(open, wanted, "not all shards are served yet; the node begins all the same");
        }
        let own = NodeId(config.node.id.clone());
        Ok(ClusterPart { membership: started, links, from_peers, peers, rows, own, addresses, asked })
    }
}

/// What others ask of this node's part in the cluster.
#[derive(Default)]
struct Asked {
    /// Once it is started.
    membership: OnceLock<Membership>,
    drain: Notify,
}

impl Wishes for Asked {
    fn take(&self, released: Vec<(ShardId, Option<Epoch>)>) {
        if let Some(membership) = self.membership.get() {
            membership.released(released);
        }
    }

    fn hurry(&self, wanted: Vec<ShardId>) {
        if let Some(membership) = self.membership.get() {
            membership.hurry(wanted);
        }
    }

    fn pin(&self, pins: &[(ShardId, Option<NodeId>)]) {
        if let Some(membership) = self.membership.get() {
            membership.pin(pins.to_vec());
        }
    }

    fn doubt(&self, peer: PeerId) {
        if let Some(membership) = self.membership.get() {
            membership.doubt(peer);
        }
    }

    fn drain(&self) {
        self.drain.notify_one();
    }
}

/// What a node of a cluster has beside its sessions and conversations. Cheap to clone.
#[derive(Clone)]
pub(super) struct ClusterPart {
    pub(super) membership: Membership,
    pub(super) from_peers: FromPeers,
    pub(super) peers: Peers,
    links: LinkNet,
    rows: Arc<Mutex<Vec<PeerRow>>>,
    /// This node's name.
    own: NodeId,
    addresses: Addresses,
    asked: Arc<Asked>,
}

/// A node that gives signs of life.
pub(super) struct KnownNode {
    pub(super) node: NodeId,
    pub(super) addresses: Addresses,
    pub(super) draining: bool,
    /// In which version of the links' protocol it is reached, if it is.
    pub(super) linked: Option<u16>,
}

impl ClusterPart {
    /// As the metrics show it.
    pub(super) fn state(&self, canary: Duration) -> ClusterState {
        let standing = self.membership.standing();
        let links = self.links.numbers();
        ClusterState {
            shards: standing.open as u64,
            lives_over: standing.deaths,
            links_up: links.up,
            links_broken: links.broken,
            link_frames: links.frames,
            link_bytes: links.bytes,
            link_busy: links.busy,
            link_refused: links.refused,
            canary_ms: u64::try_from(canary.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The nodes there are, this one first.
    pub(super) fn nodes(&self) -> Vec<KnownNode> {
        let other = |row: &PeerRow| KnownNode {
            node: row.node.clone(),
            addresses: row.addresses.clone(),
            draining: row.draining,
            linked: self.links.version(row.addresses.process),
        };
        let mut nodes = vec![KnownNode {
            node: self.own.clone(),
            addresses: self.addresses.clone(),
            draining: false,
            linked: Some(spoken_version()),
        }];
        nodes.extend(self.rows.lock().iter().map(other));
        nodes
    }

    /// Waits until an operator wants this node to give everything back and end.
    pub(super) async fn drain_asked(&self) {
        self.asked.drain.notified().await;
    }

    /// Has a node give everything back and end.
    pub(super) fn drain(&self, process: PeerId) {
        if process == self.addresses.process {
            self.asked.drain.notify_one();
        } else {
            self.peers.tell(process, &Control::Drain);
        }
    }

    /// Gives everything back, and leaves; says whether that was possible in time.
    pub(super) async fn leave(&self, within: Duration) -> bool {
        let drained = self.membership.drain(within).await;
        self.links.stop();
        drained
    }
}

/// Told of what the membership sees.
struct Observer {
    from_peers: FromPeers,
    links: LinkNet,
    services: Arc<Services>,
    own: NodeAddress,
    known: Mutex<HashSet<PeerId>>,
    rows: Arc<Mutex<Vec<PeerRow>>>,
}

impl ClusterObserver for Observer {
    fn opened(&self, shard: ShardId, epoch: Epoch) {
        self.from_peers.opened(shard, epoch);
    }

    fn closed(&self, shard: ShardId, epoch: Epoch) {
        self.from_peers.closed(shard, epoch);
    }

    fn released(&self, shard: ShardId, epoch: Epoch) {
        self.from_peers.gave_back(shard, epoch);
    }

    fn peers(&self, peers: Vec<PeerRow>) {
        let linked = peers.iter().filter(|row| !row.addresses.link.is_empty());
        self.links.set_peers(linked.map(|row| (row.addresses.process, row.addresses.link.clone())));
        self.rows.lock().clone_from(&peers);
        let now: HashSet<PeerId> = peers.iter().map(|row| row.addresses.process).collect();
        let before = std::mem::replace(&mut *self.known.lock(), now.clone());
        for gone in before.difference(&now) {
            self.from_peers.gone(*gone);
        }
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let address = |row: &PeerRow| NodeAddress {
            node: row.node.0.clone(),
            tcp: given(&row.addresses.tcp),
            ws: given(&row.addresses.ws),
        };
        let mut nodes: Vec<NodeAddress> = peers.iter().filter(|row| !row.draining).map(address).collect();
        nodes.push(self.own.clone());
        nodes.sort_by(|one, other| one.node.cmp(&other.node));
        let before = self.services.nodes.swap(Arc::new(nodes.clone()));
        if *before != nodes {
            let event = Event::NodesChanged(NodesChanged { nodes });
            self.services.sessions.for_each(|session| session.tell_if_room(&event));
        }
    }
}

/// Two processes with one name would fence each other for ever, each taking the other for its own former life.
async fn expect_no_namesake(store: &ScyllaStore, config: &Config) -> anyhow::Result<()> {
    let mut seen: Vec<PeerRow> = store.read_peers().await?;
    seen.retain(|row| row.node.0 == config.node.id);
    if seen.is_empty() {
        return Ok(());
    }
    // A row of a former life is there after a crash: two signs of life that do not come are enough to tell.
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < config.cluster.lease_ms.duration() / 3 * 2 {
        tokio::time::sleep(LOOK).await;
        for row in store.read_peers().await?.into_iter().filter(|row| row.node.0 == config.node.id) {
            let before = seen.iter().find(|before| before.incarnation == row.incarnation);
            ensure!(
                before.is_some_and(|before| before.beat == row.beat),
                "another process runs as node {:?}: stop it, or give this one a node.id of its own",
                row.node.0
            );
        }
    }
    Ok(())
}

/// The newest version of the links' protocol that this node speaks: an older one where a test asks for it.
fn spoken_version() -> u16 {
    let asked = std::env::var(VERSION_VARIABLE).ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(VERSION).clamp(LEAST_VERSION, VERSION)
}

/// Where others reach what listens here; empty if that cannot be told from the address.
fn advertised(configured: &str, bound: SocketAddr) -> String {
    match configured {
        "" if bound.ip().is_unspecified() => String::new(),
        "" => bound.to_string(),
        configured => configured.to_owned(),
    }
}

fn cookie(config: &Config, key: &SigningKey) -> anyhow::Result<Cookie> {
    let file = &config.links.cookie_file;
    if file.as_os_str().is_empty() {
        return Ok(Cookie::new(key.bytes()));
    }
    let secret = std::fs::read(file).with_context(|| format!("the links' cookie {}", file.display()))?;
    let secret = secret.trim_ascii();
    ensure!(secret.len() >= COOKIE_BYTES, "{}: fewer than {COOKIE_BYTES} bytes", file.display());
    Ok(Cookie::new(secret))
}

fn link_tls(config: &Config) -> anyhow::Result<LinkTls> {
    let links = &config.links;
    Ok(LinkTls::load(&links.certificate, &links.key, &links.authority)?)
}
