//! How far a device has everything, as it says itself.

use std::sync::Arc;

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::frame::Answer;
use convoke_protocol::id::{ConversationId, ConversationKind};
use convoke_protocol::request::messages::{Ack, Acked};
use futures_util::future::{Either, select};
use tokio::task::JoinHandle;

use super::SessionShared;
use super::dispatch::{Services, not_done};
use crate::actors::reply::Reply;

/// The acknowledgement of a session that is being kept, if one is.
#[derive(Debug, Default)]
pub(super) struct Acks {
    keeping: Option<JoinHandle<()>>,
}

fn check(services: &Services, session: &SessionShared, ack: &Ack) -> Result<(), RequestError> {
    let max = services.rules.load().limits.max_ranges as usize;
    if ack.cursors.len() > max {
        let text = format!("{} cursors are more than {max}", ack.cursors.len());
        return Err(not_done(ErrorCode::INVALID_REQUEST, text));
    }
    if session.egress.acked(ack.pushes, services.clock.monotonic_ms()).is_err() {
        let text = "pushes counts what this connection received: it neither falls nor passes what was sent";
        return Err(not_done(ErrorCode::INVALID_REQUEST, text));
    }
    // A cursor of a group is the device's own row: whether it is a member does not matter.
    let foreign = |id: &ConversationId| {
        matches!(id.kind(), ConversationKind::Direct(..)) && !id.is_direct_with(&session.user)
    };
    if let Some(other) = ack.cursors.iter().find(|cursor| foreign(&cursor.conversation)) {
        let text = format!("there is no conversation {}, or it is not yours", other.conversation);
        return Err(not_done(ErrorCode::NOT_FOUND, text));
    }
    Ok(())
}

impl Acks {
    /// Takes an acknowledgement. What it says is kept beside what the session asks next, and answered when it is; only the next
    /// acknowledgement waits for it, and who reads cursors ([`Self::settled`]).
    ///
    /// # Errors
    /// Nothing was taken, and this is to be answered.
    pub(super) async fn take(
        &mut self,
        services: &Services,
        session: &Arc<SessionShared>,
        id: u64,
        ack: Ack,
    ) -> Result<(), RequestError> {
        check(services, session, &ack)?;
        self.settled().await;
        let Ack { cursors, .. } = ack;
        if cursors.is_empty() {
            session.egress.queue_answer(id, &Acked {}.into());
            return Ok(());
        }
        let reply = Reply::new(session.clone(), id);
        let (store, session) = (services.stores.cursors.clone(), session.clone());
        let keeping = async move {
            let answer: Answer = match store.put_cursors(&session.user, &session.device, &cursors).await {
                Ok(()) => Acked {}.into(),
                Err(error) => {
                    tracing::warn!(%error, "cursors are not kept");
                    not_done(ErrorCode::UNAVAILABLE, "the cursors are not kept").retry_after(1_000).into()
                }
            };
            reply.send(&answer);
        };
        self.keep(keeping).await;
        Ok(())
    }

    /// Goes on once this is done, if it is done at once; else it is done beside what comes next.
    async fn keep(&mut self, keeping: impl Future<Output = ()> + Send + 'static) {
        if let Either::Right(((), keeping)) = select(Box::pin(keeping), std::future::ready(())).await {
            self.keeping = Some(tokio::spawn(keeping));
        }
    }

    /// Waits until what was taken is kept, or is known not to be.
    ///
    /// Cancel safe: it is kept even if nobody waits.
    pub(super) async fn settled(&mut self) {
        if let Some(keeping) = &mut self.keeping {
            // Had it panicked, its reply would have said so.
            let _ = keeping.await;
            self.keeping = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_takes_time_goes_on_beside_and_is_waited_for_by_who_needs_it() {
        let mut acks = Acks::default();
        acks.keep(std::future::ready(())).await;
        assert!(acks.keeping.is_none(), "no task for what is done at once");
        assert_eq!(acks.settled().now_or_never(), Some(()));
        for _ in 0..2 {
            let (end, ended) = oneshot::channel::<()>();
            // It returns although nothing has ended.
            acks.keep(ended.map(drop)).await;
            assert_eq!(acks.settled().now_or_never(), None);
            // Who did not wait to the end may wait again.
            assert_eq!(acks.settled().now_or_never(), None);
            end.send(()).expect("it waits");
            acks.settled().await;
            assert!(acks.keeping.is_none());
        }
    }
}
