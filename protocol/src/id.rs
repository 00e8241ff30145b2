//! Names and numbers of things, checked when they are made: what exists is valid.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// The longest user, device or group id, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing between the quotes.
    #[error("{what} is empty")]
    Empty {
        /// Which kind of id was being read.
        what: &'static str,
    },
    /// More than [`MAX_NAME_BYTES`].
    #[error("{what} has {bytes} bytes, more than {MAX_NAME_BYTES}")]
    TooLong {
        /// Which kind of id was being read.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A control character, white space or a colon.
    #[error("{what} contains {found:?}; control characters, white space and ':' are not allowed")]
    Character {
        /// Which kind of id was being read.
        what: &'static str,
        /// The first character that is not allowed.
        found: char,
    },
    /// Not of the form `d:{a}:{b}` with a ≤ b, nor `g:{group}`.
    #[error("a conversation id is d:USER:USER with the smaller user first, or g:GROUP")]
    Conversation,
}

fn check_name(what: &'static str, text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(IdError::TooLong { what, bytes: text.len() });
    }
    match text.chars().find(|c| c.is_control() || c.is_whitespace() || *c == ':') {
        Some(found) => Err(IdError::Character { what, found }),
        None => Ok(()),
    }
}

struct TextVisitor<T>(&'static str, fn(&str) -> Result<T, IdError>);

impl<T> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).map_err(E::custom)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text and makes it an id.
            ///
            /// # Errors
            /// [`IdError`] says what is wrong with the text.
            pub fn new(text: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> Result<(), IdError> = $check;
                check(text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The text of the id.
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> { Self::new(text) }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str { &self.0 }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_str(&self.0) }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                d.deserialize_str(TextVisitor($what, Self::new))
            }
        }
    };
}

text_id! {
    /// An application's own id of a user: 1–128 bytes of UTF-8 without control characters, white space and `:`.
    UserId, "a user id", |text| check_name("a user id", text)
}
text_id! {
    /// An application's own id of a device; the same shape as a [`UserId`].
    DeviceId, "a device id", |text| check_name("a device id", text)
}
text_id! {
    /// The id of a group, chosen by its creator or a UUIDv7; the same shape as a [`UserId`].
    GroupId, "a group id", |text| check_name("a group id", text)
}
text_id! {
    /// `d:{a}:{b}` (two users, a ≤ b by bytes, or one with themselves) or `g:{group}`.
    ConversationId, "a conversation id", check_conversation
}

fn check_conversation(text: &str) -> Result<(), IdError> {
    match text.split_at_checked(2) {
        Some(("g:", group)) => check_name("a group id", group),
        Some(("d:", pair)) => {
            let (a, b) = pair.split_once(':').ok_or(IdError::Conversation)?;
            check_name("a user id", a)?;
            check_name("a user id", b)?;
            if a <= b { Ok(()) } else { Err(IdError::Conversation) }
        }
        _ => Err(IdError::Conversation),
    }
}

/// What a [`ConversationId`] says about its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversationKind<'a> {
    /// Two users, the smaller id first; the same twice for notes to oneself.
    Direct(&'a str, &'a str),
    /// A group with its own members.
    Group(&'a str),
}

impl ConversationId {
    /// The conversation of two users, or of one with themselves.
    pub fn direct(one: &UserId, other: &UserId) -> Self {
        let (a, b) = if one <= other { (one, other) } else { (other, one) };
        Self(format!("d:{a}:{b}").into())
    }

    /// The conversation of a group.
    pub fn group(group: &GroupId) -> Self {
        Self(format!("g:{group}").into())
    }

    /// Takes the id apart.
    pub fn kind(&self) -> ConversationKind<'_> {
        let rest = &self.0[2..];
        match rest.split_once(':') {
            Some((a, b)) => ConversationKind::Direct(a, b),
            None => ConversationKind::Group(rest),
        }
    }

    /// The group that it is the conversation of, if it is one.
    pub fn group_id(&self) -> Option<GroupId> {
        match self.kind() {
            ConversationKind::Group(group) => GroupId::new(group).ok(),
            ConversationKind::Direct(..) => None,
        }
    }

    /// The users of a direct conversation: one for notes to oneself, two otherwise, none for a group.
    pub fn direct_users(&self) -> Vec<UserId> {
        match self.kind() {
            ConversationKind::Direct(a, b) if a == b => vec![UserId(a.into())],
            ConversationKind::Direct(a, b) => vec![UserId(a.into()), UserId(b.into())],
            ConversationKind::Group(_) => Vec::new(),
        }
    }

    /// Whether this is a direct conversation that has `user` in it.
    pub fn is_direct_with(&self, user: &UserId) -> bool {
        matches!(self.kind(), ConversationKind::Direct(a, b) if a == user.as_str() || b == user.as_str())
    }

    /// The other user of a direct conversation of `user`; `user` itself for notes to oneself.
    pub fn peer_of(&self, user: &UserId) -> Option<UserId> {
        match self.kind() {
            ConversationKind::Direct(a, b) if a == user.as_str() => Some(UserId(b.into())),
            ConversationKind::Direct(a, b) if b == user.as_str() => Some(UserId(a.into())),
            _ => None,
        }
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(&self.0, f) }
        }
        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> { Uuid::parse_str(text).map(Self) }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(&self.0) } else { self.0.into_bytes().serialize(s) }
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                    Uuid::parse_str(&text).map(Self).map_err(de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(d).map(|bytes| Self(Uuid::from_bytes(bytes)))
                }
            }
        }
    };
}

uuid_id! {
    /// The id a server gives a message: a UUIDv7, globally unique and ordered by time.
    MessageId
}
uuid_id! {
    /// The id a sender chooses for one mutating request; every retry of it carries the same one.
    ClientId
}
uuid_id! {
    /// One (user, device) on one connection.
    SessionId
}

impl MessageId {
    /// When it was given: the first 48 bits of a UUIDv7 are milliseconds since 1970 (RFC 9562, section 5.7).
    pub fn time(&self) -> Timestamp {
        Timestamp(u64::try_from(self.0.as_u128() >> 80).unwrap_or(u64::MAX))
    }
}

impl ClientId {
    /// A new random id (UUIDv4).
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl SessionId {
    /// A new id (UUIDv7).
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    };
}

number! {
    /// The number of a message in its conversation: 1, 2, 3 …; 0 stands before the first.
    Seq
}
number! {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    Timestamp
}

impl Seq {
    /// The place before the first message.
    pub const ZERO: Self = Self(0);

    /// The number that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let long = "x".repeat(129);
        let cases: &[(&str, bool)] = &[
            ("alice", true),
            ("alice@example.org", true),
            ("Ærøskøbing", true),
            ("", false),
            ("a b", false),
            ("a\u{a0}b", false),
            ("a:b", false),
            ("a\u{7}", false),
            (&long, false),
            (&long[..128], true),
        ];
        for (text, valid) in cases {
            assert_eq!(UserId::new(text).is_ok(), *valid, "{text:?}");
        }
    }

    #[test]
    fn conversations_are_checked_and_taken_apart() {
        let alice = UserId::new("alice").expect("valid");
        let bob = UserId::new("bob").expect("valid");
        let pair = ConversationId::direct(&bob, &alice);
        assert_eq!(pair.as_str(), "d:alice:bob");
        assert_eq!(pair, ConversationId::new("d:alice:bob").expect("valid"));
        assert_eq!(pair.peer_of(&bob), Some(alice.clone()));
        assert_eq!(pair.direct_users(), vec![alice.clone(), bob]);
        let own = ConversationId::direct(&alice, &alice);
        assert_eq!(own.direct_users(), vec![alice.clone()]);
        assert_eq!(own.peer_of(&alice), Some(alice));
        assert_eq!(ConversationId::new("g:team").expect("valid").kind(), ConversationKind::Group("team"));
        for bad in ["", "d", "d:", "d:a", "d:b:a", "d:a:", "d:a:b:c", "g:", "g:a:b", "x:a", "dé:a"] {
            assert!(ConversationId::new(bad).is_err(), "{bad:?}");
        }
    }
}
