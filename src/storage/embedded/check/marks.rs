//! Whether read marks and settings agree with the logs.

use convoke_protocol::id::Seq;
use fjall::Readable;

use super::head;
use crate::storage::ReadLimit;
use crate::storage::check::{CheckReport, LogCheck, Rule};
use crate::storage::embedded::OpenError;
use crate::storage::embedded::database::Rows;
use crate::storage::embedded::keys::{self, Mark, OwnedMark};
use crate::storage::embedded::marks::{read_mark, read_setting};
use crate::storage::user_conversations::ConversationSettings;

/// What a log says must be among the marks.
pub(super) fn check_log(rows: &Rows, log: &LogCheck, report: &mut CheckReport) -> Result<(), OpenError> {
    let conversation = &log.conversation;
    for (user, last) in &log.sent {
        let kept = rows.marks.get(keys::mark(conversation, Mark::Sent(user)))?;
        let kept = kept.and_then(|value| read_mark(&value));
        if kept != Some(*last) {
            let what = format!("the last message of {user} is {}, its mark is {kept:?}", last.seq);
            report.find(Rule::SentMark, Some(conversation), Some(last.seq), what);
        }
    }
    for seq in &log.uncounted {
        if !rows.marks.contains_key(keys::mark(conversation, Mark::Uncounted(*seq)))? {
            let what = "is gone and still counts as unread".into();
            report.find(Rule::Uncounted, Some(conversation), Some(*seq), what);
        }
    }
    Ok(())
}

/// What is among the marks and settings must make sense.
pub(super) fn check(rows: &Rows, report: &mut CheckReport) -> Result<(), OpenError> {
    for guard in rows.database.snapshot().iter(&rows.marks) {
        let (key, value) = guard.into_inner()?;
        report.marks += 1;
        let Some((conversation, mark)) = keys::split_mark(&key) else {
            report.find(Rule::Readable, None, None, format!("a mark's key is {}", key.escape_ascii()));
            continue;
        };
        let row = |seq| {
            let found = rows.read(&conversation, seq, seq, ReadLimit::rows(1));
            // A row that cannot be read was found before.
            found.ok().and_then(|mut rows| rows.pop())
        };
        let mut find = |rule, seq, what| report.find(rule, Some(&conversation), Some(seq), what);
        match mark {
            OwnedMark::Uncounted(seq) => {
                if row(seq).is_some_and(|row| !row.is_uncounted()) {
                    find(Rule::Uncounted, seq, "is there and does not count as unread".into());
                }
            }
            // That it is the last one is looked at with the log.
            OwnedMark::Sent(user) => {
                let Some(mark) = read_mark(&value) else {
                    find(Rule::Readable, Seq::ZERO, format!("a mark of {user} has {} bytes", value.len()));
                    continue;
                };
                if row(mark.seq).is_some_and(|row| row.entry.sender != user) {
                    find(Rule::SentMark, mark.seq, format!("is not a message of {user}"));
                }
            }
            OwnedMark::Read(user) => {
                let Some(mark) = read_mark(&value) else {
                    find(Rule::Readable, Seq::ZERO, format!("a mark of {user} has {} bytes", value.len()));
                    continue;
                };
                let head = head(rows, &conversation)?;
                if mark.seq > head {
                    find(Rule::Mark, mark.seq, format!("{user} has read above the head {head}"));
                } else if row(mark.seq).is_some_and(|row| row.entry.ordinal != mark.ordinal) {
                    find(Rule::Mark, mark.seq, format!("the mark of {user} has ordinal {}", mark.ordinal));
                }
            }
        }
    }
    for guard in rows.database.snapshot().iter(&rows.settings) {
        let (key, value) = guard.into_inner()?;
        report.settings += 1;
        let readable = keys::split_setting(&key)
            .and_then(|(.., field)| read_setting(&mut ConversationSettings::default(), field, &value));
        if readable.is_none() {
            report.find(Rule::Readable, None, None, format!("a setting is {}", key.escape_ascii()));
        }
    }
    Ok(())
}
