//! The values that databases keep: one byte that says which shape follows, then the shape in bincode. All stores that
//! keep bytes write the same, so that what one holds can be carried to another.
//!
//! The shapes of a message's row are this module's own: what a `LogRow` looks like may change, what lies on disks may
//! not. A new shape is a new number; the old ones stay readable.

use bytes::Bytes;
use convoke_protocol::codec;
use convoke_protocol::id::{ClientId, DeviceId, MessageId, Seq, Timestamp, UserId};
use convoke_protocol::message::{Content, ContentType, MessageKind, Priority};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::{Change, Entry, Epoch, LogRow, ReadError};

/// The shape that is written.
const SHAPE: u8 = 2;

/// The shape of a row that changes nothing and was never edited: nearly all are.
const PLAIN_SHAPE: u8 = 1;

/// What the second shape has behind the first.
#[derive(Serialize, Deserialize)]
struct Shape2 {
    last_edit: Option<u64>,
    change: Option<Change>,
}

/// The first shape. The conversation and the seq are in the key.
#[derive(Serialize, Deserialize)]
struct Shape1<'a> {
    /// The id, the id before it and the client id, 16 bytes each.
    #[serde(borrow)]
    ids: Raw<'a>,
    epoch: u64,
    base: u64,
    window: u64,
    sender: &'a str,
    device: &'a str,
    time: u64,
    kind: u8,
    flags: u32,
    priority: u8,
    content_type: &'a str,
    #[serde(borrow)]
    body: Raw<'a>,
    reply_to: Option<u64>,
    previous: Option<u64>,
    ordinal: u64,
    edited_at: Option<u64>,
    recalled_at: Option<u64>,
    deleted_at: Option<u64>,
}

/// Bytes as one byte string, not as a sequence of numbers: one call instead of one a byte.
#[derive(Deserialize)]
#[serde(transparent)]
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(self.0)
    }
}

/// The shape of everything that is not a message's row.
const SMALL_SHAPE: u8 = 1;

/// Writes a value that is not a message's row.
pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    codec::encode(&(SMALL_SHAPE, value))
}

/// Reads a value that is not a message's row; `what` names it in the error.
pub(super) fn decode<T: DeserializeOwned>(what: &str, value: &[u8]) -> Result<T, ReadError> {
    let corrupt = |why: String| ReadError::Corrupt(format!("{what}: {why}"));
    match value.split_first() {
        Some((&SMALL_SHAPE, value)) => codec::decode(value).map_err(|error| corrupt(error.to_string())),
        Some((shape, _)) => Err(corrupt(format!("shape {shape}, which this version does not know"))),
        None => Err(corrupt("an empty row".into())),
    }
}

/// Writes a message's row.
pub(super) fn encode_row(row: &LogRow) -> Vec<u8> {
    let entry = &row.entry;
    let mut ids = [0; 48];
    let (chunks, _) = ids.as_chunks_mut::<16>();
    for (chunk, id) in chunks.iter_mut().zip([row.id.0, row.prev.0, entry.client_id.0]) {
        *chunk = id.into_bytes();
    }
    let shape = Shape1 {
        ids: Raw(&ids),
        epoch: row.epoch.0,
        base: row.base.0,
        window: row.window.0,
        sender: entry.sender.as_str(),
        device: entry.device.as_str(),
        time: entry.time.0,
        kind: entry.kind.0,
        flags: entry.flags,
        priority: entry.priority.0,
        content_type: entry.content.content_type.as_str(),
        body: Raw(&entry.content.body),
        reply_to: entry.reply_to.map(|seq| seq.0),
        previous: entry.previous.map(|seq| seq.0),
        ordinal: entry.ordinal,
        edited_at: entry.edited_at.map(|time| time.0),
        recalled_at: entry.recalled_at.map(|time| time.0),
        deleted_at: entry.deleted_at.map(|time| time.0),
    };
    if entry.last_edit.is_none() && entry.change.is_none() {
        return codec::encode(&(PLAIN_SHAPE, shape));
    }
    let more = Shape2 { last_edit: entry.last_edit.map(|seq| seq.0), change: entry.change.clone() };
    codec::encode(&(SHAPE, shape, more))
}

/// Reads a message's row.
///
/// # Errors
/// Says why the bytes are not a row.
pub(super) fn decode_row(seq: Seq, value: &[u8]) -> Result<LogRow, String> {
    let (shape, value) = value.split_first().ok_or("an empty row")?;
    let (row, more): (Shape1<'_>, Shape2) = match *shape {
        PLAIN_SHAPE => {
            let row = codec::decode(value).map_err(|e| e.to_string())?;
            (row, Shape2 { last_edit: None, change: None })
        }
        SHAPE => codec::decode(value).map_err(|e| e.to_string())?,
        _ => return Err(format!("a row of shape {shape}, which this version does not know")),
    };
    let ([id, prev, client_id], []) = row.ids.0.as_chunks::<16>() else {
        return Err(format!("ids of {} bytes", row.ids.0.len()));
    };
    let content_type = ContentType::new(row.content_type)?;
    let text = |e: convoke_protocol::id::IdError| e.to_string();
    Ok(LogRow {
        seq,
        id: MessageId(Uuid::from_bytes(*id)),
        prev: MessageId(Uuid::from_bytes(*prev)),
        epoch: Epoch(row.epoch),
        base: Seq(row.base),
        window: Seq(row.window),
        entry: Entry {
            sender: UserId::new(row.sender).map_err(text)?,
            device: DeviceId::new(row.device).map_err(text)?,
            client_id: ClientId(Uuid::from_bytes(*client_id)),
            time: Timestamp(row.time),
            kind: MessageKind(row.kind),
            flags: row.flags,
            priority: Priority(row.priority),
            content: Content { content_type, body: Bytes::copy_from_slice(row.body.0) },
            reply_to: row.reply_to.map(Seq),
            previous: row.previous.map(Seq),
            ordinal: row.ordinal,
            edited_at: row.edited_at.map(Timestamp),
            recalled_at: row.recalled_at.map(Timestamp),
            deleted_at: row.deleted_at.map(Timestamp),
            last_edit: more.last_edit.map(Seq),
            change: more.change,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance;

    /// What a released version wrote stays readable: the bytes of a full row and of a bare one, in hex.
    const GOLDEN: [&str; 2] = [
        concat!(
            "0130000000000000000787e2c88b8b8e0101000000000000000692889701010101010000000000000007a601e7aaaaad",
            "0202fb2c0106fc7011010005616c6963650570686f6e65fd0768e5cf8b01000005fc01000080010a746578742f706c61",
            "696e0668c3a96c6c6f010101060701fd0168e5cf8b01000001fd0268e5cf8b01000001fd0368e5cf8b010000",
        ),
        concat!(
            "0130000000000000000787e2c88b8b8e0101000000000000000692889701010101010000000000000007a601e7aaaaad",
            "020201060105616c6963650570686f6e65fd0768e5cf8b0100000000020a746578742f706c61696e0668c3a96c6c6f00",
            "0007000000",
        ),
    ];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn samples() -> [LogRow; 2] {
        let bare = conformance::row(7, Some(&conformance::row(6, None, "six")), "héllo");
        let mut full = bare.clone();
        full.epoch = Epoch(300);
        full.base = Seq(6);
        full.window = Seq(70_000);
        full.entry.kind = MessageKind::EDIT;
        full.entry.flags = 0x8000_0001;
        full.entry.priority = Priority::HIGH;
        full.entry.reply_to = Some(Seq(1));
        full.entry.previous = Some(Seq(6));
        full.entry.edited_at = Some(Timestamp(1_700_000_000_001));
        full.entry.recalled_at = Some(Timestamp(1_700_000_000_002));
        full.entry.deleted_at = Some(Timestamp(1_700_000_000_003));
        [full, bare]
    }

    #[test]
    fn rows_are_written_as_they_always_were() {
        for (row, golden) in samples().iter().zip(GOLDEN) {
            let value = encode_row(row);
            assert_eq!(hex(&value), golden);
            assert_eq!(decode_row(row.seq, &value).as_ref(), Ok(row));
        }
    }

    #[test]
    fn what_is_not_a_row_is_refused() {
        let value = encode_row(&samples()[0]);
        assert!(decode_row(Seq(1), &[]).is_err());
        assert!(decode_row(Seq(1), &[3]).is_err_and(|why| why.contains("shape 3")));
        for end in 1..value.len() {
            assert!(decode_row(Seq(1), &value[..end]).is_err(), "{end}");
        }
    }
}
