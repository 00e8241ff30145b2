//! Signals: passed on to who is there, never kept.

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::Signalled;
use convoke_protocol::frame::Event;
use convoke_protocol::request::messages::Target;
use convoke_protocol::request::read_state::{
    MAX_SIGNAL_BODY_BYTES, MAX_SIGNAL_KIND_BYTES, Signal, SignalTaken,
};

use super::reading::Reader;
use super::state::RateLimit;

/// Signals of one session per second, in the long run.
const SIGNALS_PER_S: u32 = 20;

/// Signals of one session at once, when it was quiet before.
const SIGNAL_BURST: u32 = 40;

/// Passes a signal on to the other sessions of the conversation.
pub(super) async fn signal(
    reader: &Reader<'_>,
    rate: &mut RateLimit,
    signal: Signal,
) -> Result<SignalTaken, RequestError> {
    let Signal { target, kind, content } = signal;
    let Reader { services, session, .. } = reader;
    if kind.is_empty() || kind.len() > MAX_SIGNAL_KIND_BYTES || kind.chars().any(char::is_control) {
        let text = format!("a kind has 1 to {MAX_SIGNAL_KIND_BYTES} bytes and no control characters");
        return Err(RequestError::not_done(ErrorCode::INVALID_REQUEST, text));
    }
    if content.body.len() > MAX_SIGNAL_BODY_BYTES {
        let text = format!("the body has {} bytes, more than {MAX_SIGNAL_BODY_BYTES}", content.body.len());
        return Err(RequestError::not_done(ErrorCode::BODY_TOO_LARGE, text));
    }
    let now = services.clock.now().monotonic;
    if let Err(wait_ms) = rate.take(SIGNALS_PER_S, SIGNAL_BURST, now) {
        let error = RequestError::not_done(ErrorCode::RATE_LIMITED, "more signals per second than allowed");
        return Err(error.retry_after(wait_ms));
    }
    let conversation = target.conversation(&session.user);
    let users = conversation.direct_users();
    let event = Event::Signalled(Signalled {
        conversation: conversation.clone(),
        user: session.user.clone(),
        device: session.device.clone(),
        kind,
        content,
    });
    if let Target::Group(_) = &target {
        services.conversations.signal(conversation, event, reader.attending()).await?;
        return Ok(SignalTaken {});
    }
    for user in users {
        services.directory.tell(&user, &event, Some(session.id)).await;
    }
    Ok(SignalTaken {})
}
