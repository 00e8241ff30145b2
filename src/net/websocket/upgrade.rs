//! The HTTP/1.1 request with which a WebSocket begins, and the answers to others.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use convoke_protocol::frame::Codec;
use convoke_protocol::framing::Framing;
use convoke_protocol::{SUBPROTOCOL_BINCODE, SUBPROTOCOL_JSON};
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{ORIGIN, SEC_WEBSOCKET_PROTOCOL};

use crate::net::buffer::ReadBuffer;
use crate::net::connection::Socket;

/// The path of the WebSocket.
pub const PATH: &str = "/ws";

/// The most bytes of a request's head.
pub const MAX_HEAD_BYTES: usize = 8 << 10;

/// A page may load nothing from elsewhere, run nothing that stands in it, and be shown in no other page; where it was
/// called with a token, that is told to nobody. To other nodes it may talk: which they are is not known when it is served.
const SECURITY: &str = "content-security-policy: default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; \
    frame-ancestors 'none'\r\n\
    x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\ncache-control: no-cache\r\n";

const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// Something to be served beside the WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its MIME type.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: Bytes,
}

/// Finds the page of a path.
pub type Pages = dyn Fn(&str) -> Option<Page> + Send + Sync;

/// What a WebSocket listener answers.
#[derive(Clone, Default)]
pub struct WebSocketConfig {
    /// The `Origin`s that browsers may come from, as they send it (`https://chat.example`); empty means any. Clients that
    /// send none are no browsers and always allowed.
    pub origins: Vec<String>,
    /// What other paths than [`PATH`] answer; without it, and where it has nothing, they answer 404.
    pub pages: Option<Arc<Pages>>,
}

impl fmt::Debug for WebSocketConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketConfig").field("origins", &self.origins).finish_non_exhaustive()
    }
}

/// Why there is no WebSocket in the end.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The connection broke or ended.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The request was answered with this status instead.
    #[error("answered with status {0}")]
    Answered(u16),
}

/// What a request is answered with.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Upgrade { framing: Framing, head: Vec<u8> },
    Answer { status: u16, body: Vec<u8> },
}

/// Reads the request and answers it; returns the framing and what was read behind the request. The caller bounds its
/// time.
///
/// # Errors
/// The connection is of no further use, but may still have to deliver the answer.
pub(crate) async fn upgrade<S: Socket>(
    socket: &S,
    config: &WebSocketConfig,
) -> Result<(Framing, Vec<u8>), UpgradeError> {
    let mut bytes = Vec::new();
    let end = loop {
        let searched = bytes.len().saturating_sub(END_OF_HEAD.len());
        read_more(socket, &mut bytes).await?;
        let found = bytes[searched..].windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD);
        match found.map(|at| searched + at + END_OF_HEAD.len()) {
            Some(end) if end <= MAX_HEAD_BYTES => break end,
            None if bytes.len() <= MAX_HEAD_BYTES => {}
            _ => return refuse(socket, 431, "the head of the request is above 8 KB").await,
        }
    };
    match judge(&bytes[..end], config) {
        Verdict::Upgrade { framing, head } => {
            write_all(socket, &head).await?;
            Ok((framing, bytes.split_off(end)))
        }
        Verdict::Answer { status, body } => {
            write_all(socket, &body).await?;
            Err(UpgradeError::Answered(status))
        }
    }
}

async fn refuse<S: Socket>(socket: &S, status: u16, text: &str) -> Result<(Framing, Vec<u8>), UpgradeError> {
    write_all(socket, &text_answer(status, text)).await?;
    Err(UpgradeError::Answered(status))
}

/// Decides about a request's head.
fn judge(head: &[u8], config: &WebSocketConfig) -> Verdict {
    let refuse = |status, text: &str| Verdict::Answer { status, body: text_answer(status, text) };
    let Ok(Some((_, request))) = Request::try_parse(head) else {
        return refuse(400, "this is not a GET of HTTP/1.1");
    };
    let path = request.uri().path();
    if path != PATH {
        let page = config.pages.as_ref().and_then(|pages| pages(path));
        return match page {
            Some(page) => Verdict::Answer { status: 200, body: answer(200, page.content_type, &page.body) },
            None => refuse(404, "there is nothing here; the WebSocket is at /ws"),
        };
    }
    let mut response = match create_response(&request) {
        Ok(response) => response,
        Err(error) => return refuse(400, &error.to_string()),
    };
    if let Some(origin) = request.headers().get(ORIGIN)
        && !config.origins.is_empty()
        && !config.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())
    {
        return refuse(403, "this origin is not allowed");
    }
    let Some((name, codec)) = subprotocol(&request) else {
        return refuse(400, "ask for the subprotocol convoke.bincode or convoke.json");
    };
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    let mut head = Vec::new();
    match write_response(&mut head, &response) {
        Ok(()) => Verdict::Upgrade { framing: Framing::WebSocket(codec), head },
        Err(error) => refuse(400, &error.to_string()),
    }
}

/// The first subprotocol of the client's list that the server speaks.
fn subprotocol(request: &Request) -> Option<(&'static str, Codec)> {
    let offered = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    offered.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).find_map(|name| {
        match name.trim() {
            SUBPROTOCOL_BINCODE => Some((SUBPROTOCOL_BINCODE, Codec::Bincode)),
            SUBPROTOCOL_JSON => Some((SUBPROTOCOL_JSON, Codec::Json)),
            _ => None,
        }
    })
}

/// An answer after which the connection closes, with a line of text for a person.
pub(crate) fn text_answer(status: u16, text: &str) -> Vec<u8> {
    answer(status, "text/plain; charset=utf-8", format!("{text}\n").as_bytes())
}

fn answer(status: u16, content_type: &str, body: &[u8]) -> Vec<u8> {
    let reason = tungstenite::http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("");
    let length = body.len();
    let mut out = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
         connection: close\r\n{SECURITY}\r\n"
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// Waits for bytes and appends them.
async fn read_more<S: Socket>(socket: &S, bytes: &mut Vec<u8>) -> io::Result<()> {
    loop {
        {
            let mut buffer = ReadBuffer::borrow();
            match socket.try_read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    bytes.extend_from_slice(&buffer[..read]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        poll_fn(|cx| socket.poll_read_ready(cx)).await?;
    }
}

async fn write_all<S: Socket>(socket: &S, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.try_write_vectored(&[IoSlice::new(bytes)]) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| socket.poll_write_ready(cx)).await?;
            }
            Err(error) => return Err(error),
        }
    }
    while let Err(error) = socket.try_flush() {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        poll_fn(|cx| socket.poll_write_ready(cx)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut out = format!("{line}\r\nHost: x\r\n");
        for (name, value) in headers {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        out.push_str("\r\n");
        out.into_bytes()
    }

    const UPGRADE: [(&str, &str); 4] = [
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn with(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        UPGRADE.iter().chain(more).copied().collect()
    }

    fn status(verdict: &Verdict) -> u16 {
        match verdict {
            Verdict::Upgrade { .. } => 101,
            Verdict::Answer { status, .. } => *status,
        }
    }

    #[test]
    fn tables_of_requests() {
        let pages: Arc<Pages> = Arc::new(|path| {
            (path == "/").then(|| Page { content_type: "text/html", body: Bytes::from_static(b"<p>") })
        });
        let config = WebSocketConfig { origins: vec!["https://a.example".into()], pages: Some(pages) };
        let json = ("Sec-WebSocket-Protocol", "convoke.json");
        let get = "GET /ws HTTP/1.1";
        type Headers = Vec<(&'static str, &'static str)>;
        let cases: [(&str, Headers, u16); 14] = [
            (get, with(&[json]), 101),
            ("GET /ws?x=1 HTTP/1.1", with(&[json]), 101),
            (get, with(&[json, ("Origin", "https://a.example")]), 101),
            (get, with(&[json, ("Origin", "https://b.example")]), 403),
            (get, with(&[("Sec-WebSocket-Protocol", "other, convoke.bincode")]), 101),
            (get, with(&[("Sec-WebSocket-Protocol", "other")]), 400),
            (get, with(&[]), 400),
            (get, vec![json], 400),
            ("POST /ws HTTP/1.1", with(&[json]), 400),
            ("GET /ws HTTP/1.0", with(&[json]), 400),
            ("GET / HTTP/1.1", vec![], 200),
            ("POST / HTTP/1.1", vec![], 400),
            ("GET /other HTTP/1.1", vec![], 404),
            ("nonsense", vec![], 400),
        ];
        for (line, headers, expected) in cases {
            let verdict = judge(&request(line, &headers), &config);
            assert_eq!(status(&verdict), expected, "{line} {headers:?}: {verdict:?}");
        }
    }

    #[test]
    fn the_answer_carries_key_and_subprotocol() {
        let headers = with(&[("Sec-WebSocket-Protocol", "convoke.json, convoke.bincode")]);
        let verdict = judge(&request("GET /ws HTTP/1.1", &headers), &WebSocketConfig::default());
        let Verdict::Upgrade { framing, head } = verdict else { panic!("{verdict:?}") };
        assert_eq!(framing, Framing::WebSocket(Codec::Json));
        let head = String::from_utf8(head).expect("ASCII");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "the example of RFC 6455: {head}");
        assert!(head.contains("sec-websocket-protocol: convoke.json\r\n"), "{head}");
    }
}
