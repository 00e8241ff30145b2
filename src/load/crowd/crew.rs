//! The processes that hold a crowd's connections, all going through the same phases.

use std::io::{self, BufRead as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use uuid::Uuid;

use super::task::{Arrived, CatchingUp, Findings, Lost, Order, Speaking, Stopped, Task};
use super::worker;
use crate::load::LoadError;
use crate::load::node::Node;
use crate::load::process::{Companion, Sample};
use crate::load::report::Progress;
use crate::load::report::conditions::cores;

/// Connections of one process, which come from one address. A process may often have 20,000 descriptors and no more;
/// and of the usual range of 28,232 ports the kernel gives those of one parity first: beyond their 14,116 every bind
/// looks through all of them, which takes milliseconds.
const CONNECTIONS_PER_PROCESS: u32 = 14_000;

/// Who is in the crowd.
#[derive(Debug, Clone)]
pub(in crate::load) struct Shape {
    /// The run's name, part of the users' names.
    pub(in crate::load) run: String,
    /// How many connect.
    pub(in crate::load) connections: u32,
    /// Over WebSocket.
    pub(in crate::load) websocket: bool,
    /// Logins under way at one time, of all together.
    pub(in crate::load) logins_at_once: u32,
    /// Logins per second, of all together; without it as many as can be had.
    pub(in crate::load) logins_per_s: Option<f64>,
    /// What each asks before it counts as back.
    pub(in crate::load) catching_up: CatchingUp,
    /// The group that is spoken to.
    pub(in crate::load) speaking: Option<Speaking>,
}

impl Shape {
    /// A name for a run: its users are those of no other.
    pub(in crate::load) fn new_run() -> String {
        Uuid::new_v4().simple().to_string()[..8].to_owned()
    }
}

/// All processes of a crowd.
#[derive(Debug)]
pub(in crate::load) struct Crew(Vec<Companion>);

/// How many processes: what the load generator does not need is the server's.
fn processes(connections: u32) -> u32 {
    let threads = u32::try_from(cores() / 2).unwrap_or(u32::MAX).max(1);
    connections.div_ceil(CONNECTIONS_PER_PROCESS).max(threads.min(connections))
}

impl Crew {
    /// Starts the processes; they begin to connect.
    pub(in crate::load) fn start(shape: &Shape, node: &Node) -> Result<Self, LoadError> {
        let addresses: Vec<SocketAddr> =
            if shape.websocket { node.websocket().to_vec() } else { node.tcp().to_vec() };
        let key_file = node.key_file().canonicalize().map_err(LoadError::file(node.key_file()))?;
        let loopback = addresses.iter().all(|address| address.is_ipv4() && address.ip().is_loopback());
        let all = processes(shape.connections);
        let first = |n: u32| {
            let first = u64::from(shape.connections) * u64::from(n) / u64::from(all);
            u32::try_from(first).unwrap_or(u32::MAX)
        };
        // Ports of a run that is just over are not free yet: each run has addresses of its own.
        let [net, host] = rand::random::<[u8; 2]>();
        let mut companions = Vec::new();
        for (n, number) in (0..all).zip((2_u8..=250).cycle()) {
            let mut companion = Companion::start(["bench", "crowd-part"])?;
            companion.tell(&Task {
                run: shape.run.clone(),
                addresses: addresses.clone(),
                // From one address to another there are not more connections than ports.
                from: loopback.then(|| Ipv4Addr::new(127, net, host, number)),
                key_file: key_file.clone(),
                first: first(n),
                connections: first(n + 1) - first(n),
                websocket: shape.websocket,
                logins_at_once: (shape.logins_at_once / all).max(1),
                logins_per_s: shape.logins_per_s.map(|per_s| per_s / f64::from(all)),
                catching_up: shape.catching_up,
                speaking: shape.speaking.clone(),
            })?;
            companions.push(companion);
        }
        Ok(Self(companions))
    }

    fn tell(&mut self, order: Order) -> Result<(), LoadError> {
        self.0.iter_mut().try_for_each(|companion| companion.tell(&order))
    }

    /// Waits until all are logged in.
    pub(in crate::load) fn arrived(&mut self) -> Result<Arrived, LoadError> {
        let mut all = Arrived::default();
        for companion in &mut self.0 {
            all.merge(&companion.hear()?);
        }
        Ok(all)
    }

    /// Has all lose their connections; waits until they have.
    pub(in crate::load) fn lose(&mut self) -> Result<(), LoadError> {
        self.tell(Order::Lose)?;
        self.0.iter_mut().try_for_each(|companion| companion.hear().map(|Lost {}| ()))
    }

    /// Has all come back; waits until they are.
    pub(in crate::load) fn come_back(&mut self) -> Result<Arrived, LoadError> {
        self.tell(Order::Return)?;
        self.arrived()
    }

    /// Has the speakers speak: first for a while that does not count, then for the measured time, around which
    /// `sample` is called.
    pub(in crate::load) fn speak<T>(
        &mut self,
        warm_up: Duration,
        measured: Duration,
        progress: &Progress,
        sample: impl Fn() -> Result<T, LoadError>,
    ) -> Result<[T; 2], LoadError> {
        self.tell(Order::Speak)?;
        progress.say("warming up");
        progress.wait(warm_up);
        self.tell(Order::Measure)?;
        progress.say("measuring");
        let before = sample()?;
        progress.wait(measured);
        let after = sample()?;
        Ok([before, after])
    }

    /// Has the speakers stop, and waits until all have everything. `base` is the group's head before.
    pub(in crate::load) fn settle(&mut self, base: u64) -> Result<Findings, LoadError> {
        self.tell(Order::Stop)?;
        let mut head = base;
        for companion in &mut self.0 {
            let Stopped { acked } = companion.hear()?;
            head += acked;
        }
        self.tell(Order::Settle { head })?;
        let mut all = Findings::default();
        for companion in &mut self.0 {
            all.merge(companion.hear()?);
        }
        Ok(all)
    }

    /// The numbers of the processes.
    pub(in crate::load) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Companion::pid).collect()
    }
}

/// What these processes have used up to now.
pub(in crate::load) fn samples(pids: &[u32]) -> Result<Vec<Sample>, LoadError> {
    pids.iter().map(|pid| Sample::of(*pid)).collect()
}

/// Runs as one of several processes: hears its task and orders on stdin, and answers on stdout.
///
/// # Errors
/// What kept it from working.
pub fn run_part() -> Result<(), LoadError> {
    let mut first = String::new();
    io::stdin().lock().read_line(&mut first).map_err(LoadError::doing("hearing what to do"))?;
    if first.is_empty() {
        return Ok(());
    }
    let task = serde_json::from_str(&first)
        .map_err(|source| LoadError::Unintelligible { line: first.clone(), source })?;
    worker::run(task)
}
