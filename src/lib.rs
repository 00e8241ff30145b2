//! The Convoke server. `ARCHITECTURE.md` is the map; `main.rs` only calls [`cmd`].

pub mod actors;
pub mod auth;
pub mod clock;
pub mod cluster;
pub mod cmd;
pub mod config;
pub mod hooks;
pub mod load;
pub mod net;
pub mod node;
pub mod node_file;
pub mod operator;
pub mod storage;
pub mod telemetry;
