//! Whose tokens are believed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::section::{Millis, Setting, section};
use crate::auth::Role;

/// How the tokens of a public key are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PublicKeyAlgorithm {
    /// Ed25519.
    EdDSA,
    /// RSA with PKCS #1 v1.5 padding and SHA-256.
    RS256,
}

/// A key of somebody else whose tokens are believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicKey {
    /// The `kid` in the header of its tokens.
    pub kid: String,
    /// The only algorithm that is accepted with it.
    pub algorithm: PublicKeyAlgorithm,
    /// PEM file that begins `-----BEGIN PUBLIC KEY-----`.
    pub file: PathBuf,
    /// What `iss` must be, if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// What `aud` must be or contain, if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// The roles its tokens may claim.
    #[serde(default = "users_only")]
    pub roles: Vec<Role>,
}

fn users_only() -> Vec<Role> {
    vec![Role::User]
}

impl Setting for PublicKey {}

section! {
    /// Tokens: JWTs signed with the node's own key (HS256; DIR/token.key, made at the first start), or with a key whose
    /// public half is named here. There is no access without a token.
    Auth in "auth" {
        /// Public keys, one table each; instead of the line below write
        ///
        /// ```text
        ///   [[auth.public_keys]]
        ///   kid = "backend-2026"         # the kid in the header of the tokens
        ///   algorithm = "EdDSA"          # or "RS256"
        ///   file = "keys/backend.pem"    # PEM, BEGIN PUBLIC KEY
        ///   issuer = "https://id.example.org"   # optional: what iss must be
        ///   audience = "chat"            # optional: what aud must be or contain
        ///   roles = ["user"]             # optional: the roles its tokens may claim; default ["user"]
        /// ```
        ///
        /// A reload reads the files again.
        Running public_keys: Vec<PublicKey> = Vec::new();
        /// The longest token, in bytes; the protocol allows no more than 3000.
        Restart max_token_bytes: usize = 3_000, in 256..=3_000;
        /// How far the clocks of those who sign may be off, in milliseconds.
        Running leeway_ms: Millis = Millis(5_000), in 0..=300_000;
    }
}
