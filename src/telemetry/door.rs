//! What the listeners count of themselves.

use std::fmt;

use convoke_protocol::error_code::ErrorCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::source::Source;

/// What happened at the listeners for clients since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DoorNumbers {
    /// Connections let in.
    pub accepted: u64,
    /// Refused because the node has as many as it may.
    pub refused_node: u64,
    /// Refused because their address has as many as it may.
    pub refused_address: u64,
    /// Failed calls of accept.
    pub accept_errors: u64,
    /// Of those, the ones after which accepting rested: no file descriptors, no memory.
    pub accept_pauses: u64,
    /// TLS handshakes and WebSocket upgrades that came to nothing.
    pub failed_handshakes: u64,
}

impl Collector for Source<DoorNumbers> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let numbers = self.read();
        let help = "Connections turned away";
        let mut refused =
            encoder.encode_descriptor("connections_refused", help, None, MetricType::Counter)?;
        for (reason, count) in [
            (ErrorCode::TOO_MANY_CONNECTIONS, numbers.refused_node),
            (ErrorCode::TOO_MANY_FROM_ADDRESS, numbers.refused_address),
        ] {
            ConstCounter::new(count).encode(refused.encode_family(&[("reason", reason.name())])?)?;
        }
        for (name, help, count) in [
            ("connections_accepted", "Connections that were let in", numbers.accepted),
            ("accept_errors", "Connections that the system failed to hand over", numbers.accept_errors),
            ("accept_pauses", "Pauses of accepting for want of descriptors or memory", numbers.accept_pauses),
            ("handshakes_failed", "TLS handshakes and upgrades that failed", numbers.failed_handshakes),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}
