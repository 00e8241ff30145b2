//! Two processes with sockets between them: this one serves, the peer measures. Every bare loop
//! over sockets is set up, warmed up, measured and ended in this same way.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;

use super::WARM_UP;
use super::peer::Part;
use crate::load::LoadError;
use crate::load::latency::Latencies;
use crate::load::process::{Companion, Sample, Usage};
use crate::load::report::conditions::cores;
use crate::load::report::{Progress, Verdict};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// The kernel's buffer in each direction: enough for hundreds of frames, and little enough that
/// thousands of full ones fit in memory.
const SOCKET_BUFFER: u32 = 64 * 1024;
/// How long the sockets may take to be connected, or the loops to end once they were told to.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What the peer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Begin; what happens from now on is warming up.
    Start,
    /// From now on, count and measure.
    Measure,
    /// Until now.
    Stop,
    /// Everything was sent and the sockets are closed: report.
    Report,
}

/// The peer's first answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Connected;

/// The peer's answer to [`Order::Report`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct PeerReport {
    /// The measured time by the peer's clock, in microseconds.
    pub(super) measured_us: u64,
    /// In that time: frames that arrived, requests that were answered, messages that were acked.
    pub(super) completed: u64,
    /// In that time: messages that were pushed.
    pub(super) pushed: u64,
    /// Of all time, warming up and ending included: the same as `completed`.
    pub(super) completed_in_all: u64,
    /// How long what was completed took.
    pub(super) latencies: Latencies,
    /// How long it took from sending a message to its push.
    pub(super) push_latencies: Latencies,
    /// What was wrong with what arrived.
    pub(super) verdict: Verdict,
}

/// What this process used while the peer measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served {
    pub(super) usage: Usage,
    pub(super) elapsed: Duration,
}

/// The serving side.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) runtime: Runtime,
    peer: Companion,
}

impl Stage {
    /// Starts the peer and connects it; the sockets come in the order of their numbers.
    pub(super) fn set(part: Part, sockets: u32) -> Result<(Self, Vec<TcpStream>), LoadError> {
        let runtime = runtime()?;
        let listener = runtime.block_on(async { listen() }).map_err(LoadError::doing("listening"))?;
        let address = listener.local_addr().map_err(LoadError::doing("listening"))?;
        let mut peer = Companion::start([
            "bench",
            "limits-peer",
            &format!("--part={part}"),
            &format!("--sockets={sockets}"),
            &format!("--address={address}"),
        ])?;
        let accepted = runtime
            .block_on(async { tokio::time::timeout(PATIENCE, accept_all(&listener, sockets)).await })
            .map_err(|_| LoadError::Broken("the sockets were not connected in time"))?
            .map_err(LoadError::doing("accepting"))?;
        let Connected = peer.hear()?;
        Ok((Self { runtime, peer }, accepted))
    }

    /// Warms up, then has the peer measure. The loops go on until [`Stage::end`].
    pub(super) fn measure(
        &mut self,
        measured: Duration,
        progress: &Progress,
        what: &str,
    ) -> Result<Served, LoadError> {
        progress.say(format!("{what}: warming up"));
        self.peer.tell(&Order::Start)?;
        progress.wait(WARM_UP);
        progress.say(what);
        self.peer.tell(&Order::Measure)?;
        let before = Sample::of_self()?;
        progress.wait(measured);
        self.peer.tell(&Order::Stop)?;
        let after = Sample::of_self()?;
        progress.say(format!("{what}: checking"));
        Ok(Served { usage: after.since(&before), elapsed: after.elapsed_since(&before) })
    }

    /// Hears what the peer measured, once all that was sent has arrived and the sockets are closed.
    pub(super) fn end(&mut self) -> Result<PeerReport, LoadError> {
        self.peer.tell(&Order::Report)?;
        self.peer.hear()
    }
}

/// A runtime with a worker for every core, as the server has one.
pub(super) fn runtime() -> Result<Runtime, LoadError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores())
        .enable_all()
        .build()
        .map_err(LoadError::doing("starting a runtime"))
}

fn socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    Ok(socket)
}

fn listen() -> io::Result<TcpListener> {
    // What is accepted inherits the sizes of the buffers.
    let socket = socket()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket.listen(BACKLOG)
}

/// Connects one socket and says its number, which the order of accepting would not tell for sure.
pub(super) async fn connect(address: SocketAddr, number: u32) -> io::Result<TcpStream> {
    let mut stream = socket()?.connect(address).await?;
    stream.set_nodelay(true)?;
    tokio::io::AsyncWriteExt::write_u32(&mut stream, number).await?;
    Ok(stream)
}

async fn accept_all(listener: &TcpListener, sockets: u32) -> io::Result<Vec<TcpStream>> {
    let mut numbered = Vec::with_capacity(sockets as usize);
    for _ in 0..sockets {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        numbered.push((stream.read_u32().await?, stream));
    }
    numbered.sort_unstable_by_key(|(number, _)| *number);
    if numbered.iter().zip(0..).any(|((number, _), at)| *number != at) {
        return Err(io::Error::other("somebody else connected, or a number came twice"));
    }
    Ok(numbered.into_iter().map(|(_, stream)| stream).collect())
}
