//! Where to connect next, and when.

use std::collections::VecDeque;
use std::time::Duration;

use convoke_protocol::event::NodeAddress;

/// Addresses learned from a server beyond this number are not kept.
const MAX_LEARNED: usize = 256;

/// The addresses of the configuration and those the servers told.
#[derive(Debug)]
pub(crate) struct Addresses {
    configured: Vec<String>,
    learned: Vec<String>,
    /// Where a server sent us: tried first, once each.
    preferred: VecDeque<String>,
    position: usize,
}

impl Addresses {
    pub(crate) fn new(configured: Vec<String>) -> Self {
        Self { configured, learned: Vec::new(), preferred: VecDeque::new(), position: 0 }
    }

    /// The next address to try; the one that worked last comes first.
    pub(crate) fn next(&mut self) -> String {
        if let Some(address) = self.preferred.pop_front() {
            return address;
        }
        let index = self.position % (self.configured.len() + self.learned.len());
        self.position = index + 1;
        self.configured.get(index).unwrap_or_else(|| &self.learned[index - self.configured.len()]).clone()
    }

    /// A session began at this address: after a loss it is the first to be tried.
    pub(crate) fn worked(&mut self, address: &str) {
        self.preferred.clear();
        if let Some(index) = self.configured.iter().chain(&self.learned).position(|known| known == address) {
            self.position = index;
        }
    }

    /// These are the nodes now.
    pub(crate) fn learn(&mut self, nodes: &[NodeAddress]) {
        self.learned = nodes
            .iter()
            .filter_map(|node| node.tcp.clone())
            .filter(|address| !self.configured.contains(address))
            .take(MAX_LEARNED)
            .collect();
    }

    /// The server sends us there.
    pub(crate) fn prefer(&mut self, nodes: &[NodeAddress]) {
        self.preferred = nodes.iter().filter_map(|node| node.tcp.clone()).take(MAX_LEARNED).collect();
    }
}

/// How long to wait between attempts to connect: doubled each time, with jitter, so that a node's death does not bring
/// its sessions back all at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { min: Duration::from_millis(100), max: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// The wait before attempt `failures` + 1; `random` decides where between a half and the whole of it.
    pub(crate) fn wait(self, failures: u32, random: u64) -> Duration {
        let whole = self.min.saturating_mul(1 << failures.min(16)).min(self.max);
        jittered(whole / 2, whole - whole / 2, random)
    }
}

/// `least` and a random part of `spread`.
pub(crate) fn jittered(least: Duration, spread: Duration, random: u64) -> Duration {
    least + spread.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(tcp: &str) -> NodeAddress {
        NodeAddress { node: tcp.into(), tcp: Some(tcp.into()), ws: None }
    }

    #[test]
    fn what_worked_comes_first_and_then_all_others_in_turn() {
        let mut addresses = Addresses::new(vec!["a".into(), "b".into()]);
        addresses.learn(&[node("b"), node("c")]);
        assert_eq!(
            [addresses.next(), addresses.next(), addresses.next(), addresses.next()],
            ["a", "b", "c", "a"]
        );
        addresses.worked("c");
        assert_eq!([addresses.next(), addresses.next()], ["c", "a"]);
        addresses.prefer(&[node("d")]);
        assert_eq!([addresses.next(), addresses.next()], ["d", "b"]);
        addresses.learn(&[]);
        assert_eq!([addresses.next(), addresses.next()], ["a", "b"]);
    }

    #[test]
    fn waits_grow_to_their_bound() {
        let backoff = Backoff::default();
        assert_eq!(backoff.wait(0, 0), backoff.min / 2);
        assert_eq!(backoff.wait(0, u64::MAX), backoff.min);
        assert_eq!(backoff.wait(30, u64::MAX), backoff.max);
    }
}
