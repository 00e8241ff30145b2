//! Stores that fail on purpose: wraps any stores and injects, from a seed or by order, what a real store may do.
//!
//! Everything it does to writes is allowed by the contract of [`MessageLog`]: who relies on the contract alone must
//! not notice, save by the errors. What [`Tamper`] does is not allowed by it, and is there to show that a checker
//! notices.

mod groups;
mod read_state;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use convoke_protocol::message::Cursor;
use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    Append, AppendDone, AppendError, Changed, ConversationIndex, CursorStore, Health, Hint, LogRow, LogStart,
    MessageLog, Projection, ReadError, ReadLimit, Stores, Tail, WriteError, WriteStamp,
};

/// What a log is told to write.
enum LogWrite {
    Append(Append),
    Project(Projection),
}

/// How an append goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendFault {
    /// Refused for load, nothing stored.
    Overloaded,
    /// Refused, nothing stored.
    NotStored,
    /// Stored, and answered that nobody knows.
    UnknownStored,
    /// Not stored, and answered that nobody knows.
    UnknownNotStored,
    /// Like [`Self::UnknownStored`], and the last thing this store ever writes.
    PoisonStored,
    /// Like [`Self::UnknownNotStored`], and nothing is written after it.
    PoisonNotStored,
}

/// What a checker should find: done to rows on their way out of reads, always to the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tamper {
    /// The row is not there.
    Drop,
    /// The row is there twice.
    Double,
    /// The row changes places with the next one of the page.
    Reorder,
    /// The row has the number of the next one.
    Renumber,
}

/// How often something strikes: once in so many times on average; never if 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OneIn(pub u32);

impl OneIn {
    fn strikes(self, rng: &mut SmallRng) -> bool {
        self.0 > 0 && rng.random_range(0..self.0) == 0
    }
}

/// What goes wrong, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultPlan {
    /// Makes the same things go wrong again, as far as the order of the calls is the same.
    pub seed: u64,
    /// Faults of appends; the first that strikes counts.
    pub appends: Vec<(OneIn, AppendFault)>,
    /// Answers of appends that come late by up to the time. The write itself is not late.
    pub late_answers: (OneIn, Duration),
    /// Reads that fail.
    pub reads: OneIn,
    /// Writes of cursors that fail.
    pub cursors: OneIn,
    /// Rows that are tampered with.
    pub tamper: Option<(OneIn, Tamper)>,
}

/// Stores that fail as planned or told.
pub struct FaultyStore {
    inner: Stores,
    state: Mutex<State>,
    runtime: Option<Handle>,
}

struct State {
    plan: FaultPlan,
    rng: SmallRng,
    /// Faults of the next appends, before any plan.
    told: VecDeque<Option<AppendFault>>,
    /// Appends that wait to be released.
    stalled: Option<Vec<(LogWrite, AppendDone)>>,
    /// Why nothing is written any more.
    ended: Option<String>,
    poisoned: bool,
}

impl FaultyStore {
    /// Wraps stores. Late answers need a runtime, so it must then be made within one.
    pub fn new(inner: Stores, plan: FaultPlan) -> Self {
        let rng = SmallRng::seed_from_u64(plan.seed);
        let state = State { plan, rng, told: VecDeque::new(), stalled: None, ended: None, poisoned: false };
        Self { inner, state: Mutex::new(state), runtime: Handle::try_current().ok() }
    }

    /// Decides the next appends, in order, before the plan decides any: `None` is one without a fault.
    pub fn tell(&self, faults: impl IntoIterator<Item = Option<AppendFault>>) {
        self.state.lock().told.extend(faults);
    }

    /// From now on goes by another plan.
    pub fn plan(&self, plan: FaultPlan) {
        let mut state = self.state.lock();
        state.rng = SmallRng::seed_from_u64(plan.seed);
        state.plan = plan;
    }

    /// Appends wait from now on until [`Self::release`].
    pub fn stall(&self) {
        self.state.lock().stalled.get_or_insert_default();
    }

    /// How many appends wait.
    pub fn stalled(&self) -> usize {
        self.state.lock().stalled.as_ref().map_or(0, Vec::len)
    }

    /// Passes the waiting appends on, in their order, and stalls no more.
    pub fn release(&self) {
        let stalled = self.state.lock().stalled.take();
        for (write, done) in stalled.unwrap_or_default() {
            self.write_now(write, done);
        }
    }

    /// From now on every append is [`AppendError::NotStored`]; also those that wait.
    pub fn poison(&self, reason: &str) {
        self.end(reason, true);
    }

    /// Ends this store, not the one inside: every append is [`AppendError::NotStored`].
    pub fn shutdown(&self) {
        self.end("the store is shut down", false);
    }

    fn end(&self, reason: &str, poisoned: bool) {
        let stalled = {
            let mut state = self.state.lock();
            state.ended.get_or_insert_with(|| reason.to_owned());
            state.poisoned |= poisoned;
            state.stalled.take()
        };
        for (_, done) in stalled.unwrap_or_default() {
            done(Err(AppendError::NotStored(reason.to_owned())));
        }
    }

    /// Whether it can still write.
    pub fn health(&self) -> Health {
        let state = self.state.lock();
        match &state.ended {
            Some(reason) if state.poisoned => Health::Poisoned(reason.clone()),
            _ => Health::Good,
        }
    }

    fn write(&self, write: LogWrite, done: AppendDone) {
        let mut state = self.state.lock();
        if let Some(stalled) = &mut state.stalled {
            stalled.push((write, done));
            return;
        }
        drop(state);
        self.write_now(write, done);
    }

    fn pass_on(&self, write: LogWrite, done: AppendDone) {
        match write {
            LogWrite::Append(append) => self.inner.log.append(append, done),
            LogWrite::Project(projection) => self.inner.log.project(projection, done),
        }
    }

    fn write_now(&self, write: LogWrite, done: AppendDone) {
        let (fault, late) = {
            let mut state = self.state.lock();
            if let Some(reason) = &state.ended {
                let reason = reason.clone();
                drop(state);
                return done(Err(AppendError::NotStored(reason)));
            }
            let fault = state.next_fault();
            if matches!(fault, Some(AppendFault::PoisonStored | AppendFault::PoisonNotStored)) {
                state.ended = Some(POISONED.to_owned());
                state.poisoned = true;
            }
            (fault, state.next_delay())
        };
        let done = self.later(late, done);
        let unknown = || Err(AppendError::Unknown("an injected fault".into()));
        match fault {
            None => self.pass_on(write, done),
            Some(AppendFault::Overloaded) => done(Err(AppendError::Overloaded)),
            Some(AppendFault::NotStored) => done(Err(AppendError::NotStored("an injected fault".into()))),
            Some(AppendFault::UnknownNotStored | AppendFault::PoisonNotStored) => done(unknown()),
            Some(AppendFault::UnknownStored | AppendFault::PoisonStored) => {
                self.pass_on(write, Box::new(move |result| done(result.and_then(|()| unknown()))));
            }
        }
    }

    fn later(&self, late: Option<Duration>, done: AppendDone) -> AppendDone {
        match (late, &self.runtime) {
            (Some(late), Some(runtime)) => {
                let runtime = runtime.clone();
                Box::new(move |result| {
                    runtime.spawn(async move {
                        tokio::time::sleep(late).await;
                        done(result);
                    });
                })
            }
            _ => done,
        }
    }

    fn small_write_fails(&self) -> Result<(), WriteError> {
        let mut state = self.state.lock();
        let State { plan, rng, ended, .. } = &mut *state;
        match ended {
            Some(reason) => Err(WriteError(reason.clone())),
            None if plan.cursors.strikes(rng) => Err(WriteError("an injected fault".into())),
            None => Ok(()),
        }
    }

    fn read_fails(&self) -> Result<(), ReadError> {
        let mut state = self.state.lock();
        let State { plan, rng, .. } = &mut *state;
        match plan.reads.strikes(rng) {
            true => Err(ReadError::Unavailable("an injected fault".into())),
            false => Ok(()),
        }
    }

    fn tamper(&self, conversation: &ConversationId, rows: Vec<LogRow>) -> Vec<LogRow> {
        let (seed, tamper) = {
            let state = self.state.lock();
            (state.plan.seed, state.plan.tamper)
        };
        let Some((OneIn(often), tamper)) = tamper.filter(|(OneIn(often), _)| *often > 0) else { return rows };
        let struck = |row: &LogRow| {
            let name = format!("{conversation} {}", row.seq);
            xxh3_64_with_seed(name.as_bytes(), seed).is_multiple_of(u64::from(often))
        };
        let mut out: Vec<LogRow> = Vec::with_capacity(rows.len());
        let mut held: Option<LogRow> = None;
        for mut row in rows {
            let strikes = struck(&row);
            match tamper {
                Tamper::Drop if strikes => continue,
                Tamper::Double if strikes => out.push(row.clone()),
                Tamper::Renumber if strikes => row.seq = row.seq.next(),
                Tamper::Reorder if strikes && held.is_none() => {
                    held = Some(row);
                    continue;
                }
                _ => {}
            }
            out.push(row);
            out.extend(held.take());
        }
        out.extend(held);
        out
    }
}

const POISONED: &str = "an injected fault poisoned the store";

impl State {
    fn next_fault(&mut self) -> Option<AppendFault> {
        if let Some(told) = self.told.pop_front() {
            return told;
        }
        let Self { plan, rng, .. } = self;
        plan.appends.iter().find(|(often, _)| often.strikes(rng)).map(|(_, fault)| *fault)
    }

    fn next_delay(&mut self) -> Option<Duration> {
        let (often, most) = self.plan.late_answers;
        let strikes = !most.is_zero() && often.strikes(&mut self.rng);
        strikes.then(|| most.mul_f64(self.rng.random_range(0.0..1.0)))
    }
}

impl Drop for FaultyStore {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl MessageLog for FaultyStore {
    fn append(&self, append: Append, done: AppendDone) {
        self.write(LogWrite::Append(append), done);
    }

    fn project(&self, projection: Projection, done: AppendDone) {
        self.write(LogWrite::Project(projection), done);
    }

    fn put_hint<'a>(
        &'a self,
        conversation: &'a ConversationId,
        hint: Hint,
        stamp: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.small_write_fails()?;
            self.inner.log.put_hint(conversation, hint, stamp).await
        }
        .boxed()
    }

    fn tails<'a>(
        &'a self,
        conversations: &'a [ConversationId],
    ) -> BoxFuture<'a, Result<Vec<Tail>, ReadError>> {
        async move {
            self.read_fails()?;
            self.inner.log.tails(conversations).await
        }
        .boxed()
    }

    fn hint<'a>(
        &'a self,
        conversation: &'a ConversationId,
    ) -> BoxFuture<'a, Result<Option<Hint>, ReadError>> {
        async move {
            self.read_fails()?;
            self.inner.log.hint(conversation).await
        }
        .boxed()
    }

    fn read<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>> {
        async move {
            self.read_fails()?;
            let rows = self.inner.log.read(conversation, from, to, limit).await?;
            Ok(self.tamper(conversation, rows))
        }
        .boxed()
    }

    fn read_back<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<LogRow>, ReadError>> {
        async move {
            self.read_fails()?;
            let rows = self.inner.log.read_back(conversation, from, to, limit).await?;
            Ok(self.tamper(conversation, rows))
        }
        .boxed()
    }

    fn start<'a>(&'a self, conversation: &'a ConversationId) -> BoxFuture<'a, Result<LogStart, ReadError>> {
        async move {
            self.read_fails()?;
            self.inner.log.start(conversation).await
        }
        .boxed()
    }

    fn trim<'a>(
        &'a self,
        conversation: &'a ConversationId,
        start: LogStart,
        stamp: WriteStamp,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.small_write_fails()?;
            self.inner.log.trim(conversation, start, stamp).await
        }
        .boxed()
    }
}

impl ConversationIndex for FaultyStore {
    fn conversations<'a>(
        &'a self,
        user: &'a UserId,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, ReadError>> {
        async move {
            self.read_fails()?;
            self.inner.index.conversations(user, after, limit).await
        }
        .boxed()
    }

    fn changed<'a>(
        &'a self,
        user: &'a UserId,
        since: Option<&'a str>,
        after: Option<&'a ConversationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Changed, ReadError>> {
        async move {
            self.read_fails()?;
            self.inner.index.changed(user, since, after, limit).await
        }
        .boxed()
    }
}

impl CursorStore for FaultyStore {
    fn put_cursors<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        cursors: &'a [Cursor],
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.small_write_fails()?;
            self.inner.cursors.put_cursors(user, device, cursors).await
        }
        .boxed()
    }

    fn cursors<'a>(
        &'a self,
        user: &'a UserId,
        device: &'a DeviceId,
        conversations: &'a [ConversationId],
    ) -> BoxFuture<'a, Result<Vec<Cursor>, ReadError>> {
        async move {
            self.read_fails()?;
            self.inner.cursors.cursors(user, device, conversations).await
        }
        .boxed()
    }
}
