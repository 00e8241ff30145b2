//! The other end of the sockets, in a process of its own: it reads, asks or sends, and measures.

use std::fmt;
use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::frame::{self, FRAME, HEADER, Header, Kind, MESSAGE, Sequence};
use super::stage::{Connected, Order, PATIENCE, PeerReport, connect, runtime};
use crate::load::LoadError;
use crate::load::latency::Latencies;
use crate::load::process::{raise_descriptor_limit, say};
use crate::load::report::Verdict;
use crate::load::report::conditions::cores;

/// What one read takes at most.
const READ: usize = 4096;

/// Which of the loops it is the other end of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// It reads.
    Deliveries,
    /// It asks and waits for the answer.
    Echoes,
    /// It sends messages, and gets acks and the messages of the other socket of a pair.
    Relays,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deliveries => "deliveries",
            Self::Echoes => "echoes",
            Self::Relays => "relays",
        })
    }
}

/// The arguments of the peer's process.
#[derive(Debug, Args)]
pub struct PeerOptions {
    /// Which loop
    #[arg(long)]
    part: Part,
    /// How many sockets to connect
    #[arg(long)]
    sockets: u32,
    /// Where to
    #[arg(long)]
    address: SocketAddr,
}

/// What all sockets' tasks share.
#[derive(Debug)]
struct Shared {
    begun: Instant,
    running: AtomicBool,
    measuring: AtomicBool,
    completed: AtomicU64,
    pushed: AtomicU64,
    recorders: Vec<Mutex<Recorder>>,
}

#[derive(Debug, Default)]
struct Recorder {
    latencies: Latencies,
    push_latencies: Latencies,
}

impl Shared {
    fn completed(&self, socket: u32, since: Instant) {
        self.completed.fetch_add(1, Ordering::Relaxed);
        if self.measuring.load(Ordering::Relaxed) {
            self.recorder(socket).lock().latencies.record(since.elapsed());
        }
    }

    /// The first bytes of a message's body are the time, by this process's clock, when it was sent.
    fn pushed(&self, socket: u32, message: &[u8]) {
        self.pushed.fetch_add(1, Ordering::Relaxed);
        let sent = message[HEADER..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        if self.measuring.load(Ordering::Relaxed) {
            let latency = self.micros().saturating_sub(sent.unwrap_or(0));
            let latency = Duration::from_micros(latency);
            self.recorder(socket).lock().push_latencies.record(latency);
        }
    }

    fn recorder(&self, socket: u32) -> &Mutex<Recorder> {
        &self.recorders[socket as usize % self.recorders.len()]
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }
}

/// What became of one socket.
#[derive(Debug, Default)]
struct Ended {
    sent: u64,
    acked: u64,
    received: Sequence,
}

type Task = JoinHandle<io::Result<Ended>>;

/// Runs the peer until it has reported or its stdin ends.
///
/// # Errors
/// What kept it from measuring.
pub fn run(options: &PeerOptions) -> Result<(), LoadError> {
    raise_descriptor_limit(super::descriptors(options.sockets))?;
    let runtime = runtime()?;
    let shared = Arc::new(Shared {
        begun: Instant::now(),
        running: AtomicBool::new(true),
        measuring: AtomicBool::new(false),
        completed: AtomicU64::new(0),
        pushed: AtomicU64::new(0),
        recorders: (0..cores()).map(|_| Mutex::default()).collect(),
    });
    let (start, started) = watch::channel(false);
    let tasks =
        runtime.block_on(connect_all(options, &shared, &started)).map_err(LoadError::doing("connecting"))?;
    say(&Connected)?;

    let mut marks = Vec::with_capacity(2);
    for line in io::stdin().lock().lines() {
        let line = line.map_err(LoadError::doing("reading orders"))?;
        match serde_json::from_str(&line).map_err(|source| LoadError::Unintelligible { line, source })? {
            Order::Start => {
                start.send_replace(true);
            }
            Order::Measure => {
                marks.push(Mark::take(&shared));
                shared.measuring.store(true, Ordering::Relaxed);
            }
            Order::Stop => {
                shared.measuring.store(false, Ordering::Relaxed);
                marks.push(Mark::take(&shared));
                shared.running.store(false, Ordering::Relaxed);
            }
            Order::Report => return say(&report(options.part, &runtime, tasks, &shared, &marks)?),
        }
    }
    Ok(())
}

/// How far everything was at a moment.
#[derive(Debug, Clone, Copy)]
struct Mark {
    micros: u64,
    completed: u64,
    pushed: u64,
}

impl Mark {
    fn take(shared: &Shared) -> Self {
        Self {
            micros: shared.micros(),
            completed: shared.completed.load(Ordering::Relaxed),
            pushed: shared.pushed.load(Ordering::Relaxed),
        }
    }
}

async fn connect_all(
    options: &PeerOptions,
    shared: &Arc<Shared>,
    started: &watch::Receiver<bool>,
) -> io::Result<Vec<Task>> {
    let mut tasks = Vec::with_capacity(options.sockets as usize);
    for number in 0..options.sockets {
        let stream = connect(options.address, number).await?;
        let (shared, mut started) = (Arc::clone(shared), started.clone());
        let part = options.part;
        tasks.push(tokio::spawn(async move {
            if part != Part::Deliveries && started.wait_for(|started| *started).await.is_err() {
                return Ok(Ended::default());
            }
            match part {
                Part::Deliveries => read(stream, &shared).await,
                Part::Echoes => ask(stream, number, &shared).await,
                Part::Relays => converse(stream, number, &shared).await,
            }
        }));
    }
    Ok(tasks)
}

fn garbage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what came was not what was sent")
}

/// Takes the whole frames off the front of a buffer, and moves what is left to its beginning.
fn take_whole(
    buffer: &mut [u8],
    filled: &mut usize,
    mut each: impl FnMut(Header, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut rest = &buffer[..*filled];
    while let Some((header, frame)) = frame::next(&mut rest).map_err(|_| garbage())? {
        each(header, frame)?;
    }
    let taken = *filled - rest.len();
    buffer.copy_within(taken..*filled, 0);
    *filled -= taken;
    Ok(())
}

/// Deliveries: reads and counts until the socket is closed.
async fn read(mut stream: TcpStream, shared: &Shared) -> io::Result<Ended> {
    let mut buffer = [0; READ];
    let mut filled = 0;
    let mut received = Sequence::default();
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            break;
        }
        filled += read;
        let before = received.distinct();
        take_whole(&mut buffer, &mut filled, |header, _| {
            received.take(header.id);
            Ok(())
        })?;
        let new = received.distinct() - before;
        shared.completed.fetch_add(new, Ordering::Relaxed);
    }
    Ok(Ended { received, ..Ended::default() })
}

/// Echoes: one request at a time until it is told to stop.
async fn ask(mut stream: TcpStream, number: u32, shared: &Shared) -> io::Result<Ended> {
    let mut request = [0xC3; FRAME];
    let mut answer = [0; FRAME];
    let mut ended = Ended::default();
    while shared.is_running() {
        ended.sent += 1;
        let header = Header { kind: Kind::Frame, socket: number, id: ended.sent };
        request[..HEADER].copy_from_slice(&header.encode());
        let since = Instant::now();
        stream.write_all(&request).await?;
        stream.read_exact(&mut answer).await?;
        shared.completed(number, since);
        if answer != request {
            return Err(garbage());
        }
        ended.acked += 1;
        ended.received.take(header.id);
    }
    Ok(ended)
}

/// Relays: one message in flight until it is told to stop; then the last ack, and all of the other
/// socket's messages until the relay closes.
async fn converse(mut stream: TcpStream, number: u32, shared: &Shared) -> io::Result<Ended> {
    let (mut incoming, mut outgoing) = stream.split();
    let mut buffer = [0; READ];
    let mut filled = 0;
    let mut ended = Ended::default();
    let mut since = Instant::now();
    let mut message = [0x3C; MESSAGE];
    let mut sending = true;
    loop {
        if sending && ended.sent == ended.acked {
            if shared.is_running() {
                ended.sent += 1;
                let header = Header { kind: Kind::Message, socket: number, id: ended.sent };
                message[..HEADER].copy_from_slice(&header.encode());
                message[HEADER..HEADER + 8].copy_from_slice(&shared.micros().to_le_bytes());
                since = Instant::now();
                outgoing.write_all(&message).await?;
            } else {
                outgoing.shutdown().await?;
                sending = false;
            }
        }
        let read = incoming.read(&mut buffer[filled..]).await?;
        if read == 0 {
            break;
        }
        filled += read;
        take_whole(&mut buffer, &mut filled, |header, frame| match header.kind {
            Kind::Ack if header.socket == number && header.id == ended.sent => {
                ended.acked += 1;
                shared.completed(number, since);
                Ok(())
            }
            Kind::Message if header.socket == number ^ 1 => {
                ended.received.take(header.id);
                shared.pushed(number, frame);
                Ok(())
            }
            _ => Err(garbage()),
        })?;
    }
    Ok(ended)
}

/// Waits until every socket has come to its end, and says what happened on all of them.
fn report(
    part: Part,
    runtime: &Runtime,
    tasks: Vec<Task>,
    shared: &Shared,
    marks: &[Mark],
) -> Result<PeerReport, LoadError> {
    let [first, last] = marks else {
        return Err(LoadError::Broken("a report was asked for before anything was measured"));
    };
    let ended = runtime
        .block_on(async { tokio::time::timeout(PATIENCE, join_all(tasks)).await })
        .map_err(|_| LoadError::Broken("something that was sent never arrived"))?
        .map_err(LoadError::doing("reading what was sent"))?;
    let mut report = PeerReport {
        measured_us: last.micros - first.micros,
        completed: last.completed - first.completed,
        pushed: last.pushed - first.pushed,
        completed_in_all: shared.completed.load(Ordering::Relaxed),
        verdict: verdict(part, &ended),
        ..PeerReport::default()
    };
    for recorder in &shared.recorders {
        let recorder = recorder.lock();
        report.latencies.merge(&recorder.latencies);
        report.push_latencies.merge(&recorder.push_latencies);
    }
    Ok(report)
}

async fn join_all(tasks: Vec<Task>) -> io::Result<Vec<Ended>> {
    let mut ended = Vec::with_capacity(tasks.len());
    for task in tasks {
        ended.push(task.await.map_err(io::Error::other)??);
    }
    Ok(ended)
}

/// Holds what was sent on each socket against what came of it, on it or on the other of its pair.
fn verdict(part: Part, ended: &[Ended]) -> Verdict {
    let mut verdict = Verdict::default();
    for (number, socket) in ended.iter().enumerate() {
        verdict.lost += socket.sent - socket.acked;
        let arrived_of = match part {
            // How many were sent only the other process knows; it adds what was lost.
            Part::Deliveries => 0,
            Part::Echoes => socket.acked,
            Part::Relays => ended.get(number ^ 1).map_or(0, |other| other.acked),
        };
        verdict.add(socket.received.verdict(arrived_of));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(acked: u64, received: &[u64]) -> Ended {
        let mut sequence = Sequence::default();
        received.iter().for_each(|id| sequence.take(*id));
        Ended { sent: acked, acked, received: sequence }
    }

    #[test]
    fn a_relay_is_judged_by_what_the_other_socket_received() {
        let clean = [ended(2, &[1, 2, 3]), ended(3, &[1, 2])];
        assert!(verdict(Part::Relays, &clean).is_clean());
        let lost = verdict(Part::Relays, &[ended(2, &[1, 2, 3]), ended(3, &[1])]);
        assert_eq!(lost, Verdict { lost: 1, ..Verdict::default() });
        let doubled = verdict(Part::Relays, &[ended(2, &[1, 2, 2, 3]), ended(3, &[1, 2])]);
        assert_eq!(doubled, Verdict { duplicated: 1, ..Verdict::default() });
    }

    #[test]
    fn what_was_never_answered_is_lost() {
        let mut unanswered = ended(1, &[1]);
        unanswered.sent = 2;
        assert_eq!(verdict(Part::Echoes, &[unanswered]), Verdict { lost: 1, ..Verdict::default() });
    }

    #[test]
    fn frames_are_taken_and_the_rest_is_kept() {
        let header = Header { kind: Kind::Ack, socket: 1, id: 2 };
        let mut buffer = [0; 64];
        buffer[..HEADER].copy_from_slice(&header.encode());
        buffer[HEADER..HEADER + 3].copy_from_slice(&[3, 0, 0]);
        let mut filled = HEADER + 3;
        let mut taken = Vec::new();
        take_whole(&mut buffer, &mut filled, |header, _| {
            taken.push(header);
            Ok(())
        })
        .unwrap();
        assert_eq!(taken, [header]);
        assert_eq!(buffer[..filled], [3, 0, 0]);
    }
}
