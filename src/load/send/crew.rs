//! The threads that do the work, in this process and in others, all going through the same phases.

use std::io::{self, BufRead};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use convoke_protocol::id::UserId;
use serde::{Deserialize, Serialize};

use super::plan::Part;
use super::task::{Control, Findings, Job, Phase, Tokens};
use super::worker::Worker;
use crate::auth::{Role, SigningKey};
use crate::load::LoadError;
use crate::load::process::{Companion, Sample, raise_descriptor_limit, say};
use crate::load::report::Progress;

/// Descriptors that a process needs beside its sockets.
const OTHER_DESCRIPTORS: u64 = 64;
/// How long a token is good: longer than any load test takes to log its users in.
const TOKEN_FOR: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked whether all threads are still at work.
const CHECK_EVERY: Duration = Duration::from_millis(500);

impl Tokens for SigningKey {
    fn token(&self, user: &UserId) -> String {
        self.sign(user, Role::User, TOKEN_FOR)
    }
}

/// Threads of this process.
#[derive(Debug)]
pub(super) struct Threads {
    control: Arc<Control>,
    threads: Vec<JoinHandle<Result<Findings, LoadError>>>,
    connections: u32,
}

impl Threads {
    /// Starts a thread for each part; they begin to connect.
    pub(super) fn start<T>(job: &Job, parts: &[Part], tokens: &Arc<T>) -> Result<Self, LoadError>
    where
        T: Tokens + Send + 'static,
    {
        let connections = parts.iter().map(|part| part.connections).sum();
        raise_descriptor_limit(u64::from(connections) + OTHER_DESCRIPTORS)?;
        let control = Arc::new(Control::new());
        let threads_in_all = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let mut threads = Vec::with_capacity(parts.len());
        for part in parts.iter().copied() {
            let (job, control, tokens) = (job.clone(), Arc::clone(&control), Arc::clone(tokens));
            let thread = std::thread::Builder::new()
                .name(format!("send-{}", part.number))
                .spawn(move || Worker::new(&job, part, tokens.as_ref(), &control)?.run(threads_in_all))
                .map_err(LoadError::doing("starting a thread"))?;
            threads.push(thread);
        }
        Ok(Self { control, threads, connections })
    }

    /// Waits until all connections are logged in.
    pub(super) fn wait_until_live(&mut self, waiting: impl Fn(u32)) -> Result<(), LoadError> {
        loop {
            let live = self.control.live.load(Ordering::Relaxed);
            if live == self.connections {
                return Ok(());
            }
            waiting(live);
            self.check()?;
            #[expect(
                clippy::disallowed_methods,
                reason = "a thread of its own, waiting for those that work"
            )]
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.control.enter(phase);
    }

    /// Says what went wrong if a thread has ended before its time.
    pub(super) fn check(&mut self) -> Result<(), LoadError> {
        let Some(ended) = self.threads.iter().position(JoinHandle::is_finished) else { return Ok(()) };
        join(self.threads.swap_remove(ended))?;
        Err(LoadError::Broken("a thread of the load test ended before its time"))
    }

    /// Waits until everything has settled.
    pub(super) fn finish(&mut self) -> Result<Findings, LoadError> {
        let mut all = Findings::default();
        for thread in self.threads.drain(..) {
            all.merge(join(thread)?);
        }
        Ok(all)
    }
}

fn join(thread: JoinHandle<Result<Findings, LoadError>>) -> Result<Findings, LoadError> {
    thread.join().map_err(|_| LoadError::Broken("a thread of the load test panicked"))?
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Threads that have ended do not look any more.
        self.control.enter(Phase::Aborted);
    }
}

/// What another process is told first.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    job: Job,
    parts: Vec<Part>,
    key_file: PathBuf,
}

/// What another process answers when its connections are logged in.
#[derive(Debug, Serialize, Deserialize)]
struct Live;

/// All threads, wherever they are.
#[derive(Debug)]
pub(super) enum Crew {
    /// In this process.
    Here(Threads),
    /// In others, because one may not have descriptors enough.
    There(Vec<Companion>),
}

impl Crew {
    /// Starts everything; the parts are as [`super::plan::parts`] gives them.
    pub(super) fn start(
        job: &Job,
        processes: &[Vec<Part>],
        key: &SigningKey,
        key_file: &Path,
    ) -> Result<Self, LoadError> {
        if let [parts] = processes {
            return Ok(Self::Here(Threads::start(job, parts, &Arc::new(key.clone()))?));
        }
        let key_file = key_file.canonicalize().map_err(LoadError::file(key_file))?;
        let loopback = job.addresses.iter().all(|address| address.is_ipv4() && address.ip().is_loopback());
        let mut companions = Vec::with_capacity(processes.len());
        for (number, parts) in (2_u8..=250).cycle().zip(processes) {
            let mut companion = Companion::start(["bench", "send-part"])?;
            // From one address to another there are not more connections than ports.
            let from = loopback.then_some(Ipv4Addr::new(127, 0, 0, number));
            let job = Job { from, ..job.clone() };
            companion.tell(&Task { job, parts: parts.clone(), key_file: key_file.clone() })?;
            companions.push(companion);
        }
        Ok(Self::There(companions))
    }

    pub(super) fn wait_until_live(&mut self, progress: &Progress) -> Result<(), LoadError> {
        match self {
            Self::Here(threads) => {
                let all = threads.connections;
                threads.wait_until_live(|live| progress.say(format!("logging in: {live} of {all}")))
            }
            Self::There(companions) => {
                progress.say("logging in");
                companions.iter_mut().try_for_each(|companion| companion.hear().map(|Live| ()))
            }
        }
    }

    pub(super) fn enter(&mut self, phase: Phase) -> Result<(), LoadError> {
        match self {
            Self::Here(threads) => {
                threads.enter(phase);
                Ok(())
            }
            Self::There(companions) => companions.iter_mut().try_for_each(|companion| companion.tell(&phase)),
        }
    }

    /// Lets it work for so long.
    pub(super) fn work(&mut self, time: Duration, progress: &Progress) -> Result<(), LoadError> {
        let mut left = time;
        while !left.is_zero() {
            let slice = left.min(CHECK_EVERY);
            progress.wait(slice);
            left -= slice;
            if let Self::Here(threads) = self {
                threads.check()?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<Findings, LoadError> {
        match self {
            Self::Here(threads) => threads.finish(),
            Self::There(companions) => {
                let mut all = Findings::default();
                for companion in companions {
                    all.merge(companion.hear()?);
                }
                Ok(all)
            }
        }
    }

    /// What the processes of the load generator have used up to now.
    pub(super) fn samples(&self) -> Result<Vec<Sample>, LoadError> {
        match self {
            Self::Here(_) => Ok(vec![Sample::of_self()?]),
            Self::There(companions) => {
                companions.iter().map(|companion| Sample::of(companion.pid())).collect()
            }
        }
    }
}

/// Runs as one of several processes: hears its task and the phases on stdin, and answers on stdout.
///
/// # Errors
/// What kept it from working.
pub fn run_part() -> Result<(), LoadError> {
    let mut lines = io::stdin().lock().lines();
    let mut line = move || lines.next().transpose().map_err(LoadError::doing("hearing what to do"));
    let Some(first) = line()? else { return Ok(()) };
    let Task { job, parts, key_file } = understood(first)?;
    let key = Arc::new(SigningKey::load(&key_file)?);
    let mut threads = Threads::start(&job, &parts, &key)?;
    threads.wait_until_live(|_| {})?;
    say(&Live)?;
    while let Some(order) = line()? {
        let phase: Phase = understood(order)?;
        threads.enter(phase);
        if phase == Phase::Settling {
            return say(&threads.finish()?);
        }
    }
    Ok(())
}

fn understood<T: serde::de::DeserializeOwned>(line: String) -> Result<T, LoadError> {
    serde_json::from_str(&line).map_err(|source| LoadError::Unintelligible { line, source })
}
