//! `convoke chat`: a chat in the terminal, and the same for scripts when standard input is no terminal.

mod command;
mod input;
mod outgoing;
mod piped;
mod terminal;
mod text;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use convoke_client::{Client, ClientConfig, ClientEvent, Events, Start, Tls, TokenSource};
use convoke_protocol::id::{ConversationId, DeviceId, GroupId, Seq, UserId};
use convoke_protocol::message::Cursor;
use convoke_protocol::request::messages::Target;
use convoke_protocol::request::session::DeviceClass;
use uuid::Uuid;

use super::credentials::KeySource;
use crate::auth::Role;
use crate::node_file::NodeFile;

const EXAMPLES: &str = "\
Examples:
  convoke chat --user alice --to bob          talk with bob
  convoke chat --user alice                   see every conversation, then /to somebody
  echo hello | convoke chat --user alice --to bob
  convoke chat --user alice --to bob </dev/null    print what was said
  echo '/create team bob carol' | convoke chat --user alice --commands
  convoke chat --user alice --group team           talk in a group

With standard input that is no terminal, every line of it is sent, and every message
(history first, then live) is printed once as CONVERSATION SEQ SENDER TEXT. In TEXT,
a line break is \\n, another control character is \\u{...}, a backslash is \\\\. At the
end of input the command waits until everything is acknowledged.";

/// Where a node listens unless told otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:7700";

/// How long a token made here is good: a login, not a session, needs one.
const TOKEN_TTL: Duration = Duration::from_secs(600);

/// How long a node may take to be there at the beginning: long enough for one that is just starting.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a send is tried while the server is away; a little less than the default dedup window.
const SEND_DEADLINE: Duration = Duration::from_secs(110);

/// The longest wait between attempts to connect: a person is looking.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// The arguments of `convoke chat`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Who you are
    #[arg(long, value_name = "NAME")]
    user: UserId,
    #[command(flatten)]
    key: KeySource,
    /// A token of that user, instead of one made with the node's key
    #[arg(long, value_name = "TOKEN", conflicts_with = "key")]
    token: Option<String>,
    /// Where to connect, [default: the node of the data directory, or 127.0.0.1:7700]
    #[arg(long, value_name = "ADDR[,ADDR]", value_delimiter = ',')]
    tcp: Vec<String>,
    /// Talk with this user; yourself for notes
    #[arg(long, value_name = "USER", conflicts_with = "group")]
    to: Option<UserId>,
    /// Talk in this group
    #[arg(long, value_name = "ID")]
    group: Option<GroupId>,
    /// The name of this device, [default: a new one every time]
    #[arg(long, value_name = "NAME")]
    device: Option<DeviceId>,
    /// From standard input that is no terminal: lines that begin with / are commands, answered in lines that begin with #
    #[arg(long)]
    commands: bool,
    /// Connect with TLS and trust the certificate authorities in this PEM file
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// A session that has begun, and whom it is for.
struct Chat {
    client: Client,
    events: Events,
    user: UserId,
    target: Option<Target>,
    /// Whether lines of a script may be commands.
    commands: bool,
}

/// Runs it.
///
/// # Errors
/// No token, no node, or what standard input or output say.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let code = runtime.block_on(async {
        let chat = begin(args, interactive).await?;
        if interactive { terminal::run(chat).await } else { piped::run(chat).await }
    });
    // A thread may still wait for standard input; what it would read is of no use any more.
    runtime.shutdown_background();
    code
}

async fn begin(args: &Args, interactive: bool) -> anyhow::Result<Chat> {
    let target = match (&args.to, &args.group) {
        (Some(user), _) => Some(Target::User(user.clone())),
        (_, Some(group)) => Some(Target::Group(group.clone())),
        _ => None,
    };
    let addresses = addresses(args);
    let device = match &args.device {
        Some(device) => device.clone(),
        None => DeviceId::new(&format!("chat-{}", &Uuid::new_v4().simple().to_string()[..8]))?,
    };
    let mut config = ClientConfig::new(addresses.clone(), token(args)?, device);
    config.device_class = DeviceClass::DESKTOP;
    config.app = "convoke chat".to_owned();
    config.version = env!("CARGO_PKG_VERSION").to_owned();
    config.tls = args.ca.as_ref().map(|path| trust(path)).transpose()?;
    config.start = start(args, target.as_ref(), interactive);
    // The device is gone when this process ends: there is nobody to keep cursors for.
    config.keep_cursors = false;
    config.connect_deadline = CONNECT_DEADLINE;
    config.send_deadline = SEND_DEADLINE;
    config.backoff.max = MAX_BACKOFF;
    let connecting = Client::connect(config).await;
    let (client, mut events) =
        connecting.with_context(|| format!("no session at {}", addresses.join(", ")))?;
    let user = loop {
        match events.next().await {
            Some(ClientEvent::Connected { user, .. }) => break user,
            // The node was not there at once.
            Some(ClientEvent::ConnectFailed { .. }) => {}
            other => bail!("the session ended before it began: {other:?}"),
        }
    };
    ensure!(user == args.user, "the token is {user}'s, not {}'s", args.user);
    Ok(Chat { client, events, user, target, commands: args.commands })
}

fn addresses(args: &Args) -> Vec<String> {
    if !args.tcp.is_empty() {
        return args.tcp.clone();
    }
    // No file: a node that was never started here, or one elsewhere.
    vec![
        NodeFile::read(&args.key.data)
            .map_or_else(|_| DEFAULT_ADDRESS.to_owned(), |node| node.tcp.to_string()),
    ]
}

fn token(args: &Args) -> anyhow::Result<TokenSource> {
    if let Some(token) = &args.token {
        return Ok(token.clone().into());
    }
    let (key, user) = (args.key.load()?, args.user.clone());
    Ok(TokenSource::from_fn(move || Ok(key.sign(&user, Role::User, TOKEN_TTL))))
}

fn trust(path: &std::path::Path) -> anyhow::Result<Tls> {
    let pem = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(Tls::from_ca_pem(&pem)?)
}

/// A script gets everything from the first message; a person sees a page of history, and scrolls back by command.
fn start(args: &Args, target: Option<&Target>, interactive: bool) -> Start {
    match target {
        _ if interactive => Start::from_now(),
        None => Start::from_first(),
        Some(target) => {
            let conversation = target.conversation(&args.user);
            Start { cursors: vec![Cursor { conversation, seq: Seq::ZERO }], ..Start::from_now() }
        }
    }
}

impl Chat {
    fn conversation(&self) -> Option<ConversationId> {
        self.target.as_ref().map(|target| target.conversation(&self.user))
    }
}
