//! `convoke serve`: the configuration in effect, the log, then the node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::clock::Clock;
use crate::config::{Config, Overrides, environment};
use crate::telemetry::{LogHandle, logging};

/// What a node opens beside its connections: the store's files, the listeners.
const OTHER_DESCRIPTORS: u64 = 512;

const EXAMPLES: &str = "\
Examples:
  convoke serve
  convoke serve --data /var/lib/convoke --config /etc/convoke/cluster.toml
  convoke serve --data /tmp/try --tcp 127.0.0.1:0 --ws 127.0.0.1:0 --admin 127.0.0.1:0

Once it accepts connections it prints one line on standard output, `ready tcp=ADDR ws=ADDR admin=ADDR`, and writes
DIR/node.json. SIGTERM and SIGINT stop it in order; a second one at once.";

/// The arguments of `convoke serve`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The configuration [default: cluster.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the store, the token key and node.json [default: convoke-data]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Listen for TCP clients here [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDR")]
    pub tcp: Option<SocketAddr>,
    /// Listen for WebSocket clients here [default: 127.0.0.1:7701]
    #[arg(long, value_name = "ADDR")]
    pub ws: Option<SocketAddr>,
    /// Listen for operators here [default: 127.0.0.1:7702]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
}

/// What a node is started with.
#[derive(Debug)]
pub struct Setup {
    /// The configuration in effect.
    pub config: Config,
    /// Changes the filter of the log.
    pub log: LogHandle,
    /// The clocks.
    pub clock: Clock,
    /// Where the configuration came from: read again by a reload.
    pub source: Args,
}

impl Args {
    /// Reads the configuration: the file, the environment, these flags.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(&self) -> anyhow::Result<Config> {
        let overrides = Overrides { data: self.data.clone(), tcp: self.tcp, ws: self.ws, admin: self.admin };
        Ok(Config::load(self.config.as_deref(), environment(), &overrides)?)
    }
}

/// Prepares the process and hands over to `node`, which returns when the node has stopped in order.
///
/// # Errors
/// The configuration is wrong, or the node could not start or stop.
pub fn run(args: &Args, node: impl FnOnce(Setup) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    let config = args.load().context("the configuration is wrong")?;
    let log = logging::init(&config.log)?;
    let clock = Clock::from_environment()?;
    raise_descriptor_limit(config.limits.max_connections);
    node(Setup { config, log, clock, source: args.clone() })?;
    Ok(ExitCode::SUCCESS)
}

/// Every connection takes a file descriptor, and the soft limit is often 1,024: what may be taken is taken.
fn raise_descriptor_limit(connections: u32) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let needed = u64::from(connections) + OTHER_DESCRIPTORS;
    if let Some(allowed) = getrlimit(Resource::Nofile).current.filter(|allowed| *allowed < needed) {
        tracing::warn!(
            allowed,
            needed,
            "fewer open files are allowed than limits.max_connections needs: raise the hard limit (ulimit -n, LimitNOFILE)"
        );
    }
}

/// What to try next, for a person who started a node by hand: two terminals that talk.
pub fn welcome_text(data: &Path, tcp: SocketAddr) -> String {
    let default = Overrides::default();
    let defaults = Config::parse("", [], &default).unwrap_or_default();
    let mut options = String::new();
    if data != defaults.node.data {
        options.push_str(&format!(" --data {}", shell_word(&data.to_string_lossy())));
    }
    if tcp != defaults.tcp.listen {
        options.push_str(&format!(" --tcp {tcp}"));
    }
    format!(
        "Two people talk, each in a terminal of their own:\n  \
         convoke chat --user alice --to bob{options}\n  convoke chat --user bob --to alice{options}\n"
    )
}

/// The same in a browser: links that log in by themselves. Empty without any.
pub fn page_text(ws: SocketAddr, users: impl Iterator<Item = (&'static str, String)>) -> String {
    let links: String =
        users.map(|(user, token)| format!("  {user}: http://{ws}/#token={token}\n")).collect();
    if links.is_empty() { links } else { format!("Or each in a browser window, within an hour:\n{links}") }
}

/// A word as a shell takes it.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=@%:,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_commands_fit_how_the_node_was_started() {
        let plain = welcome_text(Path::new("convoke-data"), ([127, 0, 0, 1], 7_700).into());
        assert!(plain.contains("\n  convoke chat --user alice --to bob\n"), "{plain}");
        let other = welcome_text(Path::new("/tmp/it's"), ([127, 0, 0, 1], 9).into());
        assert_eq!(page_text(([127, 0, 0, 1], 7_701).into(), std::iter::empty()), "");
        let pages = page_text(([127, 0, 0, 1], 7_701).into(), [("alice", "x.y.z".to_owned())].into_iter());
        assert!(pages.contains("\n  alice: http://127.0.0.1:7701/#token=x.y.z\n"), "{pages}");
        assert!(other.contains("--to alice --data '/tmp/it'\\''s' --tcp 127.0.0.1:9\n"), "{other}");
    }
}
