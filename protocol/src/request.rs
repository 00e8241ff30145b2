//! Requests and their answers, one file of small structs per area.
//!
//! Every mutating request carries a [`Retry`]: with it a request can be repeated safely.

pub mod changes;
pub mod conversations;
pub mod groups;
pub mod messages;
pub mod read_state;
pub mod session;
pub mod sync;

use serde::{Deserialize, Serialize};

use crate::id::ClientId;

/// What makes a mutating request safe to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Chosen once for the request; the same in every attempt.
    pub client_id: ClientId,
    /// 1 for the first attempt, 2 for the second, and so on.
    pub attempt: u32,
    /// How long ago the first attempt was made, in milliseconds on the client's monotonic clock; 0 in the first.
    pub age_ms: u64,
}

impl Retry {
    /// The first attempt of a new request.
    pub fn first() -> Self {
        Self { client_id: ClientId::random(), attempt: 1, age_ms: 0 }
    }
}
