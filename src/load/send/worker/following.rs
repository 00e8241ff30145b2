//! What a connection and its sides lack after it was lost, and how they take it.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::message::{Cursor, Message};
use convoke_protocol::request::messages::{Ack, PullRange, Target};

use super::{Heard, Numbered, Worker};
use crate::load::LoadError;
use crate::load::client::clients::Clients;
use crate::load::client::connection::Flight;
use crate::load::client::returning::Returning;
use crate::load::client::wire::Stamp;

impl Returning for Worker<'_> {
    type Push = Heard;

    fn clients(&mut self) -> &mut Clients<Heard> {
        &mut self.clients
    }

    fn origin(&self) -> (usize, Option<Ipv4Addr>) {
        (self.part.first as usize, self.job.from)
    }

    fn target(&self, at: usize, flight: &Flight) -> (Target, usize) {
        let conversation = &self.conversations[flight.side.conversation()];
        let peer = conversation.peer_of(&self.clients.connections[at].user);
        (Target::User(peer.expect("its own conversation")), self.job.body_bytes)
    }

    fn lacking(&self, at: usize) -> VecDeque<PullRange> {
        let sides = self.clients.connections[at].sides.iter();
        let lacking = sides.map(|side| PullRange {
            conversation: self.conversations[side.conversation()].clone(),
            from: Seq(self.ledger.cursor(*side) + 1),
            to: Seq(u64::MAX),
        });
        lacking.collect()
    }

    fn misses(&mut self, at: usize) -> bool {
        let sides = self.clients.connections[at].sides.iter();
        let gaps = sides.filter(|side| self.ledger.is_gap_standing(**side)).count();
        self.findings.incidents.missed += gaps as u64;
        gaps > 0
    }

    fn returned(&mut self, at: usize) {
        self.findings.incidents.returned += 1;
        for side in &self.clients.connections[at].sides {
            self.ledger.repeats(*side);
        }
    }

    fn read_pulled(
        &mut self,
        at: usize,
        conversation: &ConversationId,
        message: &Message,
    ) -> Result<(), LoadError> {
        let heard = Stamp::decode(&message.content.body)
            .and_then(|stamp| self.fitting(at, conversation.as_str(), message.seq.0, stamp));
        let Some(heard) = heard else {
            return Err(self.clients.wrong(at, "a page with a message that is not for it"));
        };
        let pulled = &mut self.sides[heard.side.index()].pulled;
        *pulled = message.seq.0.max(*pulled);
        self.read_missed(at, heard);
        Ok(())
    }

    fn read_missed(&mut self, at: usize, heard: Heard) {
        if self.ledger.missed(heard.side, heard.message) {
            self.hear(at, heard);
        }
    }

    fn acknowledge(&mut self, at: usize) {
        let connection = &mut self.clients.connections[at];
        connection.acked_pushes = connection.pushes;
        let named = connection.moved.len().min(self.clients.max_cursors);
        let cursors = connection.moved.drain(..named).map(|side| {
            self.sides[side.index()].moved = false;
            let seq = Seq(self.ledger.cursor(side));
            Cursor { conversation: self.conversations[side.conversation()].clone(), seq }
        });
        let ack = Ack { pushes: connection.pushes, cursors: cursors.collect() };
        self.clients.ask(at, &ack.into());
    }

    fn send_on(&mut self, at: usize) {
        self.send_what_may_go(at);
    }
}

impl Worker<'_> {
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
