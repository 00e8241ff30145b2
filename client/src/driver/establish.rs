//! From nothing to a live session: which address, when, and when to give up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::event::GoAway;
use convoke_protocol::request::session::Login;
use tracing::debug;
use uuid::Uuid;

use super::{Driver, End};
use crate::addresses::jittered;
use crate::client::ClientEvent;
use crate::config::ClientConfig;
use crate::connection::{Connection, ConnectionError, Opening};
use crate::error::ClientError;

/// The longest wait that a `GoAway` may ask for.
const MAX_AWAY: Duration = Duration::from_secs(300);

impl Driver {
    /// Connects to one address after the other until a session is live.
    pub(super) async fn establish(&mut self) -> Result<(String, Connection), End> {
        let begun = Instant::now();
        let mut failures = 0;
        loop {
            let random = Uuid::new_v4().as_u64_pair().0;
            let wait = match self.away.take() {
                Some(away) if failures == 0 => jittered(away, away / 2, random),
                Some(away) => {
                    jittered(away, away / 2, random).max(self.config.backoff.wait(failures, random))
                }
                None if failures == 0 && self.first.is_some() => Duration::ZERO,
                None => self.config.backoff.wait(failures, random),
            };
            if !wait.is_zero() {
                self.meanwhile(tokio::time::sleep(wait)).await?;
            }
            let address = self.addresses.next();
            let opened = self.meanwhile(open(Arc::clone(&self.config), address.clone())).await?;
            failures += 1;
            let error = match opened {
                Ok(connection) => return Ok((address, connection)),
                Err(error) => error,
            };
            debug!(address, %error, "no session");
            if let ClientError::Connect(ConnectionError::Kicked(kicked)) = &error
                && self.first.is_none()
            {
                return Err(End::Kicked { reason: kicked.reason, message: kicked.message.clone() });
            }
            let overdue = self.first.is_some() && begun.elapsed() >= self.config.connect_deadline;
            if overdue || self.is_final(&error) {
                return Err(End::Failed(error));
            }
            match &error {
                ClientError::Connect(ConnectionError::GoAway(go_away)) => self.sent_away(go_away),
                ClientError::Connect(ConnectionError::Refused(refused)) => {
                    self.away =
                        refused.retry_after_ms.map(|ms| Duration::from_millis(ms.into()).min(MAX_AWAY));
                }
                _ => {}
            }
            self.outbox.put(ClientEvent::ConnectFailed { address, error });
        }
    }

    /// Whether trying to log in again cannot help.
    fn is_final(&self, error: &ClientError) -> bool {
        let ClientError::Connect(error) = error else { return false };
        match error {
            ConnectionError::Kicked(_) => true,
            ConnectionError::Refused(refused) if refused.retry_after_ms.is_none() => match refused.code {
                ErrorCode::TOKEN_EXPIRED => self.config.token.is_fixed(),
                // On coming back it is probably our own former session that the server has not yet buried.
                ErrorCode::DEVICE_IN_USE | ErrorCode::TOO_MANY_SESSIONS => self.first.is_some(),
                ErrorCode::BUSY
                | ErrorCode::UNAVAILABLE
                | ErrorCode::RATE_LIMITED
                | ErrorCode::INTERNAL
                | ErrorCode::LOGIN_OVERDUE
                | ErrorCode::TOO_MANY_CONNECTIONS
                | ErrorCode::TOO_MANY_FROM_ADDRESS => false,
                _ => true,
            },
            _ => false,
        }
    }

    pub(super) fn sent_away(&mut self, go_away: &GoAway) {
        self.addresses.prefer(&go_away.nodes);
        self.away = Some(Duration::from_millis(go_away.retry_after_ms.into()).min(MAX_AWAY));
    }
}

/// One attempt: a token, a connection, a login.
async fn open(config: Arc<ClientConfig>, address: String) -> Result<Connection, ClientError> {
    let token = tokio::time::timeout(config.dial_timeout, config.token.make())
        .await
        .unwrap_or_else(|_| Err("the token source takes too long".into()))
        .map_err(ClientError::Token)?;
    let login = Login { token, device: config.device.clone(), device_class: config.device_class };
    let opening = Opening {
        address,
        tls: config.tls.clone(),
        app: (config.app.clone(), config.version.clone()),
        login,
        timeout: config.dial_timeout,
        max_frame: config.max_frame_bytes,
    };
    Connection::open(opening).await.map_err(ClientError::Connect)
}
