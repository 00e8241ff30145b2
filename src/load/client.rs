//! One client of a load generator: a socket that is never waited for, and as little of the protocol as its loop needs.
//!
//! | module | what |
//! | --- | --- |
//! | `clients` | all clients of a worker, and what is put out for one of them |
//! | `connection` | the socket, what of its stream is not whole yet, the requests without an answer |
//! | `following` | which nodes there are, and which connections are on their way back to one |
//! | `returning` | what is done for those who come back |
//! | `poll` | all sockets of a thread behind one epoll |
//! | `wire` | frames from templates, read no further than needed |
//! | `seen` | which numbers of a stream have come |
//! | `schedule` | when messages of an open load are due |

pub(in crate::load) mod clients;
pub(in crate::load) mod connection;
pub(in crate::load) mod following;
pub(in crate::load) mod poll;
pub(in crate::load) mod returning;
pub(in crate::load) mod schedule;
pub(in crate::load) mod seen;
pub(in crate::load) mod wire;

use convoke_protocol::id::{DeviceId, UserId};
use convoke_protocol::request::session::{DeviceClass, Hello, Login};

/// One side of one conversation: `2 · conversation`, or the number after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::load) struct SideId(pub(in crate::load) u32);

impl SideId {
    /// The other side of the conversation.
    pub(in crate::load) fn other(self) -> Self {
        Self(self.0 ^ 1)
    }

    /// The number of the conversation.
    pub(in crate::load) fn conversation(self) -> usize {
        self.0 as usize / 2
    }

    pub(in crate::load) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The user with this number in a run; the run's name makes the users different from those of any other run.
pub(in crate::load) fn user(run: &str, number: u32) -> UserId {
    UserId::new(&format!("bench-{run}-{number}")).expect("letters, digits and hyphens make an id")
}

/// How a load generator introduces itself.
pub(in crate::load) fn hello() -> Hello {
    Hello {
        protocol: convoke_protocol::PROTOCOL_VERSION,
        app: "convoke bench".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        os: std::env::consts::OS.to_owned(),
        features: Vec::new(),
    }
}

/// How it logs in.
pub(in crate::load) fn login(token: String) -> Login {
    Login { token, device: DeviceId::new("bench").expect("it is one"), device_class: DeviceClass::SERVICE }
}
