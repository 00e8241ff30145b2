//! For how long conversations are kept that say nothing themselves.

use super::section::{Millis, section};

section! {
    /// For how long messages are kept in conversations that have no rule of their own. The last message always stays.
    Retention in "retention" {
        /// Messages older than so many milliseconds go; 0: none for their age.
        Restart max_age_ms: u64 = 0, in 0..=315_360_000_000;
        /// Of more than so many messages of one conversation the oldest go; 0: none for their number.
        Restart max_messages: u64 = 0, in 0..=1_000_000_000_000;
        /// How often conversations are looked over, in milliseconds.
        Restart sweep_interval_ms: Millis = Millis(60_000), in 50..=86_400_000;
    }
}
