//! Runs the model checker and says what it saw.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

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

/// How many seeds a simulation runs, and from which on.
fn seeds() -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    match number("CONVOKE_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("CONVOKE_SIM_SEEDS").unwrap_or(2_000)),
    }
}

/// What a walk through random states came upon.
pub(crate) struct Broken<A> {
    seed: u64,
    what: &'static str,
    path: Vec<A>,
}

/// Walks through worlds that are too large to be visited whole: each seed is another walk. Ends at the first thing that
/// must never be.
pub(crate) fn walk<M>(model: &M, steps: usize) -> (u64, Option<Broken<M::Action>>)
where
    M: Model,
    M::State: Clone,
    M::Action: Clone,
{
    let (first, count) = seeds();
    let mut seen = 0;
    for seed in first..first + count {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut state = model.init_states().remove(0);
        let mut path = Vec::new();
        for _ in 0..steps {
            let mut actions = Vec::new();
            model.actions(&state, &mut actions);
            let Some(action) = actions.choose(&mut random).cloned() else { break };
            path.push(action.clone());
            let Some(next) = model.next_state(&state, action) else { continue };
            state = next;
            seen += 1;
            let broken = |property: &Property<M>| {
                property.expectation == Expectation::Always && !(property.condition)(model, &state)
            };
            if let Some(property) = model.properties().iter().find(|property| broken(property)) {
                return (seen, Some(Broken { seed, what: property.name, path }));
            }
        }
    }
    (seen, None)
}

/// Walks, and finds nothing. A seed that does is printed with the command that replays it.
#[track_caller]
pub(crate) fn holds_on_walks<M>(name: &str, model: &M, steps: usize)
where
    M: Model,
    M::State: Clone,
    M::Action: Clone + Debug,
{
    let begun = Instant::now();
    let (seen, broken) = walk(model, steps);
    eprintln!("{name}: {seen} steps, {:.1?}", begun.elapsed());
    if let Some(Broken { seed, what, path }) = broken {
        panic!(
            "{what} does not hold after {path:#?}\n\
             replay: CONVOKE_SIM_SEED={seed} cargo test --test model walks -- --nocapture"
        );
    }
}

/// Walks that cannot find anything prove nothing.
#[track_caller]
pub(crate) fn is_found_on_walks<M>(model: &M, steps: usize, mutation: impl Debug)
where
    M: Model,
    M::State: Clone,
    M::Action: Clone + Debug,
{
    let (seen, broken) = walk(model, steps);
    let broken = broken.unwrap_or_else(|| panic!("{mutation:?} breaks nothing in {seen} steps"));
    eprintln!("{mutation:?}: {} with seed {}, {} steps", broken.what, broken.seed, broken.path.len());
}
