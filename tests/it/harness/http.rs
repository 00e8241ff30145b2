//! Plain HTTP, as much of it as the admin listener needs.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::TestNode;
use super::in_time;

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Sends a request on a connection of its own.
pub(crate) async fn http(address: SocketAddr, request: &str, token: Option<&str>, body: &[u8]) -> Response {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: {length}\r\n{authorization}\r\n"
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut read = Vec::new();
    let answer = async {
        stream.write_all(head.as_bytes()).await.unwrap();
        // One that refuses does not read it to the end.
        let _ = stream.write_all(body).await;
        let _ = stream.read_to_end(&mut read).await;
    };
    in_time("an answer over HTTP", answer).await;
    let text = String::from_utf8(read).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request}: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// Asks the node's admin listener.
pub(crate) async fn get(node: &TestNode, path: &str) -> Response {
    http(node.addresses().admin, &format!("GET {path}"), None, b"").await
}

/// What a series of the node's metrics says now.
pub(crate) async fn metric(node: &TestNode, series: &str) -> f64 {
    let text = get(node, "/metrics").await.body;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("there is no {series} in\n{text}"))
}
