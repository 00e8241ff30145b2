//! Examples of the frames that change what was said.

use super::{NOON, pair, retry, user, uuid};
use crate::frame::{Answer, Request};
use crate::id::{MessageId, Seq};
use crate::message::{Content, MessageKind, Priority};
use crate::request::changes::{
    Delete, Deleted, Edit, Edited, Hidden, Hide, React, Reacted, ReactionChanged, Reactions, ReactionsPage,
    Recall, Recalled, Retention, RetentionSet, SendAs, SentAs, SetRetention,
};

pub(super) fn requests() -> Vec<Request> {
    let (conversation, retry, seq) = (pair(), retry(), Seq(7));
    vec![
        SetRetention {
            retry,
            conversation: pair(),
            retention: Some(Retention { max_age_ms: Some(86_400_000), max_messages: None }),
        }
        .into(),
        Recall { retry, conversation: pair(), seq }.into(),
        Edit { retry, conversation: pair(), seq, content: Content::text("hello, Bob!") }.into(),
        Delete { retry, conversation: pair(), seq, hard: false }.into(),
        React { retry, conversation: pair(), seq, kind: "👍".into(), give: true }.into(),
        Hide { retry, conversation: pair(), seqs: vec![Seq(5), seq], up_to: Some(Seq(3)) }.into(),
        Reactions { conversation: pair(), seq, kind: "👍".into(), after: Some(user("alice")), limit: 50 }
            .into(),
        SendAs {
            retry,
            sender: Some(user("bob")),
            conversation,
            content: Content::text("on my way"),
            reply_to: Some(seq),
            priority: Priority::HIGH,
        }
        .into(),
    ]
}

pub(super) fn answers() -> Vec<Answer> {
    let seq = Some(Seq(8));
    vec![
        RetentionSet { conversation: pair() }.into(),
        Recalled { conversation: pair(), seq }.into(),
        Edited { conversation: pair(), seq }.into(),
        Deleted { conversation: pair(), seq }.into(),
        Reacted { conversation: pair(), seq: None }.into(),
        Hidden { conversation: pair() }.into(),
        ReactionsPage { users: vec![user("bob")], next: None }.into(),
        SentAs { conversation: pair(), seq: Seq(8), message_id: MessageId(uuid(2)), time: NOON }.into(),
    ]
}

/// The body of an entry that is JSON in both codecs.
pub(super) fn entry_bodies() -> Vec<(MessageKind, String)> {
    let reaction = ReactionChanged { kind: "👍".into(), given: true, count: 2 };
    vec![(MessageKind::REACTION, super::groups::text(&reaction))]
}
