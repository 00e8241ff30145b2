//! TLS with rustls: certificates, and a socket that anyone may write to without waiting.
//!
//! rustls' connection is plain state without I/O; behind a mutex over the non-blocking socket it serves the task that
//! reads and whoever writes. Between calls it holds what the kernel would not take of one write, and the bytes of an
//! incomplete record.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use tokio::net::TcpStream;

use crate::actors::session::egress::SocketWriter;
use crate::net::connection::Socket;
use crate::net::tcp;

/// The most bytes that are encrypted ahead of the kernel, per connection.
const MAX_ENCRYPTED_AHEAD: usize = 64 << 10;

/// Where certificate chain and key are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's certificate first.
    pub certificate: PathBuf,
    /// The key of the first certificate.
    pub key: PathBuf,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or is not PEM.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The file has no certificate.
    #[error("{}: no certificate in it", .0.display())]
    NoCertificate(PathBuf),
    /// Certificate and key do not fit, or are of no kind that is supported.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// What makes TLS connections; its certificate may be replaced while it runs.
pub struct TlsAcceptor {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
}

impl std::fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsAcceptor").field("files", &self.files).finish_non_exhaustive()
    }
}

impl TlsAcceptor {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// They cannot be read or used.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let config = ArcSwap::from_pointee(server_config(&files)?);
        Ok(Self { files, config })
    }

    /// Reads them again; connections that stand keep what they have.
    ///
    /// # Errors
    /// They cannot be read or used; the former ones stay.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.config.store(Arc::new(server_config(&self.files)?));
        Ok(())
    }

    /// Performs the handshake. The caller bounds its time.
    ///
    /// # Errors
    /// The peer is no TLS client that the server can talk to, or is gone.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsSocket> {
        let mut connection = ServerConnection::new(self.config.load_full()).map_err(io::Error::other)?;
        connection.set_buffer_limit(Some(MAX_ENCRYPTED_AHEAD));
        while connection.is_handshaking() {
            while connection.wants_write() {
                match connection.write_tls(&mut NonBlocking(&stream)) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
                    Err(error) => return Err(error),
                }
            }
            if !connection.is_handshaking() {
                break;
            }
            match connection.read_tls(&mut NonBlocking(&stream)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    if let Err(error) = connection.process_new_packets() {
                        // The alert that says why, as far as it fits.
                        let _ = connection.write_tls(&mut NonBlocking(&stream));
                        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.readable().await?,
                Err(error) => return Err(error),
            }
        }
        let socket = TlsSocket { stream, connection: Mutex::new(connection) };
        match socket.try_flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            // What is left (session tickets) goes before the first write.
            _ => Ok(socket),
        }
    }
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed(&files.certificate))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(files.certificate.clone()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(failed(&files.key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // Sessions resume by tickets, so that thousands that reconnect at once cost no state here.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// A TCP connection under TLS, after its handshake.
pub(crate) struct TlsSocket {
    stream: TcpStream,
    connection: Mutex<ServerConnection>,
}

impl TlsSocket {
    /// Hands the kernel what is encrypted already.
    fn write_out(&self, connection: &mut ServerConnection) -> io::Result<()> {
        while connection.wants_write() {
            connection.write_tls(&mut NonBlocking(&self.stream))?;
        }
        Ok(())
    }
}

impl SocketWriter for TlsSocket {
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut connection = self.connection.lock();
        // Only once the former write is out: so no more than one waits encrypted.
        self.write_out(&mut connection)?;
        let taken = connection.writer().write_vectored(slices)?;
        match self.write_out(&mut connection) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ if taken == 0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(taken),
        }
    }

    fn try_flush(&self) -> io::Result<()> {
        self.write_out(&mut self.connection.lock())
    }
}

impl Socket for TlsSocket {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut connection = self.connection.lock();
        loop {
            match connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            // At the end of the stream `reader` says so, next time round.
            connection.read_tls(&mut NonBlocking(&self.stream))?;
            let processed = connection.process_new_packets();
            match self.write_out(&mut connection) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_ready(cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }

    fn finish_writing(&self) {
        let mut connection = self.connection.lock();
        connection.send_close_notify();
        // As far as it fits: the peer is told by the end of the stream too.
        let _ = self.write_out(&mut connection);
        tcp::shutdown(&self.stream, Shutdown::Write);
    }

    fn shutdown(&self) {
        tcp::shutdown(&self.stream, Shutdown::Both);
    }
}

/// A socket as rustls wants it.
struct NonBlocking<'a>(&'a TcpStream);

impl Read for NonBlocking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        tcp::try_read(self.0, buffer)
    }
}

impl Write for NonBlocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
