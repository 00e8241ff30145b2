//! How many tasks are left, to wait for none.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A count of tasks.
#[derive(Debug, Default)]
pub(crate) struct TaskCount {
    running: AtomicUsize,
    none_left: Notify,
}

impl TaskCount {
    /// Counts a task until its guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> TaskGuard {
        self.running.fetch_add(1, Ordering::Relaxed);
        TaskGuard(Arc::clone(self))
    }

    /// Waits until there are none. Cancel-safe.
    pub(crate) async fn none_left(&self) {
        loop {
            let mut notified = pin!(self.none_left.notified());
            // From here on no notification is missed.
            notified.as_mut().enable();
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// A task that is counted.
#[derive(Debug)]
pub(crate) struct TaskGuard(Arc<TaskCount>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}
