//! `node.json` in the data directory: what commands on the same machine need to find the running node.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The file's name within the data directory.
pub const NODE_FILE: &str = "node.json";

/// What is in the file. Fields may be added; none changes its meaning, since others script against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// The process.
    pub pid: u32,
    /// Where TCP clients connect.
    pub tcp: SocketAddr,
    /// Where WebSocket clients connect.
    pub ws: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
}

impl NodeFile {
    /// Writes the file as a whole: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// As writing a file.
    pub fn write(&self, data: &Path) -> io::Result<()> {
        let temporary = data.join(format!("{NODE_FILE}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        serde_json::to_writer(&mut file, self)?;
        writeln!(file)?;
        fs::rename(&temporary, data.join(NODE_FILE))
    }

    /// Reads the file of the node that runs, or ran last, on `data`.
    ///
    /// # Errors
    /// There is none, or it holds something else.
    pub fn read(data: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(data.join(NODE_FILE))?)?)
    }

    /// The line a node prints on standard output once it accepts connections.
    pub fn ready_line(&self) -> String {
        format!("ready tcp={} ws={} admin={}", self.tcp, self.ws, self.admin)
    }

    /// Takes the file away at an ordered stop. That it is gone already is fine.
    ///
    /// # Errors
    /// As removing a file.
    pub fn remove(data: &Path) -> io::Result<()> {
        match fs::remove_file(data.join(NODE_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_others_script_against() {
        let dir = tempfile::tempdir().expect("a directory");
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let file = NodeFile { pid: 7, tcp: address(1), ws: address(2), admin: address(3) };
        file.write(dir.path()).expect("written");
        let text = fs::read_to_string(dir.path().join("node.json")).expect("read");
        assert_eq!(
            text,
            "{\"pid\":7,\"tcp\":\"127.0.0.1:1\",\"ws\":\"127.0.0.1:2\",\"admin\":\"127.0.0.1:3\"}\n"
        );
        assert_eq!(file.ready_line(), "ready tcp=127.0.0.1:1 ws=127.0.0.1:2 admin=127.0.0.1:3");
        assert_eq!(NodeFile::read(dir.path()).expect("read"), file);
        NodeFile::remove(dir.path()).expect("removed");
        NodeFile::remove(dir.path()).expect("gone already");
        assert!(NodeFile::read(dir.path()).is_err());
    }
}
