//! The actors. (The supervision tree is drawn here once it stands.)

pub mod conversation;
pub mod session;
