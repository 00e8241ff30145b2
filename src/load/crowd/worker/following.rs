//! What a member of the group lacks after its connection was lost, and how it takes it. Of a crowd that says nothing a lost
//! connection ends the load test: what it measures are connections.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::message::{Cursor, Message};
use convoke_protocol::request::messages::{Ack, PullRange, Target};

use super::super::task::Speaking;
use super::{Heard, Worker};
use crate::load::LoadError;
use crate::load::client::clients::Clients;
use crate::load::client::connection::Flight;
use crate::load::client::returning::Returning;
use crate::load::client::wire::Stamp;

impl Worker {
    fn group(&self) -> &Speaking {
        self.task.speaking.as_ref().expect("of a crowd that says nothing nobody comes back")
    }
}

impl Returning for Worker {
    type Push = Heard;

    fn clients(&mut self) -> &mut Clients<Heard> {
        &mut self.clients
    }

    fn origin(&self) -> (usize, Option<Ipv4Addr>) {
        (self.task.first as usize, self.task.from)
    }

    fn target(&self, _: usize, _: &Flight) -> (Target, usize) {
        let speaking = self.group();
        (Target::Group(speaking.group.clone()), speaking.body_bytes)
    }

    fn lacking(&self, at: usize) -> VecDeque<PullRange> {
        let speaking = self.task.speaking.iter();
        let lacking = speaking.map(|speaking| PullRange {
            conversation: speaking.conversation.clone(),
            from: Seq(speaking.base + self.members[at].seen.upto + 1),
            to: Seq(u64::MAX),
        });
        lacking.collect()
    }

    fn misses(&mut self, at: usize) -> bool {
        let misses = self.members[at].is_gap_standing();
        self.findings.incidents.missed += u64::from(misses);
        misses
    }

    fn returned(&mut self, at: usize) {
        self.findings.incidents.returned += 1;
        self.members[at].returned = true;
    }

    fn read_pulled(&mut self, at: usize, _: &ConversationId, message: &Message) -> Result<(), LoadError> {
        let stamp = Stamp::decode(&message.content.body);
        let number = message.seq.0.checked_sub(self.base()).filter(|number| *number > 0);
        if let (Some(stamp), Some(number)) = (stamp, number) {
            self.members[at].pulled = number.max(self.members[at].pulled);
            self.read_missed(at, Heard { number, intended_us: stamp.intended_us });
        }
        Ok(())
    }

    fn read_missed(&mut self, at: usize, heard: Heard) {
        if self.members[at].seen.insert(heard.number) {
            self.hear(heard);
        }
    }

    fn acknowledge(&mut self, at: usize) {
        let connection = &mut self.clients.connections[at];
        connection.acked_pushes = connection.pushes;
        let pushes = connection.pushes;
        let seen = self.members[at].seen.upto;
        let cursors = self.task.speaking.as_ref().filter(|_| seen > 0).map(|speaking| Cursor {
            conversation: speaking.conversation.clone(),
            seq: Seq(speaking.base + seen),
        });
        let ack = Ack { pushes, cursors: cursors.into_iter().collect() };
        self.clients.ask(at, &ack.into());
    }

    fn send_on(&mut self, at: usize) {
        self.speak(at);
    }
}
