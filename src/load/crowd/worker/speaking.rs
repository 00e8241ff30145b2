//! What the speakers say, and when.

use rand::Rng as _;
use uuid::Builder;

use super::{Phase, Worker};
use crate::load::LoadError;
use crate::load::client::SideId;
use crate::load::client::connection::{Due, Stage};
use crate::load::client::wire::{self, Single, Stamp};

impl Worker {
    /// Says what may be said: as much as may be in flight, or what waits for being sent.
    pub(super) fn speak(&mut self, at: usize) {
        let (Phase::Speaking, Some(words), Some(speaking)) = (self.phase, &self.words, &self.task.speaking)
        else {
            return;
        };
        let window = u64::from(speaking.speakers) * u64::from(speaking.in_flight);
        if speaking.rate.is_none() && self.are_listeners_behind(window) {
            return;
        }
        let connection = &mut self.clients.connections[at];
        while connection.stage == Stage::Live && connection.may_send() {
            let due = match speaking.rate {
                Some(_) => connection.backlog.pop_front(),
                None => Some(Due { side: connection.take_turn(), intended_us: self.clients.now_us }),
            };
            let Some(due) = due else { return };
            let client_id = Builder::from_random_bytes(self.random.random()).into_uuid().into_bytes();
            let request_id = connection.depart(due, 0, client_id, self.clients.now_us);
            connection.asked_us = self.clients.now_us;
            self.in_flight += 1;
            let stamp = Stamp { intended_us: due.intended_us, side: due.side, counter: 0 };
            let single = Single { request_id, client_id, stamp };
            wire::put_send(&mut self.clients.out, self.clients.framing, single, &words.opening, &words.tail);
        }
    }

    /// Whether those that are to hear are far behind what was said. An answer says that a message is durable, not that all
    /// have heard it: without this the sockets' buffers would fill, and their length would be measured.
    fn are_listeners_behind(&self, window: u64) -> bool {
        let listeners = (self.clients.connections.len() as u64).saturating_sub(1);
        self.findings.delivered + window * listeners < self.findings.acked * listeners
    }

    /// Without a rate: says more, once the listeners have caught up.
    pub(super) fn go_on(&mut self) -> Result<(), LoadError> {
        let pace = self.task.speaking.as_ref().filter(|speaking| speaking.rate.is_none());
        let Some(speakers) = pace.map(|speaking| speaking.speakers as usize) else { return Ok(()) };
        if self.phase != Phase::Speaking || self.task.first != 0 {
            return Ok(());
        }
        for at in 0..speakers {
            self.speak(at);
            self.clients.flush(at)?;
        }
        Ok(())
    }

    /// With a rate: says what is due, or puts it where it waits for an answer to make room.
    pub(super) fn issue(&mut self) -> Result<(), LoadError> {
        let Some(speakers) = self.task.speaking.as_ref().map(|speaking| u64::from(speaking.speakers)) else {
            return Ok(());
        };
        if self.phase != Phase::Speaking {
            return Ok(());
        }
        while let Some((number, intended_us)) =
            self.schedule.as_mut().and_then(|all| all.take(self.clients.now_us))
        {
            let at = usize::try_from(number % speakers).unwrap_or_default();
            let side = SideId(u32::try_from(at).unwrap_or(u32::MAX));
            self.clients.connections[at].backlog.push_back(Due { side, intended_us });
            self.speak(at);
            self.clients.flush(at)?;
        }
        Ok(())
    }
}
