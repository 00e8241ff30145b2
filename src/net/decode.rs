//! From bytes to frames: pure, one decoder per framing.
//!
//! # Invariants
//! - A frame that lies complete in the input is handed out as a slice of it, nothing is copied.
//! - What is kept between calls is what really arrived of one incomplete frame; a length is checked against the bound
//!   before a byte of it is kept, and no memory is reserved on its word.
//! - However the stream is cut into pieces, the same frames come out.

use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::framing::Framing;

use crate::net::tcp::TcpDecoder;
use crate::net::websocket::close;
use crate::net::websocket::decode::WebSocketDecoder;

/// What a piece of input turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// One frame's payload.
    Frame(&'a [u8]),
    /// The peer wants these bytes back in a pong.
    Ping(&'a [u8]),
    /// The peer ends the connection, with its code if it gave one.
    Close(Option<u16>),
    /// The input was used and nothing came of it yet.
    Nothing,
}

/// Why input is refused. The connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A frame or message above the bound.
    #[error("a frame of {announced} bytes is above the bound of {allowed}")]
    TooLarge {
        /// What its head says.
        announced: u64,
        /// What is allowed now.
        allowed: usize,
    },
    /// The bytes are not what the standard allows.
    #[error("{0}")]
    Malformed(&'static str),
    /// A text message that is not UTF-8.
    #[error("a text message is not UTF-8")]
    NotUtf8,
    /// Text where the subprotocol is binary, or the other way round.
    #[error("the subprotocol carries the other kind of message")]
    WrongKind,
}

impl DecodeError {
    /// What the client is told.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::FRAME_TOO_LARGE,
            Self::Malformed(_) | Self::NotUtf8 | Self::WrongKind => ErrorCode::MALFORMED_FRAME,
        }
    }

    /// The code of the close frame on a WebSocket.
    pub const fn close_code(self) -> u16 {
        match self {
            Self::TooLarge { .. } => close::TOO_BIG,
            Self::Malformed(_) => close::PROTOCOL,
            Self::NotUtf8 => close::NOT_UTF8,
            Self::WrongKind => close::WRONG_KIND,
        }
    }
}

/// The incoming half of a connection.
#[derive(Debug)]
pub enum Decoder {
    /// Length, then frame.
    Tcp(TcpDecoder),
    /// One message per frame.
    WebSocket(WebSocketDecoder),
}

impl Decoder {
    /// The decoder of a framing.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Tcp => Self::Tcp(TcpDecoder::default()),
            Framing::WebSocket(codec) => Self::WebSocket(WebSocketDecoder::new(codec)),
        }
    }

    /// Takes from the front of the input: how many bytes were used, and what they were. Call it until the input is used
    /// up, then [`Self::release`].
    ///
    /// # Errors
    /// The input is not of this framing, or a frame is longer than `max` bytes; the decoder must not be used again.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        max: usize,
    ) -> Result<(usize, Decoded<'a>), DecodeError> {
        match self {
            Self::Tcp(decoder) => decoder.next(input, max),
            Self::WebSocket(decoder) => decoder.next(input, max),
        }
    }

    /// Gives back the memory of a frame that was handed out.
    pub fn release(&mut self) {
        match self {
            Self::Tcp(decoder) => decoder.release(),
            Self::WebSocket(decoder) => decoder.release(),
        }
    }

    /// Bytes of memory that an incomplete frame occupies.
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Tcp(decoder) => decoder.held_bytes(),
            Self::WebSocket(decoder) => decoder.held_bytes(),
        }
    }
}

/// Runs bytes from nowhere through a decoder; for the fuzzer. The first byte chooses the framing and how the rest is cut.
///
/// # Panics
/// If an invariant of this module is broken.
pub fn fuzz_decode(data: &[u8]) {
    const MAX: usize = 2_000;
    let Some((&choice, rest)) = data.split_first() else { return };
    let mut decoder = Decoder::new(Framing::ALL[usize::from(choice) % Framing::ALL.len()]);
    let piece = usize::from(choice) / Framing::ALL.len() + 1;
    let mut received = 0;
    for piece in rest.chunks(piece) {
        received += piece.len();
        let mut piece = piece.to_vec();
        let mut at = 0;
        while at < piece.len() {
            match decoder.next(&mut piece[at..], MAX) {
                Ok((used, decoded)) => {
                    assert!(used > 0, "a decoder that uses nothing would be called for ever");
                    if let Decoded::Frame(frame) = decoded {
                        assert!(frame.len() <= MAX);
                    }
                    at += used;
                }
                Err(_) => return,
            }
        }
        decoder.release();
        assert!(decoder.held_bytes() <= 4 * MAX.min(received) + 64);
    }
}

#[cfg(test)]
mod tests {
    use convoke_protocol::frame::Codec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Seen {
        Frame(Vec<u8>),
        Ping(Vec<u8>),
        Close(Option<u16>),
    }

    const MAX: usize = 5_000;

    type Outcome = Result<Vec<Seen>, DecodeError>;

    fn feed<'a>(
        framing: Framing,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Seen>, DecodeError> {
        let mut decoder = Decoder::new(framing);
        let mut seen = Vec::new();
        for piece in pieces {
            let mut piece = piece.to_vec();
            let mut at = 0;
            while at < piece.len() {
                let (used, decoded) = decoder.next(&mut piece[at..], MAX)?;
                assert!(used > 0);
                at += used;
                match decoded {
                    Decoded::Frame(frame) => seen.push(Seen::Frame(frame.to_vec())),
                    Decoded::Ping(payload) => seen.push(Seen::Ping(payload.to_vec())),
                    Decoded::Close(code) => seen.push(Seen::Close(code)),
                    Decoded::Nothing => {}
                }
            }
            decoder.release();
        }
        Ok(seen)
    }

    /// One WebSocket frame as a client sends it.
    fn client_frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            len @ 0..=125 => out.push(0x80 | len as u8),
            len @ 126..=0xffff => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    const BINARY: Framing = Framing::WebSocket(Codec::Bincode);
    const JSON: Framing = Framing::WebSocket(Codec::Json);

    #[test]
    fn tables_of_websocket_streams() {
        let frame = |first: u8, payload: &[u8]| client_frame(first, payload, MASK);
        let malformed = |text| Err(DecodeError::Malformed(text));
        let too_large = |announced| Err(DecodeError::TooLarge { announced, allowed: MAX });
        let cases: Vec<(&str, Framing, Vec<u8>, Outcome)> = vec![
            ("binary", BINARY, frame(0x82, b"abc"), Ok(vec![Seen::Frame(b"abc".to_vec())])),
            ("empty", BINARY, frame(0x82, b""), Ok(vec![Seen::Frame(vec![])])),
            ("text", JSON, frame(0x81, "ä".as_bytes()), Ok(vec![Seen::Frame("ä".into())])),
            ("text not UTF-8", JSON, frame(0x81, b"\xff"), Err(DecodeError::NotUtf8)),
            ("text on binary", BINARY, frame(0x81, b"abc"), Err(DecodeError::WrongKind)),
            ("binary on text", JSON, frame(0x82, b"abc"), Err(DecodeError::WrongKind)),
            (
                "a character cut by a fragment, a ping within",
                JSON,
                [frame(0x01, b"\xc3"), frame(0x89, b"p"), frame(0x80, b"\xa4")].concat(),
                Ok(vec![Seen::Ping(b"p".to_vec()), Seen::Frame("ä".into())]),
            ),
            ("pong", BINARY, frame(0x8a, b"abc"), Ok(vec![])),
            ("close", BINARY, frame(0x88, b"\x03\xe8bye"), Ok(vec![Seen::Close(Some(1000))])),
            ("close without code", BINARY, frame(0x88, b""), Ok(vec![Seen::Close(None)])),
            ("close with half a code", BINARY, frame(0x88, b"\x03"), malformed("a close frame of one byte")),
            (
                "close, reserved code",
                BINARY,
                frame(0x88, b"\x03\xed"),
                malformed("a close code not to be sent"),
            ),
            ("close, reason not UTF-8", BINARY, frame(0x88, b"\x03\xe8\xff"), Err(DecodeError::NotUtf8)),
            ("not masked", BINARY, vec![0x82, 1, 0], malformed("a client's frame without a mask")),
            ("reserved bit", BINARY, frame(0xc2, b"abc"), malformed("a reserved bit")),
            ("reserved opcode", BINARY, frame(0x83, b"abc"), malformed("a reserved opcode")),
            ("continuation of nothing", BINARY, frame(0x80, b""), malformed("a continuation of nothing")),
            (
                "a message within a message",
                BINARY,
                [frame(0x02, b"a"), frame(0x82, b"b")].concat(),
                malformed("a message within a message"),
            ),
            ("a fragmented ping", BINARY, frame(0x09, b""), malformed("a fragmented control frame")),
            ("a long ping", BINARY, frame(0x89, &[0; 126]), malformed("a control frame above 125 bytes")),
            ("at the bound", BINARY, frame(0x82, &[7; MAX]), Ok(vec![Seen::Frame(vec![7; MAX])])),
            ("above the bound", BINARY, frame(0x82, &[7; MAX + 1])[..8].to_vec(), too_large(MAX as u64 + 1)),
            (
                "a length of 2^64 - 1",
                BINARY,
                [&[0x82, 0xff][..], &[0xff; 8], &MASK].concat(),
                too_large(u64::MAX),
            ),
            (
                "fragments above the bound together",
                BINARY,
                [frame(0x02, &[7; MAX]), frame(0x80, b"b")].concat(),
                too_large(MAX as u64 + 1),
            ),
        ];
        for (name, framing, bytes, expected) in cases {
            assert_eq!(feed(framing, [&bytes[..]]), expected, "{name}, in one piece");
            assert_eq!(feed(framing, bytes.chunks(1)), expected, "{name}, byte by byte");
        }
    }

    #[test]
    fn tables_of_tcp_streams() {
        let cases: [(&[u8], Outcome); 4] = [
            (b"\0\0\0\x03abc\0\0\0\0", Ok(vec![Seen::Frame(b"abc".to_vec()), Seen::Frame(vec![])])),
            (b"\0\0\0\x03ab", Ok(vec![])),
            (b"\0\0\x13\x89", Err(DecodeError::TooLarge { announced: 5_001, allowed: MAX })),
            (
                b"\xff\xff\xff\xffab",
                Err(DecodeError::TooLarge { announced: u64::from(u32::MAX), allowed: MAX }),
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(feed(Framing::Tcp, [bytes]), expected);
            assert_eq!(feed(Framing::Tcp, bytes.chunks(1)), expected);
        }
    }

    #[test]
    fn an_announced_length_reserves_nothing_and_a_finished_frame_leaves_nothing() {
        let big = 1 << 20;
        for (framing, mut head) in [
            (Framing::Tcp, (big as u32).to_be_bytes().to_vec()),
            (BINARY, client_frame(0x82, &vec![0; big], MASK)[..14].to_vec()),
        ] {
            let mut decoder = Decoder::new(framing);
            decoder.next(&mut head, big).expect("the length is allowed");
            assert!(decoder.held_bytes() < 100, "{framing:?} holds {} bytes", decoder.held_bytes());
            decoder.next(&mut vec![0; big - 1], big).expect("more of it");
            let mut last = [0];
            let (used, decoded) = decoder.next(&mut last, big).expect("the last byte");
            assert_eq!((used, matches!(decoded, Decoded::Frame(frame) if frame.len() == big)), (1, true));
            decoder.release();
            assert_eq!(decoder.held_bytes(), 0);
        }
    }

    /// A message as a client may send it: its payload, where it is cut into fragments, and pings between those.
    fn message() -> impl Strategy<Value = (Vec<u8>, Vec<usize>, bool, [u8; 4])> {
        (
            proptest::collection::vec(any::<u8>(), 0..300),
            proptest::collection::vec(0..300_usize, 0..3),
            any::<bool>(),
            any::<[u8; 4]>(),
        )
    }

    fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #[test]
        fn any_split_of_a_tcp_stream_yields_the_same_frames(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| Framing::Tcp.wrap(frame)).collect();
            let expected: Vec<_> = frames.into_iter().map(Seen::Frame).collect();
            prop_assert_eq!(feed(Framing::Tcp, pieces(&bytes, &cuts)), Ok(expected));
        }

        #[test]
        fn any_split_of_a_websocket_stream_yields_the_same_frames(
            messages in proptest::collection::vec(message(), 0..6),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (payload, fragments, ping, mask) in messages {
                let fragments = pieces(&payload, &fragments);
                for (n, fragment) in fragments.iter().enumerate() {
                    let last = if n + 1 == fragments.len() { 0x80 } else { 0 };
                    bytes.extend(client_frame(last | if n == 0 { 2 } else { 0 }, fragment, mask));
                    if ping {
                        bytes.extend(client_frame(0x89, &mask, mask));
                    }
                }
                let pings = vec![Seen::Ping(mask.to_vec()); fragments.len() * usize::from(ping)];
                expected.extend(pings);
                // The last ping follows the last fragment.
                expected.insert(expected.len() - usize::from(ping), Seen::Frame(payload.clone()));
            }
            prop_assert_eq!(feed(BINARY, pieces(&bytes, &cuts)), Ok(expected));
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            fuzz_decode(&data);
        }

        #[test]
        fn nearly_right_streams_never_panic(
            choice in any::<u8>(),
            message in message(),
            flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        ) {
            let mut data = vec![choice];
            let (payload, _, ping, mask) = message;
            for _ in 0..3 {
                data.extend(client_frame(if ping { 2 } else { 0x82 }, &payload, mask));
                data.extend(client_frame(0x80, &payload, mask));
            }
            let len = data.len();
            for (at, with) in flips {
                data[at % len] ^= with;
            }
            fuzz_decode(&data);
        }
    }
}
