//! As much of HTTP as one question to the admin listener needs: HTTP/1.0, so that the answer ends with the connection and
//! is never chunked.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long to wait for the connection, and for each piece of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response {
    /// Such as 200.
    pub(super) status: u16,
    /// What follows the head.
    pub(super) body: Vec<u8>,
}

/// Sends an empty POST and waits for its answer.
pub(super) fn post(address: SocketAddr, path: &str, token: &str) -> io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

fn parse(answer: &[u8]) -> Option<Response> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.trim_end().split('\r').next()?;
    let body = answer[end + 4..].to_vec();
    let declared = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    let whole = declared.is_none_or(|length| length == Ok(body.len()));
    Some(Response { status: status.parse().ok().filter(|_| whole)?, body })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let ok = |status, body: &[u8]| Some(Response { status, body: body.to_vec() });
        let cases: [(&[u8], _); 7] = [
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", ok(200, b"{}")),
            (b"HTTP/1.0 401 Unauthorized\r\n\r\nno", ok(401, b"no")),
            (b"HTTP/1.1 204\r\n\r\n", ok(204, b"")),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", None),
            (b"HTTP/1.1 200 OK\r\ncontent-le", None),
            (b"SSH-2.0-x\r\n\r\n", None),
            (b"", None),
        ];
        for (answer, expected) in cases {
            assert_eq!(parse(answer), expected, "{}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn the_question_carries_the_token() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("read");
                head.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfine").expect("written");
            String::from_utf8(head).expect("text")
        });
        let response = post(address, "/v1/reload", "abc").expect("answered");
        assert_eq!(response, Response { status: 200, body: b"fine".to_vec() });
        let head = server.join().expect("ended");
        assert!(head.starts_with("POST /v1/reload HTTP/1.0\r\n"), "{head}");
        assert!(head.contains("\r\nAuthorization: Bearer abc\r\n"), "{head}");
    }
}
