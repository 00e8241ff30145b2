//! Nodes on CQL servers that others started.

use std::sync::atomic::{AtomicU32, Ordering};

use super::command::finished;
use super::{Setup, TestNode};

/// What all nodes of a cluster sign with.
pub(crate) const TOKEN_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// A keyspace with its tables.
pub(crate) struct Cluster {
    server: String,
    keyspace: String,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::on(std::env::var("CONVOKE_TEST_CQL").expect("CONVOKE_TEST_CQL=host:port names a CQL server"))
    }

    pub(crate) fn on(server: String) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { server, keyspace: format!("it_{}_{n}", std::process::id()) }
    }

    pub(crate) async fn with_schema() -> Self {
        Self::new().made().await
    }

    pub(crate) async fn made(self) -> Self {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("node.toml");
        std::fs::write(&config, self.config("any")).unwrap();
        let config = config.to_str().unwrap();
        finished(["schema", "apply", "--config", config, "--replication", "1"]).await.good();
        self
    }

    /// Few shards, so that a start is quick; patient with a server that shares its processor with a build.
    pub(crate) fn config(&self, node: &str) -> String {
        let Self { server, keyspace } = self;
        format!(
            "[node]\nid = \"{node}\"\nshards = 32\n[scylla]\nnodes = [\"{server}\"]\nkeyspace = \"{keyspace}\"\n\
             deadline_ms = 20000\n[conversations]\nanswer_within_ms = 30000\n[links]\nlisten = \"127.0.0.1:0\"\n"
        )
    }

    pub(crate) fn node(&self, node: &str) -> Setup {
        Setup::config(&self.config(node)).token_key(TOKEN_KEY)
    }

    /// So many nodes, started one after the other: `n1`, `n2`, …
    pub(crate) async fn nodes(&self, count: usize) -> Vec<TestNode> {
        let mut nodes = Vec::new();
        for n in 1..=count {
            nodes.push(self.node(&format!("n{n}")).start().await);
        }
        nodes
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    pub(crate) fn keyspace(&self) -> &str {
        &self.keyspace
    }

    pub(crate) async fn check(&self) {
        let arguments = ["check", "--store", "scylla", "--cql", &self.server, "--keyspace", &self.keyspace];
        finished(arguments).await.good();
    }
}
