//! x
use crate::actors::session::egress::Delivery;
use convoke_protocol::error_code::ErrorCode;
/// x
#[derive(Default)]
pub struct Metrics {}
#[allow(missing_docs)]
impl Metrics {
    pub fn committed(&self, _messages: usize) {}
    pub fn activated(&self) {}
    pub fn actor_restarted(&self, _kind: &'static str) {}
    pub fn delivery(&self, _delivery: Delivery, _pushes: u64) {}
    pub fn request_failed(&self, _code: ErrorCode) {}
    pub fn request(&self, _type_number: u16) {}
    pub fn login(&self, _refused: Option<ErrorCode>) {}
    pub fn connection_closed(&self, _reason: ErrorCode) {}
}
