//! For how long conversations are kept.

use std::sync::Arc;
use std::time::Duration;

use convoke::storage::conformance::{append_of, store};
use convoke::storage::embedded::{EmbeddedConfig, EmbeddedStore};
use convoke::storage::row::NO_MESSAGE;
use convoke::storage::{Entry, Epoch, LogRow};
use convoke_protocol::id::{ClientId, ConversationId, DeviceId, MessageId, Seq, Timestamp};
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::changes::{Retention, SetRetention};
use convoke_protocol::request::messages::{Direction, HistoryFrom, Pull, PullRange};

use crate::harness::client::conversation;
use crate::harness::group::{BOTH, create, group_conversation, text, user};
use crate::harness::{Setup, TestClient, TestNode, eventually};

/// A log as a node left it whose retries are long over: only its last rows are in the dedup window.
async fn old_log(data: &std::path::Path, conversation: &ConversationId, rows: u64, begin: u64) {
    let (data, config) = (
        data.to_owned(),
        EmbeddedConfig { cursor_interval: Duration::from_millis(10), ..EmbeddedConfig::default() },
    );
    let log = Arc::new(
        tokio::task::spawn_blocking(move || EmbeddedStore::open(&data, config).unwrap()).await.unwrap(),
    );
    let mut before: Option<LogRow> = None;
    let mut all = Vec::new();
    for seq in 1..=rows {
        let row = LogRow {
            seq: Seq(seq),
            id: MessageId(uuid::Uuid::from_u128(u128::from(seq))),
            prev: before.as_ref().map_or(NO_MESSAGE, |row| row.id),
            epoch: Epoch(1),
            base: Seq(seq - 1),
            window: Seq(seq.saturating_sub(2).max(1)),
            entry: Entry {
                sender: user(if seq % 2 == 0 { "alice" } else { "bob" }),
                device: DeviceId::new("old").unwrap(),
                client_id: ClientId::random(),
                time: Timestamp(begin + seq * 1_000),
                kind: MessageKind::USER,
                flags: 0,
                priority: Priority::NORMAL,
                content: Content::text(format!("{seq}")),
                reply_to: None,
                previous: None,
                ordinal: seq,
                edited_at: None,
                recalled_at: None,
                deleted_at: None,
                last_edit: None,
                change: None,
            },
        };
        before = Some(row.clone());
        all.push(row);
    }
    let mut append = append_of(conversation, &all, 1);
    append.listed_for = conversation.direct_users();
    assert_eq!(store(&*log, append).await, Ok(()));
    log.shutdown().await;
}

fn keep(conversation: &ConversationId, max_age_ms: Option<u64>, max_messages: Option<u64>) -> SetRetention {
    let retention = Some(Retention { max_age_ms, max_messages });
    SetRetention { retry: Retry::first(), conversation: conversation.clone(), retention }
}

const BEGIN: u64 = 1_700_000_000_000;

async fn first(client: &mut TestClient, conversation: &ConversationId) -> u64 {
    client.history(conversation, HistoryFrom::First, Direction::Newer, 1).await.page.first.0
}

#[tokio::test]
async fn the_oldest_go_and_readers_learn_where_the_log_begins() {
    let home = Arc::new(tempfile::tempdir().unwrap());
    let data = home.path().join("data");
    let pair = conversation("alice", "bob");
    old_log(&data, &pair, 1_000, BEGIN).await;
    let setup = Setup::config("[retention]\nsweep_interval_ms = 50\n");
    let mut node = setup.start_in(home, data).await;
    let mut alice = TestClient::login(&node, BOTH[0], "alice", "phone").await;
    let mut bob = TestClient::login(&node, BOTH[1], "bob", "phone").await;
    assert_eq!((first(&mut bob, &pair).await, bob.standing(&pair).await.unwrap().unread), (1, 1));
    // In a direct conversation this is for services.
    refused!(alice, keep(&pair, None, Some(10)), NOT_PERMITTED);
    let mut service = node.service(BOTH[1], "backend").await;
    ask!(service, keep(&pair, None, Some(300)), RetentionSet);
    eventually("the oldest are gone", async || (first(&mut alice, &pair).await == 701).then_some(())).await;
    // By number and by time, in both directions, from there on.
    let page = bob.history(&pair, HistoryFrom::Seq(Seq(1)), Direction::Newer, 2).await.page;
    let seqs: Vec<_> = page.messages.iter().map(|message| message.seq.0).collect();
    assert_eq!((seqs, page.first, page.head), (vec![701, 702], Seq(701), Seq(1_000)));
    let time = HistoryFrom::Time(Timestamp(BEGIN + 5_000));
    let page = alice.history(&pair, time, Direction::Newer, 1).await.page;
    assert_eq!(text(&page.messages[0]), "701");
    let range = PullRange { conversation: pair.clone(), from: Seq(650), to: Seq(701) };
    let page = ask!(bob, Pull { ranges: vec![range] }, Pulled).pages.remove(0);
    assert_eq!((page.messages.len(), page.first, page.next), (1, Seq(701), None));
    // By age; the head and the dedup window stay whatever the rule says.
    ask!(service, keep(&pair, Some(1), None), RetentionSet);
    eventually("all that may go is gone", async || (first(&mut alice, &pair).await == 998).then_some(()))
        .await;
    assert_eq!(alice.say("bob", "1001").await.seq, Seq(1_001));
    assert_eq!(bob.standing(&pair).await.unwrap().unread, 2);
    // It stays so.
    node.kill().await;
    node.start_again().await;
    let mut bob = TestClient::login(&node, BOTH[0], "bob", "phone").await;
    assert_eq!(first(&mut bob, &pair).await, 998);
    let standing = bob.standing(&pair).await.unwrap();
    assert_eq!((standing.head, standing.unread), (Seq(1_001), 2));
    node.stop().await;
    node.check().await;
}

#[tokio::test]
async fn what_is_gone_is_not_unread_and_the_servers_rule_holds_for_all() {
    let home = Arc::new(tempfile::tempdir().unwrap());
    let data = home.path().join("data");
    let pair = conversation("alice", "carol");
    old_log(&data, &pair, 1_000, BEGIN).await;
    let setup = Setup::config("[retention]\nsweep_interval_ms = 50\nmax_messages = 100\n");
    let mut node = setup.start_in(home, data).await;
    // She wrote nothing and read nothing: unread is what there is.
    let mut carol = TestClient::login(&node, BOTH[1], "carol", "phone").await;
    eventually("the oldest are gone", async || (first(&mut carol, &pair).await == 901).then_some(())).await;
    assert_eq!(carol.standing(&pair).await.unwrap().unread, 100);
    node.stop().await;
    node.check().await;
}

#[tokio::test]
async fn the_owner_of_a_group_says_for_how_long() {
    let node = TestNode::start().await;
    for framing in BOTH {
        let id = format!("team-{}", framing.name().replace([' ', '/'], "-"));
        let team = group_conversation(&id);
        let mut alice = TestClient::login(&node, framing, "alice", framing.name()).await;
        let mut bob = TestClient::login(&node, framing, "bob", framing.name()).await;
        ask!(alice, create(&id, &["bob"]), GroupCreated);
        refused!(bob, keep(&team, None, Some(1)), NOT_PERMITTED);
        ask!(alice, keep(&team, None, Some(1)), RetentionSet);
    }
}
