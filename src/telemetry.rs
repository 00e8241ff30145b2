//! What a node tells about itself: numbers for machines ([`metrics`]) and lines for people ([`logging`]).

pub mod logging;
pub mod metrics;
mod process;
pub mod store;

pub use logging::LogHandle;
pub use metrics::Metrics;
