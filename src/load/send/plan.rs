//! Who talks with whom, and which thread of which process does it.
//!
//! Connections and conversations are cut into parts, one for each thread. Both sides of a conversation are in one part:
//! so its ledger is one thread's own, and a push's latency is measured by one clock.

use serde::{Deserialize, Serialize};

/// Connections of one process: a process may often have 20,000 descriptors and no more.
pub(super) const CONNECTIONS_PER_PROCESS: u32 = 18_000;

/// What one thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    /// The number of its first connection among all.
    pub(super) first: u32,
    /// How many connections it has.
    pub(super) connections: u32,
    /// How many conversations they have with each other.
    pub(super) conversations: u32,
    /// How many conversations all parts have together.
    pub(super) conversations_in_all: u32,
    /// Its number among all parts.
    pub(super) number: u32,
    /// How many parts there are.
    pub(super) parts: u32,
}

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A connection would have nobody to talk with.
    #[error(
        "a direct conversation has two sides: {connections} connections need at least {} conversations",
        connections.div_ceil(2)
    )]
    TooFewConversations {
        /// How many there are to be.
        connections: u32,
    },
    /// Two users have one conversation with each other, not more.
    #[error("{connections} connections have at most {most} conversations")]
    TooManyConversations {
        /// How many there are to be.
        connections: u32,
        /// How many conversations are possible.
        most: u64,
    },
}

/// Cuts the work into parts: a list for each process, with a part for each of its threads.
pub(super) fn parts(connections: u32, conversations: u32, threads: u32) -> Result<Vec<Vec<Part>>, PlanError> {
    if connections < 2 || conversations < connections.div_ceil(2) {
        return Err(PlanError::TooFewConversations { connections });
    }
    let processes = connections.div_ceil(CONNECTIONS_PER_PROCESS);
    // A part needs two connections; and where there are many conversations between few, it needs more of them.
    let most_parts = (processes * threads.max(1)).min(connections / 2);
    let mut cuts = (processes..=most_parts).rev().map(|parts| cut(connections, conversations, parts));
    let fits = |part: &Part| u64::from(part.conversations) <= most_pairs(part.connections);
    let Some(parts) = cuts.find(|parts| parts.iter().all(fits)) else {
        let fewest = cut(connections, conversations, processes);
        let most = fewest.iter().map(|part| most_pairs(part.connections)).sum();
        return Err(PlanError::TooManyConversations { connections, most });
    };
    let per_process = parts.len().div_ceil(processes as usize);
    Ok(parts.chunks(per_process).map(<[Part]>::to_vec).collect())
}

/// Cuts into so many parts of about the same size.
fn cut(connections: u32, conversations: u32, parts: u32) -> Vec<Part> {
    let share =
        |all: u32, at: u32| u32::try_from(u64::from(all) * u64::from(at) / u64::from(parts)).unwrap_or(all);
    // Pairs stay whole: with as many conversations as pairs each part has as many as it needs.
    let first = |at: u32| if at == parts { connections } else { share(connections / 2, at) * 2 };
    let needed = |at: u32| (first(at + 1) - first(at)).div_ceil(2);
    let spare = conversations - (0..parts).map(needed).sum::<u32>();
    let part = |number| Part {
        first: first(number),
        connections: first(number + 1) - first(number),
        conversations: needed(number) + share(spare, number + 1) - share(spare, number),
        conversations_in_all: conversations,
        number,
        parts,
    };
    (0..parts).map(part).collect()
}

fn most_pairs(connections: u32) -> u64 {
    u64::from(connections) * u64::from(connections - 1) / 2
}

impl Part {
    /// The two connections (counted from 0 within the part) of each conversation. Every connection has about as many
    /// conversations as any other, and no two connections have two.
    pub(super) fn pairs(&self) -> Vec<(u32, u32)> {
        let n = self.connections;
        // Neighbours on a ring, beginning with those that share no connection; then those two apart, and so on.
        let ring = (1..=n / 2).flat_map(|apart| {
            let starts = (0..n).step_by(2).chain((1..n).step_by(2));
            // Opposite each other, every pair would come from both of its ends.
            let starts = starts.filter(move |start| 2 * apart < n || *start < apart);
            starts.map(move |start| (start, (start + apart) % n))
        });
        ring.take(self.conversations as usize).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;

    #[test]
    fn every_connection_talks_and_no_pair_comes_twice() {
        for (connections, conversations, threads) in [
            (2, 1, 4),
            (3, 2, 1),
            (3, 3, 2),
            (7, 6, 3),
            (100, 2000, 16),
            (4, 6, 1),
            (7, 21, 1),
            (8, 4, 3),
            (1000, 500, 1),
            (1000, 500, 3),
            (1000, 10_000, 2),
            (1001, 700, 4),
            (40_000, 20_000, 2),
        ] {
            let parts: Vec<Part> =
                parts(connections, conversations, threads).unwrap().into_iter().flatten().collect();
            assert_eq!(parts.iter().map(|part| part.conversations).sum::<u32>(), conversations);
            let mut next = 0;
            for part in &parts {
                assert_eq!(part.first, next);
                next += part.connections;
                let pairs = part.pairs();
                assert_eq!(pairs.len(), part.conversations as usize, "{part:?}");
                let mut degree = HashMap::<u32, u32>::new();
                for (a, b) in &pairs {
                    assert!(a != b && *a < part.connections && *b < part.connections);
                    *degree.entry(*a).or_default() += 1;
                    *degree.entry(*b).or_default() += 1;
                }
                let distinct: BTreeSet<_> = pairs.iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
                assert_eq!(distinct.len(), pairs.len(), "{part:?}");
                assert_eq!(degree.len(), part.connections as usize, "nobody is left alone: {part:?}");
                let (low, high) = (degree.values().min().unwrap(), degree.values().max().unwrap());
                assert!(high - low <= 2, "{part:?}: {low}–{high}");
            }
            assert_eq!(next, connections);
        }
    }

    #[test]
    fn as_many_conversations_as_pairs_are_pairs() {
        let part =
            Part { first: 0, connections: 6, conversations: 3, conversations_in_all: 3, number: 0, parts: 1 };
        assert_eq!(part.pairs(), [(0, 1), (2, 3), (4, 5)]);
    }

    #[test]
    fn processes_have_no_more_connections_than_they_may() {
        for connections in [17_999, 18_000, 18_001, 50_000, 90_001] {
            let processes = parts(connections, connections, 2).unwrap();
            assert_eq!(processes.len() as u32, connections.div_ceil(CONNECTIONS_PER_PROCESS));
            for process in processes {
                let sum: u32 = process.iter().map(|part| part.connections).sum();
                assert!(sum <= CONNECTIONS_PER_PROCESS + 2, "{sum}");
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(parts(1, 1, 1), Err(PlanError::TooFewConversations { connections: 1 }));
        assert_eq!(parts(10, 4, 1), Err(PlanError::TooFewConversations { connections: 10 }));
        assert!(matches!(parts(4, 7, 1), Err(PlanError::TooManyConversations { most: 6, .. })));
    }
}
