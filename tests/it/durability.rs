//! What was acknowledged is there, whatever happens to the process or the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::frame::Answer;
use convoke_protocol::framing::Framing;
use convoke_protocol::id::Seq;
use convoke_protocol::request::messages::Send;
use tempfile::TempDir;

use crate::harness::client::conversation;
use crate::harness::command::run;
use crate::harness::load::Load;
use crate::harness::{Setup, TestClient, TestNode, to_user};

mod trace;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_doubled_by_kill_9() {
    let mut node = TestNode::start().await;
    let mut load = Load::of_pairs(3);
    load.outlives(&mut node, 20).await;
    node.stop().await;
    node.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_an_ordered_stop_under_load() {
    let mut node = TestNode::start().await;
    let mut load = Load::of_pairs(3);
    for _ in 0..3 {
        let running = load.start(&node).await;
        running.acked(100).await;
        node.stop().await;
        load.ended(running).await;
        node.check().await;
        node.start_again().await;
    }
    load.settle(&node).await;
    node.stop().await;
    node.check().await;
}

#[tokio::test]
async fn a_sync_lies_between_the_journal_write_and_the_ack() {
    if let Err(reason) = trace::is_possible().await {
        eprintln!("not tested: {reason}");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("trace");
    let mut node = Setup::default().wrapped(trace::command(&file)).start().await;
    let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    let marks: Vec<_> = (0..20).map(|n| format!("mark-{n:03}")).collect();
    for mark in &marks {
        client.say("bob", mark).await;
    }
    node.stop().await;
    let trace = trace::Trace::parse(&std::fs::read_to_string(&file).unwrap());
    for mark in &marks {
        trace.assert_synced_before_ack(mark);
    }
}

/// A small file system that is unmounted at the end.
struct SmallDisk {
    // Dropped after the unmount.
    home: Arc<TempDir>,
    mount: PathBuf,
}

impl SmallDisk {
    async fn new() -> Result<Self, String> {
        let home = Arc::new(tempfile::tempdir().unwrap());
        let mount = home.path().join("disk");
        std::fs::create_dir(&mount).unwrap();
        mount_command(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"], &mount).await?;
        Ok(Self { home, mount })
    }

    async fn grow(&self) {
        mount_command(&["-o", "remount,size=200m"], &self.mount).await.unwrap();
    }
}

async fn mount_command(arguments: &[&str], mount: &Path) -> Result<(), String> {
    let mut command = std::process::Command::new("mount");
    command.args(arguments).arg(mount);
    let ended = run(command, Vec::new()).await;
    if ended.code == Some(0) { Ok(()) } else { Err(ended.stderr) }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.mount).status();
    }
}

/// Who cannot be served is told so soon.
const IMPATIENT: &str = "[conversations]\nanswer_within_ms = 500";

/// Sends until the disk is full and checks what follows; returns what was acknowledged.
async fn fill(node: &TestNode) -> Vec<(Send, Seq)> {
    let mut alice = TestClient::login(node, Framing::Tcp, "alice", "phone").await;
    let mut acked = Vec::new();
    let error = loop {
        let send = to_user("bob", &"x".repeat(100_000));
        match alice.request(send.clone()).await {
            Answer::Sent(sent) => acked.push((send, sent.seq)),
            Answer::Error(error) => break error,
            other => panic!("{other:?}"),
        }
        assert!(acked.len() < 1_000, "the disk is never full");
    };
    assert_eq!(error.code, ErrorCode::UNAVAILABLE, "{error}");
    assert!(error.retry_after_ms.is_some(), "{error}");
    // Small ones are refused too: nothing is written after a failed write.
    refused!(alice, to_user("bob", "small"), UNAVAILABLE);
    refused!(alice, to_user("carol", "elsewhere"), UNAVAILABLE);
    assert_eq!(alice.pull_all(&conversation("alice", "bob")).await.len(), acked.len());
    // Others come and read as well.
    let mut bob = TestClient::login(node, Framing::ALL[1], "bob", "phone").await;
    assert_eq!(bob.pull_all(&conversation("alice", "bob")).await.len(), acked.len());
    acked
}

async fn mended(node: &mut TestNode, acked: &[(Send, Seq)]) {
    let mut alice = TestClient::login(node, Framing::Tcp, "alice", "phone").await;
    let messages = alice.pull_all(&conversation("alice", "bob")).await;
    // The one that failed may have been written after all.
    assert!(messages.len() == acked.len() || messages.len() == acked.len() + 1, "{}", messages.len());
    for ((send, seq), message) in acked.iter().zip(&messages) {
        assert_eq!((send.retry.client_id, *seq), (message.client_id, message.seq));
    }
    assert_eq!(alice.say("bob", "there is room again").await.seq.0, messages.len() as u64 + 1);
    drop(alice);
    node.stop().await;
    node.check().await;
}

#[tokio::test]
async fn a_full_disk_stops_sends_and_nothing_else() {
    match SmallDisk::new().await {
        Ok(disk) => {
            let data = disk.mount.join("data");
            let mut node = Setup::config(IMPATIENT).start_in(disk.home.clone(), data).await;
            let acked = fill(&node).await;
            node.stop().await;
            disk.grow().await;
            node.start_again().await;
            mended(&mut node, &acked).await;
        }
        Err(reason) => {
            eprintln!("no small file system ({}), files are bounded instead", reason.trim());
            let mut node = Setup::config(IMPATIENT).start().await;
            node.stop().await;
            // Blocks of 512 bytes: 4 MB. The signal that comes with the error is not wanted.
            let bounded = r#"trap "" XFSZ; ulimit -f 8192; exec "$@""#;
            node.change(|setup| setup.wrapped(["sh", "-c", bounded, "sh"]));
            node.start_again().await;
            let acked = fill(&node).await;
            node.stop().await;
            node.change(|setup| setup.wrapped(Vec::<String>::new()));
            node.start_again().await;
            mended(&mut node, &acked).await;
        }
    }
}

/// The journal that is being written, and where its content ends.
fn journal(data: &Path) -> (PathBuf, usize) {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    let mut directories = vec![data.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "jnl") {
                found.push((path.file_stem().unwrap().to_str().unwrap().parse().unwrap(), path));
            }
        }
    }
    let path = found.into_iter().max().expect("there is a journal").1;
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1))
}

#[tokio::test]
async fn a_torn_end_of_the_journal_costs_nothing_that_was_synced() {
    type Tear = fn(&mut Vec<u8>, usize, usize);
    // From where the content ended when the last ack came, to where it ends now.
    let tears: [(&str, Tear); 5] = [
        ("nothing is torn", |_, _, _| {}),
        ("the file ends within the last batch", |bytes, from, to| bytes.truncate((from + to) / 2)),
        ("the rest of the last batch never came", |bytes, from, to| bytes[(from + to) / 2..].fill(0)),
        ("a page of the last batch never came", |bytes, from, to| {
            let third = (to - from) / 3;
            bytes[from + third..to - third].fill(0);
        }),
        ("garbage behind the last batch", |bytes, _, to| {
            bytes.resize(bytes.len().max(to + 300), 0);
            bytes[to..to + 300].fill(0xa5);
        }),
    ];
    let mut node = TestNode::start().await;
    let mut expected = Vec::new();
    for (what, tear) in tears {
        let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
        for _ in 0..5 {
            expected.push(client.say("bob", "before").await.message_id);
        }
        let (path, from) = journal(node.data());
        // Stands for one whose ack never left: its batch is torn by hand.
        let last = client.say("bob", &"after ".repeat(100)).await;
        node.kill().await;
        let (same, to) = journal(node.data());
        assert_eq!((&same, to > from), (&path, true), "{what}");
        let mut bytes = std::fs::read(&path).unwrap();
        let length = bytes.len();
        tear(&mut bytes, from, to);
        std::fs::write(&path, &bytes).unwrap();
        assert!(bytes.len() >= from && length >= from);
        node.start_again().await;
        let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
        let messages = client.pull_all(&conversation("alice", "bob")).await;
        let kept = what.starts_with("nothing") || what.starts_with("garbage");
        if kept {
            expected.push(last.message_id);
        }
        let there: Vec<_> = messages.iter().map(|message| message.message_id).collect();
        assert_eq!(there, expected, "{what}");
    }
    node.stop().await;
    node.check().await;
}

#[tokio::test]
async fn damage_in_the_middle_of_the_journal_is_reported_and_nothing_is_opened() {
    let mut node = TestNode::start().await;
    let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    for n in 0..10 {
        client.say("bob", &format!("message {n} {}", "x".repeat(200))).await;
    }
    node.kill().await;
    let (path, end) = journal(node.data());
    let before = std::fs::read(&path).unwrap();
    let mut bytes = before.clone();
    bytes[end / 2..end / 2 + 20].iter_mut().for_each(|byte| *byte ^= 0xff);
    std::fs::write(&path, &bytes).unwrap();
    let said = Setup::default().refused(node.data()).await.failed();
    assert!(said.contains("damaged") && said.contains(path.to_str().unwrap()), "{said}");
    assert!(std::fs::read(&path).unwrap() == bytes, "what is damaged was changed");
    // With the file as it was, all is there.
    std::fs::write(&path, before).unwrap();
    node.start_again().await;
    let mut client = TestClient::login(&node, Framing::Tcp, "alice", "phone").await;
    assert_eq!(client.pull_all(&conversation("alice", "bob")).await.len(), 10);
}
