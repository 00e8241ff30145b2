//! The table of frames: which number and which name stands for which struct, on every transport.
//!
//! Numbers: requests 1–99 and from 300; the answer to request `n` is `n + 100`; 100 is the error answer; events are
//! 200–250. So every frame of the first years costs one byte of type. A number is never used twice.

use crate::codec::{self, CodecError};
use crate::error_code::RequestError as Error;
use crate::event::{
    GoAway, Hid, JoinAnswered, JoinRequested, Kicked, Lagged, ListChanged, NodesChanged, Push, ReadMoved,
    Receipt, Signalled,
};
use crate::request::Retry;
use crate::request::changes::{
    Delete, Deleted, Edit, Edited, Hidden, Hide, React, Reacted, Reactions, ReactionsPage, Recall, Recalled,
    RetentionSet, SendAs, SentAs, SetRetention,
};
use crate::request::conversations::{ConversationList, ConversationSet, Conversations, SetConversation};
use crate::request::groups::{
    AddMembers, CreateGroup, DecideJoin, DisbandGroup, GetGroup, GroupCreated, GroupDisbanded, GroupJoined,
    GroupLeft, GroupMembers, GroupMembersPage, GroupState, GroupTransferred, GroupUpdated, JoinDecided,
    JoinGroup, JoinRequests, JoinRequestsPage, LeaveGroup, MembersAdded, MembersRemoved, Mute, Muted,
    RemoveMembers, RoleSet, SetRole, TransferGroup, UpdateGroup,
};
use crate::request::messages::{Ack, Acked, History, HistoryPage, Pull, Pulled, Send, Sent};
use crate::request::read_state::{
    AllRead, MarkAllRead, Read, ReadDone, ReadMarks, ReadMarksPage, Signal, SignalTaken,
};
use crate::request::session::{
    CloseSession, Heartbeat, HeartbeatAnswer, Hello, ListSessions, LoggedIn, LoggedOut, Login, Logout,
    SessionClosed, Sessions, Welcome,
};
use crate::request::sync::{Sync, SyncSince, Synced, SyncedSince};

/// The type number of the error answer.
pub const ERROR_TYPE: u16 = 100;

/// What a frame's body is, before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Chosen by the client, returned in the answer; 0 for events.
    pub request_id: u64,
    /// The type number; see the tables of this module.
    pub type_number: u16,
}

/// A frame whose body is still bytes of the connection's codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFrame<'a> {
    /// Number and type.
    pub head: FrameHead,
    /// The encoded body.
    pub body: &'a [u8],
}

/// How bodies are encoded on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// bincode 2, `config::standard()`.
    Bincode,
    /// JSON text.
    Json,
}

macro_rules! frames {
    ($(#[$doc:meta])* $enum:ident { $( $number:literal $name:literal $variant:ident ),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant, reason = "one at a time, on the stack, between decoding and dispatch")]
        pub enum $enum { $( #[doc = concat!("`", $name, "`, type ", $number, ".")] $variant($variant) ),* }

        impl $enum {
            /// Every type: its number and its name in JSON.
            pub const TYPES: &'static [(u16, &'static str)] = &[$(($number, $name)),*];

            /// The number of the frame's type.
            pub const fn type_number(&self) -> u16 { match self { $( Self::$variant(_) => $number ),* } }

            /// The name of the frame's type.
            pub const fn name(&self) -> &'static str { match self { $( Self::$variant(_) => $name ),* } }

            /// Reads a body of the given type; `None` if the number is not of this table.
            ///
            /// # Errors
            /// The bytes are not such a body.
            pub fn decode(codec: Codec, type_number: u16, body: &[u8]) -> Result<Option<Self>, CodecError> {
                Ok(Some(match type_number {
                    $( $number => Self::$variant(codec::decode_body(codec, body)?), )*
                    _ => return Ok(None),
                }))
            }

            /// Writes the whole frame, without the framing of a transport.
            pub fn encode(&self, codec: Codec, request_id: u64) -> Vec<u8> {
                let head = FrameHead { request_id, type_number: self.type_number() };
                match self { $( Self::$variant(body) => codec::encode_frame(codec, head, self.name(), body) ),* }
            }
        }

        $( impl From<$variant> for $enum { fn from(body: $variant) -> Self { Self::$variant(body) } } )*
    };
}

frames! {
    /// What a client asks.
    Request {
        1 "hello" Hello,
        2 "login" Login,
        3 "logout" Logout,
        4 "heartbeat" Heartbeat,
        5 "send" Send,
        6 "pull" Pull,
        7 "ack" Ack,
        8 "sync" Sync,
        9 "list_sessions" ListSessions,
        10 "close_session" CloseSession,
        11 "history" History,
        12 "create_group" CreateGroup,
        13 "get_group" GetGroup,
        14 "update_group" UpdateGroup,
        15 "add_members" AddMembers,
        16 "remove_members" RemoveMembers,
        17 "leave_group" LeaveGroup,
        18 "set_role" SetRole,
        19 "transfer_group" TransferGroup,
        20 "mute" Mute,
        21 "join_group" JoinGroup,
        22 "join_requests" JoinRequests,
        23 "decide_join" DecideJoin,
        24 "disband_group" DisbandGroup,
        25 "group_members" GroupMembers,
        26 "set_retention" SetRetention,
        40 "read" Read,
        41 "mark_all_read" MarkAllRead,
        42 "signal" Signal,
        43 "conversations" Conversations,
        44 "set_conversation" SetConversation,
        45 "read_marks" ReadMarks,
        46 "recall" Recall,
        47 "edit" Edit,
        48 "delete" Delete,
        49 "react" React,
        50 "hide" Hide,
        51 "reactions" Reactions,
        52 "send_as" SendAs,
        53 "sync_since" SyncSince,
    }
}

frames! {
    /// What a server answers.
    Answer {
        100 "error" Error,
        101 "welcome" Welcome,
        102 "logged_in" LoggedIn,
        103 "logged_out" LoggedOut,
        104 "heartbeat_answer" HeartbeatAnswer,
        105 "sent" Sent,
        106 "pulled" Pulled,
        107 "acked" Acked,
        108 "synced" Synced,
        109 "sessions" Sessions,
        110 "session_closed" SessionClosed,
        111 "history_page" HistoryPage,
        112 "group_created" GroupCreated,
        113 "group_state" GroupState,
        114 "group_updated" GroupUpdated,
        115 "members_added" MembersAdded,
        116 "members_removed" MembersRemoved,
        117 "group_left" GroupLeft,
        118 "role_set" RoleSet,
        119 "group_transferred" GroupTransferred,
        120 "muted" Muted,
        121 "group_joined" GroupJoined,
        122 "join_requests_page" JoinRequestsPage,
        123 "join_decided" JoinDecided,
        124 "group_disbanded" GroupDisbanded,
        125 "group_members_page" GroupMembersPage,
        126 "retention_set" RetentionSet,
        140 "read_done" ReadDone,
        141 "all_read" AllRead,
        142 "signal_taken" SignalTaken,
        143 "conversation_list" ConversationList,
        144 "conversation_set" ConversationSet,
        145 "read_marks_page" ReadMarksPage,
        146 "recalled" Recalled,
        147 "edited" Edited,
        148 "deleted" Deleted,
        149 "reacted" Reacted,
        150 "hidden" Hidden,
        151 "reactions_page" ReactionsPage,
        152 "sent_as" SentAs,
        153 "synced_since" SyncedSince,
    }
}

frames! {
    /// What a server says unasked.
    Event {
        200 "push" Push,
        201 "lagged" Lagged,
        202 "go_away" GoAway,
        203 "kicked" Kicked,
        204 "nodes_changed" NodesChanged,
        220 "read_moved" ReadMoved,
        221 "receipt" Receipt,
        222 "signalled" Signalled,
        223 "hid" Hid,
        224 "list_changed" ListChanged,
        225 "join_requested" JoinRequested,
        226 "join_answered" JoinAnswered,
    }
}

impl Request {
    /// What makes a repetition safe, of a request that changes something.
    pub fn retry_mut(&mut self) -> Option<&mut Retry> {
        match self {
            Self::Send(ask) => Some(&mut ask.retry),
            Self::CloseSession(ask) => Some(&mut ask.retry),
            Self::CreateGroup(ask) => Some(&mut ask.retry),
            Self::UpdateGroup(ask) => Some(&mut ask.retry),
            Self::AddMembers(ask) => Some(&mut ask.retry),
            Self::RemoveMembers(ask) => Some(&mut ask.retry),
            Self::LeaveGroup(ask) => Some(&mut ask.retry),
            Self::SetRole(ask) => Some(&mut ask.retry),
            Self::TransferGroup(ask) => Some(&mut ask.retry),
            Self::Mute(ask) => Some(&mut ask.retry),
            Self::JoinGroup(ask) => Some(&mut ask.retry),
            Self::DecideJoin(ask) => Some(&mut ask.retry),
            Self::DisbandGroup(ask) => Some(&mut ask.retry),
            Self::SetRetention(ask) => Some(&mut ask.retry),
            Self::Read(ask) => Some(&mut ask.retry),
            Self::MarkAllRead(ask) => Some(&mut ask.retry),
            Self::SetConversation(ask) => Some(&mut ask.retry),
            Self::Recall(ask) => Some(&mut ask.retry),
            Self::Edit(ask) => Some(&mut ask.retry),
            Self::Delete(ask) => Some(&mut ask.retry),
            Self::React(ask) => Some(&mut ask.retry),
            Self::Hide(ask) => Some(&mut ask.retry),
            Self::SendAs(ask) => Some(&mut ask.retry),
            Self::Hello(_)
            | Self::Login(_)
            | Self::Logout(_)
            | Self::Heartbeat(_)
            | Self::Pull(_)
            | Self::Ack(_)
            | Self::Sync(_)
            | Self::SyncSince(_)
            | Self::ListSessions(_)
            | Self::History(_)
            | Self::GetGroup(_)
            | Self::JoinRequests(_)
            | Self::GroupMembers(_)
            | Self::Signal(_)
            | Self::Conversations(_)
            | Self::ReadMarks(_)
            | Self::Reactions(_) => None,
        }
    }
}

/// What a client receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// The answer to the request with this id.
    Answer(u64, Answer),
    /// Something the server said unasked.
    Event(Event),
    /// A frame of a type this crate does not know: to be ignored.
    Unknown(FrameHead),
}

impl Incoming {
    /// Reads a whole frame, without the framing of a transport.
    ///
    /// # Errors
    /// The bytes are not a frame, or the body does not fit its type.
    pub fn decode(codec: Codec, bytes: &[u8]) -> Result<Self, CodecError> {
        codec::with_frame(codec, bytes, |raw| {
            let RawFrame { head, body } = raw;
            if head.request_id == 0 {
                if let Some(event) = Event::decode(codec, head.type_number, body)? {
                    return Ok(Self::Event(event));
                }
            } else if let Some(answer) = Answer::decode(codec, head.type_number, body)? {
                return Ok(Self::Answer(head.request_id, answer));
            }
            Ok(Self::Unknown(head))
        })
    }
}

/// The number of a type by its JSON name, of whichever table.
pub fn type_number(name: &str) -> Option<u16> {
    [Request::TYPES, Answer::TYPES, Event::TYPES]
        .into_iter()
        .flatten()
        .find_map(|(number, known)| (*known == name).then_some(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_their_rule_and_none_is_used_twice() {
        let all: Vec<_> = [Request::TYPES, Answer::TYPES, Event::TYPES].concat();
        let numbers: std::collections::BTreeSet<_> = all.iter().map(|(number, _)| number).collect();
        let names: std::collections::BTreeSet<_> = all.iter().map(|(_, name)| name).collect();
        assert_eq!((numbers.len(), names.len()), (all.len(), all.len()));
        assert!(Event::TYPES.iter().all(|(number, _)| (200..=250).contains(number)));
        for (number, name) in Request::TYPES {
            assert!(Answer::TYPES.iter().any(|(answer, _)| *answer == number + 100), "{name} has no answer");
        }
    }
}
