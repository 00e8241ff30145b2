//! Redis: what is shared and soft.

use super::section::{Millis, section};

section! {
    /// Redis, where other services and nodes can see who is online, and when users were last seen. Nothing that is
    /// promised about messages needs it.
    Redis in "redis" {
        /// Such as "redis://127.0.0.1:6379/0", with user and password if it asks for them. Empty: none.
        Restart url: String = String::new();
        /// Before every key.
        Restart prefix: String = "convoke:".into();
        /// How long an answer is waited for, in milliseconds.
        Restart deadline_ms: Millis = Millis(500), in 10..=60_000;
        /// Changes that wait while it is away; beyond it everything is written anew once it is back.
        Restart max_waiting: usize = 100_000, in 1_000..=10_000_000;
    }
}
