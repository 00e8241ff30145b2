//! Who is let in: tokens that are good, and every way in which one is not.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use convoke_protocol::error_code::{ErrorCode, Outcome};
use convoke_protocol::framing::Framing;
use convoke_protocol::request::session::DeviceClass;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::harness::client::{End, login};
use crate::harness::{TestClient, TestNode, finished};

/// The node's own key.
fn own_key(node: &TestNode) -> EncodingKey {
    let text = std::fs::read_to_string(node.data().join("token.key")).unwrap();
    EncodingKey::from_secret(&URL_SAFE_NO_PAD.decode(text.trim()).unwrap())
}

/// Seconds since 1970, from now.
fn seconds_from_now(seconds: i64) -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the node's clock is the machine's")]
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap() + seconds
}

/// A token whose header and claims say this, however it is signed.
fn token(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let message = format!("{header}.{claims}");
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// Claims that are good, with these in their place.
fn claims(changed: &Value) -> Value {
    let mut claims = json!({"sub": "alice", "exp": seconds_from_now(3_600)});
    for (name, value) in changed.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

/// What becomes of a login with this token, which closes the connection if it is refused.
async fn try_login(node: &TestNode, framing: Framing, token: String) -> Result<String, ErrorCode> {
    let mut client = TestClient::connect(node, framing).await;
    client.greet().await;
    match client.request(login(token, "phone", DeviceClass::OTHER)).await {
        convoke_protocol::frame::Answer::LoggedIn(logged_in) => Ok(logged_in.user.as_str().to_owned()),
        convoke_protocol::frame::Answer::Error(error) => {
            assert_eq!(error.outcome, Outcome::NOT_DONE);
            assert_eq!(client.end().await, End::Silent);
            Err(error.code)
        }
        other => panic!("{other:?} to a login"),
    }
}

#[tokio::test]
async fn a_token_is_believed_only_if_all_of_it_is_good() {
    const HS256: Algorithm = Algorithm::HS256;
    const BAD: Result<&str, ErrorCode> = Err(ErrorCode::BAD_TOKEN);
    const ROLE: Result<&str, ErrorCode> = Err(ErrorCode::WRONG_ROLE);
    const OVER: Result<&str, ErrorCode> = Err(ErrorCode::TOKEN_EXPIRED);
    let node = TestNode::start().await;
    let key = own_key(&node);
    let hs256 = json!({"alg": "HS256", "typ": "JWT"});
    let good = token(&hs256, &claims(&json!({})), &key, HS256);
    let parts: Vec<_> = good.split('.').collect();
    let of = |changed: Value| token(&hs256, &claims(&changed), &key, HS256);
    let headed = |header: Value, algorithm| token(&header, &claims(&json!({})), &key, algorithm);
    let mallory = URL_SAFE_NO_PAD.encode(claims(&json!({"sub": "mallory"})).to_string());
    let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none"}).to_string());
    let other_key = EncodingKey::from_secret(&[7; 32]);
    let cases = [
        ("a good one", good.clone(), Ok("alice")),
        ("a good one for a role", of(json!({"role": "service", "sub": "backend"})), Ok("backend")),
        ("claims of others", of(json!({"iss": "x", "aud": ["y"], "more": {"a": 1}})), Ok("alice")),
        ("nothing", String::new(), BAD),
        ("no token", "no.such.token".into(), BAD),
        ("two parts", parts[..2].join("."), BAD),
        ("four parts", format!("{good}.{}", parts[2]), BAD),
        ("padding", format!("{good}="), BAD),
        ("other claims", [parts[0], &mallory, parts[2]].join("."), BAD),
        ("no signature", [parts[0], parts[1], ""].join("."), BAD),
        ("another key", token(&hs256, &claims(&json!({})), &other_key, HS256), BAD),
        ("no algorithm", [&none, parts[1], ""].join("."), BAD),
        ("no algorithm, but signed", headed(json!({"alg": "none"}), HS256), BAD),
        ("another algorithm", headed(json!({"alg": "HS384"}), Algorithm::HS384), BAD),
        ("a false name of the algorithm", headed(json!({"alg": "RS256"}), HS256), BAD),
        ("an unknown key", headed(json!({"alg": "HS256", "kid": "x"}), HS256), BAD),
        ("an extension", headed(json!({"alg": "HS256", "crit": ["x"], "x": 1}), HS256), BAD),
        ("expired", of(json!({"exp": seconds_from_now(-60)})), OVER),
        ("without an end", token(&hs256, &json!({"sub": "alice"}), &key, HS256), BAD),
        ("not yet valid", of(json!({"nbf": seconds_from_now(3_000)})), BAD),
        ("made in the future", of(json!({"iat": seconds_from_now(3_000)})), BAD),
        ("nobody", of(json!({"sub": ""})), BAD),
        ("two words", of(json!({"sub": "al ice"})), BAD),
        ("two names", of(json!({"sub": "alice:bob"})), BAD),
        ("a number", of(json!({"sub": 7})), BAD),
        ("the server itself", of(json!({"sub": "system"})), ROLE),
        ("an unknown role", of(json!({"role": "admin"})), ROLE),
        ("too long", of(json!({"more": "x".repeat(2_500)})), BAD),
    ];
    for (n, (what, token, expected)) in cases.into_iter().enumerate() {
        let came = try_login(&node, Framing::ALL[n % 3], token).await;
        assert_eq!(came.as_deref().map_err(|code| *code), expected, "{what}");
    }
}

#[tokio::test]
async fn keys_of_a_backend_are_named_in_the_configuration() {
    let mut node = TestNode::start().await;
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let (public, key) = (pair.public_key_pem(), pair.serialize_pem());
    let file = node.home().join("backend.pem");
    std::fs::write(&file, &public).unwrap();
    let config = format!(
        "[[auth.public_keys]]\nkid = \"backend\"\nalgorithm = \"EdDSA\"\nfile = {file:?}\nissuer = \"https://id.example.org\""
    );
    node.write_config(&config);
    let data = node.data().to_str().unwrap();
    let said = finished(["admin", "reload", "--data", data]).await.good();
    assert!(said.contains("auth.public_keys"), "{said}");
    let key = EncodingKey::from_ed_pem(key.as_bytes()).unwrap();
    let header = json!({"alg": "EdDSA", "kid": "backend"});
    let issuer = json!({"iss": "https://id.example.org"});
    let service = json!({"iss": "https://id.example.org", "role": "service"});
    let of = |changed: &Value| token(&header, &claims(changed), &key, Algorithm::EdDSA);
    let secret = EncodingKey::from_secret(public.as_bytes());
    let confused = json!({"alg": "HS256", "kid": "backend"});
    let cases = [
        ("a good one", of(&issuer), Ok("alice")),
        ("another issuer", of(&json!({"iss": "https://elsewhere.example.org"})), Err(ErrorCode::BAD_TOKEN)),
        ("no issuer", of(&json!({})), Err(ErrorCode::BAD_TOKEN)),
        ("a role it may not give", of(&service), Err(ErrorCode::WRONG_ROLE)),
        (
            "the public key as a secret",
            token(&confused, &claims(&issuer), &secret, Algorithm::HS256),
            Err(ErrorCode::BAD_TOKEN),
        ),
    ];
    for (n, (what, token, expected)) in cases.into_iter().enumerate() {
        let came = try_login(&node, Framing::ALL[n % 3], token).await;
        assert_eq!(came.as_deref().map_err(|code| *code), expected, "{what}");
    }
    // The node's own key is good beside it.
    assert_eq!(try_login(&node, Framing::Tcp, node.token("alice").await).await.unwrap(), "alice");
}
