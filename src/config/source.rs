//! Where values come from besides the file: the environment and the command line.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::Config;
use super::section::{KeyError, Origin};

/// How the variables begin that override a key.
const PREFIX: &str = "CONVOKE_";

/// Variables that begin like an override and are none: those of tests and tools.
const OTHER_VARIABLES: &[&str] = &["CONVOKE_BLESS"];

/// The beginnings of more such variables.
const OTHER_PREFIXES: &[&str] = &["CONVOKE_TEST_", "CONVOKE_FUZZ_"];

/// What the command line may override.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--data`
    pub data: Option<PathBuf>,
    /// `--tcp`
    pub tcp: Option<SocketAddr>,
    /// `--ws`
    pub ws: Option<SocketAddr>,
    /// `--admin`
    pub admin: Option<SocketAddr>,
}

/// The variables of this process that may be meant for the configuration.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
            Some((name, value.to_string_lossy().into_owned()))
        })
        .collect()
}

/// Who gave which key, where it was not the file.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) origins: HashMap<String, Origin>,
}

impl Sources {
    /// Lays the variables over the table; one that names no key is noted as an error.
    pub(super) fn apply_environment(
        &mut self,
        table: &mut toml::Table,
        environment: impl IntoIterator<Item = (String, String)>,
        errors: &mut Vec<KeyError>,
    ) {
        let defaults = Config::default().tables();
        let mut keys = HashMap::new();
        for (section, _, infos) in Config::sections() {
            for info in infos {
                keys.insert(format!("{PREFIX}{section}_{}", info.name).to_uppercase(), (section, info.name));
            }
        }
        for (variable, text) in environment {
            let other = OTHER_VARIABLES.contains(&variable.as_str())
                || OTHER_PREFIXES.iter().any(|prefix| variable.starts_with(prefix));
            if !variable.starts_with(PREFIX) || other {
                continue;
            }
            let Some(&(section, name)) = keys.get(&variable) else {
                let problem = "no key has this name; it is CONVOKE_SECTION_KEY, \
                               such as CONVOKE_LIMITS_MAX_FRAME_BYTES";
                let (key, value) = (variable, toml::Value::String(text).to_string());
                errors.push(KeyError { key, value, problem: problem.to_owned(), origin: Origin::default() });
                continue;
            };
            let value = parse_value(text, &defaults[section][name]);
            self.put(table, (section, name), value, Origin::Variable(variable));
        }
    }

    /// Lays the flags over the table.
    pub(super) fn apply_overrides(&mut self, table: &mut toml::Table, overrides: &Overrides) {
        let address = |address: Option<SocketAddr>| address.map(|address| address.to_string());
        let data = overrides.data.as_ref().map(|data| data.to_string_lossy().into_owned());
        for (key, value, flag) in [
            (("node", "data"), data, "--data"),
            (("tcp", "listen"), address(overrides.tcp), "--tcp"),
            (("websocket", "listen"), address(overrides.ws), "--ws"),
            (("admin", "listen"), address(overrides.admin), "--admin"),
        ] {
            if let Some(value) = value {
                self.put(table, key, toml::Value::String(value), Origin::Flag(flag));
            }
        }
    }

    fn put(&mut self, table: &mut toml::Table, key: (&str, &str), value: toml::Value, origin: Origin) {
        let section = table.entry(key.0).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        // A file that says `limits = 3` is refused for that; there is nothing to lay a value over.
        if let toml::Value::Table(section) = section {
            section.insert(key.1.to_owned(), value);
            self.origins.insert(format!("{}.{}", key.0, key.1), origin);
        }
    }
}

/// A variable's text as a value of the default's kind: a string as it is, anything else as TOML writes it.
fn parse_value(text: String, default: &toml::Value) -> toml::Value {
    if default.is_str() {
        return toml::Value::String(text);
    }
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}"));
    let value = parsed.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.unwrap_or(toml::Value::String(text))
}
