//! All sockets of a thread behind one epoll.

use std::net::TcpStream;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::thread::set_current_timer_slack;

use crate::load::LoadError;

/// Events taken at once at most.
const EVENTS: usize = 256;

/// A socket of which something is known.
#[derive(Debug, Clone, Copy)]
pub(in crate::load) struct Ready {
    /// The number it is watched under.
    pub(in crate::load) at: usize,
    /// There may be something to read, or its end.
    pub(in crate::load) readable: bool,
    /// It may take more.
    pub(in crate::load) writable: bool,
}

/// The sockets.
pub(in crate::load) struct Poll {
    fd: OwnedFd,
    events: Vec<epoll::Event>,
    ready: Vec<Ready>,
}

impl Poll {
    /// Watches nothing yet. To be called by the thread that will wait.
    pub(in crate::load) fn new() -> Result<Self, LoadError> {
        // By default a thread's timers may be 50 µs late. What is sent late counts as answered late.
        set_current_timer_slack(NonZeroU64::new(1))
            .map_err(|errno| LoadError::doing("making a thread's timers exact")(errno.into()))?;
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| LoadError::doing("making an epoll")(errno.into()))?;
        Ok(Self { fd, events: Vec::with_capacity(EVENTS), ready: Vec::with_capacity(EVENTS) })
    }

    /// Tells of changes of this socket, until it is closed.
    pub(in crate::load) fn watch(&self, stream: &TcpStream, at: usize) -> Result<(), LoadError> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.fd, stream, EventData::new_u64(at as u64), flags)
            .map_err(|errno| LoadError::doing("watching a socket")(errno.into()))
    }

    /// Waits for changes, less than a second, and as exactly as the kernel can: what is rounded up to a millisecond here would be
    /// in every latency that counts from when a message was due. What is given is to be given back, so that nothing is
    /// allocated.
    pub(in crate::load) fn wait(&mut self, at_most: Duration) -> Result<Vec<Ready>, LoadError> {
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(at_most.subsec_nanos()) };
        self.events.clear();
        match epoll::wait(&self.fd, spare_capacity(&mut self.events), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(LoadError::doing("waiting for sockets")(errno.into())),
        }
        let readable = EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        ready.extend(self.events.iter().map(|event| {
            // Copied: an event's fields are not aligned.
            let (data, flags) = (event.data, event.flags);
            Ready {
                at: usize::try_from(data.u64()).unwrap_or(usize::MAX),
                readable: flags.intersects(readable),
                writable: flags.contains(EventFlags::OUT),
            }
        }));
        Ok(ready)
    }

    /// Takes back what [`Self::wait`] gave.
    pub(in crate::load) fn give_back(&mut self, ready: Vec<Ready>) {
        self.ready = ready;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_wait_is_not_rounded_up_to_a_millisecond() {
        let mut poll = Poll::new().unwrap();
        // One that was woken in time is enough, for the machine may be busy; a wait that is rounded up never is.
        let shortest = (0..1_000).map(|_| {
            let begin = Instant::now();
            let ready = poll.wait(Duration::from_micros(50)).unwrap();
            poll.give_back(ready);
            begin.elapsed()
        });
        assert!(shortest.min().unwrap() < Duration::from_micros(900));
    }
}
