//! What stands behind the admin listener.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::connection_limits;
use super::engine::{SessionEngine, session_rules};
use crate::actors::session::dispatch::Services;
use crate::auth::{Role, SigningKey, Verifier};
use crate::cmd::serve::{Args, Setup};
use crate::config::{Config, ReloadReport, diff_reload};
use crate::net::admin::{AdminApi, AdminRequest, AdminResponse, Denied};
use crate::net::listener::Net;
use crate::net::tls::TlsAcceptor;
use crate::storage::Health;
use crate::storage::embedded::EmbeddedStore;
use crate::telemetry::LogHandle;

/// The node as its operator sees it.
pub(super) struct NodeAdmin {
    config: Mutex<Config>,
    source: Args,
    log: LogHandle,
    key: SigningKey,
    store: Arc<EmbeddedStore>,
    services: Arc<Services>,
    net: Net<SessionEngine>,
    tls: Option<Arc<TlsAcceptor>>,
    stopping: Arc<AtomicBool>,
}

impl NodeAdmin {
    pub(super) fn new(
        setup: Setup,
        key: SigningKey,
        store: Arc<EmbeddedStore>,
        services: Arc<Services>,
        net: Net<SessionEngine>,
        tls: Option<Arc<TlsAcceptor>>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        let Setup { config, log, source, .. } = setup;
        Self { config: Mutex::new(config), source, log, key, store, services, net, tls, stopping }
    }

    /// Reads the configuration again and puts in force what may change while the node runs.
    fn reload(&self) -> anyhow::Result<ReloadReport> {
        let new = self.source.load()?;
        let mut current = self.config.lock();
        let reload = diff_reload(&current, &new);
        // Files that keys name may have changed though the keys have not.
        let verifier = Verifier::new(&self.key, &reload.config.auth)?;
        if let Some(tls) = &self.tls {
            tls.reload()?;
        }
        self.log.set_filter(&reload.config.log.filter)?;
        self.services.verifier.store(Arc::new(verifier));
        self.services.rules.store(Arc::new(session_rules(&reload.config)));
        self.net.slots().set_limits(connection_limits(&reload.config));
        *current = reload.config;
        tracing::info!(
            applied = reload.report.applied.len(),
            needs_restart = reload.report.needs_restart.len(),
            "configuration read again"
        );
        Ok(reload.report)
    }
}

impl AdminApi for NodeAdmin {
    fn authorize(&self, token: &str) -> Result<(), Denied> {
        match self.services.verifier.load().verify(token, self.services.clock.wall()) {
            Ok(claims) if claims.role == Role::Service => Ok(()),
            Ok(_) => Err(Denied::WrongRole),
            Err(error) => Err(Denied::BadToken(error.to_string())),
        }
    }

    fn ready(&self) -> Result<(), String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err("the node is stopping".into());
        }
        match self.store.health() {
            Health::Good => Ok(()),
            Health::Poisoned(reason) => Err(format!("the store takes no writes until a restart: {reason}")),
        }
    }

    fn metrics(&self) -> String {
        let Services { metrics, sessions, conversations, .. } = &*self.services;
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.sessions.set(count(sessions.len()));
        metrics.conversations_active.set(count(conversations.active()));
        metrics.render()
    }

    async fn call(&self, request: AdminRequest) -> AdminResponse {
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/reload") => match self.reload() {
                Ok(report) => AdminResponse::json(200, &serde_json::json!(report)),
                Err(error) => AdminResponse::text(422, format!("{error:#}")),
            },
            (_, "/v1/reload") => AdminResponse::text(405, "POST reads the configuration again"),
            _ => AdminResponse::text(404, "there is no such thing here"),
        }
    }
}
