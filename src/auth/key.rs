//! The node's own key: a file that only its owner may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use convoke_protocol::id::{Timestamp, UserId};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rand::TryRngCore as _;
use serde::Serialize;
use uuid::Uuid;

use super::Role;

/// The name of the key's file within the data directory.
pub const KEY_FILE: &str = "token.key";

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// A key file that is longer than this is none.
const MAX_FILE_BYTES: u64 = 1_024;

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Others than its owner may read or change it.
    #[error("others may use it (mode {0:04o}); run: chmod 600 {path}", path = .1.display())]
    Exposed(u32, PathBuf),
    /// It holds something else.
    #[error("not a key: {KEY_BYTES} random bytes in base64url are expected")]
    NotAKey,
}

/// Which key file is wrong, and how.
#[derive(Debug, thiserror::Error)]
#[error("token key {}: {error}", .path.display())]
pub struct KeyFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub error: KeyError,
}

/// The key that signs and verifies a node's own tokens.
#[derive(Clone)]
pub struct SigningKey {
    bytes: [u8; KEY_BYTES],
    encoding: EncodingKey,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

#[derive(Serialize)]
struct SignedClaims<'a> {
    sub: &'a str,
    role: Role,
    iat: u64,
    exp: u64,
    jti: String,
}

impl SigningKey {
    /// A key of these bytes.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self { bytes, encoding: EncodingKey::from_secret(&bytes) }
    }

    /// A new random key that is kept nowhere.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; KEY_BYTES];
        rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
        Ok(Self::from_bytes(bytes))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// There is none, others may read it, or it holds something else.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        read_key(path).map_err(|error| KeyFileError { path: path.to_owned(), error })
    }

    /// Reads [`KEY_FILE`] in `dir`, which must exist, and makes it if it is not there. Of several processes that do so at
    /// once all get the same key.
    ///
    /// # Errors
    /// As [`Self::load`], or the file cannot be made.
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyFileError> {
        let path = dir.join(KEY_FILE);
        match read_key(&path) {
            Err(KeyError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                create_key(dir, &path).and_then(|()| read_key(&path))
            }
            result => result,
        }
        .map_err(|error| KeyFileError { path, error })
    }

    /// Makes a token for `user` that is good for `ttl` from now.
    ///
    /// # Panics
    /// Never: HMAC takes every key.
    pub fn sign(&self, user: &UserId, role: Role, ttl: Duration) -> String {
        self.sign_at(user, role, ttl, crate::clock::Clock::new(0).wall())
    }

    /// The same for a given time.
    ///
    /// # Panics
    /// Never: HMAC takes every key.
    pub fn sign_at(&self, user: &UserId, role: Role, ttl: Duration, now: Timestamp) -> String {
        let iat = now.0 / 1_000;
        let claims = SignedClaims {
            sub: user.as_str(),
            role,
            iat,
            exp: iat.saturating_add(ttl.as_secs()),
            jti: Uuid::new_v4().simple().to_string(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .expect("HMAC takes every key, and the claims have a form in JSON")
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }
}

fn read_key(path: &Path) -> Result<SigningKey, KeyError> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed(mode, path.to_owned()));
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => KeyError::NotAKey,
        _ => KeyError::Io(error),
    })?;
    let bytes = URL_SAFE_NO_PAD.decode(text.trim()).map_err(|_| KeyError::NotAKey)?;
    Ok(SigningKey::from_bytes(bytes.try_into().map_err(|_| KeyError::NotAKey)?))
}

/// Writes a new key under a name of its own, then links it to its place: nobody sees half a key, and the first to link wins.
fn create_key(dir: &Path, path: &Path) -> Result<(), KeyError> {
    let key = SigningKey::random()?;
    let temporary = dir.join(format!("{KEY_FILE}.{}.new", Uuid::new_v4().simple()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = (|| {
        // Whatever the umask took away is given back: 0600 is what is promised.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        writeln!(file, "{}", URL_SAFE_NO_PAD.encode(key.bytes))?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => File::open(dir)?.sync_all(),
        }
    })();
    fs::remove_file(&temporary)?;
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let dir = dir.path().to_owned();
                std::thread::spawn(move || SigningKey::load_or_create(&dir).expect("a key"))
            })
            .collect();
        let keys: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("ended")).collect();
        assert!(keys.iter().all(|key| key.bytes == keys[0].bytes), "all got the same key");
        let files: Vec<_> = fs::read_dir(dir.path()).expect("listed").collect();
        assert_eq!(files.len(), 1, "nothing else is left behind: {files:?}");

        let path = dir.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o600);
        assert_eq!(SigningKey::load(&path).expect("a key").bytes, keys[0].bytes);
        assert_eq!(format!("{:?}", keys[0]), "SigningKey(..)");
    }

    #[test]
    fn what_is_no_key_or_open_to_others_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(KEY_FILE);
        let good = URL_SAFE_NO_PAD.encode([7; KEY_BYTES]);
        let cases = [
            (good.as_str(), 0o640, "others may use it (mode 0640); run: chmod 600"),
            (good.as_str(), 0o604, "others may use it (mode 0604)"),
            ("", 0o600, "not a key"),
            (&good[1..], 0o600, "not a key"),
            ("!!!", 0o600, "not a key"),
        ];
        for (text, mode, expected) in cases {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            let error = SigningKey::load_or_create(dir.path()).expect_err(expected).to_string();
            assert!(error.contains(expected) && error.contains("token.key"), "{error}");
            assert!(text.is_empty() || !error.contains(text), "the error shows no key");
        }
        fs::write(&path, [0xff, 0xfe]).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        assert!(matches!(SigningKey::load(&path).expect_err("not text").error, KeyError::NotAKey));
        let missing = SigningKey::load(&dir.path().join("other")).expect_err("missing");
        assert!(matches!(missing.error, KeyError::Io(error) if error.kind() == io::ErrorKind::NotFound));
    }
}
