//! Connections that are lost come back, here or at another node, as a client's should: what has no answer is sent again
//! as the same send, and what was missed is pulled before pushes count again.

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use convoke_protocol::codec;
use convoke_protocol::event::{GoAway, NodeAddress, NodesChanged};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::Seq;
use convoke_protocol::request::messages::{Page, Pull, PullRange, Pulled, Target};

use super::{Numbered, Worker, micros};
use crate::load::LoadError;
use crate::load::client::connection::Stage;
use crate::load::client::wire::{self, Single, Stamp};
use crate::load::client::{SideId, hello};

/// A connection that is not back by then ends the load test. Far below the time for which a repeated send is recognised.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries.
const TRY_AFTER: Duration = Duration::from_millis(200);

/// A connection on its way back.
#[derive(Debug)]
struct Return {
    why: String,
    since_us: u64,
    tries: usize,
    /// When it connects, or pulls, next; not while an answer is on its way.
    next_us: Option<u64>,
    to_pull: VecDeque<PullRange>,
    /// What the answer on its way is to tell.
    asked: Vec<PullRange>,
    /// Pushes that came meanwhile.
    held: Vec<(SideId, Numbered, u64)>,
}

/// What is known of nodes, and who is on the way to one.
#[derive(Debug, Default)]
pub(super) struct Following {
    nodes: Vec<SocketAddr>,
    returns: BTreeMap<usize, Return>,
}

impl Following {
    pub(super) fn new(nodes: &[SocketAddr]) -> Self {
        Self { nodes: nodes.to_vec(), returns: BTreeMap::new() }
    }

    /// Whether everybody is there and has what it missed.
    pub(super) fn is_idle(&self) -> bool {
        self.returns.is_empty()
    }

    /// When something is to be done.
    pub(super) fn next_us(&self) -> u64 {
        self.returns.values().filter_map(|one| one.next_us).min().unwrap_or(u64::MAX)
    }

    pub(super) fn learn(&mut self, nodes: &[NodeAddress]) {
        let resolved = |tcp: &String| {
            tcp.parse().ok().or_else(|| tcp.to_socket_addrs().ok().and_then(|mut all| all.next()))
        };
        let nodes: Vec<_> = nodes.iter().filter_map(|node| node.tcp.as_ref()).filter_map(resolved).collect();
        if !nodes.is_empty() {
            self.nodes = nodes;
        }
    }
}

impl Worker<'_> {
    pub(super) fn told_to_go(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let GoAway { reason, retry_after_ms, nodes } =
            codec::decode(body).map_err(|error| self.wrong(at, error))?;
        self.following.learn(&nodes);
        let after = Duration::from_millis(retry_after_ms.into());
        self.lost(at, &format!("the server said go away: {reason}"), after)
    }

    pub(super) fn nodes_changed(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let NodesChanged { nodes } = codec::decode(body).map_err(|error| self.wrong(at, error))?;
        self.following.learn(&nodes);
        Ok(())
    }

    /// The connection is over; after a while it is made again, if it had ever been live.
    pub(super) fn lost(&mut self, at: usize, why: &str, after: Duration) -> Result<(), LoadError> {
        if !self.connections[at].was_live() {
            return Err(self.wrong(at, why));
        }
        self.connections[at].stage = Stage::Away;
        for side in std::mem::take(&mut self.connections[at].moved) {
            self.sides[side.index()].moved = false;
        }
        let sides = self.connections[at].sides.clone();
        sides.into_iter().for_each(|side| self.ledger.repeats(side));
        let next_us = self.now_us + micros(after);
        let one = self.expect_back(at, why);
        one.next_us = Some(next_us);
        one.asked.clear();
        one.to_pull.clear();
        one.held.clear();
        Ok(())
    }

    fn expect_back(&mut self, at: usize, why: &str) -> &mut Return {
        let since_us = self.now_us;
        self.following.returns.entry(at).or_insert_with(|| Return {
            why: why.to_owned(),
            since_us,
            tries: 0,
            next_us: None,
            to_pull: VecDeque::new(),
            asked: Vec::new(),
            held: Vec::new(),
        })
    }

    /// Connects and pulls what is to be connected and pulled by now.
    pub(super) fn go_on(&mut self) -> Result<(), LoadError> {
        let now_us = self.now_us;
        let late = self.following.returns.iter().find(|(_, one)| now_us > one.since_us + micros(BACK_WITHIN));
        if let Some((at, one)) = late {
            return Err(self.wrong(*at, format_args!("{}; it is not back after {BACK_WITHIN:?}", one.why)));
        }
        while let Some((at, one)) =
            self.following.returns.iter_mut().find(|(_, one)| one.next_us.is_some_and(|next| next <= now_us))
        {
            one.next_us = None;
            let at = *at;
            if self.connections[at].stage == Stage::Away {
                self.connect_again(at)?;
            } else {
                self.pull(at);
                self.flush(at)?;
            }
        }
        Ok(())
    }

    fn connect_again(&mut self, at: usize) -> Result<(), LoadError> {
        let retry_us = self.now_us + micros(TRY_AFTER);
        let Following { nodes, returns } = &mut self.following;
        let Some(one) = returns.get_mut(&at) else { return Ok(()) };
        let to = nodes[(self.part.first as usize + at + one.tries) % nodes.len()];
        one.tries += 1;
        if let Err(error) = self.connections[at].open_again(to, self.job.from) {
            one.why = format!("connecting again to {to}: {error}");
            one.next_us = Some(retry_us);
            return Ok(());
        }
        self.poll.watch(self.connections[at].stream(), at)?;
        self.ask(at, &hello().into());
        self.flush(at)
    }

    /// Whether this login was one more, and what follows from that.
    pub(super) fn came_back(&mut self, at: usize) -> bool {
        if !self.following.returns.contains_key(&at) {
            return false;
        }
        self.findings.returned += 1;
        for flight in self.connections[at].depart_again() {
            let stamp = Stamp { intended_us: flight.intended_us, side: flight.side, counter: flight.counter };
            let single = Single { request_id: flight.request_id, client_id: flight.client_id, stamp };
            let age = Duration::from_micros(self.now_us.saturating_sub(flight.since_us));
            let conversation = &self.conversations[flight.side.conversation()];
            let Some(peer) = conversation.peer_of(&self.connections[at].user) else { continue };
            let again = wire::again(single, flight.attempts, age, Target::User(peer), self.job.body_bytes);
            wire::put_request(&mut self.out, Framing::Tcp, single.request_id, &again.into());
        }
        self.catch_up(at, "it came back");
        true
    }

    /// Pulls what the connection's sides lack; pushes wait meanwhile.
    pub(super) fn catch_up(&mut self, at: usize, why: &str) {
        self.connections[at].stage = Stage::CatchingUp;
        let sides = self.connections[at].sides.iter();
        let lacking = sides.map(|side| PullRange {
            conversation: self.conversations[side.conversation()].clone(),
            from: Seq(self.ledger.cursor(*side) + 1),
            to: Seq(u64::MAX),
        });
        let to_pull = lacking.collect();
        let one = self.expect_back(at, why);
        one.to_pull = to_pull;
        // If an answer is on its way, what is lacking is pulled when it has come.
        if one.asked.is_empty() {
            self.pull(at);
        }
    }

    fn pull(&mut self, at: usize) {
        let most = self.max_cursors;
        let Some(one) = self.following.returns.get_mut(&at) else { return };
        one.asked = one.to_pull.drain(..most.min(one.to_pull.len())).collect();
        if one.asked.is_empty() {
            return self.caught_up(at);
        }
        let pull = Pull { ranges: one.asked.clone() };
        self.ask(at, &pull.into());
    }

    /// A push came while what was missed is not read yet.
    pub(super) fn hold(&mut self, at: usize, push: (SideId, Numbered, u64)) {
        if let Some(one) = self.following.returns.get_mut(&at) {
            one.held.push(push);
        }
    }

    pub(super) fn pulled(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let Pulled { pages } = codec::decode(body).map_err(|error| self.wrong(at, error))?;
        let asked = self.following.returns.get_mut(&at).map(|one| std::mem::take(&mut one.asked));
        for (page, range) in pages.into_iter().zip(asked.unwrap_or_default()) {
            self.read_page(at, page, range)?;
        }
        match self.following.returns.get(&at) {
            Some(one) if one.next_us.is_none() => self.pull(at),
            _ => {}
        }
        Ok(())
    }

    fn read_page(&mut self, at: usize, page: Page, range: PullRange) -> Result<(), LoadError> {
        let go_on = match (page.error, page.next) {
            (Some(_), _) => {
                self.pull_later(at);
                Some(range.from)
            }
            (None, next) => next,
        };
        if let (Some(from), Some(one)) = (go_on, self.following.returns.get_mut(&at)) {
            one.to_pull.push_back(PullRange { from, ..range });
        }
        for message in page.messages {
            if message.sender == self.connections[at].user {
                continue;
            }
            let push = Stamp::decode(&message.content.body)
                .and_then(|stamp| self.fitting(at, page.conversation.as_str(), message.seq.0, stamp));
            let Some(push) = push else {
                return Err(self.wrong(at, "a page with a message that is not for it"));
            };
            let pulled = &mut self.sides[push.0.index()].pulled;
            *pulled = message.seq.0.max(*pulled);
            self.read_missed(at, push);
        }
        Ok(())
    }

    /// The pull was refused: what it asked for is asked again.
    pub(super) fn pull_refused(&mut self, at: usize) {
        if let Some(one) = self.following.returns.get_mut(&at) {
            let asked = std::mem::take(&mut one.asked);
            one.to_pull.extend(asked);
            self.pull_later(at);
        }
    }

    fn pull_later(&mut self, at: usize) {
        let next_us = self.now_us + micros(TRY_AFTER);
        if let Some(one) = self.following.returns.get_mut(&at) {
            one.next_us = Some(next_us);
        }
    }

    fn caught_up(&mut self, at: usize) {
        let Some(one) = self.following.returns.remove(&at) else { return };
        self.connections[at].stage = Stage::Live;
        for push in one.held {
            self.read_missed(at, push);
        }
        self.send_what_may_go(at);
    }

    /// A message of a page, or a push that was held: whichever comes second is no second copy.
    fn read_missed(&mut self, at: usize, push: (SideId, Numbered, u64)) {
        if !self.ledger.knows(push.0, push.1.seq) {
            self.heard(at, push);
        }
    }

    /// A message, if it is one for this connection.
    pub(super) fn fitting(
        &self,
        at: usize,
        conversation: &str,
        seq: u64,
        stamp: Stamp,
    ) -> Option<(SideId, Numbered, u64)> {
        let side = stamp.side.other();
        let fits = self.sides.get(side.index()).is_some_and(|side| side.connection as usize == at)
            && self.conversations[side.conversation()].as_str() == conversation;
        fits.then_some((side, Numbered { counter: stamp.counter, seq }, stamp.intended_us))
    }
}
