//! The listeners.

use std::net::{Ipv4Addr, SocketAddr};

use super::section::section;

pub(super) const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

section! {
    /// The listener of clients that speak length-prefixed frames.
    Tcp in "tcp" {
        /// IP:PORT. Port 0 takes any free port. An address that is not loopback needs a certificate (section tls).
        Restart listen: SocketAddr = loopback(7_700);
    }
}

section! {
    /// The listener of clients that speak WebSocket, at the path /ws.
    WebSocket in "websocket" {
        /// IP:PORT. Port 0 takes any free port. An address that is not loopback needs a certificate (section tls).
        Restart listen: SocketAddr = loopback(7_701);
        /// Values of the Origin header that browsers may come from, such as `https://chat.example.org`; empty: any. A
        /// connection needs a token in any case.
        Restart origins: Vec<String> = Vec::new();
        /// Whether the web chat is served at / of this listener. Its users log in with a token like all others.
        Restart chat: bool = true;
    }
}

section! {
    /// The listener of operators: /healthz, /readyz, /metrics, and what needs a token of role service. Plain HTTP.
    Admin in "admin" {
        /// IP:PORT. Port 0 takes any free port.
        Restart listen: SocketAddr = loopback(7_702);
        /// Whether an address that is not loopback is meant: anyone who reaches it reads the metrics, and tokens travel
        /// on it unencrypted unless something before it speaks TLS.
        Restart public: bool = false;
    }
}
