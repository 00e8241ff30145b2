//! Load that survives the node's death: senders that remember what became of every send.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use convoke_protocol::error_code::RequestError;
use convoke_protocol::frame::Answer;
use convoke_protocol::framing::Framing;
use convoke_protocol::request::messages::Send;
use tokio::task::JoinSet;

use super::client::conversation;
use super::ledger::Ledger;
use super::{TestClient, TestNode, to_user};

/// Sends of one sender without an answer.
const IN_FLIGHT: usize = 8;

/// A send whose answer has not come yet.
struct Outstanding {
    send: Send,
    first_attempt: Instant,
}

/// One side of a pair.
struct Sender {
    user: String,
    peer: String,
    framing: Framing,
    ledger: Arc<Mutex<Ledger>>,
    /// Sends of which the connection's end left nobody knowing whether they happened.
    unknown: VecDeque<Outstanding>,
    begun: u64,
}

/// Pairs of users who talk in both directions.
pub(crate) struct Load {
    senders: Vec<Sender>,
    acks: Arc<AtomicU64>,
    refusals: Arc<Mutex<Vec<RequestError>>>,
}

/// Senders at work on one life of a node.
pub(crate) struct Running {
    tasks: JoinSet<Sender>,
    acks: Arc<AtomicU64>,
    acks_before: u64,
    refusals: Arc<Mutex<Vec<RequestError>>>,
}

impl Load {
    /// So many pairs, over all framings in turn.
    pub(crate) fn of_pairs(pairs: usize) -> Self {
        let mut senders = Vec::new();
        for pair in 0..pairs {
            let (one, other) = (format!("left-{pair}"), format!("right-{pair}"));
            let ledger = Arc::new(Mutex::new(Ledger::of(conversation(&one, &other))));
            for (side, (user, peer)) in [(&one, &other), (&other, &one)].into_iter().enumerate() {
                senders.push(Sender {
                    user: user.clone(),
                    peer: peer.clone(),
                    framing: Framing::ALL[(2 * pair + side) % Framing::ALL.len()],
                    ledger: ledger.clone(),
                    unknown: VecDeque::new(),
                    begun: 0,
                });
            }
        }
        Self { senders, acks: Arc::default(), refusals: Arc::default() }
    }

    /// How many sends were acknowledged so far.
    pub(crate) fn acks(&self) -> u64 {
        self.acks.load(Ordering::Relaxed)
    }

    /// Goes on while the node is killed and started again so many times; then everything is as the ledger says.
    pub(crate) async fn outlives(&mut self, node: &mut TestNode, lives: u64) {
        for life in 0..lives {
            let running = self.start(node).await;
            // Never at the same point of the work.
            running.acked(20 + 37 * life % 101).await;
            node.kill().await;
            self.ended(running).await;
            node.start_again().await;
        }
        self.settle(node).await;
        assert!(self.acks() > 20 * lives, "{}", self.acks());
    }

    /// Sends that were refused so far are no failure of what follows.
    pub(crate) fn forget_refusals(&mut self) {
        self.refusals.lock().unwrap().clear();
    }

    /// Lets all senders loose until their connections end. Retries of what is unknown come first.
    pub(crate) async fn start(&mut self, node: &TestNode) -> Running {
        self.spawn(&[node], true).await
    }

    /// The same, spread over nodes.
    pub(crate) async fn start_on(&mut self, nodes: &[&TestNode]) -> Running {
        self.spawn(nodes, true).await
    }

    async fn spawn(&mut self, nodes: &[&TestNode], go_on: bool) -> Running {
        let mut tasks = JoinSet::new();
        for (n, sender) in self.senders.drain(..).enumerate() {
            let node = nodes[n % nodes.len()];
            let client = TestClient::login(node, sender.framing, &sender.user, "phone").await;
            tasks.spawn(sender.run(client, go_on, self.acks.clone(), self.refusals.clone()));
        }
        let (acks, refusals) = (self.acks.clone(), self.refusals.clone());
        Running { tasks, acks, acks_before: self.acks(), refusals }
    }

    /// Takes the senders back, once their connections have ended.
    pub(crate) async fn ended(&mut self, mut running: Running) {
        while let Some(sender) = super::in_time("a sender ends", running.tasks.join_next()).await {
            self.senders.push(sender.unwrap());
        }
    }

    /// Retries what is unknown, and compares what is there with what was acknowledged: nothing more, nothing less.
    pub(crate) async fn settle(&mut self, node: &TestNode) {
        let running = self.spawn(&[node], false).await;
        self.ended(running).await;
        let mut begun = std::collections::HashMap::<_, u64>::new();
        for sender in &self.senders {
            assert!(sender.unknown.is_empty());
            *begun.entry(sender.ledger.lock().unwrap().conversation().clone()).or_default() += sender.begun;
        }
        for sender in &self.senders {
            let mut reader = TestClient::login(node, Framing::Tcp, &sender.user, "reader").await;
            let id = sender.ledger.lock().unwrap().conversation().clone();
            let messages = reader.pull_all(&id).await;
            let ledger = sender.ledger.lock().unwrap();
            ledger.compare(&messages);
            assert_eq!((messages.len() as u64, ledger.len() as u64), (begun[&id], begun[&id]));
        }
    }
}

impl Running {
    /// Waits until so many more sends were acknowledged, however many are refused meanwhile.
    pub(crate) async fn acked_again(&self, count: u64) {
        let before = self.acks.load(Ordering::Relaxed);
        super::eventually("acks again", async || {
            (self.acks.load(Ordering::Relaxed) >= before + count).then_some(())
        })
        .await;
    }

    /// Waits until so many sends were acknowledged since the start.
    pub(crate) async fn acked(&self, count: u64) {
        super::eventually("acks under load", async || {
            assert!(self.refusals.lock().unwrap().is_empty(), "{:?}", self.refusals.lock().unwrap());
            (self.acks.load(Ordering::Relaxed) >= self.acks_before + count).then_some(())
        })
        .await;
    }
}

impl Sender {
    async fn run(
        mut self,
        mut client: TestClient,
        go_on: bool,
        acks: Arc<AtomicU64>,
        refusals: Arc<Mutex<Vec<RequestError>>>,
    ) -> Self {
        let mut in_flight = VecDeque::new();
        loop {
            while in_flight.len() < IN_FLIGHT {
                let Some(next) =
                    self.unknown.pop_front().map(retried).or_else(|| go_on.then(|| self.first()))
                else {
                    break;
                };
                in_flight.push_back((client.post(next.send.clone()).await, next));
            }
            let Some((id, _)) = in_flight.front() else { return self };
            let answer = super::in_time("an answer or the end", client.try_answer(*id)).await;
            let Some(answer) = answer else { break };
            let (_, outstanding) = in_flight.pop_front().unwrap();
            self.answered(outstanding, answer, &acks, &refusals);
        }
        for (id, outstanding) in in_flight {
            match client.arrived(id) {
                Some(answer) => self.answered(outstanding, answer, &acks, &refusals),
                None => self.unknown.push_back(outstanding),
            }
        }
        self
    }

    fn first(&mut self) -> Outstanding {
        self.begun += 1;
        let send = to_user(&self.peer, &format!("{} says {}", self.user, self.begun));
        Outstanding { send, first_attempt: Instant::now() }
    }

    fn answered(
        &mut self,
        outstanding: Outstanding,
        answer: Answer,
        acks: &AtomicU64,
        refusals: &Mutex<Vec<RequestError>>,
    ) {
        match answer {
            Answer::Sent(sent) => {
                self.ledger.lock().unwrap().acked(outstanding.send.retry.client_id, &sent);
                acks.fetch_add(1, Ordering::Relaxed);
            }
            Answer::Error(error) => {
                assert!(error.retry_after_ms.is_some(), "not to be retried: {error}");
                refusals.lock().unwrap().push(error);
                self.unknown.push_back(outstanding);
            }
            other => panic!("{other:?} to a send"),
        }
    }
}

fn retried(mut outstanding: Outstanding) -> Outstanding {
    let retry = &mut outstanding.send.retry;
    retry.attempt += 1;
    retry.age_ms = u64::try_from(outstanding.first_attempt.elapsed().as_millis()).unwrap();
    outstanding
}
