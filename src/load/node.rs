//! The node that a load test measures: one that runs already, or one of its own on a temporary store.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::LoadError;
use super::process::{Sample, Usage};
use crate::auth::SigningKey;
use crate::auth::key::KEY_FILE;
use crate::node_file::NodeFile;

/// How long a node of the load test's own may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a node's metrics may take.
const METRICS_WITHIN: Duration = Duration::from_secs(5);
/// The most that is believed to be metrics.
const MAX_METRICS_BYTES: u64 = 16 << 20;
/// What is shown of the log of a node that failed.
const SHOWN_LOG_BYTES: usize = 2_000;

/// Which node is measured.
#[derive(Debug, Clone)]
pub enum Which {
    /// One that the load test starts and stops, on a temporary store.
    Own,
    /// One that runs.
    Running {
        /// Where its clients connect; of a cluster, several.
        tcp: Vec<SocketAddr>,
        /// The data directory, with its token key and the number of its process.
        data: Option<PathBuf>,
        /// The token key, if it is not in the data directory.
        key: Option<PathBuf>,
        /// Where its metrics are, to learn what it uses if it is not a process of this machine.
        admin: Vec<SocketAddr>,
    },
}

/// A node to be measured.
#[derive(Debug)]
pub struct Node {
    tcp: Vec<SocketAddr>,
    websocket: Vec<SocketAddr>,
    key: SigningKey,
    key_file: PathBuf,
    data: Option<PathBuf>,
    meter: Meter,
    own: Option<OwnNode>,
}

/// How it is found out what a node uses.
#[derive(Debug)]
enum Meter {
    Process(u32),
    Metrics(Vec<SocketAddr>),
    Unknown,
}

/// What a node had used at one moment.
#[derive(Debug)]
pub enum NodeSample {
    /// As the kernel says.
    Process(Sample),
    /// As its metrics say: resident memory in bytes and seconds of CPU.
    Metrics(Usage),
}

impl Node {
    /// Finds the node, or starts it.
    ///
    /// # Errors
    /// There is no key for it, or a node of the load test's own does not start.
    pub fn prepare(which: Which) -> Result<Self, LoadError> {
        match which {
            Which::Own => Self::own(OwnNode::start()?),
            Which::Running { tcp, data, key, admin } => {
                let key_file = key.unwrap_or_else(|| data.clone().unwrap_or_default().join(KEY_FILE));
                let known = data.as_deref().and_then(|data| NodeFile::read(data).ok());
                let meter = match known.as_ref().filter(|node| tcp.contains(&node.tcp)) {
                    Some(node) if tcp.len() == 1 => Meter::Process(node.pid),
                    _ if !admin.is_empty() => Meter::Metrics(admin),
                    _ => Meter::Unknown,
                };
                let websocket = known.as_ref().map(|node| node.ws).into_iter().collect();
                Ok(Self {
                    tcp,
                    websocket,
                    key: SigningKey::load(&key_file)?,
                    key_file,
                    data,
                    meter,
                    own: None,
                })
            }
        }
    }

    /// Starts one on what lies in `data/` below a directory, which goes with the node.
    ///
    /// # Errors
    /// It does not start.
    pub fn on(directory: PathBuf) -> Result<Self, LoadError> {
        Self::own(OwnNode::start_in(directory)?)
    }

    fn own(own: OwnNode) -> Result<Self, LoadError> {
        let data = own.data();
        let key_file = data.join(KEY_FILE);
        Ok(Self {
            tcp: vec![own.tcp],
            websocket: NodeFile::read(&data).map(|node| node.ws).into_iter().collect(),
            key: SigningKey::load(&key_file)?,
            key_file,
            data: Some(data),
            meter: Meter::Process(own.child.id()),
            own: Some(own),
        })
    }

    /// Where its clients connect.
    #[must_use]
    pub fn tcp(&self) -> &[SocketAddr] {
        &self.tcp
    }

    /// Where its clients connect by WebSocket; empty if that is not known.
    #[must_use]
    pub fn websocket(&self) -> &[SocketAddr] {
        &self.websocket
    }

    /// Makes the tokens of its users.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The file of the key.
    #[must_use]
    pub fn key_file(&self) -> &Path {
        &self.key_file
    }

    /// Its data directory, if that is on this machine.
    #[must_use]
    pub fn data(&self) -> Option<&Path> {
        self.data.as_deref()
    }

    /// What it has used up to now; `None` if that cannot be found out.
    ///
    /// # Errors
    /// It should be possible to find out, and is not: the node has died.
    pub fn sample(&self) -> Result<Option<NodeSample>, LoadError> {
        Ok(match &self.meter {
            Meter::Process(pid) => Some(NodeSample::Process(Sample::of(*pid)?)),
            Meter::Metrics(addresses) => {
                let mut sum = Usage { rss_bytes: 0, cpu_s: 0.0 };
                for address in addresses {
                    let metrics = fetch_metrics(*address).map_err(LoadError::doing("reading metrics"))?;
                    let usage =
                        usage_in(&metrics).ok_or(LoadError::Broken("the metrics do not say what is used"))?;
                    sum.rss_bytes += usage.rss_bytes;
                    sum.cpu_s += usage.cpu_s;
                }
                Some(NodeSample::Metrics(sum))
            }
            Meter::Unknown => None,
        })
    }

    /// Stops it, if it is the load test's own.
    ///
    /// # Errors
    /// It did not stop in order.
    pub fn stop(self) -> Result<(), LoadError> {
        self.own.map_or(Ok(()), OwnNode::stop)
    }
}

impl NodeSample {
    /// Its resident memory.
    #[must_use]
    pub fn rss_bytes(&self) -> u64 {
        match self {
            Self::Process(sample) => sample.rss_bytes(),
            Self::Metrics(usage) => usage.rss_bytes,
        }
    }

    /// What was used since an earlier sample of the same node.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Usage> {
        match (self, earlier) {
            (Self::Process(now), Self::Process(earlier)) => Some(now.since(earlier)),
            (Self::Metrics(now), Self::Metrics(earlier)) => {
                Some(Usage { rss_bytes: now.rss_bytes, cpu_s: (now.cpu_s - earlier.cpu_s).max(0.0) })
            }
            _ => None,
        }
    }
}

fn fetch_metrics(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, METRICS_WITHIN)?;
    stream.set_read_timeout(Some(METRICS_WITHIN))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_METRICS_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Looks for two values in metrics as Prometheus reads them.
fn usage_in(metrics: &str) -> Option<Usage> {
    let value = |name: &str| {
        let mut values =
            metrics.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        values.next()
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of memory")]
    let rss_bytes = value("convoke_process_resident_memory_bytes ")? as u64;
    Some(Usage { rss_bytes, cpu_s: value("convoke_process_cpu_seconds_total ")? })
}

/// A new directory below the system's one for temporary files.
///
/// # Errors
/// It cannot be made.
pub fn temporary_directory() -> Result<PathBuf, LoadError> {
    let name = format!("convoke-bench-{}", uuid::Uuid::new_v4().simple());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir(&directory).map_err(LoadError::file(&directory))?;
    Ok(directory)
}

/// A node on a temporary store; both go when this is dropped.
#[derive(Debug)]
struct OwnNode {
    child: Child,
    directory: PathBuf,
    tcp: SocketAddr,
}

impl OwnNode {
    fn start() -> Result<Self, LoadError> {
        Self::start_in(temporary_directory()?)
    }

    /// Starts it on what lies in `data/` below a directory, which goes with the node.
    fn start_in(directory: PathBuf) -> Result<Self, LoadError> {
        let log = directory.join("log");
        let log = File::create(&log).map_err(LoadError::file(log))?;
        let binary = std::env::current_exe().map_err(LoadError::doing("finding this binary"))?;
        let any = "127.0.0.1:0";
        let child = Command::new(binary)
            .args(["serve", "--tcp", any, "--ws", any, "--admin", any, "--data"])
            .arg(directory.join("data"))
            // A configuration that happens to lie here is for another node.
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(LoadError::doing("starting a node"))?;
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut node = Self { child, directory, tcp: unknown };
        node.tcp = node.wait_until_ready()?;
        Ok(node)
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn wait_until_ready(&mut self) -> Result<SocketAddr, LoadError> {
        let stdout = self.child.stdout.take().ok_or(LoadError::ProcessEnded)?;
        let (said, heard) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            // A node that ends without a word is one that said nothing.
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = said.send(line);
        });
        let line = heard.recv_timeout(PATIENCE).map_err(|_| self.failed("the node was not ready in time"))?;
        tcp_address(&line).ok_or_else(|| self.failed("the node did not start"))
    }

    fn failed(&self, problem: &'static str) -> LoadError {
        let log = fs::read(self.directory.join("log")).unwrap_or_default();
        let shown = &log[log.len().saturating_sub(SHOWN_LOG_BYTES)..];
        LoadError::Node { problem, log: String::from_utf8_lossy(shown).into_owned() }
    }

    fn stop(mut self) -> Result<(), LoadError> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)
                .map_err(|errno| LoadError::doing("stopping the node")(errno.into()))?;
        }
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().map_err(LoadError::doing("waiting for the node"))? {
                return if status.success() {
                    Ok(())
                } else {
                    Err(self.failed("the node did not stop in order"))
                };
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "a thread of its own, waiting for another process"
            )]
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(self.failed("the node did not stop in time"))
    }
}

impl Drop for OwnNode {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What cannot be removed lies in the system's directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The TCP address in the line that a node prints when it is ready.
fn tcp_address(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace();
    (words.next()? == "ready").then_some(())?;
    words.find_map(|word| word.strip_prefix("tcp=")).and_then(|address| address.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_node_is_understood() {
        let line = "ready tcp=127.0.0.1:7700 ws=127.0.0.1:7701 admin=127.0.0.1:7702\n";
        assert_eq!(tcp_address(line), Some(SocketAddr::from(([127, 0, 0, 1], 7700))));
        for other in ["", "\n", "ready\n", "tcp=127.0.0.1:7700", "ready tcp=nowhere"] {
            assert_eq!(tcp_address(other), None, "{other:?}");
        }
    }

    #[test]
    fn usage_is_found_among_metrics() {
        let metrics = "HTTP/1.1 200 OK\r\n\r\n# TYPE convoke_process_cpu_seconds counter\n\
                       convoke_process_cpu_seconds_total 12.5\n\
                       convoke_process_resident_memory_bytes 20480000\n# EOF\n";
        assert_eq!(usage_in(metrics), Some(Usage { rss_bytes: 20_480_000, cpu_s: 12.5 }));
        assert_eq!(usage_in("convoke_process_cpu_seconds_total 12.5\n"), None);
    }
}
