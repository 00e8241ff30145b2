//! A service of the application, as load tests need one to prepare what they measure.

use std::time::Duration;

use convoke_client::{Client, ClientConfig, Start};
use convoke_protocol::id::{DeviceId, UserId};
use tokio::task::JoinHandle;

use super::LoadError;
use super::node::Node;
use crate::auth::Role;

/// How long its token is good: longer than any preparation takes.
const TOKEN_FOR: Duration = Duration::from_secs(3_600);

/// One that is connected.
pub(super) struct Service {
    /// To ask with.
    pub(super) client: Client,
    reading: JoinHandle<()>,
}

impl Service {
    /// Connects to the node; what it hears there is of no interest.
    pub(super) async fn connect(node: &Node) -> Result<Self, LoadError> {
        let name = UserId::new("bench-owner").expect("a valid name");
        let token = node.key().sign(&name, Role::Service, TOKEN_FOR);
        let addresses = node.tcp().iter().map(ToString::to_string).collect();
        let mut config = ClientConfig::new(addresses, token, DeviceId::new("bench").expect("a valid name"));
        config.start = Start::from_now();
        config.keep_cursors = false;
        let (client, mut events) = Client::connect(config).await?;
        let reading = tokio::spawn(async move { while events.next().await.is_some() {} });
        Ok(Self { client, reading })
    }

    /// Logs out.
    pub(super) async fn leave(self) {
        // A server that does not answer notices by itself.
        let _ = self.client.logout().await;
        self.reading.abort();
    }
}
