//! What is logged.

use serde::{Deserialize, Serialize};

use super::section::{Setting, section};

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Setting for LogFormat {}

section! {
    /// The log, on standard error.
    Log in "log" {
        /// "text" or "json" (one object per line).
        Restart format: LogFormat = LogFormat::Text;
        /// A level (error, warn, info, debug, trace), or a list such as "info,convoke::net=debug".
        Running filter: String = "info,scylla=warn".to_owned();
    }
}
