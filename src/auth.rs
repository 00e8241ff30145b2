//! Who somebody is: tokens, and the keys they are signed with.
//!
//! A token is a JWT. The node's own key ([`SigningKey`]) signs and verifies with HS256; keys of others are public
//! (EdDSA, RS256), are named in the configuration and chosen by `kid`. [`Verifier`] believes nothing else: the key says
//! which algorithm it takes, never the token.
//!
//! # Invariants
//! - No token and no key appears in a log, an error or a `Debug` text.
//! - A key file that others may read is not used.

pub mod key;
pub mod token;

use convoke_protocol::id::UserId;
use serde::{Deserialize, Serialize};

pub use key::{KeyError, KeyFileError, SigningKey};
pub use token::{AuthError, Claims, Verifier};

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A person's device.
    User,
    /// An operator, or a program that acts for the application.
    Service,
}

impl Role {
    /// The name in tokens, flags and the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Service => "service",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "user" => Ok(Self::User),
            "service" => Ok(Self::Service),
            _ => Err("a role is user or service".to_owned()),
        }
    }
}

/// The user id of the server's own messages: nobody logs in with it as a user.
pub const SYSTEM_USER: &str = "system";

/// The same, as a user.
///
/// # Panics
/// Never: the name is valid.
pub fn system_user() -> UserId {
    UserId::new(SYSTEM_USER).expect("a valid name")
}
