//! `convoke token`: prints a token and nothing else.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use convoke_protocol::id::UserId;

use super::credentials::{KeySource, parse_duration};
use crate::auth::{Role, SYSTEM_USER};

const EXAMPLES: &str = "\
Examples:
  convoke token --user alice
  convoke token --user ops --role service --ttl 5m
  convoke token --data /var/lib/convoke --user bob --ttl 7d";

/// The arguments of `convoke token`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    key: KeySource,
    /// Whose token: 1-128 bytes without white space, control characters and ':'
    #[arg(long, value_name = "NAME")]
    user: UserId,
    /// How long it is good, such as 90s, 15m, 1h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// What for: user (a person's device) or service (an operator or a backend)
    #[arg(long, value_name = "ROLE", default_value = "user")]
    role: Role,
}

/// Runs it.
///
/// # Errors
/// There is no key, or the user is the server's own.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let system = args.role == Role::User && args.user.as_str() == SYSTEM_USER;
    ensure!(!system, "nobody logs in as {SYSTEM_USER}; --role service may");
    super::print_line(&args.key.load()?.sign(&args.user, args.role, args.ttl))
}
