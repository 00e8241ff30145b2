//! What a worker does for its clients beside sending, as a client should: it acknowledges, and pulls what is missing. For those who
//! come back what has no answer is sent again as the same send, and what was missed is pulled before pushes count again.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use convoke_protocol::codec;
use convoke_protocol::id::ConversationId;
use convoke_protocol::message::Message;
use convoke_protocol::request::messages::{Pull, PullRange, Pulled, Target};
use convoke_protocol::request::session::Heartbeat;

use super::clients::Clients;
use super::connection::{Flight, Stage};
use super::schedule::SLICES;
use super::wire::{self, Single, Stamp};
use crate::load::LoadError;

/// A worker whose clients come back. What it says of its own is required, what follows from that is provided.
pub(in crate::load) trait Returning {
    /// A push that waits until what was missed before it is read.
    type Push;

    fn clients(&mut self) -> &mut Clients<Self::Push>;

    /// The number of its first client in the load test, and where its clients come from.
    fn origin(&self) -> (usize, Option<Ipv4Addr>);

    /// Whom this was sent to, and the length of its body.
    fn target(&self, at: usize, flight: &Flight) -> (Target, usize);

    /// What the client may lack.
    fn lacking(&self, at: usize) -> VecDeque<PullRange>;

    /// Whether the client lacks a message that should have come before one it has, now as when this was asked before.
    fn misses(&mut self, at: usize) -> bool;

    /// The client is logged in once more, and has said nothing yet.
    fn returned(&mut self, at: usize);

    /// A message of somebody else, from a page.
    fn read_pulled(
        &mut self,
        at: usize,
        conversation: &ConversationId,
        message: &Message,
    ) -> Result<(), LoadError>;

    /// A message of a page, or a push that was held: whichever comes second is no second copy, and neither has to come in
    /// the order in which pushes do.
    fn read_missed(&mut self, at: usize, push: Self::Push);

    /// Says how many pushes came, and how far its conversations are here.
    fn acknowledge(&mut self, at: usize);

    /// The client has what it missed, and may send.
    fn send_on(&mut self, at: usize);

    /// Once in a second for each that is live: pulls what is missing, acknowledges what came, and shows a sign of life.
    fn sweep(&mut self) -> Result<(), LoadError> {
        loop {
            let clients = self.clients();
            let Some(slice) = clients.slices.take(clients.now_us) else { return Ok(()) };
            for at in (slice..clients.connections.len()).step_by(SLICES) {
                if self.clients().connections[at].stage != Stage::Live {
                    continue;
                }
                self.close_gaps(at);
                let clients = self.clients();
                let connection = &clients.connections[at];
                if connection.pushes > connection.acked_pushes {
                    self.acknowledge(at);
                } else if clients.now_us.saturating_sub(connection.asked_us) >= clients.heartbeat_us / 2 {
                    clients.ask(at, &Heartbeat {}.into());
                }
                self.clients().flush(at)?;
            }
        }
    }

    /// Connects and pulls what is to be connected and pulled by now.
    fn bring_back(&mut self) -> Result<(), LoadError> {
        let (first, from) = self.origin();
        let clients = self.clients();
        if let Some((at, why)) = clients.following.late(clients.now_us) {
            return Err(clients.wrong(at, why));
        }
        loop {
            let clients = self.clients();
            let Some(at) = clients.following.due(clients.now_us) else { return Ok(()) };
            if clients.connections[at].stage == Stage::Away {
                clients.open_again(at, first + at, from)?;
            } else {
                self.pull(at);
                self.clients().flush(at)?;
            }
        }
    }

    /// Whether this login was one more, and what follows from that.
    fn came_back(&mut self, at: usize) -> bool {
        if !self.clients().following.has(at) {
            return false;
        }
        self.returned(at);
        for flight in self.clients().connections[at].depart_again() {
            self.put_again(at, flight);
        }
        self.catch_up(at, "it came back");
        true
    }

    /// The answer left open what became of a send: the same send tells.
    fn say_again(&mut self, at: usize, flight: Flight) {
        let again = self.clients().connections[at].depart_once_more(flight);
        self.put_again(at, again);
    }

    fn put_again(&mut self, at: usize, flight: Flight) {
        let (target, body_bytes) = self.target(at, &flight);
        let clients = self.clients();
        let stamp = Stamp { intended_us: flight.intended_us, side: flight.side, counter: flight.counter };
        let single = Single { request_id: flight.request_id, client_id: flight.client_id, stamp };
        let age = Duration::from_micros(clients.now_us.saturating_sub(flight.since_us));
        let again = wire::again(single, flight.attempts, age, target, body_bytes);
        wire::put_request(&mut clients.out, clients.framing, single.request_id, &again.into());
    }

    /// Pulls what the client lacks; pushes wait meanwhile.
    fn catch_up(&mut self, at: usize, why: &str) {
        let lacking = self.lacking(at);
        let clients = self.clients();
        clients.connections[at].stage = Stage::CatchingUp;
        if clients.following.lacks(at, lacking, why, clients.now_us) {
            self.pull(at);
        }
    }

    /// Pulls what was left out below something that came; asked once in a while of a client that is live.
    fn close_gaps(&mut self, at: usize) {
        if self.misses(at) {
            self.catch_up(at, "a push did not come");
        }
    }

    fn pull(&mut self, at: usize) {
        let clients = self.clients();
        if let Some(ranges) = clients.following.ask(at, clients.max_cursors) {
            return clients.ask(at, &Pull { ranges }.into());
        }
        clients.connections[at].stage = Stage::Live;
        for push in clients.following.arrived(at) {
            self.read_missed(at, push);
        }
        self.send_on(at);
    }

    fn pulled(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let clients = self.clients();
        let Pulled { pages } = codec::decode(body).map_err(|error| clients.wrong(at, error))?;
        for (page, range) in pages.into_iter().zip(clients.following.answered(at)) {
            let clients = self.clients();
            let refused = page.error.is_some();
            if let Some(from) = if refused { Some(range.from) } else { page.next } {
                clients.following.remains(at, PullRange { from, ..range }, refused, clients.now_us);
            }
            for message in &page.messages {
                if message.sender != self.clients().connections[at].user {
                    self.read_pulled(at, &page.conversation, message)?;
                }
            }
        }
        if self.clients().following.may_ask(at) {
            self.pull(at);
        }
        Ok(())
    }
}
