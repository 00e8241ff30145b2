//! The keys of the rows. Ids hold no control characters, so a 0x00 behind an id ends it, and sorts below all that
//! could go on.
//!
//! Before a message's key stand four bytes of a hash of its conversation. They order nothing that anyone asks for and
//! protect nothing: fjall keeps the first four bytes of a key beside its place in the memtable, and ids of one kind
//! begin alike, so without them every step of an insert would have to fetch another key from memory.

use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use fjall::UserKey;
use xxhash_rust::xxh3::xxh3_64;

const END: u8 = 0;

/// `hash conversation 0x00 seq` (big-endian): a conversation's rows lie together, in order.
pub(super) fn message(conversation: &ConversationId, seq: Seq) -> UserKey {
    let id = conversation.as_str().as_bytes();
    UserKey::from(joined(&[&hash(id), id, &[END], &seq.0.to_be_bytes()]))
}

/// On disks since the first version: it cannot change.
fn hash(conversation: &[u8]) -> [u8; 4] {
    (xxh3_64(conversation) as u32).to_be_bytes()
}

/// Takes a message's key apart.
pub(super) fn split_message(key: &[u8]) -> Option<(ConversationId, Seq)> {
    let (conversation, seq) = key.split_last_chunk::<8>()?;
    let (hashed, conversation) = conversation.strip_suffix(&[END])?.split_first_chunk::<4>()?;
    if *hashed != hash(conversation) {
        return None;
    }
    Some((ConversationId::new(text(conversation)?).ok()?, Seq(u64::from_be_bytes(*seq))))
}

/// `user 0x00 conversation`: an entry of a user's list.
pub(super) fn list(user: &UserId, conversation: &ConversationId) -> UserKey {
    UserKey::from(joined(&[user.as_str().as_bytes(), &[END], conversation.as_str().as_bytes()]))
}

/// Where the list of a user begins, and where it has ended.
pub(super) fn list_bounds(user: &UserId) -> (Vec<u8>, Vec<u8>) {
    let user = user.as_str().as_bytes();
    (joined(&[user, &[END]]), joined(&[user, &[END + 1]]))
}

/// Takes an entry of a list apart.
pub(super) fn split_list(key: &[u8]) -> Option<(UserId, ConversationId)> {
    let mut parts = key.split(|byte| *byte == END);
    let (user, conversation) = (text(parts.next()?)?, text(parts.next()?)?);
    match parts.next() {
        Some(_) => None,
        None => Some((UserId::new(user).ok()?, ConversationId::new(conversation).ok()?)),
    }
}

/// `user 0x00 device 0x00 conversation`.
pub(super) fn cursor(user: &UserId, device: &DeviceId, conversation: &ConversationId) -> UserKey {
    let (user, device) = (user.as_str().as_bytes(), device.as_str().as_bytes());
    UserKey::from(joined(&[user, &[END], device, &[END], conversation.as_str().as_bytes()]))
}

/// Takes a cursor's key apart.
pub(super) fn split_cursor(key: &[u8]) -> Option<(UserId, DeviceId, ConversationId)> {
    let mut parts = key.splitn(3, |byte| *byte == END);
    let user = UserId::new(text(parts.next()?)?).ok()?;
    let device = DeviceId::new(text(parts.next()?)?).ok()?;
    let conversation = ConversationId::new(text(parts.next()?)?).ok()?;
    Some((user, device, conversation))
}

/// What a row among the marks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark<'a> {
    /// How far a user has read.
    Read(&'a UserId),
    /// A user's own last message.
    Sent(&'a UserId),
    /// A message that does not count as unread any more.
    Uncounted(Seq),
}

/// `hash conversation 0x00 kind user`, or a seq (big-endian) instead of the user. The hash as in a message's key.
pub(super) fn mark(conversation: &ConversationId, mark: Mark<'_>) -> UserKey {
    let id = conversation.as_str().as_bytes();
    let end = |kind: u8, rest: &[u8]| UserKey::from(joined(&[&hash(id), id, &[END, kind], rest]));
    match mark {
        Mark::Read(user) => end(b'r', user.as_str().as_bytes()),
        Mark::Sent(user) => end(b's', user.as_str().as_bytes()),
        Mark::Uncounted(seq) => end(b'u', &seq.0.to_be_bytes()),
    }
}

/// A row among the marks, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OwnedMark {
    Read(UserId),
    Sent(UserId),
    Uncounted(Seq),
}

/// Takes a mark's key apart.
pub(super) fn split_mark(key: &[u8]) -> Option<(ConversationId, OwnedMark)> {
    let (hashed, rest) = key.split_first_chunk::<4>()?;
    let end = rest.iter().position(|byte| *byte == END)?;
    let (conversation, rest) = (&rest[..end], &rest[end + 1..]);
    if *hashed != hash(conversation) {
        return None;
    }
    let conversation = ConversationId::new(text(conversation)?).ok()?;
    let user = |bytes| UserId::new(text(bytes)?).ok();
    let mark = match rest.split_first()? {
        (b'r', name) => OwnedMark::Read(user(name)?),
        (b's', name) => OwnedMark::Sent(user(name)?),
        (b'u', seq) => OwnedMark::Uncounted(read_seq(seq)?),
        _ => return None,
    };
    Some((conversation, mark))
}

/// The fields of a user's settings of a conversation.
pub(super) const LABEL: u8 = b'l';
pub(super) const MUTED: u8 = b'm';
pub(super) const PINNED: u8 = b'p';

/// `user 0x00 conversation 0x00 field`: the rows of a user lie within [`list_bounds`].
pub(super) fn setting(user: &UserId, conversation: &ConversationId, field: u8) -> UserKey {
    let (user, conversation) = (user.as_str().as_bytes(), conversation.as_str().as_bytes());
    UserKey::from(joined(&[user, &[END], conversation, &[END, field]]))
}

/// Takes a setting's key apart.
pub(super) fn split_setting(key: &[u8]) -> Option<(UserId, ConversationId, u8)> {
    let (key, [END, field]) = key.split_last_chunk::<2>()? else { return None };
    let (user, conversation) = split_list(key)?;
    Some((user, conversation, *field))
}

/// The value of a row that is a number.
pub(super) fn seq_value(seq: Seq) -> [u8; 8] {
    seq.0.to_be_bytes()
}

/// Reads the value of a row that is a number.
pub(super) fn read_seq(value: &[u8]) -> Option<Seq> {
    Some(Seq(u64::from_be_bytes(value.try_into().ok()?)))
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a released version wrote.
    const HASH_OF_TEAM: [u8; 4] = [253, 140, 80, 117];

    #[test]
    fn keys_come_apart_again_and_neighbours_do_not_mix() {
        let user = UserId::new("alice").expect("valid");
        let device = DeviceId::new("phone").expect("valid");
        let short = ConversationId::new("g:team").expect("valid");
        let long = ConversationId::new("g:team2").expect("valid");
        // A seq whose bytes hold zeros and high bytes must not be taken for a separator.
        for seq in [Seq(0), Seq(1), Seq(255), Seq(256), Seq(u64::MAX)] {
            assert_eq!(split_message(&message(&short, seq)), Some((short.clone(), seq)));
            assert_eq!(read_seq(&seq_value(seq)), Some(seq));
            // All of one conversation are on the same side of all of another.
            assert_eq!(
                message(&short, seq) < message(&long, Seq(9)),
                message(&short, Seq(9)) < message(&long, Seq(0))
            );
        }
        assert!(message(&short, Seq(255)) < message(&short, Seq(256)));
        assert_eq!(split_list(&list(&user, &short)), Some((user.clone(), short.clone())));
        let cursor = cursor(&user, &device, &long);
        assert_eq!(split_cursor(&cursor), Some((user.clone(), device, long.clone())));
        let seq = Seq(0x0001_0000_ff00);
        for (key, mark) in [
            (mark(&long, Mark::Read(&user)), OwnedMark::Read(user.clone())),
            (mark(&long, Mark::Sent(&user)), OwnedMark::Sent(user.clone())),
            (mark(&long, Mark::Uncounted(seq)), OwnedMark::Uncounted(seq)),
        ] {
            assert_eq!(split_mark(&key), Some((long.clone(), mark)));
        }
        let key = setting(&user, &short, MUTED);
        assert_eq!(split_setting(&key), Some((user.clone(), short.clone(), MUTED)));
        let (from, to) = list_bounds(&user);
        assert!(from.as_slice() < &list(&user, &short)[..] && &list(&user, &long)[..] < to.as_slice());
        let other = UserId::new("alice2").expect("valid");
        assert!(&list(&other, &short)[..] > to.as_slice());
        assert_eq!(message(&short, Seq(1))[..4], HASH_OF_TEAM);
        for bad in [&b"g:team"[..], b"g:team\x00\x01", b"0123g:team\x00\x00\x00\x00\x00\x00\x00\x00\x01"] {
            assert_eq!(split_message(bad), None, "{bad:?}");
        }
    }
}
