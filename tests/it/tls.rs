//! What travels encrypted.

use std::sync::Arc;

use convoke_protocol::framing::Framing;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::client::{End, hello};
use crate::harness::command::Talking;
use crate::harness::wire::{Stream, Wire};
use crate::harness::{Setup, TestClient, TestNode, eventually, in_time};

/// A node that speaks TLS, where its certificate is, and what a client needs to believe it.
async fn secured(home: &tempfile::TempDir) -> (TestNode, std::path::PathBuf, TlsConnector) {
    secured_with(home, "").await
}

/// The same with more of a configuration.
pub(crate) async fn secured_with(
    home: &tempfile::TempDir,
    more: &str,
) -> (TestNode, std::path::PathBuf, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (home.path().join("node.crt"), home.path().join("node.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let config = format!("[tls]\nmode = \"on\"\ncertificate = {certificate:?}\nkey = {key:?}\n{more}");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    (Setup::config(&config).start().await, certificate, connector(roots))
}

fn connector(roots: RootCertStore) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth()).into()
}

pub(crate) async fn connect(node: &TestNode, framing: Framing, connector: &TlsConnector) -> TestClient {
    let stream = TcpStream::connect(node.address(framing)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = in_time("a handshake", connector.connect(name, stream)).await.unwrap();
    let stream: Box<dyn Stream> = Box::new(stream);
    TestClient::on(in_time("an upgrade", Wire::open(stream, framing)).await.unwrap(), framing)
}

#[tokio::test]
async fn two_people_talk_over_tls() {
    let home = tempfile::tempdir().unwrap();
    let (node, _, connector) = secured(&home).await;
    let mut bob = connect(&node, Framing::Tcp, &connector).await;
    bob.log_in(node.token("bob").await, "phone").await;
    // Bodies that take many records, and more than any buffer holds.
    let long = "0123456789abcdef".repeat(12_000);
    for framing in Framing::ALL {
        let mut alice = connect(&node, framing, &connector).await;
        alice.log_in(node.token("alice").await, framing.name()).await;
        for text in ["short", &long, "short again"] {
            let sent = alice.say("bob", text).await;
            let push = bob.push().await;
            assert_eq!(push.message.seq, sent.seq);
            assert_eq!(push.message.content.as_text(), Some(text));
            bob.acknowledge().await;
        }
        let all = alice.pull_all(&crate::harness::client::conversation("alice", "bob")).await;
        assert_eq!(all.last().unwrap().content.as_text(), Some("short again"));
    }
}

#[tokio::test]
async fn who_does_not_speak_tls_hears_nothing_and_harms_nobody() {
    let home = tempfile::tempdir().unwrap();
    let (node, _, connector) = secured(&home).await;
    let mut plain = TestClient::connect(&node, Framing::Tcp).await;
    plain.post(hello()).await;
    assert_eq!(plain.end().await, End::Silent);
    // One that does not believe the certificate goes away by itself.
    let stream = TcpStream::connect(node.addresses().tcp).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stranger = self::connector(RootCertStore::empty());
    assert!(in_time("a refusal", stranger.connect(name, stream)).await.is_err());
    connect(&node, Framing::Tcp, &connector).await.greet().await;
}

#[tokio::test]
async fn chat_speaks_tls() {
    let home = tempfile::tempdir().unwrap();
    let (node, certificate, _) = secured(&home).await;
    let data = node.data().to_str().unwrap();
    let tcp = node.addresses().tcp.to_string();
    let ca = certificate.to_str().unwrap();
    let arguments = ["chat", "--user", "alice", "--data", data, "--tcp", &tcp, "--to", "alice", "--ca", ca];
    let mut chat = Talking::start(arguments);
    chat.write("nobody reads this\n");
    eventually("it is printed", async || {
        (chat.printed() == "d:alice:alice 1 alice nobody reads this\n").then_some(())
    })
    .await;
    chat.finish().await.good();
}

#[tokio::test]
async fn without_its_certificate_a_node_does_not_start() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let missing = home.path().join("missing.pem");
    let missing = missing.to_str().unwrap();
    let cases = [
        ("[tls]\nmode = \"on\"".to_owned(), "tls.certificate"),
        (format!("[tls]\nmode = \"on\"\ncertificate = {missing:?}\nkey = {missing:?}"), missing),
    ];
    for (config, word) in cases {
        let said = Setup::config(&config).refused(&data).await.failed();
        assert!(said.contains(word), "{said}");
    }
}
