//! What a conversation that serves asks of the store and of its shard's owner. Each answer comes back as a message.

use std::sync::Arc;
use std::time::Instant;

use super::Serving;
use crate::actors::conversation::change::{ReactionState, Targets};
use crate::actors::conversation::core::{IdSource as _, LoadTarget};
use crate::actors::conversation::recovering::listed_for;
use crate::actors::conversation::{Activation, Message, retention};
use crate::storage::{
    Append, AppendError, Hint, LogRow, Projection, ReadError, ReadLimit, Stores, WriteStamp,
};

impl Serving {
    /// Asks whether what is durable counts; the answer comes as a message.
    pub(super) fn confirm(&self, activation: &Activation) {
        let (owned, actor) = (activation.ownership(), self.handle.actor.clone());
        let (metrics, begin) = (activation.surroundings.metrics.clone(), Instant::now());
        tokio::spawn(async move {
            let still_owner = owned.confirm().await;
            metrics.cluster_times.confirmed.observe(begin.elapsed().as_secs_f64());
            let _ = actor.cast(Message::Confirmed(still_owner));
        });
    }

    pub(super) fn append(&self, activation: &Activation, rows: &Arc<[LogRow]>, stamp: WriteStamp) {
        let append = Append {
            conversation: activation.conversation.clone(),
            rows: rows.to_vec(),
            stamp,
            listed_for: listed_for(&activation.conversation, rows),
        };
        let actor = self.handle.actor.clone();
        let done = move |outcome| {
            // An activation that died learns from the store what was written when it begins anew.
            let _ = actor.cast(Message::Written(outcome));
        };
        activation.surroundings.stores.log.append(append, Box::new(done));
    }

    pub(super) fn project(&self, activation: &Activation, projection: &Projection) {
        let actor = self.handle.actor.clone();
        let done =
            move |outcome: Result<(), AppendError>| drop(actor.cast(Message::Projected(outcome.is_ok())));
        activation.surroundings.stores.log.project(projection.clone(), Box::new(done));
    }

    pub(super) fn keep_hint(&self, activation: &Activation, hint: Hint, stamp: WriteStamp) {
        let (actor, conversation) = (self.handle.actor.clone(), activation.conversation.clone());
        let log = activation.surroundings.stores.log.clone();
        let owned = activation.ownership();
        tokio::spawn(async move {
            let still_owner = match log.put_hint(&conversation, hint, stamp).await {
                Ok(()) => Some(owned.confirm().await),
                Err(error) => {
                    tracing::warn!(%conversation, %error, "a hint is not kept");
                    None
                }
            };
            let _ = actor.cast(Message::Hinted(still_owner));
        });
    }

    pub(super) fn load(&self, activation: &Activation, targets: Vec<LoadTarget>) {
        let (actor, conversation) = (self.handle.actor.clone(), activation.conversation.clone());
        let stores = activation.surroundings.stores.clone();
        tokio::spawn(async move {
            let loaded = load(&stores, &conversation, targets).await;
            let _ = actor.cast(Message::Loaded(loaded.map_err(|error| error.to_string())));
        });
    }

    pub(super) fn trim(&mut self, activation: &Activation) {
        let Some(rule) = self.retain else { return };
        let (actor, conversation) = (self.handle.actor.clone(), activation.conversation.clone());
        let log = activation.surroundings.stores.log.clone();
        let bounds = (self.core.start().seq, self.core.trim_below());
        let (head, now) = (self.core.head().seq, activation.surroundings.clock.wall());
        let stamp = self.ids.write_stamp();
        tokio::spawn(async move {
            let start = match retention::new_start(&*log, &conversation, rule, bounds, head, now).await {
                Ok(start) => start,
                Err(error) => {
                    tracing::warn!(%conversation, %error, "where a log is to begin cannot be read");
                    None
                }
            };
            let trimmed = match start {
                Some(start) => match log.trim(&conversation, start, stamp).await {
                    Ok(()) => Some(start),
                    Err(error) => {
                        tracing::warn!(%conversation, %error, "a log is not trimmed");
                        None
                    }
                },
                None => None,
            };
            let _ = actor.cast(Message::Trimmed(trimmed));
        });
    }
}

/// Reads what commands name.
async fn load(
    stores: &Stores,
    conversation: &convoke_protocol::id::ConversationId,
    wanted: Vec<LoadTarget>,
) -> Result<Targets, ReadError> {
    let one = |seq| stores.log.read(conversation, seq, seq, ReadLimit::rows(1));
    let mut targets = Targets::default();
    for LoadTarget { seq, reactions } in wanted {
        let Some(row) = one(seq).await?.pop() else { continue };
        if let Some(last_edit) = row.entry.last_edit {
            targets.rows.extend(one(last_edit).await?.pop().map(|row| (last_edit, row)));
        }
        targets.rows.insert(seq, row);
        if reactions.is_empty() {
            continue;
        }
        let counts = stores.reactions.reaction_counts(conversation, seq, seq).await?;
        let mut state = ReactionState::default();
        for count in counts.into_iter().flat_map(|(_, counts)| counts) {
            state.counts.insert(count.kind, count.count);
        }
        for (user, kind) in reactions {
            let of = [(seq, kind)];
            let given = stores.reactions.gives_reactions(conversation, &user, &of).await?;
            let [(_, kind)] = of;
            state.given.insert((user, kind), given.first().copied().unwrap_or(false));
        }
        targets.reactions.insert(seq, state);
    }
    Ok(targets)
}
