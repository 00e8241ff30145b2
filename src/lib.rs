//! The Convoke server. `ARCHITECTURE.md` is the map; `main.rs` only calls [`cmd`].

pub mod actors;
pub mod cmd;
pub mod load;
pub mod storage;
