//! A member of the group whose connection is lost comes back, here or at another node: what it said and has no answer is said
//! again as the same send, and what it missed is pulled before pushes count again. Of a crowd that says nothing a lost
//! connection ends the load test: what it measures are connections.

use std::collections::VecDeque;
use std::time::Duration;

use convoke_protocol::codec;
use convoke_protocol::error_code::RequestError;
use convoke_protocol::event::{GoAway, NodesChanged};
use convoke_protocol::id::Seq;
use convoke_protocol::request::messages::{Pull, PullRange, Pulled, Target};

use super::{Heard, Worker};
use crate::load::LoadError;
use crate::load::client::connection::{Flight, Stage};
use crate::load::client::following::TRY_AFTER;
use crate::load::client::wire::{self, Single, Stamp};

impl Worker {
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

    fn lost(&mut self, at: usize, why: &str, after: Duration) -> Result<(), LoadError> {
        if !self.connections[at].was_live() || self.task.speaking.is_none() {
            return Err(self.wrong(at, why));
        }
        self.connections[at].stage = Stage::Away;
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
        let Some(to) = self.following.address(at, self.task.first as usize + at) else { return Ok(()) };
        if let Err(error) = self.connections[at].open_again(to, self.task.from) {
            self.following.failed(at, format!("connecting again to {to}: {error}"), self.now_us);
            return Ok(());
        }
        self.poll.watch(self.connections[at].stream(), at)?;
        self.introduce(at, to);
        self.flush(at)
    }

    /// Whether this login was one more, and what follows from that.
    pub(super) fn came_back(&mut self, at: usize) -> bool {
        if !self.following.has(at) {
            return false;
        }
        self.findings.returned += 1;
        self.members[at].returned = true;
        for flight in self.connections[at].depart_again() {
            self.put_again(flight);
        }
        self.catch_up(at, "it came back");
        true
    }

    /// The answer left open what became of a send: the same send tells.
    pub(super) fn say_again(&mut self, at: usize, flight: Flight) {
        let again = self.connections[at].depart_once_more(flight);
        self.put_again(again);
    }

    fn put_again(&mut self, flight: Flight) {
        let Some(speaking) = &self.task.speaking else { return };
        let stamp = Stamp { intended_us: flight.intended_us, side: flight.side, counter: flight.counter };
        let single = Single { request_id: flight.request_id, client_id: flight.client_id, stamp };
        let age = Duration::from_micros(self.now_us.saturating_sub(flight.since_us));
        let target = Target::Group(speaking.group.clone());
        let again = wire::again(single, flight.attempts, age, target, speaking.body_bytes);
        wire::put_request(&mut self.out, self.framing, single.request_id, &again.into());
    }

    /// Pulls what the member lacks; pushes wait meanwhile.
    pub(super) fn catch_up(&mut self, at: usize, why: &str) {
        let Some(speaking) = &self.task.speaking else { return };
        self.connections[at].stage = Stage::CatchingUp;
        let lacking = PullRange {
            conversation: speaking.conversation.clone(),
            from: Seq(speaking.base + self.members[at].seen.upto + 1),
            to: Seq(u64::MAX),
        };
        if self.following.lacks(at, VecDeque::from([lacking]), why, self.now_us) {
            self.pull(at);
        }
    }

    fn pull(&mut self, at: usize) {
        if let Some(ranges) = self.following.ask(at, self.max_cursors) {
            return self.ask(at, &Pull { ranges }.into());
        }
        self.connections[at].stage = Stage::Live;
        for heard in self.following.arrived(at) {
            self.read_missed(at, heard);
        }
        self.speak(at);
    }

    pub(super) fn pulled(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let Pulled { pages } = codec::decode(body).map_err(|error| self.wrong(at, error))?;
        for (page, range) in pages.into_iter().zip(self.following.answered(at)) {
            let refused = page.error.is_some();
            if let Some(from) = if refused { Some(range.from) } else { page.next } {
                self.following.remains(at, PullRange { from, ..range }, refused, self.now_us);
            }
            for message in page.messages {
                let own = message.sender == self.connections[at].user;
                let stamp = Stamp::decode(&message.content.body).filter(|_| !own);
                let number = message.seq.0.checked_sub(self.base()).filter(|number| *number > 0);
                if let (Some(stamp), Some(number)) = (stamp, number) {
                    self.members[at].pulled = number.max(self.members[at].pulled);
                    self.read_missed(at, Heard { number, intended_us: stamp.intended_us });
                }
            }
        }
        if self.following.may_ask(at) {
            self.pull(at);
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
        if self.members[at].seen.insert(heard.number) {
            self.hear(heard);
        }
    }
}
