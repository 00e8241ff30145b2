//! Who is dead for good, pure: fences that this node writes, and whether they are known durable.
//!
//! ```text
//!   (nothing) ──demand──▶ Writing ──written──▶ Durable, for ever
//!                           └──not known──▶ Failed ──retry──▶ Writing
//! ```

use std::collections::BTreeMap;

use super::membership::Incarnation;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fence {
    Writing,
    Failed,
    Durable,
}

/// The fences that this node knows of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Fences(BTreeMap<Incarnation, Fence>);

impl Fences {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// This incarnation is to be fenced; says whether to write its row now.
    pub fn demand(&mut self, incarnation: Incarnation) -> bool {
        let fence = self.0.entry(incarnation).or_insert(Fence::Failed);
        let write = *fence == Fence::Failed;
        if write {
            *fence = Fence::Writing;
        }
        write
    }

    /// A write of the row has ended. Without a certain success it is repeated by the next [`Self::retry`].
    pub fn written(&mut self, incarnation: Incarnation, succeeded: bool) {
        if let Some(fence) = self.0.get_mut(&incarnation).filter(|fence| **fence == Fence::Writing) {
            *fence = if succeeded { Fence::Durable } else { Fence::Failed };
        }
    }

    /// The rows to write again now.
    pub fn retry(&mut self) -> Vec<Incarnation> {
        let mut again = Vec::new();
        for (incarnation, fence) in self.0.iter_mut().filter(|(_, fence)| **fence == Fence::Failed) {
            *fence = Fence::Writing;
            again.push(*incarnation);
        }
        again
    }

    /// Whether the fence is known durable: from then on no confirmation that begins passes by it.
    pub fn is_durable(&self, incarnation: Incarnation) -> bool {
        self.0.get(&incarnation) == Some(&Fence::Durable)
    }

    /// Whether this incarnation was to be fenced, durable or not: it counts as dead here.
    pub fn is_demanded(&self, incarnation: Incarnation) -> bool {
        self.0.contains_key(&incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_durable_only_after_a_certain_write() {
        let dead = Incarnation(uuid::Uuid::from_u128(1));
        let mut fences = Fences::new();
        assert!(fences.demand(dead) && !fences.demand(dead));
        fences.written(dead, false);
        assert!(fences.is_demanded(dead) && !fences.is_durable(dead));
        assert_eq!((fences.retry(), fences.retry()), (vec![dead], vec![]));
        fences.written(dead, true);
        assert!(fences.is_durable(dead) && !fences.demand(dead));
        fences.written(dead, false);
        assert!(fences.is_durable(dead));
    }
}
