//! How traces leave: a POST over plain HTTP to a collector nearby, from the exporter's own thread.

use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};

/// How long a collector may take to connect, to take and to answer, each.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// The port of OTLP over HTTP, if none is named.
const OTLP_PORT: u16 = 4318;

/// Posts, and waits for the answer. It blocks: the exporter calls it on a thread of its own.
#[derive(Debug)]
pub(crate) struct Collector;

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
    {
        Box::pin(async move { Ok(post(&request)?) })
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn post(request: &Request<Bytes>) -> io::Result<Response<Bytes>> {
    let uri = request.uri();
    let host = uri.host().ok_or_else(|| invalid("the collector has no host"))?;
    let port = uri.port_u16().unwrap_or(OTLP_PORT);
    let address = (host.trim_matches(['[', ']']), port).to_socket_addrs()?.next();
    let address = address.ok_or_else(|| invalid("the collector's host has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let body = request.body();
    let mut head =
        format!("POST {path} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in request.headers() {
        if let Ok(value) = value.to_str() {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str("\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    let status = answer.split(|byte| *byte == b' ').nth(1).filter(|_| answer.starts_with(b"HTTP/1."));
    let status = status.and_then(|status| std::str::from_utf8(status.get(..3)?).ok()?.parse::<u16>().ok());
    let status = status.ok_or_else(|| invalid("the collector does not answer in HTTP"))?;
    Response::builder().status(status).body(Bytes::new()).map_err(|_| invalid("the collector's status"))
}
