//! Real `convoke` processes, driven over TCP and WebSocket: one file per promise.
//!
//! Each test starts its own node on free ports and a temporary directory, so all run at the same time. Nothing here
//! but `sdk` uses the client crate: what is tested is the server as any client meets it. Nothing sleeps for a fixed time:
//! a test waits for a condition, and fails when it does not come within [`harness::PATIENCE`].
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed unwrap is a failed test")]

#[macro_use]
mod harness;

mod admin;
mod bench;
mod browser;
mod catchup;
mod changes;
mod chat;
mod cluster;
mod cql;
mod deploy;
mod durability;
mod faults;
mod group_model;
mod groups;
mod hostile;
mod operator;
mod redis;
mod retention;
mod retry;
mod sdk;
mod service;
mod sessions;
mod start;
mod state;
mod talk;
mod tls;
mod tokens;
mod traces;
