//! What stands around a frame on each transport. Only this differs between TCP and WebSocket.

use bytes::{BufMut, Bytes, BytesMut};

use crate::frame::Codec;

/// Bytes of the length before each frame on TCP.
pub const LENGTH_BYTES: usize = 4;

/// How a connection separates and encodes its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Framing {
    /// A 4-byte big-endian length, then a binary frame.
    Tcp,
    /// One WebSocket message per frame: binary for bincode, text for JSON.
    WebSocket(Codec),
}

impl Framing {
    /// Every framing there is, in the order of [`Framing::index`].
    pub const ALL: [Self; 3] = [Self::Tcp, Self::WebSocket(Codec::Bincode), Self::WebSocket(Codec::Json)];

    /// The codec of the frames within.
    pub const fn codec(self) -> Codec {
        match self {
            Self::Tcp => Codec::Bincode,
            Self::WebSocket(codec) => codec,
        }
    }

    /// A small number per framing, to keep one encoding of each.
    pub const fn index(self) -> usize {
        match self {
            Self::Tcp => 0,
            Self::WebSocket(Codec::Bincode) => 1,
            Self::WebSocket(Codec::Json) => 2,
        }
    }

    /// The name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::WebSocket(Codec::Bincode) => "ws_bincode",
            Self::WebSocket(Codec::Json) => "ws_json",
        }
    }

    /// Appends a frame as a server sends it (WebSocket messages of servers are not masked).
    ///
    /// # Panics
    /// If the frame is longer than 4 GiB, which no limit allows.
    pub fn put(self, frame: &[u8], out: &mut BytesMut) {
        out.reserve(frame.len() + 10);
        match self {
            Self::Tcp => out.put_u32(u32::try_from(frame.len()).expect("a frame is bounded far below 4 GiB")),
            Self::WebSocket(codec) => {
                const FINAL: u8 = 0x80;
                out.put_u8(FINAL | if codec == Codec::Json { 0x1 } else { 0x2 });
                match frame.len() {
                    len @ 0..=125 => out.put_u8(len as u8),
                    len @ 126..=0xffff => {
                        out.put_u8(126);
                        out.put_u16(len as u16);
                    }
                    len => {
                        out.put_u8(127);
                        out.put_u64(len as u64);
                    }
                }
            }
        }
        out.extend_from_slice(frame);
    }

    /// A frame as a server sends it.
    pub fn wrap(self, frame: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        self.put(frame, &mut out);
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_standards_say() {
        assert_eq!(Framing::Tcp.wrap(b"abc")[..], [0, 0, 0, 3, b'a', b'b', b'c']);
        let json = Framing::WebSocket(Codec::Json);
        assert_eq!(json.wrap(b"{}")[..], [0x81, 2, b'{', b'}']);
        assert_eq!(json.wrap(&[b' '; 126])[..4], [0x81, 126, 0, 126]);
        let binary = Framing::WebSocket(Codec::Bincode);
        assert_eq!(binary.wrap(&[0; 65536])[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        for (n, framing) in Framing::ALL.into_iter().enumerate() {
            assert_eq!(framing.index(), n);
        }
    }
}
