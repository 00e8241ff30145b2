//! `bench start`: from the start of the process to its ready line, with many messages on the disk.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::LoadError;
use super::fill::{self, FILLED};
use super::node::{Node, temporary_directory};
use super::report::conditions::Conditions;
use super::report::{Outcome, Row, Verdict};

/// How long each start took.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are those of the JSON file")]
pub struct StartReport {
    pub bench: &'static str,
    pub conditions: Conditions,
    pub messages: u64,
    pub conversations: u32,
    pub ready_after_stop_s: f64,
    pub ready_after_kill_s: f64,
}

impl Outcome for StartReport {
    fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    fn rows(&self) -> Vec<Row> {
        let row = |what: &str, seconds: f64| Row {
            what: format!("{what}: ready after {seconds:.2} s; per second"),
            per_s: 1.0 / seconds,
            latency: None,
            server: None,
            cpu_us_each: None,
        };
        vec![
            row("start after a stop in order", self.ready_after_stop_s),
            row("start after kill -9", self.ready_after_kill_s),
        ]
    }

    fn verdict(&self) -> Verdict {
        Verdict::default()
    }
}

/// Starts a node on a directory, and says how long that took.
fn ready(directory: std::path::PathBuf) -> Result<Duration, LoadError> {
    let began = Instant::now();
    let node = Node::on(directory)?;
    let took = began.elapsed();
    node.stop()?;
    Ok(took)
}

/// Fills a directory in another process, and kills that.
fn fill_and_kill(data: &Path, messages: u64, conversations: u32) -> Result<(), LoadError> {
    let binary = std::env::current_exe().map_err(LoadError::doing("finding this binary"))?;
    let mut child = Command::new(binary)
        .args(["bench", "fill", "--stay", "--messages", &messages.to_string()])
        .args(["--conversations", &conversations.to_string(), "--data"])
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(LoadError::doing("starting a process that fills"))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        // One that ends without a word has said why on standard error.
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    child.kill().and_then(|()| child.wait()).map_err(LoadError::doing("killing it"))?;
    if line.trim() == FILLED { Ok(()) } else { Err(LoadError::ProcessEnded) }
}

/// Measures both starts, each on a directory of its own.
///
/// # Errors
/// A directory cannot be filled, or a node does not start on it.
pub fn run(messages: u64, conversations: u32) -> Result<StartReport, LoadError> {
    let stopped = temporary_directory()?;
    fill::run(&stopped.join("data"), messages, conversations, false)?;
    let conditions = Conditions::gather(Some(&stopped));
    let ready_after_stop_s = ready(stopped)?.as_secs_f64();
    let killed = temporary_directory()?;
    fill_and_kill(&killed.join("data"), messages, conversations)?;
    let ready_after_kill_s = ready(killed)?.as_secs_f64();
    Ok(StartReport {
        bench: "start",
        conditions,
        messages,
        conversations,
        ready_after_stop_s,
        ready_after_kill_s,
    })
}
