//! Whether what entries change is in its places: rows, groups and their members, reactions; and what is kept of logs.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::request::changes::Retention;
use fjall::Readable;

use super::head;
use crate::storage::check::{CheckReport, Rule, is_done};
use crate::storage::embedded::OpenError;
use crate::storage::embedded::database::Rows;
use crate::storage::embedded::groups;
use crate::storage::embedded::logs;
use crate::storage::embedded::reactions::{self, Reaction};
use crate::storage::values::decode;
use crate::storage::{Change, GroupRow, Hint, JoinRequestRow, LogRow, MemberRow, ReadLimit};

fn row(rows: &Rows, conversation: &ConversationId, seq: Seq) -> Option<LogRow> {
    // A row that cannot be read is found with its log.
    rows.read(conversation, seq, seq, ReadLimit::rows(1)).ok().and_then(|mut rows| rows.pop())
}

/// What an entry changes must be done, unless it lies above the hint: then whoever begins with the conversation does it.
pub(super) fn check_entry(
    rows: &Rows,
    conversation: &ConversationId,
    hint: Option<Hint>,
    entry: &LogRow,
    report: &mut CheckReport,
) {
    let Some(change) = &entry.entry.change else { return };
    if change.target().is_some_and(|target| target >= entry.seq) {
        let what = "changes what comes after it".into();
        return report.find(Rule::Projected, Some(conversation), Some(entry.seq), what);
    }
    if hint.is_none_or(|hint| hint.base < entry.seq) {
        return;
    }
    let Some(target) = change.target().and_then(|target| row(rows, conversation, target)) else { return };
    let done = is_done(change, entry.seq, &target);
    if !done {
        let what = format!("what it does to {} is not there", target.seq);
        report.find(Rule::Projected, Some(conversation), Some(entry.seq), what);
    }
}

/// Groups, reactions, hidden messages, and what is kept of logs.
pub(super) fn check(rows: &Rows, report: &mut CheckReport) -> Result<(), OpenError> {
    check_groups(rows, report)?;
    check_reactions(rows, report)?;
    check_logs(rows, report)?;
    for guard in rows.database.snapshot().iter(&rows.hidden) {
        let (key, value) = guard.into_inner()?;
        report.hidden += 1;
        if !crate::storage::embedded::hidden::is_readable(&key, &value) {
            let what = format!("what somebody hid is {}", key.escape_ascii());
            report.find(Rule::Readable, None, None, what);
        }
    }
    Ok(())
}

fn check_groups(rows: &Rows, report: &mut CheckReport) -> Result<(), OpenError> {
    for guard in rows.database.snapshot().iter(&rows.groups) {
        let (key, value) = guard.into_inner()?;
        if key.first() == Some(&groups::CREATION) {
            continue;
        }
        let unreadable = || format!("a row of a group is {}", key.escape_ascii());
        let Some((group, kind, _)) = groups::split(&key) else {
            report.find(Rule::Readable, None, None, unreadable());
            continue;
        };
        let conversation = ConversationId::group(&group);
        let version = match kind {
            groups::GROUP => {
                report.groups += 1;
                decode::<GroupRow>("a group", &value).map(|row| Some(row.version))
            }
            groups::MEMBER => {
                report.members += 1;
                decode::<MemberRow>("a member", &value).map(|row| Some(row.version))
            }
            _ => decode::<JoinRequestRow>("a request", &value).map(|_| None),
        };
        let Ok(version) = version else {
            report.find(Rule::Readable, Some(&conversation), None, unreadable());
            continue;
        };
        if kind != groups::GROUP && !rows.groups.contains_key(groups::key(&group, groups::GROUP, ""))? {
            report.find(Rule::Group, Some(&conversation), version, "has members and is no group".into());
        }
        let Some(version) = version else { continue };
        let head = head(rows, &conversation)?;
        let entry = row(rows, &conversation, version);
        if version > head {
            report.find(Rule::Group, Some(&conversation), Some(version), format!("is above the head {head}"));
        } else if entry
            .is_some_and(|entry| !matches!(entry.entry.change, Some(Change::Group(..) | Change::Members(_))))
        {
            report.find(Rule::Group, Some(&conversation), Some(version), "changes no group".into());
        }
    }
    Ok(())
}

fn check_reactions(rows: &Rows, report: &mut CheckReport) -> Result<(), OpenError> {
    // The rows of one message lie together.
    let mut at: Option<(ConversationId, Seq)> = None;
    let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let end = |at: &Option<(ConversationId, Seq)>,
               counts: &mut BTreeMap<String, (u64, u64)>,
               report: &mut CheckReport| {
        let Some((conversation, seq)) = at else { return };
        for (kind, (said, given)) in std::mem::take(counts) {
            if said != given {
                let what = format!("{given} give it {kind:?}, the count says {said}");
                report.find(Rule::Reactions, Some(conversation), Some(*seq), what);
            }
        }
    };
    for guard in rows.database.snapshot().iter(&rows.reactions) {
        let (key, value) = guard.into_inner()?;
        report.reactions += 1;
        let Some((conversation, seq, reaction)) = reactions::split(&key) else {
            report.find(Rule::Readable, None, None, format!("a reaction is {}", key.escape_ascii()));
            continue;
        };
        let here = Some((conversation, seq));
        if at != here {
            end(&at, &mut counts, report);
            at = here;
            if let Some((conversation, seq)) = &at
                && *seq > head(rows, conversation)?
            {
                let what = "is reacted to and is above the head".into();
                report.find(Rule::Reactions, Some(conversation), Some(*seq), what);
            }
        }
        match reaction {
            Reaction::Count(kind) => match decode::<u32>("a count", &value) {
                Ok(count) => counts.entry(kind).or_default().0 += u64::from(count),
                Err(error) => report.find(Rule::Readable, None, Some(seq), error.to_string()),
            },
            Reaction::Giver(kind, _) => counts.entry(kind).or_default().1 += 1,
        }
    }
    end(&at, &mut counts, report);
    Ok(())
}

fn check_logs(rows: &Rows, report: &mut CheckReport) -> Result<(), OpenError> {
    for guard in rows.database.snapshot().iter(&rows.logs) {
        let (key, value) = guard.into_inner()?;
        let Some((kind, conversation)) = logs::split(&key) else {
            report.find(Rule::Readable, None, None, format!("a row of a log is {}", key.escape_ascii()));
            continue;
        };
        let mut find = |rule, seq, what| report.find(rule, Some(&conversation), seq, what);
        let head = head(rows, &conversation)?;
        match kind {
            logs::HINT => match logs::read_hint(&value) {
                Ok(hint) if row(rows, &conversation, hint.base).is_none_or(|row| row.id != hint.id) => {
                    find(
                        Rule::Hint,
                        Some(hint.base),
                        "is what the hint names, and is missing or another".into(),
                    );
                }
                Ok(_) => {}
                Err(error) => find(Rule::Readable, None, error.to_string()),
            },
            logs::START => match logs::read_start(&value) {
                Ok(start) if start.seq > head => {
                    find(Rule::Start, Some(start.seq), format!("is where it begins, above the head {head}"));
                }
                Ok(_) => {}
                Err(error) => find(Rule::Readable, None, error.to_string()),
            },
            logs::CHANGED => {
                if let Err(error) = decode::<Seq>("the last change", &value) {
                    find(Rule::Readable, None, error.to_string());
                }
            }
            logs::RETENTION => {
                if let Err(error) = decode::<Retention>("a retention", &value) {
                    find(Rule::Readable, None, error.to_string());
                }
            }
            logs::LOG if head == Seq::ZERO => find(Rule::ListedLog, None, "is said to have a log".into()),
            logs::LOG => {}
            _ => find(Rule::Readable, None, format!("a row of kind {kind}")),
        }
    }
    Ok(())
}
