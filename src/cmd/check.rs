//! `convoke check`: whether what is stored is what the invariants promise.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::storage::embedded;

/// Reads a whole embedded store and says what is wrong with it. The node must not be running.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
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
/// The store cannot be opened.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let report = embedded::check(&args.data).with_context(|| format!("checking {}", args.data.display()))?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
