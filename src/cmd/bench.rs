//! `convoke bench KIND`: load tests that check their own work.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::load::limits::{self, LimitsOptions, peer::PeerOptions};
use crate::load::report;

/// The arguments of `convoke bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// What this machine can do without Convoke: the floor that the other kinds are compared with
    Limits(LimitsArgs),
    /// The other end of the sockets of `limits`, started by it as a process of its own
    #[command(hide = true)]
    LimitsPeer(PeerOptions),
}

#[derive(Debug, Args)]
struct LimitsArgs {
    /// Sockets between this process and the one that reads or sends at their other end
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    sockets: u32,
    /// Seconds that each of the five loops is measured, after a second of warm-up
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    duration: u64,
    /// Directory on the disk to be measured [default: the system's directory for temporary files]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Write the result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs one kind of load test; the exit code is not 0 when its own checks failed.
///
/// # Errors
/// What kept the load test from being run or its result from being written.
pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.kind {
        Kind::Limits(args) => run_limits(args),
        Kind::LimitsPeer(options) => {
            limits::peer::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_limits(args: LimitsArgs) -> anyhow::Result<ExitCode> {
    let result = limits::run(&LimitsOptions {
        sockets: args.sockets,
        measured: Duration::from_secs(args.duration),
        data: args.data.unwrap_or_else(std::env::temp_dir),
    })?;
    Ok(report::conclude(&result, args.json.as_deref())?)
}
