//! Rules of retention, and which conversations have a log. Both are lists over all conversations, in parts of their own;
//! a page is merged from all parts.

use bytes::Bytes;
use convoke_protocol::id::ConversationId;
use convoke_protocol::request::changes::Retention;
use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use serde::{Deserialize, Serialize};

use super::users::{conversation_id, limit};
use super::{ScyllaStore, part_of};
use crate::storage::{ReadError, RetentionStore, WriteError, values};

/// Partitions of the list of logs.
pub(super) const LOG_PARTS: i32 = 64;
/// Partitions of the rules.
const RULE_PARTS: i32 = 16;

/// A rule as it is kept.
#[derive(Serialize, Deserialize)]
struct KeptRule {
    max_age_ms: Option<u64>,
    max_messages: Option<u64>,
}

fn rule_of(value: &[u8]) -> Result<Retention, ReadError> {
    let KeptRule { max_age_ms, max_messages } = values::decode("a rule of retention", value)?;
    Ok(Retention { max_age_ms, max_messages })
}

/// How many rows each part is asked for, so that a page of `limit` comes from `parts` of them. Ids are spread evenly, so
/// a part seldom has more of a page than this; if it has, another round follows.
fn per_part(limit: usize, parts: i32) -> usize {
    (limit / parts.unsigned_abs() as usize * 2 + 16).min(limit.max(1))
}

/// The lowest rows of several sorted pages, as far as they are known to be the lowest: a page that is full may go on below
/// what others have. Says whether nothing can follow.
fn merged<T>(pages: Vec<Vec<(String, T)>>, full: usize) -> (Vec<(String, T)>, bool) {
    let ends = pages.iter().filter(|page| page.len() >= full).filter_map(|page| page.last());
    let known_to = ends.map(|(id, _)| id.clone()).min();
    let mut rows: Vec<_> = pages.into_iter().flatten().collect();
    rows.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    match known_to {
        Some(known_to) => {
            rows.truncate(rows.partition_point(|(id, _)| *id <= known_to));
            (rows, false)
        }
        None => (rows, true),
    }
}

/// A page of at most `limit` rows above `after`. `part` reads so many of one part.
async fn page<T, F>(
    parts: i32,
    after: &str,
    limit: usize,
    part: impl Fn(i32, String, usize) -> F,
) -> Result<Vec<(String, T)>, ReadError>
where
    F: Future<Output = Result<Vec<(String, T)>, ReadError>>,
{
    let (mut rows, mut last) = (Vec::new(), false);
    while rows.len() < limit && !last {
        let after = rows.last().map_or(after, |(id, _): &(String, T)| id).to_owned();
        let full = per_part(limit - rows.len(), parts);
        let pages = try_join_all((0..parts).map(|n| part(n, after.clone(), full))).await?;
        let (more, ended) = merged(pages, full);
        rows.extend(more);
        last = ended;
    }
    rows.truncate(limit);
    Ok(rows)
}

impl ScyllaStore {
    async fn page_of_logs(&self, after: &str, at_most: usize) -> Result<Vec<(String, ())>, ReadError> {
        page(LOG_PARTS, after, at_most, |part, after, full| async move {
            let values = (part, after, limit(full));
            let rows: Vec<(String,)> = self.cql().rows(&self.cql().statements.logs, values).await?;
            Ok(rows.into_iter().map(|(id,)| (id, ())).collect())
        })
        .await
    }

    async fn page_of_rules(&self, after: &str, at_most: usize) -> Result<Vec<(String, Bytes)>, ReadError> {
        page(RULE_PARTS, after, at_most, |part, after, full| async move {
            self.cql().rows(&self.cql().statements.with_retention, (part, after, limit(full))).await
        })
        .await
    }
}

impl RetentionStore for ScyllaStore {
    fn set_retention<'a>(
        &'a self,
        conversation: &'a ConversationId,
        retention: Option<Retention>,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            self.is_open()?;
            let (cql, id, now) = (self.cql(), conversation.as_str(), self.shared.now_micros());
            let part = part_of(id, RULE_PARTS);
            match retention {
                Some(Retention { max_age_ms, max_messages }) => {
                    let rule = values::encode(&KeptRule { max_age_ms, max_messages });
                    cql.write(&cql.statements.put_retention, (part, id, rule, now)).await?;
                }
                None => cql.write(&cql.statements.drop_retention, (now, part, id)).await?,
            }
            Ok(())
        }
        .boxed()
    }

    fn retention<'a>(
        &'a self,
        conversation: &'a ConversationId,
    ) -> BoxFuture<'a, Result<Option<Retention>, ReadError>> {
        async move {
            let id = conversation.as_str();
            let values = (part_of(id, RULE_PARTS), id);
            let row: Option<(Bytes,)> = self.cql().row(&self.cql().statements.retention, values).await?;
            row.map(|(value,)| rule_of(&value)).transpose()
        }
        .boxed()
    }

    fn with_retention<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
        at_most: usize,
    ) -> BoxFuture<'a, Result<Vec<(ConversationId, Retention)>, ReadError>> {
        async move {
            let rows = self.page_of_rules(after.map_or("", ConversationId::as_str), at_most).await?;
            rows.iter().map(|(id, rule)| Ok((conversation_id(id)?, rule_of(rule)?))).collect()
        }
        .boxed()
    }

    fn logs<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
        at_most: usize,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, ReadError>> {
        async move {
            let ids = self.page_of_logs(after.map_or("", ConversationId::as_str), at_most).await?;
            ids.iter().map(|(id, ())| conversation_id(id)).collect()
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merged_page_ends_where_a_full_part_may_go_on() {
        let page = |ids: &[&str]| ids.iter().map(|id| ((*id).to_owned(), ())).collect::<Vec<_>>();
        let ids = |(rows, last): (Vec<(String, ())>, bool)| {
            (rows.into_iter().map(|(id, ())| id).collect::<Vec<_>>().join(" "), last)
        };
        assert_eq!(ids(merged(vec![page(&["a", "d"]), page(&["b"]), page(&[])], 3)), ("a b d".into(), true));
        // The second part is full: it may have a "c".
        let pages = vec![page(&["a", "d"]), page(&["a0", "a1", "b"])];
        assert_eq!(ids(merged(pages, 3)), ("a a0 a1 b".into(), false));
    }
}
