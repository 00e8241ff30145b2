//! The admin listener over real sockets, spoken to by hand.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Api {
    ready: Result<(), String>,
}

impl AdminApi for Api {
    fn authorize(&self, token: &str) -> Result<UserId, Denied> {
        match token {
            "service" => Ok(UserId::new("backend").unwrap()),
            "user" => Err(Denied::WrongRole),
            _ => Err(Denied::BadToken("the token is no token".into())),
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.clone()
    }

    async fn metrics(&self) -> String {
        "convoke_up 1\n# EOF\n".to_owned()
    }

    async fn call(&self, request: AdminRequest) -> AdminResponse {
        let AdminRequest { method, path, query, body, who: _ } = request;
        match path.as_str() {
            "/json" => AdminResponse::json(200, &serde_json::json!({ "length": body.len() })),
            "/never" => std::future::pending().await,
            _ => AdminResponse::text(404, format_args!("{method} {path} {query} {}", body.len())),
        }
    }
}

fn start(ready: Result<(), String>) -> (SocketAddr, AdminHandle) {
    let config = AdminConfig { address: ([127, 0, 0, 1], 0).into(), public: false };
    let listener = AdminListener::bind(config).expect("a port");
    (listener.local_addr(), listener.start(Arc::new(Api { ready })))
}

/// Sends a request on a connection of its own and returns the whole answer.
async fn ask(address: SocketAddr, line: &str, headers: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    // The answer may come before the body is sent.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .expect("an answer in time");
    String::from_utf8(answer).expect("text")
}

const SERVICE: &str = "Authorization: Bearer service\r\n";

#[tokio::test]
async fn tables_of_requests() {
    let (address, handle) = start(Err("the store is away".into()));
    let cases: [(&str, &str, &[u8], &str, &str); 13] = [
        ("GET /healthz", "", b"", "200 OK", "alive\n"),
        ("GET /readyz", "", b"", "503 Service Unavailable", "the store is away\n"),
        ("GET /metrics", "", b"", "200 OK", "convoke_up 1\n# EOF\n"),
        ("POST /metrics", "", b"", "405 Method Not Allowed", "only GET\n"),
        ("GET /json", "", b"", "401 Unauthorized", "role service\n"),
        ("GET /json", "Authorization: Basic service\r\n", b"", "401 Unauthorized", "role service\n"),
        ("GET /json", "Authorization: Bearer other\r\n", b"", "401 Unauthorized", "the token is no token\n"),
        ("GET /json", "Authorization: Bearer user\r\n", b"", "403 Forbidden", "role service\n"),
        ("POST /json", SERVICE, b"abc", "200 OK", "{\"length\":3}\n"),
        ("POST /json", "authorization: bearer  service\r\n", b"abc", "200 OK", "{\"length\":3}\n"),
        ("PUT /other?a=b&c", SERVICE, b"", "404 Not Found", "PUT /other a=b&c 0\n"),
        ("POST /json", SERVICE, &[b' '; MAX_BODY_BYTES], "200 OK", "{\"length\":1048576}\n"),
        ("POST /json", SERVICE, &[b' '; MAX_BODY_BYTES + 1], "413 Payload Too Large", "1048576 bytes\n"),
    ];
    for (line, headers, body, status, end) in cases {
        let answer = ask(address, line, headers, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{line} {headers}: {answer}");
        assert!(answer.ends_with(end), "{line} {headers}: {answer}");
    }
    let long = format!("X: {}\r\n", "x".repeat(MAX_HEAD_BYTES));
    let answer = ask(address, "GET /healthz", &long, b"").await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    handle.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "it still listens");
}

#[tokio::test]
async fn a_ready_node_says_so_and_a_stop_waits_only_so_long() {
    let (address, handle) = start(Ok(()));
    assert!(ask(address, "GET /readyz", "", b"").await.ends_with("ready\n"));
    let mut stuck = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET /never HTTP/1.1\r\nHost: x\r\n{SERVICE}\r\n");
    stuck.write_all(request.as_bytes()).await.expect("written");
    // Once the next is answered this one is being handled.
    ask(address, "GET /healthz", "", b"").await;
    let begun = std::time::Instant::now();
    handle.stop().await;
    assert!(begun.elapsed() < STOP_TIME * 2);
}

#[tokio::test]
async fn an_address_others_can_reach_must_be_meant() {
    let address = ([0, 0, 0, 0], 0).into();
    let refused = AdminListener::bind(AdminConfig { address, public: false }).expect_err("not meant");
    assert!(matches!(refused, ListenError::AdminNotPublic(_)), "{refused}");
    AdminListener::bind(AdminConfig { address, public: true }).expect("meant");
}
