//! How clients arrive: connect, log in, and catch up if they are to.

use std::time::Duration;

use convoke_protocol::codec;
use convoke_protocol::id::ConversationId;
use convoke_protocol::message::Cursor;
use convoke_protocol::request::sync::{SyncSince, SyncedSince};

use super::{CatchingUp, Phase, Worker, machine_us};
use crate::auth::Role;
use crate::load::LoadError;
use crate::load::client::{SideId, login, user};
use crate::load::process::say;

/// How long a token is good: longer than any load test takes.
const TOKEN_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long nothing may happen while connections are being logged in.
const LOGIN_PATIENCE_US: u64 = 60_000_000;

impl Worker {
    /// While clients are to arrive: connects those whose time has come, and says when all are there.
    pub(super) fn arrive(&mut self) -> Result<(), LoadError> {
        if self.phase != Phase::Arriving {
            return Ok(());
        }
        let all = self.task.connections;
        if self.live == all {
            self.arrived.took_us = self.last_login_us - self.began_us;
            self.phase = Phase::Resting;
            return say(&self.arrived);
        }
        if self.clients.now_us.saturating_sub(self.last_login_us) > LOGIN_PATIENCE_US {
            return Err(LoadError::Broken("the server stopped answering while connections were logged in"));
        }
        while (self.clients.connections.len() as u64)
            < u64::from(all.min(self.live + self.task.logins_at_once))
        {
            if let Some(arrivals) = &mut self.arrivals
                && arrivals.take(self.clients.now_us).is_none()
            {
                break;
            }
            self.connect()?;
            // Opening many takes a while; those that are answered meanwhile are not to wait.
            if self.clients.connections.len().is_multiple_of(64) {
                self.turn()?;
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), LoadError> {
        let at = self.clients.connections.len();
        let number = self.task.first + u32::try_from(at).unwrap_or(u32::MAX);
        let to = self.task.addresses[number as usize % self.task.addresses.len()];
        let name = user(&self.task.run, number);
        self.members[at].opened_us = machine_us();
        self.members[at].next_token = None;
        self.clients.open(name, to, self.task.from, vec![SideId(number)])
    }

    pub(super) fn welcomed(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        self.clients.welcomed(at, body)?;
        let token = self.key.sign(&self.clients.connections[at].user, Role::User, TOKEN_FOR);
        self.clients.ask(at, &login(token).into());
        Ok(())
    }

    /// Asks for a page of what is missing, from the cursors of the last time.
    pub(super) fn ask_sync(&mut self, at: usize, after: Option<ConversationId>) {
        let behind = |cursor: &&Cursor| after.as_ref().is_none_or(|after| cursor.conversation > *after);
        let cursors =
            self.members[at].cursors.iter().filter(behind).take(self.clients.max_cursors).cloned().collect();
        let since = match self.task.catching_up {
            CatchingUp::Changed => self.members[at].token.clone(),
            CatchingUp::Not | CatchingUp::All => None,
        };
        self.clients.ask(at, &SyncSince { since, cursors, use_device_cursors: false, after }.into());
    }

    pub(super) fn synced(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let synced: SyncedSince = codec::decode(body).map_err(|error| self.clients.wrong(at, error))?;
        self.arrived.conversations += synced.conversations.len() as u64;
        self.arrived.missing += synced.pages.iter().map(|page| page.messages.len() as u64).sum::<u64>();
        let member = &mut self.members[at];
        if member.next_token.is_none() {
            // Of the first page: what changes while it walks is told the next time.
            member.next_token = synced.token;
        }
        let cursors = &mut member.cursors;
        for told in synced.conversations {
            let place = cursors.binary_search_by(|known| known.conversation.cmp(&told.conversation));
            match place {
                Ok(place) => cursors[place].seq = cursors[place].seq.max(told.head),
                Err(place) => {
                    cursors.insert(place, Cursor { conversation: told.conversation, seq: told.head });
                }
            }
        }
        match synced.next {
            Some(next) => self.ask_sync(at, Some(next)),
            None => {
                self.members[at].token = self.members[at].next_token.take();
                self.is_live(at);
            }
        }
        Ok(())
    }

    pub(super) fn is_live(&mut self, at: usize) {
        let in_flight = self.task.speaking.as_ref().map_or(1, |speaking| speaking.in_flight);
        self.clients.connections[at].go_live(in_flight);
        self.live += 1;
        self.last_login_us = self.clients.now_us;
        let took = self.clients.now_us.saturating_sub(self.members[at].opened_us);
        self.arrived.logins.record(Duration::from_micros(took));
    }
}
