//! The admin listener: plain HTTP/1.1 for operators, probes and Prometheus.
//!
//! `/healthz` says that the process is alive, `/readyz` whether it serves, `/metrics` how it does; everything else needs
//! a bearer token and goes to [`AdminApi::call`].
//!
//! # Bounds
//! [`MAX_CONNECTIONS`] at a time, [`MAX_HEAD_BYTES`] of head within [`HEAD_TIME`], [`MAX_BODY_BYTES`] of body,
//! [`REQUEST_TIME`] for the whole request.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use convoke_protocol::id::UserId;
use futures_util::stream::{BoxStream, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::net::listener::tasks::TaskCount;
use crate::net::listener::{ListenError, bind};

#[cfg(test)]
mod tests;

/// Connections at one time; more wait to be accepted.
pub const MAX_CONNECTIONS: usize = 64;

/// Bytes of a request's head.
pub const MAX_HEAD_BYTES: usize = 16 << 10;

/// Bytes of a request's body.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// For a request's head to arrive, and for the next request on a connection to begin.
pub const HEAD_TIME: Duration = Duration::from_secs(10);

/// For a request's body to arrive and its answer to be made.
pub const REQUEST_TIME: Duration = Duration::from_secs(60);

/// After a stop, for the requests under way.
const STOP_TIME: Duration = Duration::from_secs(2);

/// For accepting to rest when it fails.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where operators connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminConfig {
    /// The address; port 0 takes any.
    pub address: SocketAddr,
    /// Whether an address that is not loopback is meant.
    pub public: bool,
}

/// Why a token does not open the door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is no valid token: status 401.
    #[error("{0}")]
    BadToken(String),
    /// It is valid but of the wrong role: status 403.
    #[error("this needs a token of role service")]
    WrongRole,
}

/// What an answer carries.
pub enum AdminBody {
    /// All of it.
    Whole(Bytes),
    /// Piece by piece; an error cuts the connection, so that nobody takes what came for the whole.
    Pieces(BoxStream<'static, io::Result<Bytes>>),
}

impl std::fmt::Debug for AdminBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(bytes) => f.debug_tuple("Whole").field(bytes).finish(),
            Self::Pieces(_) => f.write_str("Pieces(..)"),
        }
    }
}

impl From<Bytes> for AdminBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

/// An answer.
#[derive(Debug)]
pub struct AdminResponse {
    /// The HTTP status.
    pub status: u16,
    /// The body's MIME type.
    pub content_type: &'static str,
    /// The body.
    pub body: AdminBody,
}

impl AdminResponse {
    /// A line of text.
    pub fn text(status: u16, text: impl std::fmt::Display) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: Bytes::from(format!("{text}\n")).into(),
        }
    }

    /// A JSON document.
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self { status, content_type: "application/json", body: Bytes::from(format!("{value}\n")).into() }
    }
}

/// A request that was let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminRequest {
    /// Whose token let it through.
    pub who: UserId,
    /// The method in capitals.
    pub method: String,
    /// The path, `/` first.
    pub path: String,
    /// What follows `?`, undecoded; empty if nothing does.
    pub query: String,
    /// The body.
    pub body: Bytes,
}

/// What stands behind the admin listener.
pub trait AdminApi: Send + Sync + 'static {
    /// Checks a bearer token, and says whose it is.
    ///
    /// # Errors
    /// It is not one of role `service`.
    fn authorize(&self, token: &str) -> Result<UserId, Denied>;

    /// Whether the node serves.
    ///
    /// # Errors
    /// Why it does not.
    fn ready(&self) -> Result<(), String>;

    /// The metrics as Prometheus reads them.
    fn metrics(&self) -> impl Future<Output = String> + Send;

    /// Answers a request that is authorized.
    fn call(&self, request: AdminRequest) -> impl Future<Output = AdminResponse> + Send;
}

/// A bound admin listener that does not accept yet.
#[derive(Debug)]
pub struct AdminListener {
    socket: TcpListener,
    address: SocketAddr,
}

impl AdminListener {
    /// Binds. Needs a runtime.
    ///
    /// # Errors
    /// The address is not to be had, or not loopback without `public`.
    pub fn bind(config: AdminConfig) -> Result<Self, ListenError> {
        let address = config.address;
        if !address.ip().is_loopback() && !config.public {
            return Err(ListenError::AdminNotPublic(address));
        }
        let failed = |source| ListenError::Bind { listener: "admin", address, source };
        let socket = bind(address, MAX_CONNECTIONS as i32, None).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// Where it listens, with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Begins to accept.
    pub fn start<A: AdminApi>(self, api: Arc<A>) -> AdminHandle {
        let handle = AdminHandle { stopping: watch::Sender::new(false), tasks: Arc::default() };
        let guard = handle.tasks.enter();
        let tasks = Arc::clone(&handle.tasks);
        let stopping = handle.stopping.subscribe();
        tokio::spawn(async move {
            tracing::info!(listener = "admin", address = %self.address, "listening");
            accept_all(&self.socket, &api, &tasks, stopping).await;
            drop(guard);
        });
        handle
    }
}

/// A running admin listener. It stops with its handle.
#[derive(Debug)]
pub struct AdminHandle {
    stopping: watch::Sender<bool>,
    tasks: Arc<TaskCount>,
}

impl AdminHandle {
    /// Accepts no more, lets requests under way end, and waits for that: 2 s at most.
    pub async fn stop(self) {
        self.stopping.send_replace(true);
        self.tasks.none_left().await;
    }
}

/// Resolves when the listener is to stop, or nobody holds its handle any more.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

async fn accept_all<A: AdminApi>(
    socket: &TcpListener,
    api: &Arc<A>,
    tasks: &Arc<TaskCount>,
    mut stopping: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stopped(&mut stopping) => return,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let guard = tasks.enter();
                let api = Arc::clone(api);
                let stopping = stopping.clone();
                tokio::spawn(async move {
                    serve(stream, api, stopping).await;
                    drop((place, guard));
                });
            }
            Err(error) => {
                tracing::warn!(listener = "admin", %error, "cannot accept, trying again");
                tokio::select! {
                    () = stopped(&mut stopping) => return,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

async fn serve<A: AdminApi>(stream: TcpStream, api: Arc<A>, mut stopping: watch::Receiver<bool>) {
    let service = service_fn(|request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(respond(&*api, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(STOP_TIME, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(listener = "admin", %error, "connection ended");
    }
}

async fn respond<A: AdminApi>(
    api: &A,
    request: Request<Incoming>,
) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
    let answer = match tokio::time::timeout(REQUEST_TIME, route(api, request)).await {
        Ok(answer) => answer,
        Err(_) => AdminResponse::text(503, "not answered in time"),
    };
    let unauthorized = answer.status == 401;
    let body = match answer.body {
        AdminBody::Whole(bytes) => BodyExt::boxed_unsync(Full::new(bytes).map_err(|never| match never {})),
        AdminBody::Pieces(pieces) => {
            BodyExt::boxed_unsync(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    if unauthorized {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

async fn route<A: AdminApi>(api: &A, request: Request<Incoming>) -> AdminResponse {
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    match request.uri().path() {
        "/healthz" | "/readyz" | "/metrics" if !reads => AdminResponse::text(405, "only GET"),
        "/healthz" => AdminResponse::text(200, "alive"),
        "/readyz" => match api.ready() {
            Ok(()) => AdminResponse::text(200, "ready"),
            Err(why) => AdminResponse::text(503, why),
        },
        "/metrics" => AdminResponse {
            status: 200,
            content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
            body: Bytes::from(api.metrics().await).into(),
        },
        _ => guarded(api, request).await,
    }
}

async fn guarded<A: AdminApi>(api: &A, request: Request<Incoming>) -> AdminResponse {
    let (head, body) = request.into_parts();
    let token = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    let Some(token) = token else {
        return AdminResponse::text(401, "this needs Authorization: Bearer with a token of role service");
    };
    let who = match api.authorize(token) {
        Ok(who) => who,
        Err(denied @ Denied::BadToken(_)) => return AdminResponse::text(401, denied),
        Err(denied @ Denied::WrongRole) => return AdminResponse::text(403, denied),
    };
    // Only now: nobody without a token makes the node hold a body.
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return AdminResponse::text(413, format_args!("the body is above {MAX_BODY_BYTES} bytes"));
        }
        Err(error) => return AdminResponse::text(400, error),
    };
    api.call(AdminRequest {
        who,
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or("").to_owned(),
        body,
    })
    .await
}

/// The token of an `Authorization` header of scheme Bearer.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
