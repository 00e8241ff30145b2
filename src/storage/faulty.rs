//! Stores that fail on purpose: wraps any stores and injects, from a seed or by order, what a real store may do.
//!
//! Everything it does to writes is allowed by the contract of [`MessageLog`]: who relies on the contract alone must
//! not notice, save by the errors. What [`Tamper`] does is not allowed by it, and is there to show that a checker
//! notices.

mod groups;
mod read_state;

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
    Append, AppendDone, AppendError, ConversationIndex, CursorStore, Health, Hint, LogRow, LogStart,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::future;

    use super::*;
    use crate::storage::conformance::{self, Fixture, append_of, conversation, rows, store};
    use crate::storage::memory::MemoryStore;

    struct Faultless(Arc<FaultyStore>);

    fn faulty(plan: FaultPlan) -> Arc<FaultyStore> {
        Arc::new(FaultyStore::new(Stores::of(Arc::new(MemoryStore::new())), plan))
    }

    impl Fixture for Faultless {
        fn stores(&self) -> Stores {
            Stores::of(self.0.clone())
        }
        fn shutdown(&mut self) -> BoxFuture<'_, ()> {
            self.0.shutdown();
            future::ready(()).boxed()
        }
        fn reopen(&mut self) -> BoxFuture<'_, bool> {
            future::ready(false).boxed()
        }
    }

    crate::conformance_tests!(Faultless(faulty(FaultPlan::default())));

    async fn seqs(store: &FaultyStore, name: &str) -> Vec<u64> {
        let rows = store.read(&conversation(name), Seq(1), Seq(u64::MAX), ReadLimit::rows(1_000)).await;
        rows.expect("readable").iter().map(|row| row.seq.0).collect()
    }

    #[tokio::test]
    async fn each_fault_does_what_it_says() {
        use AppendFault::{
            NotStored, Overloaded, PoisonNotStored, PoisonStored, UnknownNotStored, UnknownStored,
        };
        let unknown = |answer: &Result<(), AppendError>| matches!(answer, Err(AppendError::Unknown(_)));
        let not_stored = |answer: &Result<(), AppendError>| matches!(answer, Err(AppendError::NotStored(_)));
        let overloaded = |answer: &Result<(), AppendError>| *answer == Err(AppendError::Overloaded);
        type Answers = fn(&Result<(), AppendError>) -> bool;
        let cases: [(AppendFault, Answers, bool, bool); 6] = [
            (Overloaded, overloaded, false, false),
            (NotStored, not_stored, false, false),
            (UnknownStored, unknown, true, false),
            (UnknownNotStored, unknown, false, false),
            (PoisonStored, unknown, true, true),
            (PoisonNotStored, unknown, false, true),
        ];
        let team = conversation("team");
        for (fault, answers, stored, poisons) in cases {
            let faulty = faulty(FaultPlan::default());
            faulty.tell([None, Some(fault)]);
            assert_eq!(store(&*faulty, append_of(&team, &rows(1, 1, "a"), 0)).await, Ok(()));
            let answer = store(&*faulty, append_of(&team, &rows(2, 2, "a"), 0)).await;
            assert!(answers(&answer), "{fault:?}: {answer:?}");
            assert_eq!(seqs(&faulty, "team").await.contains(&2), stored, "{fault:?}");
            let after = store(&*faulty, append_of(&team, &rows(3, 3, "a"), 0)).await;
            assert_eq!(not_stored(&after), poisons, "{fault:?}");
            assert_eq!(faulty.health() == Health::Good, !poisons, "{fault:?}");
            assert_eq!(seqs(&faulty, "team").await.contains(&3), !poisons, "reads go on: {fault:?}");
        }
    }

    #[tokio::test]
    async fn a_seed_makes_the_same_faults_again() {
        let outcomes = |seed| async move {
            let appends = vec![(OneIn(3), AppendFault::NotStored), (OneIn(3), AppendFault::UnknownStored)];
            let faulty = faulty(FaultPlan { seed, appends, ..FaultPlan::default() });
            let mut outcomes = Vec::new();
            for row in rows(1, 60, "a") {
                outcomes.push(store(&*faulty, append_of(&conversation("team"), &[row], 0)).await);
            }
            outcomes
        };
        let first = outcomes(7).await;
        assert_eq!(first, outcomes(7).await);
        assert_ne!(first, outcomes(8).await);
        assert!(first.iter().any(Result::is_ok) && first.iter().any(Result::is_err));
    }

    #[tokio::test]
    async fn stalled_appends_go_on_in_order_or_are_answered_at_the_end() {
        let faulty = faulty(FaultPlan::default());
        let answers = Arc::new(Mutex::new(Vec::new()));
        let append = |stamp: u64| {
            let answers = answers.clone();
            let row = conformance::row(1, None, &format!("text {stamp}"));
            let done = move |result: Result<(), AppendError>| answers.lock().push((stamp, result.is_ok()));
            faulty.append(append_of(&conversation("team"), &[row], stamp), Box::new(done));
        };
        faulty.stall();
        append(1);
        append(2);
        assert_eq!((faulty.stalled(), seqs(&faulty, "team").await), (2, vec![]));
        faulty.release();
        assert_eq!(*answers.lock(), [(1, true), (2, true)]);
        faulty.stall();
        append(3);
        faulty.poison("enough");
        append(4);
        assert_eq!(answers.lock()[2..], [(3, false), (4, false)]);
        assert_eq!(faulty.health(), Health::Poisoned("enough".into()));
    }

    #[tokio::test]
    async fn late_answers_are_late_and_reads_fail() {
        let plan = FaultPlan {
            late_answers: (OneIn(1), Duration::from_millis(5)),
            reads: OneIn(1),
            cursors: OneIn(1),
            ..FaultPlan::default()
        };
        let faulty = faulty(plan);
        let team = conversation("team");
        let (tell, mut told) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(tell.send(result)));
        faulty.append(append_of(&team, &rows(1, 1, "a"), 0), done);
        assert!(told.try_recv().is_err(), "the memory store answers within the call");
        assert_eq!(told.await, Ok(Ok(())));
        assert!(faulty.hint(&team).await.is_err() && faulty.start(&team).await.is_err());
        let (user, device) = (conformance::user("alice"), conformance::device("phone"));
        let cursor = Cursor { conversation: team, seq: Seq(1) };
        assert!(faulty.put_cursors(&user, &device, &[cursor]).await.is_err());
    }

    #[tokio::test]
    async fn tampering_shows_and_is_always_the_same() {
        let faulty = faulty(FaultPlan::default());
        let team = conversation("team");
        assert_eq!(store(&*faulty, append_of(&team, &rows(1, 100, "a"), 0)).await, Ok(()));
        let whole: Vec<u64> = (1..=100).collect();
        assert_eq!(seqs(&faulty, "team").await, whole);
        for tamper in [Tamper::Drop, Tamper::Double, Tamper::Reorder, Tamper::Renumber] {
            faulty.plan(FaultPlan { seed: 3, tamper: Some((OneIn(10), tamper)), ..FaultPlan::default() });
            let seen = seqs(&faulty, "team").await;
            assert_eq!(seen, seqs(&faulty, "team").await);
            let (mut sorted, mut unique) = (seen.clone(), seen.clone());
            sorted.sort_unstable();
            unique.dedup();
            match tamper {
                Tamper::Drop => assert!(seen.len() < 100 && seen == sorted),
                Tamper::Double => assert!(seen.len() > 100 && unique == whole),
                Tamper::Reorder => assert!(seen != whole && sorted == whole),
                Tamper::Renumber => assert!(seen.len() == 100 && unique.len() < 100),
            }
        }
    }
}
