//! What a link between two nodes takes: the way there and back, and what it carries one way.
//!
//! `cargo bench --bench links [-- SECONDS]`: prints one line a case. Both ends are in this process, on loopback,
//! and share its cores. One way, the receiver deals with each frame at once, and the sender sends as much as the window
//! lets it.

#![allow(clippy::print_stdout, missing_docs)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench is its own process, and what it measures bounds its queues"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use convoke::actors::peer::VERSION;
use convoke::cluster::link::{Answering, Credit, Incoming, Lane, LinkError, Links as _};
use convoke::cluster::membership::PeerId;
use convoke::net::links::authority::Authority;
use convoke::net::links::{Cookie, LinkConfig, LinkListener, LinkNet, LinkTls};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use tokio::sync::Notify;
use uuid::Uuid;

/// What a node's configuration has by default.
const WINDOW: usize = 4 << 20;

/// Counts what it is told, and answers with what it is asked.
#[derive(Default)]
struct End {
    told: AtomicU64,
    up: Notify,
}

impl Incoming for End {
    fn told(&self, _: PeerId, _: Lane, _: Bytes, credit: Box<dyn Credit>) {
        self.told.fetch_add(1, Ordering::Relaxed);
        drop(credit);
    }

    fn asked(&self, _: PeerId, body: Bytes, answer: Answering) -> BoxFuture<'_, ()> {
        answer(body.to_vec());
        ready(()).boxed()
    }

    fn link_up(&self, _: PeerId) {
        self.up.notify_one();
    }

    fn peer_refuses(&self, _: PeerId) {}

    fn link_down(&self, _: PeerId) {}
}

async fn node(n: u128, tls: Option<LinkTls>) -> (PeerId, String, LinkNet, Arc<End>) {
    let listener = LinkListener::bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
    let address = listener.local_addr().to_string();
    let (me, end) = (PeerId(Uuid::from_u128(n)), Arc::<End>::default());
    let config = LinkConfig {
        me,
        node: n.to_string(),
        version: VERSION,
        cookie: Cookie::new(b"the same"),
        tls,
        window: WINDOW,
        silence: Duration::from_secs(5),
    };
    (me, address, LinkNet::start(config, listener, end.clone()), end)
}

fn certificates() -> [LinkTls; 2] {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::create().expect("made");
    ["one", "other"].map(|name| {
        let files = ["pem", "key", "ca"].map(|kind| directory.path().join(format!("{name}.{kind}")));
        let (certificate, key) = authority.issue().expect("issued");
        for (file, text) in files.iter().zip([certificate, key, authority.certificate().to_owned()]) {
            std::fs::write(file, text).expect("written");
        }
        LinkTls::load(&files[0], &files[1], &files[2]).expect("usable")
    })
}

/// CPU time of this process, of which the kernel tells hundredths of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

/// One question at a time.
async fn there_and_back(kind: &str, links: &LinkNet, to: PeerId, bytes: usize, within: Duration) {
    let (begin, before, mut each) = (Instant::now(), cpu(), Vec::new());
    while begin.elapsed() < within {
        let asked = Instant::now();
        links.ask(to, vec![b'x'; bytes], Duration::from_secs(5)).await.expect("answered");
        each.push(asked.elapsed());
    }
    let cpu_us = (cpu() - before).as_secs_f64() * 1e6 / each.len() as f64;
    each.sort_unstable();
    let [p50, p99] = [50, 99].map(|percent| each[each.len() * percent / 100].as_secs_f64() * 1e6);
    println!(
        "{kind:<8} ask  {bytes:>6} B: p50 {p50:>6.0} µs, p99 {p99:>6.0} µs, {cpu_us:>6.1} µs of CPU each"
    );
}

/// As many as there is room for.
async fn one_way(kind: &str, links: &LinkNet, to: PeerId, end: &End, bytes: usize, within: Duration) {
    let (begin, before, first) = (Instant::now(), cpu(), end.told.load(Ordering::Relaxed));
    let mut sent = 0;
    while begin.elapsed() < within {
        match links.tell(to, Lane::Pushes, vec![b'x'; bytes]) {
            Ok(()) => sent += 1,
            Err(LinkError::Busy) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
    while end.told.load(Ordering::Relaxed) - first < sent {
        tokio::task::yield_now().await;
    }
    let per_s = sent as f64 / begin.elapsed().as_secs_f64();
    let (mb, cpu_us) = (per_s * bytes as f64 / 1e6, (cpu() - before).as_secs_f64() * 1e6 / sent as f64);
    println!("{kind:<8} tell {bytes:>6} B: {per_s:>9.0}/s, {mb:>6.0} MB/s, {cpu_us:>6.1} µs of CPU each");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let seconds = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(3);
    let within = Duration::from_secs(seconds);
    for kind in ["plain", "TLS"] {
        let [tls_one, tls_other] = if kind == "TLS" { certificates().map(Some) } else { [None, None] };
        let (_, _, links, up) = node(1, tls_one).await;
        let (to, address, _other, end) = node(2, tls_other).await;
        links.set_peers([(to, address)]);
        up.up.notified().await;
        for bytes in [128, 12_000] {
            there_and_back(kind, &links, to, bytes, within).await;
        }
        for bytes in [128, 12_000, 60_000] {
            one_way(kind, &links, to, &end, bytes, within).await;
        }
        links.stop();
    }
}
