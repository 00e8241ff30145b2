//! Everything that listens: clients on TCP and WebSocket, with or without TLS, and the admin listener.
//!
//! TCP and WebSocket differ in how bytes become frames and in nothing else: above [`decode`] stands one connection loop
//! ([`connection`]), which hands frames to a [`connection::FrameHandler`] and knows of sessions only their egress.
//!
//! # Starting and stopping
//! Bind every [`listener::Listener`] first (then real ports are known), then [`listener::Net::start`] each. To stop:
//! [`listener::Net::stop_accepting`], close each session's egress, then wait for [`listener::Net::closed`].

pub mod admin;
mod buffer;
pub(crate) mod collector;
pub mod connection;
pub mod decode;
pub mod links;
pub mod listener;
pub mod tcp;
pub mod tls;
pub mod websocket;
