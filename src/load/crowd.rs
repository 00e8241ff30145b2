//! A crowd: many clients that are connected, of whom a few may speak to a group of all.
//!
//! | module | what |
//! | --- | --- |
//! | `crew` | the processes that hold the connections, and what they are told |
//! | `task` | what a process is told, and what it answers |
//! | `worker` | one process: all its sockets behind one epoll |
//! | `member` | what one client has seen |

mod crew;
mod member;
mod task;
mod worker;

pub use crew::run_part;
pub(super) use crew::{Crew, Shape, samples};
pub(super) use task::{CatchingUp, Speaking};
