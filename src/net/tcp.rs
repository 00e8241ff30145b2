//! Plain TCP: the socket, and the decoder of length-prefixed frames.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::task::{Context, Poll};

use convoke_protocol::framing::LENGTH_BYTES;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::actors::session::egress::SocketWriter;
use crate::net::connection::Socket;
use crate::net::decode::{DecodeError, Decoded};

/// Takes frames out of a stream in which a 4-byte big-endian length stands before each.
#[derive(Debug, Default)]
pub struct TcpDecoder {
    /// The length and what has arrived of a frame that was not complete in one piece.
    partial: Vec<u8>,
    /// The frame in `partial` has been handed out.
    spent: bool,
}

impl TcpDecoder {
    /// As [`crate::net::decode::Decoder::next`].
    ///
    /// # Errors
    /// A frame longer than `max`.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        max: usize,
    ) -> Result<(usize, Decoded<'a>), DecodeError> {
        self.release();
        if self.partial.is_empty() {
            let Some(total) = Self::total(input, max)?.filter(|total| *total <= input.len()) else {
                self.partial.extend_from_slice(input);
                return Ok((input.len(), Decoded::Nothing));
            };
            return Ok((total, Decoded::Frame(&input[LENGTH_BYTES..total])));
        }
        let mut used = 0;
        let total = loop {
            let total = Self::total(&self.partial, max)?;
            let missing = total.unwrap_or(LENGTH_BYTES) - self.partial.len();
            match total {
                Some(total) if missing == 0 => break total,
                _ if used == input.len() => return Ok((used, Decoded::Nothing)),
                _ => {}
            }
            let taken = missing.min(input.len() - used);
            self.partial.extend_from_slice(&input[used..used + taken]);
            used += taken;
        };
        self.spent = true;
        Ok((used, Decoded::Frame(&self.partial[LENGTH_BYTES..total])))
    }

    /// Length and frame together, once the length is there.
    fn total(bytes: &[u8], max: usize) -> Result<Option<usize>, DecodeError> {
        let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*length);
        match usize::try_from(announced) {
            Ok(length) if length <= max => Ok(Some(LENGTH_BYTES + length)),
            _ => Err(DecodeError::TooLarge { announced: u64::from(announced), allowed: max }),
        }
    }

    /// As [`crate::net::decode::Decoder::release`].
    pub fn release(&mut self) {
        if std::mem::take(&mut self.spent) {
            self.partial = Vec::new();
        }
    }

    /// As [`crate::net::decode::Decoder::held_bytes`].
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity()
    }
}

/// A TCP connection without TLS.
#[derive(Debug)]
pub(crate) struct TcpSocket(TcpStream);

impl TcpSocket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }
}

/// Reads what is there. A read that did not fill the buffer has emptied the socket, so its readiness is taken back at
/// once: the next try costs no system call.
pub(crate) fn try_read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    let outcome = stream.try_io(Interest::READABLE, || {
        read = (&*SockRef::from(stream)).read(buffer)?;
        if read > 0 && read < buffer.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && read > 0 => Ok(read),
        outcome => outcome.map(|()| read),
    }
}

/// Ends one or both directions; a peer that is gone already is no error.
pub(crate) fn shutdown(stream: &TcpStream, how: Shutdown) {
    let _ = SockRef::from(stream).shutdown(how);
}

impl SocketWriter for TcpSocket {
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            // The plain call costs the kernel less.
            [one] => self.0.try_write(one),
            _ => self.0.try_write_vectored(slices),
        }
    }
}

impl Socket for TcpSocket {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        try_read(&self.0, buffer)
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx)
    }

    fn finish_writing(&self) {
        shutdown(&self.0, Shutdown::Write);
    }

    fn shutdown(&self) {
        shutdown(&self.0, Shutdown::Both);
    }
}
