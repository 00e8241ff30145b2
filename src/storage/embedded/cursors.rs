//! Cursors that wait to be written: readable at once, durable a little later.

use std::collections::HashMap;

use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use convoke_protocol::message::Cursor;
use parking_lot::Mutex;

use crate::storage::WriteError;

type Key = (UserId, DeviceId);
type Waiting = HashMap<Key, HashMap<ConversationId, Seq>>;

/// At so many waiting cursors they are written at once; at twice as many no more are taken.
pub(super) const MANY_CURSORS: usize = 50_000;

/// The cursors that are not written yet.
#[derive(Default)]
pub(super) struct PendingCursors {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Waiting,
    count: usize,
    /// What the writer has taken and not finished.
    writing: Waiting,
    /// Why nothing is taken any more.
    closed: Option<String>,
}

/// What the writer is to be told after a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nudge {
    /// It knows.
    None,
    /// There is something to write before long.
    Soon,
    /// There is much to write.
    Now,
}

/// One cursor with its keys.
pub(super) struct PendingCursor {
    pub(super) user: UserId,
    pub(super) device: DeviceId,
    pub(super) cursor: Cursor,
}

impl PendingCursors {
    pub(super) fn put(
        &self,
        user: &UserId,
        device: &DeviceId,
        cursors: &[Cursor],
    ) -> Result<Nudge, WriteError> {
        let mut state = self.state.lock();
        if let Some(reason) = &state.closed {
            return Err(WriteError(reason.clone()));
        }
        if cursors.is_empty() {
            return Ok(Nudge::None);
        }
        if state.count + cursors.len() > 2 * MANY_CURSORS {
            return Err(WriteError("too many cursors wait to be written".into()));
        }
        let before = state.count;
        let device = state.waiting.entry((user.clone(), device.clone())).or_default();
        let mut added = 0;
        for cursor in cursors {
            match device.get_mut(&cursor.conversation) {
                Some(seq) => *seq = cursor.seq.max(*seq),
                None => {
                    device.insert(cursor.conversation.clone(), cursor.seq);
                    added += 1;
                }
            }
        }
        state.count = before + added;
        Ok(match state.count {
            count if count >= MANY_CURSORS => Nudge::Now,
            _ if before == 0 => Nudge::Soon,
            _ => Nudge::None,
        })
    }

    /// The highest waiting seqs of these conversations, in their order.
    pub(super) fn get(
        &self,
        user: &UserId,
        device: &DeviceId,
        conversations: &[ConversationId],
    ) -> Vec<Option<Seq>> {
        let state = self.state.lock();
        let key = (user.clone(), device.clone());
        let (waiting, writing) = (state.waiting.get(&key), state.writing.get(&key));
        let find = |id| waiting.and_then(|of| of.get(id)).max(writing.and_then(|of| of.get(id))).copied();
        conversations.iter().map(find).collect()
    }

    /// Takes all that waits; it stays readable until [`Self::written`].
    pub(super) fn take(&self) -> Vec<PendingCursor> {
        let mut state = self.state.lock();
        state.writing = std::mem::take(&mut state.waiting);
        state.count = 0;
        let all = state.writing.iter().flat_map(|((user, device), cursors)| {
            cursors.iter().map(|(conversation, seq)| PendingCursor {
                user: user.clone(),
                device: device.clone(),
                cursor: Cursor { conversation: conversation.clone(), seq: *seq },
            })
        });
        all.collect()
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
