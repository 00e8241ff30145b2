//! Reactions: per message and kind a count, and who gives it.

use std::ops::ControlFlow;

use convoke_protocol::id::{ConversationId, Seq, UserId};
use convoke_protocol::message::ReactionCount;
use futures_util::future::{BoxFuture, FutureExt, try_join};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::cql::Failure;
use super::groups::user_id;
use super::{BUCKET, ScyllaStore, Shared, WIDTH, bigint, bucket_of, number};
use crate::storage::{ReactionCounts, ReactionRow, ReactionStore, ReadError};

/// How far above a page's first message counts are looked for, when the page has no end.
const MOST_BUCKETS: u64 = 1_000;

impl Shared {
    pub(super) async fn put_reaction(
        &self,
        conversation: &ConversationId,
        reaction: &ReactionRow,
        stamp: i64,
    ) -> Result<(), Failure> {
        let ReactionRow { target, kind, user, given, count } = reaction;
        let (cql, id) = (&self.cql, conversation.as_str());
        let (bucket, seq) = (bucket_of(*target), bigint(target.0));
        let count = (id, bucket, seq, kind.as_str(), i64::from(*count), stamp);
        let giver = (id, bucket, seq, kind.as_str(), user.as_str(), *given, stamp);
        let count = cql.write(&cql.statements.put_reaction_count, count);
        try_join(count, cql.write(&cql.statements.put_reaction_giver, giver)).await.map(drop)
    }
}

impl ScyllaStore {
    async fn counts(
        &self,
        conversation: &ConversationId,
        from: Seq,
        to: Seq,
    ) -> Result<ReactionCounts, ReadError> {
        let mut found = ReactionCounts::new();
        if from > to {
            return Ok(found);
        }
        let last = (to.0 / BUCKET).min(from.0 / BUCKET + MOST_BUCKETS);
        let buckets = stream::iter(from.0 / BUCKET..=last).map(|bucket| {
            let values = (conversation.as_str(), bigint(bucket), bigint(from.0), bigint(to.0));
            self.cql().rows(&self.cql().statements.reaction_counts, values)
        });
        let rows: Vec<Vec<(i64, String, i64)>> = buckets.buffered(WIDTH).try_collect().await?;
        for (seq, kind, count) in rows.into_iter().flatten().filter(|(.., count)| *count > 0) {
            let (seq, count) = (Seq(number(seq)), u32::try_from(count).unwrap_or(u32::MAX));
            let one = ReactionCount { kind, count };
            match found.last_mut() {
                Some((last, counts)) if *last == seq => counts.push(one),
                _ => found.push((seq, vec![one])),
            }
        }
        Ok(found)
    }
}

impl ReactionStore for ScyllaStore {
    fn reaction_counts<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'a, Result<ReactionCounts, ReadError>> {
        self.counts(conversation, from, to).boxed()
    }

    fn reaction_counts_of<'a>(
        &'a self,
        messages: &'a [(ConversationId, Seq)],
    ) -> BoxFuture<'a, Result<Vec<Vec<ReactionCount>>, ReadError>> {
        stream::iter(messages)
            .map(move |(conversation, seq)| async move {
                let counts = self.counts(conversation, *seq, *seq).await?;
                Ok(counts.into_iter().flat_map(|(_, counts)| counts).collect())
            })
            .buffered(WIDTH)
            .try_collect()
            .boxed()
    }

    fn gives_reactions<'a>(
        &'a self,
        conversation: &'a ConversationId,
        user: &'a UserId,
        of: &'a [(Seq, String)],
    ) -> BoxFuture<'a, Result<Vec<bool>, ReadError>> {
        stream::iter(of)
            .map(move |(seq, kind)| async move {
                let cql = self.cql();
                let values =
                    (conversation.as_str(), bucket_of(*seq), bigint(seq.0), kind.as_str(), user.as_str());
                let row: Option<(bool,)> = cql.row(&cql.statements.reaction_giver, values).await?;
                Ok(row.is_some_and(|(given,)| given))
            })
            .buffered(WIDTH)
            .try_collect()
            .boxed()
    }

    fn reactors<'a>(
        &'a self,
        conversation: &'a ConversationId,
        seq: Seq,
        kind: &'a str,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<UserId>, ReadError>> {
        async move {
            let mut users = Vec::new();
            if limit == 0 {
                return Ok(users);
            }
            let cql = self.cql();
            let after = after.map_or("", UserId::as_str);
            let values = (conversation.as_str(), bucket_of(seq), bigint(seq.0), kind, after);
            cql.for_each(&cql.statements.reaction_givers, values, |(user, given): (String, bool)| {
                if given {
                    users.push(user_id(&user)?);
                }
                Ok(if users.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })
            .await?;
            Ok(users)
        }
        .boxed()
    }
}
