//! The frames of the bare loops, and the check that each stream of them is whole.

use std::collections::BTreeSet;

use crate::load::report::Verdict;

/// A header: what it is, the number of the socket it came from, its number on that socket.
pub(super) const HEADER: usize = 16;
/// A frame of `deliveries` and `echoes`, header included.
pub(super) const FRAME: usize = 128;
/// What a relayed message carries beside its header.
pub(super) const BODY: usize = 128;
/// A message of `relays`.
pub(super) const MESSAGE: usize = HEADER + BODY;
/// How many missing numbers of one stream are remembered one by one.
const MISSING_REMEMBERED: usize = 1024;

/// What a frame is, and so how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// [`FRAME`] bytes that are delivered or echoed.
    Frame = 1,
    /// [`MESSAGE`] bytes from a sender, and the same to its peer.
    Message = 2,
    /// The answer to a message: a header alone, the message's.
    Ack = 3,
}

impl Kind {
    pub(super) fn length(self) -> usize {
        match self {
            Self::Frame => FRAME,
            Self::Message => MESSAGE,
            Self::Ack => HEADER,
        }
    }
}

/// The first bytes of every frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) socket: u32,
    pub(super) id: u64,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.socket.to_le_bytes());
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    /// `None` if the bytes are no header.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER] = bytes.first_chunk()?;
        let kind = match bytes[0] {
            1 => Kind::Frame,
            2 => Kind::Message,
            3 => Kind::Ack,
            _ => return None,
        };
        let (socket, id) = bytes[4..].split_at(4);
        Some(Self {
            kind,
            socket: u32::from_le_bytes(socket.try_into().ok()?),
            id: u64::from_le_bytes(id.try_into().ok()?),
        })
    }
}

/// The bytes of a stream that has no whole frame in it, for ever.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Garbage;

/// Takes the next whole frame off the front of what was read, or `None` if it is still to come.
pub(super) fn next<'a>(read: &mut &'a [u8]) -> Result<Option<(Header, &'a [u8])>, Garbage> {
    if read.len() < HEADER {
        return Ok(None);
    }
    let header = Header::decode(read).ok_or(Garbage)?;
    let Some((frame, rest)) = read.split_at_checked(header.kind.length()) else {
        return Ok(None);
    };
    *read = rest;
    Ok(Some((header, frame)))
}

/// Checks that the numbers of one stream are 1, 2, 3 … and says what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    highest: u64,
    distinct: u64,
    missing: BTreeSet<u64>,
    found: Verdict,
}

impl Sequence {
    /// Takes the number that came next.
    pub(super) fn take(&mut self, id: u64) {
        if id == self.highest + 1 {
            self.highest = id;
            self.distinct += 1;
        } else if id > self.highest {
            let room = MISSING_REMEMBERED.saturating_sub(self.missing.len());
            self.missing.extend((self.highest + 1..id).take(room));
            self.highest = id;
            self.distinct += 1;
        } else if self.missing.remove(&id) {
            self.found.out_of_order += 1;
            self.distinct += 1;
        } else {
            self.found.duplicated += 1;
        }
    }

    /// What is wrong, when so many were sent.
    pub(super) fn verdict(&self, sent: u64) -> Verdict {
        Verdict { lost: sent.saturating_sub(self.distinct), gaps: self.highest - self.distinct, ..self.found }
    }

    /// How many different numbers came.
    pub(super) fn distinct(&self) -> u64 {
        self.distinct
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: Kind, id: u64) -> Header {
        Header { kind, socket: 7, id }
    }

    #[test]
    fn frames_are_taken_whole_wherever_the_stream_is_cut() {
        let frames = [header(Kind::Frame, 1), header(Kind::Ack, u64::MAX), header(Kind::Message, 3)];
        let mut stream = Vec::new();
        for frame in frames {
            stream.extend(frame.encode());
            stream.resize(stream.len() + frame.kind.length() - HEADER, 0xAB);
        }
        for cut in 0..=stream.len() {
            let mut taken = Vec::new();
            let mut read = &stream[..cut];
            while let Some((header, frame)) = next(&mut read).unwrap() {
                assert_eq!(frame.len(), header.kind.length());
                taken.push(header);
            }
            let mut rest = [read, &stream[cut..]].concat();
            rest.shrink_to_fit();
            let mut read = rest.as_slice();
            while let Some((header, _)) = next(&mut read).unwrap() {
                taken.push(header);
            }
            assert_eq!(taken, frames, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert_eq!(next(&mut [9; HEADER].as_slice()), Err(Garbage));
    }

    #[test]
    fn sequences_are_judged() {
        let cases: [(&[u64], u64, Verdict); 6] = [
            (&[1, 2, 3], 3, Verdict::default()),
            (&[1, 2], 3, Verdict { lost: 1, ..Verdict::default() }),
            (&[1, 2, 2, 3], 3, Verdict { duplicated: 1, ..Verdict::default() }),
            (&[1, 3, 2], 3, Verdict { out_of_order: 1, ..Verdict::default() }),
            (&[1, 4], 4, Verdict { lost: 2, gaps: 2, ..Verdict::default() }),
            (&[1, 3, 2, 2], 3, Verdict { out_of_order: 1, duplicated: 1, ..Verdict::default() }),
        ];
        for (ids, sent, wanted) in cases {
            let mut sequence = Sequence::default();
            for id in ids {
                sequence.take(*id);
            }
            assert_eq!(sequence.verdict(sent), wanted, "{ids:?}");
        }
    }

    #[test]
    fn a_wild_number_costs_no_memory() {
        let mut sequence = Sequence::default();
        sequence.take(u64::MAX);
        assert!(sequence.missing.len() <= MISSING_REMEMBERED);
        assert_eq!(sequence.verdict(0).gaps, u64::MAX - 1);
    }
}
