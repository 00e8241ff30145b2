//! The side that is dialled: takes what a peer tells and asks, answers, and gives credit back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use super::Inner;
use super::frames::{self, Frame, Kind, Returned};
use super::handshake;
use crate::cluster::link::{Answering, Credit};

/// How long a handshake may take, TLS included.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that have not proved yet to be of the cluster.
const STRANGERS: usize = 64;
/// Answers that wait to be written; who answers waits beyond it.
const ANSWERS: usize = 4_096;
/// The pause after the system had no connection to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn accept(inner: Arc<Inner>, listener: TcpListener) {
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    loop {
        let Ok(stranger) = strangers.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection of another node can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let inner = inner.clone();
        tokio::spawn(async move {
            let begun = tokio::time::timeout(HANDSHAKE, begin(&inner, stream)).await;
            let begun = begun.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            drop(stranger);
            match begun {
                Ok((stream, from)) => serve(&inner, stream, &from).await,
                Err(error) => refuse(&inner, peer, &error),
            }
        });
    }
}

fn refuse(inner: &Inner, peer: SocketAddr, error: &io::Error) {
    inner.counters.refused.fetch_add(1, Ordering::Relaxed);
    tracing::warn!(%peer, %error, "a connection to the link listener was refused");
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn begin(inner: &Inner, stream: TcpStream) -> io::Result<(Box<dyn Stream>, handshake::Peer)> {
    stream.set_nodelay(true)?;
    let mut stream: Box<dyn Stream> = match &inner.config.tls {
        Some(tls) => Box::new(TlsAcceptor::from(tls.server.clone()).accept(stream).await?),
        None => Box::new(stream),
    };
    let from = handshake::accept(&mut stream, &inner.config).await?;
    Ok((stream, from))
}

struct Owed {
    bytes: u64,
    returned: Arc<Returned>,
}

impl Credit for Owed {}

impl Drop for Owed {
    fn drop(&mut self) {
        self.returned.add(self.bytes);
    }
}

async fn serve(inner: &Inner, stream: Box<dyn Stream>, from: &handshake::Peer) {
    let (reader, writer) = tokio::io::split(stream);
    let (answers, queued) = mpsc::channel(ANSWERS);
    let returned = Arc::new(Returned::new(inner.config.window));
    let ended = tokio::select! {
        ended = frames::write_all(writer, queued, &returned) => ended,
        ended = take(inner, reader, from, &answers, &returned) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %from.id, lane = ?from.lane, %error, "a peer's connection ended");
    }
}

async fn take(
    inner: &Inner,
    reader: impl AsyncRead + Unpin,
    from: &handshake::Peer,
    answers: &mpsc::Sender<Frame<Vec<u8>>>,
    returned: &Arc<Returned>,
) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(frames::BATCH * 4, reader);
    loop {
        let frame = tokio::time::timeout(inner.config.silence, frames::read(&mut reader)).await??;
        let bytes = u64::from(frames::cost(frame.body.len(), inner.config.window));
        let credit = || Owed { bytes, returned: returned.clone() };
        match frame.kind {
            Kind::Tell => inner.incoming.told(from.id, from.lane, frame.body, Box::new(credit())),
            Kind::Ask => {
                let (answers, id, credit) = (answers.clone(), frame.id, credit());
                let answer: Answering = Box::new(move |body| {
                    let frame = Frame { kind: Kind::Answer, id, body };
                    // Full: the answer waits in a task of its own. There are at most as many as the window has asked for.
                    if let Err(mpsc::error::TrySendError::Full(frame)) = answers.try_send(frame) {
                        tokio::spawn(async move {
                            let _ = answers.send(frame).await;
                            drop(credit);
                        });
                    }
                });
                inner.incoming.asked(from.id, frame.body, answer).await;
            }
            // It took nothing of the window.
            _ => {}
        }
    }
}
