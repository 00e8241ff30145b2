//! The side that dials: keeps a link to a peer for as long as the peer is there.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::frames::{self, Frame, Kind, Returned};
use super::{Inner, handshake};
use crate::cluster::link::{LANES, Lane, LinkError};
use crate::cluster::membership::PeerId;

/// How long a connection may take to be made, its handshake included.
const CONNECT: Duration = Duration::from_secs(3);
/// The pauses between attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// What all certificates of nodes are for.
pub(super) const TLS_NAME: &str = "convoke-node";

type Pending = Mutex<HashMap<u64, oneshot::Sender<Bytes>>>;

/// One lane that was dialled.
struct Out {
    version: u16,
    frames: mpsc::Sender<Frame<Vec<u8>>>,
    budget: Arc<Semaphore>,
    longest: usize,
    pending: Arc<Pending>,
    next: AtomicU64,
}

impl Out {
    fn send(&self, kind: Kind, id: u64, body: Vec<u8>) -> Result<usize, LinkError> {
        // The longest fits although the peer keeps some back.
        let (cost, bytes) = (frames::cost(body.len(), self.longest), body.len());
        let room = self.budget.try_acquire_many(cost).map_err(|_| LinkError::Busy)?;
        match self.frames.try_send(Frame { kind, id, body }) {
            Ok(()) => {
                // Given back by the peer.
                room.forget();
                Ok(bytes)
            }
            Err(mpsc::error::TrySendError::Full(_)) => Err(LinkError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(LinkError::Away),
        }
    }
}

/// A link that stands.
pub(super) struct Dialled {
    lanes: [Out; 3],
    closing: Notify,
}

impl Dialled {
    pub(super) fn tell(&self, lane: Lane, body: Vec<u8>) -> Result<usize, LinkError> {
        self.lanes[lane as usize].send(Kind::Tell, 0, body)
    }

    pub(super) fn ask(&self, body: Vec<u8>) -> Result<(usize, u64, oneshot::Receiver<Bytes>), LinkError> {
        let lane = &self.lanes[Lane::Requests as usize];
        let (tell, told) = oneshot::channel();
        let id = lane.next.fetch_add(1, Ordering::Relaxed);
        lane.pending.lock().insert(id, tell);
        match lane.send(Kind::Ask, id, body) {
            Ok(sent) => Ok((sent, id, told)),
            Err(error) => {
                lane.pending.lock().remove(&id);
                Err(error)
            }
        }
    }

    /// What both ends speak.
    pub(super) fn version(&self) -> u16 {
        self.lanes.iter().map(|lane| lane.version).min().unwrap_or_default()
    }

    /// Nobody waits for this answer any more.
    pub(super) fn forget(&self, id: u64) {
        self.lanes[Lane::Requests as usize].pending.lock().remove(&id);
    }

    /// Ends it: who waits for an answer learns that there is none.
    pub(super) fn close(&self) {
        self.closing.notify_one();
        for lane in &self.lanes {
            lane.pending.lock().clear();
        }
    }
}

/// Makes the link, and makes it anew whenever it breaks.
pub(super) async fn keep(inner: Arc<Inner>, peer: PeerId, address: String) {
    let mut pause = PAUSES.0;
    let mut said = String::new();
    loop {
        let mut tasks = JoinSet::new();
        match dial(&inner, peer, &address, &mut tasks).await {
            Ok(dialled) => {
                pause = PAUSES.0;
                said.clear();
                let dialled = Arc::new(dialled);
                inner.up.insert(peer, dialled.clone());
                tracing::info!(%peer, address, "a link stands");
                inner.incoming.link_up(peer);
                tokio::select! {
                    _ = tasks.join_next() => {}
                    () = dialled.closing.notified() => {}
                }
                tracing::warn!(%peer, address, "a link broke");
                inner.lost(peer);
            }
            Err(error) => {
                if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::AddrNotAvailable)
                {
                    inner.incoming.peer_refuses(peer);
                }
                // Once for each reason: a peer may be away for long.
                let text = error.to_string();
                if text != said {
                    tracing::warn!(%peer, address, %error, "a node cannot be reached");
                    said = text;
                }
            }
        }
        drop(tasks);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn dial(
    inner: &Arc<Inner>,
    peer: PeerId,
    address: &str,
    tasks: &mut JoinSet<io::Result<()>>,
) -> io::Result<Dialled> {
    let mut lanes = Vec::with_capacity(LANES.len());
    for lane in LANES {
        let made = connect(inner, peer, address, lane, tasks);
        lanes.push(tokio::time::timeout(CONNECT, made).await??);
    }
    let lanes = lanes.try_into().map_err(|_| io::Error::other("a link has as many lanes as there are"))?;
    Ok(Dialled { lanes, closing: Notify::new() })
}

async fn connect(
    inner: &Arc<Inner>,
    peer: PeerId,
    address: &str,
    lane: Lane,
    tasks: &mut JoinSet<io::Result<()>>,
) -> io::Result<Out> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    match &inner.config.tls {
        None => begin(inner, peer, stream, lane, tasks).await,
        Some(tls) => {
            let name = ServerName::try_from(TLS_NAME).map_err(io::Error::other)?;
            let stream = TlsConnector::from(tls.client.clone()).connect(name, stream).await?;
            begin(inner, peer, stream, lane, tasks).await
        }
    }
}

async fn begin(
    inner: &Arc<Inner>,
    peer: PeerId,
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    lane: Lane,
    tasks: &mut JoinSet<io::Result<()>>,
) -> io::Result<Out> {
    let config = &inner.config;
    let version = handshake::dial(&mut stream, config, peer, lane).await?;
    let (reader, writer) = tokio::io::split(stream);
    // A frame takes at least 64 bytes of the window: so many fit.
    let (frames, queued) = mpsc::channel(config.window / 64 + 1);
    let pending: Arc<Pending> = Arc::default();
    let budget = Arc::new(Semaphore::new(config.window));
    // Nothing is to be given back on this side.
    let returned = Returned::new(config.window);
    tasks.spawn(async move { frames::write_all(writer, queued, &returned).await });
    let credit = Budget { all: config.window, left: budget.clone() };
    tasks.spawn(take(reader, config.silence, pending.clone(), credit));
    let longest = config.window - frames::kept_back(config.window);
    Ok(Out { version, frames, budget, longest, pending, next: AtomicU64::new(1) })
}

/// What may be on its way, as the side sees it that is given credit.
struct Budget {
    all: usize,
    left: Arc<Semaphore>,
}

impl Budget {
    /// A peer counts the longest frames in full, so that it may give back more than they took.
    fn give_back(&self, bytes: u64) {
        let taken = self.all.saturating_sub(self.left.available_permits());
        self.left.add_permits(usize::try_from(bytes).unwrap_or(usize::MAX).min(taken));
    }
}

async fn take(
    reader: impl AsyncRead + Unpin,
    silence: Duration,
    pending: Arc<Pending>,
    budget: Budget,
) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(frames::BATCH, reader);
    loop {
        let Frame { kind, id, body } = tokio::time::timeout(silence, frames::read(&mut reader)).await??;
        match kind {
            Kind::Answer => {
                let waits = pending.lock().remove(&id);
                // Nobody waits any more: fine.
                waits.map(|tell| tell.send(body));
            }
            Kind::Credit => budget.give_back(id),
            _ => {}
        }
    }
}
