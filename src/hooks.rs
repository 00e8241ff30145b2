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

/// Asks the rules about something that is to be said: what is to be stored, or why it may not be.
///
/// # Errors
/// Why not.
pub fn admit(
    hooks: &dyn Hooks,
    sender: &UserId,
    conversation: &ConversationId,
    content: Content,
) -> Result<Content, String> {
    hooks.authorize_send(sender, conversation)?;
    match hooks.before_store(sender, conversation, &content) {
        Verdict::Accept => Ok(content),
        Verdict::Replace(other) => Ok(other),
        Verdict::Refuse(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mallory may not speak; nobody may swear, and shouting is made quiet.
    struct Polite;

    impl Hooks for Polite {
        fn authorize_send(&self, sender: &UserId, _: &ConversationId) -> Result<(), String> {
            if sender.as_str() == "mallory" { Err("not here".into()) } else { Ok(()) }
        }

        fn before_store(&self, _: &UserId, _: &ConversationId, content: &Content) -> Verdict {
            match content.as_text() {
                Some(text) if text.contains("darn") => Verdict::Refuse("mind your words".into()),
                Some(text) if text.chars().any(char::is_uppercase) => {
                    Verdict::Replace(Content::text(text.to_lowercase()))
                }
                _ => Verdict::Accept,
            }
        }
    }

    #[test]
    fn rules_refuse_and_replace() {
        let user = |name: &str| UserId::new(name).expect("valid");
        let pair = ConversationId::direct(&user("alice"), &user("bob"));
        let said =
            |hooks: &dyn Hooks, name: &str, text: &str| admit(hooks, &user(name), &pair, Content::text(text));
        assert_eq!(said(&Polite, "alice", "hello"), Ok(Content::text("hello")));
        assert_eq!(said(&Polite, "alice", "HELLO"), Ok(Content::text("hello")));
        assert_eq!(said(&Polite, "alice", "darn"), Err("mind your words".into()));
        assert_eq!(said(&Polite, "mallory", "hello"), Err("not here".into()));
        assert_eq!(said(&NoHooks, "mallory", "DARN"), Ok(Content::text("DARN")));
        assert!(!NoHooks.wants_commits());
    }
}
