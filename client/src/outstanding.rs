//! Requests that have no final answer yet, across connections: which to write when, and when to give up.
//!
//! A pure core; the driver writes what [`Outstanding::next`] gives and tells what came back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use convoke_protocol::error_code::{ErrorCode, Outcome, RequestError};
use convoke_protocol::frame::{Answer, Request};
use convoke_protocol::request::Retry;
use tokio::sync::oneshot;

use crate::error::{ClientError, is_passing};

/// Requests that are taken from their queue to wait for an answer, or for a connection.
pub(crate) const MAX_OUTSTANDING: usize = 1024;

/// The wait before a refusal without advice is tried again.
const DEFAULT_RETRY: Duration = Duration::from_millis(200);

/// The longest wait that is taken as advice.
const MAX_RETRY: Duration = Duration::from_secs(10);

/// A request of the application.
#[derive(Debug)]
pub(crate) struct Command {
    /// What to ask; a mutating request carries its [`Retry`] of the first attempt.
    pub(crate) request: Request,
    /// When to give up.
    pub(crate) deadline: Instant,
    /// Who waits.
    pub(crate) reply: oneshot::Sender<Result<Answer, ClientError>>,
}

#[derive(Debug)]
struct Entry {
    command: Command,
    attempts: u32,
    first: Option<Instant>,
    state: State,
    /// An attempt was written and its answer will never come, or did not say that nothing happened.
    in_doubt: bool,
    last: Option<RequestError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting(Instant),
    InFlight,
}

/// A request that was answered for good.
pub(crate) struct Answered {
    pub(crate) request: Request,
    pub(crate) result: Result<Answer, ClientError>,
    pub(crate) reply: oneshot::Sender<Result<Answer, ClientError>>,
}

/// All of them, in the order in which they were asked.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    next_order: u64,
    entries: BTreeMap<u64, Entry>,
    waiting: BTreeSet<(Instant, u64)>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// By request id; those rise, so the first is the oldest.
    in_flight: BTreeMap<u64, (u64, Instant)>,
}

impl Outstanding {
    pub(crate) fn has_room(&self) -> bool {
        self.entries.len() < MAX_OUTSTANDING
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// When the oldest request that has no answer on this connection was written.
    pub(crate) fn awaiting_since(&self) -> Option<Instant> {
        self.in_flight.first_key_value().map(|(_, (_, since))| *since)
    }

    pub(crate) fn add(&mut self, command: Command, now: Instant) {
        let order = self.next_order;
        self.next_order += 1;
        self.waiting.insert((now, order));
        self.deadlines.insert((command.deadline, order));
        let state = State::Waiting(now);
        self.entries
            .insert(order, Entry { command, attempts: 0, first: None, state, in_doubt: false, last: None });
    }

    /// The request to write next, if one is due; to be followed by [`Outstanding::written`].
    pub(crate) fn next(&mut self, now: Instant) -> Option<(u64, Request)> {
        let (at, order) = self.waiting.first().copied().filter(|(at, _)| *at <= now)?;
        self.waiting.remove(&(at, order));
        let entry = self.entries.get_mut(&order)?;
        entry.attempts = entry.attempts.saturating_add(1);
        let first = *entry.first.get_or_insert(now);
        let age_ms = u64::try_from(now.saturating_duration_since(first).as_millis()).unwrap_or(u64::MAX);
        let attempt = entry.attempts;
        let again = |retry: Retry| Retry { attempt, age_ms, ..retry };
        let mut request = entry.command.request.clone();
        if let Some(retry) = request.retry_mut() {
            *retry = again(*retry);
        }
        Some((order, request))
    }

    /// The request that [`Outstanding::next`] gave was written under this id.
    pub(crate) fn written(&mut self, order: u64, request_id: u64, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&order) {
            entry.state = State::InFlight;
            self.in_flight.insert(request_id, (order, now));
        }
    }

    /// The request that [`Outstanding::next`] gave cannot be written.
    pub(crate) fn refuse(&mut self, order: u64, error: RequestError) {
        if let Some(done) = self.finish(order, Err(ClientError::Refused(error))) {
            let _ = done.reply.send(done.result);
        }
    }

    /// An answer came. Nothing is returned for one that nobody awaits, or that is tried again.
    pub(crate) fn answered(&mut self, request_id: u64, answer: Answer, now: Instant) -> Option<Answered> {
        let (order, _) = self.in_flight.remove(&request_id)?;
        let entry = self.entries.get_mut(&order)?;
        let Answer::Error(error) = answer else { return self.finish(order, Ok(answer)) };
        let passes = is_passing(error.code, error.retry_after_ms)
            || (error.outcome == Outcome::UNKNOWN && error.code != ErrorCode::STALE_RETRY);
        if !passes {
            return self.finish(order, Err(ClientError::Refused(error)));
        }
        entry.in_doubt |= error.outcome != Outcome::NOT_DONE;
        let advised = error.retry_after_ms.map(|ms| Duration::from_millis(ms.into()).min(MAX_RETRY));
        let at = now + advised.unwrap_or(DEFAULT_RETRY);
        entry.state = State::Waiting(at);
        entry.last = Some(error);
        self.waiting.insert((at, order));
        None
    }

    /// No answer of the former connection will come: everything is due again, in the order it was asked.
    pub(crate) fn connection_lost(&mut self, now: Instant) {
        self.in_flight.clear();
        self.waiting.clear();
        for (order, entry) in &mut self.entries {
            entry.in_doubt |= entry.state == State::InFlight;
            entry.state = State::Waiting(now);
            self.waiting.insert((now, *order));
        }
    }

    /// Gives up what is overdue.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((_, order)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            let Some(entry) = self.entries.get(&order) else {
                self.deadlines.pop_first();
                continue;
            };
            let error = ClientError::Overdue { outcome: entry.outcome(), last: entry.last.clone() };
            if let Some(done) = self.finish(order, Err(error)) {
                // Who waited may have gone.
                let _ = done.reply.send(done.result);
            }
        }
    }

    /// The session is over: nobody will be answered.
    pub(crate) fn close(&mut self, reason: Option<ErrorCode>) {
        while let Some((&order, entry)) = self.entries.first_key_value() {
            let error = ClientError::Closed { reason, outcome: entry.outcome() };
            if let Some(done) = self.finish(order, Err(error)) {
                let _ = done.reply.send(done.result);
            }
        }
    }

    /// When [`Outstanding::next`] may have something new.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// When [`Outstanding::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn finish(&mut self, order: u64, result: Result<Answer, ClientError>) -> Option<Answered> {
        let entry = self.entries.remove(&order)?;
        self.deadlines.remove(&(entry.command.deadline, order));
        match entry.state {
            State::Waiting(at) => {
                self.waiting.remove(&(at, order));
            }
            State::InFlight => self.in_flight.retain(|_, (other, _)| *other != order),
        }
        Some(Answered { request: entry.command.request, result, reply: entry.command.reply })
    }
}

impl Entry {
    fn outcome(&self) -> Outcome {
        if self.in_doubt || self.state == State::InFlight { Outcome::UNKNOWN } else { Outcome::NOT_DONE }
    }
}

#[cfg(test)]
mod tests {
    use convoke_protocol::id::UserId;
    use convoke_protocol::message::{Content, Priority};
    use convoke_protocol::request::messages::{Acked, Send, Target};

    use super::*;

    type Waiting = oneshot::Receiver<Result<Answer, ClientError>>;

    fn send(text: &str, deadline: Instant) -> (Command, Waiting) {
        let (reply, waiting) = oneshot::channel();
        let request = Request::Send(Send {
            retry: Retry::first(),
            target: Target::User(UserId::new("bob").expect("valid")),
            content: Content::text(text),
            reply_to: None,
            previous: None,
            priority: Priority::NORMAL,
        });
        (Command { request, deadline, reply }, waiting)
    }

    fn take(outstanding: &mut Outstanding, id: u64, now: Instant) -> Option<Send> {
        let (order, request) = outstanding.next(now)?;
        outstanding.written(order, id, now);
        let Request::Send(send) = request else { panic!("only sends here") };
        Some(send)
    }

    #[test]
    fn a_retry_carries_the_same_client_id_the_next_attempt_and_its_age() {
        let now = Instant::now();
        let mut outstanding = Outstanding::default();
        let (one, mut waiting) = send("1", now + Duration::from_secs(60));
        let (two, _waiting_too) = send("2", now + Duration::from_secs(60));
        outstanding.add(one, now);
        outstanding.add(two, now);
        let first = take(&mut outstanding, 1, now).expect("due");
        assert_eq!((first.retry.attempt, first.retry.age_ms), (1, 0));
        let busy = RequestError::not_done(ErrorCode::BUSY, "").retry_after(300);
        assert!(outstanding.answered(1, busy.into(), now).is_none());
        assert!(take(&mut outstanding, 2, now).is_some());
        assert_eq!(outstanding.next_at(), Some(now + Duration::from_millis(300)));
        let later = now + Duration::from_millis(1500);
        outstanding.connection_lost(later);
        let again = take(&mut outstanding, 1, later).expect("due again");
        assert_eq!(again.content, first.content, "in the order they were asked");
        assert_eq!(again.retry, Retry { attempt: 2, age_ms: 1500, ..first.retry });
        let done = outstanding.answered(1, Acked {}.into(), later).expect("the final answer");
        done.reply.send(done.result).expect("somebody waits");
        assert!(matches!(waiting.try_recv(), Ok(Ok(_))));
        assert!(outstanding.answered(1, Acked {}.into(), later).is_none(), "answered once");
    }

    #[test]
    fn what_is_given_up_says_whether_it_may_have_happened() {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(1);
        let busy = || RequestError::not_done(ErrorCode::BUSY, "");
        for (in_flight, lost, refused, outcome) in [
            (false, false, false, Outcome::NOT_DONE),
            (true, false, false, Outcome::UNKNOWN),
            (true, true, false, Outcome::UNKNOWN),
            (true, false, true, Outcome::NOT_DONE),
        ] {
            let mut outstanding = Outstanding::default();
            let (command, mut waiting) = send("x", deadline);
            outstanding.add(command, now);
            if in_flight {
                take(&mut outstanding, 1, now).expect("due");
            }
            if lost {
                outstanding.connection_lost(now);
            }
            if refused {
                assert!(outstanding.answered(1, busy().into(), now).is_none());
            }
            outstanding.expire(deadline);
            let Ok(Err(error)) = waiting.try_recv() else { panic!("given up") };
            assert_eq!(error.outcome(), outcome, "{in_flight} {lost} {refused}");
            assert!(outstanding.entries.is_empty() && outstanding.waiting.is_empty());
            assert!(outstanding.in_flight.is_empty() && outstanding.deadlines.is_empty());
        }
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        let now = Instant::now();
        for (error, again) in [
            (RequestError::not_done(ErrorCode::NOT_PERMITTED, ""), false),
            (RequestError::not_done(ErrorCode::INTERNAL, "").retry_after(1), true),
            (RequestError::unknown(ErrorCode::INTERNAL, ""), true),
            (RequestError::unknown(ErrorCode::STALE_RETRY, ""), false),
            (RequestError::unknown(ErrorCode::UNAVAILABLE, ""), true),
        ] {
            let mut outstanding = Outstanding::default();
            let (command, _waiting) = send("x", now + Duration::from_secs(60));
            outstanding.add(command, now);
            take(&mut outstanding, 1, now).expect("due");
            assert_eq!(outstanding.answered(1, error.clone().into(), now).is_none(), again, "{error:?}");
        }
    }
}
