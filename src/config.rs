//! The configuration of a node: a file, overridden by the environment, overridden by the command line.
//!
//! One struct per section (see [`section`]). `cluster.toml` in the repository is [`Config::commented`] of the defaults,
//! and a test keeps it so. Whatever is not understood refuses to start, and an error names key, value and bound:
//!
//! ```text
//! limits.max_frame_bytes = 12: must be 4096..=16777216
//! ```

pub mod auth;
pub mod cluster;
pub mod conversations;
pub mod cql;
pub mod groups;
pub mod limits;
pub mod links;
pub mod log;
pub mod messages;
pub mod net;
pub mod node;
pub mod presence;
pub mod reload;
pub mod retention;
pub mod section;
pub mod sessions;
mod source;
pub mod storage;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod traces;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use reload::{Reload, ReloadReport, diff_reload};
pub use section::{KeyError, Millis};
pub use source::{Overrides, environment};

use convoke_protocol::request::session::Limits as WireLimits;
use section::{Effect, KeyInfo, Origin, Section, SectionReader, toml_text};

/// The file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "cluster.toml";

/// Bytes that the rest of the login phase needs beside the token: two frames with their other fields.
const LOGIN_OVERHEAD_BYTES: usize = 1_024;

/// A key that was taken out of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retired {
    /// The key with its section.
    pub key: &'static str,
    /// What to write instead.
    pub instead: &'static str,
}

/// Every key that was once released and is gone; a file that has one refuses to start and is told what to do.
const RETIRED: &[Retired] = &[];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {error}", .file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration is not TOML: {0}")]
    NotToml(String),
    /// Keys or values are wrong.
    #[error("{}", lines(.0))]
    Keys(Vec<KeyError>),
}

fn lines(errors: &[KeyError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

macro_rules! config {
    ($($section:ident: $ty:ty,)*) => {
        /// Everything that can be set.
        #[derive(Debug, Clone, Default, PartialEq, Serialize)]
        pub struct Config {
            $( #[doc = concat!("The section `[", stringify!($section), "]`.")] pub $section: $ty, )*
        }

        impl Config {
            /// Every section and its keys, in the order of the file.
            pub fn sections() -> Vec<(&'static str, &'static [&'static str], Vec<KeyInfo>)> {
                vec![$( (<$ty>::NAME, <$ty>::DOC, <$ty>::keys()) ),*]
            }

            fn read(mut table: toml::Table, sources: &source::Sources, errors: &mut Vec<KeyError>) -> Self {
                let config = Self { $( $section: read_section(&mut table, sources, errors), )* };
                for (name, value) in table {
                    let sections: Vec<_> = Self::sections().iter().map(|(name, ..)| *name).collect();
                    let problem = format!("no such section; there are {}", sections.join(", "));
                    errors.push(KeyError { key: name, value: value.to_string(), problem, origin: Origin::File });
                }
                config
            }

            fn take_running(&mut self, new: &Self, changes: &mut section::Changes) {
                $( self.$section.take_running(&new.$section, changes); )*
            }
        }
    };
}

config! {
    node: node::Node,
    tcp: net::Tcp,
    websocket: net::WebSocket,
    admin: net::Admin,
    tls: tls::Tls,
    auth: auth::Auth,
    sessions: sessions::Sessions,
    limits: limits::Limits,
    conversations: conversations::Conversations,
    messages: messages::Messages,
    groups: groups::Groups,
    retention: retention::Retention,
    storage: storage::Storage,
    scylla: cql::Scylla,
    cluster: cluster::Cluster,
    links: links::Links,
    redis: presence::Redis,
    log: log::Log,
    traces: traces::Traces,
}

fn read_section<S: Section>(
    table: &mut toml::Table,
    sources: &source::Sources,
    errors: &mut Vec<KeyError>,
) -> S {
    let table = match table.remove(S::NAME) {
        None => toml::Table::new(),
        Some(toml::Value::Table(table)) => table,
        Some(other) => {
            let problem = format!("must be a section: [{}] with its keys below", S::NAME);
            errors.push(KeyError {
                key: S::NAME.to_owned(),
                value: other.to_string(),
                problem,
                origin: Origin::File,
            });
            toml::Table::new()
        }
    };
    let mut reader = SectionReader { section: S::NAME, table, origins: &sources.origins, errors };
    let section = S::read(&mut reader);
    reader.finish(&S::keys());
    section
}

impl Config {
    /// Reads `file` (without one [`DEFAULT_FILE`], if it is there, else the defaults), then the environment, then the
    /// command line.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let text = match file {
            None if !Path::new(DEFAULT_FILE).exists() => String::new(),
            named => {
                let file = named.unwrap_or(Path::new(DEFAULT_FILE));
                std::fs::read_to_string(file)
                    .map_err(|error| ConfigError::Unreadable { file: file.to_owned(), error })?
            }
        };
        Self::parse(&text, environment, overrides)
    }

    /// The same from the text of a file.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        Self::parse_with(text, environment, overrides, RETIRED)
    }

    fn parse_with(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
        retired: &[Retired],
    ) -> Result<Self, ConfigError> {
        let mut table: toml::Table =
            toml::from_str(text).map_err(|error| ConfigError::NotToml(error.to_string()))?;
        let mut errors = take_retired(&mut table, retired);
        let mut sources = source::Sources::default();
        sources.apply_environment(&mut table, environment, &mut errors);
        sources.apply_overrides(&mut table, overrides);
        let config = Self::read(table, &sources, &mut errors);
        config.check(&sources, &mut errors);
        if errors.is_empty() { Ok(config) } else { Err(ConfigError::Keys(errors)) }
    }

    /// What no single key can tell.
    fn check(&self, sources: &source::Sources, errors: &mut Vec<KeyError>) {
        let mut wrong = |key: &str, value: String, problem: String| {
            let origin = sources.origins.get(key).cloned().unwrap_or_default();
            errors.push(KeyError { key: key.to_owned(), value, problem, origin });
        };
        if let Some((key, problem)) = self.links.problem() {
            let value = if key == "listen" { toml_text(&self.links.listen) } else { String::new() };
            wrong(&format!("links.{key}"), value, problem.to_owned());
        }
        if let Some(problem) = self.node.id_problem() {
            wrong("node.id", toml_text(&self.node.id), problem);
        }
        for (key, address) in [("tcp.listen", self.tcp.listen), ("websocket.listen", self.websocket.listen)] {
            if self.tls.applies_to(address) && !self.tls.has_certificate() {
                let problem = if self.tls.mode == tls::TlsMode::On {
                    "tls.mode is \"on\", so tls.certificate and tls.key must be set"
                } else {
                    "not loopback: set tls.certificate and tls.key, or write tls.mode = \"off\""
                };
                wrong(key, toml_text(&address), problem.to_owned());
            }
        }
        if !self.admin.listen.ip().is_loopback() && !self.admin.public {
            let problem = "not loopback: write admin.public = true if that is meant".to_owned();
            wrong("admin.listen", toml_text(&self.admin.listen), problem);
        }
        for (index, key) in self.auth.public_keys.iter().enumerate() {
            let twice = self.auth.public_keys[..index].iter().any(|other| other.kid == key.kid);
            if key.kid.is_empty() || twice {
                let problem = "every kid must be given, and be different from the others";
                wrong("auth.public_keys", format!("{:?}", key.kid), problem.to_owned());
            }
        }
        let token = self.auth.max_token_bytes;
        if token + LOGIN_OVERHEAD_BYTES > self.sessions.login_bytes {
            let least = token + LOGIN_OVERHEAD_BYTES;
            let problem = format!("must be {least} or more, since auth.max_token_bytes = {token} must fit");
            wrong("sessions.login_bytes", self.sessions.login_bytes.to_string(), problem);
        }
        if let Some(problem) = self.sessions.class_problem() {
            wrong("sessions.max_per_class", toml_text(&self.sessions.max_per_class), problem);
        }
        let frame = self.limits.max_frame_bytes;
        if self.limits.max_body_bytes > frame / 2 {
            let problem = format!("must be at most {}, half of limits.max_frame_bytes", frame / 2);
            wrong("limits.max_body_bytes", self.limits.max_body_bytes.to_string(), problem);
        }
        if self.limits.max_page_bytes > frame {
            let problem = format!("must be at most limits.max_frame_bytes = {frame}");
            wrong("limits.max_page_bytes", self.limits.max_page_bytes.to_string(), problem);
        }
        if let Err(error) = crate::telemetry::logging::check_filter(&self.log.filter) {
            wrong("log.filter", toml_text(&self.log.filter), error);
        }
        let endpoint = &self.traces.endpoint;
        if !endpoint.is_empty() && !endpoint.starts_with("http://") {
            let problem =
                "must be empty or begin with http://: a collector nearby, which speaks TLS to others";
            wrong("traces.endpoint", toml_text(endpoint), problem.to_owned());
        }
    }

    /// What clients are told in `Welcome`.
    pub fn wire_limits(&self) -> WireLimits {
        // Every bound of these keys is far below what 32 bits hold.
        let small = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        WireLimits {
            max_frame_bytes: small(self.limits.max_frame_bytes),
            max_body_bytes: small(self.limits.max_body_bytes),
            max_in_flight: self.limits.max_in_flight,
            max_page_messages: self.limits.max_page_messages,
            max_page_bytes: small(self.limits.max_page_bytes),
            max_ranges: self.limits.max_ranges,
            dedup_window_ms: crate::actors::conversation::dedup::WINDOW.as_millis() as u64,
            ack_deadline_ms: self.sessions.ack_deadline_ms.as_u32(),
        }
    }

    /// This configuration as a file, without comments.
    ///
    /// # Panics
    /// Never: every value has a form in TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every value has a form in TOML")
    }

    /// This configuration as a file in which comments say what each key is, its bound and its default.
    pub fn commented(&self) -> String {
        let mut out = HEADER.to_owned();
        let (values, defaults) = (self.tables(), Self::default().tables());
        for (section, doc, keys) in Self::sections() {
            out.push('\n');
            put_comment(&mut out, doc);
            let _ = writeln!(out, "[{section}]");
            for (index, key) in keys.into_iter().enumerate() {
                if index > 0 {
                    out.push('\n');
                }
                put_comment(&mut out, key.doc);
                let default = &defaults[section][key.name];
                let _ = writeln!(out, "# {}", facts(&key, default));
                let _ = writeln!(out, "{} = {}", key.name, values[section][key.name]);
            }
        }
        out
    }

    fn tables(&self) -> toml::Table {
        toml::Table::try_from(self).expect("every value has a form in TOML")
    }
}

const HEADER: &str = "\
# The configuration of a Convoke node. Every setting is here, with its default; a file needs only what differs.
#
# Keys end in their unit: _bytes, _ms (milliseconds), _per_s. In brackets stand the numbers that are allowed, the
# default, and \"running\" where `convoke admin reload` puts a new value in force without a restart.
#
# A variable of the environment overrides a key: CONVOKE_LIMITS_MAX_FRAME_BYTES=65536 for limits.max_frame_bytes.
# The flags --data, --tcp, --ws and --admin override both. A key that does not exist refuses to start;
# `convoke config check` says what is wrong with a file, and `convoke config show` what is in effect.
";

fn put_comment(out: &mut String, doc: &[&str]) {
    for line in doc.iter().map(|line| line.trim_end()) {
        if line.trim_start().starts_with("```") {
            continue;
        }
        let _ = writeln!(out, "#{line}");
    }
}

/// The line under the documentation of a key: its bound, its default, and when it takes effect.
fn facts(key: &KeyInfo, default: &toml::Value) -> String {
    let mut facts = Vec::new();
    if let Some(bound) = &key.bound {
        facts.push(format!("{}..={}", bound.start(), bound.end()));
    }
    let size = match default.as_integer() {
        Some(bytes) if key.name.ends_with("_bytes") && bytes % 1_048_576 == 0 => {
            format!(" ({} MiB)", bytes / 1_048_576)
        }
        Some(bytes) if key.name.ends_with("_bytes") && bytes % 1_024 == 0 => {
            format!(" ({} KiB)", bytes / 1_024)
        }
        _ => String::new(),
    };
    facts.push(format!("default {default}{size}"));
    if key.effect == Effect::Running {
        facts.push("running".to_owned());
    }
    format!("[{}]", facts.join("; "))
}

fn take_retired(table: &mut toml::Table, retired: &[Retired]) -> Vec<KeyError> {
    let mut errors = Vec::new();
    for gone in retired {
        let Some((section, name)) = gone.key.split_once('.') else { continue };
        let Some(toml::Value::Table(keys)) = table.get_mut(section) else { continue };
        if let Some(value) = keys.remove(name) {
            let problem = format!("this key is gone; {}", gone.instead);
            let (key, value) = (gone.key.to_owned(), value.to_string());
            errors.push(KeyError { key, value, problem, origin: Origin::File });
        }
    }
    errors
}
