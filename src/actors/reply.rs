//! The one answer that a request gets.

use std::sync::Arc;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::frame::Answer;
use convoke_protocol::id::SessionId;

use crate::actors::session::SessionShared;
use crate::telemetry::traces::MessageTrace;

/// Owed to a client: answers exactly once. Dropped without an answer (an actor died with it in its mailbox), it
/// answers `INTERNAL` with outcome `unknown`, so that the client repeats the request.
#[derive(Debug)]
pub struct Reply {
    session: Arc<SessionShared>,
    request_id: u64,
    answered: bool,
    trace: Option<Box<MessageTrace>>,
}

impl Reply {
    /// Owes an answer to a request that was just read.
    pub fn new(session: Arc<SessionShared>, request_id: u64) -> Self {
        if session.egress.begin_request() {
            session.count_paused_read();
        }
        Self { session, request_id, answered: false, trace: None }
    }

    /// What is asked carries this trace.
    pub fn traced(mut self, trace: Option<Box<MessageTrace>>) -> Self {
        self.trace = trace;
        self
    }

    /// The trace that it carries, if any.
    pub fn take_trace(&mut self) -> Option<Box<MessageTrace>> {
        self.trace.take()
    }

    /// Who asked.
    pub fn session(&self) -> &Arc<SessionShared> {
        &self.session
    }

    /// The id of the asking session.
    pub fn session_id(&self) -> SessionId {
        self.session.id
    }

    /// Queues the answer; whoever calls this flushes the session's egress after a batch of answers.
    pub fn queue(mut self, answer: &Answer) -> Arc<SessionShared> {
        self.give(answer);
        self.session.clone()
    }

    /// Answers and writes at once.
    pub fn send(self, answer: &Answer) {
        self.queue(answer).egress.flush();
    }

    fn give(&mut self, answer: &Answer) {
        self.answered = true;
        if let Answer::Error(error) = answer {
            if let Some(trace) = &mut self.trace {
                trace.refused(error.code.name());
            }
            self.session.log_failed_request(self.request_id, error);
        }
        self.session.egress.queue_answer(self.request_id, answer);
        self.session.egress.end_request();
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            let error = RequestError::unknown(ErrorCode::INTERNAL, "the request was lost inside the server");
            self.give(&Answer::Error(error.retry_after(500)));
            self.session.egress.flush();
        }
    }
}

/// Sessions with answers that are queued and not yet written. Dropping it writes them, so that none waits longer than
/// whoever carries this: what is pushed to the same session in between leaves in the same write.
#[derive(Debug, Default)]
pub struct Answered {
    sessions: Vec<Arc<SessionShared>>,
    /// Of the messages that were answered: they end when they are delivered.
    traces: Vec<MessageTrace>,
}

impl Answered {
    /// Adds a session; adding it twice changes nothing.
    pub fn add(&mut self, session: Arc<SessionShared>) {
        if !self.sessions.iter().any(|other| Arc::ptr_eq(other, &session)) {
            self.sessions.push(session);
        }
    }

    /// Adds the trace of a message that was answered.
    pub fn trace(&mut self, trace: MessageTrace) {
        self.traces.push(trace);
    }

    /// Writes what is queued now, not when this is dropped.
    pub fn write(&mut self) {
        for session in self.sessions.drain(..) {
            session.egress.flush();
        }
    }

    /// So many listeners have what was answered.
    pub fn delivered(&mut self, listeners: usize) {
        self.traces.iter_mut().for_each(|trace| trace.delivered(listeners));
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.write();
    }
}
