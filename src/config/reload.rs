//! What a running node takes over from a changed configuration.

use serde::{Deserialize, Serialize};

use super::Config;
use super::section::{Changes, Effect, KeyChange};

/// What a reload did; the answer of the admin listener.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Keys whose new values are in force.
    pub applied: Vec<KeyChange>,
    /// Keys that differ from what is in force and need a restart.
    pub needs_restart: Vec<KeyChange>,
}

/// The outcome of comparing two configurations.
#[derive(Debug, Clone, PartialEq)]
pub struct Reload {
    /// What is to be in force: the old one with those keys of the new one that may change while running.
    pub config: Config,
    /// What changed.
    pub report: ReloadReport,
}

/// Compares the configuration in force with a new one. Files that keys name (public keys, certificates) may have
/// changed though their keys have not: who applies the result reads them again in any case.
pub fn diff_reload(old: &Config, new: &Config) -> Reload {
    let mut config = old.clone();
    let mut changes = Changes::default();
    config.take_running(new, &mut changes);
    Reload { config, report: ReloadReport { applied: changes.running, needs_restart: changes.restart } }
}

/// The keys that may change while a node runs.
pub fn reloadable() -> Vec<String> {
    let sections = Config::sections().into_iter();
    sections
        .flat_map(|(section, _, keys)| {
            let running = keys.into_iter().filter(|key| key.effect == Effect::Running);
            running.map(move |key| format!("{section}.{}", key.name)).collect::<Vec<_>>()
        })
        .collect()
}
