//! Which nodes there are, and which connections are on their way back to one. The sockets are the worker's.

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use convoke_protocol::event::NodeAddress;
use convoke_protocol::request::messages::PullRange;

/// A connection that is not back by then ends the load test. Far below the time for which a repeated send is recognised.
pub(in crate::load) const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries.
pub(in crate::load) const TRY_AFTER: Duration = Duration::from_millis(200);

/// A connection on its way back.
#[derive(Debug)]
struct Return<H> {
    why: String,
    since_us: u64,
    tries: usize,
    /// When it connects, or pulls, next; not while an answer is on its way.
    next_us: Option<u64>,
    to_pull: VecDeque<PullRange>,
    /// What the answer on its way is to tell.
    asked: Vec<PullRange>,
    /// Pushes that came meanwhile.
    held: Vec<H>,
}

/// Nodes, and who is on the way to one, by the number of the connection. `H` is a push that waits until what was missed before
/// it is read.
#[derive(Debug)]
pub(in crate::load) struct Following<H> {
    nodes: Vec<SocketAddr>,
    websocket: bool,
    returns: BTreeMap<usize, Return<H>>,
}

pub(in crate::load) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl<H> Following<H> {
    /// Nobody is on the way, and these are the nodes until others are told.
    pub(in crate::load) fn new(nodes: &[SocketAddr], websocket: bool) -> Self {
        Self { nodes: nodes.to_vec(), websocket, returns: BTreeMap::new() }
    }

    /// Whether everybody is there and has what it missed.
    pub(in crate::load) fn is_idle(&self) -> bool {
        self.returns.is_empty()
    }

    /// Whether this connection is on its way.
    pub(in crate::load) fn has(&self, at: usize) -> bool {
        self.returns.contains_key(&at)
    }

    /// When something is to be done.
    pub(in crate::load) fn next_us(&self) -> u64 {
        self.returns.values().filter_map(|one| one.next_us).min().unwrap_or(u64::MAX)
    }

    /// Takes over what a server says where its nodes are.
    pub(in crate::load) fn learn(&mut self, nodes: &[NodeAddress]) {
        let resolved = |address: &String| {
            address.parse().ok().or_else(|| address.to_socket_addrs().ok().and_then(|mut all| all.next()))
        };
        let addresses =
            nodes.iter().filter_map(|node| if self.websocket { &node.ws } else { &node.tcp }.as_ref());
        let nodes: Vec<_> = addresses.filter_map(resolved).collect();
        if !nodes.is_empty() {
            self.nodes = nodes;
        }
    }

    /// The connection was lost: it is made again after a while.
    pub(in crate::load) fn lost(&mut self, at: usize, why: &str, now_us: u64, after: Duration) {
        let one = self.expect(at, why, now_us);
        one.next_us = Some(now_us + micros(after));
        one.asked.clear();
        one.to_pull.clear();
        one.held.clear();
    }

    fn expect(&mut self, at: usize, why: &str, now_us: u64) -> &mut Return<H> {
        self.returns.entry(at).or_insert_with(|| Return {
            why: why.to_owned(),
            since_us: now_us,
            tries: 0,
            next_us: None,
            to_pull: VecDeque::new(),
            asked: Vec::new(),
            held: Vec::new(),
        })
    }

    /// One that should be back by now, and what became of it.
    pub(in crate::load) fn late(&self, now_us: u64) -> Option<(usize, String)> {
        let late = self.returns.iter().find(|(_, one)| now_us > one.since_us + micros(BACK_WITHIN));
        late.map(|(at, one)| (*at, format!("{}; it is not back after {BACK_WITHIN:?}", one.why)))
    }

    /// One that is to connect or to pull now.
    pub(in crate::load) fn due(&mut self, now_us: u64) -> Option<usize> {
        let due = self.returns.iter_mut().find(|(_, one)| one.next_us.is_some_and(|next| next <= now_us));
        due.map(|(at, one)| {
            one.next_us = None;
            *at
        })
    }

    /// Where this connection is made next; each time another node.
    pub(in crate::load) fn address(&mut self, at: usize, number: usize) -> Option<SocketAddr> {
        let one = self.returns.get_mut(&at)?;
        one.tries += 1;
        self.nodes.get((number + one.tries) % self.nodes.len().max(1)).copied()
    }

    /// It could not be made.
    pub(in crate::load) fn failed(&mut self, at: usize, why: String, now_us: u64) {
        if let Some(one) = self.returns.get_mut(&at) {
            one.why = why;
            one.next_us = Some(now_us + micros(TRY_AFTER));
        }
    }

    /// It lacks these ranges. Whether they are to be asked for now: not while an answer is on its way.
    pub(in crate::load) fn lacks(
        &mut self,
        at: usize,
        ranges: VecDeque<PullRange>,
        why: &str,
        now_us: u64,
    ) -> bool {
        let one = self.expect(at, why, now_us);
        one.to_pull = ranges;
        let now = one.asked.is_empty();
        if now {
            one.next_us = None;
        }
        now
    }

    /// The ranges to ask for next, if any is left.
    pub(in crate::load) fn ask(&mut self, at: usize, most: usize) -> Option<Vec<PullRange>> {
        let one = self.returns.get_mut(&at)?;
        one.asked = one.to_pull.drain(..most.min(one.to_pull.len())).collect();
        (!one.asked.is_empty()).then(|| one.asked.clone())
    }

    /// The answer has come: what was asked.
    pub(in crate::load) fn answered(&mut self, at: usize) -> Vec<PullRange> {
        self.returns.get_mut(&at).map(|one| std::mem::take(&mut one.asked)).unwrap_or_default()
    }

    /// A range that was not answered to its end, and whether that is because it could not be.
    pub(in crate::load) fn remains(&mut self, at: usize, range: PullRange, refused: bool, now_us: u64) {
        if let Some(one) = self.returns.get_mut(&at) {
            one.to_pull.push_back(range);
            if refused {
                one.next_us = Some(now_us + micros(TRY_AFTER));
            }
        }
    }

    /// Whether the next ranges are to be asked for now, and not after a while.
    pub(in crate::load) fn may_ask(&self, at: usize) -> bool {
        self.returns.get(&at).is_some_and(|one| one.next_us.is_none())
    }

    /// A push came while what was missed is not read yet.
    pub(in crate::load) fn hold(&mut self, at: usize, push: H) {
        if let Some(one) = self.returns.get_mut(&at) {
            one.held.push(push);
        }
    }

    /// It is back and has what it missed: the pushes that waited.
    pub(in crate::load) fn arrived(&mut self, at: usize) -> Vec<H> {
        self.returns.remove(&at).map(|one| one.held).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use convoke_protocol::id::{ConversationId, Seq, UserId};

    use super::*;

    const AT: usize = 3;
    const RETRY_US: u64 = 200_000;

    fn range(from: u64) -> PullRange {
        let [a, b] = ["a", "b"].map(|name| UserId::new(name).unwrap());
        PullRange { conversation: ConversationId::direct(&a, &b), from: Seq(from), to: Seq(u64::MAX) }
    }

    fn node(port: u16) -> NodeAddress {
        NodeAddress { node: port.to_string(), tcp: Some(format!("127.0.0.1:{port}")), ws: None }
    }

    #[test]
    fn each_try_goes_to_another_node_and_ends_in_time() {
        let mut following = Following::<()>::new(&["127.0.0.1:1".parse().unwrap()], false);
        following.learn(&[]);
        following.lost(AT, "it went", 5, Duration::from_micros(10));
        assert_eq!((following.due(14), following.next_us()), (None, 15));
        assert_eq!((following.due(15), following.due(15)), (Some(AT), None));
        assert_eq!(following.address(AT, 0).unwrap().port(), 1, "no others are known");
        following.learn(&[node(7), node(8)]);
        let ports: Vec<_> = (0..3).map(|_| following.address(AT, 0).unwrap().port()).collect();
        assert_eq!(ports, [7, 8, 7]);
        following.failed(AT, "nobody there".to_owned(), 20);
        assert_eq!(following.next_us(), 20 + RETRY_US);
        assert_eq!(following.late(5 + micros(BACK_WITHIN)), None);
        let (late, why) = following.late(6 + micros(BACK_WITHIN)).unwrap();
        assert!(late == AT && why.starts_with("nobody there"), "{why}");
    }

    #[test]
    fn what_is_lacking_is_asked_for_once_at_a_time_until_nothing_is_left() {
        let mut following = Following::new(&[], false);
        assert!(following.lacks(AT, [range(1), range(2), range(3)].into(), "lagged", 0));
        assert_eq!(following.ask(AT, 2).unwrap(), [range(1), range(2)]);
        following.hold(AT, "a push");
        // More is lacking while the answer is on its way.
        assert!(!following.lacks(AT, [range(4)].into(), "lagged", 1));
        let asked = following.answered(AT);
        following.remains(AT, asked[0].clone(), true, 2);
        assert!(!following.may_ask(AT), "not at once after a refusal");
        // Lagged again: everything is asked for now, and not once more later.
        assert!(following.lacks(AT, [range(5)].into(), "lagged", 3));
        assert_eq!(following.ask(AT, 2).unwrap(), [range(5)]);
        assert_eq!(following.due(2 + RETRY_US), None);
        following.answered(AT);
        assert!(following.may_ask(AT) && following.ask(AT, 2).is_none());
        assert_eq!(following.arrived(AT), ["a push"]);
        assert!(following.is_idle());
    }
}
