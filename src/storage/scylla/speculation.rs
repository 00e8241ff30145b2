//! When a statement goes to a second server as well, because the first one does not answer: a server that collects its garbage, or
//! hangs, would keep everybody waiting whose statement it coordinates, and a node's CONFIRM keeps all of its conversations waiting.
//!
//! Only what may be repeated is sent twice (the driver looks at what [`super::statements`] says): the same cells with the same timestamp, or a
//! read. The answer that comes first counts; a read that was begun later is as good for CONFIRM as one that was begun before.
//!
//! It is called speculative execution by the drivers of ScyllaDB and Cassandra, whose guides say what it does to servers that are
//! slow because they have too much to do: it gives them more. Hence the bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use scylla::policies::speculative_execution::{Context, SpeculativeExecutionPolicy};

/// With so many statements of this node under way it is not one server that is slow.
const MANY: usize = 64;

/// How many statements of this node are under way. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct UnderWay(Arc<AtomicUsize>);

/// One of them, until it is dropped.
pub(super) struct One<'a>(&'a AtomicUsize);

impl UnderWay {
    /// One more.
    pub(super) fn one(&self) -> One<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        One(&self.0)
    }
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
    under_way: UnderWay,
}

impl Speculation {
    /// For the statements that `under_way` counts; none if the time is zero.
    pub(super) fn policy(
        after: Duration,
        under_way: &UnderWay,
    ) -> Option<Arc<dyn SpeculativeExecutionPolicy>> {
        (!after.is_zero()).then(|| Arc::new(Self { after, under_way: under_way.clone() }) as _)
    }

    fn tries(&self) -> usize {
        usize::from(self.under_way.0.load(Ordering::Relaxed) <= MANY)
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
        let under_way = UnderWay::default();
        let speculation = Speculation { after: Duration::from_millis(50), under_way: under_way.clone() };
        let mut statements: Vec<_> = (0..MANY).map(|_| under_way.one()).collect();
        assert_eq!(speculation.tries(), 1);
        statements.push(under_way.one());
        assert_eq!(speculation.tries(), 0);
        statements.pop();
        assert_eq!(speculation.tries(), 1);
    }

    #[test]
    fn no_time_is_never() {
        assert!(Speculation::policy(Duration::ZERO, &UnderWay::default()).is_none());
        assert!(Speculation::policy(Duration::from_millis(1), &UnderWay::default()).is_some());
    }
}
