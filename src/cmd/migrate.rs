//! `convoke migrate`: everything in an embedded store into a cluster's, or back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::stores::{CqlArgs, block_on, embedded};
use crate::config::Config;
use crate::storage::Stores;
use crate::storage::copy::{self, Place, Side};
use crate::storage::embedded::EmbeddedStore;
use crate::storage::scylla::{ScyllaConfig, ScyllaStore};

/// How far a copy is, in the directory of the embedded store.
const PLACE_FILE: &str = "migrate.json";
/// What `--from` and `--to` call the servers.
const SERVERS: &str = "scylla";

const EXAMPLES: &str = "\
Examples:
  convoke migrate --from ./convoke-data --to scylla --cql db1:9042      into the tables of `convoke schema apply`
  convoke migrate --from scylla --to ./restored                         back, into a directory without a store

No node may be running on either side. An interrupted copy goes on where it was when the same command is run again.
At the end both stores are read anew and compared: counts, where each log ends, and a digest of everything.
The token key (token.key) is not copied: take it along.";

/// The arguments of `convoke migrate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A node's data directory, or `scylla` for the servers
    #[arg(long, value_name = "DIR|scylla")]
    from: String,
    /// A node's data directory, or `scylla` for the servers
    #[arg(long, value_name = "DIR|scylla")]
    to: String,
    #[command(flatten)]
    servers: CqlArgs,
}

/// Which copy a directory was part of, and how far that one is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    to_servers: bool,
    keyspace: String,
    place: Place,
}

impl Kept {
    fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let file = dir.join(PLACE_FILE);
        match fs::read(&file) {
            Ok(bytes) => Ok(Some(
                serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} cannot be read", file.display()))?,
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{} cannot be read", file.display())),
        }
    }

    /// A reader sees the former place or this one.
    fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(format!("{PLACE_FILE}.new"));
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, dir.join(PLACE_FILE))
    }
}

/// Runs it.
///
/// # Errors
/// A node is running, a store cannot be opened, read or written, or the two differ in the end.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let to_servers = match (args.from == SERVERS, args.to == SERVERS) {
        (false, true) => true,
        (true, false) => false,
        _ => bail!("one of --from and --to is {SERVERS}, the other a directory"),
    };
    let dir = PathBuf::from(if to_servers { &args.from } else { &args.to });
    let (config, servers) = args.servers.load()?;
    block_on(migrate(to_servers, &dir, &config, &servers))?;
    Ok(ExitCode::SUCCESS)
}

async fn migrate(
    to_servers: bool,
    dir: &Path,
    config: &Config,
    servers: &ScyllaConfig,
) -> anyhow::Result<()> {
    let keyspace = &servers.keyspace;
    let kept = Kept::read(dir)?;
    if let Some(kept) = &kept {
        let same = kept.to_servers == to_servers && kept.keyspace == *keyspace;
        ensure!(same, "{} is part of another copy: its {PLACE_FILE} says of which", dir.display());
    }
    let cluster = Arc::new(ScyllaStore::open(servers).await?);
    cluster.expect_no_nodes().await?;
    expect_store(to_servers, dir, kept.is_some())?;
    let node = open(dir, config).await?;
    let on_node = side_of(&node);
    let on_cluster = Side { stores: Stores::of(cluster.clone()), walk: cluster.clone(), has_ghosts: true };
    let (from, to) = if to_servers { (&on_node, &on_cluster) } else { (&on_cluster, &on_node) };

    let place = kept.map_or(Place::Begin, |kept| kept.place);
    if to_servers && place == Place::Begin {
        ensure!(
            !cluster.was_used().await?,
            "a cluster has used keyspace {keyspace}: a copy needs one that is new"
        );
    }
    if place != Place::Begin {
        eprintln!("going on where an earlier copy ended");
    }
    let keep =
        |place: &Place| Kept { to_servers, keyspace: keyspace.clone(), place: place.clone() }.write(dir);
    copy::copy(from, to, place, keep).await?;
    if to_servers {
        cluster.begin_after(copy::EPOCH).await?;
    }
    // What waited in memory is in the files then.
    node.shutdown().await;
    let node = open(dir, config).await?;
    let on_node = side_of(&node);
    let (from, to) = if to_servers { (&on_node, &on_cluster) } else { (&on_cluster, &on_node) };
    let (before, after) = (copy::summary(from).await?, copy::summary(to).await?);
    node.shutdown().await;
    cluster.shutdown().await;
    ensure!(before == after, "the copy differs:\nfrom {before}\nto   {after}");
    fs::remove_file(dir.join(PLACE_FILE))?;
    super::print_line(&format!("copied and compared: {after}"))?;
    Ok(())
}

fn side_of(node: &Arc<EmbeddedStore>) -> Side {
    Side { stores: Stores::of(node.clone()), walk: node.clone(), has_ghosts: false }
}

/// A copy from a directory needs a store in it, a new copy into one needs that there is none.
fn expect_store(to_servers: bool, dir: &Path, goes_on: bool) -> anyhow::Result<()> {
    let there = dir.join("store").exists();
    if to_servers {
        ensure!(there, "{} has no store", dir.display());
    } else {
        ensure!(goes_on || !there, "{} has a store: a copy needs a directory without one", dir.display());
    }
    Ok(())
}

async fn open(dir: &Path, config: &Config) -> anyhow::Result<Arc<EmbeddedStore>> {
    let (path, embedded) = (dir.to_owned(), embedded(config));
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path, embedded)).await?;
    Ok(Arc::new(opened.with_context(|| format!("opening {}", dir.display()))?))
}
