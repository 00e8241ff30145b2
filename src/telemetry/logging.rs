//! The log: lines on standard error, as text or JSON. Ids appear in it, bodies and tokens never.

use std::io::IsTerminal as _;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::log::{Log, LogFormat};

/// Changes the filter of the running log.
#[derive(Debug, Clone)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

/// The log could not be started or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log: {0}")]
pub struct LogError(String);

/// Starts the log of this process; once per process.
///
/// # Errors
/// The filter cannot be understood, or the process has a log already.
pub fn init(config: &Log) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(&config.filter).map_err(LogError)?);
    let lines = match config.format {
        LogFormat::Text => {
            fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).boxed()
        }
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| LogError(error.to_string()))?;
    Ok(LogHandle(handle))
}

impl LogHandle {
    /// Puts another filter in force.
    ///
    /// # Errors
    /// The filter cannot be understood; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        let filter = parse(filter).map_err(LogError)?;
        self.0.reload(filter).map_err(|error| LogError(error.to_string()))
    }
}

/// Says what is wrong with a filter.
///
/// # Errors
/// A text for a person.
pub fn check_filter(filter: &str) -> Result<(), String> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(filter).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for (filter, good) in
            [("info", true), ("warn,convoke::net=debug", true), ("loud=very", false), ("a=b=c", false)]
        {
            assert_eq!(check_filter(filter).is_ok(), good, "{filter}");
        }
    }

    #[test]
    fn the_filter_changes_while_running() {
        let handle =
            init(&Log { filter: "warn".to_owned(), ..Log::default() }).expect("the first of the process");
        assert!(!tracing::enabled!(tracing::Level::INFO));
        handle.set_filter("info").expect("understood");
        assert!(tracing::enabled!(tracing::Level::INFO));
        assert!(handle.set_filter("loud=very").is_err());
        assert!(tracing::enabled!(tracing::Level::INFO), "what is not understood changes nothing");
        assert!(init(&Log::default()).is_err(), "a process has one log");
        handle.set_filter("error").expect("understood");
    }
}
