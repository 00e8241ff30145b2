//! Runs the model checker and says what it saw.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

/// Visits every state: nothing may be found that must never be, and everything that must be reached.
#[track_caller]
pub(crate) fn holds<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + Send + Sync + PartialEq + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let begun = Instant::now();
    let checker = model.checker().spawn_bfs().join();
    eprintln!(
        "{name}: {} states, depth {}, {:.1?}",
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed()
    );
    checker.assert_properties();
}

/// Something that must always hold does not, by the shortest way.
#[track_caller]
pub(crate) fn is_found<M>(model: &M, mutation: impl Debug)
where
    M: Model + Clone + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + Send + Sync + PartialEq + 'static,
    M::Action: Clone + Debug + PartialEq,
{
    let begun = Instant::now();
    let checker = model.clone().checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let states = checker.unique_state_count();
    let broken = checker.discoveries().into_iter().find(|(name, _)| name.starts_with('I'));
    let (name, path) = broken.unwrap_or_else(|| panic!("{mutation:?} breaks nothing in {states} states"));
    let path = path.into_actions();
    eprintln!(
        "{mutation:?}: {name}: {} steps, {states} states, {:.1?}: {path:?}",
        path.len(),
        begun.elapsed()
    );
}
