//! The two codecs. The only place of the project that names `bincode`; the wire, the links between nodes and the rows
//! of the stores all go through here.
//!
//! Binary: `config::standard()` of bincode 2 (little endian, variable-length integers). A frame is request id, type
//! number, then the body as length and bytes; bytes after the body are ignored, so that a later version may add some.
//! JSON: an object `{"id": …, "type": NAME, "body": {…}}`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::frame::{Codec, FrameHead, RawFrame};

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(String);

impl CodecError {
    fn new(error: impl std::fmt::Display) -> Self {
        let mut text = error.to_string();
        // The peer's own bytes may be quoted in it: enough to find the fault is enough.
        if let Some((end, _)) = text.char_indices().nth(200) {
            text.truncate(end);
        }
        Self(text)
    }
}

/// A decoder may claim so many times the bytes it was given: integers shrink on the wire, lengths lie.
const CLAIM_FACTOR: usize = 16;
/// The room a value is given to begin with, in bytes.
const TYPICAL: usize = 320;
const SMALL: usize = 4 << 10;
const MEDIUM: usize = 64 << 10;
const LARGE: usize = 1 << 20;
const HUGE: usize = 64 << 20;

/// Writes a value with bincode.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    // Most values are small: one allocation instead of the doublings from nothing.
    let mut out = Vec::with_capacity(TYPICAL);
    bincode::serde::encode_into_std_write(value, &mut out, bincode::config::standard())
        .expect("serialising to memory cannot fail");
    out
}

/// Reads a value with bincode; bytes that follow it are ignored.
///
/// # Errors
/// The bytes are not such a value.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    decode_prefix(bytes).map(|(value, _)| value)
}

/// Reads a value with bincode and says how many bytes it took.
///
/// # Errors
/// The bytes do not begin with such a value, or are more than 64 MiB.
pub fn decode_prefix<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, usize), CodecError> {
    // A length from the wire is believed only up to a bound that follows what was really received.
    let config = bincode::config::standard();
    macro_rules! read {
        ($limit:expr) => {
            bincode::serde::borrow_decode_from_slice(bytes, config.with_limit::<{ $limit }>())
        };
    }
    let read = match bytes.len() {
        len if len <= SMALL => read!(SMALL * CLAIM_FACTOR),
        len if len <= MEDIUM => read!(MEDIUM * CLAIM_FACTOR),
        len if len <= LARGE => read!(LARGE * CLAIM_FACTOR),
        len if len <= HUGE => read!(HUGE * 2),
        len => return Err(CodecError(format!("{len} bytes are more than any value has"))),
    };
    read.map_err(CodecError::new)
}

/// Reads a frame's body.
///
/// # Errors
/// The bytes are not such a body.
pub fn decode_body<T: DeserializeOwned>(codec: Codec, body: &[u8]) -> Result<T, CodecError> {
    match codec {
        Codec::Bincode => decode(body),
        Codec::Json => serde_json::from_slice(body).map_err(CodecError::new),
    }
}

/// Writes a whole frame, without the framing of a transport.
pub fn encode_frame<T: Serialize>(codec: Codec, head: FrameHead, name: &str, body: &T) -> Vec<u8> {
    match codec {
        Codec::Bincode => {
            let body = encode(body);
            let mut frame = Vec::with_capacity(body.len() + 12);
            put_varint(&mut frame, head.request_id);
            put_varint(&mut frame, u64::from(head.type_number));
            put_varint(&mut frame, body.len() as u64);
            frame.extend_from_slice(&body);
            frame
        }
        Codec::Json => {
            #[derive(Serialize)]
            struct Frame<'a, T> {
                id: u64,
                r#type: &'a str,
                body: &'a T,
            }
            serde_json::to_vec(&Frame { id: head.request_id, r#type: name, body })
                .expect("serialising to memory cannot fail")
        }
    }
}

/// Takes a frame apart and hands it on.
///
/// # Errors
/// The bytes are not a frame, or what `read` answers.
pub fn with_frame<R>(
    codec: Codec,
    bytes: &[u8],
    read: impl FnOnce(RawFrame<'_>) -> Result<R, CodecError>,
) -> Result<R, CodecError> {
    match codec {
        Codec::Bincode => read(split_frame(bytes)?),
        Codec::Json => {
            #[derive(Deserialize)]
            struct Frame<'a> {
                #[serde(default)]
                id: u64,
                #[serde(borrow)]
                r#type: std::borrow::Cow<'a, str>,
                #[serde(borrow, default)]
                body: Option<&'a serde_json::value::RawValue>,
            }
            let frame: Frame<'_> = serde_json::from_slice(bytes).map_err(CodecError::new)?;
            // 0 is no type: a name that is not known is answered, or ignored, like a number that is not known.
            let type_number = crate::frame::type_number(&frame.r#type).unwrap_or(0);
            let body = frame.body.map_or("{}", serde_json::value::RawValue::get).as_bytes();
            read(RawFrame { head: FrameHead { request_id: frame.id, type_number }, body })
        }
    }
}

/// Takes a binary frame apart without reading its body.
///
/// # Errors
/// The bytes are not a frame.
pub fn split_frame(bytes: &[u8]) -> Result<RawFrame<'_>, CodecError> {
    let (request_id, rest) = take_varint(bytes)?;
    let (type_number, rest) = take_varint(rest)?;
    let (length, rest) = take_varint(rest)?;
    let type_number =
        u16::try_from(type_number).map_err(|_| CodecError("the type number is above 65535".into()))?;
    let body = usize::try_from(length)
        .ok()
        .and_then(|length| rest.get(..length))
        .ok_or_else(|| CodecError(format!("the body has {length} bytes, the frame only {}", rest.len())))?;
    Ok(RawFrame { head: FrameHead { request_id, type_number }, body })
}

/// Writes an unsigned integer as bincode's `config::standard()` does.
pub fn put_varint(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=250 => out.push(value as u8),
        251..=0xffff => {
            out.push(251);
            out.extend_from_slice(&(value as u16).to_le_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(252);
            out.extend_from_slice(&(value as u32).to_le_bytes());
        }
        _ => {
            out.push(253);
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

fn take_varint(bytes: &[u8]) -> Result<(u64, &[u8]), CodecError> {
    let short = || CodecError("the frame ends within its head".into());
    let (&first, rest) = bytes.split_first().ok_or_else(short)?;
    let width = match first {
        0..=250 => return Ok((u64::from(first), rest)),
        251 => 2,
        252 => 4,
        253 => 8,
        _ => return Err(CodecError("an integer is wider than 64 bits".into())),
    };
    let (number, rest) = rest.split_at_checked(width).ok_or_else(short)?;
    let mut wide = [0; 8];
    wide[..width].copy_from_slice(number);
    Ok((u64::from_le_bytes(wide), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_written_as_bincode_writes_them() {
        for value in
            [0, 1, 250, 251, 252, 65535, 65536, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX]
        {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes, encode(&value));
            assert_eq!(take_varint(&bytes), Ok((value, &[][..])));
        }
    }

    #[test]
    fn a_lying_length_is_refused_before_it_is_believed() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, u64::MAX);
        bytes.extend_from_slice(&[0; 64]);
        assert!(decode::<Vec<u64>>(&bytes).is_err());
        assert!(decode::<String>(&bytes).is_err());
        assert!(split_frame(&[1, 5, 200, 0]).is_err());
    }
}
