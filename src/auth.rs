//! x
use convoke_protocol::error_code::RequestError;
use convoke_protocol::id::{Timestamp, UserId};
/// x
pub struct Verifier;
/// x
#[allow(missing_docs)]
pub struct Claims {
    pub user: UserId,
    pub expires: Timestamp,
}
impl Verifier {
    /// x
    pub fn verify(&self, _token: &str, _now: Timestamp) -> Result<Claims, RequestError> {
        unreachable!()
    }
}
