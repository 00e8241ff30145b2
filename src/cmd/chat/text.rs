//! How messages look: on one line for scripts, with times and colours for people.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use convoke_protocol::group::{GroupChanged, MemberChange, MemberEvent, MembersChanged};
use convoke_protocol::id::{ConversationId, ConversationKind, Seq, Timestamp, UserId};
use convoke_protocol::message::{Message, MessageKind};
use convoke_protocol::request::changes::ReactionChanged;
use convoke_protocol::request::conversations::ListedConversation;

const DAY_S: u64 = 86_400;

/// Colours of senders: none that means an error.
const SENDERS: [&str; 5] = ["32", "33", "34", "35", "36"];
const DIM: &str = "2";
const BOLD: &str = "1";

/// So much of the last message is in a list.
const LISTED_CHARS: usize = 60;

/// A message as one line: `CONVERSATION SEQ SENDER TEXT`.
pub(super) fn plain_line(conversation: &ConversationId, message: &Message) -> String {
    format!("{conversation} {} {} {}", message.seq, message.sender, one_line(&shown(message)))
}

/// What is shown of a message: its text, or what it is instead.
fn shown(message: &Message) -> Cow<'_, str> {
    let content = &message.content;
    if message.recalled_at.is_some() || message.deleted_at.is_some() {
        return "[taken back]".into();
    }
    let target = message.target.unwrap_or(Seq::ZERO);
    match (message.kind, content.as_text()) {
        (MessageKind::USER, Some(text)) if content.content_type.is_text() => {
            let reactions = message.reactions.iter().map(|one| format!(" [{} {}]", one.kind, one.count));
            let reactions: String = reactions.collect();
            let edited = if message.edited_at.is_some() { " [edited]" } else { "" };
            if reactions.is_empty() && edited.is_empty() {
                return text.into();
            }
            format!("{text}{edited}{reactions}").into()
        }
        (MessageKind::RECALL, _) => format!("[takes {target} back]").into(),
        (MessageKind::DELETE, _) => format!("[deletes {target}]").into(),
        (MessageKind::EDIT, Some("")) => format!("[edits {target}]").into(),
        (MessageKind::EDIT, Some(text)) if content.content_type.is_text() => {
            format!("[edits {target}] {text}").into()
        }
        (MessageKind::REACTION | MessageKind::MEMBERS | MessageKind::GROUP, Some(text)) => {
            told(message.kind, target, text).unwrap_or_else(|| format!("[{}]", message.kind)).into()
        }
        (kind, Some(text)) if content.content_type.is_text() => format!("[{kind}] {text}").into(),
        _ => format!("[{}, {} bytes]", content.content_type.as_str(), content.body.len()).into(),
    }
}

/// What an entry with a JSON body tells.
fn told(kind: MessageKind, target: Seq, body: &str) -> Option<String> {
    let changes = |changes: &[MemberChange]| {
        let one = |change: &MemberChange| match change.event {
            MemberEvent::ROLE => format!("{} is {}", change.member.user, change.member.role),
            MemberEvent::MUTED if change.member.muted_until.is_none() => {
                format!("{} may speak", change.member.user)
            }
            event => format!("{} {event}", change.member.user),
        };
        changes.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    Some(match kind {
        MessageKind::REACTION => {
            let change: ReactionChanged = serde_json::from_str(body).ok()?;
            let what = if change.given { "gives" } else { "takes back" };
            format!("[{what} {} to {target}, {} now]", change.kind, change.count)
        }
        MessageKind::MEMBERS => {
            let changed: MembersChanged = serde_json::from_str(body).ok()?;
            format!("[{}]", changes(&changed.changes))
        }
        _ => {
            let changed: GroupChanged = serde_json::from_str(body).ok()?;
            let name = &changed.group.profile.name;
            match changed.changes.as_slice() {
                [] => format!("[group {} {}]", name, changed.event),
                members => format!("[group {} {}: {}]", name, changed.event, changes(members)),
            }
        }
    })
}

/// Escapes whatever could break the line, or steer a terminal; reversible, since the backslash is escaped too.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push('\t'),
            '\u{2028}' | '\u{2029}' => line.extend(char.escape_unicode()),
            char if char.is_control() => line.extend(char.escape_unicode()),
            char => line.push(char),
        }
    }
    line
}

/// How a terminal shows it all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) colours: bool,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// News of the session, or an answer to a command.
    pub(super) fn notice(self, text: &str) -> String {
        self.paint(DIM, &format!("— {text}"))
    }

    /// Something that failed.
    pub(super) fn failure(self, text: &str) -> String {
        self.paint("31", &format!("— {text}"))
    }

    /// The place to type.
    pub(super) fn prompt(self, user: &UserId, target: Option<&str>) -> String {
        let text = match target {
            Some(target) => format!("{user} → {target}> "),
            None => format!("{user}> "),
        };
        self.paint(BOLD, &text)
    }

    /// A conversation of a list.
    pub(super) fn listed(self, own: &UserId, one: &ListedConversation) -> String {
        let label = one.label.as_deref().map(one_line);
        let group = one.group.as_ref().map(|group| one_line(&group.name)).filter(|name| !name.is_empty());
        let name = label.or(group).unwrap_or_else(|| name(own, &one.conversation));
        let name = self.paint(BOLD, &name);
        let unread = match one.unread {
            0 => String::new(),
            unread => self.paint("32", &format!(" {unread} unread")),
        };
        let ended = one.group.as_ref().is_some_and(|group| group.ended);
        let marks = [(one.pinned, " [pinned]"), (one.muted, " [muted]"), (ended, " [ended]")];
        let marks: String = marks.iter().filter_map(|(set, text)| set.then_some(*text)).collect();
        let last = one.last.as_ref().map_or(String::new(), |message| {
            let words: String = one_line(&shown(message)).chars().take(LISTED_CHARS).collect();
            self.paint(DIM, &format!(" {} {}: {words}", day_and_time(message.time), message.sender))
        });
        format!("  {name}{unread}{marks}{last}")
    }

    /// A message in the conversation that is open, or in another one, which is named.
    pub(super) fn message(
        self,
        conversation: Option<&ConversationId>,
        own: &UserId,
        message: &Message,
    ) -> String {
        let time = self.paint(DIM, &format!("{} #{}", clock(message.time), message.seq));
        let code = if message.sender == *own { BOLD } else { colour(&message.sender) };
        let sender = self.paint(code, message.sender.as_str());
        let place = conversation.map(|id| self.paint(DIM, &format!("[{id}] "))).unwrap_or_default();
        let mut line = format!("{time} {place}{sender} ");
        for (n, part) in shown(message).lines().enumerate() {
            if n > 0 {
                line.push_str("\n      ");
            }
            // Only line breaks are left to the terminal; a backslash cannot steer it.
            line.push_str(&one_line(part).replace("\\\\", "\\"));
        }
        line
    }
}

/// What a person calls a conversation: the other user, or the group.
pub(super) fn name(own: &UserId, conversation: &ConversationId) -> String {
    match (conversation.peer_of(own), conversation.kind()) {
        (Some(peer), _) => peer.to_string(),
        (None, ConversationKind::Group(group)) => group.to_owned(),
        (None, _) => conversation.to_string(),
    }
}

fn colour(user: &UserId) -> &'static str {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(user);
    SENDERS[(hash % SENDERS.len() as u64) as usize]
}

/// `HH:MM` in UTC: the tree has no table of time zones.
fn clock(time: Timestamp) -> String {
    let minutes = time.0 / 1000 % DAY_S / 60;
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

/// `YYYY-MM-DD` in UTC.
pub(super) fn day(time: Timestamp) -> String {
    // Days since 0000-03-01, in eras of 400 years: leap days fall on the end of a year that begins in March.
    let days = time.0 / 1000 / DAY_S + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (month, day) = (month, day - (153 * month + 2) / 5 + 1);
    let (year, month) =
        if month < 10 { (era * 400 + year, month + 3) } else { (era * 400 + year + 1, month - 9) };
    format!("{year:04}-{month:02}-{day:02}")
}

/// `YYYY-MM-DD HH:MM` in UTC.
pub(super) fn day_and_time(time: Timestamp) -> String {
    format!("{} {}", day(time), clock(time))
}

/// Removes a typed line of this many characters after its prompt, so that the message can take its place once it is
/// durable.
pub(super) fn erase(prompt: &str, line: &str, columns: usize) -> String {
    let width = |text: &str| -> usize { text.chars().map(|char| if wide(char) { 2 } else { 1 }).sum() };
    let mut rows = (width(prompt) + width(line)) / columns.max(1) + 1;
    let mut text = String::new();
    while rows > 0 {
        let _ = write!(text, "\x1b[1A\x1b[2K");
        rows -= 1;
    }
    text
}

/// Whether a terminal gives the character two columns.
fn wide(char: char) -> bool {
    matches!(u32::from(char),
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60
        | 0xffe0..=0xffe6 | 0x1f300..=0x1f64f | 0x1f680..=0x1faff | 0x20000..=0x3fffd)
}

#[cfg(test)]
mod tests {
    use convoke_protocol::message::{Content, ContentType};
    use convoke_protocol::sample;

    use super::*;

    fn saying(text: &str) -> Message {
        Message { content: Content::text(text), reactions: Vec::new(), ..sample::message() }
    }

    #[test]
    fn entries_say_what_they_do() {
        let conversation = ConversationId::new("g:team").expect("valid");
        let entry = |kind, content: &str| Message { kind, target: Some(Seq(3)), ..saying(content) };
        let json = |kind, content: String| entry(kind, &content);
        let reaction = ReactionChanged { kind: "👍".into(), given: true, count: 2 };
        let reaction = serde_json::to_string(&reaction).expect("JSON");
        for (message, shown) in [
            (entry(MessageKind::EDIT, "new"), "[edits 3] new"),
            (entry(MessageKind::EDIT, ""), "[edits 3]"),
            (entry(MessageKind::RECALL, ""), "[takes 3 back]"),
            (entry(MessageKind::DELETE, ""), "[deletes 3]"),
            (json(MessageKind::REACTION, reaction), "[gives 👍 to 3, 2 now]"),
            (entry(MessageKind::SYSTEM, "at ten"), "[system] at ten"),
            (entry(MessageKind::MEMBERS, "no JSON"), "[members]"),
            (Message { edited_at: Some(Timestamp(1)), ..saying("a") }, "a [edited]"),
            (Message { reactions: sample::message().reactions, ..saying("a") }, "a [👍 2]"),
        ] {
            assert_eq!(plain_line(&conversation, &message), format!("g:team 7 alice {shown}"));
        }
    }

    #[test]
    fn a_message_stays_on_its_line() {
        let conversation = ConversationId::new("d:alice:bob").expect("valid");
        let cases = [
            ("hello, Bob", "hello, Bob"),
            ("two\nlines\r\n", "two\\nlines\\r\\n"),
            ("a\\n is no break", "a\\\\n is no break"),
            ("\x1b[2Jgone\u{2028}", "\\u{1b}[2Jgone\\u{2028}"),
            ("tab\tstays", "tab\tstays"),
            ("", ""),
        ];
        for (text, shown) in cases {
            assert_eq!(plain_line(&conversation, &saying(text)), format!("d:alice:bob 7 alice {shown}"));
        }
        let png = ContentType::new("image/png").expect("valid");
        let picture =
            Message { content: Content { content_type: png, body: vec![1, 2].into() }, ..sample::message() };
        assert!(plain_line(&conversation, &picture).ends_with(" alice [image/png, 2 bytes]"));
    }

    #[test]
    fn nobody_steers_anothers_terminal() {
        let style = Style { colours: false };
        let bob = UserId::new("bob").expect("valid");
        let line = style.message(None, &bob, &saying("a\x1b]0;title\x07\nb\\c"));
        assert_eq!(line, "12:00 #7 alice a\\u{1b}]0;title\\u{7}\n      b\\c");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01"),
            (951_782_400_000, "2000-02-29"),
            (1_709_164_800_000, "2024-02-29"),
            (1_735_689_599_999, "2024-12-31"),
            (1_767_268_800_000, "2026-01-01"),
            (4_107_542_400_000, "2100-03-01"),
        ] {
            assert_eq!(day(Timestamp(ms)), text);
        }
    }

    #[test]
    fn a_typed_line_is_erased_over_all_its_rows() {
        let rows = |line: &str| erase("a> ", line, 10).matches("\x1b[2K").count();
        assert_eq!([rows("hello"), rows("hello, world"), rows("日本語日")], [1, 2, 2]);
    }
}
