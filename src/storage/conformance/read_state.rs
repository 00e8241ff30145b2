//! What read marks and settings promise.

use convoke_protocol::id::{ConversationId, Seq, Timestamp, UserId};
use convoke_protocol::message::MessageKind;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Fixture, append_of, conversation, row, rows, store, user};
use crate::storage::read_marks::unread;
use crate::storage::{ConversationSettings, LogRow, MarkKey, ReadMark, RowsAbove, SettingsChange, Stores};

fn key(user: &UserId, conversation: &ConversationId) -> MarkKey {
    MarkKey { user: user.clone(), conversation: conversation.clone() }
}

fn mark(seq: u64) -> ReadMark {
    ReadMark { seq: Seq(seq), ordinal: seq }
}

pub async fn marks_never_fall_and_sending_moves_them(fixture: &mut impl Fixture) {
    let mut stores = fixture.stores();
    let (alice, bob) = (user("alice"), user("bob"));
    let (one, two) = (conversation("one"), conversation("two"));
    let of = [key(&alice, &one), key(&bob, &one), key(&bob, &two)];
    assert_eq!(stores.marks.marks(&of).await, Ok(vec![ReadMark::default(); 3]));
    // All of them are of alice.
    let log = rows(1, 5, "x");
    assert_eq!(store(&*stores.log, append_of(&one, &log, 0)).await, Ok(()));
    assert_eq!(stores.marks.marks(&of[..2]).await, Ok(vec![mark(5), mark(0)]));
    for (put, kept) in [(3, 3), (2, 3), (4, 4), (4, 4), (1, 4)] {
        let marks = [(of[1].clone(), mark(put)), (of[0].clone(), mark(put))];
        assert_eq!(stores.marks.put_marks(&marks).await, Ok(()));
        assert_eq!(stores.marks.marks(&of).await, Ok(vec![mark(5), mark(kept), mark(0)]));
    }
    // A row that is written over because of a later entry moves nothing back.
    let mut recalled = log[1].clone();
    recalled.entry.recalled_at = Some(Timestamp(1));
    assert_eq!(store(&*stores.log, append_of(&one, &[recalled], 1)).await, Ok(()));
    assert_eq!(stores.marks.marks(&of[..1]).await, Ok(vec![mark(5)]));
    for (after, to, uncounted) in
        [(0, 5, 1), (1, 5, 1), (2, 5, 0), (0, 1, 0), (1, 2, 1), (5, 5, 0), (9, 5, 0)]
    {
        let range = RowsAbove { conversation: one.clone(), after: Seq(after), to: Seq(to) };
        assert_eq!(stores.marks.uncounted(&[range]).await, Ok(vec![uncounted]), "{after}..={to}");
    }
    if fixture.reopen().await {
        stores = fixture.stores();
        assert_eq!(stores.marks.marks(&of).await, Ok(vec![mark(5), mark(4), mark(0)]));
    }
}

async fn computed(stores: &Stores, user: &UserId, conversation: &ConversationId, head: &LogRow) -> u64 {
    let mark = stores.marks.marks(&[key(user, conversation)]).await.expect("readable")[0];
    let above = RowsAbove { conversation: conversation.clone(), after: mark.seq, to: head.seq };
    let uncounted = stores.marks.uncounted(&[above]).await.expect("readable")[0];
    unread(head.entry.ordinal, mark, uncounted)
}

/// Random messages, system entries, reads and recalls, against a list that is counted.
pub async fn unread_is_what_a_naive_count_says(fixture: &mut impl Fixture) {
    const STEPS: u64 = 400;
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut stores = fixture.stores();
    let users = ["alice", "bob", "carol"].map(user);
    let id = conversation("many");
    let mut log: Vec<LogRow> = Vec::new();
    let mut read = [Seq::ZERO; 3];
    for stamp in 1..=STEPS {
        match rng.random_range(0..10) {
            0..=5 => {
                let from = log.len();
                for _ in 0..rng.random_range(1..=3) {
                    let mut row = row(log.len() as u64 + 1, log.last(), &format!("{stamp}"));
                    let sender = rng.random_range(0..3);
                    row.entry.sender = users[sender].clone();
                    if rng.random_bool(0.2) {
                        row.entry.kind = MessageKind::SYSTEM;
                    } else {
                        read[sender] = row.seq;
                    }
                    let before = log.last().map_or(0, |row| row.entry.ordinal);
                    row.entry.ordinal = before + u64::from(row.entry.kind == MessageKind::USER);
                    log.push(row);
                }
                assert_eq!(store(&*stores.log, append_of(&id, &log[from..], stamp)).await, Ok(()));
            }
            6..=7 if !log.is_empty() => {
                let (reader, to) = (rng.random_range(0..3), rng.random_range(0..log.len()));
                read[reader] = log[to].seq.max(read[reader]);
                let marks = [(key(&users[reader], &id), log[to].mark())];
                assert_eq!(stores.marks.put_marks(&marks).await, Ok(()));
            }
            8 if !log.is_empty() => {
                let at = rng.random_range(0..log.len());
                let gone = Some(Timestamp(stamp));
                let entry = &mut log[at].entry;
                if rng.random() {
                    entry.recalled_at = gone;
                } else {
                    entry.deleted_at = gone;
                }
                assert_eq!(store(&*stores.log, append_of(&id, &log[at..=at], stamp)).await, Ok(()));
            }
            9 if stamp % 50 == 0 && fixture.reopen().await => stores = fixture.stores(),
            _ => {}
        }
        let Some(head) = log.last() else { continue };
        for (user, read) in users.iter().zip(read) {
            let naive = log.iter().filter(|row| {
                row.seq > read
                    && row.entry.sender != *user
                    && row.entry.kind == MessageKind::USER
                    && !row.is_uncounted()
            });
            let computed = computed(&stores, user, &id, head).await;
            assert_eq!(computed, naive.count() as u64, "{user} at step {stamp} of seed {seed}");
        }
    }
}

pub async fn settings_change_field_by_field(fixture: &mut impl Fixture) {
    let mut stores = fixture.stores();
    let (alice, bob) = (user("alice"), user("bob"));
    let (one, two) = (conversation("one"), conversation("two"));
    assert_eq!(stores.settings.settings(&alice, 10).await, Ok(Vec::new()));
    let label = |text: &str| SettingsChange { label: Some(text.into()), ..SettingsChange::default() };
    let muted = |muted| SettingsChange { muted: Some(muted), ..SettingsChange::default() };
    let pinned = |pinned| SettingsChange { pinned: Some(pinned), ..SettingsChange::default() };
    let mut expected = ConversationSettings::default();
    for change in [label("Büro"), muted(true), pinned(true), label(""), label("b"), muted(false)] {
        assert_eq!(stores.settings.set_conversation(&alice, &two, &change).await, Ok(()));
        if let Some(label) = &change.label {
            expected.label = Some(label.clone()).filter(|label| !label.is_empty());
        }
        expected.muted = change.muted.unwrap_or(expected.muted);
        expected.pinned = change.pinned.unwrap_or(expected.pinned);
        let all = vec![(two.clone(), expected.clone())];
        assert_eq!(stores.settings.settings(&alice, 10).await, Ok(all));
    }
    assert_eq!(stores.settings.set_conversation(&alice, &one, &muted(true)).await, Ok(()));
    assert_eq!(stores.settings.settings(&bob, 10).await, Ok(Vec::new()));
    if fixture.reopen().await {
        stores = fixture.stores();
    }
    let first = ConversationSettings { muted: true, ..ConversationSettings::default() };
    let all = vec![(one, first), (two, expected)];
    assert_eq!(stores.settings.settings(&alice, 10).await, Ok(all.clone()));
    assert_eq!(stores.settings.settings(&alice, 1).await, Ok(all[..1].to_vec()));
}
