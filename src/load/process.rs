//! Processes of a load test: what one uses (from /proc), how many descriptors it may have, and
//! further processes of this binary, because one may not have descriptors enough for all sockets
//! and because the server's CPU is to be told from the load generator's.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::LoadError;

/// What a process used during the measured time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Resident memory at the end, in bytes.
    pub rss_bytes: u64,
    /// CPU time during the measured time, of user and system together, in seconds.
    pub cpu_s: f64,
}

/// What /proc says about a process at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    at: Instant,
    rss_bytes: u64,
    cpu: Duration,
}

impl Sample {
    /// Looks at a process.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: u32) -> Result<Self, LoadError> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).map_err(LoadError::file(&path))?;
        let ticks_per_s = rustix::param::clock_ticks_per_second();
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let (ticks, pages) =
            parse_stat(&stat).ok_or(LoadError::Broken("/proc/PID/stat has another format here"))?;
        Ok(Self {
            at: Instant::now(),
            rss_bytes: pages.saturating_mul(page),
            cpu: Duration::from_millis(ticks.saturating_mul(1000) / ticks_per_s.max(1)),
        })
    }

    /// Looks at this process.
    ///
    /// # Errors
    /// If /proc is not there.
    pub fn of_self() -> Result<Self, LoadError> {
        Self::of(std::process::id())
    }

    /// Resident memory.
    #[must_use]
    pub fn rss_bytes(&self) -> u64 {
        self.rss_bytes
    }

    /// What was used since an earlier sample of the same process.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Usage {
        Usage { rss_bytes: self.rss_bytes, cpu_s: self.cpu.saturating_sub(earlier.cpu).as_secs_f64() }
    }

    /// The time between an earlier sample and this one.
    #[must_use]
    pub fn elapsed_since(&self, earlier: &Self) -> Duration {
        self.at.saturating_duration_since(earlier.at)
    }
}

/// What several processes used together between two samplings.
#[must_use]
pub fn used(before: &[Sample], after: &[Sample]) -> Usage {
    let mut sum = Usage { rss_bytes: 0, cpu_s: 0.0 };
    for (before, after) in before.iter().zip(after) {
        let usage = after.since(before);
        sum.rss_bytes += usage.rss_bytes;
        sum.cpu_s += usage.cpu_s;
    }
    sum
}

/// (ticks of user and system time, resident pages) of a line of /proc/PID/stat. The name of the
/// program stands in parentheses and may itself contain spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(u64, u64)> {
    // Fields 14, 15 (utime, stime) and 24 (rss), counted from 1; the name that ends here is field 2.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let pages: u64 = fields.nth(8)?.parse().ok()?;
    Some((user.checked_add(system)?, pages))
}

/// Raises this process's limit of open descriptors as far as it may go and returns it.
///
/// # Errors
/// If `wanted` of them cannot be had.
pub fn raise_descriptor_limit(wanted: u64) -> Result<u64, LoadError> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    raised.map_err(|errno| LoadError::doing("raising the limit of open descriptors")(errno.into()))?;
    let allowed = maximum.unwrap_or(u64::MAX);
    if allowed < wanted {
        return Err(LoadError::TooFewDescriptors { wanted, allowed });
    }
    Ok(allowed)
}

/// Says one line to the process that started this one.
///
/// # Errors
/// Nobody listens any more.
pub fn say(what: &impl Serialize) -> Result<(), LoadError> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line).and_then(|()| stdout.flush()).map_err(LoadError::doing("answering"))
}

/// Another process of this binary, told what to do in lines of JSON on its stdin and answering in
/// lines of JSON on its stdout. It ends when its stdin ends, and is killed when this is dropped.
#[derive(Debug)]
pub struct Companion {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Companion {
    /// Starts this binary with other arguments.
    ///
    /// # Errors
    /// If the system cannot start it.
    pub fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Self, LoadError> {
        let binary = std::env::current_exe().map_err(LoadError::doing("finding this binary"))?;
        let mut child = Command::new(binary)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(LoadError::doing("starting another process of this binary"))?;
        let stdin = child.stdin.take().ok_or(LoadError::ProcessEnded)?;
        let stdout = BufReader::new(child.stdout.take().ok_or(LoadError::ProcessEnded)?);
        Ok(Self { child, stdin, stdout })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it one line.
    ///
    /// # Errors
    /// If it has ended.
    pub fn tell(&mut self, what: &impl Serialize) -> Result<(), LoadError> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        self.stdin.write_all(&line).map_err(LoadError::doing("telling a process of the load test what to do"))
    }

    /// Waits for its next line.
    ///
    /// # Errors
    /// If it has ended, or said something else.
    pub fn hear<T: DeserializeOwned>(&mut self) -> Result<T, LoadError> {
        let mut line = String::new();
        let length = self
            .stdout
            .read_line(&mut line)
            .map_err(LoadError::doing("listening to a process of the load test"))?;
        if length == 0 {
            return Err(LoadError::ProcessEnded);
        }
        serde_json::from_str(&line).map_err(|source| LoadError::Unintelligible { line, source })
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        // It has nothing to save; both calls fail only when it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_name_with_parentheses() {
        let line = "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 91 0 0 0 1234 567 0 0 20 0 4 0 99 \
                    12345678 2048 18446744073709551615 1 1 0";
        assert_eq!(parse_stat(line), Some((1801, 2048)));
    }

    #[test]
    fn a_stat_that_is_cut_short_is_refused() {
        assert_eq!(parse_stat("4242 (convoke) S 1 4242 4242 0 -1 4194560 91 0 0 0 1234"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn work_shows_in_the_own_usage() {
        let before = Sample::of_self().unwrap();
        let started = Instant::now();
        let mut sum = 0_u64;
        // The kernel counts in ticks of 10 ms, and another process may hold the core for a while.
        let usage = loop {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(1));
            let now = Sample::of_self().unwrap();
            let usage = now.since(&before);
            if usage.cpu_s >= 0.05 || started.elapsed() > Duration::from_secs(20) {
                break usage;
            }
        };
        assert!(usage.cpu_s >= 0.05, "{usage:?}");
        assert!(usage.rss_bytes > 100_000, "{usage:?}");
    }

    #[test]
    fn descriptors_that_cannot_be_had_are_refused() {
        let allowed = raise_descriptor_limit(1).unwrap();
        if allowed < u64::MAX {
            let refused = raise_descriptor_limit(allowed + 1);
            assert!(matches!(refused, Err(LoadError::TooFewDescriptors { .. })), "{refused:?}");
        }
    }
}
