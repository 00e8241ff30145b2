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

impl Live {
    pub(super) fn new(shared: Arc<SessionShared>, actor: SessionHandle, role: Role) -> Self {
        Self {
            shared,
            actor,
            role,
            acks: Acks::default(),
            rate: RateLimit::default(),
            signals: RateLimit::default(),
            refusals: RateLimit::default(),
        }
    }
}

/// So many in a second, and a burst when there were none for a while: the generic cell rate algorithm (ITU-T I.371), which is a token
/// bucket kept as one moment. Three of them are in every session.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct RateLimit {
    /// When the next one would come if all came evenly, in nanoseconds of the monotonic clock; before that moment only as a part of
    /// a burst.
    next_ns: u64,
}

impl RateLimit {
    /// Takes one, or says in how many milliseconds there is one. A rate of 0 is no limit.
    pub(super) fn take(&mut self, per_second: u32, burst: u32, now: Duration) -> Result<(), u32> {
        const NS_PER_S: u64 = 1_000_000_000;
        const NS_PER_MS: u64 = 1_000_000;
        if per_second == 0 {
            return Ok(());
        }
        let interval = NS_PER_S / u64::from(per_second);
        // The monotonic clock begins with the process: centuries.
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let next = self.next_ns.max(now);
        let early = next - now;
        let allowed = interval * u64::from(burst.saturating_sub(1));
        if early > allowed {
            return Err(u32::try_from((early - allowed).div_ceil(NS_PER_MS)).unwrap_or(u32::MAX));
        }
        self.next_ns = next.saturating_add(interval);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let ms = Duration::from_millis;
        let mut bucket = RateLimit::default();
        assert_eq!(bucket.take(10, 2, ms(0)), Ok(()));
        assert_eq!(bucket.take(10, 2, ms(0)), Ok(()));
        assert_eq!(bucket.take(10, 2, ms(0)), Err(100));
        assert_eq!(bucket.take(10, 2, ms(100)), Ok(()));
        assert_eq!(bucket.take(10, 2, ms(10_000)), Ok(()));
        assert_eq!(bucket.take(10, 2, ms(10_000)), Ok(()));
        assert!(bucket.take(10, 2, ms(10_000)).is_err());
        assert_eq!(bucket.take(0, 2, ms(10_000)), Ok(()));
        // No burst at all is one at a time; and a rate that is lowered counts from then on.
        assert_eq!(bucket.take(1, 0, ms(20_000)), Ok(()));
        assert_eq!(bucket.take(1, 0, ms(20_001)), Err(999));
    }
}
