//! For how long a conversation is kept: where its log is to begin, and trimming to there.
//!
//! What may be trimmed is bounded by the log's own rules: below a durable, confirmed hint and below the dedup window
//! ([`super::core::ConversationCore::trim_below`]), so the head always stays.

use convoke_protocol::id::{ConversationId, Seq, Timestamp};
use convoke_protocol::request::changes::Retention;

use crate::storage::{LogStart, MessageLog, ReadError, ReadLimit, Tail};

/// The lowest seq that stays, by number alone.
fn by_count(retention: Retention, head: Seq) -> Seq {
    let most = retention.max_messages.filter(|most| *most > 0);
    most.map_or(Seq(1), |most| Seq(head.0.saturating_sub(most) + 1))
}

/// The time before which messages go.
fn oldest(retention: Retention, now: Timestamp) -> Option<Timestamp> {
    retention.max_age_ms.filter(|age| *age > 0).map(|age| Timestamp(now.0.saturating_sub(age)))
}

/// The rule that holds for a conversation: its own, or the server's. Zeros say nothing.
pub fn effective(own: Option<Retention>, default: Retention) -> Option<Retention> {
    let rule = own.unwrap_or(default);
    let says = |bound: Option<u64>| bound.is_some_and(|bound| bound > 0);
    (says(rule.max_age_ms) || says(rule.max_messages)).then_some(rule)
}

/// Whether a look at the ends of a sleeping log shows that nothing is to be trimmed. `first` is the time of its first row.
pub fn has_nothing_to_trim(
    retention: Retention,
    tail: &Tail,
    first: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    let Some(head) = &tail.hinted else { return true };
    let young = oldest(retention, now).is_none_or(|oldest| first.is_none_or(|first| first >= oldest));
    young && by_count(retention, head.seq) <= tail.start.seq
}

/// Where the log is to begin: as the rule says, at most at `bound`. `None` if it begins there or above it already.
///
/// # Errors
/// A read failed.
pub async fn new_start(
    log: &dyn MessageLog,
    conversation: &ConversationId,
    retention: Retention,
    (start, bound): (Seq, Seq),
    head: Seq,
    now: Timestamp,
) -> Result<Option<LogStart>, ReadError> {
    let mut point = by_count(retention, head);
    if let Some(oldest) = oldest(retention, now) {
        // Times never fall within a conversation: a few single reads find the first that stays.
        let (mut low, mut high) = (start.0.max(point.0), head.0 + 1);
        while low < high {
            let middle = Seq(low + (high - low) / 2);
            let row = log.read(conversation, middle, head, ReadLimit { rows: 1, bytes: 1 }).await?.pop();
            match row {
                Some(row) if row.entry.time < oldest => low = row.seq.0 + 1,
                _ => high = middle.0,
            }
        }
        point = point.max(Seq(low));
    }
    let point = point.min(bound);
    if point <= start || point.0 < 2 {
        return Ok(None);
    }
    let before = Seq(point.0 - 1);
    let row = log.read(conversation, before, before, ReadLimit::rows(1)).await?.pop();
    Ok(row.map(|row| LogStart { seq: point, ordinal: row.entry.ordinal }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::conformance::{append_of, conversation, rows, store};
    use crate::storage::memory::MemoryStore;

    const KEEP_ALL: Retention = Retention { max_age_ms: None, max_messages: None };

    #[tokio::test]
    async fn the_rule_and_the_bound_say_where_a_log_begins() {
        let log = Arc::new(MemoryStore::new());
        let team = conversation("team");
        let all = rows(1, 20, "text");
        assert_eq!(store(&*log, append_of(&team, &all, 0)).await, Ok(()));
        let now = Timestamp(all[19].entry.time.0 + 5);
        let last = |n| Retention { max_messages: Some(n), ..KEEP_ALL };
        let young = |ms| Retention { max_age_ms: Some(ms), ..KEEP_ALL };
        // (rule, start, bound) → where it begins
        let cases = [
            (KEEP_ALL, 1, 21, None),
            (last(5), 1, 21, Some(16)),
            (last(5), 1, 10, Some(10)),
            (last(5), 16, 21, None),
            (last(20), 1, 21, None),
            (last(0), 1, 21, None),
            // Row 12 is 13 ms old.
            (young(13), 1, 21, Some(12)),
            (young(13), 14, 21, None),
            (young(1), 1, 20, Some(20)),
            (Retention { max_age_ms: Some(13), max_messages: Some(3) }, 1, 21, Some(18)),
        ];
        for (rule, start, bound, expected) in cases {
            let bounds = (Seq(start), Seq(bound));
            let found = new_start(&*log, &team, rule, bounds, Seq(20), now).await.expect("readable");
            let expected = expected.map(|seq: u64| LogStart { seq: Seq(seq), ordinal: seq - 1 });
            assert_eq!(found, expected, "{rule:?} from {start} to {bound}");
        }
    }

    #[test]
    fn zeros_say_nothing_and_an_own_rule_hides_the_servers() {
        let last = |n| Retention { max_messages: Some(n), ..KEEP_ALL };
        assert_eq!(effective(None, KEEP_ALL), None);
        assert_eq!(effective(None, last(0)), None);
        assert_eq!(effective(None, last(7)), Some(last(7)));
        assert_eq!(effective(Some(KEEP_ALL), last(7)), None);
        assert_eq!(effective(Some(last(3)), last(7)), Some(last(3)));
    }
}
