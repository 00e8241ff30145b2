//! `convoke backup` and `convoke restore`: the embedded store as one file, and back.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::admin::{NewFile, Target};
use crate::clock::Clock;
use crate::node_file::NodeFile;
use crate::storage::embedded::{self, BackupError, OpenError};

const EXAMPLES: &str = "\
Examples:
  convoke backup monday.convoke                        of the node on ./convoke-data, running or not
  convoke restore monday.convoke --data ./restored     a new data directory from it
  convoke check --data ./restored                      whether it is in order

The token key (token.key) is not in a backup: keep it where secrets are kept.";

/// Writes everything in a node's store to one file; the node may go on meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct BackupArgs {
    /// The file; nothing is written over
    file: PathBuf,
    #[command(flatten)]
    target: Target,
}

/// Makes a store from a backup, in a data directory that has none.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// The data directory
    #[arg(long, value_name = "DIR", default_value = "./convoke-data")]
    data: PathBuf,
}

/// Reads the store itself; if a node has it open, asks that node. `node.json` does not tell whether one runs: it stays
/// behind when a node is killed.
///
/// # Errors
/// There is no store, or the file cannot be written.
pub fn backup(args: &BackupArgs) -> anyhow::Result<ExitCode> {
    let data = &args.target.key.data;
    let alone = if args.target.names_a_node() { None } else { offline(data, &args.file)? };
    let bytes = match alone {
        Some(bytes) => bytes,
        None => args.target.backup(&args.file)?,
    };
    super::print_line(&format!("{}: {bytes} bytes", args.file.display()))
}

/// `None` if a node has the store open.
fn offline(data: &Path, file: &Path) -> anyhow::Result<Option<u64>> {
    let mut out = NewFile::create(file)?;
    let mut buffered = BufWriter::new(&mut out.file);
    match embedded::backup(data, Clock::new(0).wall().0, &mut buffered) {
        Err(BackupError::Open(OpenError::Locked { .. })) if NodeFile::read(data).is_ok() => return Ok(None),
        done => done.with_context(|| format!("backing up {}", data.display()))?,
    };
    buffered.flush()?;
    drop(buffered);
    let bytes = out.file.metadata()?.len();
    out.keep()?;
    Ok(Some(bytes))
}

/// Runs it.
///
/// # Errors
/// The file is no whole backup, there is a store already, or it cannot be written.
pub fn restore(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let RestoreArgs { file, data } = args;
    let (contents, volume) = embedded::restore(file, data)
        .with_context(|| format!("restoring {} into {}", file.display(), data.display()))?;
    super::print_line(&format!(
        "{}: {} rows from a backup by {}; the token key is not in it",
        data.display(),
        volume.records,
        contents.made_by
    ))
}
