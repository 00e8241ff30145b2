//! Where an application's own rules come in: seams that do nothing by themselves.
//!
//! They are called on the way of a message and must answer at once: no I/O, no waiting. What has to wait (a call of another
//! service) belongs into whoever implements them, behind a queue of its own.

use convoke_protocol::id::{ConversationId, Seq, UserId};
use convoke_protocol::message::Content;

/// What becomes of a body before it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is stored as it is.
    Accept,
    /// This is stored instead.
    Replace(Content),
    /// It is not stored; the sender is told why, with code `refused`.
    Refuse(String),
}

/// The rules of an application.
pub trait Hooks: Send + Sync + 'static {
    /// Whether `sender` may say something in `conversation`, beyond the server's own rules.
    ///
    /// # Errors
    /// Why not: told to the sender with code `refused`.
    fn authorize_send(&self, sender: &UserId, conversation: &ConversationId) -> Result<(), String> {
        let _ = (sender, conversation);
        Ok(())
    }

    /// Looks at what is about to be stored: a send or an edit.
    fn before_store(&self, sender: &UserId, conversation: &ConversationId, content: &Content) -> Verdict {
        let _ = (sender, conversation, content);
        Verdict::Accept
    }

    /// Whether [`Self::after_commit`] is to be called: finding out who is offline costs a look at every member.
    fn wants_commits(&self) -> bool {
        false
    }

    /// Entries `first..=last` of a conversation are committed, and these of its members have no session that gets the pushes.
    fn after_commit(&self, conversation: &ConversationId, first: Seq, last: Seq, offline: &[UserId]) {
        let _ = (conversation, first, last, offline);
    }
}

/// No rules.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {}
