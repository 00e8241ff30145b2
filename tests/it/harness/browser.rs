//! A real browser without a screen (Debian's Chromium), driven over its DevTools protocol.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{eventually, in_time};

/// A running browser; it is killed when it is dropped.
pub(crate) struct Browser {
    child: Child,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next_id: u64,
    // Kept for its own end, which removes it.
    _home: tempfile::TempDir,
}

/// One page.
#[derive(Debug, Clone)]
pub(crate) struct Page(String);

impl Browser {
    pub(crate) async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut child = Command::new("chromium")
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-extensions", "--disable-background-networking"])
            .args(["--remote-debugging-port=0", "--window-size=1000,700", "about:blank"])
            .arg(format!("--user-data-dir={}", home.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("chromium is there: scripts/test installs it");
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let address = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            loop {
                line.clear();
                assert!(lines.read_line(&mut line).unwrap() > 0, "the browser ended at once");
                if let Some(address) = line.trim().strip_prefix("DevTools listening on ") {
                    let address = address.to_owned();
                    // What it says later is to find somebody who reads.
                    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
                    return address;
                }
            }
        });
        let address = in_time("the browser is up", address).await.unwrap();
        let (socket, _) = connect_async(address).await.unwrap();
        Self { child, socket, next_id: 1, _home: home }
    }

    async fn ask(&mut self, page: Option<&Page>, method: &str, params: Value) -> Value {
        let mut said = self.try_ask(page, method, params).await;
        assert!(said["error"].is_null(), "{method}: {said:#}");
        said["result"].take()
    }

    async fn try_ask(&mut self, page: Option<&Page>, method: &str, params: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        let mut question = json!({ "id": id, "method": method, "params": params });
        if let Some(Page(session)) = page {
            question["sessionId"] = session.as_str().into();
        }
        self.socket.send(Message::text(question.to_string())).await.unwrap();
        let answer = async {
            loop {
                let message = self.socket.next().await.expect("the browser goes on").unwrap();
                let Message::Text(text) = message else { continue };
                let said: Value = serde_json::from_str(&text).unwrap();
                if said["id"] == id {
                    return said;
                }
            }
        };
        in_time(method, answer).await
    }

    /// Opens a page that shares nothing with the others.
    pub(crate) async fn open(&mut self, url: &str) -> Page {
        let context = self.ask(None, "Target.createBrowserContext", json!({})).await;
        let target = json!({ "url": url, "browserContextId": context["browserContextId"] });
        let target = self.ask(None, "Target.createTarget", target).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.ask(None, "Target.attachToTarget", attach).await;
        Page(session["sessionId"].as_str().unwrap().to_owned())
    }

    /// What an expression is on the page.
    pub(crate) async fn evaluate(&mut self, page: &Page, expression: &str) -> Value {
        let ask = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.ask(Some(page), "Runtime.evaluate", ask).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer:#}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true on the page.
    pub(crate) async fn until(&mut self, page: &Page, expression: &str) {
        eventually(expression, async || {
            // A page that is just being loaded has nothing of this, or goes away while it is asked.
            let guarded =
                format!("(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()");
            let ask = json!({ "expression": guarded, "returnByValue": true });
            let said = self.try_ask(Some(page), "Runtime.evaluate", ask).await;
            (said["result"]["result"]["value"] == true).then_some(())
        })
        .await;
    }

    /// Keeps a picture of the page.
    pub(crate) async fn picture(&mut self, page: &Page, file: &Path) {
        let ask = json!({ "format": "png" });
        let picture = self.ask(Some(page), "Page.captureScreenshot", ask).await;
        let bytes = base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().unwrap());
        std::fs::write(file, bytes.unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
