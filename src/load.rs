//! What `bench` runs: load generators, and what they share to measure and to report.
//!
//! | module | what |
//! | --- | --- |
//! | [`report`] | conditions, progress, the printed table, the JSON file, the verdict |
//! | [`latency`] | latencies, recorded per thread and merged |
//! | [`process`] | what a process uses, descriptors, further processes of this binary |
//! | [`node`] | the node that is measured: one that runs, or one of the load test's own |
//! | `client` | one client of a load generator |
//! | [`limits`] | the machine's floor: no code of Convoke in its measured loops |
//! | [`send`] | direct messages |
//! | [`group`] | a large group |
//! | `crowd` | many clients of whom few speak |
//! | [`connect`] | logins, and what idle clients cost |
//! | [`reconnect`] | all come back at once |
//! | [`beside`] | what people who talk notice of others who misbehave |
//! | [`soak`] | users that come and go, for a long time |
//! | `service` | a service of the application, which prepares what is measured |
//! | [`series`] | what happened in each second |
//! | [`fill`] | a data directory with many messages |
//! | [`read`] | history, catching up and the list of conversations |
//! | [`start`] | how long a start takes with many messages |

pub mod beside;
mod client;
pub mod connect;
pub mod crowd;
pub mod fill;
pub mod group;
pub mod latency;
pub mod limits;
pub mod node;
pub mod process;
pub mod read;
pub mod reconnect;
pub mod report;
pub mod send;
pub mod series;
mod service;
pub mod soak;
pub mod start;
pub mod verify;

use std::io;
use std::path::PathBuf;

use convoke_protocol::id::UserId;

/// Why a load test could not be carried out. (What it found wrong is in its [`report::Verdict`].)
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The operating system refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file could not be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What another process of the load test said was not understood.
    #[error("a process of the load test said {line:?}: {source}")]
    Unintelligible {
        /// What it said.
        line: String,
        /// Why that is no answer.
        source: serde_json::Error,
    },
    /// Another process of the load test ended before its time.
    #[error("a process of the load test ended before its time")]
    ProcessEnded,
    /// More descriptors are needed than a process may have here.
    #[error(
        "{wanted} descriptors are needed and a process may have {allowed} here: raise `ulimit -n` or ask for less"
    )]
    TooFewDescriptors {
        /// How many are needed.
        wanted: u64,
        /// How many a process may have.
        allowed: u64,
    },
    /// The CQL servers cannot be measured.
    #[error(transparent)]
    Cql(#[from] crate::storage::scylla::OpenError),
    /// A result could not be turned into JSON.
    #[error("the result as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The node of the load test's own did not start, or did not stop in order.
    #[error("{problem}\n{log}")]
    Node {
        /// What went wrong.
        problem: &'static str,
        /// The end of its log.
        log: String,
    },
    /// A connection ended, or the server said on it what it must not say.
    #[error("the connection of {user}: {problem}")]
    Connection {
        /// Whose connection.
        user: UserId,
        /// What happened.
        problem: String,
    },
    /// There is no key to make tokens with.
    #[error(transparent)]
    Key(#[from] crate::auth::KeyFileError),
    /// What is asked for cannot be shared out.
    #[error(transparent)]
    Plan(#[from] send::PlanError),
    /// A data directory cannot be filled.
    #[error("filling a data directory: {0}")]
    Fill(String),
    /// The client of the load test failed.
    #[error("asking the node: {0}")]
    Client(#[from] convoke_client::ClientError),
    /// A task or thread of the load test panicked, or waited for something that never came.
    #[error("{0}")]
    Broken(&'static str),
}

impl LoadError {
    /// For `map_err`: names what was being done.
    pub fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// For `map_err`: names the file.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { path: path.into(), source }
    }
}
