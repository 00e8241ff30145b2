//! What a client needs to know before it connects.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::id::DeviceId;
use convoke_protocol::request::session::DeviceClass;

use crate::addresses::Backoff;
use crate::connection::{DEFAULT_MAX_FRAME, Tls};
use crate::resume::Start;

type TokenFuture = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// Where tokens come from: one is taken for every login.
#[derive(Clone)]
pub struct TokenSource {
    make: Arc<dyn Fn() -> TokenFuture + Send + Sync>,
    fixed: bool,
}

impl TokenSource {
    /// Makes a token at once.
    pub fn from_fn(make: impl Fn() -> Result<String, String> + Send + Sync + 'static) -> Self {
        Self::from_async(move || std::future::ready(make()))
    }

    /// Asks for a token, from the application's own backend perhaps.
    pub fn from_async<F>(make: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        Self { make: Arc::new(move || Box::pin(make())), fixed: false }
    }

    pub(crate) fn make(&self) -> TokenFuture {
        (self.make)()
    }

    /// Whether every login gets the same token, so that asking again does not help.
    pub(crate) fn is_fixed(&self) -> bool {
        self.fixed
    }
}

impl From<String> for TokenSource {
    fn from(token: String) -> Self {
        let mut source = Self::from_fn(move || Ok(token.clone()));
        source.fixed = true;
        source
    }
}

impl From<&str> for TokenSource {
    fn from(token: &str) -> Self {
        token.to_owned().into()
    }
}

impl fmt::Debug for TokenSource {
    // A token opens the account: it appears in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.fixed { "TokenSource(fixed)" } else { "TokenSource(made)" })
    }
}

/// What a client needs to know. [`ClientConfig::new`] fills in what has a default.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `host:port` of one node or more; others are learned from the servers.
    pub addresses: Vec<String>,
    /// Where tokens come from.
    pub token: TokenSource,
    /// Which of the user's devices this is. Two clients with one device id take each other's place.
    pub device: DeviceId,
    /// What kind of device it is.
    pub device_class: DeviceClass,
    /// The application's name, at most 128 bytes.
    pub app: String,
    /// The application's version, at most 128 bytes.
    pub version: String,
    /// TLS, and whom to trust; `None` for plain TCP.
    pub tls: Option<Tls>,
    /// Where to begin to read.
    pub start: Start,
    /// Let the server keep this device's cursors, for [`Start::from_device`].
    pub keep_cursors: bool,
    /// How long a send is tried. Shorter than the server's dedup window (`limits.dedup_window_ms`, 2 minutes by
    /// default), beyond which a retry is refused.
    pub send_deadline: Duration,
    /// How long any other request is tried.
    pub request_deadline: Duration,
    /// How long [`crate::Client::connect`] tries before it gives up.
    pub connect_deadline: Duration,
    /// How long one attempt to connect and log in may take.
    pub dial_timeout: Duration,
    /// A heartbeat after this much idle time; by default what the server asks for, and never less often.
    pub heartbeat: Option<Duration>,
    /// A connection whose heartbeat is not answered within this is given up.
    pub answer_timeout: Duration,
    /// The waits between attempts to connect.
    pub backoff: Backoff,
    /// The longest frame that is taken from a server, in bytes.
    pub max_frame_bytes: usize,
}

impl ClientConfig {
    /// A configuration with the defaults; `addresses` must not be empty.
    pub fn new(addresses: Vec<String>, token: impl Into<TokenSource>, device: DeviceId) -> Self {
        Self {
            addresses,
            token: token.into(),
            device,
            device_class: DeviceClass::OTHER,
            app: "convoke-client".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            tls: None,
            start: Start::from_device(),
            keep_cursors: true,
            send_deadline: Duration::from_secs(60),
            request_deadline: Duration::from_secs(30),
            connect_deadline: Duration::from_secs(30),
            dial_timeout: Duration::from_secs(10),
            heartbeat: None,
            answer_timeout: Duration::from_secs(10),
            backoff: Backoff::default(),
            max_frame_bytes: DEFAULT_MAX_FRAME,
        }
    }
}
