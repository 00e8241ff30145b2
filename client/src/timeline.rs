//! What a conversation shows: messages with all that later entries did to them.
//!
//! The log tells a recall, an edit, a deletion or a reaction as an entry of its own; a page of history shows messages as
//! they are by now. [`Timeline`] takes both, in any order and any number of times, and shows the same as history once it has
//! every entry. Pure: it does not ask for anything.

use std::collections::BTreeMap;

use convoke_protocol::id::Seq;
use convoke_protocol::message::{Message, MessageKind, ReactionCount};
use convoke_protocol::request::changes::ReactionChanged;

/// The messages of one conversation that an application holds.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// As they were read, by number.
    read: BTreeMap<Seq, Message>,
    /// The entries that change a message, by its number and theirs.
    changes: BTreeMap<Seq, BTreeMap<Seq, Message>>,
}

impl Timeline {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a message or an entry, pushed or read.
    pub fn take(&mut self, message: Message) {
        if let Some(target) = message.target {
            let known = self.changes.entry(target).or_default();
            match known.get(&message.seq) {
                // One that is outdated by now is read without what it said: what was known of it stays.
                Some(_) if message.content.body.is_empty() => {}
                _ => drop(known.insert(message.seq, message)),
            }
            return;
        }
        match self.read.get(&message.seq) {
            Some(known) if is_older(&message, known) => {}
            _ => drop(self.read.insert(message.seq, message)),
        }
    }

    /// Forgets everything below a number: what scrolled away, or was trimmed.
    pub fn forget_below(&mut self, seq: Seq) {
        self.read = self.read.split_off(&seq);
        self.changes = self.changes.split_off(&seq);
    }

    /// A message as it is to be shown.
    pub fn get(&self, seq: Seq) -> Option<Message> {
        self.read.get(&seq).map(|message| self.shown(message))
    }

    /// All messages as they are to be shown, in rising order; entries that only change others are not among them.
    pub fn messages(&self) -> impl Iterator<Item = Message> + '_ {
        self.read.values().map(|message| self.shown(message))
    }

    fn shown(&self, message: &Message) -> Message {
        let mut shown = message.clone();
        for entry in self.changes.get(&message.seq).into_iter().flat_map(BTreeMap::values) {
            apply(&mut shown, entry);
        }
        if shown.recalled_at.is_some() || shown.deleted_at.is_some() {
            shown.content.body = bytes::Bytes::new();
        }
        shown
    }
}

/// Whether a copy of a message was certainly read before another.
fn is_older(copy: &Message, known: &Message) -> bool {
    let gone = |message: &Message| message.recalled_at.is_some() || message.deleted_at.is_some();
    copy.edited_at < known.edited_at || (gone(known) && !gone(copy))
}

fn apply(message: &mut Message, entry: &Message) {
    match entry.kind {
        MessageKind::RECALL => message.recalled_at = Some(entry.time),
        MessageKind::DELETE => message.deleted_at = Some(entry.time),
        // One that said nothing when it was read was outdated: the message was read later than that.
        MessageKind::EDIT if !entry.content.body.is_empty() && message.edited_at <= Some(entry.time) => {
            message.content = entry.content.clone();
            message.edited_at = Some(entry.time);
        }
        MessageKind::REACTION => {
            let Ok(change) = serde_json::from_slice::<ReactionChanged>(&entry.content.body) else { return };
            message.reactions.retain(|one| one.kind != change.kind);
            if change.count > 0 {
                message.reactions.push(ReactionCount { kind: change.kind, count: change.count });
                message.reactions.sort_by(|one, other| one.kind.cmp(&other.kind));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use convoke_protocol::id::Timestamp;
    use convoke_protocol::message::{Content, ContentType};
    use convoke_protocol::sample;
    use proptest::prelude::*;

    use super::*;

    fn entry(seq: u64, kind: MessageKind, target: Option<u64>, content: Content) -> Message {
        Message {
            seq: Seq(seq),
            time: Timestamp(1_000 + seq),
            kind,
            target: target.map(Seq),
            content,
            reactions: Vec::new(),
            ..sample::message()
        }
    }

    /// A server that keeps the log as it is told, and shows messages as they are.
    #[derive(Default)]
    struct Server {
        log: Vec<Message>,
        pushed: Vec<Message>,
        last_edit: BTreeMap<Seq, Seq>,
    }

    impl Server {
        fn at(&mut self, seq: Seq) -> &mut Message {
            &mut self.log[seq.0 as usize - 1]
        }

        fn act(&mut self, what: u8, target: u64) {
            let seq = self.log.len() as u64 + 1;
            let says = self.log.iter().filter(|one| one.kind == MessageKind::USER).map(|one| one.seq.0);
            let says: Vec<u64> = says.collect();
            let text = Content::text(format!("{seq}"));
            let Some(target) = says.get(target as usize % says.len().max(1)).copied().filter(|_| what > 0)
            else {
                return self.push(entry(seq, MessageKind::USER, None, text));
            };
            let row = self.at(Seq(target)).clone();
            let gone = row.recalled_at.is_some() || row.deleted_at.is_some();
            if gone {
                return;
            }
            let kind = match what {
                1 | 2 => MessageKind::EDIT,
                3 => MessageKind::RECALL,
                4 => MessageKind::DELETE,
                _ => MessageKind::REACTION,
            };
            let mut content = if kind == MessageKind::EDIT { text } else { Content::text("") };
            let time = Some(Timestamp(1_000 + seq));
            let last_edit = self.last_edit.get(&Seq(target)).copied();
            match kind {
                MessageKind::EDIT => {
                    let row = self.at(Seq(target));
                    (row.content, row.edited_at) = (content.clone(), time);
                    self.last_edit.insert(Seq(target), Seq(seq));
                }
                MessageKind::RECALL => self.at(Seq(target)).recalled_at = time,
                MessageKind::DELETE => self.at(Seq(target)).deleted_at = time,
                _ => {
                    let name = if what.is_multiple_of(2) { "x" } else { "y" };
                    let given = row.reactions.iter().all(|one| one.kind != name);
                    let change = ReactionChanged { kind: name.into(), given, count: u32::from(given) };
                    content = Content {
                        content_type: ContentType::new("application/json").expect("valid"),
                        body: serde_json::to_vec(&change).expect("JSON").into(),
                    };
                    let reactions = &mut self.at(Seq(target)).reactions;
                    reactions.retain(|one| one.kind != name);
                    if given {
                        reactions.push(ReactionCount { kind: name.into(), count: 1 });
                    }
                    reactions.sort_by(|one, other| one.kind.cmp(&other.kind));
                }
            }
            if kind != MessageKind::REACTION {
                if kind != MessageKind::EDIT {
                    self.at(Seq(target)).content.body = bytes::Bytes::new();
                }
                if let Some(last) = last_edit {
                    self.at(last).content.body = bytes::Bytes::new();
                }
            }
            self.push(entry(seq, kind, Some(target), content));
        }

        fn push(&mut self, message: Message) {
            self.log.push(message.clone());
            self.pushed.push(message);
        }
    }

    proptest! {
        #[test]
        fn pushes_and_pages_in_any_order_show_what_history_says(
            acts in prop::collection::vec((0..8u8, 0..20u64), 1..60),
            order in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..120),
        ) {
            let mut server = Server::default();
            let mut pages = Vec::new();
            for (what, target) in acts {
                server.act(what, target);
                pages.push(server.log.clone());
            }
            let mut timeline = Timeline::new();
            // Any pushes, and pages read at any time, as they come.
            for (index, pushed) in order {
                if pushed {
                    timeline.take(index.get(&server.pushed).clone());
                } else {
                    index.get(&pages).iter().for_each(|message| timeline.take(message.clone()));
                }
            }
            // In the end every entry was pushed once.
            server.pushed.iter().for_each(|message| timeline.take(message.clone()));
            let expected: Vec<_> =
                server.log.iter().filter(|one| one.kind == MessageKind::USER).cloned().collect();
            let shown: Vec<_> = timeline.messages().collect();
            prop_assert_eq!(shown, expected);
        }
    }

    #[test]
    fn what_scrolled_away_is_forgotten() {
        let mut timeline = Timeline::new();
        for seq in 1..=3 {
            timeline.take(entry(seq, MessageKind::USER, None, Content::text("x")));
        }
        timeline.take(entry(4, MessageKind::RECALL, Some(1), Content::text("")));
        timeline.take(entry(5, MessageKind::RECALL, Some(3), Content::text("")));
        timeline.forget_below(Seq(2));
        assert_eq!((timeline.get(Seq(1)), timeline.messages().count()), (None, 2));
        assert!(timeline.get(Seq(3)).is_some_and(|message| message.recalled_at.is_some()));
    }
}
