//! Every damage of what entries change is found.

use std::path::Path;
use std::sync::Arc;

use convoke_protocol::id::{ConversationId, GroupId, Seq, Timestamp};
use convoke_protocol::message::MessageKind;
use fjall::PersistMode;
use tempfile::TempDir;

use super::super::check;
use crate::storage::check::Rule;
use crate::storage::conformance::groups::{group_row, member_row, nothing_of, project};
use crate::storage::conformance::{append_of, conversation, row, store};
use crate::storage::embedded::database::{Rows, RowsOptions};
use crate::storage::embedded::groups::{self, encode};
use crate::storage::embedded::{EmbeddedConfig, EmbeddedStore, keys, logs};
use crate::storage::values::encode_row;
use crate::storage::{Change, Hint, LogRow, LogStart, MessageLog as _, Projection, ReactionRow, WriteStamp};

const CREATED: usize = 0;
const RECALLING: usize = 3;

fn entry(seq: u64, before: Option<&LogRow>, kind: MessageKind, change: Option<Change>) -> LogRow {
    let mut row = row(seq, before, "text");
    if kind != MessageKind::USER {
        row.entry.ordinal -= 1;
    }
    (row.entry.kind, row.entry.change) = (kind, change);
    row
}

/// A group with a message, which is recalled and reacted to.
async fn good_store() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let log = Arc::new(EmbeddedStore::open(dir.path(), EmbeddedConfig::default()).expect("opens"));
    let team = conversation("team");
    let made = Change::Group(Box::new(group_row("Team")), vec![member_row("alice", 1)]);
    let react = Change::React {
        target: Seq(2),
        kind: "x".into(),
        user: crate::storage::conformance::user("alice"),
        given: true,
        count: 1,
    };
    let recall = Change::Recall { target: Seq(2), last_edit: None };
    let changes = [
        (MessageKind::GROUP, Some(made)),
        (MessageKind::USER, None),
        (MessageKind::REACTION, Some(react)),
        (MessageKind::RECALL, Some(recall)),
    ];
    let mut rows: Vec<LogRow> = Vec::new();
    for (seq, (kind, change)) in (1..).zip(changes) {
        rows.push(entry(seq, rows.last(), kind, change));
    }
    assert_eq!(store(&*log, append_of(&team, &rows, 1)).await, Ok(()));
    rows[1].entry.recalled_at = Some(Timestamp(1));
    let reaction = ReactionRow {
        target: Seq(2),
        kind: "x".into(),
        user: crate::storage::conformance::user("alice"),
        given: true,
        count: 1,
    };
    let projection = Projection {
        rows: vec![rows[1].clone()],
        group: Some(Box::new(group_row("Team"))),
        members: vec![member_row("alice", 1)],
        reactions: vec![reaction],
        ..nothing_of(&team, 2)
    };
    assert_eq!(project(&*log, projection).await, Ok(()));
    let hint = Hint { base: rows[RECALLING].seq, id: rows[RECALLING].id };
    let stamp = WriteStamp::new(crate::storage::Epoch(1), 3);
    assert_eq!(log.put_hint(&team, hint, stamp).await, Ok(()));
    log.shutdown().await;
    dir
}

fn raw(dir: &Path) -> Rows {
    let options = RowsOptions { cache_bytes: 1 << 20, create_with_shards: None, background: false };
    Rows::open(dir, options).expect("opens")
}

fn read(rows: &Rows, team: &ConversationId, index: usize) -> LogRow {
    super::row(rows, team, Seq(index as u64 + 1)).expect("it is there")
}

fn write(rows: &Rows, team: &ConversationId, row: &LogRow) {
    let value = encode_row(row);
    rows.messages.insert(keys::message(team, row.seq), value).expect("written");
}

type Break<'a> = Box<dyn Fn(&Rows) + 'a>;
type Which = fn(&Rows) -> &fjall::Keyspace;

fn small<'a>(keyspace: Which, key: Vec<u8>, value: Vec<u8>) -> Break<'a> {
    Box::new(move |rows| keyspace(rows).insert(key.clone(), value.clone()).expect("written"))
}

/// Rows that nobody can read.
fn nonsense<'a>(team: &ConversationId, group: &GroupId) -> Vec<(&'static [Rule], Break<'a>)> {
    let bob = groups::key(group, groups::MEMBER, "bob").to_vec();
    let retention = logs::key(logs::RETENTION, team).to_vec();
    let rows: [(Which, Vec<u8>); 6] = [
        (|rows| &rows.logs, b"nonsense".to_vec()),
        (|rows| &rows.groups, b"nonsense".to_vec()),
        (|rows| &rows.reactions, b"nonsense".to_vec()),
        (|rows| &rows.hidden, b"nonsense".to_vec()),
        (|rows| &rows.groups, bob),
        (|rows| &rows.logs, retention),
    ];
    rows.into_iter()
        .map(|(keyspace, key)| (&[Rule::Readable][..], small(keyspace, key, b"x".to_vec())))
        .collect()
}

#[tokio::test]
async fn every_damage_of_what_entries_change_is_found() {
    let (team, group) = (conversation("team"), GroupId::new("team").expect("valid"));
    let hint = |base: u64, id: u128| {
        let id = convoke_protocol::id::MessageId(uuid::Uuid::from_u128(id));
        encode(&(Seq(base), id)).to_vec()
    };
    let start = LogStart { seq: Seq(9), ordinal: 0 };
    let count = [&keys::message(&team, Seq(2))[..], b"cx"].concat();
    let above = [&keys::message(&team, Seq(7))[..], b"gx\0alice"].concat();
    let cases: Vec<(&[Rule], Break<'_>)> = vec![
        (
            // Its own mark and index find it too.
            &[Rule::Projected, Rule::Uncounted],
            Box::new(|rows| {
                let mut row = read(rows, &team, 1);
                row.entry.recalled_at = None;
                write(rows, &team, &row);
            }),
        ),
        (
            &[Rule::Projected],
            Box::new(|rows| {
                let mut row = read(rows, &team, RECALLING);
                row.entry.change = Some(Change::Recall { target: Seq(4), last_edit: None });
                write(rows, &team, &row);
            }),
        ),
        (
            &[Rule::Group],
            Box::new(|rows| rows.groups.remove(groups::key(&group, groups::GROUP, "")).expect("removed")),
        ),
        (
            &[Rule::Group],
            small(
                |rows| &rows.groups,
                groups::key(&group, groups::MEMBER, "bob").to_vec(),
                encode(&member_row("bob", 8)).to_vec(),
            ),
        ),
        (
            &[Rule::Group],
            small(
                |rows| &rows.groups,
                groups::key(&group, groups::MEMBER, "bob").to_vec(),
                encode(&member_row("bob", 2)).to_vec(),
            ),
        ),
        (
            &[Rule::Group, Rule::Group],
            Box::new(|rows| {
                let mut row = read(rows, &team, CREATED);
                row.entry.change = None;
                write(rows, &team, &row);
            }),
        ),
        (&[Rule::Reactions], small(|rows| &rows.reactions, count, encode(&2_u32).to_vec())),
        (&[Rule::Reactions, Rule::Reactions], small(|rows| &rows.reactions, above, encode(&()).to_vec())),
        (&[Rule::Hint], small(|rows| &rows.logs, logs::key(logs::HINT, &team).to_vec(), hint(4, 9))),
        (&[Rule::Hint], small(|rows| &rows.logs, logs::key(logs::HINT, &team).to_vec(), hint(9, 9))),
        (
            &[Rule::Start],
            small(
                |rows| &rows.logs,
                logs::key(logs::START, &conversation("other")).to_vec(),
                encode(&(start.seq, start.ordinal)).to_vec(),
            ),
        ),
        (
            &[Rule::ListedLog],
            small(
                |rows| &rows.logs,
                logs::key(logs::LOG, &conversation("other")).to_vec(),
                encode(&()).to_vec(),
            ),
        ),
    ];
    let cases: Vec<_> = cases.into_iter().chain(nonsense(&team, &group)).collect();
    let report = check(good_store().await.path()).expect("opens");
    assert!(report.is_good(), "{report}");
    assert_eq!((report.groups, report.members, report.reactions), (1, 1, 2));
    for (n, (expected, damage)) in cases.iter().enumerate() {
        let dir = good_store().await;
        {
            let rows = raw(dir.path());
            damage(&rows);
            rows.database.persist(PersistMode::SyncAll).expect("synced");
        }
        let report = check(dir.path()).expect("opens");
        let mut rules: Vec<Rule> = report.findings.iter().map(|finding| finding.rule).collect();
        rules.sort_by_key(|rule| format!("{rule:?}"));
        assert_eq!(rules, *expected, "case {n}: {report}");
    }
}
