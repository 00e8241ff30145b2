//! Traces.

use super::section::section;

section! {
    /// Traces of single messages, sent to an OpenTelemetry collector.
    Traces in "traces" {
        /// Where to send them: OTLP over plain HTTP with JSON, such as "http://127.0.0.1:4318/v1/traces". Empty: nothing is
        /// traced.
        Restart endpoint: String = String::new();
        /// Of so many messages one is traced; 1: every message.
        Restart one_in: u32 = 1_000, in 1..=1_000_000_000;
    }
}
