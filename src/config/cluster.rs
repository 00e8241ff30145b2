//! A node's part in its cluster.

use super::section::{Millis, section};

section! {
    /// A node's part in its cluster: only where [scylla] names servers.
    Cluster in "cluster" {
        /// For how long a node that cannot write its sign of life goes on before it takes itself for dead, in
        /// milliseconds. It writes one every third of it.
        Restart lease_ms: Millis = Millis(3_000), in 500..=60_000;
        /// For how much longer others wait before they take its shards, in milliseconds.
        Restart margin_ms: Millis = Millis(1_000), in 100..=60_000;
        /// How long a node waits at its start until it serves its shards; then it begins all the same, in milliseconds.
        Restart claim_within_ms: Millis = Millis(30_000), in 1_000..=600_000;
    }
}
