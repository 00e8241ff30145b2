//! The clients of one worker: their sockets behind one epoll, and what is put out for one of them at a time.

use std::fmt::Display;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use convoke_protocol::codec;
use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::{GoAway, NodesChanged};
use convoke_protocol::frame::Request;
use convoke_protocol::framing::Framing;
use convoke_protocol::id::UserId;
use convoke_protocol::request::session::Welcome;

use super::connection::{Connection, Stage};
use super::following::{Following, TRY_AFTER};
use super::poll::Poll;
use super::schedule::Slices;
use super::{SideId, hello, wire};
use crate::load::LoadError;
use crate::load::report::Incidents;

/// Clients, numbered from 0. `H` is a push that waits until what was missed before it is read.
pub(in crate::load) struct Clients<H> {
    pub(in crate::load) connections: Vec<Connection>,
    pub(in crate::load) poll: Poll,
    pub(in crate::load) framing: Framing,
    /// What is put out for one of them and not written yet.
    pub(in crate::load) out: Vec<u8>,
    pub(in crate::load) now_us: u64,
    /// Conversations that one request may name.
    pub(in crate::load) max_cursors: usize,
    /// How often the server wants to hear from each, in microseconds.
    pub(in crate::load) heartbeat_us: u64,
    pub(in crate::load) following: Following<H>,
    /// Whose turn it is to be looked after.
    pub(in crate::load) slices: Slices,
    /// Whether one that is lost comes back; otherwise it ends the load test.
    comes_back: bool,
}

impl<H> Clients<H> {
    /// Nobody is connected yet. These are the nodes until a server tells of others.
    pub(in crate::load) fn new(
        framing: Framing,
        nodes: &[SocketAddr],
        comes_back: bool,
        now_us: u64,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            connections: Vec::new(),
            poll: Poll::new()?,
            framing,
            out: Vec::new(),
            now_us,
            max_cursors: 1,
            heartbeat_us: u64::MAX,
            following: Following::new(nodes, framing != Framing::Tcp),
            slices: Slices::new(now_us),
            comes_back,
        })
    }

    /// Connects one more.
    pub(in crate::load) fn open(
        &mut self,
        user: UserId,
        to: SocketAddr,
        from: Option<Ipv4Addr>,
        sides: Vec<SideId>,
    ) -> Result<(), LoadError> {
        let at = self.connections.len();
        let connection = Connection::open(user, to, from, sides).map_err(LoadError::doing("connecting"))?;
        self.connections.push(connection);
        self.introduce(at, to)
    }

    /// Connects one that was lost; if that fails, it is tried again later.
    pub(in crate::load) fn open_again(
        &mut self,
        at: usize,
        number: usize,
        from: Option<Ipv4Addr>,
    ) -> Result<(), LoadError> {
        let Some(to) = self.following.address(at, number) else { return Ok(()) };
        if let Err(error) = self.connections[at].open_again(to, from) {
            self.following.failed(at, format!("connecting again to {to}: {error}"), self.now_us);
            return Ok(());
        }
        self.introduce(at, to)
    }

    /// The first that is said on a new connection.
    fn introduce(&mut self, at: usize, to: SocketAddr) -> Result<(), LoadError> {
        self.poll.watch(self.connections[at].stream(), at)?;
        if self.framing == Framing::Tcp {
            self.ask(at, &hello().into());
        } else {
            self.connections[at].stage = Stage::Upgrading;
            self.out.extend_from_slice(wire::upgrade(to).as_bytes());
        }
        self.flush(at)
    }

    /// The answer to that: the login is next.
    pub(in crate::load) fn welcomed(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let welcome: Welcome = codec::decode(body).map_err(|error| self.wrong(at, error))?;
        self.heartbeat_us = u64::from(welcome.heartbeat_ms) * 1000;
        self.max_cursors = (welcome.limits.max_ranges as usize).max(1);
        self.following.learn(&welcome.nodes);
        self.connections[at].stage = Stage::LoggingIn;
        Ok(())
    }

    pub(in crate::load) fn ask(&mut self, at: usize, request: &Request) {
        let connection = &mut self.connections[at];
        connection.asked_us = self.now_us;
        wire::put_request(&mut self.out, self.framing, connection.other_request_id(), request);
    }

    /// Writes what was put out for this connection.
    pub(in crate::load) fn flush(&mut self, at: usize) -> Result<(), LoadError> {
        let connection = &mut self.connections[at];
        // What was to be said on a connection that is over is said again on the next one.
        let written = if self.out.is_empty() || connection.stage == Stage::Away {
            Ok(())
        } else {
            connection.write(&self.out)
        };
        self.out.clear();
        written.or_else(|error| self.broken(at, &error))
    }

    /// As [`Connection::read`]; from one that is lost nothing more comes.
    pub(in crate::load) fn read(&mut self, at: usize, buffer: &mut [u8]) -> Result<Option<usize>, LoadError> {
        self.connections[at].read(buffer).or_else(|error| self.broken(at, &error).map(|()| None))
    }

    /// Writes what waits for this connection's socket.
    pub(in crate::load) fn write_waiting(&mut self, at: usize) -> Result<(), LoadError> {
        self.connections[at].write_waiting().or_else(|error| self.broken(at, &error))
    }

    pub(in crate::load) fn wrong(&self, at: usize, problem: impl Display) -> LoadError {
        LoadError::Connection { user: self.connections[at].user.clone(), problem: problem.to_string() }
    }

    pub(in crate::load) fn told_to_go(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let GoAway { reason, retry_after_ms, nodes } =
            codec::decode(body).map_err(|error| self.wrong(at, error))?;
        self.following.learn(&nodes);
        let after = Duration::from_millis(retry_after_ms.into());
        self.lost(at, &format!("the server said go away: {reason}"), after)
    }

    pub(in crate::load) fn nodes_changed(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let NodesChanged { nodes } = codec::decode(body).map_err(|error| self.wrong(at, error))?;
        self.following.learn(&nodes);
        Ok(())
    }

    /// A login was refused: by a node that goes as well, if it was to come back.
    pub(in crate::load) fn not_let_in(&mut self, at: usize, body: &[u8]) -> Result<(), LoadError> {
        let error: RequestError = codec::decode(body).map_err(|error| self.wrong(at, error))?;
        if !self.following.has(at) {
            return Err(self.wrong(at, error));
        }
        self.lost(at, &error.to_string(), TRY_AFTER)
    }

    fn broken(&mut self, at: usize, error: &io::Error) -> Result<(), LoadError> {
        self.lost(at, &error.to_string(), Duration::ZERO)
    }

    /// The connection is over; after a while it is made again, if it had ever been live.
    fn lost(&mut self, at: usize, why: &str, after: Duration) -> Result<(), LoadError> {
        if !self.comes_back || !self.connections[at].was_live() {
            return Err(self.wrong(at, why));
        }
        self.connections[at].stage = Stage::Away;
        self.following.lost(at, why, self.now_us, after);
        Ok(())
    }

    /// An error that is no answer to a send. If a pull was refused, what it asked for is asked again; an acknowledgement that the
    /// server cannot keep just now is counted, for the next one says more.
    pub(in crate::load) fn other_refused(
        &mut self,
        at: usize,
        error: &RequestError,
        incidents: &mut Incidents,
    ) -> Result<(), LoadError> {
        if self.connections[at].stage != Stage::CatchingUp {
            if error.code != ErrorCode::UNAVAILABLE {
                return Err(self.wrong(at, error));
            }
            incidents.unkept += 1;
            return Ok(());
        }
        for range in self.following.answered(at) {
            self.following.remains(at, range, true, self.now_us);
        }
        Ok(())
    }
}
