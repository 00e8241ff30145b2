//! How one section of the configuration is declared, read and described.
//!
//! `section!` takes one row per key: its documentation, whether it may change while the node runs, its type, its default
//! and its bound. From these rows come the struct, its `Default`, the checks, what a reload may do, and `cluster.toml`.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A length of time in whole milliseconds, as keys ending in `_ms` give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// The same as a [`Duration`].
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// The same as the wire carries it; what does not fit is the most it can say.
    pub fn as_u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

/// When a new value of a key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// At the next reload.
    Running,
    /// When the node is started again.
    Restart,
}

/// What is known of a key besides its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its name within the section.
    pub name: &'static str,
    /// Its documentation, line by line.
    pub doc: &'static [&'static str],
    /// When a new value takes effect.
    pub effect: Effect,
    /// Between which numbers it must be.
    pub bound: Option<RangeInclusive<u64>>,
}

/// A value that a key can have.
pub trait Setting: Serialize + DeserializeOwned + Clone + PartialEq {
    /// The number that a bound applies to; `None` for what is not a number.
    fn number(&self) -> Option<u64> {
        None
    }
}

macro_rules! settings {
    ($($ty:ty),* ; numbers $($number:ty),*) => {
        $( impl Setting for $ty {} )*
        $( impl Setting for $number {
            fn number(&self) -> Option<u64> { u64::try_from(*self).ok() }
        } )*
    };
}

settings! { bool, String, PathBuf, SocketAddr ; numbers u32, u64, usize }

impl<T: Setting> Setting for Vec<T> {}

impl Setting for Millis {
    fn number(&self) -> Option<u64> {
        Some(self.0)
    }
}

/// A part of the configuration with a name of its own.
pub trait Section: Default + Clone + PartialEq + Serialize {
    /// Its name in the file.
    const NAME: &'static str;
    /// What it is about, line by line.
    const DOC: &'static [&'static str];

    /// Its keys, in the order of the file.
    fn keys() -> Vec<KeyInfo>;

    /// Takes what the reader has for this section; the reader collects what is wrong.
    fn read(reader: &mut SectionReader<'_>) -> Self;

    /// Takes from `new` what may change while running, and notes each difference.
    fn take_running(&mut self, new: &Self, changes: &mut Changes);
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {problem}{origin}")]
pub struct KeyError {
    /// The key with its section, or the name of a variable.
    pub key: String,
    /// The value as it was given.
    pub value: String,
    /// The bound it breaks, or what else is wrong.
    pub problem: String,
    /// Who gave it.
    pub origin: Origin,
}

/// Who gave a value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    /// The file, or a default.
    #[default]
    File,
    /// A variable of the environment.
    Variable(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Variable(name) => write!(f, " (from the variable {name})"),
            Self::Flag(flag) => write!(f, " (from {flag})"),
        }
    }
}

/// Reads the keys of one section out of a table.
pub struct SectionReader<'a> {
    /// The section's name.
    pub section: &'static str,
    /// What is left of the section's table: every key that is read is taken out.
    pub table: toml::Table,
    /// Who gave which `section.key`, where it was not the file.
    pub origins: &'a HashMap<String, Origin>,
    /// What is wrong so far.
    pub errors: &'a mut Vec<KeyError>,
}

impl SectionReader<'_> {
    /// The value of a key, or its default; what is wrong is noted and the default returned.
    pub fn key<T: Setting>(&mut self, name: &str, default: T, bound: Option<RangeInclusive<u64>>) -> T {
        let Some(value) = self.table.remove(name) else { return default };
        let problem = match value.clone().try_into::<T>() {
            Ok(setting) => match (setting.number(), bound) {
                (Some(number), Some(bound)) if !bound.contains(&number) => {
                    format!("must be {}..={}", bound.start(), bound.end())
                }
                _ => return setting,
            },
            Err(error) => match bound {
                Some(bound) => format!("must be a whole number, {}..={}", bound.start(), bound.end()),
                None => error.message().to_owned(),
            },
        };
        self.note(name, &value, problem);
        default
    }

    /// Notes that every key which is left is none of this section.
    pub fn finish(mut self, keys: &[KeyInfo]) {
        for (name, value) in std::mem::take(&mut self.table) {
            let known: Vec<_> = keys.iter().map(|key| key.name).collect();
            self.note(&name, &value, format!("no such key; [{}] has {}", self.section, known.join(", ")));
        }
    }

    fn note(&mut self, name: &str, value: &toml::Value, problem: String) {
        let key = format!("{}.{name}", self.section);
        let origin = self.origins.get(&key).cloned().unwrap_or_default();
        self.errors.push(KeyError { key, value: value.to_string(), problem, origin });
    }
}

/// A key whose value is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    /// The key with its section.
    pub key: String,
    /// The value in force before.
    pub old: String,
    /// The value in the file now.
    pub new: String,
}

/// The differences between two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Of keys that may change while running.
    pub running: Vec<KeyChange>,
    /// Of keys that need a restart.
    pub restart: Vec<KeyChange>,
}

impl Changes {
    /// Compares one key, and takes the new value over if that may be.
    pub fn take<T: Setting>(&mut self, key: (&str, &str), effect: Effect, old: &mut T, new: &T) {
        if old == new {
            return;
        }
        let change =
            KeyChange { key: format!("{}.{}", key.0, key.1), old: toml_text(old), new: toml_text(new) };
        match effect {
            Effect::Running => {
                self.running.push(change);
                *old = new.clone();
            }
            Effect::Restart => self.restart.push(change),
        }
    }
}

/// A value as the file would say it.
pub fn toml_text(value: &impl Serialize) -> String {
    toml::Value::try_from(value).map_or_else(|error| error.to_string(), |value| value.to_string())
}

/// Declares one section; see the [module](self).
macro_rules! section {
    (
        $(#[doc = $doc:literal])*
        $name:ident in $section:literal {
            $( $(#[doc = $key_doc:literal])* $effect:ident $key:ident: $ty:ty = $default:expr $(, in $bound:expr)?; )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize)]
        pub struct $name { $( $(#[doc = $key_doc])* pub $key: $ty, )* }

        impl Default for $name {
            fn default() -> Self { Self { $( $key: $default, )* } }
        }

        impl $crate::config::section::Section for $name {
            const NAME: &'static str = $section;
            const DOC: &'static [&'static str] = &[$($doc),*];

            fn keys() -> Vec<$crate::config::section::KeyInfo> {
                vec![$( $crate::config::section::KeyInfo {
                    name: stringify!($key),
                    doc: &[$($key_doc),*],
                    effect: $crate::config::section::Effect::$effect,
                    bound: None$(.or(Some($bound)))?,
                } ),*]
            }

            fn read(reader: &mut $crate::config::section::SectionReader<'_>) -> Self {
                let default = Self::default();
                Self { $( $key: reader.key(stringify!($key), default.$key, None$(.or(Some($bound)))?), )* }
            }

            fn take_running(&mut self, new: &Self, changes: &mut $crate::config::section::Changes) {
                $( changes.take(
                    ($section, stringify!($key)),
                    $crate::config::section::Effect::$effect,
                    &mut self.$key,
                    &new.$key,
                ); )*
            }
        }
    };
}

pub(crate) use section;
