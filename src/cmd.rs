//! The subcommands of the binary: one thin file each.

pub mod admin;
pub mod backup;
pub mod bench;
pub mod cert;
pub mod chat;
pub mod check;
pub mod completions;
pub mod config;
pub mod credentials;
pub mod migrate;
pub mod schema;
pub mod serve;
pub mod stores;
pub mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  convoke serve                          start a node on ./convoke-data
  convoke chat --user alice --to bob     talk with bob
  convoke token --user alice             a token for alice, good for an hour
  convoke config check --config my.toml  say what is wrong with a configuration
  convoke admin reload                   apply the changed configuration of the running node";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "convoke", version, about, after_help = EXAMPLES, propagate_version = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node
    Serve(serve::Args),
    /// Talk with somebody, in the terminal or from a script
    Chat(chat::Args),
    /// Make a token with the node's key
    Token(token::Args),
    /// Check a configuration, or show the one in effect
    Config(config::Args),
    /// Say whether a store is in order
    Check(check::CheckArgs),
    /// Write everything in a node's store to one file, while it runs or not
    Backup(backup::BackupArgs),
    /// Make a store from a backup
    Restore(backup::RestoreArgs),
    /// Make or look at the tables of a cluster's store
    Schema(schema::Args),
    /// Copy everything from an embedded store into a cluster's, or back
    Migrate(migrate::Args),
    /// Make certificates for the links between nodes
    Cert(cert::Args),
    /// Measure a node, or the machine under it
    Bench(bench::BenchArgs),
    /// Operate a running node
    Admin(admin::Args),
    /// Print completions for a shell
    Completions(completions::Args),
}

/// Reads the command line and runs what it names; says on standard error what went wrong.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args, crate::node::run),
        Command::Chat(args) => chat::run(&args),
        Command::Token(args) => token::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Backup(args) => backup::backup(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Cert(args) => cert::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Admin(args) => admin::run(&args),
        Command::Completions(args) => completions::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("  {}", cause.to_string().replace('\n', "\n  "));
        }
        ExitCode::FAILURE
    })
}

/// Writes a line for whoever called; a reader that has gone away is no error of ours.
fn print_line(text: &str) -> anyhow::Result<ExitCode> {
    use std::io::Write as _;
    match writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n')) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_says_what_it_does() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            assert!(sub.get_about().is_some(), "{} has no description", sub.get_name());
            for argument in sub.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", sub.get_name(), argument.get_id());
            }
        }
    }
}
