//! Whether what is stored is what the invariants promise.
//!
//! The store is opened for this alone, without its writer and without background work: apart from what opening mends
//! (a torn end of the journal) nothing is changed. Memory follows the longest conversation.

mod marks;
mod projected;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use convoke_protocol::id::{ClientId, ConversationId, MessageId, Seq, UserId};
use convoke_protocol::message::MessageKind;
use fjall::Readable;
use serde::Serialize;

use super::database::{Rows, RowsOptions, decode};
use super::{OpenError, keys};
use crate::storage::row::NO_MESSAGE;
use crate::storage::{Hint, LogRow, ReadMark};

/// A report names so many findings; it counts all.
pub const MAX_FINDINGS: usize = 100;

const CACHE_BYTES: u64 = 8 << 20;

/// What is wrong with one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The conversation, if the thing belongs to one.
    pub conversation: Option<String>,
    /// The number of the row, if it is one.
    pub seq: Option<u64>,
    /// Which rule is broken.
    pub rule: Rule,
    /// How.
    pub what: String,
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Keys and values can be read.
    Readable,
    /// The seqs of a conversation are first … head without a gap (a key cannot be there twice).
    NoGap,
    /// A row names the id of the row before it.
    Chain,
    /// Times never fall.
    Time,
    /// No id is there twice in a conversation.
    UniqueId,
    /// No client id of one sender is there twice in a conversation (I3).
    UniqueClientId,
    /// The ordinal counts the messages of users.
    Ordinal,
    /// `base` and `window` are not above the row.
    BaseAndWindow,
    /// A direct conversation is in the lists of its users.
    Listed,
    /// What a list names has a log.
    ListedLog,
    /// A cursor is not above the head.
    Cursor,
    /// A read mark is not above the head and has the ordinal of its row.
    Mark,
    /// Every sender's mark is at its last message.
    SentMark,
    /// What was recalled or deleted is in the index of what does not count as unread, and nothing else is.
    Uncounted,
    /// What an entry changes is changed, and comes before it.
    Projected,
    /// A member has a group; both name the entry that wrote them.
    Group,
    /// Each count of reactions is that of the users who give it, to a message that is there.
    Reactions,
    /// A hint names a row that is there.
    Hint,
    /// A log does not begin above its head.
    Start,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The version of the store's layout.
    pub format: u32,
    /// The program that created the store.
    pub created_by: String,
    /// Into how many shards the ids are divided.
    pub shards: u32,
    /// Conversations with at least one row.
    pub conversations: u64,
    /// Rows of messages.
    pub messages: u64,
    /// Entries of users' lists.
    pub list_entries: u64,
    /// Cursors of devices.
    pub cursors: u64,
    /// Read marks of users, and what they need.
    pub marks: u64,
    /// Settings of users.
    pub settings: u64,
    /// Groups.
    pub groups: u64,
    /// Their members, those who left included.
    pub members: u64,
    /// Reactions and their counts.
    pub reactions: u64,
    /// What users hid for themselves.
    pub hidden: u64,
    /// Bytes of a batch that was torn by a crash; they were cut off, nothing in them was acknowledged.
    pub torn_bytes: u64,
    /// How much is wrong.
    pub wrong: u64,
    /// The first [`MAX_FINDINGS`] of it.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.wrong == 0
    }

    fn find(&mut self, rule: Rule, conversation: Option<&ConversationId>, seq: Option<Seq>, what: String) {
        self.wrong += 1;
        if self.findings.len() < MAX_FINDINGS {
            let conversation = conversation.map(ToString::to_string);
            self.findings.push(Finding { conversation, seq: seq.map(|seq| seq.0), rule, what });
        }
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "format {}, created by {}, {} shards", self.format, self.created_by, self.shards)?;
        writeln!(
            f,
            "{} conversations, {} messages, {} list entries, {} cursors, {} marks, {} settings",
            self.conversations, self.messages, self.list_entries, self.cursors, self.marks, self.settings
        )?;
        writeln!(
            f,
            "{} groups, {} members, {} reactions, {} hidden",
            self.groups, self.members, self.reactions, self.hidden
        )?;
        if self.torn_bytes > 0 {
            writeln!(f, "{} bytes of an unacknowledged batch were cut off after a crash", self.torn_bytes)?;
        }
        for Finding { conversation, seq, rule, what } in &self.findings {
            write!(f, "WRONG {rule:?}")?;
            if let Some(conversation) = conversation {
                write!(f, " {conversation}")?;
            }
            if let Some(seq) = seq {
                write!(f, " {seq}")?;
            }
            writeln!(f, ": {what}")?;
        }
        match self.wrong {
            0 => writeln!(f, "good"),
            wrong if wrong > self.findings.len() as u64 => {
                writeln!(f, "{wrong} things are wrong; the first {} are above", self.findings.len())
            }
            wrong => writeln!(f, "{wrong} things are wrong"),
        }
    }
}

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
    conversation: ConversationId,
    hint: Option<Hint>,
    last: Option<LogRow>,
    ids: HashSet<MessageId>,
    client_ids: HashSet<(UserId, ClientId)>,
    /// The last message of each sender.
    sent: HashMap<UserId, ReadMark>,
    uncounted: Vec<Seq>,
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
        if log.as_ref().is_none_or(|log| log.conversation != conversation) {
            report.conversations += 1;
            if let Some(log) = &log {
                marks::check_log(rows, log, report)?;
            }
            check_listed(rows, &conversation, report)?;
            let (ids, client_ids) = (HashSet::new(), HashSet::new());
            let (sent, uncounted) = (HashMap::new(), Vec::new());
            // One that cannot be read is found with its row.
            let hint = rows.kept_hint(&conversation).unwrap_or_default();
            log = Some(Log { conversation, hint, last: None, ids, client_ids, sent, uncounted });
        }
        let Some(log) = &mut log else { continue };
        match decode(&key, &value) {
            Ok(row) => log.check(rows, row, report),
            Err(error) => {
                report.find(Rule::Readable, Some(&log.conversation), Some(seq), error.to_string());
            }
        }
    }
    if let Some(log) = &log {
        marks::check_log(rows, log, report)?;
    }
    Ok(())
}

impl Log {
    fn check(&mut self, rows: &Rows, row: LogRow, report: &mut CheckReport) {
        let conversation = &self.conversation;
        let mut find = |rule, what| report.find(rule, Some(conversation), Some(row.seq), what);
        let first = match rows.start(conversation) {
            Ok(start) => start.seq,
            Err(error) => {
                find(Rule::Readable, error.to_string());
                Seq(1)
            }
        };
        if row.seq < first {
            // A trim that did not end: nobody reads it.
            return;
        }
        let expected = self.last.as_ref().map_or(first, |last| last.seq.next());
        if row.seq != expected {
            find(Rule::NoGap, format!("{expected} should be here"));
        } else {
            // What the row before is not known, because of a gap or a trim, says nothing about this one.
            let before = self.last.as_ref().map(|last| (last.id, last.entry.ordinal));
            let before = before.or((first == Seq(1)).then_some((NO_MESSAGE, 0)));
            if let Some((id, ordinal)) = before {
                if row.prev != id {
                    find(Rule::Chain, format!("names {} before it, not {id}", row.prev));
                }
                let expected = ordinal + u64::from(row.entry.kind == MessageKind::USER);
                if row.entry.ordinal != expected {
                    find(Rule::Ordinal, format!("has ordinal {}, not {expected}", row.entry.ordinal));
                }
            }
        }
        if let Some(last) = self.last.as_ref().filter(|last| last.entry.time > row.entry.time) {
            find(
                Rule::Time,
                format!("is of {}, earlier than {} of {}", row.entry.time, last.entry.time, last.seq),
            );
        }
        if !self.ids.insert(row.id) {
            find(Rule::UniqueId, format!("{} is there a second time", row.id));
        }
        if !self.client_ids.insert((row.entry.sender.clone(), row.entry.client_id)) {
            let (client_id, sender) = (row.entry.client_id, &row.entry.sender);
            find(Rule::UniqueClientId, format!("client id {client_id} of {sender} is there a second time"));
        }
        if row.base > row.seq || row.window > row.seq {
            find(Rule::BaseAndWindow, format!("has base {} and window {}", row.base, row.window));
        }
        if row.entry.kind == MessageKind::USER {
            self.sent.insert(row.entry.sender.clone(), row.mark());
        }
        if row.is_uncounted() {
            self.uncounted.push(row.seq);
        }
        projected::check_entry(rows, &self.conversation, self.hint, &row, report);
        self.last = Some(row);
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
