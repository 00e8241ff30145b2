//! What an entry of a log changes besides being there: an earlier row, the group, its members, reactions.
//!
//! The entry is the commit. What it changes is written after it is confirmed, and again by whoever takes the conversation
//! over before that is known to be done; so a [`Change`] holds what is to be, not what is to be added, and applying it
//! twice is applying it once.

use convoke_protocol::id::{ConversationId, Seq, UserId};
use serde::{Deserialize, Serialize};

use super::{GroupRow, LogRow, MemberRow, WriteStamp};

/// What an entry changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The target says what this entry says. `last_edit` is the entry that edited it before, whose content is now outdated.
    Edit {
        /// The message.
        target: Seq,
        /// The former edit of it.
        last_edit: Option<Seq>,
    },
    /// The target says nothing any more, nor does the entry that edited it.
    Recall {
        /// The message.
        target: Seq,
        /// The last edit of it.
        last_edit: Option<Seq>,
    },
    /// The target is deleted for all.
    Delete {
        /// The message.
        target: Seq,
        /// The last edit of it.
        last_edit: Option<Seq>,
        /// Whether the bodies go from the store too.
        hard: bool,
    },
    /// Somebody gave the target a reaction, or took it back.
    React {
        /// The message.
        target: Seq,
        /// Which reaction.
        kind: String,
        /// Who; the entry's sender.
        user: UserId,
        /// Whether they give it now.
        given: bool,
        /// How many users give it now.
        count: u32,
    },
    /// Members as they are now.
    Members(Vec<MemberRow>),
    /// The group as it is now, and members with it.
    Group(Box<GroupRow>, Vec<MemberRow>),
}

impl Change {
    /// The earlier message that is changed.
    pub fn target(&self) -> Option<Seq> {
        match self {
            Self::Edit { target, .. }
            | Self::Recall { target, .. }
            | Self::Delete { target, .. }
            | Self::React { target, .. } => Some(*target),
            Self::Members(_) | Self::Group(..) => None,
        }
    }

    /// The members that it writes.
    pub fn members(&self) -> &[MemberRow] {
        match self {
            Self::Members(members) | Self::Group(_, members) => members,
            _ => &[],
        }
    }
}

/// A reaction of one user, and the count of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReactionRow {
    /// The message.
    pub target: Seq,
    /// Which reaction.
    pub kind: String,
    /// Who.
    pub user: UserId,
    /// Whether they give it.
    pub given: bool,
    /// How many users give it.
    pub count: u32,
}

/// What committed entries change, to be written into its places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The conversation.
    pub conversation: ConversationId,
    /// Rows of its log that are written over, each at most once.
    pub rows: Vec<LogRow>,
    /// The group.
    pub group: Option<Box<GroupRow>>,
    /// Members, each at most once.
    pub members: Vec<MemberRow>,
    /// Reactions; of several of one kind and message the last has the count.
    pub reactions: Vec<ReactionRow>,
    /// Which of two writes of one place wins: the higher.
    pub stamp: WriteStamp,
}

impl Projection {
    /// Writes nothing yet.
    pub fn empty(conversation: &ConversationId, stamp: WriteStamp) -> Self {
        Self {
            conversation: conversation.clone(),
            rows: Vec::new(),
            group: None,
            members: Vec::new(),
            reactions: Vec::new(),
            stamp,
        }
    }

    /// Nothing to be written.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.group.is_none() && self.members.is_empty() && self.reactions.is_empty()
    }
}
