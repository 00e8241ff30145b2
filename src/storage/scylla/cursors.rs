//! Cursors of many devices, gathered into few requests.
//!
//! A device says how far it is about once in a second, and thousands of them do; none waits for the answer. So what comes within
//! [`GATHER`] is written as one batch. That saves the request, for which threads of the servers and of this node are woken, not the work
//! of the replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::Shared;
use crate::storage::WriteError;

/// How long the first of a batch waits for others.
const GATHER: Duration = Duration::from_millis(50);
/// Devices in a batch. Each is a partition, and Apache Cassandra warns of batches with more (its
/// `unlogged_batch_across_partitions_warn_threshold`).
const DEVICES: usize = 10;
/// Cursors in a batch, with which it takes no further device.
const CURSORS: usize = 100;
/// Batches that are under way at the same time.
const BATCHES: usize = 16;
/// Devices that wait to be gathered; beyond it they wait before that.
const WAITING: usize = 1_024;

/// A cursor as `put_cursor` takes it.
pub(super) type CursorValues = (String, String, String, i64, i64);

/// What one device says.
struct Put {
    cursors: Vec<CursorValues>,
    done: oneshot::Sender<Result<(), WriteError>>,
}

/// Where cursors are gathered; the task behind it ends when this is dropped.
pub(super) struct Gatherer {
    puts: mpsc::Sender<Put>,
    written: Arc<AtomicU64>,
}

impl Gatherer {
    pub(super) fn start(shared: Arc<Shared>) -> Self {
        let (puts, waiting) = mpsc::channel(WAITING);
        let written = Arc::default();
        tokio::spawn(gather(shared, waiting, Arc::clone(&written)));
        Self { puts, written }
    }

    /// How many cursors were written.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Keeps the cursors of a device, with those of others.
    ///
    /// Cancel safe: they are kept even if nobody waits any more.
    ///
    /// # Errors
    /// They may not be kept.
    pub(super) async fn put(&self, cursors: Vec<CursorValues>) -> Result<(), WriteError> {
        let (done, kept) = oneshot::channel();
        let lost = || WriteError("who gathers cursors is gone".into());
        self.puts.send(Put { cursors, done }).await.map_err(|_| lost())?;
        kept.await.unwrap_or_else(|_| Err(lost()))
    }
}

async fn gather(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Put>, written: Arc<AtomicU64>) {
    let under_way = Arc::new(Semaphore::new(BATCHES));
    while let Some(first) = waiting.recv().await {
        let until = Instant::now() + GATHER;
        let (mut cursors, mut done) = (first.cursors, vec![first.done]);
        while done.len() < DEVICES && cursors.len() < CURSORS {
            let Ok(Some(next)) = timeout_at(until, waiting.recv()).await else { break };
            cursors.extend(next.cursors);
            done.push(next.done);
        }
        // It is never closed.
        let permit = under_way.clone().acquire_owned().await;
        let (shared, written) = (shared.clone(), written.clone());
        tokio::spawn(async move {
            let cql = &shared.cql;
            let kept = cql.write_all(&cql.statements.put_cursor, &cursors).await.map_err(WriteError::from);
            if kept.is_ok() {
                written.fetch_add(cursors.len() as u64, Ordering::Relaxed);
            }
            for done in done {
                // Nobody waits any more: fine.
                let _ = done.send(kept.clone());
            }
            drop(permit);
        });
    }
}
