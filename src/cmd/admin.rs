//! `convoke admin`: asks the admin listener of a running node, with a token made on the spot.

mod http;
mod looking;
mod table;

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use convoke_protocol::id::{ConversationId, DeviceId, SessionId, UserId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::credentials::KeySource;
use crate::auth::Role;
use crate::config::ReloadReport;
use crate::config::section::KeyChange;
use crate::node_file::NodeFile;
use crate::operator::{
    AuditPage, Kicked, MAX_LINES, MoveShard, PageOf, WhichConversation, WhichNode, WhichSessions, WhichUser,
};

/// The subject of the tokens made here, as it stands in the node's log.
const OPERATOR: &str = "operator";

/// How long the token of one call is good.
const TOKEN_TTL: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  convoke admin sessions                      who is connected, and what waits for them
  convoke admin sessions alice --json
  convoke admin kick alice --device phone
  convoke admin conversation g:team
  convoke admin nodes                         the nodes of the cluster
  convoke admin drain n2                      send n2's clients and shards elsewhere, and end it
  convoke admin memory                        where the node's memory is
  convoke admin backup /backup/monday.convoke
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
    /// Who is connected, and what waits for them
    Sessions {
        /// Only this user's
        user: Option<UserId>,
        /// At most so many lines
        #[arg(long, default_value_t = 100, value_parser = lines())]
        limit: u64,
        #[command(flatten)]
        asking: Asking,
    },
    /// Close a user's sessions; the clients are told, and do not come back by themselves
    Kick {
        /// Whose
        #[arg(required_unless_present = "session")]
        user: Option<UserId>,
        /// Only on this device
        #[arg(long)]
        device: Option<DeviceId>,
        /// Only the session with this id
        #[arg(long)]
        session: Option<SessionId>,
        #[command(flatten)]
        asking: Asking,
    },
    /// The conversations there are, by id
    Conversations {
        #[command(flatten)]
        page: Page,
        #[command(flatten)]
        asking: Asking,
    },
    /// What there is to say about one conversation
    Conversation {
        /// Its id, such as d:alice:bob or g:team
        id: ConversationId,
        #[command(flatten)]
        asking: Asking,
    },
    /// The groups there are, by id
    Groups {
        #[command(flatten)]
        page: Page,
        #[command(flatten)]
        asking: Asking,
    },
    /// Say whether the node is ready; fails if it is not
    Ready(Target),
    /// The nodes of the cluster
    Nodes(Asking),
    /// Which node serves which shard
    Shards(Asking),
    /// Have a node give back its shards, send its clients elsewhere, and end
    Drain {
        /// The node's name
        node: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Have a shard served by another node, as long as that is there
    Move {
        /// The shard's number
        shard: u32,
        /// The node's name [default: where the shard would be by itself]
        node: Option<String>,
        #[command(flatten)]
        asking: Asking,
    },
    /// Where a user is connected, on all nodes
    User {
        /// The user's id
        user: UserId,
        #[command(flatten)]
        asking: Asking,
    },
    /// Where the node's memory is
    Memory(Asking),
    /// Have the node read its configuration again; says what changed and what needs a restart
    Reload(Asking),
    /// Write a backup of the node's store while it runs
    Backup {
        /// The file; nothing is written over
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// What services and operators did lately; the log has it all, under `convoke::audit`
    Audit {
        /// At most so many of the last lines
        #[arg(long, default_value_t = 100, value_parser = lines())]
        limit: u64,
        #[command(flatten)]
        asking: Asking,
    },
}

fn lines() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=MAX_LINES as u64)
}

#[derive(Debug, clap::Args)]
struct Page {
    /// Only those that are in memory
    #[arg(long)]
    active: bool,
    /// Those above this id
    #[arg(long, value_name = "ID")]
    after: Option<ConversationId>,
    /// At most so many lines
    #[arg(long, default_value_t = 100, value_parser = lines())]
    limit: u64,
}

impl From<&Page> for PageOf {
    fn from(page: &Page) -> Self {
        Self { after: page.after.clone(), limit: count(page.limit), active: page.active }
    }
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(MAX_LINES)
}

#[derive(Debug, clap::Args)]
struct Asking {
    #[command(flatten)]
    target: Target,
    /// Print the node's answer as it is
    #[arg(long)]
    json: bool,
}

/// Which node is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    #[command(flatten)]
    pub(super) key: KeySource,
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

    /// Whether the node is named by its admin listener, rather than by its data directory.
    pub(super) fn names_a_node(&self) -> bool {
        self.admin.is_some()
    }

    /// Asks; what follows is the answer's body, if the node agreed.
    fn ask(&self, call: &str, body: &[u8]) -> anyhow::Result<http::Answer> {
        let user = UserId::new(OPERATOR)?;
        let token = self.key.load()?.sign(&user, Role::Service, TOKEN_TTL);
        let address = self.address()?;
        let unheard = || format!("no answer from the admin listener {address}");
        let mut answer = http::post(address, &format!("/v1/{call}"), &token, body).with_context(unheard)?;
        if answer.status != 200 {
            let said = answer.whole().with_context(unheard)?;
            bail!("the node answered {}: {}", answer.status, String::from_utf8_lossy(&said).trim());
        }
        Ok(answer)
    }

    /// Whether the node says that it is ready: needs no token.
    fn ready(&self) -> anyhow::Result<ExitCode> {
        let address = self.address()?;
        let unheard = || format!("no answer from the admin listener {address}");
        let mut answer = http::get(address, "/readyz").with_context(unheard)?;
        let said = answer.whole().with_context(unheard)?;
        let said = String::from_utf8_lossy(&said);
        if answer.status != 200 {
            bail!("the node is not ready: {}", said.trim());
        }
        super::print_line(&said)
    }

    /// Writes a backup of the running node's store; how many bytes it has.
    ///
    /// # Errors
    /// The file is there already or cannot be written, or the node did not send all of it.
    pub(super) fn backup(&self, file: &Path) -> anyhow::Result<u64> {
        let mut out = NewFile::create(file)?;
        let bytes = self.ask("backup", b"{}")?.copy_to(&mut out.file);
        let bytes = bytes.context("the backup did not come whole; nothing of it is kept")?;
        out.keep()?;
        Ok(bytes)
    }
}

/// A file that is there under its name only once it is whole.
pub(super) struct NewFile {
    pub(super) file: File,
    part: PathBuf,
    name: PathBuf,
    kept: bool,
}

impl NewFile {
    /// Begins one; it must not be there yet.
    ///
    /// # Errors
    /// It is, or the directory cannot be written.
    pub(super) fn create(name: &Path) -> anyhow::Result<Self> {
        if name.exists() {
            bail!("{} is there already: nothing is written over", name.display());
        }
        let mut part = name.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        Ok(Self { file, part, name: name.to_owned(), kept: false })
    }

    /// It is whole: durable, then under its name.
    ///
    /// # Errors
    /// The disk says no.
    pub(super) fn keep(mut self) -> anyhow::Result<()> {
        let kept = self.file.flush().and_then(|()| self.file.sync_all());
        kept.and_then(|()| std::fs::rename(&self.part, &self.name))
            .with_context(|| format!("cannot keep {}", self.name.display()))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed has a name that says that it is a part.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

impl Asking {
    /// Asks, and prints the answer: as it is, or as `show` has it.
    fn print<T: DeserializeOwned>(
        &self,
        call: &str,
        question: &impl Serialize,
        show: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<ExitCode> {
        let body = self.target.ask(call, &serde_json::to_vec(question)?)?.whole()?;
        if self.json {
            return super::print_line(&String::from_utf8_lossy(&body));
        }
        let answer = serde_json::from_slice(&body).context("the node's answer cannot be read")?;
        super::print_line(&show(&answer))
    }
}

/// Runs it.
///
/// # Errors
/// There is no node or no key, or the node refused.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Sessions { user, limit, asking } => {
            let which =
                WhichSessions { user: user.clone(), limit: Some(count(*limit)), ..WhichSessions::default() };
            asking.print("sessions", &which, looking::sessions)
        }
        What::Kick { user, device, session, asking } => {
            let which = WhichSessions {
                user: user.clone(),
                device: device.clone(),
                session: *session,
                ..WhichSessions::default()
            };
            asking.print("kick", &which, |kicked: &Kicked| format!("{} sessions closed", kicked.kicked))
        }
        What::Conversations { page, asking } => {
            asking.print("conversations", &PageOf::from(page), looking::conversations)
        }
        What::Conversation { id, asking } => {
            let which = WhichConversation { conversation: id.clone() };
            asking.print("conversation", &which, looking::conversation)
        }
        What::Groups { page, asking } => asking.print("groups", &PageOf::from(page), looking::groups),
        What::Ready(target) => target.ready(),
        What::Nodes(asking) => asking.print("nodes", &serde_json::json!({}), looking::nodes),
        What::Shards(asking) => asking.print("shards", &serde_json::json!({}), looking::shards),
        What::Drain { node, asking } => {
            let done = |_: &serde_json::Value| format!("{node} drains");
            asking.print("drain", &WhichNode { node: node.clone() }, done)
        }
        What::Move { shard, node, asking } => {
            let place = node.as_deref().unwrap_or("where it would be");
            let done = |_: &serde_json::Value| format!("shard {shard} goes to {place}");
            asking.print("move", &MoveShard { shard: *shard, node: node.clone() }, done)
        }
        What::User { user, asking } => asking.print("user", &WhichUser { user: user.clone() }, looking::user),
        What::Memory(asking) => asking.print("memory", &serde_json::json!({}), looking::memory),
        What::Reload(asking) => asking.print("reload", &serde_json::json!({}), describe),
        What::Backup { file, target } => {
            let bytes = target.backup(file)?;
            super::print_line(&format!("{}: {bytes} bytes", file.display()))
        }
        What::Audit { limit, asking } => {
            asking.print("audit", &AuditPage { limit: Some(count(*limit)) }, looking::audit)
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

    #[test]
    fn a_file_is_there_only_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("backup");
        let mut half = NewFile::create(&name).unwrap();
        half.file.write_all(b"half").unwrap();
        drop(half);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let mut whole = NewFile::create(&name).unwrap();
        whole.file.write_all(b"whole").unwrap();
        whole.keep().unwrap();
        assert_eq!(std::fs::read(&name).unwrap(), b"whole");
        assert!(NewFile::create(&name).is_err(), "nothing is written over");
    }
}
