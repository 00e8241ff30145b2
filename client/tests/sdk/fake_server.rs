//! A server in memory that speaks the wire, numbers messages as a real one does, and misbehaves on demand.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use convoke_protocol::codec::split_frame;
use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::{Lagged, Push};
use convoke_protocol::frame::{Answer, Codec, Event, Request};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{
    ClientId, ConversationId, DeviceId, MessageId, Seq, SessionId, Timestamp, UserId,
};
use convoke_protocol::message::{Content, Message, MessageKind, Priority};
use convoke_protocol::request::messages::{
    Acked, HistoryPage, Page, Pulled, Send as SendRequest, Sent, Target,
};
use convoke_protocol::request::session::{
    DeviceClass, HeartbeatAnswer, Limits, LoggedIn, LoggedOut, SessionClosed, SessionInfo, Sessions, Welcome,
};
use convoke_protocol::request::sync::{Sync, SyncSince, Synced, SyncedConversation, SyncedSince};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

pub(crate) const PAGE: usize = 10;
pub(crate) const RANGES: u32 = 3;
const NOON: Timestamp = Timestamp(1_767_268_800_000);

/// What happens to the next push of every session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Lose,
    Double,
    /// Written after the next one.
    Overtaken,
}

/// What happens to the next send.
#[derive(Debug, Clone)]
pub(crate) enum SendFate {
    /// Done, and then the connection dies without an answer.
    LoseAnswer,
    Refuse(RequestError),
}

enum Out {
    Frame(Vec<u8>),
    Close,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) log: BTreeMap<ConversationId, Vec<Message>>,
    pub(crate) requests: Vec<Request>,
    pub(crate) logins: usize,
    pub(crate) pushes: VecDeque<Fate>,
    pub(crate) sends: VecDeque<SendFate>,
    /// Why the next connections are closed at once.
    pub(crate) turn_away: VecDeque<RequestError>,
    /// Errors for the next acks that carry cursors.
    pub(crate) refuse_acks: VecDeque<RequestError>,
    /// Errors for the next logins.
    pub(crate) refuse_logins: VecDeque<RequestError>,
    /// Nothing is answered or pushed any more, until the next login.
    pub(crate) mute: bool,
    /// It does not know `sync_since`, as servers before it.
    pub(crate) is_older: bool,
    pub(crate) tokens: Vec<String>,
    device_cursors: HashMap<ConversationId, Seq>,
    sent: HashMap<ClientId, Sent>,
    sessions: Vec<mpsc::Sender<Out>>,
    held_back: Option<Vec<u8>>,
}

#[derive(Clone)]
pub(crate) struct FakeServer {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    listener: Arc<tokio::task::JoinHandle<()>>,
}

pub(crate) fn user(name: &str) -> UserId {
    UserId::new(name).expect("valid")
}

pub(crate) fn pair() -> ConversationId {
    ConversationId::direct(&user("alice"), &user("bob"))
}

pub(crate) fn group(n: usize) -> ConversationId {
    ConversationId::new(&format!("g:{n}")).expect("valid")
}

impl FakeServer {
    pub(crate) async fn start() -> Self {
        Self::sharing(Arc::default(), None).await
    }

    pub(crate) async fn start_tls(tls: TlsAcceptor) -> Self {
        Self::sharing(Arc::default(), Some(tls)).await
    }

    /// Another node with the same store.
    pub(crate) async fn beside(other: &Self) -> Self {
        Self::sharing(Arc::clone(&other.state), None).await
    }

    async fn sharing(state: Arc<Mutex<State>>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let changed = Arc::new(Notify::new());
        let (for_task, notify) = (Arc::clone(&state), Arc::clone(&changed));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, changed, tls) = (Arc::clone(&for_task), Arc::clone(&notify), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &state, &changed).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &state, &changed).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, state, changed, listener: Arc::new(task) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panicked in it")
    }

    /// Stops listening and closes every connection.
    pub(crate) fn stop(&self) {
        self.listener.abort();
        self.close_connections();
    }

    pub(crate) fn close_connections(&self) {
        for session in self.state().sessions.drain(..) {
            session.try_send(Out::Close).ok();
        }
    }

    /// Waits until something is true of the server.
    pub(crate) async fn until<R>(&self, what: &str, check: impl Fn(&State) -> Option<R>) -> R {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(result) = check(&self.state()) {
                    return result;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"))
    }

    /// Somebody says something; it is pushed to every session.
    pub(crate) fn say(&self, conversation: &ConversationId, text: &str) -> Seq {
        self.state().say(conversation, text)
    }

    pub(crate) fn has_sessions(&self) -> bool {
        !self.state().sessions.is_empty()
    }

    pub(crate) fn event(&self, event: impl Into<Event>) {
        let frame = event.into().encode(Codec::Bincode, 0);
        self.state().write_all(&frame);
    }

    pub(crate) fn lagged(&self, conversation: &ConversationId) {
        let head = Seq(self.state().log[conversation].len() as u64);
        self.event(Lagged { conversation: conversation.clone(), head, shed: 0 });
    }
}

impl State {
    fn append(
        &mut self,
        conversation: &ConversationId,
        sender: &str,
        client_id: ClientId,
        content: Content,
    ) -> Message {
        let log = self.log.entry(conversation.clone()).or_default();
        let message = Message {
            seq: Seq(log.len() as u64 + 1),
            message_id: MessageId(Uuid::now_v7()),
            sender: user(sender),
            device: DeviceId::new("elsewhere").expect("valid"),
            client_id,
            time: NOON,
            kind: MessageKind::USER,
            priority: Priority::NORMAL,
            content,
            reply_to: None,
            previous: None,
            target: None,
            edited_at: None,
            recalled_at: None,
            deleted_at: None,
            reactions: Vec::new(),
        };
        log.push(message.clone());
        message
    }

    fn say(&mut self, conversation: &ConversationId, text: &str) -> Seq {
        let message = self.append(conversation, "bob", ClientId::random(), Content::text(text));
        let seq = message.seq;
        let push = Push { conversation: conversation.clone(), lane_previous: Seq(seq.0 - 1), message };
        let frame = Event::from(push).encode(Codec::Bincode, 0);
        match self.pushes.pop_front() {
            None => {
                self.write_all(&frame);
                if let Some(held_back) = self.held_back.take() {
                    self.write_all(&held_back);
                }
            }
            Some(Fate::Lose) => {}
            Some(Fate::Double) => {
                self.write_all(&frame);
                self.write_all(&frame);
            }
            Some(Fate::Overtaken) => self.held_back = Some(frame),
        }
        seq
    }

    fn write_all(&mut self, frame: &[u8]) {
        if !self.mute {
            self.sessions.retain(|session| session.try_send(Out::Frame(frame.to_vec())).is_ok());
        }
    }

    fn page(&self, conversation: &ConversationId, from: Seq, to: Seq, room: &mut usize) -> Page {
        let log = self.log.get(conversation).map_or(&[][..], Vec::as_slice);
        let head = log.len() as u64;
        let last = to.0.min(head);
        let messages: Vec<_> = (from.0..=last).take(*room).map(|seq| log[seq as usize - 1].clone()).collect();
        *room -= messages.len();
        let next = from.0 + messages.len() as u64;
        Page {
            conversation: conversation.clone(),
            messages,
            first: Seq(1),
            head: Seq(head),
            next: (next <= last).then_some(Seq(next)),
            error: None,
        }
    }

    /// Two conversations a page. A token is how many messages each conversation had.
    fn sync(&self, sync: &SyncSince) -> SyncedSince {
        assert!(sync.cursors.len() <= RANGES as usize, "more cursors than allowed");
        let since: Option<HashMap<String, usize>> =
            sync.since.as_ref().map(|token| serde_json::from_str(token).expect("a token of this server"));
        let mut listed = self.log.iter().filter(|(id, log)| {
            let is_behind = sync.after.as_ref().is_none_or(|after| *id > after);
            is_behind && since.as_ref().is_none_or(|had| had.get(id.as_str()) != Some(&log.len()))
        });
        let (mut conversations, mut pages, mut room) = (Vec::new(), Vec::new(), PAGE);
        for (id, log) in listed.by_ref().take(2) {
            let head = Seq(log.len() as u64);
            let named =
                sync.cursors.iter().find(|cursor| cursor.conversation == *id).map(|cursor| cursor.seq);
            let kept = self.device_cursors.get(id).copied().filter(|_| sync.use_device_cursors);
            let cursor = named.or(kept);
            let (read, unread) = (Seq::ZERO, 0);
            conversations.push(SyncedConversation { conversation: id.clone(), head, cursor, read, unread });
            if let Some(cursor) = cursor.filter(|cursor| *cursor < head) {
                pages.push(self.page(id, cursor.next(), head, &mut room));
            }
        }
        let next = listed.next().and(conversations.last()).map(|last| last.conversation.clone());
        let had: HashMap<&str, usize> = self.log.iter().map(|(id, log)| (id.as_str(), log.len())).collect();
        let token = Some(serde_json::to_string(&had).expect("a map of texts"));
        SyncedSince { token, all: since.is_none(), conversations, pages, next }
    }

    fn send(&mut self, send: SendRequest) -> Option<Answer> {
        let fate = self.sends.pop_front();
        if let Some(SendFate::Refuse(error)) = fate {
            return Some(error.into());
        }
        let conversation = send.target.conversation(&user("alice"));
        let sent = match self.sent.get(&send.retry.client_id) {
            Some(sent) => sent.clone(),
            None => {
                let Message { seq, message_id, time, .. } =
                    self.append(&conversation, "alice", send.retry.client_id, send.content);
                let sent = Sent { conversation, seq, message_id, time };
                self.sent.insert(send.retry.client_id, sent.clone());
                sent
            }
        };
        (!matches!(fate, Some(SendFate::LoseAnswer))).then(|| sent.into())
    }

    /// `None` closes the connection without an answer.
    fn answer(&mut self, request: Request) -> Option<Answer> {
        Some(match request {
            Request::Hello(_) => Welcome {
                protocol: 1,
                version: "fake".into(),
                node: "n1".into(),
                features: Vec::new(),
                heartbeat_ms: 60_000,
                limits: Limits {
                    max_frame_bytes: 1 << 20,
                    max_body_bytes: 256 << 10,
                    max_in_flight: 64,
                    max_page_messages: PAGE as u32,
                    max_page_bytes: 512 << 10,
                    max_ranges: RANGES,
                    dedup_window_ms: 120_000,
                    ack_deadline_ms: 30_000,
                },
                server_time: NOON,
                nodes: Vec::new(),
            }
            .into(),
            Request::Login(login) => {
                self.tokens.push(login.token);
                if let Some(error) = self.refuse_logins.pop_front() {
                    return Some(error.into());
                }
                self.logins += 1;
                self.mute = false;
                let session = SessionId(Uuid::from_u128(self.logins as u128));
                LoggedIn { user: user("alice"), session, token_expires: NOON }.into()
            }
            Request::Logout(_) => LoggedOut {}.into(),
            Request::Heartbeat(_) => HeartbeatAnswer { server_time: NOON }.into(),
            Request::Send(send) => return self.send(send),
            Request::Pull(pull) => {
                assert!(pull.ranges.len() <= RANGES as usize, "more ranges than allowed");
                let mut room = PAGE;
                let pages = pull.ranges.iter().map(|range| {
                    assert!(Seq(1) <= range.from && range.from <= range.to);
                    self.page(&range.conversation, range.from, range.to, &mut room)
                });
                Pulled { pages: pages.collect() }.into()
            }
            Request::Ack(ack) => {
                if !ack.cursors.is_empty()
                    && let Some(error) = self.refuse_acks.pop_front()
                {
                    return Some(error.into());
                }
                assert!(ack.cursors.len() <= RANGES as usize, "more cursors than allowed");
                self.device_cursors
                    .extend(ack.cursors.into_iter().map(|cursor| (cursor.conversation, cursor.seq)));
                Acked {}.into()
            }
            Request::SyncSince(_) if self.is_older => {
                RequestError::not_done(ErrorCode::UNSUPPORTED, "what is that").into()
            }
            Request::SyncSince(ask) => self.sync(&ask).into(),
            Request::Sync(Sync { cursors, use_device_cursors, after }) => {
                let all = SyncSince { since: None, cursors, use_device_cursors, after };
                let SyncedSince { conversations, pages, next, .. } = self.sync(&all);
                Synced { conversations, pages, next }.into()
            }
            Request::ListSessions(_) => Sessions { sessions: vec![own_session()] }.into(),
            Request::CloseSession(_) => SessionClosed {}.into(),
            Request::History(history) => {
                let mut room = PAGE;
                HistoryPage { page: self.page(&history.conversation, Seq(1), Seq(u64::MAX), &mut room) }
                    .into()
            }
            other => panic!("the fake does not know {}", other.name()),
        })
    }
}

fn own_session() -> SessionInfo {
    SessionInfo {
        session: SessionId(Uuid::from_u128(1)),
        device: DeviceId::new("phone").expect("valid"),
        device_class: DeviceClass::MOBILE,
        app: "test".into(),
        node: "n1".into(),
        since: NOON,
        current: true,
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite, state: &Mutex<State>, changed: &Notify) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (out, mut outgoing) = mpsc::channel(100_000);
    let turned_away = state.lock().expect("no test panicked in it").turn_away.pop_front();
    if let Some(error) = turned_away {
        let last_words = Answer::from(error).encode(Codec::Bincode, 0);
        writer.write_all(&Framing::Tcp.wrap(&last_words)).await.ok();
        writer.shutdown().await.ok();
        return;
    }
    let write = async {
        while let Some(Out::Frame(frame)) = outgoing.recv().await {
            if writer.write_all(&Framing::Tcp.wrap(&frame)).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
        writer.shutdown().await.ok();
    };
    let read = async {
        let mut buffer = BytesMut::new();
        while reader.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
            while let Some(frame) = take(&mut buffer) {
                let raw = split_frame(&frame).expect("the client writes frames");
                let request = Request::decode(Codec::Bincode, raw.head.type_number, raw.body)
                    .expect("a body")
                    .expect("a known request");
                let mut state = state.lock().expect("no test panicked in it");
                state.requests.push(request.clone());
                if state.mute && !matches!(request, Request::Hello(_) | Request::Login(_)) {
                    changed.notify_waiters();
                    continue;
                }
                let is_login = matches!(request, Request::Login(_));
                let answer = state.answer(request);
                if is_login && matches!(answer, Some(Answer::LoggedIn(_))) {
                    state.sessions.push(out.clone());
                }
                let close = answer.is_none();
                out.try_send(match answer {
                    Some(answer) => Out::Frame(answer.encode(Codec::Bincode, raw.head.request_id)),
                    None => Out::Close,
                })
                .ok();
                changed.notify_waiters();
                if close {
                    return;
                }
            }
        }
    };
    let read_to_the_end = async {
        read.await;
        // What was queued before is still written; `Out::Close` ends it.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = write => {}
        () = read_to_the_end => {}
    }
}

fn take(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = u32::from_be_bytes(*buffer.first_chunk::<4>()?) as usize;
    if buffer.len() < 4 + length {
        return None;
    }
    let mut frame = buffer.split_to(4 + length);
    Some(frame.split_off(4))
}

/// Sends that arrived, in the order in which they did.
pub(crate) fn sends(state: &State) -> Vec<SendRequest> {
    let send = |request: &Request| match request {
        Request::Send(send) => Some(send.clone()),
        _ => None,
    };
    state.requests.iter().filter_map(send).collect()
}

pub(crate) fn to_bob() -> Target {
    Target::User(user("bob"))
}

pub(crate) fn busy() -> RequestError {
    RequestError::not_done(ErrorCode::BUSY, "later").retry_after(20)
}
