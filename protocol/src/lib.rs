//! Convoke's wire protocol: ids, frames, requests, answers, events and the codecs that carry them.
//!
//! This crate does no I/O and knows no runtime: servers and clients of any shape build on it. `docs/protocol.md`
//! describes the same thing for authors of clients in other languages; the golden files under `golden/` hold one
//! example of every frame in both codecs.
//!
//! # Map
//! - [`id`]: the names and numbers of things, checked when they are made.
//! - [`message`]: a stored message as readers see it, and its content.
//! - [`group`]: a group, its members, and what entries say about them.
//! - [`request`]: one file of small structs per area, each request beside its answer.
//! - [`event`]: what a server says unasked.
//! - [`error_code`]: every error and closing reason, numbered once and for all.
//! - [`frame`]: the table of type numbers and names.
//! - [`codec`]: bincode and JSON; the only place that names either.

pub mod codec;
pub mod error_code;
pub mod event;
pub mod frame;
pub mod framing;
pub mod group;
pub mod id;
pub mod message;
mod open_enum;
pub mod request;
pub mod sample;

/// The version of the protocol that this crate speaks. A server refuses a `Hello` that names another one.
pub const PROTOCOL_VERSION: u16 = 1;

/// WebSocket subprotocol whose binary messages carry bincode frames.
pub const SUBPROTOCOL_BINCODE: &str = "convoke.bincode";

/// WebSocket subprotocol whose text messages carry JSON frames.
pub const SUBPROTOCOL_JSON: &str = "convoke.json";
