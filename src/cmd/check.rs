//! `convoke check`: whether what is stored is what the invariants promise.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::stores::{CqlArgs, block_on};
use crate::storage::embedded;
use crate::storage::scylla::{ScyllaStore, check as check_cluster};

const EXAMPLES: &str = "\
Examples:
  convoke check                                        the store of ./convoke-data; no node may be running on it
  convoke check --store scylla --cql 127.0.0.1:9042    what a cluster keeps, best while its nodes are stopped";

/// Which kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// In a node's data directory.
    Embedded,
    /// On ScyllaDB or Apache Cassandra.
    Scylla,
}

/// Reads a whole store and says what is wrong with it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CheckArgs {
    /// Which store
    #[arg(long, value_enum, default_value = "embedded")]
    pub store: Kind,
    /// The servers, with --store scylla.
    #[command(flatten)]
    pub servers: CqlArgs,
    /// The directory of the node's data.
    #[arg(long, value_name = "DIR", default_value = "./convoke-data")]
    pub data: PathBuf,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs it. Exits with 0 if nothing is wrong, with 1 otherwise.
///
/// # Errors
/// The store cannot be opened, or the servers cannot be read.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let report = match args.store {
        Kind::Embedded => {
            embedded::check(&args.data).with_context(|| format!("checking {}", args.data.display()))?
        }
        Kind::Scylla => {
            let (_, servers) = args.servers.load()?;
            block_on(async {
                let store = ScyllaStore::open(&servers).await?;
                Ok(check_cluster(&store).await?)
            })?
        }
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
