//! Links between the nodes of a cluster.

use std::path::PathBuf;

use super::net::loopback;
use super::section::section;

section! {
    /// Links between the nodes of a cluster: only where [scylla] names servers. Nodes find each other through them.
    Links in "links" {
        /// IP:PORT where other nodes connect. Port 0 takes any free port. An address that is not loopback needs
        /// certificates.
        Restart listen: std::net::SocketAddr = loopback(7_703);
        /// HOST:PORT under which other nodes reach it; empty: the address it listens on.
        Restart advertise: String = String::new();
        /// A file with a secret that all nodes of the cluster have, of at least 16 bytes; empty: the token key
        /// (DIR/token.key), which they have in common too.
        Restart cookie_file: PathBuf = PathBuf::new();
        /// PEM file with this node's certificate (`convoke cert` makes one); empty: links are not encrypted.
        Restart certificate: PathBuf = PathBuf::new();
        /// PEM file with the private key of the certificate.
        Restart key: PathBuf = PathBuf::new();
        /// PEM file with the authority that signed the certificates of all nodes.
        Restart authority: PathBuf = PathBuf::new();
        /// Whether links that are not encrypted are meant although the address is not loopback: only in a network in which
        /// nobody else can listen.
        Restart plain: bool = false;
    }
}

impl Links {
    /// Whether there are certificates.
    pub fn is_encrypted(&self) -> bool {
        [&self.certificate, &self.key, &self.authority].iter().all(|file| !file.as_os_str().is_empty())
    }

    /// What is wrong with the section, if anything is: the key, and how.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        let given = [&self.certificate, &self.key, &self.authority];
        let count = given.iter().filter(|file| !file.as_os_str().is_empty()).count();
        match count {
            0 | 3 => {}
            _ => return Some(("certificate", "certificate, key and authority are given together")),
        }
        let open = !self.listen.ip().is_loopback() && count == 0 && !self.plain;
        open.then_some((
            "listen",
            "is not loopback: it needs certificate, key and authority, or plain = true",
        ))
    }
}
