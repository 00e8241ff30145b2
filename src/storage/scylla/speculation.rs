//! When a statement goes to a second server as well, because the first one does not answer: a server that collects its garbage, or
//! hangs, would keep everybody waiting whose statement it coordinates, and a node's CONFIRM keeps all of its conversations waiting.
//!
//! Only what may be repeated is sent twice (the driver looks at what [`super::statements`] says): the same cells with the same timestamp, or a
//! read. The answer that comes first counts; a read that was begun later is as good for CONFIRM as one that was begun before.
//!
//! It is called speculative execution by the drivers of ScyllaDB and Cassandra, whose guides say what it does to servers that are
//! slow because they have too much to do: it gives them more. Hence the bound.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use scylla::errors::{RequestAttemptError, RequestError};
use scylla::observability::history::{AttemptId, HistoryListener, RequestId, SpeculativeId};
use scylla::policies::retry::RetryDecision;
use scylla::policies::speculative_execution::{Context, SpeculativeExecutionPolicy};

/// With so many statements of this node under way it is not one server that is slow.
const MANY: usize = 64;

/// What a node's statements add up to. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Traffic(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    under_way: AtomicUsize,
    asked_twice: AtomicU64,
}

/// One statement that is under way, until it is dropped.
pub(super) struct One<'a>(&'a AtomicUsize);

impl Traffic {
    /// One more is under way.
    pub(super) fn one(&self) -> One<'_> {
        self.0.under_way.fetch_add(1, Ordering::Relaxed);
        One(&self.0.under_way)
    }

    /// What the driver tells of a statement that has this.
    pub(super) fn listener(&self) -> Arc<dyn HistoryListener> {
        self.0.clone()
    }

    /// How many statements went to a second server.
    pub(super) fn asked_twice(&self) -> u64 {
        self.0.asked_twice.load(Ordering::Relaxed)
    }
}

/// Counts what is sent beside the first. What the ids are for is not looked at, so all are the same.
impl HistoryListener for Counts {
    fn log_request_start(&self) -> RequestId {
        RequestId(0)
    }

    fn log_request_success(&self, _: RequestId) {}

    fn log_request_error(&self, _: RequestId, _: &RequestError) {}

    fn log_new_speculative_fiber(&self, _: RequestId) -> SpeculativeId {
        SpeculativeId(0)
    }

    fn log_attempt_start(&self, _: RequestId, beside: Option<SpeculativeId>, _: SocketAddr) -> AttemptId {
        if beside.is_some() {
            self.asked_twice.fetch_add(1, Ordering::Relaxed);
        }
        AttemptId(0)
    }

    fn log_attempt_success(&self, _: AttemptId) {}

    fn log_attempt_error(&self, _: AttemptId, _: &RequestAttemptError, _: &RetryDecision) {}
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A second server after a fixed time, unless much is under way.
#[derive(Debug)]
pub(super) struct Speculation {
    after: Duration,
    traffic: Traffic,
}

impl Speculation {
    /// For the statements that are counted there; none if the time is zero.
    pub(super) fn policy(after: Duration, traffic: &Traffic) -> Option<Arc<dyn SpeculativeExecutionPolicy>> {
        (!after.is_zero()).then(|| Arc::new(Self { after, traffic: traffic.clone() }) as _)
    }

    fn tries(&self) -> usize {
        usize::from(self.traffic.0.under_way.load(Ordering::Relaxed) <= MANY)
    }
}

impl SpeculativeExecutionPolicy for Speculation {
    fn max_retry_count(&self, _: &Context) -> usize {
        self.tries()
    }

    fn retry_interval(&self, _: &Context) -> Duration {
        self.after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_is_asked_only_while_little_is_under_way() {
        let traffic = Traffic::default();
        let speculation = Speculation { after: Duration::from_millis(50), traffic: traffic.clone() };
        let mut statements: Vec<_> = (0..MANY).map(|_| traffic.one()).collect();
        assert_eq!(speculation.tries(), 1);
        statements.push(traffic.one());
        assert_eq!(speculation.tries(), 0);
        statements.pop();
        assert_eq!(speculation.tries(), 1);
    }

    #[test]
    fn no_time_is_never() {
        assert!(Speculation::policy(Duration::ZERO, &Traffic::default()).is_none());
        assert!(Speculation::policy(Duration::from_millis(1), &Traffic::default()).is_some());
    }
}
