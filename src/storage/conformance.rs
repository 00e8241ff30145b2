//! What the docs of the traits say, as checks that every implementation runs: the `conformance_tests!` macro makes a
//! test of each.
//!
//! They are ordinary functions that panic, so that an implementation that needs a server can run them too.

#![allow(missing_docs, reason = "the name of a check says what it checks")]

mod changes;
pub mod groups;
mod read_state;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use convoke_protocol::id::{ClientId, ConversationId, DeviceId, GroupId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, Cursor, MessageKind, Priority};
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

pub use self::changes::what_changed_since_a_token_is_told;
pub use self::groups::{
    a_trimmed_log_begins_where_it_was_said, every_attempt_is_given_the_same_group_id,
    groups_and_members_are_kept_and_paged, projections_change_rows_and_repeat_without_effect,
    reactions_are_what_a_naive_count_says, requests_to_join_end_with_the_membership,
    rules_of_retention_are_kept_and_listed, the_hint_stays_below_changes_that_may_not_be_written,
    what_entries_changed_is_there_after_reopening, what_is_hidden_stays_hidden_for_that_user,
};
pub use self::read_state::{
    marks_never_fall_and_sending_moves_them, settings_change_field_by_field,
    unread_is_what_a_naive_count_says,
};
use super::row::NO_MESSAGE;
use super::{
    Append, AppendError, Entry, Epoch, Hint, LogRow, LogStart, MessageLog, ReadLimit, Stores, WriteStamp,
};

/// An empty store of one kind.
pub trait Fixture: Send {
    /// The stores, as they are now.
    fn stores(&self) -> Stores;
    /// Ends them in order; the handles stay usable.
    fn shutdown(&mut self) -> BoxFuture<'_, ()>;
    /// Ends them and opens them again with what they keep. `false` if they keep nothing.
    fn reopen(&mut self) -> BoxFuture<'_, bool>;
    /// Whether a log has one permanent owner, so that its rows tell the hint. Otherwise only `put_hint` does.
    fn has_one_owner(&self) -> bool {
        true
    }
}

/// Makes a `tokio` test of every check, each on a fixture of its own. With `ignore = "reason"` they run only where they
/// are asked for.
#[macro_export]
macro_rules! conformance_tests {
    ($fixture:expr) => {
        $crate::conformance_tests!(@all [] $fixture);
    };
    ($fixture:expr, ignore = $reason:literal) => {
        $crate::conformance_tests!(@all [#[ignore = $reason]] $fixture);
    };
    (@all $attributes:tt $fixture:expr) => {
        $crate::conformance_tests!(@each $attributes $fixture;
            rows_come_back_in_order_and_whole,
            the_same_rows_again_change_nothing,
            a_higher_stamp_replaces_a_row,
            reads_stop_at_their_limits,
            reads_keep_to_their_range_and_conversation,
            missing_rows_are_left_out,
            an_append_without_rows_is_a_barrier,
            the_hint_is_the_last_row,
            an_append_is_seen_whole_or_not_at_all,
            an_answer_means_readable_and_a_read_is_never_taken_back,
            appends_of_one_conversation_keep_their_order,
            lists_are_sorted_paged_and_idempotent,
            what_changed_since_a_token_is_told,
            cursors_never_fall,
            marks_never_fall_and_sending_moves_them,
            unread_is_what_a_naive_count_says,
            settings_change_field_by_field,
            projections_change_rows_and_repeat_without_effect,
            groups_and_members_are_kept_and_paged,
            requests_to_join_end_with_the_membership,
            every_attempt_is_given_the_same_group_id,
            reactions_are_what_a_naive_count_says,
            what_is_hidden_stays_hidden_for_that_user,
            a_trimmed_log_begins_where_it_was_said,
            rules_of_retention_are_kept_and_listed,
            the_hint_stays_below_changes_that_may_not_be_written,
            what_entries_changed_is_there_after_reopening,
            every_append_is_answered_once_also_at_shutdown,
            after_shutdown_nothing_is_stored,
            what_was_answered_is_there_after_reopening,
        );
    };
    (@each $attributes:tt $fixture:expr; $($check:ident),* $(,)?) => {
        $($crate::conformance_tests!(@one $attributes $fixture, $check);)*
    };
    (@one [$(#[$attribute:meta])*] $fixture:expr, $check:ident) => {
        $(#[$attribute])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            $crate::storage::conformance::$check(&mut $fixture).await;
        }
    };
}

/// A group of that name.
pub fn conversation(name: &str) -> ConversationId {
    ConversationId::group(&GroupId::new(name).expect("a valid name"))
}

/// A user of that name.
pub fn user(name: &str) -> UserId {
    UserId::new(name).expect("a valid name")
}

/// A device of that name.
pub fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a valid name")
}

/// A row as an owner would write it behind `before`; what it says and its seq give it its ids.
pub fn row(seq: u64, before: Option<&LogRow>, text: &str) -> LogRow {
    let name = |kind: u8| {
        let mut bytes = [kind; 16];
        bytes[..8].copy_from_slice(&seq.to_be_bytes());
        for (at, byte) in text.bytes().enumerate() {
            bytes[8 + at % 8] = bytes[8 + at % 8].wrapping_mul(31).wrapping_add(byte);
        }
        Uuid::from_bytes(bytes)
    };
    LogRow {
        seq: Seq(seq),
        id: MessageId(name(1)),
        prev: before.map_or(NO_MESSAGE, |before| before.id),
        epoch: Epoch(1),
        base: before.map_or(Seq::ZERO, |before| before.seq),
        window: Seq(1),
        entry: Entry {
            sender: user("alice"),
            device: device("phone"),
            client_id: ClientId(name(2)),
            time: Timestamp(1_700_000_000_000 + seq),
            kind: MessageKind::USER,
            flags: 0,
            priority: Priority::NORMAL,
            content: Content::text(text),
            reply_to: None,
            previous: None,
            ordinal: before.map_or(seq, |before| before.entry.ordinal + 1),
            edited_at: None,
            recalled_at: None,
            deleted_at: None,
            last_edit: None,
            change: None,
        },
    }
}

/// The rows with seq in `from..=to`, chained.
pub fn rows(from: u64, to: u64, text: &str) -> Vec<LogRow> {
    let mut rows: Vec<LogRow> = Vec::new();
    for seq in 1..=to {
        rows.push(row(seq, rows.last(), text));
    }
    rows.drain(..rows.len().min(from as usize - 1));
    rows
}

/// An append without lists.
pub fn append_of(conversation: &ConversationId, rows: &[LogRow], stamp: u64) -> Append {
    Append {
        conversation: conversation.clone(),
        rows: rows.to_vec(),
        stamp: WriteStamp::new(Epoch(1), stamp),
        listed_for: Vec::new(),
    }
}

/// Appends and waits for the answer.
pub async fn store(log: &dyn MessageLog, append: Append) -> Result<(), AppendError> {
    let (tell, told) = oneshot::channel();
    log.append(append, Box::new(move |result| drop(tell.send(result))));
    told.await.expect("every append is answered")
}

async fn put(stores: &Stores, conversation: &ConversationId, rows: &[LogRow]) {
    assert_eq!(store(&*stores.log, append_of(conversation, rows, 0)).await, Ok(()));
}

async fn all(stores: &Stores, conversation: &ConversationId) -> Vec<LogRow> {
    let read = stores.log.read(conversation, Seq(1), Seq(u64::MAX), ReadLimit::rows(usize::MAX)).await;
    read.expect("readable")
}

fn seqs(rows: &[LogRow]) -> Vec<u64> {
    rows.iter().map(|row| row.seq.0).collect()
}

pub async fn rows_come_back_in_order_and_whole(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    assert_eq!(all(&stores, &team).await, []);
    assert_eq!(stores.log.start(&team).await, Ok(LogStart::default()));
    let mut expected = rows(1, 300, "héllo");
    expected[1].entry.reply_to = Some(Seq(1));
    expected[2].entry.previous = Some(Seq(2));
    expected[3].entry.kind = MessageKind(200);
    expected[4].entry.content.body = vec![0, 255, 1].into();
    expected[5].entry.edited_at = Some(Timestamp(5));
    expected[6].entry.content.body = vec![7; 100_000].into();
    for batch in expected.chunks(7) {
        put(&stores, &team, batch).await;
    }
    assert_eq!(all(&stores, &team).await, expected);
    let back = stores.log.read_back(&team, Seq(1), Seq(300), ReadLimit::rows(usize::MAX)).await;
    expected.reverse();
    assert_eq!(back, Ok(expected));
    assert_eq!(stores.log.start(&team).await, Ok(LogStart::default()));
}

pub async fn the_same_rows_again_change_nothing(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    let rows = rows(1, 5, "one");
    put(&stores, &team, &rows).await;
    put(&stores, &team, &rows).await;
    put(&stores, &team, &rows[2..4]).await;
    assert_eq!(all(&stores, &team).await, rows);
}

pub async fn a_higher_stamp_replaces_a_row(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    let first = rows(1, 3, "first");
    let second = row(2, Some(&first[0]), "second");
    put(&stores, &team, &first).await;
    let replace = append_of(&team, std::slice::from_ref(&second), 1);
    assert_eq!(store(&*stores.log, replace).await, Ok(()));
    assert_eq!(all(&stores, &team).await, [first[0].clone(), second, first[2].clone()]);
}

pub async fn reads_stop_at_their_limits(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    let ten = "x".repeat(10);
    put(&stores, &team, &rows(1, 10, &ten)).await;
    let cases: &[(usize, usize, &[u64])] = &[
        (3, usize::MAX, &[1, 2, 3]),
        (100, usize::MAX, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (100, 20, &[1, 2]),
        (100, 21, &[1, 2, 3]),
        (100, 1, &[1]),
        (100, 0, &[1]),
        (0, 100, &[1]),
    ];
    for (rows, bytes, expected) in cases {
        let limit = ReadLimit { rows: *rows, bytes: *bytes };
        let read = stores.log.read(&team, Seq(1), Seq(10), limit).await.expect("readable");
        assert_eq!(seqs(&read), *expected, "{limit:?}");
        let back = stores.log.read_back(&team, Seq(1), Seq(10), limit).await.expect("readable");
        let mirrored: Vec<u64> = expected.iter().map(|seq| 11 - seq).collect();
        assert_eq!(seqs(&back), mirrored, "{limit:?}");
    }
}

pub async fn reads_keep_to_their_range_and_conversation(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    // Ids that are the beginnings of others, and neighbours.
    let ids = ["a", "a1", "ab", "b"].map(conversation);
    for (at, id) in ids.iter().enumerate() {
        put(&stores, id, &rows(1, 4 + at as u64, id.as_str())).await;
    }
    let none: &[u64] = &[];
    for (at, id) in ids.iter().enumerate() {
        assert_eq!(all(&stores, id).await, rows(1, 4 + at as u64, id.as_str()));
        let cases: &[(u64, u64, &[u64])] =
            &[(2, 3, &[2, 3]), (4, 4, &[4]), (0, 1, &[1]), (3, 2, none), (9, u64::MAX, none), (0, 0, none)];
        for (from, to, expected) in cases {
            let limit = ReadLimit::rows(usize::MAX);
            let read = stores.log.read(id, Seq(*from), Seq(*to), limit).await.expect("readable");
            assert_eq!(seqs(&read), *expected, "{from}..={to}");
            let mut back = stores.log.read_back(id, Seq(*from), Seq(*to), limit).await.expect("readable");
            back.reverse();
            assert_eq!(back, read, "{from}..={to}");
        }
    }
}

pub async fn missing_rows_are_left_out(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    let rows = rows(1, 9, "gaps");
    put(&stores, &team, &rows[..2]).await;
    put(&stores, &team, &rows[4..5]).await;
    put(&stores, &team, &rows[7..]).await;
    assert_eq!(seqs(&all(&stores, &team).await), [1, 2, 5, 8, 9]);
    let limit = ReadLimit::rows(3);
    let read = stores.log.read(&team, Seq(2), Seq(9), limit).await.expect("readable");
    assert_eq!(seqs(&read), [2, 5, 8]);
    let back = stores.log.read_back(&team, Seq(1), Seq(7), limit).await.expect("readable");
    assert_eq!(seqs(&back), [5, 2, 1]);
}

pub async fn an_append_without_rows_is_a_barrier(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    let all = rows(1, 50, "barrier");
    for row in &all {
        let append = Append {
            conversation: team.clone(),
            rows: vec![row.clone()],
            stamp: WriteStamp(1),
            listed_for: Vec::new(),
        };
        stores.log.append(append, Box::new(drop));
    }
    let barrier =
        Append { conversation: team.clone(), rows: Vec::new(), stamp: WriteStamp(0), listed_for: Vec::new() };
    assert_eq!(store(&*stores.log, barrier).await, Ok(()));
    assert_eq!(stores.log.read(&team, Seq(50), Seq(50), ReadLimit::rows(1)).await, Ok(all[49..].to_vec()));
}

/// See [`MessageLog::hint`].
pub async fn the_hint_is_the_last_row(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let (team, other) = (conversation("team"), conversation("team2"));
    assert_eq!(stores.log.hint(&team).await, Ok(None));
    put(&stores, &other, &rows(1, 9, "other")).await;
    assert_eq!(stores.log.hint(&team).await, Ok(None));
    let rows = rows(1, 3, "hint");
    put(&stores, &team, &rows).await;
    // A store with several owners may know less than the last row, but never more, and never what was not stored.
    let hint = stores.log.hint(&team).await.expect("readable");
    if let Some(Hint { base, id }) = hint {
        let row = rows.iter().find(|row| row.seq == base).expect("a row of this log");
        assert_eq!(row.id, id);
    }
}

pub async fn an_append_is_seen_whole_or_not_at_all(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    let (batches, size) = (40, 25);
    let rows = rows(1, batches * size, "atom");
    let (writer, log) = (stores.clone(), team.clone());
    let writing = tokio::spawn(async move {
        for batch in rows.chunks(size as usize) {
            put(&writer, &log, batch).await;
        }
    });
    let mut seen = 0;
    while !writing.is_finished() {
        let read = all(&stores, &team).await;
        assert_eq!(read.len() as u64 % size, 0, "a part of an append was seen");
        assert!(read.len() >= seen, "what was seen is gone");
        seen = read.len();
    }
    writing.await.expect("written");
    assert_eq!(all(&stores, &team).await.len() as u64, batches * size);
}

pub async fn an_answer_means_readable_and_a_read_is_never_taken_back(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let many = (0..50).map(|n| {
        let stores = stores.clone();
        async move {
            let id = conversation(&format!("c{n}"));
            let rows = rows(1, 20, "many");
            for (at, row) in rows.iter().enumerate() {
                put(&stores, &id, std::slice::from_ref(row)).await;
                assert_eq!(seqs(&all(&stores, &id).await), (1..=at as u64 + 1).collect::<Vec<_>>());
            }
        }
    });
    join_all(many).await;
}

pub async fn appends_of_one_conversation_keep_their_order(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let mut waits = Vec::new();
    // Without waiting: the last of many writes of each row must stay.
    for stamp in 0..200 {
        for name in ["a", "b", "c"] {
            let id = conversation(name);
            let row = row(1 + stamp % 3, None, &format!("{name}{stamp}"));
            let (tell, told) = oneshot::channel();
            let answers = answers.clone();
            let done = move |result| {
                assert_eq!(result, Ok(()));
                answers.lock().push((name, stamp));
                let _ = tell.send(());
            };
            stores.log.append(append_of(&id, &[row], stamp), Box::new(done));
            waits.push(told);
        }
    }
    for told in waits {
        told.await.expect("answered");
    }
    for name in ["a", "b", "c"] {
        let texts: Vec<_> = all(&stores, &conversation(name)).await;
        let texts: Vec<_> = texts.iter().filter_map(|row| row.entry.content.as_text()).collect();
        assert_eq!(texts, [format!("{name}198"), format!("{name}199"), format!("{name}197")]);
    }
    assert_eq!(answers.lock().len(), 600);
}

pub async fn lists_are_sorted_paged_and_idempotent(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let (alice, al) = (user("alice"), user("al"));
    assert_eq!(stores.index.conversations(&alice, None, 10).await, Ok(Vec::new()));
    let mut expected = Vec::new();
    for name in ["zoe", "bob", "al", "alice", "bo", "Ærø"] {
        let id = ConversationId::direct(&alice, &user(name));
        let append = Append { listed_for: id.direct_users(), ..append_of(&id, &rows(1, 1, name), 0) };
        assert_eq!(store(&*stores.log, append.clone()).await, Ok(()));
        assert_eq!(store(&*stores.log, append).await, Ok(()));
        expected.push(id);
    }
    expected.sort();
    assert_eq!(stores.index.conversations(&alice, None, 10).await, Ok(expected.clone()));
    let both = ConversationId::direct(&alice, &al);
    assert_eq!(stores.index.conversations(&al, None, 10).await, Ok(vec![both]));
    let mut paged = Vec::new();
    loop {
        let page = stores.index.conversations(&alice, paged.last(), 2).await.expect("readable");
        assert!(page.len() <= 2);
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, expected);
    // A place that is not in the list is as good as one that is.
    let after = ConversationId::direct(&alice, &user("bobby"));
    let rest: Vec<_> = expected.iter().filter(|id| **id > after).cloned().collect();
    assert_eq!(stores.index.conversations(&alice, Some(&after), 10).await, Ok(rest));
}

pub async fn cursors_never_fall(fixture: &mut impl Fixture) {
    let mut stores = fixture.stores();
    let (alice, phone, tablet) = (user("alice"), device("phone"), device("tablet"));
    let [a, b, c] = ["a", "b", "c"].map(conversation);
    for id in [&a, &b] {
        put(&stores, id, &rows(1, 9, "cursor")).await;
    }
    let asked = [c.clone(), b.clone(), a.clone()];
    let cursor = |id: &ConversationId, seq| Cursor { conversation: id.clone(), seq: Seq(seq) };
    let puts: &[(&[Cursor], &[Cursor])] = &[
        (&[], &[]),
        (&[cursor(&a, 5)], &[cursor(&a, 5)]),
        (&[cursor(&a, 3), cursor(&b, 1)], &[cursor(&b, 1), cursor(&a, 5)]),
        (&[cursor(&a, 9), cursor(&b, 0), cursor(&b, 2)], &[cursor(&b, 2), cursor(&a, 9)]),
    ];
    for (put, expected) in puts {
        stores.cursors.put_cursors(&alice, &phone, put).await.expect("kept");
        assert_eq!(stores.cursors.cursors(&alice, &phone, &asked).await.as_deref(), Ok(*expected));
    }
    assert_eq!(stores.cursors.cursors(&alice, &tablet, &asked).await, Ok(Vec::new()));
    assert_eq!(stores.cursors.cursors(&user("alic"), &phone, &asked).await, Ok(Vec::new()));
    if fixture.reopen().await {
        stores = fixture.stores();
        let kept = vec![cursor(&b, 2), cursor(&a, 9)];
        assert_eq!(stores.cursors.cursors(&alice, &phone, &asked).await, Ok(kept.clone()));
        stores.cursors.put_cursors(&alice, &phone, &[cursor(&a, 8)]).await.expect("kept");
        assert_eq!(stores.cursors.cursors(&alice, &phone, &asked).await, Ok(kept.clone()));
        // Also not when the lower one is written over the higher one.
        assert!(fixture.reopen().await);
        assert_eq!(fixture.stores().cursors.cursors(&alice, &phone, &asked).await, Ok(kept));
    }
}

pub async fn every_append_is_answered_once_also_at_shutdown(fixture: &mut impl Fixture) {
    const APPENDS: u64 = 2_000;
    let stores = fixture.stores();
    let answers: Arc<Vec<AtomicUsize>> = Arc::new((0..APPENDS).map(|_| AtomicUsize::new(0)).collect());
    let stored = Arc::new(Mutex::new(Vec::new()));
    let (writer, counts, oks) = (stores.clone(), answers.clone(), stored.clone());
    let writing = tokio::task::spawn_blocking(move || {
        for n in 0..APPENDS {
            let (counts, oks) = (counts.clone(), oks.clone());
            let id = conversation(&format!("c{}", n % 100));
            let append = append_of(&id, &[row(1 + n / 100, None, "end")], 0);
            let done = move |result: Result<(), AppendError>| {
                counts[n as usize].fetch_add(1, Ordering::SeqCst);
                if result.is_ok() {
                    oks.lock().push((id, 1 + n / 100));
                }
            };
            writer.log.append(append, Box::new(done));
        }
    });
    tokio::task::yield_now().await;
    fixture.shutdown().await;
    writing.await.expect("appended");
    let counts: Vec<_> = answers.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    assert_eq!(counts, vec![1; APPENDS as usize]);
    if fixture.reopen().await {
        let stores = fixture.stores();
        let stored = std::mem::take(&mut *stored.lock());
        for (id, seq) in stored {
            assert!(seqs(&all(&stores, &id).await).contains(&seq), "{seq} of {id} was answered and is gone");
        }
    }
}

pub async fn after_shutdown_nothing_is_stored(fixture: &mut impl Fixture) {
    let stores = fixture.stores();
    let team = conversation("team");
    put(&stores, &team, &rows(1, 1, "kept")).await;
    fixture.shutdown().await;
    let append = append_of(&team, &rows(2, 2, "kept"), 0);
    assert!(matches!(store(&*stores.log, append).await, Err(AppendError::NotStored(_))));
    let cursor = Cursor { conversation: team.clone(), seq: Seq(1) };
    assert!(stores.cursors.put_cursors(&user("alice"), &device("phone"), &[cursor]).await.is_err());
    if fixture.reopen().await {
        assert_eq!(seqs(&all(&fixture.stores(), &team).await), [1]);
    }
}

pub async fn what_was_answered_is_there_after_reopening(fixture: &mut impl Fixture) {
    let mut expected = Vec::new();
    for round in 0..3 {
        let stores = fixture.stores();
        for n in 0..10 {
            let id = conversation(&format!("c{n}"));
            put(&stores, &id, &rows(1 + round * 5, 5 + round * 5, "kept")).await;
        }
        expected = rows(1, 5 + round * 5, "kept");
        if !fixture.reopen().await {
            break;
        }
    }
    for n in 0..10 {
        assert_eq!(all(&fixture.stores(), &conversation(&format!("c{n}"))).await, expected);
    }
}
