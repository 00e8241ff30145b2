//! The wire, byte for byte: every frame in both codecs as released. `CONVOKE_BLESS=1` writes the files anew; a change
//! of an old line needs a reason in the changelog.

use std::fmt::Write as _;
use std::path::Path;

use convoke_protocol::codec;
use convoke_protocol::frame::{Answer, Codec, Event, Incoming, Request};
use convoke_protocol::sample;

const REQUEST_ID: u64 = 300;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to memory");
        text
    })
}

fn frames() -> Vec<(u16, &'static str, [Vec<u8>; 2])> {
    let mut all = Vec::new();
    for request in sample::requests() {
        let both = [Codec::Bincode, Codec::Json].map(|codec| request.encode(codec, REQUEST_ID));
        all.push((request.type_number(), request.name(), both));
    }
    for answer in sample::answers() {
        let both = [Codec::Bincode, Codec::Json].map(|codec| answer.encode(codec, REQUEST_ID));
        all.push((answer.type_number(), answer.name(), both));
    }
    for event in sample::events() {
        let both = [Codec::Bincode, Codec::Json].map(|codec| event.encode(codec, 0));
        all.push((event.type_number(), event.name(), both));
    }
    all
}

fn check(file: &str, now: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    if std::env::var_os("CONVOKE_BLESS").is_some() {
        std::fs::write(&path, now).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file can be read");
    for (now, golden) in now.lines().zip(golden.lines()) {
        assert_eq!(now, golden, "{file}");
    }
    assert_eq!(now.lines().count(), golden.lines().count(), "{file}");
}

#[test]
fn every_frame_is_as_released() {
    let (mut binary, mut json) = (String::new(), String::new());
    for (number, name, [bincode, text]) in frames() {
        writeln!(binary, "{number} {name} {}", hex(&bincode)).expect("writing to memory");
        writeln!(json, "{}", String::from_utf8(text).expect("JSON is UTF-8")).expect("writing to memory");
    }
    check("frames.hex", &binary);
    check("frames.json", &json);
}

#[test]
fn every_entry_body_is_as_released() {
    let mut bodies = String::new();
    for (kind, body) in sample::entry_bodies() {
        writeln!(bodies, "{kind} {body}").expect("writing to memory");
    }
    check("entries.json", &bodies);
}

#[test]
fn samples_show_every_type() {
    let shown: std::collections::BTreeSet<u16> = frames().iter().map(|(number, ..)| *number).collect();
    for (number, name) in [Request::TYPES, Answer::TYPES, Event::TYPES].concat() {
        assert!(shown.contains(&number), "{name} has no sample");
    }
}

#[test]
fn what_is_written_is_read_back() {
    for codec in [Codec::Bincode, Codec::Json] {
        for request in sample::requests() {
            let bytes = request.encode(codec, REQUEST_ID);
            let read = codec::with_frame(codec, &bytes, |raw| {
                assert_eq!(raw.head.request_id, REQUEST_ID);
                Request::decode(codec, raw.head.type_number, raw.body)
            });
            assert_eq!(read, Ok(Some(request)));
        }
        for answer in sample::answers() {
            let bytes = answer.encode(codec, REQUEST_ID);
            assert_eq!(Incoming::decode(codec, &bytes), Ok(Incoming::Answer(REQUEST_ID, answer)));
        }
        for event in sample::events() {
            assert_eq!(Incoming::decode(codec, &event.encode(codec, 0)), Ok(Incoming::Event(event)));
        }
    }
}

#[test]
fn what_is_not_known_is_skipped() {
    let unknown = [0, 249, 3, 1, 2, 3];
    assert!(matches!(Incoming::decode(Codec::Bincode, &unknown), Ok(Incoming::Unknown(_))));
    let unknown = br#"{"id":0,"type":"from_the_future","body":{"a":1}}"#;
    assert!(matches!(Incoming::decode(Codec::Json, unknown), Ok(Incoming::Unknown(_))));
    // Bytes after the body belong to a later version.
    let mut heartbeat =
        Request::Heartbeat(convoke_protocol::request::session::Heartbeat {}).encode(Codec::Bincode, 9);
    heartbeat.extend_from_slice(b"later");
    assert_eq!(codec::split_frame(&heartbeat).map(|raw| raw.head.request_id), Ok(9));
}
