//! Takes messages out of what a WebSocket client sends.

use std::io::Cursor;

use convoke_protocol::frame::Codec;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::net::decode::{DecodeError, Decoded};
use crate::net::websocket::MAX_CONTROL_BYTES;

/// Bytes of a head that say how long the head is.
const SHORTEST_HEAD: usize = 2;

/// Decodes the frames of a client; whole messages come out.
#[derive(Debug)]
pub struct WebSocketDecoder {
    /// Head and what has arrived of a frame that was not complete in one piece.
    partial: Vec<u8>,
    /// The payload in `partial` has been handed out.
    partial_spent: bool,
    message: Message,
}

/// The message that fragments are part of.
#[derive(Debug)]
struct Message {
    text: bool,
    /// The payloads of the fragments so far.
    fragments: Vec<u8>,
    /// A fragment that is not the last has arrived.
    begun: bool,
    /// The message in `fragments` has been handed out.
    spent: bool,
}

/// A frame's head, checked.
struct Head {
    opcode: OpCode,
    last: bool,
    mask: [u8; 4],
    head_bytes: usize,
    total_bytes: usize,
}

impl WebSocketDecoder {
    /// A decoder after the upgrade.
    pub fn new(codec: Codec) -> Self {
        Self {
            partial: Vec::new(),
            partial_spent: false,
            message: Message {
                text: codec == Codec::Json,
                fragments: Vec::new(),
                begun: false,
                spent: false,
            },
        }
    }

    /// As [`crate::net::decode::Decoder::next`].
    ///
    /// # Errors
    /// A message longer than `max`, or what RFC 6455 does not allow a client.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        max: usize,
    ) -> Result<(usize, Decoded<'a>), DecodeError> {
        self.release();
        let Self { partial, partial_spent, message } = self;
        if partial.is_empty() {
            let Some(head) = message.head(input, max)?.filter(|head| head.total_bytes <= input.len()) else {
                partial.extend_from_slice(input);
                return Ok((input.len(), Decoded::Nothing));
            };
            let payload = &mut input[head.head_bytes..head.total_bytes];
            return Ok((head.total_bytes, message.take(&head, payload)?));
        }
        let mut used = 0;
        let head = loop {
            let head = message.head(partial, max)?;
            let total = head.as_ref().map_or_else(|| head_bytes(partial), |head| head.total_bytes);
            let missing = total - partial.len();
            match head {
                Some(head) if missing == 0 => break head,
                _ if used == input.len() => return Ok((used, Decoded::Nothing)),
                _ => {}
            }
            let taken = missing.min(input.len() - used);
            partial.extend_from_slice(&input[used..used + taken]);
            used += taken;
        };
        *partial_spent = true;
        Ok((used, message.take(&head, &mut partial[head.head_bytes..])?))
    }

    /// As [`crate::net::decode::Decoder::release`].
    pub fn release(&mut self) {
        if std::mem::take(&mut self.partial_spent) {
            self.partial = Vec::new();
        }
        if std::mem::take(&mut self.message.spent) {
            self.message.fragments = Vec::new();
        }
    }

    /// As [`crate::net::decode::Decoder::held_bytes`].
    pub fn held_bytes(&self) -> usize {
        self.partial.capacity() + self.message.fragments.capacity()
    }
}

/// How long the head is, as far as its beginning tells.
fn head_bytes(bytes: &[u8]) -> usize {
    let Some(second) = bytes.get(1) else { return SHORTEST_HEAD };
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    SHORTEST_HEAD + length + if second & 0x80 == 0 { 0 } else { 4 }
}

impl Message {
    /// The head at the front of the bytes, once it is there; its payload is within the bound.
    fn head(&self, bytes: &[u8], max: usize) -> Result<Option<Head>, DecodeError> {
        let mut cursor = Cursor::new(bytes);
        let parsed =
            FrameHeader::parse(&mut cursor).map_err(|_| DecodeError::Malformed("a reserved opcode"))?;
        let Some((header, length)) = parsed else { return Ok(None) };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(DecodeError::Malformed("a reserved bit"));
        }
        let mask = header.mask.ok_or(DecodeError::Malformed("a client's frame without a mask"))?;
        let before = match header.opcode {
            OpCode::Control(_) if !header.is_final => {
                return Err(DecodeError::Malformed("a fragmented control frame"));
            }
            OpCode::Control(_) if length > MAX_CONTROL_BYTES as u64 => {
                return Err(DecodeError::Malformed("a control frame above 125 bytes"));
            }
            OpCode::Control(_) => 0,
            OpCode::Data(_) => {
                let announced = length.saturating_add(self.fragments.len() as u64);
                if announced > max as u64 {
                    return Err(DecodeError::TooLarge { announced, allowed: max });
                }
                self.fragments.len()
            }
        };
        let length = usize::try_from(length)
            .map_err(|_| DecodeError::TooLarge { announced: length, allowed: max.saturating_sub(before) })?;
        let head_bytes = head_bytes(bytes);
        Ok(Some(Head {
            opcode: header.opcode,
            last: header.is_final,
            mask,
            head_bytes,
            total_bytes: head_bytes + length,
        }))
    }

    /// Takes a whole frame in.
    fn take<'a>(&'a mut self, head: &Head, payload: &'a mut [u8]) -> Result<Decoded<'a>, DecodeError> {
        unmask(payload, head.mask);
        match head.opcode {
            OpCode::Control(Control::Ping) => Ok(Decoded::Ping(payload)),
            OpCode::Control(Control::Close) => close_code(payload).map(Decoded::Close),
            OpCode::Control(_) => Ok(Decoded::Nothing),
            OpCode::Data(Data::Continue) => {
                if !self.begun {
                    return Err(DecodeError::Malformed("a continuation of nothing"));
                }
                self.fragments.extend_from_slice(payload);
                if !head.last {
                    return Ok(Decoded::Nothing);
                }
                self.begun = false;
                self.spent = true;
                check_text(self.text, &self.fragments)?;
                Ok(Decoded::Frame(&self.fragments))
            }
            OpCode::Data(kind) => {
                if self.begun {
                    return Err(DecodeError::Malformed("a message within a message"));
                }
                if (kind == Data::Text) != self.text {
                    return Err(DecodeError::WrongKind);
                }
                if head.last {
                    check_text(self.text, payload)?;
                    return Ok(Decoded::Frame(payload));
                }
                self.begun = true;
                self.fragments.extend_from_slice(payload);
                Ok(Decoded::Nothing)
            }
        }
    }
}

fn check_text(text: bool, payload: &[u8]) -> Result<(), DecodeError> {
    if text && std::str::from_utf8(payload).is_err() {
        return Err(DecodeError::NotUtf8);
    }
    Ok(())
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, DecodeError> {
    match payload.split_first_chunk::<2>() {
        None if payload.is_empty() => Ok(None),
        None => Err(DecodeError::Malformed("a close frame of one byte")),
        Some((code, reason)) => {
            check_text(true, reason)?;
            let code = u16::from_be_bytes(*code);
            if matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                Ok(Some(code))
            } else {
                Err(DecodeError::Malformed("a close code not to be sent"))
            }
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}
