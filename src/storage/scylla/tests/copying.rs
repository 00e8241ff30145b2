//! Everything there is, from an embedded store to the servers and back.

use std::io;

use convoke_protocol::id::{ClientId, GroupId, Timestamp};
use convoke_protocol::message::{Cursor, MessageKind};
use convoke_protocol::request::changes::Retention;
use tempfile::TempDir;

use super::*;
use crate::storage::conformance::device;
use crate::storage::conformance::groups::{group_row, member_row, nothing_of, project, reaction};
use crate::storage::copy::{self, CopyError, Place, Side, Summary, copy, summary};
use crate::storage::embedded::{EmbeddedConfig, EmbeddedStore, check};
use crate::storage::{Append, Change, HiddenRows, JoinRequestRow, Projection, SettingsChange};

struct OnDisk {
    dir: TempDir,
    store: Arc<EmbeddedStore>,
}

impl OnDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Arc::new(EmbeddedStore::open(dir.path(), EmbeddedConfig::default()).expect("opens"));
        Self { dir, store }
    }

    /// What waited in memory is in the files then.
    async fn reopen(&mut self) {
        self.store.shutdown().await;
        let opened = EmbeddedStore::open(self.dir.path(), EmbeddedConfig::default());
        self.store = Arc::new(opened.expect("opens"));
    }

    fn side(&self) -> Side {
        Side { stores: Stores::of(self.store.clone()), walk: self.store.clone(), has_ghosts: false }
    }
}

fn side(servers: &OnServers) -> Side {
    Side { stores: servers.stores(), walk: servers.store.clone(), has_ghosts: true }
}

/// Something of every kind, and more than one page of the kinds of which there are many.
pub(super) async fn fill(stores: &Stores) {
    let stamp = |n| WriteStamp::new(Epoch(1), n);
    for n in 0..300 {
        let id = ConversationId::direct(&user("alice"), &user(&format!("u{n}")));
        let mut log = rows_of(1, 1 + n % 7, &format!("text {n}"));
        if let Some(fourth) = log.get_mut(3) {
            fourth.entry.change = Some(Change::Recall { target: Seq(3), last_edit: None });
        }
        let listed = Append { listed_for: id.direct_users(), ..append_of(&id, &log, 0) };
        assert_eq!(append(&*stores.log, listed).await, Ok(()));
        if log.len() > 3 {
            let mut third = log[2].clone();
            third.entry.recalled_at = Some(Timestamp(9));
            let recall = Projection { rows: vec![third], ..nothing_of(&id, 1) };
            assert_eq!(project(&*stores.log, recall).await, Ok(()));
        }
    }
    let (bob, team) = (user("bob"), GroupId::new("team").expect("valid"));
    let id = ConversationId::group(&team);
    let log = rows_of(1, 12_000, "group");
    for batch in log.chunks(1_000) {
        assert_eq!(append(&*stores.log, append_of(&id, batch, 0)).await, Ok(()));
    }
    let change = Projection {
        group: Some(Box::new(group_row("Team"))),
        members: (0..700).map(|n| member_row(&format!("m{n}"), 1)).collect(),
        reactions: vec![
            reaction(11_999, "x", "bob", true, 2),
            reaction(11_999, "x", "carol", true, 2),
            reaction(11_998, "y", "bob", false, 0),
        ],
        ..nothing_of(&id, 2)
    };
    assert_eq!(project(&*stores.log, change).await, Ok(()));
    let request = JoinRequestRow { user: user("dan"), message: "me".into(), asked_at: Timestamp(3) };
    stores.groups.put_join_request(&team, &request).await.expect("kept");
    stores.groups.claim_group_id(&bob, ClientId::random(), &team).await.expect("kept");
    stores.log.trim(&id, LogStart { seq: Seq(10_500), ordinal: 10_499 }, stamp(3)).await.expect("trimmed");
    let rule = Retention { max_age_ms: Some(5), max_messages: None };
    stores.retention.set_retention(&id, Some(rule)).await.expect("kept");
    stores.retention.set_retention(&conversation("no-log"), Some(rule)).await.expect("kept");
    let cursor = Cursor { conversation: id.clone(), seq: Seq(7) };
    stores.cursors.put_cursors(&bob, &device("phone"), &[cursor]).await.expect("kept");
    let key = MarkKey { user: bob.clone(), conversation: id.clone() };
    stores.marks.put_marks(&[(key, ReadMark { seq: Seq(9), ordinal: 9 })]).await.expect("kept");
    let change = SettingsChange { label: Some("Büro".into()), muted: Some(true), pinned: None };
    stores.settings.set_conversation(&bob, &id, &change).await.expect("kept");
    let hidden = HiddenRows { up_to: Seq(4), seqs: vec![Seq(2), Seq(8)] };
    stores.hidden.hide(&bob, &id, &hidden).await.expect("kept");
}

/// Copies with an interruption at every few places.
async fn copy_with_interruptions(from: &Side, to: &Side) {
    let mut reached = Place::Begin;
    loop {
        let mut left = 3;
        let mut last = reached.clone();
        let keep = |place: &Place| {
            if left == 0 {
                return Err(io::Error::other("interrupted"));
            }
            left -= 1;
            last = place.clone();
            Ok(())
        };
        match copy(from, to, reached.clone(), keep).await {
            Ok(()) => return,
            Err(CopyError::Place(_)) => reached = last,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_copy_to_the_servers_and_back_has_everything() {
    let (mut first, servers, mut last) = (OnDisk::new(), OnServers::new().await, OnDisk::new());
    fill(&first.side().stores).await;
    first.reopen().await;
    let before = summary(&first.side()).await.expect("readable");
    let counted = Summary { heads: 0, digest: 0, ..before };
    let expected = Summary {
        conversations: 301,
        messages: (0..300).map(|n| 1 + n % 7).sum::<u64>() + 1_501,
        groups: 1,
        members: 700,
        join_requests: 1,
        reactions: 2,
        rules: 2,
        listed: 600,
        cursors: 1,
        // Alice sent everything; bob has read the group.
        marks: 302,
        settings: 1,
        hidden: 3,
        creations: 1,
        heads: 0,
        digest: 0,
    };
    assert_eq!(counted, expected);

    assert!(!servers.store.was_used().await.expect("read"));
    copy_with_interruptions(&first.side(), &side(&servers)).await;
    assert_eq!(summary(&side(&servers)).await.expect("readable"), before);
    servers.store.begin_after(copy::EPOCH).await.expect("raised");
    servers.store.begin_after(copy::EPOCH).await.expect("raised already");
    assert!(servers.store.was_used().await.expect("read"));
    servers.store.expect_no_nodes().await.expect("nobody runs");

    // What nobody committed stays behind.
    let id = ConversationId::group(&GroupId::new("team").expect("valid"));
    let mut ghost = row(12_001, None, "ghost");
    ghost.entry.kind = MessageKind::SYSTEM;
    put(&servers.store, &id, &[ghost], 0).await;
    copy_with_interruptions(&side(&servers), &last.side()).await;
    last.reopen().await;
    assert_eq!(summary(&last.side()).await.expect("readable"), before);

    // The comparison sees a single mark.
    let key = MarkKey { user: user("zoe"), conversation: id };
    last.store.put_marks(&[(key, ReadMark { seq: Seq(1), ordinal: 1 })]).await.expect("kept");
    last.reopen().await;
    assert_ne!(summary(&last.side()).await.expect("readable"), before);
    // Both are as good as each other for `convoke check`.
    let mut reports = Vec::new();
    for disk in [&first, &last] {
        disk.store.shutdown().await;
        let report = check(disk.dir.path()).expect("opens");
        reports.push((report.messages, report.list_entries, report.members));
    }
    assert_eq!(reports[0], reports[1]);
}
