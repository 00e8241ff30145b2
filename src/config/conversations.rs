//! The bounds of one conversation.

use super::section::{Millis, section};

section! {
    /// The bounds of one conversation.
    Conversations in "conversations" {
        /// Sends that wait for a batch; above it they are refused as busy.
        Restart max_pending: usize = 10_000, in 1..=1_000_000;
        /// Bytes of bodies that wait for a batch; above it sends are refused as busy.
        Restart max_pending_bytes: usize = 16 << 20, in 65_536..=1_073_741_824;
        /// Messages in one batch.
        Restart max_batch: usize = 1_024, in 1..=100_000;
        /// Bytes of bodies in one batch; one message is always taken.
        Restart max_batch_bytes: usize = 1 << 20, in 4_096..=67_108_864;
        /// How long a sender waits for the store, in milliseconds, before it is told that it is unavailable.
        Restart answer_within_ms: Millis = Millis(5_000), in 100..=60_000;
        /// The pause before a write that failed is repeated, in milliseconds.
        Restart retry_pause_ms: Millis = Millis(50), in 1..=10_000;
        /// How long a conversation must be quiet, in milliseconds, before it leaves memory.
        Restart passivate_after_ms: Millis = Millis(60_000), in 100..=86_400_000;
    }
}
