//! What users hid: `user 0x00 conversation 0x00 'u'` has up to where, `user 0x00 conversation 0x00 's' seq` is a message.

use convoke_protocol::id::{ConversationId, Seq, UserId};
use fjall::{Readable, UserKey};
use futures_util::future::{BoxFuture, FutureExt};

use super::EmbeddedStore;
use super::database::{Rows, read_error};
use super::groups::encode;
use super::keys;
use super::queue::{Small, SmallRow};
use crate::storage::values::decode;
use crate::storage::{HiddenRows, HiddenStore, ReadError, WriteError};

const UP_TO: u8 = b'u';
const SINGLE: u8 = b's';

fn key(user: &UserId, conversation: &ConversationId, kind: u8, rest: &[u8]) -> UserKey {
    UserKey::from([&keys::list(user, conversation)[..], &[0, kind], rest].concat())
}

/// What a row says is hidden.
pub(super) enum HiddenKey {
    /// All up to the message in its value.
    UpTo,
    /// One message.
    Single(Seq),
}

/// Takes a key apart.
pub(super) fn split(stored: &[u8]) -> Option<(UserId, ConversationId, HiddenKey)> {
    let end = stored.iter().enumerate().filter(|(_, byte)| **byte == 0).nth(1)?.0;
    let (ids, rest) = (&stored[..end], &stored[end + 1..]);
    let (user, conversation) = keys::split_list(ids)?;
    let what = match rest.split_first()? {
        (&UP_TO, []) => HiddenKey::UpTo,
        (&SINGLE, seq) => HiddenKey::Single(keys::read_seq(seq)?),
        _ => return None,
    };
    Some((user, conversation, what))
}

/// Whether a row can be understood.
pub(super) fn is_readable(key: &[u8], value: &[u8]) -> bool {
    match split(key) {
        Some((.., HiddenKey::UpTo)) => decode::<Seq>("", value).is_ok(),
        Some((.., HiddenKey::Single(_))) => true,
        None => false,
    }
}

impl Rows {
    fn hidden_up_to(&self, user: &UserId, conversation: &ConversationId) -> Result<Seq, ReadError> {
        let value = self.hidden.get(key(user, conversation, UP_TO, &[])).map_err(read_error)?;
        value.map_or(Ok(Seq::ZERO), |value| decode("up to where messages are hidden", &value))
    }

    fn hidden(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        from: Seq,
        to: Seq,
    ) -> Result<HiddenRows, ReadError> {
        let up_to = self.hidden_up_to(user, conversation)?;
        let from = from.max(up_to.next());
        if from > to {
            return Ok(HiddenRows { up_to, seqs: Vec::new() });
        }
        let single = |seq: Seq| key(user, conversation, SINGLE, &keys::seq_value(seq));
        let range = self.database.snapshot().range(&self.hidden, single(from)..=single(to));
        let seq = |guard: fjall::Guard| {
            let key = guard.key().map_err(read_error)?;
            let seq = key.last_chunk::<8>().map(|bytes| Seq(u64::from_be_bytes(*bytes)));
            seq.ok_or_else(|| ReadError::Corrupt(format!("what {user} hid has a bad key")))
        };
        Ok(HiddenRows { up_to, seqs: range.map(seq).collect::<Result<_, _>>()? })
    }
}

impl HiddenStore for EmbeddedStore {
    fn hide<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        rows: &'a HiddenRows,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        async move {
            // One at a time, so that the place up to which all is hidden never falls.
            let _one = self.claims.lock().await;
            let (of, within) = (user.clone(), conversation.clone());
            let kept = self.reading(move |rows| rows.hidden_up_to(&of, &within)).await;
            let kept = kept.map_err(|error| WriteError(error.to_string()))?;
            let small = |kind, rest: &[u8], value| SmallRow {
                keyspace: Small::Hidden,
                key: key(user, conversation, kind, rest),
                value: Some(value),
            };
            let single = |seq: &Seq| small(SINGLE, &keys::seq_value(*seq), encode(&()));
            let mut written: Vec<_> = rows.seqs.iter().map(single).collect();
            if rows.up_to > kept {
                written.push(small(UP_TO, &[], encode(&rows.up_to)));
            }
            self.writing(written).await
        }
        .boxed()
    }

    fn are_hidden<'a>(
        &'a self,
        user: &'a UserId,
        messages: &'a [(ConversationId, Seq)],
    ) -> BoxFuture<'a, Result<Vec<bool>, ReadError>> {
        let (user, messages) = (user.clone(), messages.to_vec());
        self.reading(move |rows| {
            let is_hidden = |(conversation, seq): &(ConversationId, Seq)| {
                let single = key(&user, conversation, SINGLE, &keys::seq_value(*seq));
                let up_to = rows.hidden_up_to(&user, conversation)?;
                Ok(up_to >= *seq || rows.hidden.contains_key(single).map_err(read_error)?)
            };
            messages.iter().map(is_hidden).collect()
        })
        .boxed()
    }

    fn hidden<'a>(
        &'a self,
        user: &'a UserId,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'a, Result<HiddenRows, ReadError>> {
        let (user, conversation) = (user.clone(), conversation.clone());
        self.reading(move |rows| rows.hidden(&user, &conversation, from, to)).boxed()
    }
}
