//! Where a connection stands.
//!
//! ```text
//!   Greeting ──Hello──▶ Authenticating ──Login──▶ Live ──Logout, kick, error──▶ Over
//! ```
//! Whatever comes out of order closes the connection with `OUT_OF_ORDER`.

use std::sync::Arc;
use std::time::Duration;

use super::acks::Acks;
use super::{SessionHandle, SessionShared};
use crate::auth::Role;

pub(super) enum SessionState {
    Greeting,
    Authenticating { app: String },
    Live(Live),
    Over,
}

pub(super) struct Live {
    pub(super) shared: Arc<SessionShared>,
    pub(super) actor: SessionHandle,
    /// For what the token is.
    pub(super) role: Role,
    pub(super) acks: Acks,
    pub(super) rate: RateLimit,
    pub(super) signals: RateLimit,
    /// Requests above a rate that are refused at once; beyond them the client waits.
    pub(super) refusals: RateLimit,
}

/// A token bucket: so many sends a second, and a burst.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RateLimit {
    tokens: f64,
    refilled: Duration,
}

impl RateLimit {
    pub(super) fn new(burst: u32, now: Duration) -> Self {
        Self { tokens: f64::from(burst), refilled: now }
    }

    /// Takes one token, or says in how many milliseconds there is one. A rate of 0 is no limit.
    pub(super) fn take(&mut self, per_second: u32, burst: u32, now: Duration) -> Result<(), u32> {
        if per_second == 0 {
            return Ok(());
        }
        let rate = f64::from(per_second);
        let gained = now.saturating_sub(self.refilled).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(f64::from(burst.max(1)));
        self.refilled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        // A wait below a second per token: far within u32.
        Err(((1.0 - self.tokens) / rate * 1000.0).ceil() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let ms = Duration::from_millis;
        let mut bucket = RateLimit::new(2, ms(0));
        assert_eq!(bucket.take(10, 2, ms(0)), Ok(()));
        assert_eq!(bucket.take(10, 2, ms(0)), Ok(()));
        assert_eq!(bucket.take(10, 2, ms(0)), Err(100));
        assert_eq!(bucket.take(10, 2, ms(100)), Ok(()));
        assert_eq!(bucket.take(10, 2, ms(10_000)), Ok(()));
        assert_eq!(bucket.take(10, 2, ms(10_000)), Ok(()));
        assert!(bucket.take(10, 2, ms(10_000)).is_err());
        assert_eq!(bucket.take(0, 2, ms(10_000)), Ok(()));
    }
}
