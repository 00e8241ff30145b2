//! The node's actor: whatever crashes below it is made again, and those who lost something by it are told.

use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};

use crate::actors::directory::Directory;
use crate::actors::hub::Hub;
use crate::actors::session::SessionTable;
use crate::actors::shard::Conversations;
use crate::telemetry::metrics::{ActorKind, Metrics};

/// What the node's actor looks after.
pub(super) struct Supervised {
    pub(super) directory: Directory,
    pub(super) hub: Hub,
    pub(super) conversations: Conversations,
    pub(super) sessions: SessionTable,
    pub(super) metrics: Arc<Metrics>,
}

struct NodeActor;

impl Actor for NodeActor {
    type Msg = Supervised;
    type State = Option<Supervised>;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Supervised>, (): ()) -> Result<Self::State, ActorProcessingErr> {
        Ok(None)
    }

    async fn handle(
        &self,
        _: ActorRef<Supervised>,
        message: Supervised,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        *state = Some(message);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Supervised>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // An actor that ended in order ended on purpose.
        let SupervisionEvent::ActorFailed(dead, error) = event else { return Ok(()) };
        let Some(below) = state else { return Ok(()) };
        let kind = match below.restart(&dead, &myself.get_cell()).await {
            Ok(kind) => kind,
            Err(error) => {
                tracing::error!(%error, "a crashed actor cannot be started again");
                return Ok(());
            }
        };
        below.metrics.actor_restarted(kind);
        tracing::error!(?kind, %error, "an actor crashed and was made again");
        Ok(())
    }
}

impl Supervised {
    async fn restart(&self, dead: &ActorCell, supervisor: &ActorCell) -> Result<ActorKind, ractor::SpawnErr> {
        if self.directory.restart(dead, supervisor).await? {
            self.directory.restore(self.sessions.all());
            self.conversations.refresh();
            return Ok(ActorKind::Directory);
        }
        if self.hub.restart(dead, supervisor).await? {
            self.conversations.refresh();
            return Ok(ActorKind::Hub);
        }
        if self.conversations.forget_shard(dead) {
            return Ok(ActorKind::Shard);
        }
        // A session's guard has closed its connection already.
        Ok(ActorKind::Session)
    }
}

/// Reaches the node's actor.
pub(super) struct Supervisor(ActorRef<Supervised>);

impl Supervisor {
    pub(super) async fn start() -> Result<(Self, ActorCell), ractor::SpawnErr> {
        let (actor, _) = Actor::spawn(None, NodeActor, ()).await?;
        let cell = actor.get_cell();
        Ok((Self(actor), cell))
    }

    /// Tells it what it looks after. Before that nothing can crash that was used.
    pub(super) fn supervise(&self, below: Supervised) {
        // It lives as long as the process.
        let _ = self.0.cast(below);
    }
}
