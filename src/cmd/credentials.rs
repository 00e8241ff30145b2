//! How commands on the node's own machine come to a token: `--data DIR`, `--key FILE`.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;

use crate::auth::key::KEY_FILE;
use crate::auth::{KeyError, SigningKey};

/// Where the node's key is.
#[derive(Debug, Clone, clap::Args)]
pub struct KeySource {
    /// The node's data directory, which has its key
    #[arg(long, value_name = "DIR", default_value = "convoke-data")]
    pub data: PathBuf,
    /// The node's key; counts before the one in the data directory
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

impl KeySource {
    /// Reads the key.
    ///
    /// # Errors
    /// There is none, or it may not be used.
    pub fn load(&self) -> anyhow::Result<SigningKey> {
        let path = self.key.clone().unwrap_or_else(|| self.data.join(KEY_FILE));
        SigningKey::load(&path).map_err(|wrong| match &wrong.error {
            KeyError::Io(error) if error.kind() == ErrorKind::NotFound => {
                let path = path.display();
                anyhow!(
                    "there is no token key {path}: `convoke serve` makes it; --data or --key names another"
                )
            }
            _ => wrong.into(),
        })
    }
}

/// A duration such as `90s`, `15m`, `1h`, `7d`, or `1h30m`.
///
/// # Errors
/// A text for a person.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 90s, 15m, 1h or 7d");
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let mut tail = rest[digits..].chars();
        let unit = match tail.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3_600,
            Some('d') => 86_400,
            _ => return Err(wrong()),
        };
        seconds = number.checked_mul(unit).and_then(|part| seconds.checked_add(part)).ok_or_else(wrong)?;
        rest = tail.as_str();
    }
    if seconds == 0 { Err(wrong()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in
            [("90s", 90), ("15m", 900), ("1h", 3_600), ("7d", 604_800), ("1h30m", 5_400), ("0m1s", 1)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "1", "h", "-1h", "1w", "1.5h", "0s", "1h ", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }
}
