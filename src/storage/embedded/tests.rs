use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::AtomicU64;

use fjall::PersistMode;
use tempfile::TempDir;

use super::*;
use crate::storage::check::{MAX_FINDINGS, Rule};
use crate::storage::conformance::{
    Fixture, append_of, conversation, device, row, rows as rows_of, store, user,
};
use crate::storage::{Stores, WriteStamp};

fn small() -> EmbeddedConfig {
    EmbeddedConfig { cache_bytes: 1 << 20, ..EmbeddedConfig::default() }
}

fn open(dir: &Path) -> Arc<EmbeddedStore> {
    Arc::new(EmbeddedStore::open(dir, small()).expect("opens"))
}

struct OnDisk {
    dir: TempDir,
    store: Arc<EmbeddedStore>,
    config: EmbeddedConfig,
}

impl OnDisk {
    fn new() -> Self {
        Self::with(small())
    }

    fn with(config: EmbeddedConfig) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Arc::new(EmbeddedStore::open(dir.path(), config.clone()).expect("opens"));
        Self { dir, store, config }
    }
}

impl Fixture for OnDisk {
    fn stores(&self) -> Stores {
        Stores::of(self.store.clone())
    }
    fn shutdown(&mut self) -> BoxFuture<'_, ()> {
        async { self.store.shutdown().await }.boxed()
    }
    fn reopen(&mut self) -> BoxFuture<'_, bool> {
        async {
            self.store.shutdown().await;
            self.store = Arc::new(EmbeddedStore::open(self.dir.path(), self.config.clone()).expect("opens"));
            true
        }
        .boxed()
    }
}

crate::conformance_tests!(OnDisk::new());

mod with_tiny_bounds {
    //! The same, with memtables that are flushed all the time and batches of few appends.
    use super::*;

    crate::conformance_tests!(OnDisk::with(EmbeddedConfig {
        memtable_bytes: 20_000,
        batch_appends: 3,
        batch_bytes: 2_000,
        cursor_interval: Duration::from_millis(1),
        change_period: Duration::ZERO,
        reads: 2,
        ..small()
    }));
}

async fn seqs(store: &EmbeddedStore, id: &ConversationId) -> Vec<u64> {
    let rows = store.read(id, Seq(1), Seq(u64::MAX), ReadLimit::rows(usize::MAX)).await;
    rows.expect("readable").iter().map(|row| row.seq.0).collect()
}

async fn put(store_: &EmbeddedStore, name: &str, from: u64, to: u64) -> Result<(), AppendError> {
    store(store_, append_of(&conversation(name), &rows_of(from, to, name), 0)).await
}

#[tokio::test]
async fn a_second_opener_is_refused_until_the_first_is_shut_down() {
    let on_disk = OnDisk::new();
    let dir = on_disk.dir.path();
    let error = EmbeddedStore::open(dir, small()).err().expect("locked");
    assert!(matches!(error, OpenError::Locked { holder: Some(pid), .. } if pid == std::process::id()));
    assert!(error.to_string().contains(&format!("process {} has the store open", std::process::id())));
    assert!(matches!(check(dir), Err(OpenError::Locked { .. })));
    on_disk.store.shutdown().await;
    // The handle is still there; a second call waits for nothing.
    on_disk.store.shutdown().await;
    assert!(matches!(on_disk.store.hint(&conversation("a")).await, Err(ReadError::Unavailable(_))));
    assert!(check(dir).expect("opens").is_good());
    open(dir).shutdown().await;
}

#[tokio::test]
async fn an_unknown_version_and_other_shards_are_refused() {
    let on_disk = OnDisk::new();
    let dir = on_disk.dir.path().to_owned();
    let format = on_disk.store.format().clone();
    assert_eq!((format.version, format.shards), (FORMAT_VERSION, 1024));
    assert!(format.created_by.starts_with("convoke "));
    on_disk.store.shutdown().await;
    let error = EmbeddedStore::open(&dir, EmbeddedConfig { shards: 7, ..small() }).err().expect("refused");
    assert_eq!(error.to_string(), "the store was created with 1024 shards, the configuration says 7");
    {
        let rows = raw(&dir);
        rows.meta.insert("format.version", "99").expect("written");
    }
    let error = EmbeddedStore::open(&dir, small()).err().expect("refused");
    assert_eq!(error.to_string(), "the store has format 99; this version knows format 1");
    let missing = check(&dir.join("nowhere")).expect_err("nothing there");
    assert!(matches!(missing, OpenError::Missing(_)));
    assert!(!dir.join("nowhere").exists(), "a check creates nothing");
}

#[test]
fn a_store_that_died_while_it_was_created_is_created_again() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(dir.path().join("store.new/keyspaces")).expect("created");
    std::fs::write(dir.path().join("store.new/0.jnl"), b"half").expect("written");
    drop(open(dir.path()));
    assert!(dir.path().join("store/version").exists() && !dir.path().join("store.new").exists());
}

/// The database without a writer, to damage it.
fn raw(dir: &Path) -> Rows {
    let options = RowsOptions { cache_bytes: 1 << 20, create_with_shards: None, background: false };
    Rows::open(dir, options).expect("opens")
}

/// A config whose commit with that number fails.
fn failing(commit: u64, fault: InjectedFault) -> EmbeddedConfig {
    EmbeddedConfig { fault: Some(Arc::new(move |n| (n == commit).then_some(fault))), ..small() }
}

#[tokio::test]
async fn after_a_failed_commit_nothing_is_written_reads_go_on_and_a_restart_heals() {
    for fault in [InjectedFault::BeforeWrite, InjectedFault::AfterWrite] {
        let dir = tempfile::tempdir().expect("a directory");
        let store = EmbeddedStore::open(dir.path(), failing(2, fault)).expect("opens");
        assert_eq!(put(&store, "a", 1, 3).await, Ok(()));
        assert_eq!(store.health(), Health::Good);
        assert!(matches!(put(&store, "a", 4, 5).await, Err(AppendError::Unknown(_))), "{fault:?}");
        assert_eq!(store.health(), Health::Poisoned("an injected fault".into()));
        assert!(matches!(put(&store, "a", 4, 5).await, Err(AppendError::NotStored(_))), "{fault:?}");
        let cursor = Cursor { conversation: conversation("a"), seq: Seq(1) };
        assert!(store.put_cursors(&user("u"), &device("d"), &[cursor]).await.is_err());
        assert_eq!(seqs(&store, &conversation("a")).await[..3], [1, 2, 3]);
        assert_eq!(store.stats().failed.load(Ordering::Relaxed), 2);
        store.shutdown().await;
        drop(store);
        assert!(check(dir.path()).expect("opens").wrong <= 1, "a part of the batch is there");
        let store = open(dir.path());
        assert_eq!(put(&store, "a", 4, 5).await, Ok(()));
        assert_eq!(seqs(&store, &conversation("a")).await, [1, 2, 3, 4, 5]);
    }
}

#[tokio::test]
async fn everything_queued_is_answered_when_a_commit_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    // The first commit waits until all are queued, so that the second, of few appends, fails before the rest.
    let (go, gate) = crossbeam_channel::bounded::<()>(0);
    let fault: FaultHook = Arc::new(move |n| {
        if n == 1 {
            gate.recv().expect("open");
        }
        (n == 2).then_some(InjectedFault::BeforeWrite)
    });
    let config = EmbeddedConfig { fault: Some(fault), batch_appends: 2, ..small() };
    let store = EmbeddedStore::open(dir.path(), config).expect("opens");
    let answers = Arc::new(Mutex::new(Vec::new()));
    for n in 0..10 {
        let answers = answers.clone();
        let append = append_of(&conversation(&format!("c{n}")), &rows_of(1, 1, "x"), 0);
        store.append(append, Box::new(move |result| answers.lock().push((n, result))));
    }
    go.send(()).expect("waiting");
    store.shutdown().await;
    let answers = std::mem::take(&mut *answers.lock());
    assert_eq!(answers.len(), 10);
    let of = |kind: fn(&Result<(), AppendError>) -> bool| answers.iter().filter(|(_, a)| kind(a)).count();
    let stored = of(Result::is_ok);
    let unknown = of(|answer| matches!(answer, Err(AppendError::Unknown(_))));
    assert!((1..=2).contains(&stored) && unknown == 2, "{answers:?}");
    assert_eq!(of(|answer| matches!(answer, Err(AppendError::NotStored(_)))), 10 - stored - unknown);
}

#[tokio::test]
async fn at_the_bound_of_the_queue_appends_are_refused_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (go, gate) = crossbeam_channel::bounded::<()>(0);
    let fault: FaultHook = Arc::new(move |n| {
        if n == 1 {
            gate.recv().expect("open");
        }
        None
    });
    let config = EmbeddedConfig { fault: Some(fault), queue_bytes: 10_000, ..small() };
    let store = EmbeddedStore::open(dir.path(), config).expect("opens");
    let answers = Arc::new(Mutex::new(Vec::new()));
    for n in 0..50 {
        let answers = answers.clone();
        let append = append_of(&conversation("a"), &[row(n + 1, None, "some text")], n);
        store.append(append, Box::new(move |result| answers.lock().push(result)));
    }
    let refused = answers.lock().len();
    assert!((1..50).contains(&refused), "{refused}");
    assert!(answers.lock().iter().all(|answer| *answer == Err(AppendError::Overloaded)));
    let stats = store.stats();
    assert_eq!(stats.overloaded.load(Ordering::Relaxed), refused as u64);
    assert!(stats.queue_bytes.load(Ordering::Relaxed) <= 10_000);
    go.send(()).expect("waiting");
    // There is room again before long.
    while put(&store, "a", 99, 99).await != Ok(()) {
        tokio::task::yield_now().await;
    }
    let stats = store.stats();
    assert_eq!(stats.rows.load(Ordering::Relaxed), 51 - refused as u64);
    assert_eq!(stats.queue_bytes.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_panic_of_the_writer_answers_everything() {
    let dir = tempfile::tempdir().expect("a directory");
    let fault: FaultHook = Arc::new(|n| if n == 2 { panic!("an injected panic") } else { None });
    let store =
        EmbeddedStore::open(dir.path(), EmbeddedConfig { fault: Some(fault), ..small() }).expect("opens");
    assert_eq!(put(&store, "a", 1, 1).await, Ok(()));
    assert!(matches!(put(&store, "a", 2, 2).await, Err(AppendError::Unknown(_))));
    // The writer may still be unwinding; until it has, appends are taken, and answered when it has.
    assert!(put(&store, "a", 3, 3).await.is_err());
    store.shutdown().await;
    assert_eq!(store.health(), Health::Poisoned("the store's writer panicked".into()));
}

#[tokio::test]
async fn a_handle_that_goes_in_an_answer_does_not_wait_for_its_own_thread() {
    let on_disk = OnDisk::new();
    let OnDisk { dir, store, .. } = on_disk;
    let last = Arc::new(Mutex::new(Some(store.clone())));
    let (tell, told) = tokio::sync::oneshot::channel();
    let done = move |result: Result<(), AppendError>| {
        drop(last.lock().take());
        drop(tell.send(result));
    };
    store.append(append_of(&conversation("a"), &rows_of(1, 1, "a"), 0), Box::new(done));
    drop(store);
    assert_eq!(told.await, Ok(Ok(())));
    // The writer ends by itself and frees the lock.
    let store = loop {
        match EmbeddedStore::open(dir.path(), small()) {
            Ok(store) => break store,
            Err(OpenError::Locked { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(seqs(&store, &conversation("a")).await, [1]);
}

#[tokio::test]
async fn cursors_are_written_before_long_and_many_at_once() {
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let fault: FaultHook = Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        None
    });
    let dir = tempfile::tempdir().expect("a directory");
    let config = EmbeddedConfig { fault: Some(fault), cursor_interval: Duration::from_millis(10), ..small() };
    let store = EmbeddedStore::open(dir.path(), config).expect("opens");
    let cursor = |n: u64| Cursor { conversation: conversation(&format!("c{n}")), seq: Seq(n + 1) };
    store.put_cursors(&user("u"), &device("d"), &[cursor(0)]).await.expect("kept");
    let stats = store.stats();
    while stats.cursors.load(Ordering::Relaxed) < 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Lower ones are not written again.
    let lower = Cursor { seq: Seq(0), ..cursor(0) };
    store.put_cursors(&user("u"), &device("d"), &[lower, cursor(1)]).await.expect("kept");
    while stats.cursors.load(Ordering::Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(written.load(Ordering::SeqCst), 2, "one commit each time");
    let asked = [conversation("c0"), conversation("c1")];
    let kept = store.cursors(&user("u"), &device("d"), &asked).await;
    assert_eq!(kept, Ok(vec![cursor(0), cursor(1)]));
}

#[test]
fn too_many_waiting_cursors_are_refused() {
    let pending = PendingCursors::default();
    let cursors = |device: u64| {
        let cursor = move |n| Cursor { conversation: conversation(&format!("c{device}-{n}")), seq: Seq(1) };
        (0..cursors::MANY_CURSORS / 2).map(cursor).collect::<Vec<_>>()
    };
    let nudges: Vec<_> =
        (0..5).map(|n| pending.put(&user("u"), &device(&format!("d{n}")), &cursors(n))).collect();
    use cursors::Nudge::{None, Now, Soon};
    assert_eq!(nudges[..4], [Ok(Soon), Ok(Now), Ok(Now), Ok(Now)]);
    assert!(nudges[4].is_err());
    assert_eq!(pending.put(&user("u"), &device("d0"), &[]), Ok(None));
}

#[tokio::test]
async fn the_first_seq_of_a_trimmed_log_is_kept() {
    let on_disk = OnDisk::new();
    let (dir, id) = (on_disk.dir.path().to_owned(), conversation("a"));
    assert_eq!(put(&on_disk.store, "a", 4, 9).await, Ok(()));
    on_disk.store.shutdown().await;
    assert_eq!(check(&dir).expect("opens").findings[0].rule, Rule::NoGap);
    let start = LogStart { seq: Seq(4), ordinal: 3 };
    let store = open(&dir);
    assert_eq!(store.trim(&id, start, WriteStamp::new(Epoch(1), 0)).await, Ok(()));
    store.shutdown().await;
    assert!(check(&dir).expect("opens").is_good());
    assert_eq!(open(&dir).start(&id).await, Ok(start));
}

/// Copies a store that may be in use.
fn copy(from: &Path) -> TempDir {
    fn copy_all(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).expect("created");
        for entry in std::fs::read_dir(from).expect("listed") {
            let entry = entry.expect("listed");
            let to = to.join(entry.file_name());
            match entry.file_type().expect("a file").is_dir() {
                true => copy_all(&entry.path(), &to),
                false => drop(std::fs::copy(entry.path(), to)),
            }
        }
    }
    let to = tempfile::tempdir().expect("a directory");
    copy_all(from, to.path());
    to
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_running_store_has_everything_that_was_answered_before() {
    let on_disk = OnDisk::new();
    let store = on_disk.store.clone();
    let answered = Arc::new(AtomicU64::new(0));
    let (seen, stop) = (answered.clone(), Arc::new(AtomicU64::new(0)));
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        let mut before: Option<LogRow> = None;
        for seq in 1.. {
            let row = row(seq, before.as_ref(), "copied");
            let append = Append {
                listed_for: vec![user("alice")],
                ..append_of(&conversation("a"), std::slice::from_ref(&row), 0)
            };
            assert_eq!(super::tests::store(&*store, append).await, Ok(()));
            seen.store(seq, Ordering::SeqCst);
            before = Some(row);
            if stopped.load(Ordering::SeqCst) == 1 {
                return;
            }
        }
    });
    for round in 1..=5 {
        while answered.load(Ordering::SeqCst) < round * 50 {
            tokio::task::yield_now().await;
        }
        let before = answered.load(Ordering::SeqCst);
        // As after kill -9: what the process had not written is not there, and nothing was closed.
        let dir = on_disk.dir.path().to_owned();
        let copied = tokio::task::spawn_blocking(move || copy(&dir)).await.expect("copied");
        let report = check(copied.path()).expect("opens");
        assert!(report.is_good(), "{report}");
        assert!(report.messages >= before, "{} of {before}", report.messages);
        let copy = open(copied.path());
        assert_eq!(seqs(&copy, &conversation("a")).await.len() as u64, report.messages);
        copy.shutdown().await;
    }
    stop.store(1, Ordering::SeqCst);
    writing.await.expect("written");
}

#[tokio::test]
async fn a_torn_end_of_the_journal_takes_nothing_that_was_answered() {
    let on_disk = OnDisk::new();
    for n in 1..=3 {
        let append = Append {
            conversation: ConversationId::direct(&user("alice"), &user("bob")),
            rows: rows_of(n, n, "text"),
            stamp: WriteStamp(n),
            listed_for: vec![user("alice"), user("bob")],
        };
        assert_eq!(store(&*on_disk.store, append).await, Ok(()));
    }
    on_disk.store.shutdown().await;
    let journal = on_disk.dir.path().join("store/0.jnl");
    let whole = std::fs::read(&journal).expect("readable");
    let end = whole.iter().rposition(|byte| *byte != 0).expect("written") + 1;
    // The last batch begins behind the trailer of the one before.
    let trailer =
        |bytes: &[u8]| bytes.windows(4).rposition(|window| window == b"FJL\x03").expect("a trailer");
    let begin = trailer(&whole[..end - 4]) + 4;
    assert!(end - begin > 150, "a whole batch");
    let base = copy(on_disk.dir.path());
    let torn = |name: &str, damage: &dyn Fn(&mut std::fs::File)| {
        let mut file =
            OpenOptions::new().read(true).write(true).open(base.path().join("store/0.jnl")).expect("opens");
        file.set_len(end as u64).expect("cut");
        file.seek(SeekFrom::Start(begin as u64)).expect("there");
        file.write_all(&whole[begin..end]).expect("written");
        damage(&mut file);
        drop(file);
        let report = check(base.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(report.is_good(), "{name}: {report}");
        assert!((2..=3).contains(&report.messages), "{name}: {report}");
        report.messages
    };
    assert_eq!(torn("whole", &|_| ()), 3);
    for (at, byte) in whole.iter().enumerate().take(end).skip(begin) {
        assert_eq!(torn(&format!("cut at {at}"), &|file| file.set_len(at as u64).expect("cut")), 2);
        let flip = |file: &mut std::fs::File| {
            file.seek(SeekFrom::Start(at as u64)).expect("there");
            file.write_all(&[byte ^ 0x55]).expect("written");
        };
        let left = torn(&format!("flipped at {at}"), &flip);
        assert!(left == 2 || (begin + 5..begin + 13).contains(&at), "{at}");
        let zero = |file: &mut std::fs::File| {
            file.set_len(at as u64).expect("cut");
            file.set_len(end as u64 + 1_000).expect("grown");
        };
        // As the cut, but for what the file system put behind it; a few will do.
        if at % 16 == 0 {
            assert_eq!(torn(&format!("zero from {at}"), &zero), 2);
        }
    }
    // Damage with whole batches behind it is no torn end: nothing is opened, nothing is cut off.
    let mut file =
        OpenOptions::new().read(true).write(true).open(base.path().join("store/0.jnl")).expect("opens");
    file.set_len(0).expect("cut");
    file.rewind().expect("there");
    let mut damaged = whole[..end].to_vec();
    damaged[begin - 30] ^= 0x55;
    file.write_all(&damaged).expect("written");
    let error = check(base.path()).expect_err("damaged").to_string();
    assert!(error.contains("is damaged at byte"), "{error}");
    let mut after = Vec::new();
    file.rewind().expect("there");
    file.read_to_end(&mut after).expect("readable");
    assert_eq!(after, damaged);
}

/// Rows of a good conversation, for [`check`] to find fault with.
async fn good_store() -> OnDisk {
    let on_disk = OnDisk::new();
    let id = ConversationId::direct(&user("alice"), &user("bob"));
    let append = Append {
        conversation: id.clone(),
        rows: rows_of(1, 5, "text"),
        stamp: WriteStamp(0),
        listed_for: id.direct_users(),
    };
    assert_eq!(store(&*on_disk.store, append).await, Ok(()));
    assert_eq!(put(&on_disk.store, "team", 1, 4).await, Ok(()));
    let cursor = Cursor { conversation: id, seq: Seq(5) };
    on_disk.store.put_cursors(&user("alice"), &device("phone"), &[cursor]).await.expect("kept");
    on_disk.store.shutdown().await;
    on_disk
}

#[tokio::test]
async fn a_good_store_is_good() {
    let on_disk = good_store().await;
    let report = check(on_disk.dir.path()).expect("opens");
    assert!(report.is_good(), "{report}");
    assert_eq!((report.conversations, report.messages), (2, 9));
    assert_eq!((report.list_entries, report.cursors, report.torn_bytes), (2, 1, 0));
    assert!(report.to_string().ends_with("good\n"));
    assert_eq!(serde_json::to_value(&report).expect("JSON")["messages"], 9);
}

#[tokio::test]
async fn check_finds_every_kind_of_damage() {
    let id = ConversationId::direct(&user("alice"), &user("bob"));
    let of = |change: fn(&mut LogRow)| {
        let mut row = rows_of(1, 5, "text")[2].clone();
        change(&mut row);
        row
    };
    type Break = Box<dyn Fn(&Rows)>;
    let write = |row: LogRow| -> Break {
        let id = id.clone();
        Box::new(move |rows| {
            let key = keys::message(&id, row.seq);
            rows.messages.insert(key, crate::storage::values::encode_row(&row)).expect("written");
        })
    };
    let (alice, bob) = (user("alice"), user("bob"));
    let mark = |mark: keys::Mark<'_>, value: Option<(u64, u64)>| -> Break {
        let key = keys::mark(&id, mark);
        Box::new(move |rows| match value {
            Some((seq, ordinal)) => {
                let value = super::marks::mark_value(crate::storage::ReadMark { seq: Seq(seq), ordinal });
                rows.marks.insert(key.clone(), value).expect("written");
            }
            None => rows.marks.remove(key.clone()).expect("removed"),
        })
    };
    let list_of_bob = keys::list(&user("bob"), &id);
    let (bobs, third) = (list_of_bob.clone(), keys::message(&id, Seq(3)));
    let nowhere = keys::list(&user("bob"), &conversation("nowhere"));
    let far = keys::cursor(&user("bob"), &device("phone"), &id);
    let cases: Vec<(&[Rule], Break)> = vec![
        (&[Rule::NoGap], Box::new(move |rows| rows.messages.remove(third.clone()).expect("removed"))),
        (&[Rule::NoGap, Rule::SentMark], write(row(9, None, "beyond"))),
        (&[Rule::Chain], write(of(|row| row.id.0 = uuid::Uuid::from_u128(7)))),
        (&[Rule::Chain], write(of(|row| row.prev.0 = uuid::Uuid::from_u128(7)))),
        (&[Rule::Ordinal, Rule::Ordinal], write(of(|row| row.entry.ordinal += 1))),
        (&[Rule::Ordinal], write(of(|row| row.entry.kind = convoke_protocol::message::MessageKind::RECALL))),
        (&[Rule::Time], write(of(|row| row.entry.time.0 += 1_000))),
        (
            &[Rule::UniqueClientId],
            write(of(|row| row.entry.client_id = rows_of(1, 1, "text")[0].entry.client_id)),
        ),
        (&[Rule::BaseAndWindow], write(of(|row| row.base = Seq(4)))),
        (&[Rule::BaseAndWindow], write(of(|row| row.window = Seq(4)))),
        (&[Rule::Listed], Box::new(move |rows| rows.lists.remove(bobs.clone()).expect("removed"))),
        (&[Rule::ListedLog], Box::new(move |rows| rows.lists.insert(nowhere.clone(), [1]).expect("written"))),
        (
            &[Rule::Cursor],
            Box::new(move |rows| rows.cursors.insert(far.clone(), keys::seq_value(Seq(6))).expect("written")),
        ),
        (&[Rule::Readable], Box::new(|rows| rows.messages.insert("nonsense", "x").expect("written"))),
        (&[Rule::Readable], Box::new(|rows| rows.lists.insert("nonsense", "x").expect("written"))),
        (&[Rule::Readable], Box::new(|rows| rows.cursors.insert("nonsense", "x").expect("written"))),
        (&[Rule::Readable], Box::new(|rows| rows.marks.insert("nonsense", "x").expect("written"))),
        (&[Rule::Readable], Box::new(|rows| rows.settings.insert("nonsense", "x").expect("written"))),
        (&[Rule::Mark], mark(keys::Mark::Read(&bob), Some((6, 6)))),
        (&[Rule::Mark], mark(keys::Mark::Read(&bob), Some((3, 4)))),
        (&[Rule::SentMark], mark(keys::Mark::Sent(&alice), Some((3, 3)))),
        (&[Rule::SentMark], mark(keys::Mark::Sent(&alice), None)),
        (&[Rule::SentMark], mark(keys::Mark::Sent(&bob), Some((3, 3)))),
        (&[Rule::Uncounted], mark(keys::Mark::Uncounted(Seq(3)), Some((3, 3)))),
        (
            &[Rule::Uncounted],
            write(of(|row| row.entry.recalled_at = Some(convoke_protocol::id::Timestamp(1)))),
        ),
    ];
    let good = good_store().await;
    for (n, (expected, damage)) in cases.iter().enumerate() {
        let copied = copy(good.dir.path());
        {
            let rows = raw(copied.path());
            damage(&rows);
            rows.database.persist(PersistMode::SyncAll).expect("synced");
        }
        let report = check(copied.path()).expect("opens");
        let rules: Vec<Rule> = report.findings.iter().map(|finding| finding.rule).collect();
        assert_eq!(rules, *expected, "case {n}: {report}");
        assert!(!report.is_good() && report.to_string().contains("WRONG"), "case {n}");
    }
    // Twice the same id: the chain breaks where it is.
    let copied = copy(good.dir.path());
    {
        let rows = raw(copied.path());
        write(of(|row| row.id = rows_of(1, 1, "text")[0].id))(&rows);
    }
    let report = check(copied.path()).expect("opens");
    let rules: Vec<Rule> = report.findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, [Rule::UniqueId, Rule::Chain]);
}

#[tokio::test]
async fn a_report_names_a_bounded_number_of_findings() {
    let on_disk = OnDisk::new();
    for n in 0..MAX_FINDINGS as u64 + 20 {
        assert_eq!(put(&on_disk.store, &format!("c{n}"), 2, 2).await, Ok(()));
    }
    on_disk.store.shutdown().await;
    let report = check(on_disk.dir.path()).expect("opens");
    assert_eq!((report.wrong as usize, report.findings.len()), (MAX_FINDINGS + 20, MAX_FINDINGS));
    assert!(report.to_string().contains("the first 100 are above"));
}
