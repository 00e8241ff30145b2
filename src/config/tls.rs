//! Encryption of the listeners for clients.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::section::{Setting, section};

/// On which listeners TLS is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// On those that are not loopback.
    Auto,
    /// On all.
    On,
    /// On none.
    Off,
}

impl Setting for TlsMode {}

section! {
    /// Encryption of the TCP and WebSocket listeners (TLS 1.2 and 1.3).
    Tls in "tls" {
        /// "auto": listeners that are not loopback need it and refuse to start without a certificate, the others do
        /// without. "on": all. "off": none, wherever they listen.
        Restart mode: TlsMode = TlsMode::Auto;
        /// PEM file with the certificate and those between it and the root; empty: none.
        Restart certificate: PathBuf = PathBuf::new();
        /// PEM file with the private key of the certificate; empty: none.
        Restart key: PathBuf = PathBuf::new();
    }
}

impl Tls {
    /// Whether the listener on `address` speaks TLS.
    pub fn applies_to(&self, address: SocketAddr) -> bool {
        match self.mode {
            TlsMode::Auto => !address.ip().is_loopback(),
            TlsMode::On => true,
            TlsMode::Off => false,
        }
    }

    /// Whether there is a certificate with its key.
    pub fn has_certificate(&self) -> bool {
        !self.certificate.as_os_str().is_empty() && !self.key.as_os_str().is_empty()
    }
}
