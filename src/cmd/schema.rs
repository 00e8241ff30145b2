//! `convoke schema`: the tables of a cluster's store.

use std::process::ExitCode;

use clap::Subcommand;

use super::stores::{CqlArgs, block_on};
use crate::storage::scylla::schema::{KeyspaceOptions, SCHEMA_VERSION};
use crate::storage::scylla::{apply_schema, schema_version};

const EXAMPLES: &str = "\
Examples:
  convoke schema apply --cql db1:9042                  on the servers of a cluster of three or more
  convoke schema apply --cql 127.0.0.1:9042 --replication 1
  convoke schema version                               of the servers that cluster.toml names

It may be repeated, and run from several machines at once. A keyspace that exists keeps its replication, and a cluster
its number of shards.";

/// The arguments of `convoke schema`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make the keyspace and its tables, or bring them to this program's version
    Apply(Apply),
    /// Print the version of the tables that are there, and the one this program needs
    Version(Version),
}

#[derive(Debug, clap::Args)]
struct Apply {
    #[command(flatten)]
    servers: CqlArgs,
    /// On how many servers each row is kept, if the keyspace is made
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    replication: u8,
    /// Make the keyspace without tablets: for versions of ScyllaDB that have no LWT on them
    #[arg(long)]
    no_tablets: bool,
}

#[derive(Debug, clap::Args)]
struct Version {
    #[command(flatten)]
    servers: CqlArgs,
}

/// Runs it.
///
/// # Errors
/// The servers cannot be reached or refuse.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Apply(apply) => {
            let (config, servers) = apply.servers.load()?;
            let Apply { replication, no_tablets, .. } = *apply;
            let options = KeyspaceOptions { shards: config.node.shards, replication, no_tablets };
            let applied = block_on(async { Ok(apply_schema(&servers, options).await?) })?;
            let keyspace = &servers.keyspace;
            super::print_line(&match (applied.from, applied.to) {
                (from, to) if from == to => format!("{keyspace}: version {to}, as before"),
                (from, to) => format!("{keyspace}: version {to}, was {from}"),
            })
        }
        What::Version(version) => {
            let (_, servers) = version.servers.load()?;
            let found = block_on(async { Ok(schema_version(&servers).await?) })?;
            super::print_line(&format!("{}: version {found}, needed {SCHEMA_VERSION}", servers.keyspace))
        }
    }
}
