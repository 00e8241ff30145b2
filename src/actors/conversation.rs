//! One conversation.

pub mod core;
pub mod dedup;
