//! Who this node is and where it keeps its things.

use std::path::PathBuf;

use super::section::{Millis, section};

section! {
    /// Who this node is and where it keeps its things.
    Node in "node" {
        /// The node's name: 1–64 letters, digits, '-', '_' and '.'. Shown to clients.
        Restart id: String = "n1".to_owned();
        /// Directory of the store, the token key and node.json; relative to the directory the node is started in.
        Restart data: PathBuf = PathBuf::from("convoke-data");
        /// Slices of the conversations and users. Fixed when the data directory is created.
        Restart shards: u32 = 1_024, in 1..=65_536;
        /// Threads that do the work; 0: as many as there are cores. Where several nodes share a machine give each its share: every
        /// thread beyond costs switches between them.
        Restart threads: usize = 0, in 0..=1_024;
        /// HOST:PORT under which clients reach the TCP listener from outside; empty: the address it listens on.
        Restart advertise_tcp: String = String::new();
        /// HOST:PORT under which clients reach the WebSocket listener from outside; empty: the address it listens on.
        Restart advertise_ws: String = String::new();
        /// How long an ordered stop may take, in milliseconds, before what is left is cut off.
        Restart stop_within_ms: Millis = Millis(10_000), in 100..=600_000;
    }
}

/// The longest node id, in bytes.
const MAX_ID_BYTES: usize = 64;

impl Node {
    /// What is wrong with the id, if anything is.
    pub(super) fn id_problem(&self) -> Option<String> {
        let fits = (1..=MAX_ID_BYTES).contains(&self.id.len())
            && self.id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        (!fits).then(|| format!("must be 1..={MAX_ID_BYTES} letters, digits, '-', '_' and '.'"))
    }
}
