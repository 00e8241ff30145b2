//! `convoke admin`: asks the admin listener of a running node, with a token made on the spot.

mod http;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use convoke_protocol::id::UserId;

use super::credentials::KeySource;
use crate::auth::Role;
use crate::config::ReloadReport;
use crate::config::section::KeyChange;
use crate::node_file::NodeFile;

/// The subject of the tokens made here, as it stands in the node's log.
const OPERATOR: &str = "operator";

/// How long the token of one call is good.
const TOKEN_TTL: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  convoke admin reload
  convoke admin reload --data /var/lib/convoke
  convoke admin reload --admin 127.0.0.1:7702 --key /etc/convoke/token.key";

/// The arguments of `convoke admin`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Have the node read its configuration again; says what changed and what needs a restart
    Reload(Target),
}

#[derive(Debug, clap::Args)]
struct Target {
    #[command(flatten)]
    key: KeySource,
    /// The node's admin listener [default: as DIR/node.json says]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
}

impl Target {
    fn address(&self) -> anyhow::Result<SocketAddr> {
        if let Some(address) = self.admin {
            return Ok(address);
        }
        let node = NodeFile::read(&self.key.data).with_context(|| {
            let data = self.key.data.display();
            format!("no node is known to run on {data} (there is no node.json); --data or --admin names one")
        })?;
        Ok(node.admin)
    }

    fn post(&self, path: &str) -> anyhow::Result<http::Response> {
        let user = UserId::new(OPERATOR)?;
        let token = self.key.load()?.sign(&user, Role::Service, TOKEN_TTL);
        let address = self.address()?;
        http::post(address, path, &token)
            .with_context(|| format!("no answer from the admin listener {address}"))
    }
}

/// Runs it.
///
/// # Errors
/// There is no node or no key, or the node refused.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Reload(target) => {
            let response = target.post("/v1/reload")?;
            let body = String::from_utf8_lossy(&response.body);
            if response.status != 200 {
                bail!("the node answered {}: {}", response.status, body.trim());
            }
            let report = serde_json::from_str(&body).context("the node's answer cannot be read")?;
            super::print_line(&describe(&report))
        }
    }
}

fn describe(report: &ReloadReport) -> String {
    let list = |title: &str, changes: &[KeyChange]| {
        let lines = changes.iter().map(|c| format!("\n  {}: {} -> {}", c.key, c.old, c.new));
        if changes.is_empty() { String::new() } else { format!("{title}{}\n", lines.collect::<String>()) }
    };
    let applied = list("applied:", &report.applied);
    let text = applied + &list("needs a restart:", &report.needs_restart);
    if text.is_empty() {
        "nothing changed; the files of keys and certificates were read again".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_by_people() {
        let change = |key: &str| KeyChange { key: key.into(), old: "1".into(), new: "2".into() };
        let report = ReloadReport { applied: vec![change("a.b")], needs_restart: vec![change("c.d")] };
        assert_eq!(describe(&report), "applied:\n  a.b: 1 -> 2\nneeds a restart:\n  c.d: 1 -> 2\n");
        assert!(describe(&ReloadReport::default()).starts_with("nothing changed"));
    }
}
