//! Links between two ends in one process, on real sockets.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use futures_util::future;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::*;
use crate::actors::peer::VERSION;
use crate::cluster::link::{Answering, Credit};

/// What an end was told, and what holds its credit.
type Told = (PeerId, Lane, Bytes, Box<dyn Credit>);

/// Keeps what it is told, and answers what it is asked with the same.
struct End {
    told: mpsc::Sender<Told>,
    up: mpsc::Sender<PeerId>,
    down: mpsc::Sender<PeerId>,
    refuses: mpsc::Sender<PeerId>,
    answers: AtomicBool,
}

impl Incoming for End {
    fn told(&self, from: PeerId, lane: Lane, body: Bytes, credit: Box<dyn Credit>) {
        self.told.try_send((from, lane, body, credit)).map_err(drop).expect("room");
    }

    fn asked(&self, _: PeerId, body: Bytes, answer: Answering) -> BoxFuture<'_, ()> {
        if self.answers.load(Ordering::Relaxed) {
            answer(body.to_vec());
        }
        future::ready(()).boxed()
    }

    fn link_up(&self, to: PeerId) {
        self.up.try_send(to).expect("room");
    }

    fn peer_refuses(&self, peer: PeerId) {
        let _ = self.refuses.try_send(peer);
    }

    fn link_down(&self, to: PeerId) {
        self.down.try_send(to).expect("room");
    }
}

struct Node {
    id: PeerId,
    address: String,
    links: LinkNet,
    end: Arc<End>,
    told: mpsc::Receiver<Told>,
    up: mpsc::Receiver<PeerId>,
    down: mpsc::Receiver<PeerId>,
    refuses: mpsc::Receiver<PeerId>,
}

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, coming).await.expect("it comes")
}

impl Node {
    async fn start(n: u128, cookie: &str, tls: Option<LinkTls>) -> Self {
        let listener = LinkListener::bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
        let address = listener.local_addr().to_string();
        let id = PeerId(Uuid::from_u128(n));
        let config = LinkConfig {
            me: id,
            node: format!("n{n}"),
            version: VERSION,
            cookie: Cookie::new(cookie.as_bytes()),
            tls,
            window: 4_096,
            silence: Duration::from_secs(2),
        };
        let ((told, told_out), (up, up_out)) = (mpsc::channel(1_000), mpsc::channel(100));
        let ((down, down_out), (refuses, refuses_out)) = (mpsc::channel(100), mpsc::channel(1));
        let end = Arc::new(End { told, up, down, refuses, answers: AtomicBool::new(true) });
        let links = LinkNet::start(config, listener, end.clone());
        let (up, down) = (up_out, down_out);
        Self { id, address, links, end, told: told_out, up, down, refuses: refuses_out }
    }

    async fn links_to(&mut self, other: &Self) {
        self.links.set_peers([(other.id, other.address.clone())]);
        assert_eq!(soon(self.up.recv()).await, Some(other.id));
    }
}

async fn two() -> (Node, Node) {
    let mut one = Node::start(1, "the same", None).await;
    let other = Node::start(2, "the same", None).await;
    one.links_to(&other).await;
    (one, other)
}

#[tokio::test]
async fn what_is_told_and_asked_arrives_in_order() {
    let (one, mut other) = two().await;
    for n in 0..5_u8 {
        one.links.tell(other.id, Lane::Pushes, vec![n]).expect("room");
    }
    for n in 0..5_u8 {
        let (from, lane, body, _) = soon(other.told.recv()).await.expect("told");
        assert_eq!((from, lane, &body[..]), (one.id, Lane::Pushes, &[n][..]));
    }
    let asked: Vec<_> = (0..5_u8).map(|n| one.links.ask(other.id, vec![n], PATIENCE)).collect();
    for (n, answer) in (0..5_u8).zip(asked) {
        assert_eq!(answer.await.as_deref(), Ok(&[n][..]));
    }
    // Nobody dialled in the other direction.
    assert_eq!(other.links.tell(one.id, Lane::Control, vec![1]), Err(LinkError::Away));
    assert_eq!((one.links.numbers().up, one.links.numbers().frames), (1, 10));
}

#[tokio::test]
async fn what_a_peer_has_not_dealt_with_is_bounded_per_lane() {
    let (one, mut other) = two().await;
    let mut sent = 0;
    while one.links.tell(other.id, Lane::Pushes, vec![0; 960]).is_ok() {
        sent += 1;
    }
    // Of 1,024 bytes each, with what a frame takes beside its body.
    assert_eq!(sent, 4);
    assert_eq!(one.links.tell(other.id, Lane::Pushes, vec![0; 960]), Err(LinkError::Busy));
    // The other lanes go on.
    one.links.tell(other.id, Lane::Control, vec![7]).expect("room");
    assert!(one.links.ask(other.id, vec![8], PATIENCE).await.is_ok());
    let mut held = Vec::new();
    for _ in 0..=sent {
        held.push(soon(other.told.recv()).await.expect("told"));
    }
    assert_eq!(one.links.tell(other.id, Lane::Pushes, vec![0; 960]), Err(LinkError::Busy));
    // Once the peer has dealt with one, there is room for one more.
    held.retain(|(_, lane, ..)| *lane != Lane::Control);
    held.pop();
    let begun = Instant::now();
    while one.links.tell(other.id, Lane::Pushes, vec![0; 960]).is_err() {
        assert!(begun.elapsed() < PATIENCE, "no credit comes back");
        tokio::task::yield_now().await;
    }
    assert!(one.links.numbers().busy >= 3);
}

#[tokio::test]
async fn what_is_kept_back_hinders_nobody_and_comes_back() {
    for longest in [false, true] {
        let (one, mut other) = two().await;
        one.links.tell(other.id, Lane::Pushes, vec![1]).expect("room");
        let (.., small) = soon(other.told.recv()).await.expect("told");
        drop(small);
        if longest {
            // The few bytes of the one before may not be back yet.
            one.links.tell(other.id, Lane::Pushes, vec![0; 10_000]).expect("room");
            let (.., body, held) = soon(other.told.recv()).await.expect("told");
            assert_eq!(body.len(), 10_000);
            drop(held);
        }
        // In the end there is room for as much as ever, and for no more.
        let begun = Instant::now();
        let mut held = Vec::new();
        while held.len() < 4 {
            assert!(begun.elapsed() < PATIENCE, "no credit comes back");
            match one.links.tell(other.id, Lane::Pushes, vec![0; 960]) {
                Ok(()) => held.push(soon(other.told.recv()).await.expect("told")),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        assert_eq!(one.links.tell(other.id, Lane::Pushes, vec![0; 960]), Err(LinkError::Busy));
    }
}

#[tokio::test]
async fn a_link_that_breaks_is_made_anew_and_who_waits_is_told() {
    let (mut one, other) = two().await;
    other.end.answers.store(false, Ordering::Relaxed);
    let waiting = one.links.ask(other.id, vec![1], PATIENCE);
    one.links.reset(other.id);
    assert_eq!(soon(waiting).await, Err(LinkError::Lost));
    assert_eq!(soon(one.down.recv()).await, Some(other.id));
    assert_eq!(soon(one.up.recv()).await, Some(other.id));
    one.links.set_peers([]);
    assert_eq!(soon(one.down.recv()).await, Some(other.id));
    assert_eq!(one.links.tell(other.id, Lane::Control, Vec::new()), Err(LinkError::Away));
    assert_eq!((one.links.numbers().up, one.links.numbers().broken), (0, 2));
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_not_waited_for_for_ever() {
    let (one, other) = two().await;
    other.end.answers.store(false, Ordering::Relaxed);
    let asked = one.links.ask(other.id, vec![1], Duration::from_millis(20));
    assert_eq!(soon(asked).await, Err(LinkError::Lost));
}

#[tokio::test]
async fn strangers_are_refused_and_harm_nobody() {
    let (mut one, other) = two().await;
    let stranger = Node::start(3, "another cookie", None).await;
    stranger.links.set_peers([(other.id, other.address.clone())]);
    // One that says nothing, one that talks nonsense, one that claims a frame without end.
    let _silent = TcpStream::connect(&other.address).await.expect("accepted");
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64][..]] {
        let mut nonsense = TcpStream::connect(&other.address).await.expect("accepted");
        nonsense.write_all(bytes).await.expect("written");
    }
    let begun = Instant::now();
    while other.links.numbers().refused < 3 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", other.links.numbers());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(stranger.links.numbers().up, 0);
    assert!(one.links.ask(other.id, vec![1], PATIENCE).await.is_ok());
    // A process that has ended is not mistaken for the one that listens there now.
    let gone = PeerId(Uuid::from_u128(9));
    one.links.set_peers([(other.id, other.address.clone()), (gone, other.address.clone())]);
    let before = other.links.numbers().refused;
    let begun = Instant::now();
    while other.links.numbers().refused == before {
        assert!(begun.elapsed() < PATIENCE, "it is refused");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(one.links.up(), [other.id]);
    assert_eq!(soon(one.refuses.recv()).await, Some(gone));
    // Nor is one where nobody listens any more.
    let nobody = PeerId(Uuid::from_u128(10));
    let listener = LinkListener::bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
    let address = listener.local_addr().to_string();
    drop(listener);
    one.links.set_peers([(other.id, other.address.clone()), (nobody, address)]);
    while soon(one.refuses.recv()).await != Some(nobody) {}
}

#[tokio::test]
async fn with_certificates_only_those_of_the_authority_are_linked() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = crate::net::links::authority::Authority::create().expect("made");
    let other_authority = crate::net::links::authority::Authority::create().expect("made");
    let tls = |authority: &crate::net::links::authority::Authority, name: &str| {
        let files = ["pem", "key", "ca"].map(|kind| directory.path().join(format!("{name}.{kind}")));
        let (certificate, key) = authority.issue().expect("issued");
        std::fs::write(&files[0], certificate).expect("written");
        std::fs::write(&files[1], key).expect("written");
        std::fs::write(&files[2], authority.certificate()).expect("written");
        LinkTls::load(&files[0], &files[1], &files[2]).expect("usable")
    };
    let mut one = Node::start(1, "the same", Some(tls(&authority, "one"))).await;
    let other = Node::start(2, "the same", Some(tls(&authority, "two"))).await;
    one.links_to(&other).await;
    assert_eq!(one.links.ask(other.id, vec![5], PATIENCE).await.as_deref(), Ok(&[5][..]));
    for (n, stranger) in [(3, Some(tls(&other_authority, "three"))), (4, None)] {
        let stranger = Node::start(n, "the same", stranger).await;
        let before = other.links.numbers().refused;
        stranger.links.set_peers([(other.id, other.address.clone())]);
        let begun = Instant::now();
        // One that waits to be spoken to in the clear is left waiting until its time is over.
        while other.links.numbers().refused == before {
            assert!(begun.elapsed() < PATIENCE, "it is refused");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(stranger.links.numbers().up, 0);
    }
}
