//! A node: a `convoke serve` process with a data directory of its own.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use convoke_protocol::framing::Framing;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;

use super::command::{Collected, Finished, convoke, finished};
use super::eventually;

/// How a node is to be started.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    config: String,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
    token_key: Option<String>,
    /// What `--tcp`, `--ws` and `--admin` say.
    listen: [String; 3],
}

impl Default for Setup {
    fn default() -> Self {
        let any = || "127.0.0.1:0".to_owned();
        let listen = [any(), any(), any()];
        Self { config: String::new(), env: Vec::new(), wrapper: Vec::new(), token_key: None, listen }
    }
}

impl Setup {
    /// The defaults, and what this TOML says.
    pub(crate) fn config(toml: &str) -> Self {
        Self { config: toml.to_owned(), ..Self::default() }
    }

    /// Adds a variable to the node's environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the node as the last arguments of another command, which ends when the node does.
    pub(crate) fn wrapped<S: Into<String>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Takes a variable away again.
    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(other, _)| other != name);
        self
    }

    /// What it signs with, as others do too.
    pub(crate) fn token_key(mut self, key: &str) -> Self {
        self.token_key = Some(key.to_owned());
        self
    }

    /// Where clients are to connect.
    pub(crate) fn listen(mut self, tcp: &str, ws: &str) -> Self {
        [self.listen[0], self.listen[1]] = [tcp.to_owned(), ws.to_owned()];
        self
    }

    /// Where operators are to connect.
    pub(crate) fn admin(mut self, admin: &str) -> Self {
        admin.clone_into(&mut self.listen[2]);
        self
    }

    /// Starts it in a temporary directory.
    pub(crate) async fn start(self) -> TestNode {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        self.start_in(Arc::new(home), data).await
    }

    /// Starts it on a data directory below `home`.
    pub(crate) async fn start_in(self, home: Arc<TempDir>, data: PathBuf) -> TestNode {
        let mut node = TestNode { setup: self, home, data, tokens: Mutex::default(), running: None };
        node.start_again().await;
        node
    }

    /// Starts it where it cannot start, and says how it ended.
    pub(crate) async fn refused(&self, data: &Path) -> Finished {
        let mut process = Process::spawn(self, data.parent().unwrap(), data);
        let ended = process.ended().await;
        assert_eq!(ended.stdout, "", "a node that did not start is not ready");
        ended
    }
}

struct Process {
    child: Child,
    /// `None` once it was collected.
    output: Option<(Collected, Collected)>,
    /// The node itself, where `child` is a wrapper.
    pid: Option<u32>,
}

impl Process {
    fn spawn(setup: &Setup, home: &Path, data: &Path) -> Self {
        let serve = convoke();
        let config = home.join("node.toml");
        std::fs::write(&config, &setup.config).unwrap();
        if let Some(key) = &setup.token_key {
            std::fs::create_dir_all(data).unwrap();
            let file = data.join("token.key");
            std::fs::write(&file, key).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let mut command = match setup.wrapper.split_first() {
            None => serve,
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(serve.get_program());
                for (name, value) in serve.get_envs() {
                    assert!(value.is_none(), "convoke() only takes away");
                    command.env_remove(name);
                }
                command
            }
        };
        let [tcp, ws, admin] = &setup.listen;
        command.arg("serve").arg("--config").arg(config).arg("--data").arg(data);
        command.args(["--tcp", tcp, "--ws", ws, "--admin", admin]);
        command.envs(setup.env.iter().cloned()).current_dir(home);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = Collected::from(child.stdout.take().unwrap());
        let stderr = Collected::from(child.stderr.take().unwrap());
        Self { child, output: Some((stdout, stderr)), pid: None }
    }

    fn so_far(&self) -> (String, String) {
        let (stdout, stderr) = self.output.as_ref().unwrap();
        (stdout.so_far(), stderr.so_far())
    }

    async fn ready(&mut self, data: &Path) -> Addresses {
        let line = eventually("the node is ready", async || {
            let (stdout, stderr) = self.so_far();
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the node ended with {status}\n{stdout}\n{stderr}");
            }
            stdout.lines().next().filter(|_| stdout.contains('\n')).map(str::to_owned)
        })
        .await;
        let file: NodeFile = serde_json::from_slice(&std::fs::read(data.join("node.json")).unwrap()).unwrap();
        let NodeFile { pid, tcp, ws, admin } = file;
        assert_eq!(line, format!("ready tcp={tcp} ws={ws} admin={admin}"));
        self.pid = Some(pid);
        Addresses { tcp, ws, admin }
    }

    async fn ended(&mut self) -> Finished {
        let status = eventually("the process ends", async || self.child.try_wait().unwrap()).await;
        let (stdout, stderr) = self.output.take().unwrap();
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: stdout.whole(),
            stderr: stderr.whole(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whoever was waited for may be somebody else by now.
        if self.output.is_none() {
            return;
        }
        if let Some(pid) = self.pid {
            signal(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("── standard error of the node:\n{}", last_lines(&self.so_far().1));
        }
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let mut shown = String::new();
    for line in &lines[lines.len().saturating_sub(40)..] {
        let _ = writeln!(shown, "{line}");
    }
    shown
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may be gone already.
    let _ = kill_process(pid, signal);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    pid: u32,
    tcp: SocketAddr,
    ws: SocketAddr,
    admin: SocketAddr,
}

/// Where a node listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) tcp: SocketAddr,
    pub(crate) ws: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A node and its directory. It is killed when it is dropped.
pub(crate) struct TestNode {
    setup: Setup,
    // Kept for its own end, which removes it.
    home: Arc<TempDir>,
    data: PathBuf,
    tokens: Mutex<HashMap<String, String>>,
    running: Option<(Process, Addresses)>,
}

impl TestNode {
    /// A node with the default configuration.
    pub(crate) async fn start() -> Self {
        Setup::default().start().await
    }

    /// The node's data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// A directory for what a test wants to keep beside it.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    fn process(&mut self) -> &mut Process {
        &mut self.running.as_mut().expect("the node runs").0
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> Addresses {
        self.running.as_ref().expect("the node runs").1
    }

    /// Where clients of a framing connect.
    pub(crate) fn address(&self, framing: Framing) -> SocketAddr {
        match framing {
            Framing::Tcp => self.addresses().tcp,
            Framing::WebSocket(_) => self.addresses().ws,
        }
    }

    /// The node's process.
    pub(crate) fn pid(&self) -> u32 {
        self.running.as_ref().and_then(|(process, _)| process.pid).expect("the node runs")
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.running.as_ref().expect("the node runs").0.so_far().1
    }

    /// A number of the process from `/proc`, such as `VmRSS`, in bytes.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Starts it on its directory, listening where its setup says.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let mut process = Process::spawn(&self.setup, self.home.path(), &self.data);
        let addresses = process.ready(&self.data).await;
        self.running = Some((process, addresses));
    }

    /// From now on it is started like this.
    pub(crate) fn change(&mut self, change: impl FnOnce(Setup) -> Setup) {
        self.setup = change(std::mem::take(&mut self.setup));
    }

    /// From now on it is started where it listens now.
    pub(crate) fn keep_addresses(&mut self) {
        let Addresses { tcp, ws, admin } = self.addresses();
        self.setup.listen = [tcp, ws, admin].map(|address| address.to_string());
    }

    /// Changes the configuration file of the running node.
    pub(crate) fn write_config(&mut self, toml: &str) {
        toml.clone_into(&mut self.setup.config);
        std::fs::write(self.home.path().join("node.toml"), toml).unwrap();
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Finished {
        let ended = self.process().ended().await;
        self.running = None;
        ended
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        let ended = self.ended().await;
        assert!(ended.signal == Some(9) || ended.code == Some(128 + 9), "{ended:?}");
    }

    /// SIGTERM, and an end in order.
    pub(crate) async fn stop(&mut self) -> Finished {
        self.signal(Signal::TERM);
        let ended = self.ended().await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended
    }

    /// A token made by `convoke token`.
    pub(crate) async fn token(&self, user: &str) -> String {
        let known = self.tokens.lock().unwrap().get(user).cloned();
        if let Some(token) = known {
            return token;
        }
        let token = self.token_with(user, &[]).await;
        self.tokens.lock().unwrap().insert(user.to_owned(), token.clone());
        token
    }

    /// A token made with more arguments than the user.
    pub(crate) async fn token_with(&self, user: &str, more: &[&str]) -> String {
        let data = self.data.to_str().unwrap();
        let arguments = ["token", "--data", data, "--user", user];
        finished(arguments.iter().chain(more)).await.good().trim_end().to_owned()
    }

    /// What `convoke check` says of the stopped node's store: it must be good.
    pub(crate) async fn check(&self) {
        assert!(self.running.is_none(), "a store is checked when nobody writes it");
        finished(["check".as_ref(), "--data".as_ref(), self.data.as_os_str()]).await.good();
    }
}
