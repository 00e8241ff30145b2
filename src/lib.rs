//! The Convoke server. `ARCHITECTURE.md` is the map; `main.rs` only calls the commands.

pub mod actors;
pub mod auth;
pub mod clock;
pub mod cluster;
pub mod cmd;
pub mod load;
pub mod storage;
pub mod telemetry;
