//! Whether what is stored is what the invariants promise: what is found, and the rules of a log, whatever keeps it.

use std::collections::{HashMap, HashSet};
use std::fmt;

use convoke_protocol::id::{ClientId, ConversationId, MessageId, Seq, UserId};
use convoke_protocol::message::MessageKind;
use serde::Serialize;

use super::row::NO_MESSAGE;
use super::{Change, LogRow, ReadMark};

/// A report names so many findings; it counts all.
pub const MAX_FINDINGS: usize = 100;

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
    /// No row has a higher epoch than its shard.
    Epoch,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// The version of the store's layout.
    pub format: u32,
    /// The program that created the store; empty for a cluster's.
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

    /// Takes in what was found about a part.
    pub(super) fn absorb(&mut self, part: Self) {
        self.conversations += part.conversations;
        self.messages += part.messages;
        self.groups += part.groups;
        self.members += part.members;
        self.reactions += part.reactions;
        self.wrong += part.wrong;
        let room = MAX_FINDINGS.saturating_sub(self.findings.len());
        self.findings.extend(part.findings.into_iter().take(room));
    }

    pub(super) fn find(
        &mut self,
        rule: Rule,
        conversation: Option<&ConversationId>,
        seq: Option<Seq>,
        what: String,
    ) {
        self.wrong += 1;
        if self.findings.len() < MAX_FINDINGS {
            let conversation = conversation.map(ToString::to_string);
            self.findings.push(Finding { conversation, seq: seq.map(|seq| seq.0), rule, what });
        }
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.created_by.as_str() {
            "" => writeln!(f, "schema version {}, {} shards", self.format, self.shards)?,
            by => writeln!(f, "format {}, created by {by}, {} shards", self.format, self.shards)?,
        }
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

/// Whether what an entry does to an earlier row is there.
pub(super) fn is_done(change: &Change, entry: Seq, target: &LogRow) -> bool {
    match change {
        Change::Edit { .. } => target.entry.last_edit >= Some(entry),
        Change::Recall { .. } => target.entry.recalled_at.is_some(),
        Change::Delete { .. } => target.entry.deleted_at.is_some(),
        Change::React { .. } | Change::Members(_) | Change::Group(..) => true,
    }
}

/// A conversation on the way through its rows, from the first one up.
pub(super) struct LogCheck {
    pub(super) conversation: ConversationId,
    first: Seq,
    pub(super) last: Option<LogRow>,
    ids: HashSet<MessageId>,
    client_ids: HashSet<(UserId, ClientId)>,
    /// The last message of each sender.
    pub(super) sent: HashMap<UserId, ReadMark>,
    /// What does not count as unread.
    pub(super) uncounted: Vec<Seq>,
}

impl LogCheck {
    /// A log that begins at `first`.
    pub(super) fn new(conversation: ConversationId, first: Seq) -> Self {
        let (ids, client_ids) = (HashSet::new(), HashSet::new());
        let (sent, uncounted) = (HashMap::new(), Vec::new());
        Self { conversation, first, last: None, ids, client_ids, sent, uncounted }
    }

    /// Whether a row is left of a trim that did not end: nobody reads it.
    pub(super) fn is_below(&self, seq: Seq) -> bool {
        seq < self.first
    }

    /// Whether a row is the next one, and names the one before it.
    pub(super) fn follows(&self, row: &LogRow) -> bool {
        match &self.last {
            Some(last) => row.seq == last.seq.next() && row.prev == last.id,
            None => row.seq == self.first && (row.prev == NO_MESSAGE || self.first > Seq(1)),
        }
    }

    /// Takes the next row.
    pub(super) fn row(&mut self, row: LogRow, report: &mut CheckReport) {
        if self.is_below(row.seq) {
            return;
        }
        let first = self.first;
        let conversation = &self.conversation;
        let mut find = |rule, what| report.find(rule, Some(conversation), Some(row.seq), what);
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
        self.last = Some(row);
    }
}
