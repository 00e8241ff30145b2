//! One client: a socket that is never waited for, what of its stream is not whole yet, and which requests have no
//! answer yet.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use convoke_protocol::id::UserId;
use socket2::{Domain, Protocol, Socket, Type};

use super::SideId;
use super::wire::CLIENT_ID_BYTES;

/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// How long, when it is made again: it holds up the others of its thread.
const RECONNECT_WITHIN: Duration = Duration::from_secs(1);

/// The most sends without an answer on one connection: what the server itself allows.
pub const MAX_IN_FLIGHT: u32 = 64;

/// Request ids end in the number of what was asked: of the flight, or above it, of the type.
const KIND_BITS: u32 = 8;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::load) enum Stage {
    /// The upgrade to WebSocket is not answered yet.
    Upgrading,
    /// `Hello` is not answered yet.
    Greeting,
    /// `Login` is not answered yet.
    LoggingIn,
    /// `Sync` is not answered yet.
    Syncing,
    /// It sends and is pushed to.
    Live,
    /// It is live again, and what it missed is not read to the end yet.
    CatchingUp,
    /// It was lost, and is to be made again.
    Away,
}

/// A send that has no answer yet.
#[derive(Debug, Clone, Copy)]
pub(in crate::load) struct Flight {
    pub(in crate::load) request_id: u64,
    /// Which side sent it.
    pub(in crate::load) side: SideId,
    /// Which of that side's sends it is.
    pub(in crate::load) counter: u32,
    /// When it was to be sent.
    pub(in crate::load) intended_us: u64,
    /// What makes it the same send when it is sent again.
    pub(in crate::load) client_id: [u8; CLIENT_ID_BYTES],
    /// When it was sent first.
    pub(in crate::load) since_us: u64,
    /// How often it was sent.
    pub(in crate::load) attempts: u32,
}

const NO_FLIGHT: Flight = Flight {
    request_id: 0,
    side: SideId(0),
    counter: 0,
    intended_us: 0,
    client_id: [0; CLIENT_ID_BYTES],
    since_us: 0,
    attempts: 0,
};

/// A send that waits for a place among those in flight.
#[derive(Debug, Clone, Copy)]
pub(in crate::load) struct Due {
    pub(in crate::load) side: SideId,
    pub(in crate::load) intended_us: u64,
}

/// One client.
#[derive(Debug)]
pub(in crate::load) struct Connection {
    pub(in crate::load) user: UserId,
    pub(in crate::load) stage: Stage,
    /// Its sides of conversations, and which of them sends next.
    pub(in crate::load) sides: Vec<SideId>,
    next_side: usize,
    /// Sends whose time has come.
    pub(in crate::load) backlog: VecDeque<Due>,
    /// Pushes since the login, and how many of them were acknowledged.
    pub(in crate::load) pushes: u64,
    pub(in crate::load) acked_pushes: u64,
    /// Sides that were pushed to since the last acknowledgement.
    pub(in crate::load) moved: Vec<SideId>,
    /// When the last request was written.
    pub(in crate::load) asked_us: u64,
    stream: TcpStream,
    /// The beginning of a frame whose end has not come yet.
    rest: Vec<u8>,
    /// What the socket has not taken yet.
    unwritten: Vec<u8>,
    flights: Vec<Flight>,
    /// A bit for each place among the flights that is free.
    free: u64,
    requests: u64,
}

impl Connection {
    /// Connects.
    pub(in crate::load) fn open(
        user: UserId,
        to: SocketAddr,
        from: Option<Ipv4Addr>,
        sides: Vec<SideId>,
    ) -> io::Result<Self> {
        Ok(Self {
            user,
            stage: Stage::Greeting,
            sides,
            next_side: 0,
            backlog: VecDeque::new(),
            pushes: 0,
            acked_pushes: 0,
            moved: Vec::new(),
            asked_us: 0,
            stream: dial(to, from, CONNECT_WITHIN)?,
            rest: Vec::new(),
            unwritten: Vec::new(),
            flights: Vec::new(),
            free: 0,
            requests: 0,
        })
    }

    /// Connects again, as the same user; what has no answer keeps its place.
    pub(in crate::load) fn open_again(&mut self, to: SocketAddr, from: Option<Ipv4Addr>) -> io::Result<()> {
        self.stream = dial(to, from, RECONNECT_WITHIN)?;
        self.stage = Stage::Greeting;
        self.rest.clear();
        self.unwritten.clear();
        (self.pushes, self.acked_pushes) = (0, 0);
        Ok(())
    }

    /// Whether it was live once.
    pub(in crate::load) fn was_live(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Takes a place for a send once more, whose answer left open what became of it.
    pub(in crate::load) fn depart_once_more(&mut self, flight: Flight) -> Flight {
        self.take_place(Flight { attempts: flight.attempts + 1, ..flight })
    }

    /// The sends that have no answer, under new request ids, in the order in which each side sent them.
    pub(in crate::load) fn depart_again(&mut self) -> Vec<Flight> {
        let mut again = Vec::new();
        for place in 0..u32::try_from(self.flights.len()).unwrap_or(0) {
            if self.free & (1 << place) == 0 {
                let request_id = self.request_id(place);
                let flight = &mut self.flights[place as usize];
                *flight = Flight { request_id, attempts: flight.attempts + 1, ..*flight };
                again.push(*flight);
            }
        }
        again.sort_by_key(|flight| (flight.side.0, flight.counter));
        again
    }

    /// From now on it may have so many sends in flight.
    pub(in crate::load) fn go_live(&mut self, in_flight: u32) {
        self.stage = Stage::Live;
        self.free = u64::MAX >> (u64::BITS - in_flight.clamp(1, MAX_IN_FLIGHT));
        self.flights = vec![NO_FLIGHT; in_flight as usize];
    }

    pub(in crate::load) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The side that sends next, when the sides take turns.
    pub(in crate::load) fn take_turn(&mut self) -> SideId {
        let side = self.sides[self.next_side];
        self.next_side = (self.next_side + 1) % self.sides.len();
        side
    }

    /// Whether one more send may be in flight.
    pub(in crate::load) fn may_send(&self) -> bool {
        self.free != 0
    }

    /// Takes a place for a send; its request id.
    pub(in crate::load) fn depart(
        &mut self,
        due: Due,
        counter: u32,
        client_id: [u8; CLIENT_ID_BYTES],
        now_us: u64,
    ) -> u64 {
        let Due { side, intended_us } = due;
        let flight =
            Flight { side, counter, intended_us, client_id, since_us: now_us, attempts: 1, ..NO_FLIGHT };
        self.take_place(flight).request_id
    }

    fn take_place(&mut self, flight: Flight) -> Flight {
        let place = self.free.trailing_zeros();
        self.free &= self.free - 1;
        let flight = Flight { request_id: self.request_id(place), ..flight };
        self.flights[place as usize] = flight;
        flight
    }

    /// The send that this is the answer to, which is in flight no more.
    pub(in crate::load) fn arrive(&mut self, request_id: u64) -> Option<Flight> {
        let place = (request_id & ((1 << KIND_BITS) - 1)) as usize;
        let flight = self.flights.get_mut(place).filter(|flight| flight.request_id == request_id)?;
        // Of a free place it is 0, which is no request's.
        let flight = std::mem::replace(flight, NO_FLIGHT);
        if request_id == NO_FLIGHT.request_id {
            return None;
        }
        self.free |= 1 << place;
        Some(flight)
    }

    /// An id for a request that is no send.
    pub(in crate::load) fn other_request_id(&mut self) -> u64 {
        self.request_id(MAX_IN_FLIGHT)
    }

    fn request_id(&mut self, kind: u32) -> u64 {
        self.requests += 1;
        self.requests << KIND_BITS | u64::from(kind)
    }

    /// Reads once. What is in the buffer then are `Some` bytes from its beginning, the rest of the last reading
    /// included; `None` if there is nothing to read.
    pub(in crate::load) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let kept = self.rest.len();
        let Some((front, space)) = buffer.split_at_mut_checked(kept).filter(|(_, space)| !space.is_empty())
        else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a frame longer than any that was asked for",
            ));
        };
        loop {
            match (&self.stream).read(space) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it")),
                Ok(read) => {
                    front.copy_from_slice(&self.rest);
                    self.rest.clear();
                    return Ok(Some(kept + read));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps the beginning of a frame for the next reading.
    pub(in crate::load) fn keep(&mut self, rest: &[u8]) {
        self.rest.extend_from_slice(rest);
    }

    /// Writes what the socket takes, and keeps what it does not take for when it can.
    pub(in crate::load) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes;
        // Behind what waits already it has to wait, too.
        if self.unwritten.is_empty() {
            let taken = write_some(&self.stream, bytes)?;
            bytes = &bytes[taken..];
        }
        self.unwritten.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what waits for the socket.
    pub(in crate::load) fn write_waiting(&mut self) -> io::Result<()> {
        if !self.unwritten.is_empty() {
            let taken = write_some(&self.stream, &self.unwritten)?;
            self.unwritten.drain(..taken);
        }
        Ok(())
    }
}

fn dial(to: SocketAddr, from: Option<Ipv4Addr>, within: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::from((IpAddr::V4(from), 0)).into())?;
    }
    socket.connect_timeout(&to.into(), within)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Writes until all is taken or the socket takes no more: only then it says when it does again.
fn write_some(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut taken = 0;
    while taken < bytes.len() {
        match stream.write(&bytes[taken..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => taken += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn live(in_flight: u32) -> Connection {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let user = UserId::new("somebody").unwrap();
        let sides = vec![SideId(0), SideId(3)];
        let mut connection = Connection::open(user, listener.local_addr().unwrap(), None, sides).unwrap();
        connection.go_live(in_flight);
        connection
    }

    #[test]
    fn every_answer_finds_its_send_once() {
        for in_flight in [1, 3, MAX_IN_FLIGHT] {
            let mut connection = live(in_flight);
            let mut ids = std::collections::BTreeSet::new();
            for round in 0..3 {
                let mut flying = Vec::new();
                while connection.may_send() {
                    let due = Due { side: connection.take_turn(), intended_us: round };
                    let counter = flying.len() as u32;
                    flying.push((connection.depart(due, counter, [7; 16], round), due, counter));
                    assert!(ids.insert(connection.other_request_id()));
                }
                assert_eq!(flying.len(), in_flight as usize);
                for (id, due, counter) in flying.into_iter().rev() {
                    assert!(ids.insert(id) && id != 0, "no id comes twice");
                    let flight = connection.arrive(id).unwrap();
                    assert_eq!((flight.side, flight.intended_us, flight.counter), (due.side, round, counter));
                    assert!(connection.arrive(id).is_none(), "a second answer");
                }
                assert!(connection.arrive(0).is_none() && connection.arrive(u64::MAX).is_none());
            }
        }
    }

    #[test]
    fn what_has_no_answer_is_sent_again_in_its_order() {
        let mut connection = live(4);
        let old: Vec<_> = [(SideId(3), 1), (SideId(0), 1), (SideId(0), 2), (SideId(3), 2)]
            .into_iter()
            .map(|(side, counter)| {
                connection.depart(Due { side, intended_us: 5 }, counter, [counter as u8; 16], 6)
            })
            .collect();
        connection.arrive(old[1]).unwrap();
        let again = connection.depart_again();
        let names: Vec<_> =
            again.iter().map(|flight| (flight.side.0, flight.counter, flight.attempts)).collect();
        assert_eq!(names, [(0, 2, 2), (3, 1, 2), (3, 2, 2)]);
        assert!(connection.arrive(old[0]).is_none(), "an answer to the first attempt");
        for flight in &again {
            let arrived = connection.arrive(flight.request_id).unwrap();
            assert_eq!((arrived.client_id, arrived.since_us), ([flight.counter as u8; 16], 6));
        }
        assert!(connection.depart_again().is_empty());
    }
}
