//! Writes of one conversation one after the other, those of many conversations beside each other.
//!
//! A *line* is what waits for one conversation; it exists while something waits or is under way, and a task works it off.
//! What waits in all lines together is bounded.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use convoke_protocol::id::ConversationId;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::Shared;
use crate::clock::Clock;
use crate::storage::stats::StoreStats;
use crate::storage::{Append, AppendDone, AppendError, LogRow, Projection};

/// What a row takes besides its body.
const ROW_BYTES: usize = 256;

pub(super) enum Job {
    Append(Append),
    Project(Projection),
}

impl Job {
    fn conversation(&self) -> &ConversationId {
        match self {
            Self::Append(append) => &append.conversation,
            Self::Project(projection) => &projection.conversation,
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Append(append) => append.rows.len(),
            Self::Project(projection) => projection.rows.len(),
        }
    }

    fn bytes(&self) -> usize {
        let of = |rows: &[LogRow]| rows.iter().map(|row| row.entry.content.body.len() + ROW_BYTES).sum();
        match self {
            Self::Append(append) => of(&append.rows),
            Self::Project(projection) => {
                let small = projection.members.len() + projection.reactions.len() + 1;
                of(&projection.rows) + small * ROW_BYTES
            }
        }
    }
}

type Waiting = (Job, usize, AppendDone);

#[derive(Default)]
struct Lines {
    by_conversation: HashMap<ConversationId, VecDeque<Waiting>>,
    bytes: usize,
    closed: bool,
}

struct Inner {
    shared: Arc<Shared>,
    lines: Mutex<Lines>,
    max_bytes: usize,
    /// What has not begun by now is not begun any more.
    give_up: AtomicBool,
    emptied: Notify,
    stats: StoreStats,
    clock: Clock,
}

pub(super) struct Writer {
    inner: Arc<Inner>,
    runtime: Handle,
    patience: Duration,
}

fn shut_down() -> AppendError {
    AppendError::NotStored("the store is shut down".into())
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, max_bytes: usize, patience: Duration) -> Self {
        let clock = shared.clock;
        let inner = Inner {
            shared,
            lines: Mutex::default(),
            max_bytes,
            give_up: AtomicBool::new(false),
            emptied: Notify::new(),
            stats: StoreStats::default(),
            clock,
        };
        Self { inner: Arc::new(inner), runtime: Handle::current(), patience }
    }

    pub(super) fn push(&self, job: Job, done: AppendDone) {
        let bytes = job.bytes();
        let refused = {
            let mut lines = self.inner.lines.lock();
            if lines.closed {
                Some(shut_down())
            } else if lines.bytes > 0 && bytes > 0 && lines.bytes + bytes > self.inner.max_bytes {
                Some(AppendError::Overloaded)
            } else {
                lines.bytes += bytes;
                match lines.by_conversation.get_mut(job.conversation()) {
                    Some(line) => line.push_back((job, bytes, done)),
                    None => {
                        lines.by_conversation.insert(job.conversation().clone(), VecDeque::new());
                        let inner = self.inner.clone();
                        self.runtime.spawn(async move { inner.work((job, bytes, done)).await });
                    }
                }
                return;
            }
        };
        if let Some(error) = refused {
            let stats = &self.inner.stats;
            let counter = if error == AppendError::Overloaded { &stats.overloaded } else { &stats.failed };
            counter.fetch_add(1, Ordering::Relaxed);
            done(Err(error));
        }
    }

    pub(super) fn stats(&self) -> &StoreStats {
        let waiting = self.inner.lines.lock().bytes as u64;
        self.inner.stats.queue_bytes.store(waiting, Ordering::Relaxed);
        &self.inner.stats
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner.lines.lock().closed
    }

    pub(super) async fn shutdown(&self) {
        self.inner.lines.lock().closed = true;
        if tokio::time::timeout(self.patience, self.inner.all_ended()).await.is_err() {
            self.inner.give_up.store(true, Ordering::Relaxed);
            self.inner.all_ended().await;
        }
    }
}

impl Inner {
    /// Works a line off, beginning with `next`.
    async fn work(&self, mut next: Waiting) {
        loop {
            let (job, bytes, done) = next;
            let conversation = job.conversation().clone();
            let given_up = self.give_up.load(Ordering::Relaxed);
            let (rows, begun) = (job.rows(), self.clock.monotonic());
            let result = if given_up { Err(shut_down()) } else { self.shared.perform(job).await };
            match &result {
                Ok(()) => self.stats.committed(1, rows, bytes, self.clock.monotonic() - begun),
                Err(_) => drop(self.stats.failed.fetch_add(1, Ordering::Relaxed)),
            }
            done(result);
            let mut lines = self.lines.lock();
            lines.bytes -= bytes;
            match lines.by_conversation.get_mut(&conversation).and_then(VecDeque::pop_front) {
                Some(waiting) => next = waiting,
                None => {
                    lines.by_conversation.remove(&conversation);
                    if lines.by_conversation.is_empty() {
                        self.emptied.notify_waiters();
                    }
                    return;
                }
            }
        }
    }

    async fn all_ended(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.lines.lock().by_conversation.is_empty() {
                return;
            }
            emptied.await;
        }
    }
}
