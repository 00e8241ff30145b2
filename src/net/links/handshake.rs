//! How two nodes begin: each proves that it has the cookie, without showing it, and they agree on a version.
//!
//! ```text
//!   dialler ◀── Challenge { nonce } ───────────────────────────── acceptor
//!           ──▶ Hello { versions, who, to whom, lane, nonce, proof }
//!           ◀── Welcome { version, proof }   or   Refused { why }
//! ```
//! A proof is an HMAC-SHA256 with the cookie over both nonces, both processes and the lane; whose proof it is is in it too, so that
//! none can be played back to the other side.

use std::io;

use aws_lc_rs::hmac;
use bytes::Bytes;
use convoke_protocol::codec;
use rand::TryRngCore as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::LinkConfig;
use super::frames::{self, Frame, Kind};
use crate::actors::peer::LEAST_VERSION;
use crate::cluster::link::{LANES, Lane};
use crate::cluster::membership::PeerId;

type Nonce = [u8; 16];

/// Why a process refuses whoever looks for a former one at its address.
const ANOTHER_PROCESS: &str = "another process listens here now";

/// What all nodes of a cluster have and nobody else.
#[derive(Clone)]
pub struct Cookie(hmac::Key);

impl Cookie {
    /// The cookie that these bytes make.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }
}

impl std::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookie(..)")
    }
}

#[derive(Serialize, Deserialize)]
struct Challenge {
    nonce: Nonce,
}

#[derive(Serialize, Deserialize)]
struct Hello {
    version: u16,
    least: u16,
    from: PeerId,
    node: String,
    to: PeerId,
    lane: u8,
    nonce: Nonce,
    proof: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Welcome { version: u16, proof: Vec<u8> },
    Refused { why: String },
}

/// Who is at the other end.
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) lane: Lane,
}

/// What a proof is about.
struct Proven<'a> {
    by: &'a str,
    nonces: [&'a Nonce; 2],
    from: PeerId,
    to: PeerId,
    lane: u8,
}

impl Proven<'_> {
    fn bytes(&self) -> Vec<u8> {
        codec::encode(&(self.by, self.nonces, self.from, self.to, self.lane))
    }

    fn sign(&self, cookie: &Cookie) -> Vec<u8> {
        hmac::sign(&cookie.0, &self.bytes()).as_ref().to_vec()
    }

    fn verify(&self, cookie: &Cookie, proof: &[u8]) -> bool {
        hmac::verify(&cookie.0, &self.bytes(), proof).is_ok()
    }
}

fn refused(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text.into())
}

fn nonce() -> io::Result<Nonce> {
    let mut nonce = Nonce::default();
    rand::rngs::OsRng.try_fill_bytes(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), what: &impl Serialize) -> io::Result<()> {
    frames::write(stream, &Frame { kind: Kind::Hello, id: 0, body: codec::encode(what) }).await?;
    stream.flush().await
}

async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    match frames::read(stream).await? {
        Frame { kind: Kind::Hello, body, .. } => Ok(body),
        _ => Err(refused("not the handshake of a link")),
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    codec::decode(bytes).map_err(|_| refused("not the handshake of a link"))
}

/// The highest version that both speak.
fn agree(newest: u16, (least, version): (u16, u16)) -> Result<u16, String> {
    let common = version.min(newest);
    if common < least || common < LEAST_VERSION {
        return Err(format!(
            "this node speaks versions {LEAST_VERSION} to {newest}, the other {least} to {version}"
        ));
    }
    Ok(common)
}

/// Begins as the one that dials.
///
/// # Errors
/// The other one refuses, or is none of the cluster.
pub(super) async fn dial(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    LinkConfig { cookie, me, node, version, .. }: &LinkConfig,
    to: PeerId,
    lane: Lane,
) -> io::Result<u16> {
    let (me, version) = (*me, *version);
    let challenge = hear(stream).await?;
    let Challenge { nonce: theirs } = read(&challenge)?;
    let nonce = nonce()?;
    let lane = lane as u8;
    let proven = |by| Proven { by, nonces: [&theirs, &nonce], from: me, to, lane };
    let proof = proven("dialler").sign(cookie);
    let node = node.clone();
    let hello = Hello { version, least: LEAST_VERSION, from: me, node, to, lane, nonce, proof };
    say(stream, &hello).await?;
    let reply = hear(stream).await?;
    match read(&reply)? {
        Reply::Welcome { version, proof } if proven("acceptor").verify(cookie, &proof) => Ok(version),
        Reply::Welcome { .. } => Err(refused("the other node has another cookie")),
        Reply::Refused { why } if why == ANOTHER_PROCESS => {
            Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why))
        }
        Reply::Refused { why } => Err(refused(why)),
    }
}

/// Begins as the one that was dialled.
///
/// # Errors
/// The other one is none of the cluster, or means another process.
pub(super) async fn accept(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    LinkConfig { cookie, me, version: newest, .. }: &LinkConfig,
) -> io::Result<Peer> {
    let me = *me;
    let mine = nonce()?;
    say(stream, &Challenge { nonce: mine }).await?;
    let heard = hear(stream).await?;
    let hello: Hello = read(&heard)?;
    let Hello { from, to, lane, nonce, .. } = hello;
    let proven = |by| Proven { by, nonces: [&mine, &nonce], from, to, lane };
    let checked = match LANES.into_iter().find(|one| *one as u8 == lane) {
        _ if !proven("dialler").verify(cookie, &hello.proof) => {
            Err("the nodes have different cookies (the same token.key, or links.cookie_file)".to_owned())
        }
        _ if to != me => Err(ANOTHER_PROCESS.to_owned()),
        None => Err("there is no such lane".to_owned()),
        Some(lane) => agree(*newest, (hello.least, hello.version)).map(|version| (lane, version)),
    };
    match checked {
        Ok((lane, version)) => {
            say(stream, &Reply::Welcome { version, proof: proven("acceptor").sign(cookie) }).await?;
            Ok(Peer { id: from, lane })
        }
        Err(why) => {
            say(stream, &Reply::Refused { why: why.clone() }).await?;
            Err(refused(format!("node {:?}: {why}", hello.node)))
        }
    }
}
