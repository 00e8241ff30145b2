//! Whether what is stored is what the invariants promise.
//!
//! The store is opened for this alone, without its writer and without background work: apart from what opening mends
//! (a torn end of the journal) nothing is changed. Memory follows the longest conversation.

mod marks;
mod projected;

use std::path::Path;

use convoke_protocol::id::{ConversationId, Seq};
use fjall::Readable;

use super::database::{Rows, RowsOptions, decode};
use super::{OpenError, keys};
use crate::storage::check::{CheckReport, LogCheck, Rule};
use crate::storage::{Hint, LogRow};

const CACHE_BYTES: u64 = 8 << 20;

/// Reads everything in the store of a directory and says what is wrong. Blocks; nobody else may have the store open.
///
/// # Errors
/// The store cannot be opened.
pub fn check(dir: &Path) -> Result<CheckReport, OpenError> {
    let options = RowsOptions { cache_bytes: CACHE_BYTES, create_with_shards: None, background: false };
    let rows = Rows::open(dir, options)?;
    let mut report = CheckReport {
        format: rows.format.version,
        created_by: rows.format.created_by.clone(),
        shards: rows.format.shards,
        torn_bytes: rows.torn_bytes,
        ..CheckReport::default()
    };
    check_logs(&rows, &mut report)?;
    check_lists(&rows, &mut report)?;
    check_cursors(&rows, &mut report)?;
    marks::check(&rows, &mut report)?;
    projected::check(&rows, &mut report)?;
    Ok(report)
}

/// A conversation on the way through its rows.
struct Log {
    checked: LogCheck,
    hint: Option<Hint>,
}

fn check_logs(rows: &Rows, report: &mut CheckReport) -> Result<(), OpenError> {
    let mut log: Option<Log> = None;
    for guard in rows.database.snapshot().iter(&rows.messages) {
        let (key, value) = guard.into_inner()?;
        let Some((conversation, seq)) = keys::split_message(&key) else {
            report.find(Rule::Readable, None, None, format!("a message's key is {}", key.escape_ascii()));
            continue;
        };
        report.messages += 1;
        if log.as_ref().is_none_or(|log| log.checked.conversation != conversation) {
            report.conversations += 1;
            if let Some(log) = &log {
                marks::check_log(rows, &log.checked, report)?;
            }
            check_listed(rows, &conversation, report)?;
            // One that cannot be read is found among what is kept of logs.
            let hint = rows.kept_hint(&conversation).unwrap_or_default();
            let first = rows.start(&conversation).unwrap_or_default().seq;
            log = Some(Log { checked: LogCheck::new(conversation, first), hint });
        }
        let Some(log) = &mut log else { continue };
        match decode(&key, &value) {
            Ok(row) => log.check(rows, row, report),
            Err(error) => {
                report.find(Rule::Readable, Some(&log.checked.conversation), Some(seq), error.to_string());
            }
        }
    }
    if let Some(log) = &log {
        marks::check_log(rows, &log.checked, report)?;
    }
    Ok(())
}

impl Log {
    fn check(&mut self, rows: &Rows, row: LogRow, report: &mut CheckReport) {
        if !self.checked.is_below(row.seq) {
            projected::check_entry(rows, &self.checked.conversation, self.hint, &row, report);
        }
        self.checked.row(row, report);
    }
}

fn check_listed(
    rows: &Rows,
    conversation: &ConversationId,
    report: &mut CheckReport,
) -> Result<(), OpenError> {
    for user in conversation.direct_users() {
        if !rows.lists.contains_key(keys::list(&user, conversation))? {
            report.find(Rule::Listed, Some(conversation), None, format!("is not in the list of {user}"));
        }
    }
    Ok(())
}

fn check_lists(rows: &Rows, report: &mut CheckReport) -> Result<(), OpenError> {
    for guard in rows.database.snapshot().iter(&rows.lists) {
        let key = guard.key()?;
        report.list_entries += 1;
        let Some((user, conversation)) = keys::split_list(&key) else {
            report.find(Rule::Readable, None, None, format!("a list's key is {}", key.escape_ascii()));
            continue;
        };
        if head(rows, &conversation)? == Seq::ZERO {
            report.find(
                Rule::ListedLog,
                Some(&conversation),
                None,
                format!("{user} has it and it has no log"),
            );
        }
    }
    Ok(())
}

fn check_cursors(rows: &Rows, report: &mut CheckReport) -> Result<(), OpenError> {
    for guard in rows.database.snapshot().iter(&rows.cursors) {
        let (key, value) = guard.into_inner()?;
        report.cursors += 1;
        let (Some((user, device, conversation)), Some(seq)) =
            (keys::split_cursor(&key), keys::read_seq(&value))
        else {
            report.find(Rule::Readable, None, None, format!("a cursor's key is {}", key.escape_ascii()));
            continue;
        };
        let head = head(rows, &conversation)?;
        if seq > head {
            let what = format!("{device} of {user} has a cursor above the head {head}");
            report.find(Rule::Cursor, Some(&conversation), Some(seq), what);
        }
    }
    Ok(())
}

/// The highest seq of a log, whether or not its row can be read; 0 if it is empty.
fn head(rows: &Rows, conversation: &ConversationId) -> Result<Seq, OpenError> {
    let (from, to) = (keys::message(conversation, Seq::ZERO), keys::message(conversation, Seq(u64::MAX)));
    let Some(guard) = rows.database.snapshot().range(&rows.messages, from..=to).next_back() else {
        return Ok(Seq::ZERO);
    };
    Ok(keys::split_message(&guard.key()?).map_or(Seq::ZERO, |(_, seq)| seq))
}
