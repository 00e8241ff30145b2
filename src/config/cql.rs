//! ScyllaDB or Apache Cassandra, the store of a cluster.

use std::path::PathBuf;

use super::section::{Millis, section};

section! {
    /// ScyllaDB or Apache Cassandra, the store of a cluster. The keyspace is made by `convoke schema apply`.
    Scylla in "scylla" {
        /// Addresses of some of the servers, host:port; the others are found through them. With none, everything is in
        /// the embedded store.
        Restart nodes: Vec<String> = Vec::new();
        /// The keyspace.
        Restart keyspace: String = "convoke".into();
        /// The user to log in as, where the servers ask for one.
        Restart user: String = String::new();
        /// A file with the user's password, and nothing else but white space.
        Restart password_file: PathBuf = PathBuf::new();
        /// How long a statement is tried, its repeats included, in milliseconds. A connection that gives no sign of life for as long is
        /// given up and made again.
        Restart deadline_ms: Millis = Millis(5_000), in 100..=60_000;
        /// After how long without an answer a statement that may be repeated goes to another server as well, in milliseconds, while the node
        /// has few under way; 0 for never.
        Restart speculate_after_ms: Millis = Millis(50), in 0..=60_000;
    }
}
