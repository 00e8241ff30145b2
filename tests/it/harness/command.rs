//! Running the binary as a command that ends by itself, or when its input ends.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::{eventually, in_time};

/// The binary under test, with nothing of this environment that would configure it.
pub(crate) fn convoke() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CONVOKE_") {
            command.env_remove(name);
        }
    }
    // Not where a cluster.toml might lie.
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
}

/// What became of a command.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    /// The standard output of a command that went well.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// The standard error of a command that failed by itself and said nothing on standard output.
    #[track_caller]
    pub(crate) fn failed(self) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        self.stderr
    }
}

/// Runs `convoke` with these arguments to its end.
pub(crate) async fn finished<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    let mut command = convoke();
    command.args(arguments);
    run(command, Vec::new()).await
}

/// Runs a command to its end with these bytes as standard input.
pub(crate) async fn run(mut command: Command, input: Vec<u8>) -> Finished {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        // One that does not read its input to the end may be right to do so.
        let _ = stdin.write_all(&input);
        drop(stdin);
        child.wait_with_output().unwrap()
    });
    in_time("a command ends", ended).await.unwrap().into()
}

/// What a reader thread has collected so far.
pub(crate) struct Collected {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Collected {
    /// Reads to the end, in a thread of its own.
    pub(crate) fn from(source: impl Read + Send + 'static) -> Self {
        let text = Arc::<Mutex<String>>::default();
        let shared = text.clone();
        let reader = std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                shared.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { text, reader }
    }

    /// The whole lines that have come.
    pub(crate) fn so_far(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// All of it.
    pub(crate) fn whole(self) -> String {
        self.reader.join().unwrap();
        self.text.lock().unwrap().clone()
    }
}

/// A command that is talked to while it runs. It is killed when it is dropped.
pub(crate) struct Talking {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
}

impl Talking {
    /// Starts `convoke` with these arguments.
    pub(crate) fn start<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let mut command = convoke();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = Some(Collected::from(child.stdout.take().unwrap()));
        let stderr = Some(Collected::from(child.stderr.take().unwrap()));
        Self { child, stdin, stdout, stderr }
    }

    /// Writes to its standard input.
    pub(crate) fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// What it has printed so far.
    pub(crate) fn printed(&self) -> String {
        self.stdout.as_ref().unwrap().so_far()
    }

    /// What it has complained of so far.
    pub(crate) fn complaints(&self) -> String {
        self.stderr.as_ref().unwrap().so_far()
    }

    /// Ends its input and waits for its end.
    pub(crate) async fn finish(mut self) -> Finished {
        self.stdin = None;
        let status = eventually("the command ends", async || self.child.try_wait().unwrap()).await;
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.take().unwrap().whole(),
            stderr: self.stderr.take().unwrap().whole(),
        }
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        // Nothing happens to one that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
