//! A bare durable relay: what arrives is appended to a file; one sync makes durable all that
//! arrived during the one before; then the sender gets an ack and the peer a push.
//!
//! ```text
//! a task per socket ─► what arrived ─► journal thread ─► a task per core ─► ack to the sender,
//!     reads              (a buffer)     append, sync       writes            push to its peer
//! ```

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::disk::Scratch;
use super::frame::{HEADER, Header, Kind, MESSAGE, Sequence};
use super::peer::Part;
use super::stage::{PATIENCE, PeerReport, Served, Stage};
use super::{Loop, Measured};
use crate::load::LoadError;
use crate::load::latency::Percentiles;
use crate::load::report::conditions::cores;
use crate::load::report::{Progress, Verdict, rate};

/// What one read takes at most.
const READ: usize = 4 * MESSAGE;
/// Synced batches that wait for a writer. The messages in them are at most one for each socket.
const BATCHES_WAITING: usize = 64;

/// What the relay did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Relayed {
    pub(super) measured: Measured,
    pub(super) push: Option<Percentiles>,
    pub(super) messages_per_sync: f64,
}

/// How acks and pushes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// Each in a write of its own, as a server does that treats messages one by one.
    Each,
    /// An ack and a push to the same socket that one sync made durable together in one write.
    Coalesced,
}

/// What has arrived and is not yet in the file.
#[derive(Debug, Default)]
struct Arrived {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct State {
    messages: Vec<u8>,
    closed: bool,
}

impl Arrived {
    fn add(&self, messages: &[u8]) {
        let mut state = self.state.lock();
        let first = state.messages.is_empty();
        state.messages.extend_from_slice(messages);
        drop(state);
        if first {
            self.more.notify_one();
        }
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.more.notify_one();
    }

    /// Waits for messages and takes all there are; `None` when it is closed and empty.
    fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.state.lock();
        while state.messages.is_empty() {
            if state.closed {
                return None;
            }
            self.more.wait(&mut state);
        }
        let room = Vec::with_capacity(state.messages.len());
        Some(std::mem::replace(&mut state.messages, room))
    }
}

pub(super) fn measure(
    sockets: u32,
    writes: Writes,
    directory: &Path,
    measured: Duration,
    progress: &Progress,
) -> Result<Relayed, LoadError> {
    let (mut stage, streams) = Stage::set(Part::Relays, sockets)?;
    let scratch = Scratch::create(directory, "relay")?;
    let file = scratch.file.try_clone().map_err(LoadError::doing("opening the journal"))?;
    let arrived = Arc::new(Arrived::default());
    let (readers, senders, writers) = spawn(&stage, streams, writes, &arrived);
    let journal = std::thread::spawn({
        let arrived = Arc::clone(&arrived);
        move || keep_journal(&arrived, file, &senders)
    });

    let what = match writes {
        Writes::Each => "relays, a write each",
        Writes::Coalesced => "relays",
    };
    let served = stage.measure(measured, progress, what)?;
    // In this order nothing is cut off: the peer ends its half of a socket when all that it sent
    // there is acked, the journal ends when it is empty, the writers when they wrote everything.
    stage.runtime.block_on(join_all(readers, "reading"))?;
    arrived.close();
    let journaled = journal
        .join()
        .map_err(|_| LoadError::Broken("the journal panicked"))?
        .map_err(LoadError::doing("writing the journal"))?;
    stage.runtime.block_on(join_all(writers, "writing"))?;
    let report = stage.end()?;
    let in_file = read_journal(&scratch.file, sockets)?;
    Ok(summarize(&report, served, journaled, in_file))
}

type Task = JoinHandle<io::Result<()>>;
type Batch = Arc<Vec<u8>>;

/// A reader for every socket, and a writer for every core's share of the pairs.
fn spawn(
    stage: &Stage,
    streams: Vec<TcpStream>,
    writes: Writes,
    arrived: &Arc<Arrived>,
) -> (Vec<Task>, Vec<mpsc::Sender<Batch>>, Vec<Task>) {
    let mut readers = Vec::with_capacity(streams.len());
    let mut shares: Vec<Vec<OwnedWriteHalf>> = (0..cores()).map(|_| Vec::new()).collect();
    for (number, stream) in streams.into_iter().enumerate() {
        let (read, write) = stream.into_split();
        readers.push(stage.runtime.spawn(read_all(read, Arc::clone(arrived))));
        shares[number / 2 % cores()].push(write);
    }
    let (senders, writers) = shares
        .into_iter()
        .enumerate()
        .map(|(at, sockets)| {
            let (sender, batches) = mpsc::channel(BATCHES_WAITING);
            let share = Share { at, of: cores(), sockets, writes };
            (sender, stage.runtime.spawn(share.write_all(batches)))
        })
        .unzip();
    (readers, senders, writers)
}

async fn join_all(tasks: Vec<Task>, doing: &'static str) -> Result<(), LoadError> {
    for task in tasks {
        tokio::time::timeout(PATIENCE, task)
            .await
            .map_err(|_| LoadError::Broken("the relay did not come to its end in time"))?
            .map_err(|_| LoadError::Broken("a task of the relay panicked"))?
            .map_err(LoadError::doing(doing))?;
    }
    Ok(())
}

async fn read_all(mut socket: OwnedReadHalf, arrived: Arc<Arrived>) -> io::Result<()> {
    let mut buffer = [0; READ];
    let mut filled = 0;
    loop {
        let read = socket.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let whole = filled - filled % MESSAGE;
        if whole > 0 {
            arrived.add(&buffer[..whole]);
            buffer.copy_within(whole..filled, 0);
            filled -= whole;
        }
    }
}

/// Messages and syncs.
#[derive(Debug, Default, Clone, Copy)]
struct Journaled {
    messages: u64,
    syncs: u64,
}

fn keep_journal(arrived: &Arrived, mut file: File, writers: &[mpsc::Sender<Batch>]) -> io::Result<Journaled> {
    let mut journaled = Journaled::default();
    while let Some(messages) = arrived.take() {
        file.write_all(&messages)?;
        file.sync_data()?;
        journaled.messages += (messages.len() / MESSAGE) as u64;
        journaled.syncs += 1;
        let batch = Arc::new(messages);
        for writer in writers {
            writer
                .blocking_send(Arc::clone(&batch))
                .map_err(|_| io::Error::other("a writer ended too soon"))?;
        }
    }
    Ok(journaled)
}

/// The sockets of one writer: both of every pair whose number, divided by the count of writers,
/// leaves `at`.
struct Share {
    at: usize,
    of: usize,
    sockets: Vec<OwnedWriteHalf>,
    writes: Writes,
}

impl Share {
    async fn write_all(self, mut batches: mpsc::Receiver<Batch>) -> io::Result<()> {
        let mut gathered = Gathered { of_socket: vec![Vec::new(); self.sockets.len()], sockets: Vec::new() };
        while let Some(batch) = batches.recv().await {
            match self.writes {
                Writes::Each => self.write_each(&batch).await?,
                Writes::Coalesced => self.write_coalesced(&batch, &mut gathered).await?,
            }
        }
        Ok(())
    }

    async fn write_each(&self, batch: &[u8]) -> io::Result<()> {
        for message in batch.chunks_exact(MESSAGE) {
            let Some((local, ack)) = self.mine(message)? else { continue };
            write_whole(self.socket(local)?, &ack).await?;
            write_whole(self.socket(local ^ 1)?, message).await?;
        }
        Ok(())
    }

    async fn write_coalesced(&self, batch: &[u8], gathered: &mut Gathered) -> io::Result<()> {
        for message in batch.chunks_exact(MESSAGE) {
            let Some((local, ack)) = self.mine(message)? else { continue };
            gathered.add(local, &ack)?;
            gathered.add(local ^ 1, message)?;
        }
        for local in gathered.sockets.drain(..) {
            let frames = &mut gathered.of_socket[local];
            write_whole(self.socket(local)?, frames).await?;
            frames.clear();
        }
        Ok(())
    }

    /// The place of a message's sender among these sockets, and the ack; `None` if another writer
    /// has the pair.
    fn mine(&self, message: &[u8]) -> io::Result<Option<(usize, [u8; HEADER])>> {
        let header = Header::decode(message).ok_or(io::ErrorKind::InvalidData)?;
        let number = header.socket as usize;
        if number / 2 % self.of != self.at {
            return Ok(None);
        }
        let ack = Header { kind: Kind::Ack, ..header };
        Ok(Some((number / 2 / self.of * 2 + number % 2, ack.encode())))
    }

    fn socket(&self, local: usize) -> io::Result<&OwnedWriteHalf> {
        self.sockets.get(local).ok_or(io::ErrorKind::InvalidData.into())
    }
}

/// The frames of one batch by the socket that they go to.
struct Gathered {
    of_socket: Vec<Vec<u8>>,
    sockets: Vec<usize>,
}

impl Gathered {
    fn add(&mut self, local: usize, frame: &[u8]) -> io::Result<()> {
        let frames = self.of_socket.get_mut(local).ok_or(io::ErrorKind::InvalidData)?;
        if frames.is_empty() {
            self.sockets.push(local);
        }
        frames.extend_from_slice(frame);
        Ok(())
    }
}

async fn write_whole(socket: &OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
    super::deliveries::write_whole(socket.as_ref(), bytes).await
}

/// What the file says: a verdict on its numbers, and how many there are.
fn read_journal(mut file: &File, sockets: u32) -> Result<(Verdict, u64), LoadError> {
    let failed = LoadError::doing("reading the journal");
    let mut read = || {
        file.rewind()?;
        let mut journal = BufReader::with_capacity(1 << 20, file);
        let mut sequences: Vec<Sequence> = (0..sockets).map(|_| Sequence::default()).collect();
        let mut message = [0; MESSAGE];
        loop {
            match journal.read_exact(&mut message) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                other => other?,
            }
            let header = Header::decode(&message).filter(|header| header.kind == Kind::Message);
            let header = header.ok_or(io::ErrorKind::InvalidData)?;
            let sequence = sequences.get_mut(header.socket as usize);
            sequence.ok_or(io::ErrorKind::InvalidData)?.take(header.id);
        }
        let mut verdict = Verdict::default();
        for sequence in &sequences {
            verdict.add(sequence.verdict(0));
        }
        Ok((verdict, sequences.iter().map(Sequence::distinct).sum()))
    };
    read().map_err(failed)
}

fn summarize(report: &PeerReport, served: Served, journaled: Journaled, in_file: (Verdict, u64)) -> Relayed {
    let mut verdict = report.verdict;
    verdict.add(in_file.0);
    // What was acked is in the file, and nothing else is.
    verdict.lost += report.completed_in_all.abs_diff(in_file.1) + journaled.messages.abs_diff(in_file.1);
    let elapsed = Duration::from_micros(report.measured_us);
    Relayed {
        measured: Measured {
            figures: Loop::new(
                rate(report.completed.min(report.pushed), elapsed),
                report.latencies.percentiles(),
                served.usage,
                served.elapsed,
            ),
            verdict,
        },
        push: report.push_latencies.percentiles(),
        #[expect(clippy::cast_precision_loss, reason = "a mean of few digits")]
        messages_per_sync: journaled.messages as f64 / journaled.syncs.max(1) as f64,
    }
}
