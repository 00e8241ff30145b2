//! What waits for the writer.
//!
//! ```text
//!   Open ──close──▶ Closing ──drained──▶ Ended
//!    └───────────────┴──── error ──────▶ Ended
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use convoke_protocol::id::ConversationId;
use fjall::{UserKey, UserValue};
use parking_lot::{Condvar, Mutex};

use super::cursors::Nudge;
use crate::storage::{AppendDone, AppendError};

/// Beside the bytes of its rows a queued append takes about so much.
const APPEND_OVERHEAD: usize = 256;

/// Where a row goes that is neither a message nor an entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Small {
    Marks,
    Settings,
    Groups,
    Reactions,
    Hidden,
    Logs,
    /// Only to delete: messages are written as the rows of an append.
    Messages,
}

/// A row that goes along with an append, or alone.
pub(super) struct SmallRow {
    pub(super) keyspace: Small,
    pub(super) key: UserKey,
    /// `None` deletes it.
    pub(super) value: Option<UserValue>,
}

/// An append, encoded. Whoever drops it unanswered answers that its outcome is not known.
pub(super) struct Job {
    pub(super) rows: Vec<(UserKey, Vec<u8>)>,
    pub(super) lists: Vec<UserKey>,
    pub(super) small: Vec<SmallRow>,
    /// The conversation that it changes, if that is accounted for.
    pub(super) changed: Option<ConversationId>,
    bytes: usize,
    done: Option<AppendDone>,
}

impl Job {
    pub(super) fn new(rows: Vec<(UserKey, Vec<u8>)>, lists: Vec<UserKey>, done: AppendDone) -> Self {
        let rows_bytes: usize = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        let lists_bytes: usize = lists.iter().map(|key| key.len()).sum();
        Self {
            rows,
            lists,
            small: Vec::new(),
            changed: None,
            bytes: rows_bytes + lists_bytes,
            done: Some(done),
        }
    }

    /// The same with rows that go along.
    pub(super) fn with(mut self, small: Vec<SmallRow>) -> Self {
        self.bytes += small
            .iter()
            .map(|row| row.key.len() + row.value.as_ref().map_or(0, |value| value.len()))
            .sum::<usize>();
        self.small = small;
        self
    }

    /// The same, as a change of this conversation.
    pub(super) fn changing(mut self, conversation: ConversationId) -> Self {
        self.changed = (!conversation.direct_users().is_empty()).then_some(conversation);
        self
    }

    /// The bytes of its rows and their keys.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn weight(&self) -> usize {
        self.bytes + APPEND_OVERHEAD
    }

    pub(super) fn answer(mut self, result: Result<(), AppendError>) {
        if let Some(done) = self.done.take() {
            done(result);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(Err(AppendError::Unknown("the store's writer ended".into())));
        }
    }
}

/// The bounds of one commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    pub(super) appends: usize,
    pub(super) bytes: usize,
}

/// What the writer is to do next.
pub(super) enum Next {
    Write {
        jobs: Vec<Job>,
        /// The waiting cursors go along.
        cursors: bool,
    },
    /// Everything is written and nothing more will come.
    End,
}

enum Stage {
    Open,
    Closing,
    /// Says why.
    Ended(String),
}

struct State {
    jobs: VecDeque<Job>,
    stage: Stage,
    cursors_due: Option<Instant>,
    writer_waits: bool,
}

/// The queue between those who append and the writer.
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    /// Of all appends that were taken and not answered.
    weight: AtomicUsize,
    max_weight: usize,
}

const CLOSED: &str = "the store is shut down";

impl Queue {
    pub(super) fn new(max_weight: usize) -> Arc<Self> {
        let state =
            State { jobs: VecDeque::new(), stage: Stage::Open, cursors_due: None, writer_waits: false };
        Arc::new(Self {
            state: Mutex::new(state),
            wake: Condvar::new(),
            weight: AtomicUsize::new(0),
            max_weight,
        })
    }

    /// Whether an append of so many bytes would be refused now: asked before the work of encoding it.
    pub(super) fn refuses(&self, bytes: usize) -> bool {
        let weight = self.weight.load(Ordering::Relaxed);
        weight > 0 && weight + bytes + APPEND_OVERHEAD > self.max_weight
    }

    /// Takes an append, or answers it at once.
    pub(super) fn push(&self, job: Job) -> Result<(), AppendError> {
        let refused = {
            let mut state = self.state.lock();
            let refused = match &state.stage {
                Stage::Open if self.refuses(job.bytes) => AppendError::Overloaded,
                Stage::Open => {
                    self.weight.fetch_add(job.weight(), Ordering::Relaxed);
                    state.jobs.push_back(job);
                    self.wake_writer(&mut state);
                    return Ok(());
                }
                Stage::Closing => AppendError::NotStored(CLOSED.into()),
                Stage::Ended(reason) => AppendError::NotStored(reason.clone()),
            };
            (refused, job)
        };
        // Answered without the lock: who is told may append again at once.
        let (refused, job) = refused;
        job.answer(Err(refused.clone()));
        Err(refused)
    }

    fn wake_writer(&self, state: &mut State) {
        if std::mem::take(&mut state.writer_waits) {
            self.wake.notify_one();
        }
    }

    /// Makes the writer write the waiting cursors after `within`, or at once.
    pub(super) fn cursors_wait(&self, nudge: Nudge, within: Duration) {
        let due = match nudge {
            Nudge::None => return,
            Nudge::Soon => Instant::now() + within,
            Nudge::Now => Instant::now(),
        };
        let mut state = self.state.lock();
        if state.cursors_due.is_none_or(|before| due < before) {
            state.cursors_due = Some(due);
            self.wake_writer(&mut state);
        }
    }

    /// Waits until there is something to write.
    pub(super) fn next(&self, limits: BatchLimits) -> Next {
        let mut state = self.state.lock();
        loop {
            let closing = !matches!(state.stage, Stage::Open);
            let cursors = state.cursors_due.is_some_and(|due| closing || due <= Instant::now());
            if cursors {
                state.cursors_due = None;
            }
            if cursors || !state.jobs.is_empty() {
                return Next::Write { jobs: take(&mut state.jobs, limits), cursors };
            }
            if closing {
                return Next::End;
            }
            state.writer_waits = true;
            match state.cursors_due {
                Some(due) => drop(self.wake.wait_until(&mut state, due)),
                None => self.wake.wait(&mut state),
            }
        }
    }

    /// Answers an append that was taken, and gives its place back.
    pub(super) fn answer(&self, job: Job, result: Result<(), AppendError>) {
        self.weight.fetch_sub(job.weight(), Ordering::Relaxed);
        job.answer(result);
    }

    /// The weight of what was taken and not answered.
    pub(super) fn weight(&self) -> usize {
        self.weight.load(Ordering::Relaxed)
    }

    /// Takes no more; what is in the queue is still written.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        if matches!(state.stage, Stage::Open) {
            state.stage = Stage::Closing;
            self.wake_writer(&mut state);
        }
    }

    /// Takes no more and writes no more: answers what is in the queue.
    pub(super) fn end(&self, reason: &str) {
        let left = {
            let mut state = self.state.lock();
            if !matches!(state.stage, Stage::Ended(_)) {
                state.stage = Stage::Ended(reason.to_owned());
            }
            std::mem::take(&mut state.jobs)
        };
        for job in left {
            self.answer(job, Err(AppendError::NotStored(reason.to_owned())));
        }
    }
}

/// The first jobs, within the limits; at least one.
fn take(jobs: &mut VecDeque<Job>, limits: BatchLimits) -> Vec<Job> {
    let mut bytes = 0;
    let within = jobs.iter().take(limits.appends).take_while(|job| {
        let first = bytes == 0;
        bytes += job.weight();
        first || bytes <= limits.bytes
    });
    let count = within.count();
    if count == jobs.len() { std::mem::take(jobs).into() } else { jobs.drain(..count).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits = BatchLimits { appends: 3, bytes: 3 * (APPEND_OVERHEAD + 8) };

    fn job(value_bytes: usize, answers: &Arc<Mutex<Vec<Result<(), AppendError>>>>) -> Job {
        let answers = answers.clone();
        let row = (UserKey::from(b"key!"), vec![0; value_bytes]);
        Job::new(vec![row], Vec::new(), Box::new(move |result| answers.lock().push(result)))
    }

    fn jobs(next: Next) -> Vec<Job> {
        match next {
            Next::Write { jobs, .. } => jobs,
            Next::End => panic!("nothing to write"),
        }
    }

    #[test]
    fn batches_are_bounded_and_one_that_is_too_large_goes_alone() {
        let answers = Arc::default();
        let queue = Queue::new(1 << 20);
        for value in [4, 4, 4, 4, 5_000, 4] {
            queue.push(job(value, &answers)).expect("taken");
        }
        let sizes: Vec<_> = (0..4)
            .map(|_| {
                let jobs = jobs(queue.next(LIMITS));
                let size = jobs.len();
                jobs.into_iter().for_each(|job| queue.answer(job, Ok(())));
                size
            })
            .collect();
        assert_eq!(sizes, [3, 1, 1, 1]);
        assert_eq!(queue.weight(), 0);
        assert_eq!(answers.lock().len(), 6);
    }

    #[test]
    fn at_the_bound_appends_are_refused_at_once_and_a_queue_that_is_empty_takes_any() {
        let answers = Arc::default();
        let queue = Queue::new(1_000);
        queue.push(job(5_000, &answers)).expect("taken");
        assert_eq!(queue.push(job(4, &answers)), Err(AppendError::Overloaded));
        assert_eq!(*answers.lock(), [Err(AppendError::Overloaded)]);
        for job in jobs(queue.next(LIMITS)) {
            queue.answer(job, Ok(()));
        }
        queue.push(job(4, &answers)).expect("taken");
    }

    #[test]
    fn after_the_end_nothing_is_taken_and_everything_is_answered_once() {
        let answers = Arc::default();
        let queue = Queue::new(1 << 20);
        queue.push(job(4, &answers)).expect("taken");
        queue.close();
        assert!(queue.push(job(4, &answers)).is_err());
        let written = jobs(queue.next(LIMITS));
        assert!(matches!(queue.next(LIMITS), Next::End));
        queue.end("broken");
        assert!(queue.push(job(4, &answers)).is_err());
        drop(written);
        let unknown = AppendError::Unknown("the store's writer ended".into());
        let not_stored = |why: &str| Err(AppendError::NotStored(why.into()));
        assert_eq!(*answers.lock(), [not_stored(CLOSED), not_stored("broken"), Err(unknown)]);
    }
}
