//! What stands behind the admin listener: the calls of `docs/operations.md`.

mod looking;
mod nodes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use convoke_protocol::id::UserId;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::canary::{self, Canary};
use super::cluster::ClusterPart;
use super::connection_limits;
use super::engine::{SessionEngine, session_rules};
use super::faults::Faults;
use super::store::NodeStore;
use crate::actors::session::dispatch::Services;
use crate::auth::{Role, SigningKey, Verifier};
use crate::cmd::serve::{Args, Setup};
use crate::config::{Config, ReloadReport, diff_reload};
use crate::net::admin::{AdminApi, AdminBody, AdminRequest, AdminResponse, Denied};
use crate::net::listener::Net;
use crate::net::tls::TlsAcceptor;
use crate::operator::{
    AuditLines, AuditPage, MAX_LINES, MoveShard, WhichConversation, WhichNode, WhichSessions, WhichUser,
};
use crate::storage::Health;
use crate::storage::ReadError;
use crate::telemetry::LogHandle;

/// The node as its operator sees it.
pub(super) struct NodeAdmin {
    config: Mutex<Config>,
    source: Args,
    log: LogHandle,
    key: SigningKey,
    behind: Behind,
}

/// The parts of the node that operators look at and change.
pub(super) struct Behind {
    pub(super) store: NodeStore,
    /// Its part in a cluster, if it has one.
    pub(super) part: Option<ClusterPart>,
    /// Says whether messages go their way, in a cluster.
    pub(super) canary: Option<Canary>,
    pub(super) services: Arc<Services>,
    pub(super) net: Net<SessionEngine>,
    pub(super) tls: Option<Arc<TlsAcceptor>>,
    pub(super) stopping: Arc<AtomicBool>,
    /// In a test's process, where faults are asked for.
    pub(super) faults: Option<Arc<Faults>>,
}

impl NodeAdmin {
    pub(super) fn new(setup: Setup, key: SigningKey, behind: Behind) -> Self {
        let Setup { config, log, source, .. } = setup;
        Self { config: Mutex::new(config), source, log, key, behind }
    }

    /// Reads the configuration again and puts in force what may change while the node runs.
    fn reload(&self) -> anyhow::Result<ReloadReport> {
        let new = self.source.load()?;
        let mut current = self.config.lock();
        let reload = diff_reload(&current, &new);
        // Files that keys name may have changed though the keys have not.
        let verifier = Verifier::new(&self.key, &reload.config.auth)?;
        let Behind { services, net, tls, .. } = &self.behind;
        if let Some(tls) = tls {
            tls.reload()?;
        }
        self.log.set_filter(&reload.config.log.filter)?;
        services.verifier.store(Arc::new(verifier));
        services.rules.store(Arc::new(session_rules(&reload.config)));
        net.slots().set_limits(connection_limits(&reload.config));
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
    fn authorize(&self, token: &str) -> Result<UserId, Denied> {
        let services = &self.behind.services;
        match services.verifier.load().verify(token, services.clock.wall()) {
            Ok(claims) if claims.role == Role::Service => Ok(claims.user),
            Ok(_) => Err(Denied::WrongRole),
            Err(error) => Err(Denied::BadToken(error.to_string())),
        }
    }

    fn ready(&self) -> Result<(), String> {
        if self.behind.stopping.load(Ordering::Relaxed) {
            return Err("the node is stopping".into());
        }
        match self.behind.store.health() {
            Health::Good => match self.behind.canary.as_ref().map(Canary::age) {
                Some(age) if age > canary::LATE => Err(format!(
                    "a message that the node says to itself did not come back for {} s",
                    age.as_secs()
                )),
                _ => Ok(()),
            },
            Health::Poisoned(reason) => Err(format!("the store takes no writes until a restart: {reason}")),
        }
    }

    async fn metrics(&self) -> String {
        let Services { metrics, sessions, conversations, .. } = &*self.behind.services;
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.sessions.set(count(sessions.len()));
        metrics.conversations_active.set(count(conversations.here().active()));
        metrics.set_memory(&looking::memory(&self.behind.services, &self.behind.store).await);
        metrics.render()
    }

    async fn call(&self, request: AdminRequest) -> AdminResponse {
        let Some(call) = request.path.strip_prefix("/v1/").and_then(Call::named) else {
            return AdminResponse::text(404, "there is no such thing here");
        };
        let looks = !call.acts() && request.method == "GET";
        if request.method != "POST" && !looks {
            return AdminResponse::text(405, "this is asked with POST and a JSON object, {} at least");
        }
        self.answer(call, &request).await.unwrap_or_else(|refusal| refusal)
    }
}

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Sessions,
    Kick,
    Conversations,
    Conversation,
    Groups,
    Memory,
    Nodes,
    Shards,
    Drain,
    Move,
    User,
    Reload,
    Backup,
    Audit,
    Fault,
}

impl Call {
    const ALL: [(&'static str, Self); 15] = [
        ("sessions", Self::Sessions),
        ("kick", Self::Kick),
        ("conversations", Self::Conversations),
        ("conversation", Self::Conversation),
        ("groups", Self::Groups),
        ("memory", Self::Memory),
        ("nodes", Self::Nodes),
        ("shards", Self::Shards),
        ("drain", Self::Drain),
        ("move", Self::Move),
        ("user", Self::User),
        ("reload", Self::Reload),
        ("backup", Self::Backup),
        ("audit", Self::Audit),
        ("fault", Self::Fault),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, call)| *call)
    }

    /// Whether it does something, beside telling what there is.
    fn acts(self) -> bool {
        matches!(self, Self::Kick | Self::Reload | Self::Backup | Self::Fault | Self::Drain | Self::Move)
    }
}

/// The JSON object that a call carries; none is an empty one.
fn asked<T: DeserializeOwned>(request: &AdminRequest) -> Result<T, AdminResponse> {
    let body: &[u8] = if request.body.is_empty() { b"{}" } else { &request.body };
    serde_json::from_slice(body).map_err(|error| AdminResponse::text(400, format!("the request: {error}")))
}

fn told(answer: &impl Serialize) -> AdminResponse {
    AdminResponse::json(200, &serde_json::json!(answer))
}

/// For `map_err`: the store cannot be read now.
fn unreadable(error: ReadError) -> AdminResponse {
    AdminResponse::text(503, error)
}

impl NodeAdmin {
    async fn answer(&self, call: Call, request: &AdminRequest) -> Result<AdminResponse, AdminResponse> {
        let services = &*self.behind.services;
        let record = |act: &str, on: &str| services.audit.record(&request.who, None, act, on, None);
        Ok(match call {
            Call::Sessions => told(&looking::sessions(services, &asked(request)?)),
            Call::Kick => {
                let which: WhichSessions = asked(request)?;
                let kicked = looking::kick(services, &which).map_err(|why| AdminResponse::text(400, why))?;
                let user = which.user.map(|user| user.to_string());
                let session = which.session.map(|session| session.to_string());
                record("kick", &user.or(session).unwrap_or_default());
                told(&kicked)
            }
            Call::Conversations => {
                told(&looking::conversations(services, &asked(request)?).await.map_err(unreadable)?)
            }
            Call::Conversation => {
                let WhichConversation { conversation } = asked(request)?;
                match looking::conversation(services, &conversation).await.map_err(unreadable)? {
                    Some(state) => told(&nodes::with_owner(&self.behind, state)),
                    None => AdminResponse::text(404, format!("there is no conversation {conversation}")),
                }
            }
            Call::Groups => told(&looking::groups(services, &asked(request)?).await.map_err(unreadable)?),
            Call::Nodes => told(&nodes::nodes(&self.behind)),
            Call::Shards => told(&nodes::shards(&self.behind)),
            Call::Drain => {
                let which: WhichNode = asked(request)?;
                nodes::drain(&self.behind, &which).map_err(|why| AdminResponse::text(409, why))?;
                record("drain", &which.node);
                told(&serde_json::json!({}))
            }
            Call::Move => {
                let to: MoveShard = asked(request)?;
                nodes::move_shard(&self.behind, &to).map_err(|why| AdminResponse::text(409, why))?;
                let place = to.node.as_deref().unwrap_or("where it would be");
                record("move", &format!("shard {} to {place}", to.shard));
                told(&serde_json::json!({}))
            }
            Call::User => {
                let WhichUser { user } = asked(request)?;
                told(&nodes::user(&self.behind, user).await.map_err(|why| AdminResponse::text(503, why))?)
            }
            Call::Memory => told(&looking::memory(services, &self.behind.store).await),
            Call::Reload => match self.reload() {
                Ok(report) => {
                    record("reload", "the configuration");
                    told(&report)
                }
                Err(error) => AdminResponse::text(422, format!("{error:#}")),
            },
            Call::Backup => {
                record("backup", "the store");
                let body = AdminBody::Pieces(self.behind.store.backup(services.clock.wall().0));
                AdminResponse { status: 200, content_type: "application/octet-stream", body }
            }
            Call::Fault => match &self.behind.faults {
                Some(faults) => told(&faults.inject(asked(request)?, services)),
                None => AdminResponse::text(404, "there is no such thing here"),
            },
            Call::Audit => {
                let AuditPage { limit } = asked(request)?;
                told(&AuditLines { lines: services.audit.last(limit.unwrap_or(MAX_LINES)) })
            }
        })
    }
}
