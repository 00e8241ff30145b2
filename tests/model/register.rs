//! One cell of the store, as quorum writes and reads meet it.
//!
//! A write that was begun may reach any replica at any time from then on, also long after its writer gave up, and also as
//! the repair of a single row by a reader; of two writes in one replica the one with the higher stamp stays. What a
//! quorum read returns is the highest of what two replicas have.
//!
//! [`Register::Spread`] says the same in fewer states: a read returns any write that was begun and is not below the
//! highest that was acknowledged, or nothing if none was. [`Register::Replicas`] keeps three replicas one by one; a test
//! shows that it never returns what the other does not.

pub(crate) type Stamp = u64;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Register<T> {
    Spread { begun: Vec<(Stamp, T)>, durable: Option<Stamp> },
    Replicas { begun: Vec<(Stamp, T)>, has: [Option<(Stamp, T)>; 3] },
}

impl<T: Copy + Ord> Register<T> {
    pub(crate) fn new(replicas: bool) -> Self {
        match replicas {
            false => Self::Spread { begun: Vec::new(), durable: None },
            true => Self::Replicas { begun: Vec::new(), has: [None; 3] },
        }
    }

    pub(crate) fn begin(&mut self, stamp: Stamp, value: T) {
        match self {
            Self::Spread { begun, .. } | Self::Replicas { begun, .. } => {
                if let Err(at) = begun.binary_search(&(stamp, value)) {
                    begun.insert(at, (stamp, value));
                }
            }
        }
    }

    /// Every write that was begun, in the order of their stamps.
    pub(crate) fn begun(&self) -> &[(Stamp, T)] {
        match self {
            Self::Spread { begun, .. } | Self::Replicas { begun, .. } => begun,
        }
    }

    /// Two replicas acknowledge the write; says whether they can.
    pub(crate) fn acknowledge(&mut self, stamp: Stamp) -> bool {
        match self {
            Self::Spread { durable, .. } => {
                *durable = (*durable).max(Some(stamp));
                true
            }
            Self::Replicas { has, .. } => {
                has.iter().flatten().filter(|(newest, _)| *newest >= stamp).count() >= 2
            }
        }
    }

    /// The writes that may still reach a replica and change it: (index of the write, replica).
    pub(crate) fn deliveries(&self) -> Vec<(usize, usize)> {
        let Self::Replicas { begun, has } = self else { return Vec::new() };
        let pairs =
            begun.iter().enumerate().flat_map(|(index, write)| (0..3).map(move |at| (index, write, at)));
        pairs
            .filter(|(_, write, at)| has[*at].is_none_or(|newest| newest < **write))
            .map(|(index, _, at)| (index, at))
            .collect()
    }

    pub(crate) fn deliver(&mut self, index: usize, at: usize) {
        let Self::Replicas { begun, has } = self else { return };
        has[at] = begun.get(index).copied().max(has[at]);
    }

    /// Whatever a quorum read may return now. `deleted` is the stamp of a deletion that replicas may or may not have.
    pub(crate) fn quorum(&self, deleted: Option<Stamp>) -> Vec<Option<T>> {
        let mut results = Vec::new();
        match self {
            Self::Spread { begun, durable } => {
                let at_least =
                    begun.iter().filter(|(stamp, _)| durable.is_none_or(|durable| *stamp >= durable));
                results.extend(at_least.map(|(_, value)| Some(*value)));
                if durable.is_none_or(|durable| deleted.is_some_and(|deleted| deleted >= durable)) {
                    results.push(None);
                }
            }
            Self::Replicas { has, .. } => {
                for (one, other) in [(0, 1), (1, 2), (0, 2)] {
                    let newest = has[one].max(has[other]);
                    results.push(newest.map(|(_, value)| value));
                    if newest.is_none_or(|(stamp, _)| deleted.is_some_and(|deleted| deleted >= stamp)) {
                        results.push(None);
                    }
                }
            }
        }
        results.sort_unstable();
        results.dedup();
        results
    }

    /// Whatever a read of one replica may return.
    pub(crate) fn any_one(&self) -> Vec<Option<T>> {
        let mut results: Vec<_> = self.begun().iter().map(|(_, value)| Some(*value)).collect();
        results.push(None);
        results
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Both kinds side by side through everything three writes can do: what replicas return, the other kind returns too.
    #[test]
    fn replicas_return_nothing_that_is_not_expected() {
        let begin = (Register::new(true), Register::new(false));
        let (mut seen, mut open) = (HashSet::from([begin.clone()]), vec![begin]);
        while let Some((replicas, spread)) = open.pop() {
            for deleted in [None, Some(2), Some(4)] {
                let expected = spread.quorum(deleted);
                for read in replicas.quorum(deleted) {
                    assert!(expected.contains(&read), "{read:?} is not in {expected:?}: {replicas:?}");
                }
            }
            let mut next = Vec::new();
            for stamp in [1, 3, 5] {
                let (mut one, mut other) = (replicas.clone(), spread.clone());
                one.begin(stamp, stamp);
                other.begin(stamp, stamp);
                next.push((one, other));
                let (mut one, mut other) = (replicas.clone(), spread.clone());
                if one.acknowledge(stamp) {
                    other.acknowledge(stamp);
                    next.push((one, other));
                }
            }
            for (write, at) in replicas.deliveries() {
                let mut one = replicas.clone();
                one.deliver(write, at);
                next.push((one, spread.clone()));
            }
            open.extend(next.into_iter().filter(|pair| seen.insert(pair.clone())));
        }
        assert!(seen.len() > 300, "{} states", seen.len());
    }
}
