//! As much of HTTP as one question to the admin listener needs: HTTP/1.0, so that the answer ends with the connection and
//! is never chunked.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long to wait for the connection, and for each piece of the answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest head of an answer.
const MAX_HEAD_BYTES: u64 = 16 << 10;

/// The longest answer that is kept in memory.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(super) struct Answer {
    /// Such as 200.
    pub(super) status: u16,
    /// How long the body is, if that was said.
    length: Option<u64>,
    body: BufReader<TcpStream>,
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Sends a POST and waits for the head of its answer.
pub(super) fn post(address: SocketAddr, path: &str, token: &str, body: &[u8]) -> io::Result<Answer> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n"
    );
    ask(address, &[head.as_bytes(), body].concat())
}

/// Sends a GET without a token and waits for the head of its answer.
pub(super) fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    ask(address, format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
}

fn ask(address: SocketAddr, question: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(question)?;
    let mut body = BufReader::new(stream);
    let (status, length) = read_head(&mut body)?;
    Ok(Answer { status, length, body })
}

/// The status, and the body's length if it is said.
fn read_head(stream: &mut BufReader<impl Read>) -> io::Result<(u16, Option<u64>)> {
    let mut head = stream.take(MAX_HEAD_BYTES);
    let mut line = String::new();
    let mut next = |line: &mut String| {
        line.clear();
        head.read_line(line)?;
        if line.ends_with('\n') { Ok(()) } else { Err(invalid("the answer is not HTTP")) }
    };
    next(&mut line)?;
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
    let status = status.ok_or_else(|| invalid("the answer is not HTTP"))?;
    let mut length = None;
    loop {
        next(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse().map_err(|_| invalid("the answer is not HTTP"))?);
        }
    }
    Ok((status, length))
}

impl Answer {
    /// The whole body.
    pub(super) fn whole(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        (&mut self.body).take(MAX_ANSWER_BYTES).read_to_end(&mut body)?;
        self.check_length(body.len() as u64)?;
        Ok(body)
    }

    /// Writes the body out as it comes; how many bytes it has.
    pub(super) fn copy_to(&mut self, out: &mut impl Write) -> io::Result<u64> {
        let copied = io::copy(&mut self.body, out)?;
        self.check_length(copied)?;
        Ok(copied)
    }

    fn check_length(&self, read: u64) -> io::Result<()> {
        let whole = self.length.is_none_or(|length| length == read);
        if whole { Ok(()) } else { Err(invalid("the answer was cut short")) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// Answers one question; its head and body come back.
    fn server(answer: &'static [u8]) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"{}") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                asked.push(byte[0]);
            }
            stream.write_all(answer).unwrap();
            String::from_utf8(asked).unwrap()
        });
        (address, served)
    }

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        type Read = Option<(u16, &'static [u8])>;
        let cases: [(&'static [u8], Read); 7] = [
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", Some((200, b"{}"))),
            (b"HTTP/1.0 401 Unauthorized\r\n\r\nno", Some((401, b"no"))),
            (b"HTTP/1.1 204\r\n\r\n", Some((204, b""))),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", None),
            (b"HTTP/1.1 200 OK\r\ncontent-le", None),
            (b"SSH-2.0-x\r\n\r\n", None),
            (b"", None),
        ];
        for (answer, expected) in cases {
            let (address, served) = server(answer);
            let read = post(address, "/v1/x", "abc", b"{}")
                .and_then(|mut answer| answer.whole().map(|body| (answer.status, body)));
            let expected = expected.map(|(status, body)| (status, body.to_vec()));
            assert_eq!(read.ok(), expected, "{}", String::from_utf8_lossy(answer));
            served.join().unwrap();
        }
    }

    #[test]
    fn the_question_carries_the_token_and_the_body() {
        let (address, served) = server(b"HTTP/1.0 200 OK\r\n\r\nfine");
        let mut answer = post(address, "/v1/reload", "abc", b"{}").unwrap();
        let mut body = Vec::new();
        assert_eq!((answer.status, answer.copy_to(&mut body).unwrap()), (200, 4));
        assert_eq!(body, b"fine");
        let asked = served.join().unwrap();
        assert!(asked.starts_with("POST /v1/reload HTTP/1.0\r\n"), "{asked}");
        assert!(asked.contains("\r\nAuthorization: Bearer abc\r\n"), "{asked}");
        assert!(asked.ends_with("\r\nContent-Length: 2\r\n\r\n{}"), "{asked}");
    }
}
