//! A message as readers see it.

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::{ClientId, ConversationId, DeviceId, MessageId, Seq, Timestamp, UserId};
use crate::open_enum::open_enum;

/// The longest content type, in bytes.
pub const MAX_CONTENT_TYPE_BYTES: usize = 127;

const TEXT_PLAIN: &str = "text/plain";

open_enum! {
    /// What a numbered entry of a conversation is.
    MessageKind {
        /// Something a user wrote.
        USER = 0 "user",
        /// Something a service said in the name of the system.
        SYSTEM = 1 "system",
        /// Members came, went or changed; the body says which.
        MEMBERS = 2 "members",
        /// The group itself changed; the body says how.
        GROUP = 3 "group",
        /// An earlier message was recalled.
        RECALL = 4 "recall",
        /// An earlier message was edited.
        EDIT = 5 "edit",
        /// A reaction was added to or taken from an earlier message.
        REACTION = 6 "reaction",
        /// An earlier message was deleted for all.
        DELETE = 7 "delete",
    }
}

open_enum! {
    /// One lane of a conversation each: order holds within a lane, a higher lane may overtake.
    Priority {
        /// Notices that must get through.
        SYSTEM = 0 "system",
        /// Above the ordinary.
        HIGH = 1 "high",
        /// The ordinary.
        NORMAL = 2 "normal",
        /// First to be shed in a very large group.
        LOW = 3 "low",
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

/// A content type: 1–127 visible ASCII characters with a `/`, such as `text/plain`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContentType(Arc<str>);

impl ContentType {
    /// `text/plain`, in UTF-8.
    pub fn text() -> Self {
        // Nearly every message has it: one text serves all.
        static TEXT: LazyLock<Arc<str>> = LazyLock::new(|| TEXT_PLAIN.into());
        Self(TEXT.clone())
    }

    /// Checks a text and makes it a content type.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        if text == TEXT_PLAIN {
            return Ok(Self::text());
        }
        if text.len() > MAX_CONTENT_TYPE_BYTES {
            return Err("a content type has at most 127 bytes");
        }
        if !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err("a content type is visible ASCII");
        }
        match text.split_once('/') {
            Some((kind, sub)) if !kind.is_empty() && !sub.is_empty() => Ok(Self(text.into())),
            _ => Err("a content type has a '/' between two names"),
        }
    }

    /// The text of the content type.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether bytes of this type are shown as text.
    pub fn is_text(&self) -> bool {
        self.0.starts_with("text/")
    }
}

impl Serialize for ContentType {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ContentType {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ContentType;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a content type")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ContentType, E> {
                ContentType::new(text).map_err(E::custom)
            }
        }
        d.deserialize_str(Visitor)
    }
}

/// What a message says: bytes and what they are.
///
/// In JSON it is `{"content_type": …, "text": …}` if the type is `text/*` and the bytes are UTF-8, else
/// `{"content_type": …, "data": …}` with base64. A reader takes either.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// What the bytes are.
    pub content_type: ContentType,
    /// The bytes.
    pub body: Bytes,
}

impl std::fmt::Debug for Content {
    // Bodies are the users' own: they appear in no log, not even by accident.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Content({}, {} bytes)", self.content_type.as_str(), self.body.len())
    }
}

impl Content {
    /// Plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { content_type: ContentType::text(), body: Bytes::from(text.into()) }
    }

    /// The body as text, if it is UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.body).ok()
    }
}

#[derive(Serialize, Deserialize)]
struct BinaryContent {
    content_type: ContentType,
    body: RawBody,
}

/// Bytes as one byte string: what serde makes of a `Vec<u8>` is a sequence, one call a byte.
struct RawBody(Bytes);

impl Serialize for RawBody {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for RawBody {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = RawBody;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<RawBody, E> {
                Ok(RawBody(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<RawBody, E> {
                Ok(RawBody(bytes.into()))
            }
        }
        d.deserialize_bytes(Visitor)
    }
}

#[derive(Serialize, Deserialize)]
struct JsonContent {
    content_type: ContentType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let content_type = self.content_type.clone();
        if !s.is_human_readable() {
            return BinaryContent { content_type, body: RawBody(self.body.clone()) }.serialize(s);
        }
        let text = if content_type.is_text() { self.as_text().map(str::to_owned) } else { None };
        let data = if text.is_none() { Some(STANDARD.encode(&self.body)) } else { None };
        JsonContent { content_type, text, data }.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if !d.is_human_readable() {
            let content = BinaryContent::deserialize(d)?;
            return Ok(Self { content_type: content.content_type, body: content.body.0 });
        }
        let content = JsonContent::deserialize(d)?;
        let body = match (content.text, content.data) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(data)) => Bytes::from(STANDARD.decode(data).map_err(de::Error::custom)?),
            _ => return Err(de::Error::custom("content has either text or data")),
        };
        Ok(Self { content_type: content.content_type, body })
    }
}

/// How many users reacted to a message with one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReactionCount {
    /// The reaction: 1–64 bytes of UTF-8, often one emoji.
    pub kind: String,
    /// How many users gave it.
    pub count: u32,
}

/// A numbered entry of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its number in the conversation.
    pub seq: Seq,
    /// Its global id.
    pub message_id: MessageId,
    /// Who sent it.
    pub sender: UserId,
    /// The device it was sent from.
    pub device: DeviceId,
    /// The id its sender chose for it.
    pub client_id: ClientId,
    /// When the server numbered it; never falls within a conversation.
    pub time: Timestamp,
    /// What kind of entry it is.
    pub kind: MessageKind,
    /// Its lane.
    pub priority: Priority,
    /// What it says; empty once recalled or deleted.
    pub content: Content,
    /// The message it answers.
    pub reply_to: Option<Seq>,
    /// The last message its sender had seen when writing it.
    pub previous: Option<Seq>,
    /// The earlier message that this entry recalls, edits, deletes or reacts to.
    pub target: Option<Seq>,
    /// When it was last edited.
    pub edited_at: Option<Timestamp>,
    /// When it was recalled.
    pub recalled_at: Option<Timestamp>,
    /// When it was deleted for all.
    pub deleted_at: Option<Timestamp>,
    /// The reactions to it, by kind.
    pub reactions: Vec<ReactionCount>,
}

/// A place in a conversation: everything up to `seq` is had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The conversation.
    pub conversation: ConversationId,
    /// The highest number up to which everything is had.
    pub seq: Seq,
}
