//! The subcommands of the binary: one thin file each.

pub mod bench;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "convoke", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a node, or the machine under it
    Bench(bench::BenchArgs),
}

/// Reads the command line and runs what it names.
///
/// # Errors
/// What the subcommand could not do.
pub fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Bench(args) => bench::run(args),
    }
}
