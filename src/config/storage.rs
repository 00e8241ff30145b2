//! The embedded store.

use super::section::{Millis, section};

section! {
    /// The embedded store, in the directory node.data.
    Storage in "storage" {
        /// Bytes that wait to be written; above it senders wait, then are refused as busy.
        Restart queue_bytes: usize = 64 << 20, in 1_048_576..=4_294_967_296;
        /// Bytes in one commit; one append is always taken.
        Restart batch_bytes: usize = 8 << 20, in 65_536..=268_435_456;
        /// Appends in one commit.
        Restart batch_appends: usize = 8_192, in 1..=1_000_000;
        /// Bytes of blocks kept in memory for reads, at most. The system keeps files in its own cache besides, so that more
        /// is worth little.
        Restart cache_bytes: u64 = 2 << 20, in 1_048_576..=1_099_511_627_776;
        /// After so many bytes the rows in memory are sorted into a file, in the background. They take about twice as
        /// much memory, and a start after a crash reads them again.
        Restart memtable_bytes: u64 = 4 << 20, in 1_048_576..=4_294_967_296;
        /// The latest time after which a device's cursor is written, in milliseconds.
        Restart cursor_interval_ms: Millis = Millis(5_000), in 10..=600_000;
        /// Reads that run at the same time, each on a thread of its own.
        Restart reads: usize = 8, in 1..=1_024;
    }
}
