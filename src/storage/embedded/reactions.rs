//! Reactions.
//!
//! ```text
//! hash conversation 0x00 seq 'c' kind             how many give it
//! hash conversation 0x00 seq 'g' kind 0x00 user   who
//! ```

use convoke_protocol::id::{ConversationId, Seq, UserId};
use convoke_protocol::message::ReactionCount;
use fjall::{Readable, UserKey};
use futures_util::future::{BoxFuture, FutureExt};

use super::EmbeddedStore;
use super::database::{Rows, read_error};
use super::groups::encode;
use super::keys;
use super::queue::{Small, SmallRow};
use crate::storage::values::decode;
use crate::storage::{ReactionCounts, ReactionRow, ReactionStore, ReadError};

const COUNT: u8 = b'c';
const GIVER: u8 = b'g';

fn count_key(conversation: &ConversationId, seq: Seq, kind: &str) -> UserKey {
    UserKey::from([&keys::message(conversation, seq)[..], &[COUNT], kind.as_bytes()].concat())
}

fn giver_key(conversation: &ConversationId, seq: Seq, kind: &str, user: &str) -> UserKey {
    UserKey::from(
        [&keys::message(conversation, seq)[..], &[GIVER], kind.as_bytes(), &[0], user.as_bytes()].concat(),
    )
}

/// A row of reactions, taken apart.
pub(super) enum Reaction {
    Count(String),
    Giver(String, UserId),
}

/// Takes a key apart.
pub(super) fn split(key: &[u8]) -> Option<(ConversationId, Seq, Reaction)> {
    // The id ends at the first zero byte behind the hash.
    let end = 4 + key.get(4..)?.iter().position(|byte| *byte == 0)? + 1 + 8;
    let (message, rest) = key.split_at_checked(end)?;
    let (conversation, seq) = keys::split_message(message)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let reaction = match rest.split_first()? {
        (&COUNT, kind) => Reaction::Count(text(kind)?),
        (&GIVER, rest) => {
            let end = rest.iter().position(|byte| *byte == 0)?;
            Reaction::Giver(text(&rest[..end])?, UserId::new(&text(&rest[end + 1..])?).ok()?)
        }
        _ => return None,
    };
    Some((conversation, seq, reaction))
}

/// The rows of a projection that concern reactions.
pub(super) fn rows_of<'a>(
    conversation: &'a ConversationId,
    reactions: &'a [ReactionRow],
) -> impl Iterator<Item = SmallRow> + 'a {
    let small = |key, value| SmallRow { keyspace: Small::Reactions, key, value };
    reactions.iter().flat_map(move |ReactionRow { target, kind, user, given, count }| {
        let count_value = (*count > 0).then(|| encode(count));
        let given_value = given.then(|| encode(&()));
        [
            small(count_key(conversation, *target, kind), count_value),
            small(giver_key(conversation, *target, kind, user.as_str()), given_value),
        ]
    })
}

fn bad_key(key: &[u8]) -> ReadError {
    ReadError::Corrupt(format!("a reaction has the key {:?}", String::from_utf8_lossy(key)))
}

impl Rows {
    fn reaction_counts(
        &self,
        conversation: &ConversationId,
        from: Seq,
        to: Seq,
    ) -> Result<ReactionCounts, ReadError> {
        let mut found = ReactionCounts::new();
        if from > to {
            return Ok(found);
        }
        let snapshot = self.database.snapshot();
        let end = keys::message(conversation, to.next()).to_vec();
        let mut at = keys::message(conversation, from).to_vec();
        loop {
            // The givers of a message are passed over at once: their number is not bounded by a page.
            let mut passed = None;
            for guard in snapshot.range(&self.reactions, at.clone()..end.clone()) {
                let (key, value) = guard.into_inner().map_err(read_error)?;
                let (_, seq, reaction) = split(&key).ok_or_else(|| bad_key(&key))?;
                let Reaction::Count(kind) = reaction else {
                    passed = Some(seq.next());
                    break;
                };
                let one = ReactionCount { kind, count: decode("a count of reactions", &value)? };
                match found.last_mut() {
                    Some((last, counts)) if *last == seq => counts.push(one),
                    _ => found.push((seq, vec![one])),
                }
            }
            match passed {
                Some(next) if next <= to => at = keys::message(conversation, next).to_vec(),
                _ => return Ok(found),
            }
        }
    }

    fn reactors(
        &self,
        conversation: &ConversationId,
        seq: Seq,
        kind: &str,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>, ReadError> {
        let first = giver_key(conversation, seq, kind, "");
        // Behind the zero byte that ends the kind nothing is higher than a one in its place.
        let mut end = first.to_vec();
        if let Some(last) = end.last_mut() {
            *last = 1;
        }
        let from = match after {
            Some(after) => [&giver_key(conversation, seq, kind, after.as_str())[..], &[0]].concat(),
            None => first.to_vec(),
        };
        let range = self.database.snapshot().range(&self.reactions, from..end);
        let user = |guard: fjall::Guard| {
            let key = guard.key().map_err(read_error)?;
            match split(&key) {
                Some((.., Reaction::Giver(_, user))) => Ok(user),
                _ => Err(bad_key(&key)),
            }
        };
        range.take(limit).map(user).collect()
    }
}

impl ReactionStore for EmbeddedStore {
    fn reaction_counts<'a>(
        &'a self,
        conversation: &'a ConversationId,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'a, Result<ReactionCounts, ReadError>> {
        let conversation = conversation.clone();
        self.reading(move |rows| rows.reaction_counts(&conversation, from, to)).boxed()
    }

    fn reaction_counts_of<'a>(
        &'a self,
        messages: &'a [(ConversationId, Seq)],
    ) -> BoxFuture<'a, Result<Vec<Vec<ReactionCount>>, ReadError>> {
        let messages = messages.to_vec();
        self.reading(move |rows| {
            let of = |(conversation, seq): &(ConversationId, Seq)| {
                let counts = rows.reaction_counts(conversation, *seq, *seq)?;
                Ok(counts.into_iter().flat_map(|(_, counts)| counts).collect())
            };
            messages.iter().map(of).collect()
        })
        .boxed()
    }

    fn gives_reactions<'a>(
        &'a self,
        conversation: &'a ConversationId,
        user: &'a UserId,
        of: &'a [(Seq, String)],
    ) -> BoxFuture<'a, Result<Vec<bool>, ReadError>> {
        let keys: Vec<_> =
            of.iter().map(|(seq, kind)| giver_key(conversation, *seq, kind, user.as_str())).collect();
        self.reading(move |rows| {
            keys.iter().map(|key| rows.reactions.contains_key(key).map_err(read_error)).collect()
        })
        .boxed()
    }

    fn reactors<'a>(
        &'a self,
        conversation: &'a ConversationId,
        seq: Seq,
        kind: &'a str,
        after: Option<&'a UserId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<UserId>, ReadError>> {
        let (conversation, kind, after) = (conversation.clone(), kind.to_owned(), after.cloned());
        self.reading(move |rows| rows.reactors(&conversation, seq, &kind, after.as_ref(), limit)).boxed()
    }
}
