//! What is fuzzed: whatever the bytes are, a decoder answers; what it accepts survives being written and read again.

use convoke_protocol::codec;
use convoke_protocol::frame::{Codec, Incoming, Request};

/// What a server does with a frame from a client.
fn request(codec: Codec, bytes: &[u8]) {
    let read = codec::with_frame(codec, bytes, |raw| {
        Ok((raw.head.request_id, Request::decode(codec, raw.head.type_number, raw.body)?))
    });
    if let Ok((request_id, Some(request))) = read {
        let written = request.encode(codec, request_id);
        let again =
            codec::with_frame(codec, &written, |raw| Request::decode(codec, raw.head.type_number, raw.body));
        assert_eq!(again, Ok(Some(request)));
    }
}

/// What a client does with a frame from a server.
fn incoming(codec: Codec, bytes: &[u8]) {
    let Ok(read) = Incoming::decode(codec, bytes) else { return };
    let written = match &read {
        Incoming::Answer(request_id, answer) => answer.encode(codec, *request_id),
        Incoming::Event(event) => event.encode(codec, 0),
        Incoming::Unknown(_) => return,
    };
    assert_eq!(Incoming::decode(codec, &written), Ok(read));
}

/// A request in bincode.
pub(crate) fn request_bincode(bytes: &[u8]) {
    request(Codec::Bincode, bytes);
}

/// A request in JSON.
pub(crate) fn request_json(bytes: &[u8]) {
    request(Codec::Json, bytes);
}

/// An answer or event in bincode.
pub(crate) fn incoming_bincode(bytes: &[u8]) {
    incoming(Codec::Bincode, bytes);
}

/// An answer or event in JSON.
pub(crate) fn incoming_json(bytes: &[u8]) {
    incoming(Codec::Json, bytes);
}
