//! One example of every frame: what the golden files hold, what fuzzers start from, what documents show.

use bytes::Bytes;
use uuid::Uuid;

use crate::PROTOCOL_VERSION;
use crate::error_code::{ErrorCode, RequestError};
use crate::event::{
    GoAway, Hid, JoinAnswered, JoinRequested, Kicked, Lagged, ListChanged, NodeAddress, NodesChanged, Push,
    ReadMoved, Receipt, Signalled,
};
use crate::frame::{Answer, Event, Request};
use crate::id::{ClientId, ConversationId, DeviceId, MessageId, Seq, SessionId, Timestamp, UserId};
use crate::message::{Content, ContentType, Cursor, Message, MessageKind, Priority, ReactionCount};
use crate::request::Retry;
use crate::request::conversations::{
    ConversationList, ConversationSet, Conversations, ListedConversation, ListedGroup, SetConversation,
};
use crate::request::messages::{
    Ack, Acked, Direction, History, HistoryFrom, HistoryPage, Page, Pull, PullRange, Pulled, Send, Sent,
    Target,
};
use crate::request::read_state::{
    AllRead, MarkAllRead, Read, ReadDone, ReadMarks, ReadMarksPage, Signal, SignalTaken, UserRead,
};
use crate::request::session::{
    CloseSession, DeviceClass, Heartbeat, HeartbeatAnswer, Hello, Limits, ListSessions, LoggedIn, LoggedOut,
    Login, Logout, SessionClosed, SessionInfo, Sessions, Welcome,
};
use crate::request::sync::{Sync, SyncSince, Synced, SyncedConversation, SyncedSince};

mod changes;
mod groups;

const SYNC_TOKEN: &str = "9f3c2a17d05b6e84.12.7";
const NOON: Timestamp = Timestamp(1_767_268_800_000);

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a valid sample")
}

fn device() -> DeviceId {
    DeviceId::new("alice-phone").expect("a valid sample")
}

fn pair() -> ConversationId {
    ConversationId::direct(&user("alice"), &user("bob"))
}

fn uuid(last: u8) -> Uuid {
    let mut bytes = [0x01, 0x9b, 0x79, 0x6d, 0x4c, 0x00, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 0];
    bytes[15] = last;
    Uuid::from_bytes(bytes)
}

fn retry() -> Retry {
    Retry { client_id: ClientId(uuid(1)), attempt: 2, age_ms: 1500 }
}

fn nodes() -> Vec<NodeAddress> {
    vec![NodeAddress {
        node: "n1".into(),
        tcp: Some("127.0.0.1:7700".into()),
        ws: Some("127.0.0.1:7701".into()),
    }]
}

fn error() -> RequestError {
    RequestError::not_done(ErrorCode::BUSY, "the conversation has too many sends waiting").retry_after(200)
}

/// A message such as a reader sees it.
pub fn message() -> Message {
    Message {
        seq: Seq(7),
        message_id: MessageId(uuid(2)),
        sender: user("alice"),
        device: device(),
        client_id: ClientId(uuid(1)),
        time: NOON,
        kind: MessageKind::USER,
        priority: Priority::NORMAL,
        content: Content::text("hello, Bob"),
        reply_to: Some(Seq(5)),
        previous: Some(Seq(6)),
        target: None,
        edited_at: None,
        recalled_at: None,
        deleted_at: None,
        reactions: vec![ReactionCount { kind: "👍".into(), count: 2 }],
    }
}

fn page() -> Page {
    Page {
        conversation: pair(),
        messages: vec![message()],
        first: Seq(1),
        head: Seq(9),
        next: Some(Seq(8)),
        error: None,
    }
}

/// One request of every type, and some of more than one shape.
pub fn requests() -> Vec<Request> {
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        app: "sample".into(),
        version: "1.0".into(),
        os: "linux".into(),
        features: Vec::new(),
    };
    let send = Send {
        retry: retry(),
        target: Target::User(user("bob")),
        content: Content::text("hello, Bob"),
        reply_to: Some(Seq(5)),
        previous: Some(Seq(6)),
        priority: Priority::NORMAL,
    };
    let send_user = send.clone();
    let picture = Content {
        content_type: ContentType::new("image/png").expect("a valid sample"),
        body: Bytes::from_static(&[0x89, b'P', b'N', b'G']),
    };
    let group = Target::Group(groups::team());
    let send_group = Send { target: group, content: picture, reply_to: None, previous: None, ..send };
    let cursor = Cursor { conversation: pair(), seq: Seq(9) };
    vec![
        hello.into(),
        Login {
            token: "header.claims.signature".into(),
            device: device(),
            device_class: DeviceClass::MOBILE,
        }
        .into(),
        Logout {}.into(),
        Heartbeat {}.into(),
        send_user.into(),
        send_group.into(),
        Pull { ranges: vec![PullRange { conversation: pair(), from: Seq(3), to: Seq(1000) }] }.into(),
        Ack { pushes: 300, cursors: vec![cursor.clone()] }.into(),
        Sync { cursors: vec![cursor.clone()], use_device_cursors: true, after: Some(pair()) }.into(),
        SyncSince {
            since: Some(SYNC_TOKEN.into()),
            cursors: vec![cursor],
            use_device_cursors: false,
            after: None,
        }
        .into(),
        ListSessions {}.into(),
        CloseSession { retry: retry(), session: SessionId(uuid(3)) }.into(),
        History { conversation: pair(), from: HistoryFrom::Last, direction: Direction::Older, limit: 50 }
            .into(),
        History {
            conversation: pair(),
            from: HistoryFrom::Time(NOON),
            direction: Direction::Newer,
            limit: 10,
        }
        .into(),
        Read { retry: retry(), conversation: pair(), seq: Seq(9) }.into(),
        MarkAllRead { retry: retry() }.into(),
        Signal { target: Target::User(user("bob")), kind: "typing".into(), content: Content::text("on") }
            .into(),
        Conversations { after: Some("1767268800000 d:alice:bob".into()), limit: 50, known_version: Some(7) }
            .into(),
        SetConversation {
            retry: retry(),
            conversation: pair(),
            label: Some("Bob".into()),
            muted: Some(true),
            pinned: None,
        }
        .into(),
        ReadMarks { conversation: pair(), after: Some(user("alice")), limit: 100 }.into(),
    ]
    .into_iter()
    .chain(groups::requests())
    .chain(changes::requests())
    .collect()
}

/// One answer of every type.
pub fn answers() -> Vec<Answer> {
    let limits = Limits {
        max_frame_bytes: 1 << 20,
        max_body_bytes: 256 << 10,
        max_in_flight: 64,
        max_page_messages: 200,
        max_page_bytes: 512 << 10,
        max_ranges: 100,
        dedup_window_ms: 120_000,
        ack_deadline_ms: 30_000,
    };
    let session = SessionInfo {
        session: SessionId(uuid(3)),
        device: device(),
        device_class: DeviceClass::MOBILE,
        app: "sample 1.0".into(),
        node: "n1".into(),
        since: NOON,
        current: true,
    };
    let synced = SyncedConversation {
        conversation: pair(),
        head: Seq(9),
        cursor: Some(Seq(6)),
        read: Seq(7),
        unread: 2,
    };
    let listed = ListedConversation {
        conversation: pair(),
        label: Some("Bob".into()),
        muted: true,
        pinned: false,
        group: Some(ListedGroup { name: "The team".into(), avatar: "team.png".into(), ended: false }),
        first: Seq(1),
        head: Seq(9),
        read: Seq(7),
        unread: 2,
        last: Some(message()),
    };
    vec![
        error().into(),
        Welcome {
            protocol: PROTOCOL_VERSION,
            version: "0.1.0".into(),
            node: "n1".into(),
            features: Vec::new(),
            heartbeat_ms: 60_000,
            limits,
            server_time: NOON,
            nodes: nodes(),
        }
        .into(),
        LoggedIn { user: user("alice"), session: SessionId(uuid(3)), token_expires: NOON }.into(),
        LoggedOut {}.into(),
        HeartbeatAnswer { server_time: NOON }.into(),
        Sent { conversation: pair(), seq: Seq(7), message_id: MessageId(uuid(2)), time: NOON }.into(),
        Pulled { pages: vec![page()] }.into(),
        Acked {}.into(),
        Synced { conversations: vec![synced.clone()], pages: vec![page()], next: None }.into(),
        SyncedSince {
            token: Some(SYNC_TOKEN.into()),
            all: false,
            conversations: vec![synced],
            pages: vec![page()],
            next: None,
        }
        .into(),
        Sessions { sessions: vec![session] }.into(),
        SessionClosed {}.into(),
        HistoryPage { page: page() }.into(),
        ReadDone { conversation: pair(), seq: Seq(9), unread: 0 }.into(),
        AllRead { moved: 3 }.into(),
        SignalTaken {}.into(),
        ConversationList {
            version: 300,
            not_modified: false,
            conversations: vec![listed],
            unread: 2,
            cut: false,
            next: None,
        }
        .into(),
        ConversationSet { version: 301 }.into(),
        ReadMarksPage { marks: vec![UserRead { user: user("bob"), seq: Seq(6) }], next: None }.into(),
    ]
    .into_iter()
    .chain(groups::answers())
    .chain(changes::answers())
    .collect()
}

/// One event of every type.
pub fn events() -> Vec<Event> {
    vec![
        Push { conversation: pair(), lane_previous: Seq(6), message: message() }.into(),
        Lagged { conversation: pair(), head: Seq(300), shed: 0 }.into(),
        GoAway { reason: ErrorCode::SHUTDOWN, retry_after_ms: 1000, nodes: nodes() }.into(),
        Kicked { reason: ErrorCode::DEVICE_REPLACED, message: "the device logged in again".into() }.into(),
        NodesChanged { nodes: nodes() }.into(),
        ReadMoved { conversation: pair(), seq: Seq(7), unread: 2 }.into(),
        Receipt { conversation: pair(), user: user("bob"), seq: Seq(6) }.into(),
        Signalled {
            conversation: pair(),
            user: user("bob"),
            device: device(),
            kind: "typing".into(),
            content: Content::text("on"),
        }
        .into(),
        Hid { conversation: pair(), seqs: vec![Seq(5)], up_to: Some(Seq(3)) }.into(),
        ListChanged { conversation: pair() }.into(),
        JoinRequested { group: groups::team(), user: user("carol"), message: "let me in".into() }.into(),
        JoinAnswered { group: groups::team(), accepted: true }.into(),
    ]
}

/// The bodies of entries that are JSON in both codecs, by the kind of the entry.
pub fn entry_bodies() -> Vec<(MessageKind, String)> {
    groups::entry_bodies().into_iter().chain(changes::entry_bodies()).collect()
}
