//! Several nodes are one system: whoever connects where sees neither who serves what nor that it moves.
//!
//! `CONVOKE_TEST_CQL=host:port` names a server; scripts/test starts one. Each test has a keyspace of its own.

mod acks;
mod load;
mod page;
mod untold;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use convoke_client::{Client, ClientConfig, ClientEvent, DisconnectReason};
use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::frame::{Answer, Event};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{ConversationId, DeviceId, UserId};
use convoke_protocol::message::Content;
use convoke_protocol::request::messages::Target;
use convoke_protocol::request::session::ListSessions;

use crate::harness::client::{End, conversation};
use crate::harness::group::{create, group_conversation, to_group};
use crate::harness::http::metric;
use crate::harness::load::Load;
use crate::harness::proxy::Proxy;
use crate::harness::servers::{Cluster, TOKEN_KEY};
use crate::harness::{PATIENCE, Setup, TestClient, TestNode, eventually, finished};

async fn shards(nodes: &[TestNode]) -> Vec<f64> {
    let mut all = Vec::new();
    for node in nodes {
        all.push(metric(node, "convoke_cluster_shards").await);
    }
    all
}

/// Until every node has its share of the 32 shards, and links to all others.
async fn settled(nodes: &[TestNode]) {
    let others = nodes.len() as f64 - 1.0;
    eventually("every node has its share", async || {
        let all = shards(nodes).await;
        let share = 32.0 / nodes.len() as f64;
        let fair = all.iter().all(|count| (count - share).abs() <= 1.0) && all.iter().sum::<f64>() == 32.0;
        let mut linked = true;
        for node in nodes {
            linked &= metric(node, "convoke_links_up").await == others;
        }
        (fair && linked).then_some(())
    })
    .await;
}

/// Which node has each shard.
async fn owners(nodes: &[TestNode]) -> Vec<String> {
    let data = nodes[0].data().to_str().unwrap();
    let said = finished(["admin", "shards", "--json", "--data", data]).await.good();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let shards = said["shards"].as_array().unwrap();
    shards.iter().map(|shard| shard["node"].as_str().unwrap_or_default().to_owned()).collect()
}

/// So many nodes that are one system.
async fn cluster_of(count: usize) -> (Cluster, Vec<TestNode>) {
    let cluster = Cluster::with_schema().await;
    let nodes = cluster.nodes(count).await;
    settled(&nodes).await;
    (cluster, nodes)
}

/// Stops all nodes in order, the last one first; what they leave is good.
async fn stopped_and_checked(cluster: &Cluster, mut nodes: Vec<TestNode>) {
    for node in nodes.iter_mut().rev() {
        node.stop().await;
    }
    cluster.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn people_on_different_nodes_talk_as_on_one() {
    let (_cluster, nodes) = cluster_of(3).await;
    // Many pairs, so that owners of conversations and of users are on every node.
    for pair in 0..12 {
        let (left, right) = (format!("left-{pair}"), format!("right-{pair}"));
        let at = |n: usize| &nodes[(pair + n) % 3];
        let mut alice = TestClient::login(at(0), Framing::Tcp, &left, "phone").await;
        let mut bob = TestClient::login(at(1), Framing::Tcp, &right, "phone").await;
        let id = conversation(&left, &right);
        for n in 1..=3 {
            let sent = alice.say(&right, &format!("hello {n}")).await;
            assert_eq!((sent.seq.0, bob.push().await.message.seq.0), (2 * n - 1, 2 * n - 1));
            let sent = bob.say(&left, &format!("hello yourself {n}")).await;
            assert_eq!((sent.seq.0, alice.push().await.message.seq.0), (2 * n, 2 * n));
        }
        assert_eq!(alice.pull_all(&id).await, bob.pull_all(&id).await);
        // A third device, on the third node, sees it all, and gets what comes next.
        let mut desk = TestClient::login(at(2), Framing::Tcp, &left, "desk").await;
        assert_eq!(desk.pull_all(&id).await.len(), 6);
        bob.say(&left, "and to your desk").await;
        assert_eq!((desk.push().await.message.seq.0, alice.push().await.message.seq.0), (7, 7));
        let Answer::Sessions(sessions) = desk.request(ListSessions {}).await else { panic!("no sessions") };
        let mut on: Vec<_> = sessions.sessions.iter().map(|one| (one.device.as_str(), one.current)).collect();
        on.sort_unstable();
        assert_eq!(on, [("desk", true), ("phone", false)]);
        // Whichever node an operator asks: who listens on all of them.
        for node in nodes.iter().filter(|_| pair < 3) {
            let data = node.data().to_str().unwrap();
            let said =
                finished(["admin", "conversation", id.as_str(), "--json", "--data", data]).await.good();
            let said: serde_json::Value = serde_json::from_str(&said).unwrap();
            assert_eq!((&said["active"], &said["listeners"]), (&true.into(), &3.into()), "{said:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_group_reaches_its_members_on_all_nodes() {
    let (_cluster, nodes) = cluster_of(3).await;
    for n in 0..4 {
        let name = format!("team-{n}");
        let users: Vec<String> = (0..6).map(|user| format!("member-{n}-{user}")).collect();
        let mut clients = Vec::new();
        for (place, user) in users.iter().enumerate() {
            clients.push(TestClient::login(&nodes[place % 3], Framing::Tcp, user, "phone").await);
        }
        let members: Vec<&str> = users.iter().skip(1).map(String::as_str).collect();
        let Answer::GroupCreated(made) = clients[0].request(create(&name, &members)).await else {
            panic!("not created")
        };
        assert_eq!(made.conversation, group_conversation(&name));
        for text in ["one", "two", "three"] {
            let sender = clients.len() - 1;
            clients[sender].request(to_group(&name, text)).await;
        }
        for client in clients.iter_mut().take(5) {
            // The creation, and what was said, each once and in order.
            let mut seen = Vec::new();
            while seen.last() != Some(&4) {
                seen.push(client.next_push().await.message.seq.0);
            }
            seen.retain(|seq| *seq > 1);
            assert_eq!(seen, [2, 3, 4]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_device_has_one_session_on_all_nodes_together() {
    let (_cluster, nodes) = cluster_of(2).await;
    for n in 0..6 {
        let user = format!("user-{n}");
        let mut first = TestClient::login(&nodes[n % 2], Framing::Tcp, &user, "phone").await;
        let mut second = TestClient::login(&nodes[(n + 1) % 2], Framing::Tcp, &user, "phone").await;
        assert_eq!(first.end().await, End::Kicked(ErrorCode::DEVICE_REPLACED));
        second.say(&user, "still here").await;
    }
}

/// Sends go on at the other nodes while one is killed under load: none is lost, none doubled, and none refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn an_owner_that_is_killed_is_noticed_by_nobody_elsewhere() {
    let (cluster, mut nodes) = cluster_of(3).await;
    let mut load = Load::of_pairs(6);
    let running = load.start_on(&[&nodes[0], &nodes[1]]).await;
    running.acked(200).await;
    nodes[2].kill().await;
    running.acked(400).await;
    let survivors = &nodes[..2];
    settled(survivors).await;
    running.acked(600).await;
    nodes[2].start_again().await;
    settled(&nodes).await;
    running.acked(800).await;
    for node in nodes.iter_mut().rev() {
        node.stop().await;
    }
    load.ended(running).await;
    load.forget_refusals();
    nodes[0].start_again().await;
    load.settle(&nodes[0]).await;
    nodes[0].stop().await;
    cluster.check().await;
}

/// Nodes come and go in order, under load: no send fails, and who is sent elsewhere is told where.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn nodes_come_and_go_and_no_send_fails() {
    let cluster = Cluster::with_schema().await;
    let mut nodes = cluster.nodes(1).await;
    let mut load = Load::of_pairs(6);
    let running = load.start(&nodes[0]).await;
    running.acked(100).await;
    nodes.push(cluster.node("n2").start().await);
    nodes.push(cluster.node("n3").start().await);
    settled(&nodes).await;
    running.acked(300).await;
    let mut bystander = TestClient::login(&nodes[2], Framing::Tcp, "bystander", "phone").await;
    nodes[2].stop().await;
    let mut told = None;
    while bystander.receive().await.is_some() {}
    for event in bystander.take_events() {
        if let Event::GoAway(go_away) = event {
            told = Some(go_away);
        }
    }
    let nodes_told = told.expect("it is sent elsewhere").nodes;
    let mut names: Vec<_> = nodes_told.into_iter().map(|node| node.node).collect();
    names.sort();
    assert_eq!(names, ["n1", "n2"]);
    nodes.pop();
    settled(&nodes).await;
    running.acked(500).await;
    nodes[1].stop().await;
    running.acked(700).await;
    nodes[0].stop().await;
    load.ended(running).await;
    load.forget_refusals();
    nodes[0].start_again().await;
    load.settle(&nodes[0]).await;
    nodes[0].stop().await;
    cluster.check().await;
}

/// A client of the SDK that talks to itself on another device, and what it heard.
struct Talker {
    client: Client,
    user: String,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    connected: usize,
    lost: Vec<String>,
    skipped: Vec<String>,
    messages: Vec<(ConversationId, u64)>,
}

impl Talker {
    async fn start(nodes: &[TestNode], n: usize) -> Self {
        let user = format!("talker-{n}");
        let addresses: Vec<String> = nodes.iter().map(|node| node.addresses().tcp.to_string()).collect();
        let token = nodes[0].token(&user).await;
        let device = DeviceId::new("phone").unwrap();
        let mut config = ClientConfig::new(vec![addresses[n % addresses.len()].clone()], token, device);
        config.keep_cursors = false;
        let (client, mut events) = Client::connect(config).await.unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let hears = heard.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let mut heard = hears.lock().unwrap();
                match event {
                    ClientEvent::Connected { .. } => heard.connected += 1,
                    ClientEvent::Disconnected { reason: DisconnectReason::GoAway(_) } => {}
                    ClientEvent::Disconnected { reason } => heard.lost.push(reason.to_string()),
                    ClientEvent::Message { conversation, message, .. } => {
                        heard.messages.push((conversation, message.seq.0));
                    }
                    skipped @ ClientEvent::Skipped { .. } => heard.skipped.push(format!("{skipped:?}")),
                    _ => {}
                }
            }
        });
        Self { client, user, heard }
    }
}

/// Talkers that say something to the next one, again and again, without a failure.
struct Talk {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sending: tokio::task::JoinSet<()>,
}

impl Talk {
    fn start(talkers: &[Talker]) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut sending = tokio::task::JoinSet::new();
        for (n, talker) in talkers.iter().enumerate() {
            let (client, stop, sent) = (talker.client.clone(), stop.clone(), sent.clone());
            let to = Target::User(UserId::new(&talkers[(n + 1) % talkers.len()].user).unwrap());
            sending.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.send(to.clone(), Content::text("hello")).await.expect("no send fails");
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { stop, sent, sending }
    }

    /// Waits until so many more were sent.
    async fn goes_on(&self, count: u64) {
        let before = self.sent.load(Ordering::Relaxed);
        eventually("sends go on", async || {
            (self.sent.load(Ordering::Relaxed) >= before + count).then_some(())
        })
        .await;
    }

    /// Ends it; each message was heard by both sides, once.
    async fn ended(mut self, talkers: &[Talker]) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.sending.join_next().await {
            ended.unwrap();
        }
        let sent = self.sent.load(Ordering::Relaxed) as usize;
        // Just before it gives up.
        let end = Instant::now() + PATIENCE - Duration::from_secs(1);
        eventually("everything was heard", async || {
            let heard: usize = talkers.iter().map(|one| one.heard.lock().unwrap().messages.len()).sum();
            assert!(heard <= 2 * sent, "{heard} of {sent}");
            assert!(Instant::now() < end, "{heard} of 2 * {sent}: {:#?}", not_heard(talkers));
            (heard == 2 * sent).then_some(())
        })
        .await;
    }
}

/// What each did not hear of what anybody heard, or was told to do without: to find out why.
fn not_heard(talkers: &[Talker]) -> Vec<String> {
    let mut heads: BTreeMap<ConversationId, u64> = BTreeMap::new();
    for talker in talkers {
        for (conversation, seq) in &talker.heard.lock().unwrap().messages {
            let head = heads.entry(conversation.clone()).or_default();
            *head = (*head).max(*seq);
        }
    }
    let mut lines = Vec::new();
    for talker in talkers {
        let heard = talker.heard.lock().unwrap();
        let all: BTreeSet<_> = heard.messages.iter().cloned().collect();
        let own: BTreeSet<&ConversationId> =
            heard.messages.iter().map(|(conversation, _)| conversation).collect();
        for conversation in own {
            let head = heads[conversation];
            let missing: Vec<u64> =
                (1..=head).filter(|seq| !all.contains(&(conversation.clone(), *seq))).collect();
            lines.push(format!(
                "{} in {conversation} up to {head}: without {missing:?}, connected {}",
                talker.user, heard.connected
            ));
        }
        lines.extend(heard.skipped.iter().cloned());
    }
    lines
}

/// One node after the other is stopped and started under load: each costs its clients one reconnect, and no send fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_rolling_restart_costs_each_client_one_reconnect_at_most_and_no_send() {
    let (cluster, mut nodes) = cluster_of(3).await;
    let mut talkers = Vec::new();
    for n in 0..9 {
        talkers.push(Talker::start(&nodes, n).await);
    }
    let talk = Talk::start(&talkers);
    for restarted in 0..3 {
        let before: Vec<usize> = talkers.iter().map(|one| one.heard.lock().unwrap().connected).collect();
        nodes[restarted].stop().await;
        nodes[restarted].start_again().await;
        settled(&nodes).await;
        for (talker, before) in talkers.iter().zip(before) {
            let heard = talker.heard.lock().unwrap();
            assert!(heard.connected <= before + 1, "{} came back more than once", talker.user);
            assert!(heard.lost.is_empty(), "{}: {:?}", talker.user, heard.lost);
        }
    }
    talk.ended(&talkers).await;
    stopped_and_checked(&cluster, nodes).await;
}

/// Sends of all clients go on while links are cut and mended, and everything is heard once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn a_link_that_is_cut_and_mended_loses_nothing_and_doubles_nothing() {
    let cluster = Cluster::with_schema().await;
    let (mut nodes, mut wires) = (Vec::new(), Vec::new());
    for name in ["n1", "n2"] {
        let wire = Proxy::start().await;
        let config = cluster
            .config(name)
            .replace("[links]\n", &format!("[links]\nadvertise = \"{}\"\n", wire.address));
        let node = Setup::config(&config).token_key(TOKEN_KEY).start().await;
        let listens = node.stderr();
        let listens =
            listens.lines().find(|line| line.contains("listener=\"links\"")).expect("it says where");
        wire.leads_to(listens.rsplit_once("address=").unwrap().1.trim().parse().unwrap());
        nodes.push(node);
        wires.push(wire);
    }
    settled(&nodes).await;
    let mut talkers = Vec::new();
    for n in 0..8 {
        talkers.push(Talker::start(&nodes, n).await);
    }
    let talk = Talk::start(&talkers);
    for cut in [&wires[..1], &wires[1..], &wires[..]] {
        talk.goes_on(50).await;
        cut.iter().for_each(Proxy::cut);
        eventually("the nodes notice", async || {
            let mut up = 0.0;
            for node in &nodes {
                up += metric(node, "convoke_links_up").await;
            }
            (up <= (2 - cut.len()) as f64).then_some(())
        })
        .await;
        cut.iter().for_each(Proxy::mend);
        settled(&nodes).await;
    }
    talk.goes_on(50).await;
    talk.ended(&talkers).await;
    assert!(talkers.iter().all(|one| one.heard.lock().unwrap().connected == 1), "no client was disturbed");
    stopped_and_checked(&cluster, nodes).await;
}

/// The version in which the first node reaches the others.
async fn link_version(node: &TestNode, other: &str) -> Option<u64> {
    let said = finished(["admin", "nodes", "--json", "--data", node.data().to_str().unwrap()]).await.good();
    let nodes: serde_json::Value = serde_json::from_str(&said).unwrap();
    let nodes = nodes["nodes"].as_array().unwrap();
    nodes.iter().find(|one| one["node"] == other).and_then(|one| one["linked"].as_u64())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a CQL server: CONVOKE_TEST_CQL=host:port"]
async fn nodes_of_the_former_version_and_of_this_one_are_one_system_and_are_upgraded_under_load() {
    let cluster = Cluster::with_schema().await;
    let former = |name: &str| cluster.node(name).env("CONVOKE_TEST_LINK_VERSION", "1");
    let mut nodes = Vec::new();
    for name in ["n1", "n2", "n3"] {
        nodes.push(former(name).start().await);
    }
    settled(&nodes).await;
    let mut talkers = Vec::new();
    for n in 0..6 {
        talkers.push(Talker::start(&nodes, n).await);
    }
    let talk = Talk::start(&talkers);
    assert_eq!(link_version(&nodes[0], "n2").await, Some(1));
    for upgraded in 0..3 {
        talk.goes_on(30).await;
        nodes[upgraded].stop().await;
        nodes[upgraded].change(|setup| setup.without_env("CONVOKE_TEST_LINK_VERSION"));
        nodes[upgraded].start_again().await;
        settled(&nodes).await;
    }
    assert_eq!(link_version(&nodes[0], "n2").await, Some(3));
    // What only this version knows works now.
    let data = nodes[0].data().to_str().unwrap().to_owned();
    finished(["admin", "move", "0", "n3", "--data", &data]).await.good();
    eventually("the shard is there", async || (owners(&nodes).await[0] == "n3").then_some(())).await;
    talk.goes_on(30).await;
    talk.ended(&talkers).await;
    finished(["admin", "drain", "n3", "--data", &data]).await.good();
    let ended = nodes[2].ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    nodes[1].stop().await;
    nodes[0].stop().await;
    cluster.check().await;
}
