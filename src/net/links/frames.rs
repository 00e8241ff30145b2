//! Frames on a link's connection, and how many bytes of its window each takes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::{Notify, mpsc};

/// The longest frame. Far above what a lane carries: groups with all their members.
const MAX_FRAME: usize = 32 << 20;

/// Kind and id.
const HEAD: usize = 9;

/// What is written to the socket at once, if so much waits.
pub(super) const BATCH: usize = 16 << 10;

/// After so long without a frame one is sent that says nothing.
pub(super) const QUIET: Duration = Duration::from_millis(500);

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// To be dealt with.
    Tell,
    /// To be answered.
    Ask,
    /// The answer.
    Answer,
    /// So many bytes (the id) were dealt with: see [`Returned`].
    Credit,
    /// Still there.
    Alive,
    /// The handshake.
    Hello,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Tell => 1,
            Self::Ask => 2,
            Self::Answer => 3,
            Self::Credit => 4,
            Self::Alive => 5,
            Self::Hello => 6,
        }
    }

    fn of(number: u8) -> Option<Self> {
        [Self::Tell, Self::Ask, Self::Answer, Self::Credit, Self::Alive, Self::Hello]
            .into_iter()
            .find(|kind| kind.number() == number)
    }
}

#[derive(Debug)]
pub(super) struct Frame<B> {
    pub(super) kind: Kind,
    pub(super) id: u64,
    pub(super) body: B,
}

/// What a body of this length takes of the window: also an empty one takes room in queues.
pub(super) fn cost(body: usize, window: usize) -> u32 {
    u32::try_from((body + 64).min(window)).unwrap_or(u32::MAX)
}

/// How much of a window may have been dealt with without having been given back.
pub(super) fn kept_back(window: usize) -> usize {
    window / 16
}

/// What a peer has dealt with, to be given back: with the next answers, or when the connection is quiet, or at once when it is
/// much. A frame of its own for each would wake both ends once more for every push.
pub(super) struct Returned {
    bytes: AtomicU64,
    much: u64,
    is_much: Notify,
}

impl Returned {
    pub(super) fn new(window: usize) -> Self {
        let much = kept_back(window) as u64;
        Self { bytes: AtomicU64::new(0), much, is_much: Notify::new() }
    }

    pub(super) fn add(&self, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes >= self.much {
            self.is_much.notify_one();
        }
    }

    async fn is_much(&self) {
        self.is_much.notified().await;
    }

    fn take(&self) -> Option<Frame<[u8; 0]>> {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        (bytes > 0).then_some(Frame { kind: Kind::Credit, id: bytes, body: [] })
    }
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

/// Reads one frame. Not cancel safe: half a frame may be lost.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame<Bytes>> {
    let length = stream.read_u32().await? as usize;
    if !(HEAD..=MAX_FRAME).contains(&length) {
        return Err(bad("a frame of an impossible length"));
    }
    let kind = Kind::of(stream.read_u8().await?).ok_or_else(|| bad("a frame of an unknown kind"))?;
    let id = stream.read_u64().await?;
    // Grows with what arrives, not with what is claimed.
    let mut body = Vec::with_capacity((length - HEAD).min(BATCH));
    let arrived = stream.take((length - HEAD) as u64).read_to_end(&mut body).await?;
    if arrived < length - HEAD {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Frame { kind, id, body: body.into() })
}

pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: &Frame<impl AsRef<[u8]>>,
) -> io::Result<()> {
    let body = frame.body.as_ref();
    let length = u32::try_from(body.len() + HEAD).map_err(|_| bad("a frame that is too long"))?;
    if length as usize > MAX_FRAME {
        return Err(bad("a frame that is too long"));
    }
    stream.write_u32(length).await?;
    stream.write_u8(frame.kind.number()).await?;
    stream.write_u64(frame.id).await?;
    stream.write_all(body).await
}

/// Writes frames as they come, as many at once as there are, and what is to be given back; says that it is still there when none
/// come.
pub(super) async fn write_all(
    stream: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame<Vec<u8>>>,
    returned: &Returned,
) -> io::Result<()> {
    let mut stream = BufWriter::with_capacity(BATCH, stream);
    loop {
        let next = async {
            tokio::select! {
                next = frames.recv() => Next::Frame(next),
                () = returned.is_much() => Next::Credit,
            }
        };
        let quiet = match tokio::time::timeout(QUIET, next).await {
            Ok(Next::Frame(Some(frame))) => {
                write(&mut stream, &frame).await?;
                while let Ok(frame) = frames.try_recv() {
                    write(&mut stream, &frame).await?;
                }
                false
            }
            Ok(Next::Frame(None)) => return Ok(()),
            Ok(Next::Credit) => false,
            Err(_) => true,
        };
        match returned.take() {
            Some(credit) => write(&mut stream, &credit).await?,
            None if quiet => write(&mut stream, &Frame { kind: Kind::Alive, id: 0, body: [] }).await?,
            None => {}
        }
        stream.flush().await?;
    }
}

/// What is to be written next.
enum Next {
    Frame(Option<Frame<Vec<u8>>>),
    Credit,
}
