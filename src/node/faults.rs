//! Faults on request, for tests of a whole node: only in a process that was started with [`FAULTS_VARIABLE`] set, where
//! `POST /v1/fault` of the admin listener asks for them. Any other process has no such call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use convoke_protocol::id::{ConversationId, UserId};
use serde::Deserialize;

use crate::actors::session::dispatch::Services;
use crate::clock;
use crate::storage::Stores;
use crate::storage::embedded::{EmbeddedConfig, FaultHook, InjectedFault};
use crate::storage::faulty::{FaultPlan, FaultyStore, OneIn, Tamper};

/// Set to anything, it lets a test ask for faults.
pub(super) const FAULTS_VARIABLE: &str = "CONVOKE_TEST_FAULTS";

/// Such as `drop:10000`: one message in so many is dropped, doubled, reordered or renumbered wherever the log is read, so that a
/// test sees whether a checker notices.
const TAMPER_VARIABLE: &str = "CONVOKE_TEST_TAMPER";

/// A period of the embedded store's account of changes, in milliseconds: with 0 everything that is not told has not changed, so a
/// test sees whether something is missed that way.
const CHANGE_PERIOD_VARIABLE: &str = "CONVOKE_TEST_CHANGE_PERIOD";

/// The settings of the embedded store, changed if a test asks for it.
///
/// # Errors
/// What it asks for is not known.
pub(super) fn changed(mut config: EmbeddedConfig) -> anyhow::Result<EmbeddedConfig> {
    if let Some(asked) = std::env::var_os(CHANGE_PERIOD_VARIABLE) {
        let ms = asked.to_str().and_then(|asked| asked.parse().ok());
        let ms =
            ms.with_context(|| format!("{CHANGE_PERIOD_VARIABLE} is {asked:?}, no number of milliseconds"))?;
        config.change_period = Duration::from_millis(ms);
    }
    Ok(config)
}

/// The stores, tampered with if a test asks for it.
///
/// # Errors
/// What it asks for is not known.
pub(super) fn tampered(stores: Stores) -> anyhow::Result<Stores> {
    let Some(asked) = std::env::var_os(TAMPER_VARIABLE) else { return Ok(stores) };
    let asked = asked.to_string_lossy();
    let known = asked.split_once(':').and_then(|(how, often)| {
        let how = match how {
            "drop" => Tamper::Drop,
            "double" => Tamper::Double,
            "reorder" => Tamper::Reorder,
            "renumber" => Tamper::Renumber,
            _ => return None,
        };
        Some((OneIn(often.parse().ok()?), how))
    });
    let tamper =
        known.with_context(|| format!("{TAMPER_VARIABLE} is {asked:?}, and should be as `drop:10000`"))?;
    tracing::warn!(?tamper, "a test has this node tell what is not so");
    let plan = FaultPlan { tamper: Some(tamper), ..FaultPlan::default() };
    Ok(Stores::of(Arc::new(FaultyStore::new(stores, plan))))
}

/// What is to go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Fault {
    /// All sessions of a user panic.
    PanicSessions(UserId),
    /// The conversation panics, if it is active.
    PanicConversation(ConversationId),
    /// The conversation's shard panics.
    PanicShard(ConversationId),
    /// The user's stripe of the directory panics.
    PanicDirectory(UserId),
    /// The conversation's stripe of the hub panics.
    PanicHub(ConversationId),
    /// Each commit of the store takes so many milliseconds longer; 0 ends it.
    DelayCommits(u64),
    /// The next commit fails before it is written: its outcome is unknown, and the store takes no more writes.
    FailCommit,
    /// The next commit is written and reported as failed.
    LoseCommitAnswer,
    /// The wall clock jumps by so many milliseconds.
    StepClock(i64),
}

const NEXT_IS_GOOD: u8 = 0;
const NEXT_FAILS: u8 = 1;
const NEXT_IS_LOST: u8 = 2;

/// What the store is to do.
#[derive(Debug, Default)]
pub(super) struct Faults {
    delay_ms: AtomicU64,
    next_commit: AtomicU8,
}

impl Faults {
    /// Where faults may be asked for; `None` in any process that is no test's.
    pub(super) fn from_environment() -> Option<Arc<Self>> {
        std::env::var_os(FAULTS_VARIABLE).map(|_| Arc::default())
    }

    /// What the store's writer asks before each commit.
    pub(super) fn hook(self: &Arc<Self>) -> FaultHook {
        let faults = self.clone();
        Arc::new(move |_| {
            let delay_ms = faults.delay_ms.load(Ordering::Relaxed);
            if delay_ms > 0 {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the writer's own thread, and the fault itself"
                )]
                std::thread::sleep(Duration::from_millis(delay_ms));
            }
            match faults.next_commit.swap(NEXT_IS_GOOD, Ordering::Relaxed) {
                NEXT_FAILS => Some(InjectedFault::BeforeWrite),
                NEXT_IS_LOST => Some(InjectedFault::AfterWrite),
                _ => None,
            }
        })
    }

    /// Makes it so; says whether there was somebody to whom it could happen.
    pub(super) fn inject(&self, fault: Fault, services: &Services) -> bool {
        tracing::warn!(?fault, "a test injects a fault");
        match fault {
            Fault::PanicSessions(user) => {
                let mut found = false;
                services.sessions.for_each(|session| {
                    if session.user == user {
                        session.inject_panic();
                        found = true;
                    }
                });
                return found;
            }
            Fault::PanicConversation(id) => return services.conversations.here().inject_panic(&id),
            Fault::PanicShard(id) => return services.conversations.here().inject_shard_panic(&id),
            Fault::PanicDirectory(user) => services.directory.inject_panic(&user),
            Fault::PanicHub(id) => services.hub.inject_panic(&id),
            Fault::DelayCommits(ms) => self.delay_ms.store(ms, Ordering::Relaxed),
            Fault::FailCommit => self.next_commit.store(NEXT_FAILS, Ordering::Relaxed),
            Fault::LoseCommitAnswer => self.next_commit.store(NEXT_IS_LOST, Ordering::Relaxed),
            Fault::StepClock(ms) => clock::step_wall(ms),
        }
        true
    }
}
