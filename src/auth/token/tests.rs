//! What is believed and what is not, as tables.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jsonwebtoken::{EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

use super::*;
use crate::config::section::Millis;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const NOW_S: u64 = NOW.0 / 1_000;

struct World {
    own: SigningKey,
    ed: KeyPair,
    rsa: KeyPair,
    rsa_public_pem: String,
    verifier: Verifier,
    _dir: tempfile::TempDir,
}

fn public_key(kid: &str, algorithm: PublicKeyAlgorithm, file: PathBuf) -> PublicKey {
    PublicKey { kid: kid.into(), algorithm, file, issuer: None, audience: None, roles: vec![Role::User] }
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let ed = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
    let (ed_file, rsa_file) = (dir.path().join("ed.pem"), dir.path().join("rsa.pem"));
    std::fs::write(&ed_file, ed.public_key_pem()).expect("written");
    std::fs::write(&rsa_file, rsa.public_key_pem()).expect("written");
    let mut strict = public_key("strict", PublicKeyAlgorithm::EdDSA, ed_file.clone());
    strict.issuer = Some("https://id.example".into());
    strict.audience = Some("chat".into());
    strict.roles = vec![Role::User, Role::Service];
    let config = Auth {
        public_keys: vec![
            public_key("ed", PublicKeyAlgorithm::EdDSA, ed_file),
            public_key("rsa", PublicKeyAlgorithm::RS256, rsa_file),
            strict,
        ],
        ..Auth::default()
    };
    let own = SigningKey::from_bytes([7; 32]);
    let verifier = Verifier::new(&own, &config).expect("keys");
    let rsa_public_pem = rsa.public_key_pem();
    World { own, ed, rsa, rsa_public_pem, verifier, _dir: dir }
}

impl World {
    fn verify(&self, token: &str) -> Result<Claims, AuthError> {
        self.verifier.verify(token, NOW)
    }

    fn own_token(&self, claims: &Value) -> String {
        encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(self.own.bytes()))
    }

    fn ed_token(&self, kid: &str, claims: &Value) -> String {
        let key = EncodingKey::from_ed_pem(self.ed.serialize_pem().as_bytes()).expect("a key");
        encode(&header(Algorithm::EdDSA, kid), claims, &key)
    }

    fn rsa_token(&self, algorithm: Algorithm, kid: &str, claims: &Value) -> String {
        let key = EncodingKey::from_rsa_pem(self.rsa.serialize_pem().as_bytes()).expect("a key");
        encode(&header(algorithm, kid), claims, &key)
    }
}

fn header(algorithm: Algorithm, kid: &str) -> Header {
    Header { kid: Some(kid.into()), ..Header::new(algorithm) }
}

fn encode(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    jsonwebtoken::encode(header, claims, key).expect("encoded")
}

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

/// Good claims with some of them replaced; null takes one out.
fn claims(changes: &Value) -> Value {
    let mut claims = json!({ "sub": "alice", "exp": NOW_S + 60 });
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => claims.as_object_mut().expect("an object").remove(name),
            value => claims.as_object_mut().expect("an object").insert(name.clone(), value.clone()),
        };
    }
    claims
}

#[test]
fn what_is_signed_here_is_believed_here() {
    let world = world();
    let alice = UserId::new("alice@example.org").expect("valid");
    for role in [Role::User, Role::Service] {
        let token = world.own.sign_at(&alice, role, Duration::from_secs(60), NOW);
        let found = world.verify(&token).expect("believed");
        assert_eq!((&found.user, found.role, found.expires.0), (&alice, role, NOW.0 + 60_000));
        assert_eq!(found.token_id.len(), 32);
        assert!(matches!(world.verify(&token).map(|c| c.token_id), Ok(id) if id == found.token_id));
    }
    // With the clock of the system, as `convoke token` does.
    let token = world.own.sign(&alice, Role::User, Duration::from_secs(60));
    world.verifier.verify(&token, crate::clock::Clock::new(0).wall()).expect("believed");
}

#[test]
fn public_keys_are_chosen_by_kid() {
    let world = world();
    let good = claims(&json!({}));
    world.verify(&world.ed_token("ed", &good)).expect("believed");
    world.verify(&world.rsa_token(Algorithm::RS256, "rsa", &good)).expect("believed");
    let strict = json!({ "iss": "https://id.example", "aud": ["x", "chat"], "role": "service" });
    let found = world.verify(&world.ed_token("strict", &claims(&strict))).expect("believed");
    assert_eq!(found.role, Role::Service);

    let cases = [
        ("ed", json!({ "role": "service" }), AuthError::WrongRole),
        ("strict", json!({ "aud": "chat" }), AuthError::WrongIssuer),
        ("strict", json!({ "iss": "https://else.example", "aud": "chat" }), AuthError::WrongIssuer),
        ("strict", json!({ "iss": "https://id.example" }), AuthError::WrongAudience),
        ("strict", json!({ "iss": "https://id.example", "aud": ["chats"] }), AuthError::WrongAudience),
        ("other", json!({}), AuthError::UnknownKey),
        ("", json!({}), AuthError::UnknownKey),
        ("rsa", json!({}), AuthError::WrongAlgorithm),
    ];
    for (kid, changes, expected) in cases {
        assert_eq!(world.verify(&world.ed_token(kid, &claims(&changes))), Err(expected), "{kid} {changes}");
    }
    let wrong = world.rsa_token(Algorithm::RS384, "rsa", &good);
    assert_eq!(world.verify(&wrong), Err(AuthError::WrongAlgorithm), "another algorithm of the same family");
}

#[test]
fn the_key_says_the_algorithm_never_the_token() {
    let world = world();
    let good = claims(&json!({}));
    // The public key is public: as the secret of an HMAC it proves nothing.
    for secret in [world.rsa_public_pem.as_bytes(), world.rsa.public_key_raw()] {
        let key = EncodingKey::from_secret(secret);
        let forged = encode(&header(Algorithm::HS256, "rsa"), &good, &key);
        assert_eq!(world.verify(&forged), Err(AuthError::WrongAlgorithm));
        let forged = encode(&Header::new(Algorithm::HS256), &good, &key);
        assert_eq!(world.verify(&forged), Err(AuthError::WrongSignature));
    }
    let mac = world.own_token(&good);
    let mac = mac.rsplit_once('.').expect("a signature").1;
    for alg in ["none", "None", "NONE", "", "HS512", "RS256", "hs256"] {
        for signature in ["", mac] {
            let forged = format!("{}.{}.{signature}", part(&json!({ "alg": alg })), part(&good));
            assert_eq!(world.verify(&forged), Err(AuthError::WrongAlgorithm), "{alg:?}");
        }
    }
    let critical = encode(
        &Header { crit: Some(vec!["exp".into()]), ..Header::new(Algorithm::HS256) },
        &good,
        &EncodingKey::from_secret(world.own.bytes()),
    );
    assert_eq!(
        world.verify(&critical),
        Err(AuthError::WrongAlgorithm),
        "an extension that must be understood"
    );
    let node = encode(&header(Algorithm::HS256, "node"), &good, &EncodingKey::from_secret(world.own.bytes()));
    assert_eq!(world.verify(&node), Err(AuthError::UnknownKey), "the node's own key has no kid");
    let other = SigningKey::from_bytes([8; 32]).sign_at(
        &UserId::new("alice").expect("valid"),
        Role::User,
        Duration::from_secs(60),
        NOW,
    );
    assert_eq!(world.verify(&other), Err(AuthError::WrongSignature), "the key of another node");
}

#[test]
fn claims_are_checked() {
    let world = world();
    let cases = [
        (json!({ "exp": NOW_S - 4 }), Ok(())),
        (json!({ "exp": NOW_S - 5 }), Err(AuthError::Expired)),
        (json!({ "exp": NOW_S as f64 - 4.5 }), Ok(())),
        (json!({ "exp": 0 }), Err(AuthError::Expired)),
        (json!({ "exp": -5 }), Err(AuthError::Expired)),
        (json!({ "exp": 1e300 }), Ok(())),
        (json!({ "exp": null }), Err(AuthError::Malformed)),
        (json!({ "exp": "1900000000" }), Err(AuthError::Malformed)),
        (json!({ "nbf": NOW_S + 5 }), Ok(())),
        (json!({ "nbf": NOW_S + 6 }), Err(AuthError::NotYetValid)),
        (json!({ "iat": NOW_S + 6 }), Err(AuthError::NotYetValid)),
        (json!({ "iat": NOW_S - 1_000_000 }), Ok(())),
        (json!({ "sub": null }), Err(AuthError::Malformed)),
        (json!({ "sub": 5 }), Err(AuthError::Malformed)),
        (json!({ "sub": "" }), Err(AuthError::WrongSubject)),
        (json!({ "sub": "a b" }), Err(AuthError::WrongSubject)),
        (json!({ "sub": "x".repeat(129) }), Err(AuthError::WrongSubject)),
        (json!({ "sub": "system" }), Err(AuthError::Reserved)),
        (json!({ "sub": "system", "role": "service" }), Ok(())),
        (json!({ "role": "admin" }), Err(AuthError::WrongRole)),
        (json!({ "role": 1 }), Err(AuthError::Malformed)),
        (json!({ "aud": "anybody", "iss": "anybody" }), Ok(())),
        (json!({ "more": { "of": ["what", "others"] } }), Ok(())),
    ];
    for (changes, expected) in cases {
        let found = world.verify(&world.own_token(&claims(&changes)));
        assert_eq!(found.map(drop), expected, "{changes}");
    }
    let id = world
        .verify(&world.own_token(&claims(&json!({ "jti": "a\nb\u{1b}[1m".repeat(40) }))))
        .expect("believed");
    assert!(id.token_id.len() <= 64 && id.token_id.chars().all(|c| c.is_ascii_graphic()), "{}", id.token_id);
}

#[test]
fn what_is_no_token_is_malformed() {
    let world = world();
    let good = world.own_token(&claims(&json!({})));
    let parts: Vec<_> = good.split('.').collect();
    let (head, body, mac) = (parts[0], parts[1], parts[2]);
    let twice = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","alg":"HS256"}"#);
    let cases = [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        "\u{0}\u{1}.é.ü".into(),
        format!("{head}.{body}"),
        format!("{head}.{body}.{mac}.{mac}"),
        format!("{head}.{body}.{mac}="),
        format!("{head}.{body}.*"),
        format!("{}.{body}.{mac}", URL_SAFE_NO_PAD.encode("[]")),
        format!("{}.{body}.{mac}", URL_SAFE_NO_PAD.encode("[".repeat(2_000))),
        format!("{twice}.{body}.{mac}"),
    ];
    for token in cases {
        assert_eq!(world.verify(&token), Err(AuthError::Malformed), "{token:?}");
    }
    assert_eq!(world.verify(&format!("{good}{}", "a".repeat(3_000))), Err(AuthError::TooLong));
    for index in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        let token = String::from_utf8(bytes).expect("ASCII");
        assert!(world.verify(&token).is_err(), "changed at {index}");
    }
}

#[test]
fn codes_tell_a_client_what_to_do() {
    for (error, code) in [
        (AuthError::Expired, ErrorCode::TOKEN_EXPIRED),
        (AuthError::WrongRole, ErrorCode::WRONG_ROLE),
        (AuthError::Reserved, ErrorCode::WRONG_ROLE),
        (AuthError::WrongSignature, ErrorCode::BAD_TOKEN),
        (AuthError::TooLong, ErrorCode::BAD_TOKEN),
    ] {
        assert_eq!(RequestError::from(error).code, code);
    }
}

#[test]
fn a_public_key_file_that_is_none_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("key.pem");
    let world = world();
    let cases = [
        (String::new(), "not a PEM file with BEGIN PUBLIC KEY"),
        (world.ed.serialize_pem(), "not a PEM file with BEGIN PUBLIC KEY"),
        ("BEGIN PUBLIC KEY".to_owned(), "not a public key for EdDSA"),
        (world.rsa_public_pem.clone(), "not a public key for EdDSA"),
        (format!("{}{}", world.ed.public_key_pem(), " ".repeat(70_000)), "not a PEM file"),
    ];
    for (text, expected) in cases {
        std::fs::write(&file, text).expect("written");
        let public_keys = vec![public_key("k", PublicKeyAlgorithm::EdDSA, file.clone())];
        let config = Auth { public_keys, ..Auth::default() };
        let error = Verifier::new(&world.own, &config).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains("key.pem") && error.contains("\"k\""), "{error}");
    }
}

#[test]
fn the_leeway_is_a_setting() {
    let own = SigningKey::from_bytes([7; 32]);
    let verifier = Verifier::new(&own, &Auth { leeway_ms: Millis(0), ..Auth::default() }).expect("keys");
    let token = own.sign_at(&UserId::new("a").expect("valid"), Role::User, Duration::from_secs(1), NOW);
    assert!(verifier.verify(&token, Timestamp(NOW.0 + 999)).is_ok());
    assert_eq!(verifier.verify(&token, Timestamp(NOW.0 + 1_000)), Err(AuthError::Expired));
}

/// `cargo test --release -p convoke --lib verification_is_cheap -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn verification_is_cheap() {
    const ROUNDS: u32 = 20_000;
    let world = world();
    let good = claims(&json!({}));
    // The first character of the signature: what is left is still base64.
    let tamper = |token: String| {
        let (message, signature) = token.rsplit_once('.').expect("a signature");
        let first = if signature.starts_with('A') { 'B' } else { 'A' };
        format!("{message}.{first}{}", &signature[1..])
    };
    for (what, token) in [
        ("HS256 good", world.own_token(&good)),
        ("HS256 bad", tamper(world.own_token(&good))),
        ("EdDSA good", world.ed_token("ed", &good)),
        ("EdDSA bad", tamper(world.ed_token("ed", &good))),
        ("RS256 good", world.rsa_token(Algorithm::RS256, "rsa", &good)),
        ("RS256 bad", tamper(world.rsa_token(Algorithm::RS256, "rsa", &good))),
        ("garbage", "x".repeat(3_000)),
        ("unknown kid", world.ed_token("other", &good)),
    ] {
        let start = Instant::now();
        let mut outcome = world.verify(&token);
        for _ in 1..ROUNDS {
            outcome = world.verify(&token);
        }
        eprintln!("{what:12} {:?} each: {:?}", start.elapsed() / ROUNDS, outcome.map(|claims| claims.role));
    }
}
