//! Links between nodes: TCP, mutual TLS where it is configured, and a cookie that both sides prove to have.
//!
//! A node dials every other one, once per [`Lane`]: what it tells and asks goes out over the connections that it dialled,
//! answers and credit come back over them. A link stands while all its lanes do; when one breaks all are made anew, and
//! whoever uses it tells again what the peer has to know.
//!
//! # Bounds
//! Per lane and peer at most [`LinkConfig::window`] bytes are on their way, from the call to the peer's having dealt with
//! them; up to a sixteenth of the window it may give back a little later. Beyond it a call is refused with [`LinkError::Busy`].
//! A peer that is silent for [`LinkConfig::silence`] is away.
//!
//! # Framing
//! `u32` length (big endian) of what follows: `u8` kind, `u64` id, body. The first two frames on a connection are the
//! handshake (`handshake.rs`), which agrees on a version.
//!
//! # Why not `ractor_cluster`
//! It was tried (0.16.5), with the window and the credit built on top. It has one connection per pair of nodes, so that a claim
//! waits behind the pushes before it; a call took 0.17–0.22 ms and 165–205 µs of CPU where one of these takes 0.07 ms and 80 µs
//! (`cargo bench --bench links`), 128 bytes one way ten times as much. Its queues have no bound, it shakes hands for TLS in its
//! loop of accepting and without a deadline, so that one silent stranger keeps every node from linking, and it does not notice a
//! peer that is silent. Its feature of `ractor` takes 3 KB more for each actor of a node, linked or not.

mod accepting;
pub mod authority;
mod dialling;
mod frames;
mod handshake;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use self::dialling::Dialled;
pub use self::handshake::Cookie;
pub use self::tls::LinkTlsError;
use crate::cluster::link::{Incoming, Lane, LinkError, Links};
use crate::cluster::membership::PeerId;

/// What both ends of a TLS link use.
#[derive(Clone)]
pub struct LinkTls {
    /// For connections that are accepted: asks for a certificate.
    pub server: Arc<ServerConfig>,
    /// For connections that are dialled: shows one.
    pub client: Arc<ClientConfig>,
}

/// How a node links.
#[derive(Clone)]
pub struct LinkConfig {
    /// This process.
    pub me: PeerId,
    /// The node's name, for the log.
    pub node: String,
    /// The newest version that it speaks.
    pub version: u16,
    /// What both sides must have.
    pub cookie: Cookie,
    /// Encryption; without it only where nobody else listens.
    pub tls: Option<LinkTls>,
    /// Bytes on their way per lane and peer.
    pub window: usize,
    /// For how long a peer may say nothing.
    pub silence: Duration,
}

/// What links count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkNumbers {
    /// Links that stand.
    pub up: u64,
    /// Links that broke.
    pub broken: u64,
    /// Frames sent, answers left out.
    pub frames: u64,
    /// Bytes sent, answers left out.
    pub bytes: u64,
    /// Calls that were refused because so much was on its way.
    pub busy: u64,
    /// Connections from others that were refused.
    pub refused: u64,
}

#[derive(Default)]
struct Counters {
    broken: AtomicU64,
    frames: AtomicU64,
    bytes: AtomicU64,
    busy: AtomicU64,
    refused: AtomicU64,
}

struct Inner {
    config: LinkConfig,
    incoming: Arc<dyn Incoming>,
    up: DashMap<PeerId, Arc<Dialled>>,
    counters: Counters,
}

/// What keeps the link to a peer at this address.
type Keeper = (String, JoinHandle<()>);

/// The links of a node. Cheap to clone.
#[derive(Clone)]
pub struct LinkNet {
    inner: Arc<Inner>,
    keepers: Arc<Mutex<HashMap<PeerId, Keeper>>>,
    acceptor: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// Where other nodes connect, before anybody does.
pub struct LinkListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl LinkListener {
    /// Listens, and accepts nothing yet.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl LinkNet {
    /// Accepts peers from now on; dials those that [`Self::set_peers`] names.
    pub fn start(config: LinkConfig, listener: LinkListener, incoming: Arc<dyn Incoming>) -> Self {
        let (up, counters) = (DashMap::new(), Counters::default());
        let inner = Arc::new(Inner { config, incoming, up, counters });
        let acceptor = tokio::spawn(accepting::accept(inner.clone(), listener.listener));
        Self { inner, keepers: Arc::default(), acceptor: Arc::new(Mutex::new(Some(acceptor))) }
    }

    /// The peers there are, with their addresses: links to others are closed, missing ones are made, for as long as
    /// they are named.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = (PeerId, String)>) {
        let wanted: HashMap<PeerId, String> = peers.into_iter().collect();
        let mut keepers = self.keepers.lock();
        let gone: Vec<PeerId> = keepers
            .iter()
            .filter(|(peer, (address, _))| wanted.get(peer) != Some(address))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in gone {
            if let Some((_, keeper)) = keepers.remove(&peer) {
                keeper.abort();
            }
            self.inner.lost(peer);
        }
        for (peer, address) in wanted {
            keepers.entry(peer).or_insert_with(|| {
                let keeper = tokio::spawn(dialling::keep(self.inner.clone(), peer, address.clone()));
                (address, keeper)
            });
        }
    }

    /// What was counted.
    pub fn numbers(&self) -> LinkNumbers {
        let Counters { broken, frames, bytes, busy, refused } = &self.inner.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkNumbers {
            up: self.inner.up.len() as u64,
            broken: read(broken),
            frames: read(frames),
            bytes: read(bytes),
            busy: read(busy),
            refused: read(refused),
        }
    }

    /// Closes everything.
    pub fn stop(&self) {
        if let Some(acceptor) = self.acceptor.lock().take() {
            acceptor.abort();
        }
        self.set_peers([]);
    }
}

impl Inner {
    /// The link to a peer is over, if there was one.
    fn lost(&self, peer: PeerId) {
        if let Some((_, dialled)) = self.up.remove(&peer) {
            dialled.close();
            self.counters.broken.fetch_add(1, Ordering::Relaxed);
            self.incoming.link_down(peer);
        }
    }

    fn link(&self, peer: PeerId) -> Result<Arc<Dialled>, LinkError> {
        self.up.get(&peer).map(|dialled| dialled.clone()).ok_or(LinkError::Away)
    }

    fn count(&self, sent: Result<usize, LinkError>) -> Result<(), LinkError> {
        match sent {
            Ok(bytes) => {
                self.counters.frames.fetch_add(1, Ordering::Relaxed);
                self.counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                if error == LinkError::Busy {
                    self.counters.busy.fetch_add(1, Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }
}

impl Links for LinkNet {
    fn tell(&self, to: PeerId, lane: Lane, body: Vec<u8>) -> Result<(), LinkError> {
        let link = self.inner.link(to)?;
        self.inner.count(link.tell(lane, body))
    }

    fn ask(
        &self,
        to: PeerId,
        body: Vec<u8>,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LinkError>> {
        let asked = self.inner.link(to).and_then(|link| {
            let (sent, id, answer) = link.ask(body)?;
            self.inner.count(Ok(sent))?;
            Ok((link, id, answer))
        });
        let (link, id, answer) = match asked {
            Ok(asked) => asked,
            Err(error) => return std::future::ready(self.inner.count(Err(error)).and(Err(error))).boxed(),
        };
        async move {
            let answered = tokio::time::timeout(within, answer).await;
            if answered.is_err() {
                link.forget(id);
            }
            answered.ok().and_then(Result::ok).ok_or(LinkError::Lost)
        }
        .boxed()
    }

    fn version(&self, peer: PeerId) -> Option<u16> {
        self.inner.link(peer).ok().map(|dialled| dialled.version())
    }

    fn up(&self) -> Vec<PeerId> {
        self.inner.up.iter().map(|entry| *entry.key()).collect()
    }

    fn reset(&self, peer: PeerId) {
        if let Ok(dialled) = self.inner.link(peer) {
            dialled.close();
        }
    }
}
