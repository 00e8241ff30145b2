//! `convoke cert`: a small private authority, and certificates of the nodes that it signs.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use super::print_line;
use crate::net::links::authority::Authority;

const EXAMPLES: &str = "\
Makes DIR/authority.pem and DIR/authority.key unless they are there, and DIR/NODE.pem and DIR/NODE.key for each node.
A node gets authority.pem, its own NODE.pem and NODE.key, and never authority.key:

  [links]
  authority = \"authority.pem\"
  certificate = \"n1.pem\"
  key = \"n1.key\"

Certificates do not expire. To shut a node out, make a new authority and give all others new certificates.";

/// `convoke cert`
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The directory of the authority
    #[arg(long, value_name = "DIR", default_value = "convoke-cert")]
    out: PathBuf,
    /// Make these again if they are there
    #[arg(long)]
    replace: bool,
    /// The nodes, as node.id names them
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

/// Makes what is missing.
///
/// # Errors
/// A file cannot be written, or is there already.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Args { out, replace, nodes } = args;
    for node in nodes {
        let fits = !node.is_empty() && node.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        ensure!(fits && node != "authority", "{node:?} is no node's name: letters, digits, '-', '_' and '.'");
    }
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let authority = authority(out)?;
    let mut made = Vec::new();
    for node in nodes {
        let (certificate, key) = (out.join(format!("{node}.pem")), out.join(format!("{node}.key")));
        let is_there = certificate.exists() || key.exists();
        ensure!(*replace || !is_there, "{} is there; --replace makes it again", certificate.display());
        let (pem, secret) = authority.issue()?;
        write(&key, &secret, true)?;
        write(&certificate, &pem, false)?;
        made.push(format!("{} {}", certificate.display(), key.display()));
    }
    print_line(&made.join("\n"))
}

fn authority(out: &Path) -> anyhow::Result<Authority> {
    let (certificate, key) = (out.join("authority.pem"), out.join("authority.key"));
    match fs::read_to_string(&key) {
        Ok(pem) => {
            let authority = Authority::of_key(&pem).with_context(|| key.display().to_string())?;
            if !certificate.exists() {
                write(&certificate, authority.certificate(), false)?;
            }
            Ok(authority)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            ensure!(
                !certificate.exists(),
                "{} is there, and its key is not: certificates that it signs need {}",
                certificate.display(),
                key.display()
            );
            let authority = Authority::create()?;
            write(&key, &authority.key(), true)?;
            write(&certificate, authority.certificate(), false)?;
            Ok(authority)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", key.display())),
    }
}

fn write(path: &Path, text: &str, secret: bool) -> anyhow::Result<()> {
    if secret {
        // A file that is there keeps its mode: it is made anew.
        let _ = fs::remove_file(path);
    }
    let mode = if secret { 0o600 } else { 0o644 };
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    let mut file = opened.with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
