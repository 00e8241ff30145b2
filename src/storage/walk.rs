//! Walking through what belongs to users, whoever they are: for copies to another store and for checks. What belongs to
//! conversations is found through [`super::RetentionStore::logs`].

use convoke_protocol::id::{ClientId, ConversationId, DeviceId, GroupId, Seq, UserId};
use convoke_protocol::message::Cursor;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{ConversationSettings, MarkKey, ReadError, ReadMark};

/// What is walked through on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserTable {
    /// The lists of conversations.
    Lists,
    /// The devices' cursors.
    Cursors,
    /// The read marks.
    Marks,
    /// The settings of conversations.
    Settings,
    /// What users hid.
    Hidden,
    /// Which groups requests made.
    Creations,
}

impl UserTable {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Lists, Self::Cursors, Self::Marks, Self::Settings, Self::Hidden, Self::Creations];
}

/// One thing of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserRecord {
    /// A conversation is in the list of a user.
    Listed(UserId, ConversationId),
    /// How far a device has a conversation.
    Cursor(UserId, DeviceId, Cursor),
    /// How far a user has read, what the user sent included.
    Mark(MarkKey, ReadMark),
    /// How a user wants a conversation.
    Settings(UserId, ConversationId, ConversationSettings),
    /// A user hid everything up to a message.
    HiddenUpTo(UserId, ConversationId, Seq),
    /// A user hid a message.
    Hidden(UserId, ConversationId, Seq),
    /// The group that a request of a user made.
    Creation(UserId, ClientId, GroupId),
}

/// A part of a walk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserPage {
    /// What was found; may be nothing although more follows.
    pub records: Vec<UserRecord>,
    /// Where the next part begins; `None` at the end. It means something to this kind of store only.
    pub next: Option<String>,
}

/// A store that can be walked through. What is written meanwhile may be in the walk or not.
pub trait Walk: Send + Sync + 'static {
    /// About `limit` records of a table, from the beginning or from where an earlier part ended. Each record of a store
    /// that nobody writes is in exactly one part.
    fn user_records<'a>(
        &'a self,
        table: UserTable,
        from: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<UserPage, ReadError>>;
}
