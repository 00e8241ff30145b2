//! WebSocket (RFC 6455): the upgrade, the decoder of clients' messages, and the few control frames a server sends.
//! Messages to the client are framed by `convoke_protocol::framing` and written by the session's egress, as on TCP.

use bytes::{BufMut, Bytes, BytesMut};
use convoke_protocol::error_code::ErrorCode;

pub mod chat_page;
pub mod decode;
pub mod upgrade;

/// The most bytes a control frame carries.
const MAX_CONTROL_BYTES: usize = 125;

/// Codes of close frames.
pub mod close {
    use super::ErrorCode;

    /// All is said.
    pub const NORMAL: u16 = 1000;
    /// The server goes away.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke the protocol.
    pub const PROTOCOL: u16 = 1002;
    /// Text where binary is due, or the other way round.
    pub const WRONG_KIND: u16 = 1003;
    /// Text that is not UTF-8.
    pub const NOT_UTF8: u16 = 1007;
    /// A message above the bound.
    pub const TOO_BIG: u16 = 1009;
    /// The server failed.
    pub const INTERNAL: u16 = 1011;
    /// Codes from here on are the application's: an error code is added to it.
    pub const APPLICATION: u16 = 4000;

    /// The code that stands for the reason a session ends.
    pub const fn code_of(reason: ErrorCode) -> u16 {
        match reason {
            ErrorCode::DISCONNECTED | ErrorCode::LOGGED_OUT => NORMAL,
            ErrorCode::SHUTDOWN => GOING_AWAY,
            ErrorCode::MALFORMED_FRAME => PROTOCOL,
            ErrorCode::FRAME_TOO_LARGE => TOO_BIG,
            ErrorCode::INTERNAL => INTERNAL,
            ErrorCode(code) => APPLICATION + code,
        }
    }
}

/// The answer to a ping.
pub(crate) fn pong(payload: &[u8]) -> Bytes {
    control(0xa, payload)
}

/// A close frame.
pub(crate) fn close_frame(code: u16, reason: &str) -> Bytes {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    control(0x8, &payload)
}

fn control(opcode: u8, payload: &[u8]) -> Bytes {
    debug_assert!(payload.len() <= MAX_CONTROL_BYTES);
    let mut frame = BytesMut::with_capacity(2 + payload.len());
    frame.put_u8(0x80 | opcode);
    frame.put_u8(payload.len() as u8);
    frame.put_slice(payload);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_are_ones_a_server_may_send() {
        for reason in ErrorCode::ALL {
            let code = close::code_of(*reason);
            assert!(matches!(code, 1000..=1003 | 1007..=1011 | 4000..=4999), "{reason} gives {code}");
            assert!(close_frame(code, reason.name()).len() <= 2 + MAX_CONTROL_BYTES);
        }
    }
}
