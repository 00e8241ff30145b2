//! `convoke config`: what is wrong with a configuration, and which one is in effect.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::config::{Config, Overrides, environment};

/// The arguments of `convoke config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say what is wrong with a configuration, or "ok"
    Check(File),
    /// Print the configuration in effect: the file, and what the environment overrides
    Show(Show),
}

#[derive(Debug, clap::Args)]
struct File {
    /// The configuration [default: cluster.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    file: File,
    /// With what each key means, its bound and its default
    #[arg(long)]
    comments: bool,
}

impl File {
    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(self.config.as_deref(), environment(), &Overrides::default())?)
    }
}

/// Runs it.
///
/// # Errors
/// What is wrong with the configuration.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Check(file) => {
            file.load()?;
            super::print_line("ok")
        }
        What::Show(show) => {
            let config = show.file.load()?;
            super::print_line(&if show.comments { config.commented() } else { config.to_toml() })
        }
    }
}
