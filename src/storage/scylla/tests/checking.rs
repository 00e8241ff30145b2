//! `check` says that a good store is good, and finds each kind of damage.

use convoke_protocol::id::Timestamp;

use super::copying::fill;
use super::*;
use crate::cluster::claim::ShardRow;
use crate::cluster::shard_map::ShardMap;
use crate::cluster::store::OwnershipStore as _;
use crate::storage::check::Rule;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_good_store_is_good_and_each_damage_is_found() {
    let servers = OnServers::new().await;
    let store = &servers.store;
    fill(&servers.stores()).await;
    store.begin_after(Epoch(1)).await.expect("raised");
    let report = check(store).await.expect("readable");
    assert_eq!((report.conversations, report.groups, report.members), (301, 1, 700));
    assert!(report.is_good(), "{report}");

    let session = session(&servers.config).await;
    session.use_keyspace(&servers.config.keyspace, false).await.expect("used");
    let say = |cql: String| async { session.query_unpaged(cql, ()).await.map(drop).expect("written") };
    // Of seven rows, of which the last but one is confirmed.
    let id = |n: u32| format!("d:alice:u{n}");
    let hint = |n: u64, base: u64| {
        let log = rows_of(1, 7, &format!("text {n}"));
        Hint { base: Seq(base), id: log[base as usize - 1].id }
    };
    for n in [6, 13, 20, 27, 34, 41, 48] {
        let conversation = ConversationId::new(&id(n)).expect("valid");
        let stamp = WriteStamp::new(Epoch(1), 9);
        store.put_hint(&conversation, hint(n.into(), 3), stamp).await.expect("kept");
    }
    assert!(check(store).await.expect("readable").is_good());
    let mut expected = Vec::new();
    say(format!("DELETE FROM messages WHERE conversation = '{}' AND bucket = 0 AND seq = 2", id(6))).await;
    expected.push((id(6), Rule::NoGap));
    say(format!("DELETE FROM messages WHERE conversation = '{}' AND bucket = 0 AND seq >= 3", id(13))).await;
    expected.push((id(13), Rule::Hint));
    say(format!("DELETE FROM lists WHERE user = 'alice' AND conversation = '{}'", id(20))).await;
    expected.push((id(20), Rule::Listed));
    say(format!("DELETE FROM read_marks WHERE user = 'alice' AND conversation = '{}'", id(27))).await;
    expected.push((id(27), Rule::SentMark));
    say(format!("DELETE FROM uncounted WHERE conversation = '{}' AND bucket = 0", id(34))).await;
    expected.push((id(34), Rule::Uncounted));
    say(format!(
        "INSERT INTO cursors (user, device, conversation, seq) VALUES ('u41', 'phone', '{}', 99)",
        id(41)
    ))
    .await;
    expected.push((id(41), Rule::Cursor));
    // A confirmed recall whose target still says what it said.
    let conversation = ConversationId::new(&id(48)).expect("valid");
    store.put_hint(&conversation, hint(48, 5), WriteStamp::new(Epoch(1), 9)).await.expect("kept");
    let mut third = rows_of(1, 7, "text 48").swap_remove(2);
    third.entry.recalled_at = None::<Timestamp>;
    put(store, &conversation, &[third], 50).await;
    expected.push((id(48), Rule::Projected));
    say("INSERT INTO lists (user, conversation) VALUES ('eve', 'g:none')".into()).await;
    expected.push(("g:none".into(), Rule::ListedLog));
    say("DELETE FROM reaction_givers WHERE conversation = 'g:team' AND bucket = 1 AND seq = 11999 AND kind = 'x' AND user = 'bob'".into()).await;
    expected.push(("g:team".into(), Rule::Reactions));
    let report = check(store).await.expect("readable");
    for (id, rule) in &expected {
        let found = report
            .findings
            .iter()
            .any(|finding| finding.rule == *rule && finding.conversation.as_deref() == Some(id.as_str()));
        assert!(found, "{rule:?} of {id} was not found:\n{report}");
    }
    let allowed = |finding: &crate::storage::check::Finding| {
        let name = finding.conversation.clone().unwrap_or_default();
        expected.iter().any(|(id, _)| *id == name)
    };
    assert!(report.findings.iter().all(allowed), "{report}");

    // A row of an epoch that its shard never had.
    let fresh = conversation_of_shard_zero();
    let mut row = row(1, None, "x");
    row.epoch = Epoch(7);
    put(store, &fresh, &[row], 0).await;
    let shard = store.read_shard(crate::cluster::shard_map::ShardId(0)).await.expect("read");
    assert_eq!(shard, ShardRow { owner: None, epoch: Epoch(1) });
    let report = check(store).await.expect("readable");
    let found = report.findings.iter().any(|finding| finding.rule == Rule::Epoch);
    assert!(found, "{report}");
}

fn conversation_of_shard_zero() -> ConversationId {
    let map = ShardMap::new(ALONE.shards);
    let named = (0..).map(|n| conversation(&format!("epoch-{n}")));
    named.into_iter().find(|id| map.of_conversation(id).0 == 0).expect("one of them")
}
