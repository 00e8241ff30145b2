//! What the node tells Redis: who is online here, and when users were last seen.

use std::sync::Arc;

use uuid::Uuid;

use crate::actors::directory::DirectoryCopy;
use crate::actors::session::{SessionShared, SessionTable};
use crate::clock::Clock;
use crate::config::Config;
use crate::storage::redis::{RedisConfig, RedisStore, SessionCopy};

/// Redis, as the directory's copy.
pub(super) struct OnlineCopy {
    store: RedisStore,
    names: Names,
    clock: Clock,
}

/// Who this process is.
#[derive(Clone)]
struct Names {
    node: String,
    incarnation: Uuid,
}

impl Names {
    fn copy(&self, session: &SessionShared) -> SessionCopy {
        SessionCopy {
            node: self.node.clone(),
            incarnation: self.incarnation,
            session: session.id,
            since: session.since,
        }
    }
}

impl OnlineCopy {
    /// Begins to write, if the configuration names a Redis. Does not wait for it.
    ///
    /// # Errors
    /// Its address is none.
    pub(super) fn start(
        config: &Config,
        clock: Clock,
        sessions: &SessionTable,
    ) -> anyhow::Result<Option<Arc<Self>>> {
        let section = &config.redis;
        if section.url.is_empty() {
            return Ok(None);
        }
        let names = Names { node: config.node.id.clone(), incarnation: Uuid::now_v7() };
        let redis = RedisConfig {
            url: section.url.clone(),
            prefix: section.prefix.clone(),
            deadline: section.deadline_ms.duration(),
            max_waiting: section.max_waiting,
            incarnation: names.incarnation,
        };
        let (all, copied) = (sessions.clone(), names.clone());
        let everything = move || {
            let entry = |session: Arc<SessionShared>| {
                (session.user.clone(), session.device.clone(), copied.copy(&session))
            };
            all.all().into_iter().map(entry).collect()
        };
        let store = RedisStore::start(redis, Box::new(everything))?;
        Ok(Some(Arc::new(Self { store, names, clock })))
    }

    pub(super) fn numbers(&self) -> crate::telemetry::redis::RedisState {
        let numbers = self.store.numbers();
        crate::telemetry::redis::RedisState {
            away: self.store.is_away(),
            waiting: numbers.waiting as u64,
            written: numbers.written,
            failed: numbers.failed,
            everything: numbers.everything,
        }
    }

    /// Writes what waits, if Redis answers.
    pub(super) async fn shutdown(&self) {
        self.store.shutdown().await;
    }
}

impl DirectoryCopy for OnlineCopy {
    fn came(&self, session: &SessionShared) {
        let copy = self.names.copy(session);
        self.store.put_session(session.user.clone(), session.device.clone(), copy);
        self.store.saw(session.user.clone(), self.clock.wall());
    }

    fn went(&self, session: &SessionShared) {
        self.store.drop_session(session.user.clone(), session.device.clone(), session.id);
        self.store.saw(session.user.clone(), self.clock.wall());
    }
}
