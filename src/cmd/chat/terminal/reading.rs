//! What is unread, who has read, who is typing.

use std::time::{Duration, Instant};

use convoke_client::protocol::event::{ReadMoved, Receipt, Signalled};
use convoke_protocol::id::{ConversationId, Seq};
use convoke_protocol::message::Content;
use convoke_protocol::request::conversations::{Conversations, ListedConversation};
use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use tokio::sync::mpsc;

use super::super::text;
use super::Talk;

/// What says that somebody is typing.
const TYPING: &str = "typing";

/// Typing is told, and shown, at most this often.
const TYPING_PAUSE: Duration = Duration::from_secs(4);

/// Conversations that a list shows.
const LISTED: u32 = 30;

/// Notices every key that changes the line.
pub(super) struct Keys(pub(super) mpsc::Sender<()>);

impl Hinter for Keys {
    type Hint = String;
    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        if !line.is_empty() && !line.starts_with('/') {
            // One that waits already says the same.
            let _ = self.0.try_send(());
        }
        None
    }
}

impl Completer for Keys {
    type Candidate = String;
}
impl Highlighter for Keys {}
impl Validator for Keys {}
impl Helper for Keys {}

/// What is known of others, as far as it was shown.
#[derive(Default)]
pub(super) struct Others {
    told_typing: Option<Instant>,
    shown_typing: Option<(ConversationId, Instant)>,
    seen: Option<(ConversationId, Seq)>,
}

fn is_due(last: Option<Instant>) -> bool {
    last.is_none_or(|last| last.elapsed() >= TYPING_PAUSE)
}

impl Talk {
    /// Says what is unread, or shows the whole list.
    pub(super) async fn list(&mut self, only_unread: bool) {
        let page = Conversations { after: None, limit: LISTED, known_version: None };
        let list = match self.chat.client.conversations(page).await {
            Ok(list) => list,
            Err(error) => return self.failure(&format!("no list: {error}")),
        };
        let shown = |one: &&ListedConversation| !only_unread || one.unread > 0;
        for one in list.conversations.iter().filter(shown) {
            self.screen.show(self.style.listed(&self.chat.user, one));
        }
        match list.unread {
            0 if only_unread => {}
            0 => self.notice("nothing is unread"),
            unread => self.notice(&format!("{unread} unread; /read marks all as read")),
        }
    }

    /// Everything is read.
    pub(super) async fn read_all(&mut self) {
        match self.chat.client.mark_all_read().await {
            Ok(moved) => self.notice(&format!("read: {moved} conversations had something unread")),
            Err(error) => self.failure(&format!("not marked as read: {error}")),
        }
    }

    /// What the open conversation shows is read. Nobody waits for it: the next message says it again.
    pub(super) fn has_read(&self, conversation: &ConversationId, seq: Seq) {
        if self.chat.conversation().as_ref() == Some(conversation) && seq > Seq::ZERO {
            let (client, conversation) = (self.chat.client.clone(), conversation.clone());
            tokio::spawn(async move { client.read(conversation, seq).await });
        }
    }

    /// A key was pressed.
    pub(super) fn key(&mut self) {
        let Some(target) = self.chat.target.clone() else { return };
        if self.down || !is_due(self.others.told_typing) {
            return;
        }
        self.others.told_typing = Some(Instant::now());
        let client = self.chat.client.clone();
        tokio::spawn(async move { client.signal(target, TYPING, Content::text("")).await });
    }

    pub(super) fn signalled(&mut self, signalled: &Signalled) {
        let Signalled { conversation, user, kind, .. } = signalled;
        let open = self.chat.conversation().as_ref() == Some(conversation);
        let last = self.others.shown_typing.as_ref().filter(|(shown, _)| shown == conversation);
        if kind == TYPING && open && *user != self.chat.user && is_due(last.map(|(_, at)| *at)) {
            self.others.shown_typing = Some((conversation.clone(), Instant::now()));
            self.notice(&format!("{user} is typing…"));
        }
    }

    /// Somebody has read what is shown here.
    pub(super) fn seen(&mut self, receipt: &Receipt) {
        let Receipt { conversation, user, seq } = receipt;
        let place = (conversation.clone(), *seq);
        let is_last = self.shown.get(conversation).is_some_and(|shown| shown.last <= *seq);
        let open = self.chat.conversation().as_ref() == Some(conversation);
        if open && is_last && self.last_is_own && self.others.seen.as_ref() != Some(&place) {
            self.notice(&format!("seen by {user}"));
            self.others.seen = Some(place);
        }
    }

    pub(super) fn read_elsewhere(&self, moved: &ReadMoved) {
        if moved.unread == 0 {
            self.notice(&format!(
                "{} was read on another device",
                text::name(&self.chat.user, &moved.conversation)
            ));
        }
    }
}
