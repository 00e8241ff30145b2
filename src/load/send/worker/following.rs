//! Connections that are lost come back, here or at another node, as a client's should: what has no answer is sent again
//! as the same send, and what was missed is pulled before pushes count again.

use std::time::Duration;

use convoke_protocol::codec;
use convoke_protocol::error_code::RequestError;
use convoke_protocol::event::{GoAway, NodesChanged};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::Seq;
use convoke_protocol::request::messages::{Page, Pull, PullRange, Pulled, Target};

use super::{Heard, Numbered, Worker};
use crate::load::LoadError;
use crate::load::client::connection::{Flight, Stage};
use crate::load::client::following::TRY_AFTER;
use crate::load::client::hello;
use crate::load::client::wire::{self, Single, Stamp};

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

    /// A login was refused: by a node that goes as well, if it was to come back.
    pub(super) fn not_let_in(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let error: RequestError = codec::decode(body).map_err(|error| self.wrong(at, error))?;
        if !self.following.has(at) {
            return Err(self.wrong(at, error));
        }
        self.lost(at, &error.to_string(), TRY_AFTER)
    }

    pub(super) fn broken(&mut self, at: usize, error: &std::io::Error) -> Result<(), LoadError> {
        self.lost(at, &error.to_string(), Duration::ZERO)
    }

    /// The connection is over; after a while it is made again, if it had ever been live.
    fn lost(&mut self, at: usize, why: &str, after: Duration) -> Result<(), LoadError> {
        if !self.connections[at].was_live() {
            return Err(self.wrong(at, why));
        }
        self.connections[at].stage = Stage::Away;
        for side in std::mem::take(&mut self.connections[at].moved) {
            self.sides[side.index()].moved = false;
        }
        for side in &self.connections[at].sides {
            self.ledger.repeats(*side);
        }
        self.following.lost(at, why, self.now_us, after);
        Ok(())
    }

    /// Connects and pulls what is to be connected and pulled by now.
    pub(super) fn bring_back(&mut self) -> Result<(), LoadError> {
        if let Some((at, why)) = self.following.late(self.now_us) {
            return Err(self.wrong(at, why));
        }
        while let Some(at) = self.following.due(self.now_us) {
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
        let Some(to) = self.following.address(at, self.part.first as usize + at) else { return Ok(()) };
        if let Err(error) = self.connections[at].open_again(to, self.job.from) {
            self.following.failed(at, format!("connecting again to {to}: {error}"), self.now_us);
            return Ok(());
        }
        self.poll.watch(self.connections[at].stream(), at)?;
        self.ask(at, &hello().into());
        self.flush(at)
    }

    /// Whether this login was one more, and what follows from that.
    pub(super) fn came_back(&mut self, at: usize) -> bool {
        if !self.following.has(at) {
            return false;
        }
        self.findings.returned += 1;
        for flight in self.connections[at].depart_again() {
            self.put_again(at, flight);
        }
        self.catch_up(at, "it came back");
        true
    }

    /// The answer left open what became of a send: the same send tells.
    pub(super) fn say_again(&mut self, at: usize, flight: Flight) {
        self.ledger.repeats(flight.side);
        let again = self.connections[at].depart_once_more(flight);
        self.put_again(at, again);
    }

    fn put_again(&mut self, at: usize, flight: Flight) {
        let stamp = Stamp { intended_us: flight.intended_us, side: flight.side, counter: flight.counter };
        let single = Single { request_id: flight.request_id, client_id: flight.client_id, stamp };
        let age = Duration::from_micros(self.now_us.saturating_sub(flight.since_us));
        let conversation = &self.conversations[flight.side.conversation()];
        let peer = conversation.peer_of(&self.connections[at].user).expect("its own conversation");
        let again = wire::again(single, flight.attempts, age, Target::User(peer), self.job.body_bytes);
        wire::put_request(&mut self.out, Framing::Tcp, single.request_id, &again.into());
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
        if self.following.lacks(at, lacking.collect(), why, self.now_us) {
            self.pull(at);
        }
    }

    fn pull(&mut self, at: usize) {
        if let Some(ranges) = self.following.ask(at, self.max_cursors) {
            return self.ask(at, &Pull { ranges }.into());
        }
        self.connections[at].stage = Stage::Live;
        for push in self.following.arrived(at) {
            self.read_missed(at, push);
        }
        self.send_what_may_go(at);
    }

    pub(super) fn pulled(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let Pulled { pages } = codec::decode(body).map_err(|error| self.wrong(at, error))?;
        for (page, range) in pages.into_iter().zip(self.following.answered(at)) {
            self.read_page(at, page, range)?;
        }
        if self.following.may_ask(at) {
            self.pull(at);
        }
        Ok(())
    }

    fn read_page(&mut self, at: usize, page: Page, range: PullRange) -> Result<(), LoadError> {
        let refused = page.error.is_some();
        if let Some(from) = if refused { Some(range.from) } else { page.next } {
            self.following.remains(at, PullRange { from, ..range }, refused, self.now_us);
        }
        for message in page.messages {
            if message.sender == self.connections[at].user {
                continue;
            }
            let heard = Stamp::decode(&message.content.body)
                .and_then(|stamp| self.fitting(at, page.conversation.as_str(), message.seq.0, stamp));
            let Some(heard) = heard else {
                return Err(self.wrong(at, "a page with a message that is not for it"));
            };
            let pulled = &mut self.sides[heard.side.index()].pulled;
            *pulled = message.seq.0.max(*pulled);
            self.read_missed(at, heard);
        }
        Ok(())
    }

    /// If a pull was refused, what it asked for is asked again.
    pub(super) fn pull_refused(&mut self, at: usize, error: &RequestError) -> Result<(), LoadError> {
        if self.connections[at].stage != Stage::CatchingUp {
            return Err(self.wrong(at, error));
        }
        for range in self.following.answered(at) {
            self.following.remains(at, range, true, self.now_us);
        }
        Ok(())
    }

    /// A message of a page, or a push that was held: whichever comes second is no second copy, and neither has to come in
    /// the order in which pushes do.
    fn read_missed(&mut self, at: usize, heard: Heard) {
        if !self.ledger.knows(heard.side, heard.message.seq) {
            self.ledger.missed(heard.side, heard.message);
            self.hear(at, heard);
        }
    }

    /// Whether this connection's user said it, on a connection that was lost.
    pub(super) fn is_own(&self, at: usize, stamp: Stamp) -> bool {
        let own = self.sides.get(stamp.side.index()).is_some_and(|side| side.connection as usize == at);
        own && self.ledger.was_repeated(stamp.side, stamp.counter)
    }

    /// A message, if it is one for this connection.
    pub(super) fn fitting(&self, at: usize, conversation: &str, seq: u64, stamp: Stamp) -> Option<Heard> {
        let side = stamp.side.other();
        let fits = self.sides.get(side.index()).is_some_and(|side| side.connection as usize == at)
            && self.conversations[side.conversation()].as_str() == conversation;
        let message = Numbered { counter: stamp.counter, seq };
        fits.then_some(Heard { side, message, intended_us: stamp.intended_us })
    }
}
