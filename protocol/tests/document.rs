//! `docs/protocol.md` against the code: a client written from it alone must find everything, and nothing that is not so.

use std::collections::BTreeSet;

use convoke_protocol::error_code::{ErrorCode, Outcome};
use convoke_protocol::frame::{Answer, Event, Request};
use convoke_protocol::group::{
    AddPolicy, GroupEvent, GroupRole, HistoryForNewMembers, JoinPolicy, MemberEvent,
};
use convoke_protocol::message::{MessageKind, Priority};
use convoke_protocol::request::session::DeviceClass;
use serde_json::Value;

const DOCUMENT: &str = include_str!("../../docs/protocol.md");
const HEX: &str = include_str!("../golden/frames.hex");
const JSON: &str = include_str!("../golden/frames.json");

/// The lines of all fenced blocks of one language.
fn fenced(language: &str) -> Vec<&'static str> {
    let mut within = false;
    let lines = DOCUMENT.lines().filter(|line| {
        if let Some(fence) = line.strip_prefix("```") {
            within = !within && fence == language;
            return false;
        }
        within
    });
    lines.collect()
}

/// A frame's own section, from its heading to the next.
fn section(number: u16, name: &str) -> &'static str {
    let heading = format!("\n### {number} `{name}`\n");
    let (_, rest) = DOCUMENT.split_once(&heading).unwrap_or_else(|| panic!("no section {heading:?}"));
    rest.split("\n##").next().unwrap_or(rest)
}

fn types() -> Vec<(u16, &'static str)> {
    [Request::TYPES, Answer::TYPES, Event::TYPES].concat()
}

/// Every member of an object, at any depth.
fn members(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                into.insert(name.clone());
                members(value, into);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| members(value, into)),
        _ => {}
    }
}

#[test]
fn every_frame_is_in_a_table_and_has_its_section() {
    for (number, name) in types() {
        let row = format!("| {number} | `{name}` |");
        assert!(DOCUMENT.contains(&row), "no row {row}");
        assert!(!section(number, name).trim().is_empty(), "{name} is not described");
    }
    let headings = DOCUMENT.lines().filter_map(|line| line.strip_prefix("### "));
    let numbered = headings.filter(|heading| heading.starts_with(|c: char| c.is_ascii_digit())).count();
    assert_eq!(numbered, types().len(), "a section describes a frame that does not exist");
}

#[test]
fn every_field_is_described_in_the_section_of_its_frame() {
    let known = types();
    for line in JSON.lines() {
        let frame: Value = serde_json::from_str(line).expect("the golden file is JSON");
        let name = frame["type"].as_str().expect("a frame has a type");
        let (number, name) = known.iter().find(|(_, known)| *known == name).expect("a known type");
        let section = section(*number, name);
        for field in frame["body"].as_object().expect("a body is an object").keys() {
            assert!(section.contains(&format!("| `{field}` |")), "{name}.{field} is not described");
        }
        let mut nested = BTreeSet::new();
        members(&frame["body"], &mut nested);
        for field in nested {
            assert!(DOCUMENT.contains(&format!("`{field}`")), "{field}, within {name}, is not described");
        }
    }
}

#[test]
fn every_member_of_an_entry_body_is_described() {
    for (kind, body) in convoke_protocol::sample::entry_bodies() {
        let row = format!("| `{kind}` | ");
        assert!(DOCUMENT.lines().any(|line| line.starts_with(&row)), "no row {row}");
        let mut nested = BTreeSet::new();
        members(&serde_json::from_str(&body).expect("a body is JSON"), &mut nested);
        for field in nested {
            assert!(DOCUMENT.contains(&format!("`{field}`")), "{field}, within {kind}, is not described");
        }
    }
}

#[test]
fn every_error_is_described() {
    let rows: Vec<_> = DOCUMENT.lines().filter(|line| line.starts_with("| ")).collect();
    for code in ErrorCode::ALL {
        let row = format!("| {} | `{}` | ", code.0, code.name());
        assert_eq!(rows.iter().filter(|line| line.starts_with(&row)).count(), 1, "one row {row}");
    }
}

#[test]
fn every_value_of_an_open_enumeration_is_named() {
    let lists = [
        MessageKind::ALL.iter().map(|v| (v.0, v.name())).collect::<Vec<_>>(),
        Priority::ALL.iter().map(|v| (v.0, v.name())).collect(),
        DeviceClass::ALL.iter().map(|v| (v.0, v.name())).collect(),
        Outcome::ALL.iter().map(|v| (v.0, v.name())).collect(),
        GroupRole::ALL.iter().map(|v| (v.0, v.name())).collect(),
        JoinPolicy::ALL.iter().map(|v| (v.0, v.name())).collect(),
        AddPolicy::ALL.iter().map(|v| (v.0, v.name())).collect(),
        HistoryForNewMembers::ALL.iter().map(|v| (v.0, v.name())).collect(),
        MemberEvent::ALL.iter().map(|v| (v.0, v.name())).collect(),
        GroupEvent::ALL.iter().map(|v| (v.0, v.name())).collect(),
    ];
    for (number, name) in lists.concat() {
        let name = name.expect("what is listed has a name");
        assert!(DOCUMENT.contains(&format!("{number} `{name}`")), "{number} {name} is not named");
    }
}

#[test]
fn what_is_quoted_is_golden() {
    let golden: BTreeSet<&str> = HEX.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let quoted = fenced("hex");
    assert!(quoted.len() > 10, "a session is shown");
    for line in quoted {
        assert!(golden.contains(line), "not in frames.hex: {line}");
    }
    let golden: BTreeSet<&str> = JSON.lines().collect();
    let quoted = fenced("json");
    assert!(quoted.len() > 10, "a session is shown");
    for line in quoted {
        assert!(golden.contains(line), "not in frames.json: {line}");
    }
}

#[test]
fn a_frame_taken_apart_is_the_frame() {
    let apart = fenced("text").into_iter().filter(|line| line.starts_with(|c: char| c.is_ascii_hexdigit()));
    let bytes: String = apart
        .flat_map(|line| line.split("  ").next().into_iter().flat_map(str::split_whitespace))
        .filter(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .collect();
    let golden = |type_and_name: &str| {
        HEX.lines().find_map(|line| line.strip_prefix(type_and_name)).expect("a golden line").to_owned()
    };
    assert_eq!(bytes, golden("4 heartbeat ") + &golden("5 send "));
}
