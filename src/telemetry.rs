//! What a node tells about itself: numbers for machines ([`metrics`]) and lines for people ([`logging`]).

pub mod audit;
pub mod cluster;
pub mod door;
pub mod line_limit;
pub mod logging;
pub mod metrics;
pub(crate) mod process;
pub mod redis;
mod source;
pub mod store;
pub mod traces;

pub use logging::LogHandle;
pub use metrics::Metrics;
