//! One connection: TCP or TLS, frames in both directions, and the words before a session is live.
//!
//! This is the SDK's lowest layer, and usable by itself where reconnecting and merging are not wanted (load generators,
//! tests). It keeps no task of its own: reading and writing happen in the futures of [`FrameReader`] and
//! [`FrameWriter`].

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use convoke_protocol::PROTOCOL_VERSION;
use convoke_protocol::codec::{self, CodecError};
use convoke_protocol::error_code::RequestError;
use convoke_protocol::event::{GoAway, Kicked};
use convoke_protocol::frame::{Answer, Codec, ERROR_TYPE, Event, FrameHead, Incoming, Request};
use convoke_protocol::request::session::{Hello, LoggedIn, Login, Welcome};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The longest frame that is taken before the login is answered.
const MAX_EARLY_FRAME: usize = 64 << 10;

/// The longest frame that is taken later, unless the configuration says otherwise: a page with a long last message.
pub const DEFAULT_MAX_FRAME: usize = 8 << 20;

/// Events that may arrive before the answer to the login.
const MAX_EARLY_EVENTS: usize = 1024;

/// An error that answers no request: why the server closes the connection.
const LAST_WORDS: FrameHead = FrameHead { request_id: 0, type_number: ERROR_TYPE };

/// What one read asks for: a buffer grows by so much at a time, whatever length a frame claims.
const READ_CHUNK: usize = 16 << 10;

/// Why a connection failed, or could not be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectionError {
    /// The address cannot be reached, or the connection broke.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// The server closed the connection without a word.
    #[error("the connection was closed")]
    Closed,
    /// The server claims a frame longer than the bound.
    #[error("a frame of {bytes} bytes is longer than {limit}")]
    FrameTooLarge {
        /// What the server claims.
        bytes: usize,
        /// What is taken.
        limit: usize,
    },
    /// The bytes are not frames.
    #[error("not a frame: {0}")]
    Malformed(CodecError),
    /// `Hello`, `Login` or the connection as such was refused.
    #[error("{0}")]
    Refused(RequestError),
    /// The server asks to come back later, or elsewhere.
    #[error("sent away: {}", .0.reason)]
    GoAway(GoAway),
    /// The server does not want the session back.
    #[error("kicked: {}: {}", .0.reason, .0.message)]
    Kicked(Kicked),
    /// The session was not live in time.
    #[error("no session within {} s", .0.as_secs_f32())]
    Overdue(Duration),
    /// Something else came where an answer belongs.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// What belongs there.
        expected: &'static str,
        /// What came.
        got: &'static str,
    },
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl PartialEq for ConnectionError {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for ConnectionError {}

/// How to trust a server over TLS.
#[derive(Clone)]
pub struct Tls {
    config: Arc<rustls::ClientConfig>,
    server_name: Option<String>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Tls {
    /// A rustls configuration of the application's own. The server's name is the host of the address.
    pub fn new(config: Arc<rustls::ClientConfig>) -> Self {
        Self { config, server_name: None }
    }

    /// Trusts the certificate authorities of a PEM text, and no other.
    ///
    /// # Errors
    /// The text holds no certificate, or one that is not understood.
    pub fn from_ca_pem(pem: &[u8]) -> Result<Self, crate::ClientError> {
        let wrong = |what: String| crate::ClientError::Config(format!("the CA's PEM: {what}"));
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(wrong("no certificate in it".into()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self::new(Arc::new(config)))
    }

    /// Expects this name in the server's certificate instead of the host of the address.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Reads frames.
pub struct FrameReader {
    inner: ReadHalf<Box<dyn Stream>>,
    buffer: BytesMut,
    max_frame: usize,
    early: VecDeque<Event>,
}

impl FrameReader {
    /// The next frame that was read already, without waiting.
    ///
    /// # Errors
    /// What is there is not a frame.
    pub fn take(&mut self) -> Result<Option<Incoming>, ConnectionError> {
        if let Some(event) = self.early.pop_front() {
            return Ok(Some(Incoming::Event(event)));
        }
        let Some(prefix) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let bytes = u32::from_be_bytes(*prefix) as usize;
        if bytes > self.max_frame {
            return Err(ConnectionError::FrameTooLarge { bytes, limit: self.max_frame });
        }
        let Some(frame) = self.buffer.get(4..4 + bytes) else { return Ok(None) };
        let incoming = Incoming::decode(Codec::Bincode, frame).map_err(ConnectionError::Malformed)?;
        if incoming == Incoming::Unknown(LAST_WORDS) {
            let raw = codec::split_frame(frame).map_err(ConnectionError::Malformed)?;
            let error = codec::decode_body(Codec::Bincode, raw.body).map_err(ConnectionError::Malformed)?;
            return Err(ConnectionError::Refused(error));
        }
        self.buffer.advance(4 + bytes);
        Ok(Some(incoming))
    }

    /// The next frame.
    ///
    /// # Cancel-safety
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The connection ended, or what arrived is not a frame.
    pub async fn next(&mut self) -> Result<Incoming, ConnectionError> {
        loop {
            if let Some(incoming) = self.take()? {
                return Ok(incoming);
            }
            self.buffer.reserve(READ_CHUNK);
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                return Err(ConnectionError::Closed);
            }
        }
    }
}

/// Writes frames, as many as are queued in one call.
pub struct FrameWriter {
    inner: WriteHalf<Box<dyn Stream>>,
    buffer: BytesMut,
    unflushed: bool,
    last_request_id: u64,
}

impl FrameWriter {
    /// Queues a request and says under which id its answer will come.
    pub fn put(&mut self, request: &Request) -> u64 {
        self.last_request_id += 1;
        let frame = request.encode(Codec::Bincode, self.last_request_id);
        // A frame is bounded by the body's bound long before it could exceed the prefix.
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.buffer.extend_from_slice(&length.to_be_bytes());
        self.buffer.extend_from_slice(&frame);
        self.last_request_id
    }

    /// How many bytes wait to be written.
    pub fn queued(&self) -> usize {
        self.buffer.len()
    }

    /// Whether [`FrameWriter::write`] has something to do.
    pub fn pending(&self) -> bool {
        self.unflushed || !self.buffer.is_empty()
    }

    /// Writes some of what is queued; call again while [`FrameWriter::pending`].
    ///
    /// # Cancel-safety
    /// Nothing is lost or written twice when the future is dropped.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn write(&mut self) -> Result<(), ConnectionError> {
        if self.buffer.is_empty() {
            self.inner.flush().await?;
            self.unflushed = false;
        } else {
            self.unflushed = true;
            if self.inner.write_buf(&mut self.buffer).await? == 0 {
                return Err(ConnectionError::Closed);
            }
        }
        Ok(())
    }

    /// Writes everything that is queued.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        while self.pending() {
            self.write().await?;
        }
        Ok(())
    }
}

/// A live session on one connection.
pub struct Connection {
    /// Where answers and events come from.
    pub reader: FrameReader,
    /// Where requests go.
    pub writer: FrameWriter,
    /// What the server said about itself.
    pub welcome: Welcome,
    /// Who the server says we are.
    pub logged_in: LoggedIn,
}

/// What it takes to open a [`Connection`].
#[derive(Debug, Clone)]
pub struct Opening {
    /// `host:port`.
    pub address: String,
    /// Over TLS, and whom to trust.
    pub tls: Option<Tls>,
    /// The client's name and version.
    pub app: (String, String),
    /// Who logs in.
    pub login: Login,
    /// How long connecting and logging in may take together.
    pub timeout: Duration,
    /// The longest frame that is taken.
    pub max_frame: usize,
}

impl Connection {
    /// Connects, says hello and logs in.
    ///
    /// # Errors
    /// Any of it failed, or took longer than allowed.
    pub async fn open(opening: Opening) -> Result<Self, ConnectionError> {
        let timeout = opening.timeout;
        tokio::time::timeout(timeout, Self::open_unbounded(opening))
            .await
            .unwrap_or(Err(ConnectionError::Overdue(timeout)))
    }

    async fn open_unbounded(opening: Opening) -> Result<Self, ConnectionError> {
        let stream = dial(&opening.address, opening.tls.as_ref()).await?;
        let (reader, writer) = tokio::io::split(stream);
        let mut reader = FrameReader {
            inner: reader,
            buffer: BytesMut::new(),
            max_frame: MAX_EARLY_FRAME,
            early: VecDeque::new(),
        };
        let mut writer =
            FrameWriter { inner: writer, buffer: BytesMut::new(), unflushed: false, last_request_id: 0 };
        let (app, version) = opening.app;
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            app,
            version,
            os: std::env::consts::OS.into(),
            features: Vec::new(),
        };
        let welcome = match ask(&mut reader, &mut writer, hello.into()).await? {
            Answer::Welcome(welcome) => welcome,
            other => return Err(ConnectionError::Unexpected { expected: "welcome", got: other.name() }),
        };
        let logged_in = match ask(&mut reader, &mut writer, opening.login.into()).await? {
            Answer::LoggedIn(logged_in) => logged_in,
            other => return Err(ConnectionError::Unexpected { expected: "logged_in", got: other.name() }),
        };
        reader.max_frame = opening.max_frame;
        Ok(Self { reader, writer, welcome, logged_in })
    }
}

/// One request of the opening, answered before the next is written.
async fn ask(
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    request: Request,
) -> Result<Answer, ConnectionError> {
    let id = writer.put(&request);
    writer.flush().await?;
    let mut early = VecDeque::new();
    let answer = loop {
        match reader.next().await? {
            Incoming::Answer(answered, Answer::Error(error)) if answered == id => {
                return Err(ConnectionError::Refused(error));
            }
            Incoming::Answer(answered, answer) if answered == id => break answer,
            Incoming::Event(Event::GoAway(go_away)) => return Err(ConnectionError::GoAway(go_away)),
            Incoming::Event(Event::Kicked(kicked)) => return Err(ConnectionError::Kicked(kicked)),
            Incoming::Event(event) if early.len() < MAX_EARLY_EVENTS => early.push_back(event),
            Incoming::Event(event) => {
                return Err(ConnectionError::Unexpected { expected: "an answer", got: event.name() });
            }
            Incoming::Answer(..) | Incoming::Unknown(_) => {}
        }
    };
    reader.early = early;
    Ok(answer)
}

async fn dial(address: &str, tls: Option<&Tls>) -> Result<Box<dyn Stream>, ConnectionError> {
    let stream = TcpStream::connect(address).await?;
    // Frames are gathered before they are written: what is written is to leave.
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = tls.server_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    Ok(Box::new(TlsConnector::from(Arc::clone(&tls.config)).connect(name, stream).await?))
}
