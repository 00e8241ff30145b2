//! Whether a token is to be believed.
//!
//! The order of the checks: length, shape, key (by `kid`), algorithm (the key's), signature, and only then what the token
//! says. So nothing a stranger wrote is looked at further than is needed to find the key.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::id::{Timestamp, UserId};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use super::{Role, SYSTEM_USER, SigningKey};
use crate::config::auth::{Auth, PublicKey, PublicKeyAlgorithm};

/// A public key file that is longer than this is none.
const MAX_PEM_BYTES: u64 = 64 << 10;

/// The longest `jti` that is kept for the log.
const MAX_TOKEN_ID_BYTES: usize = 64;

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// More than `auth.max_token_bytes`.
    #[error("the token is too long")]
    TooLong,
    /// Not three parts of base64url with JSON in them, or a claim that is needed is missing.
    #[error("the token is not a JWT with the claims sub and exp")]
    Malformed,
    /// No key has its `kid`.
    #[error("the token's key is not known here")]
    UnknownKey,
    /// Not the algorithm of the key, or an extension that must be understood.
    #[error("the token's algorithm is not the one of its key")]
    WrongAlgorithm,
    /// It was not signed with the key, or was changed.
    #[error("the token's signature is wrong")]
    WrongSignature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` lies in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Not the issuer that the key is for.
    #[error("the token's issuer is not the one of its key")]
    WrongIssuer,
    /// Not the audience that the key is for.
    #[error("the token is for somebody else")]
    WrongAudience,
    /// `sub` is not a user id.
    #[error("the token's subject is not a user id")]
    WrongSubject,
    /// There is no such role, or tokens of this key may not claim it.
    #[error("the token's role is not one that its key may give")]
    WrongRole,
    /// The subject is the server's own user.
    #[error("nobody logs in as system")]
    Reserved,
}

impl AuthError {
    /// The code a client is answered with.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Expired => ErrorCode::TOKEN_EXPIRED,
            Self::WrongRole | Self::Reserved => ErrorCode::WRONG_ROLE,
            _ => ErrorCode::BAD_TOKEN,
        }
    }
}

impl From<AuthError> for RequestError {
    fn from(error: AuthError) -> Self {
        Self::not_done(error.code(), error.to_string())
    }
}

/// Why there is no verifier.
#[derive(Debug, thiserror::Error)]
#[error("public key {kid:?}, file {}: {problem}", .file.display())]
pub struct PublicKeyError {
    /// Which key.
    pub kid: String,
    /// Its file.
    pub file: std::path::PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// What a believed token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Who this is.
    pub user: UserId,
    /// What for.
    pub role: Role,
    /// When the token ends.
    pub expires: Timestamp,
    /// `jti`, for the log: the token itself is never shown. Printable; empty if the token has none.
    pub token_id: String,
}

struct TrustedKey {
    algorithm: Algorithm,
    decoding: DecodingKey,
    issuer: Option<String>,
    audience: Option<String>,
    roles: Vec<Role>,
}

/// Verifies tokens; cheap to share, never changed: a reload makes a new one.
pub struct Verifier {
    own: TrustedKey,
    public: HashMap<String, TrustedKey>,
    max_token_bytes: usize,
    leeway_ms: u64,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("public", &self.public.keys()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct JoseHeader {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawClaims {
    sub: String,
    exp: f64,
    #[serde(default)]
    iat: Option<f64>,
    #[serde(default)]
    nbf: Option<f64>,
    #[serde(default)]
    iss: Option<String>,
    #[serde(default)]
    aud: Option<Audience>,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    jti: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn contains(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

/// Seconds since 1970 as a token has them, in milliseconds; what is out of range is the end of it.
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1_000.0) as u64
}

impl Verifier {
    /// A verifier for the node's own key and those of the configuration, whose files are read here.
    ///
    /// # Errors
    /// A public key cannot be read.
    pub fn new(own: &SigningKey, config: &Auth) -> Result<Self, PublicKeyError> {
        let own = TrustedKey {
            algorithm: Algorithm::HS256,
            decoding: DecodingKey::from_secret(own.bytes()),
            issuer: None,
            audience: None,
            roles: vec![Role::User, Role::Service],
        };
        let public = config.public_keys.iter().map(|key| Ok((key.kid.clone(), read_public_key(key)?)));
        Ok(Self {
            own,
            public: public.collect::<Result<_, _>>()?,
            max_token_bytes: config.max_token_bytes,
            leeway_ms: config.leeway_ms.0,
        })
    }

    /// Believes a token or says why not.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, AuthError> {
        if token.len() > self.max_token_bytes {
            return Err(AuthError::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(AuthError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(AuthError::Malformed)?;
        if payload.contains('.') {
            return Err(AuthError::Malformed);
        }
        let header: JoseHeader = read_part(header)?;
        let key = match &header.kid {
            None => &self.own,
            Some(kid) => self.public.get(kid).ok_or(AuthError::UnknownKey)?,
        };
        // The name is compared as text: names this code has never heard of, "none" among them, differ like any other.
        if header.alg != algorithm_name(key.algorithm) || header.crit.is_some() {
            return Err(AuthError::WrongAlgorithm);
        }
        match jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.decoding, key.algorithm) {
            Ok(true) => {}
            Ok(false) => return Err(AuthError::WrongSignature),
            Err(_) => return Err(AuthError::Malformed),
        }
        self.check_claims(read_part(payload)?, key, now)
    }

    fn check_claims(&self, claims: RawClaims, key: &TrustedKey, now: Timestamp) -> Result<Claims, AuthError> {
        let expires = milliseconds(claims.exp);
        if now.0 >= expires.saturating_add(self.leeway_ms) {
            return Err(AuthError::Expired);
        }
        let begins = claims.nbf.into_iter().chain(claims.iat).map(milliseconds).max();
        if begins.is_some_and(|begins| begins > now.0.saturating_add(self.leeway_ms)) {
            return Err(AuthError::NotYetValid);
        }
        if key.issuer.is_some() && claims.iss != key.issuer {
            return Err(AuthError::WrongIssuer);
        }
        if let Some(wanted) = &key.audience
            && !claims.aud.is_some_and(|audience| audience.contains(wanted))
        {
            return Err(AuthError::WrongAudience);
        }
        let role = claims.role.as_deref().unwrap_or("user").parse().map_err(|_| AuthError::WrongRole)?;
        if !key.roles.contains(&role) {
            return Err(AuthError::WrongRole);
        }
        let user = UserId::new(&claims.sub).map_err(|_| AuthError::WrongSubject)?;
        if role == Role::User && user.as_str() == SYSTEM_USER {
            return Err(AuthError::Reserved);
        }
        let token_id = claims.jti.unwrap_or_default();
        let token_id = token_id.chars().filter(char::is_ascii_graphic).take(MAX_TOKEN_ID_BYTES).collect();
        Ok(Claims { user, role, expires: Timestamp(expires), token_id })
    }
}

fn read_part<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, AuthError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| AuthError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| AuthError::Malformed)
}

const fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::EdDSA => "EdDSA",
        Algorithm::RS256 => "RS256",
        _ => "HS256",
    }
}

fn read_public_key(key: &PublicKey) -> Result<TrustedKey, PublicKeyError> {
    let failed = |problem: String| PublicKeyError { kid: key.kid.clone(), file: key.file.clone(), problem };
    let too_long =
        std::fs::metadata(&key.file).map_err(|error| failed(error.to_string()))?.len() > MAX_PEM_BYTES;
    let pem =
        if too_long { Vec::new() } else { std::fs::read(&key.file).map_err(|e| failed(e.to_string()))? };
    if !pem.windows(10).any(|window| window == b"PUBLIC KEY") {
        return Err(failed("not a PEM file with BEGIN PUBLIC KEY".to_owned()));
    }
    let (algorithm, decoding) = match key.algorithm {
        PublicKeyAlgorithm::EdDSA => (Algorithm::EdDSA, DecodingKey::from_ed_pem(&pem)),
        PublicKeyAlgorithm::RS256 => (Algorithm::RS256, DecodingKey::from_rsa_pem(&pem)),
    };
    let decoding =
        decoding.map_err(|_| failed(format!("not a public key for {}", algorithm_name(algorithm))))?;
    let (issuer, audience, roles) = (key.issuer.clone(), key.audience.clone(), key.roles.clone());
    Ok(TrustedKey { algorithm, decoding, issuer, audience, roles })
}

#[cfg(test)]
mod tests;
