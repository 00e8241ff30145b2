//! Read marks that wait to be written, and how marks and settings lie on the disk.

use std::collections::{HashMap, HashSet};

use convoke_protocol::id::{ConversationId, Seq, UserId};
use fjall::{Readable, UserKey, UserValue};
use parking_lot::Mutex;

use super::cursors::{MANY_CURSORS, Nudge};
use super::database::{Rows, read_error};
use super::keys::{self, Mark};
use super::queue::{Small, SmallRow};
use crate::storage::read_marks::{MarkKey, ReadMark, RowsAbove};
use crate::storage::user_conversations::{ConversationSettings, SettingsChange};
use crate::storage::{LogRow, ReadError, WriteError, read_marks};

/// The marks that are not written yet: readable at once, durable a little later.
#[derive(Default)]
pub(super) struct PendingMarks {
    state: Mutex<State>,
}

type Marks = HashMap<UserId, HashMap<ConversationId, ReadMark>>;

#[derive(Default)]
struct State {
    waiting: Marks,
    count: usize,
    /// What the writer has taken and not finished.
    writing: Marks,
    /// Why nothing is taken any more.
    closed: Option<String>,
}

impl PendingMarks {
    pub(super) fn put(&self, marks: &[(MarkKey, ReadMark)]) -> Result<Nudge, WriteError> {
        let mut state = self.state.lock();
        if let Some(reason) = &state.closed {
            return Err(WriteError(reason.clone()));
        }
        if state.count + marks.len() > 2 * MANY_CURSORS {
            return Err(WriteError("too many read marks wait to be written".into()));
        }
        let before = state.count;
        let mut count = before;
        for (MarkKey { user, conversation }, mark) in marks {
            let of_user = state.waiting.entry(user.clone()).or_default();
            let kept = of_user.entry(conversation.clone()).or_insert_with(|| {
                count += 1;
                ReadMark::default()
            });
            *kept = mark.max(kept).to_owned();
        }
        state.count = count;
        Ok(match count {
            count if count >= MANY_CURSORS => Nudge::Now,
            count if before == 0 && count > 0 => Nudge::Soon,
            _ => Nudge::None,
        })
    }

    /// The highest waiting marks, in the order of the keys.
    pub(super) fn get(&self, of: &[MarkKey]) -> Vec<Option<ReadMark>> {
        let state = self.state.lock();
        let get = |marks: &Marks, key: &MarkKey| marks.get(&key.user)?.get(&key.conversation).copied();
        of.iter().map(|key| get(&state.waiting, key).max(get(&state.writing, key))).collect()
    }

    /// Where marks of this user wait.
    pub(super) fn conversations(&self, user: &UserId) -> HashSet<ConversationId> {
        let state = self.state.lock();
        let of = [&state.waiting, &state.writing].into_iter().filter_map(|marks| marks.get(user));
        of.flat_map(HashMap::keys).cloned().collect()
    }

    /// Takes all that waits; it stays readable until [`Self::written`].
    pub(super) fn take(&self) -> Vec<(MarkKey, ReadMark)> {
        let mut state = self.state.lock();
        state.writing = std::mem::take(&mut state.waiting);
        state.count = 0;
        let of_user = |(user, marks): (&UserId, &HashMap<ConversationId, ReadMark>)| {
            let key = |conversation: &ConversationId| MarkKey {
                user: user.clone(),
                conversation: conversation.clone(),
            };
            marks.iter().map(|(conversation, mark)| (key(conversation), *mark)).collect::<Vec<_>>()
        };
        state.writing.iter().flat_map(of_user).collect()
    }

    /// What was taken is in the database.
    pub(super) fn written(&self) {
        self.state.lock().writing.clear();
    }

    /// Takes no more; what waits stays readable.
    pub(super) fn close(&self, reason: &str) {
        self.state.lock().closed.get_or_insert_with(|| reason.to_owned());
    }
}

/// What an append of these rows says about marks, as rows that are written with it.
pub(super) fn rows_of(conversation: &ConversationId, rows: &[LogRow]) -> Vec<SmallRow> {
    let moved = read_marks::moved_by(rows).into_iter().map(|(user, mark)| SmallRow {
        keyspace: Small::Marks,
        key: keys::mark(conversation, Mark::Sent(user)),
        value: Some(UserValue::from(mark_value(mark))),
    });
    let gone = rows.iter().filter(|row| row.is_uncounted()).map(|row| SmallRow {
        keyspace: Small::Marks,
        key: keys::mark(conversation, Mark::Uncounted(row.seq)),
        value: Some(UserValue::from([SHAPE])),
    });
    moved.chain(gone).collect()
}

/// The number of the values' shape.
const SHAPE: u8 = 1;

/// `seq ordinal`, big-endian.
pub(super) fn mark_value(mark: ReadMark) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&mark.seq.0.to_be_bytes());
    value[8..].copy_from_slice(&mark.ordinal.to_be_bytes());
    value
}

pub(super) fn read_mark(value: &[u8]) -> Option<ReadMark> {
    let (seq, ordinal) = value.split_first_chunk::<8>()?;
    let ordinal = ordinal.try_into().ok()?;
    Some(ReadMark { seq: Seq(u64::from_be_bytes(*seq)), ordinal: u64::from_be_bytes(ordinal) })
}

/// One row per field, so that changes of different fields need not know of each other.
pub(super) fn setting_rows(
    user: &UserId,
    conversation: &ConversationId,
    change: &SettingsChange,
) -> Vec<SmallRow> {
    let row = |field, value: &[u8]| SmallRow {
        keyspace: Small::Settings,
        key: keys::setting(user, conversation, field),
        value: Some(UserValue::from(value)),
    };
    let label = change.label.as_ref().map(|label| row(keys::LABEL, label.as_bytes()));
    let muted = change.muted.map(|muted| row(keys::MUTED, &[u8::from(muted)]));
    let pinned = change.pinned.map(|pinned| row(keys::PINNED, &[u8::from(pinned)]));
    label.into_iter().chain(muted).chain(pinned).collect()
}

/// Takes one field into the settings; `None` if it cannot be read.
pub(super) fn read_setting(settings: &mut ConversationSettings, field: u8, value: &[u8]) -> Option<()> {
    let flag = || match value {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    };
    match field {
        keys::LABEL => {
            let label = std::str::from_utf8(value).ok()?;
            settings.label = (!label.is_empty()).then(|| label.to_owned());
        }
        keys::MUTED => settings.muted = flag()?,
        keys::PINNED => settings.pinned = flag()?,
        _ => return None,
    }
    Some(())
}

impl Rows {
    /// The higher of what the user put and what the user sent.
    pub(super) fn mark(&self, key: &MarkKey) -> Result<ReadMark, ReadError> {
        let mut highest = ReadMark::default();
        for kind in [Mark::Read(&key.user), Mark::Sent(&key.user)] {
            let value = self.marks.get(keys::mark(&key.conversation, kind)).map_err(read_error)?;
            if let Some(value) = value {
                let mark = read_mark(&value).ok_or_else(|| {
                    ReadError::Corrupt(format!("a mark of {} has {} bytes", key.user, value.len()))
                })?;
                highest = highest.max(mark);
            }
        }
        Ok(highest)
    }

    pub(super) fn uncounted(&self, range: &RowsAbove) -> Result<u64, ReadError> {
        if range.after >= range.to {
            return Ok(0);
        }
        let key = |seq| keys::mark(&range.conversation, Mark::Uncounted(seq));
        let (from, to) = (key(range.after.next()), key(range.to));
        let mut count = 0;
        for guard in self.database.snapshot().range(&self.marks, from..=to) {
            guard.key().map_err(read_error)?;
            count += 1;
        }
        Ok(count)
    }

    pub(super) fn settings(
        &self,
        user: &UserId,
        limit: usize,
    ) -> Result<Vec<(ConversationId, ConversationSettings)>, ReadError> {
        let (from, to) = keys::list_bounds(user);
        let mut found: Vec<(ConversationId, ConversationSettings)> = Vec::new();
        for guard in self.database.snapshot().range(&self.settings, from..to) {
            let (key, value) = guard.into_inner().map_err(read_error)?;
            let corrupt = || ReadError::Corrupt(format!("a setting of {user} cannot be read"));
            let (_, conversation, field) = keys::split_setting(&key).ok_or_else(corrupt)?;
            if found.last().is_none_or(|(last, _)| *last != conversation) {
                if found.len() == limit {
                    break;
                }
                found.push((conversation, ConversationSettings::default()));
            }
            if let Some((_, settings)) = found.last_mut() {
                read_setting(settings, field, &value).ok_or_else(corrupt)?;
            }
        }
        Ok(found)
    }
}

/// The key and value with which a mark that was put is written, if it is above what is there.
pub(super) fn raised(
    rows: &Rows,
    key: &MarkKey,
    mark: ReadMark,
) -> fjall::Result<Option<(UserKey, UserValue)>> {
    let stored = keys::mark(&key.conversation, Mark::Read(&key.user));
    // A damaged one is written over: a lost mark costs reading again.
    let kept = rows.marks.get(&stored)?.and_then(|value| read_mark(&value));
    Ok(kept.is_none_or(|kept| kept < mark).then(|| (stored, UserValue::from(mark_value(mark)))))
}
