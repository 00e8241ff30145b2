//! Looks over the conversations that are kept for a time only, and has those trimmed that have something to trim.

use std::sync::Arc;
use std::time::Duration;

use convoke_protocol::id::ConversationId;
use convoke_protocol::request::changes::Retention;
use tokio::time::MissedTickBehavior;

use crate::actors::conversation::retention::{effective, has_nothing_to_trim};
use crate::actors::session::dispatch::Services;
use crate::storage::{ReadError, ReadLimit};

/// Conversations that are looked at together.
const PAGE: usize = 256;

/// Looks over them again and again, as long as the node runs.
pub(super) fn start_sweep(services: &Arc<Services>, default: Retention, interval: Duration) {
    let services = services.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = sweep(&services, default).await {
                tracing::warn!(%error, "what is to be trimmed cannot be read");
            }
        }
    });
}

async fn sweep(services: &Services, default: Retention) -> Result<(), ReadError> {
    let store = &services.stores.retention;
    let by_default = effective(None, default);
    let mut after: Option<ConversationId> = None;
    loop {
        // Without a rule of the server only those are looked at that have one of their own.
        let page: Vec<(ConversationId, Retention)> = match by_default {
            None => store.with_retention(after.as_ref(), PAGE).await?,
            Some(_) => {
                let mut page = Vec::new();
                for id in store.logs(after.as_ref(), PAGE).await? {
                    let own = store.retention(&id).await?;
                    page.push((id, own.unwrap_or(default)));
                }
                page
            }
        };
        after = page.last().map(|(id, _)| id.clone());
        let is_last = page.len() < PAGE;
        let rules: Vec<_> =
            page.into_iter().filter_map(|(id, rule)| Some((id, effective(Some(rule), default)?))).collect();
        look_over(services, rules).await?;
        if is_last {
            return Ok(());
        }
    }
}

async fn look_over(services: &Services, rules: Vec<(ConversationId, Retention)>) -> Result<(), ReadError> {
    let log = &services.stores.log;
    let ids: Vec<ConversationId> = rules.iter().map(|(id, _)| id.clone()).collect();
    let tails = log.tails(&ids).await?;
    let now = services.clock.wall();
    for ((conversation, rule), tail) in rules.into_iter().zip(tails) {
        let Some(head) = tail.hinted.as_ref().map(|row| row.seq) else { continue };
        let first = match rule.max_age_ms {
            None => None,
            Some(_) => log.read(&conversation, tail.start.seq, head, ReadLimit::rows(1)).await?.pop(),
        };
        let first = first.map(|row| row.entry.time);
        if !has_nothing_to_trim(rule, &tail, first, now) {
            services.conversations.here().retain(conversation, rule).await;
        }
    }
    Ok(())
}
