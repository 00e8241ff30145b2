//! How fast the embedded store takes rows of 300 bytes, and how much CPU each costs.
//!
//! `cargo bench --bench storage [-- SECONDS]`: prints one line a case. A closed loop: each of the conversations has one
//! append in flight and sends the next one when it is answered, as their owners do.

#![allow(clippy::print_stdout, missing_docs)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench is its own process, and what it measures bounds its queues"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use convoke::storage::embedded::{EmbeddedConfig, EmbeddedStore, check};
use convoke::storage::row::NO_MESSAGE;
use convoke::storage::{Append, Entry, Epoch, LogRow, MessageLog, ReadLimit, WriteStamp};
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, ContentType, MessageKind, Priority};
use crossbeam_channel::{Receiver, Sender, unbounded};
use uuid::Uuid;

/// With sender, ids and times a row is then about 300 bytes.
const BODY_BYTES: usize = 200;

struct Owner {
    conversation: ConversationId,
    sender: UserId,
    device: DeviceId,
    content: Content,
    next: u64,
    last: MessageId,
}

impl Owner {
    fn new(n: usize) -> Self {
        let user = |name| UserId::new(name).expect("valid");
        let (one, other) = (user(&format!("user{n:05}")), user(&format!("peer{n:05}")));
        let content =
            Content { content_type: ContentType::text(), body: Bytes::from(vec![b'x'; BODY_BYTES]) };
        Self {
            conversation: ConversationId::direct(&one, &other),
            sender: one,
            device: DeviceId::new("phone").expect("valid"),
            content,
            next: 1,
            last: NO_MESSAGE,
        }
    }

    fn append(&mut self, rows: usize) -> Append {
        let listed_for = if self.next == 1 { self.conversation.direct_users() } else { Vec::new() };
        let rows = (0..rows).map(|_| self.row()).collect();
        Append {
            conversation: self.conversation.clone(),
            rows,
            stamp: WriteStamp::new(Epoch(1), 0),
            listed_for,
        }
    }

    fn row(&mut self) -> LogRow {
        let (seq, prev) = (Seq(self.next), self.last);
        (self.next, self.last) = (self.next + 1, MessageId(Uuid::now_v7()));
        LogRow {
            seq,
            id: self.last,
            prev,
            epoch: Epoch(1),
            base: Seq(seq.0 - 1),
            window: Seq(1),
            entry: Entry {
                sender: self.sender.clone(),
                device: self.device.clone(),
                client_id: ClientId::random(),
                time: Timestamp(1_700_000_000_000 + seq.0),
                kind: MessageKind::USER,
                flags: 0,
                priority: Priority::NORMAL,
                content: self.content.clone(),
                reply_to: None,
                previous: None,
                ordinal: seq.0,
                edited_at: None,
                recalled_at: None,
                deleted_at: None,
                last_edit: None,
                change: None,
            },
        }
    }
}

/// User and system time of this process so far, all threads.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

/// CPU time of the threads of that name.
fn cpu_of(name: &str) -> Duration {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("procfs") {
        let task = task.expect("procfs").path();
        let read = |file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        if read("comm").trim() == name {
            nanos += read("schedstat").split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(nanos)
}

fn rss_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("resident") * 4 / 1024
}

/// Appends of `rows` rows to so many conversations for so long.
fn run(store: &EmbeddedStore, owners: Vec<Owner>, rows: usize, span: Duration, name: &str) {
    let (ready, answered): (Sender<Owner>, Receiver<Owner>) = unbounded();
    let conversations = owners.len();
    owners.into_iter().for_each(|owner| ready.send(owner).expect("open"));
    let (stop, stored) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
    let stats = store.stats();
    let commits = stats.commits.load(Ordering::Relaxed);
    let (begin, cpu_before) = (Instant::now(), cpu());
    let (writer, worker) = (cpu_of("store-writer"), cpu_of("fjall:worker"));
    let mut back = 0;
    while back < conversations {
        let mut owner = answered.recv().expect("open");
        if begin.elapsed() > span {
            stop.store(true, Ordering::Relaxed);
        }
        if stop.load(Ordering::Relaxed) {
            back += 1;
            continue;
        }
        let append = owner.append(rows);
        let (ready, stored) = (ready.clone(), stored.clone());
        store.append(
            append,
            Box::new(move |result| {
                result.expect("stored");
                stored.fetch_add(rows as u64, Ordering::Relaxed);
                drop(ready.send(owner));
            }),
        );
    }
    let (took, cpu) = (begin.elapsed(), cpu() - cpu_before);
    let stored = stored.load(Ordering::Relaxed);
    let commits = stats.commits.load(Ordering::Relaxed) - commits;
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / stored as f64;
    println!(
        "{name:<34} {:>8.0} rows/s  {:>5.2} us CPU/row (writer {:.2}, merging {:.2})  {:>7.1} rows/commit  {:>6.0} us/commit  RSS {} MiB",
        stored as f64 / took.as_secs_f64(),
        each(cpu),
        each(cpu_of("store-writer") - writer),
        each(cpu_of("fjall:worker") - worker),
        stored as f64 / commits as f64,
        took.as_secs_f64() * 1e6 / commits as f64,
        rss_mib(),
    );
}

fn reads(store: &EmbeddedStore, owners: &[ConversationId]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let page = ReadLimit { rows: 50, bytes: 1 << 20 };
    runtime.block_on(async {
        let count = 20_000;
        let (begin, cpu_before) = (Instant::now(), cpu());
        for n in 0..count {
            let id = &owners[(n * 7919) % owners.len()];
            let rows = store.read_back(id, Seq(1), Seq(u64::MAX), page).await.expect("readable");
            assert!(!rows.is_empty());
        }
        let (took, cpu) = (begin.elapsed(), cpu() - cpu_before);
        println!(
            "{:<34} {:>8.0} reads/s {:>5.2} us CPU/read",
            "last 50 rows, one after another",
            f64::from(count as u32) / took.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / f64::from(count as u32)
        );
        let begin = Instant::now();
        for n in 0..count {
            let id = &owners[(n * 7919) % owners.len()];
            assert!(store.hint(id).await.expect("readable").is_some());
        }
        let rate = f64::from(count as u32) / begin.elapsed().as_secs_f64();
        println!("{:<34} {rate:>8.0} reads/s", "hints, one after another");
        let begin = Instant::now();
        for _ in 0..count {
            tokio::task::spawn_blocking(|| ()).await.expect("runs");
        }
        let each = begin.elapsed().as_secs_f64() * 1e6 / f64::from(count as u32);
        println!("{:<34} {each:>8.1} us", "of that, the way to a thread and back");
    });
}

fn open(dir: &Path) -> EmbeddedStore {
    let mut config = EmbeddedConfig::default();
    if let Some(mib) = std::env::var("MEMTABLE_MIB").ok().and_then(|text| text.parse::<u64>().ok()) {
        config.memtable_bytes = mib << 20;
    }
    EmbeddedStore::open(dir, config).expect("opens")
}

fn shutdown(store: &EmbeddedStore) {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(store.shutdown());
}

/// Writes a million rows and dies on the spot. Says how it went if the disk does not take them.
fn fill_and_die(dir: &Path) -> ! {
    let store = open(dir);
    let (tell, told) = unbounded();
    let mut owners: Vec<Owner> = (0..1_000).map(Owner::new).collect();
    for _ in 0..10 {
        for owner in &mut owners {
            let tell = tell.clone();
            store.append(owner.append(100), Box::new(move |result| drop(tell.send(result))));
        }
        for _ in 0..owners.len() {
            if let Err(error) = told.recv().expect("every append is answered") {
                println!("{error}; {:?}", store.health());
                shutdown(&store);
                std::process::exit(3);
            }
        }
    }
    std::process::abort()
}

fn start_after_a_crash() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let program = std::env::current_exe().expect("a path");
    let status = std::process::Command::new(program).arg("fill").arg(dir.path()).status().expect("runs");
    assert_eq!(status.code(), None, "it ends by a signal");
    let begin = Instant::now();
    let store = open(dir.path());
    println!("opened with 1000000 rows after a crash in {:?}, RSS {} MiB", begin.elapsed(), rss_mib());
    shutdown(&store);
    drop(store);
    let begin = Instant::now();
    let store = open(dir.path());
    println!("opened again in {:?}, RSS {} MiB", begin.elapsed(), rss_mib());
    shutdown(&store);
    drop(store);
    let begin = Instant::now();
    let report = check(dir.path()).expect("opens");
    println!("checked {} rows in {:?}, RSS {} MiB", report.messages, begin.elapsed(), rss_mib());
    assert!(report.is_good() && report.messages == 1_000_000, "{report}");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [fill, dir] = &arguments[..]
        && fill == "fill"
    {
        fill_and_die(Path::new(dir));
    }
    start_after_a_crash();
    let seconds = arguments.iter().find_map(|text| text.parse().ok()).unwrap_or(5);
    let span = Duration::from_secs(seconds);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let begin = Instant::now();
    let store = open(dir.path());
    println!("a new store is open after {:?}, RSS {} MiB", begin.elapsed(), rss_mib());
    for rows in [1, 16, 256] {
        run(
            &store,
            vec![Owner::new(10_000 + rows)],
            rows,
            span,
            &format!("1 conversation, {rows} rows each"),
        );
    }
    for (conversations, rows) in [(500, 1), (1_000, 1), (1_000, 2)] {
        let owners = (0..conversations).map(|n| Owner::new(20_000 * rows + conversations + n)).collect();
        run(&store, owners, rows, span, &format!("{conversations} conversations, {rows} rows each"));
    }
    let ids: Vec<_> = (0..1_000).map(|n| Owner::new(20_000 + 1_000 + n).conversation).collect();
    reads(&store, &ids);
    let begin = Instant::now();
    shutdown(&store);
    println!("shut down in {:?}", begin.elapsed());
}
