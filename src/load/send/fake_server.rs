//! A server for the tests of the load generator: it keeps nothing, fears nothing, and does one thing wrong if asked to.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use convoke_protocol::error_code::{ErrorCode, RequestError};
use convoke_protocol::event::{GoAway, Kicked, Lagged, Push};
use convoke_protocol::frame::{Answer, Codec, Event, Request};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{
    ClientId, ConversationId, DeviceId, MessageId, Seq, SessionId, Timestamp, UserId,
};
use convoke_protocol::message::{Message, MessageKind};
use convoke_protocol::request::messages::{Acked, Page, PullRange, Pulled, Send, Sent};
use convoke_protocol::request::session::{HeartbeatAnswer, Limits, LoggedIn, Welcome};
use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use crate::load::LoadError;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Nothing,
    NoPush,
    PushTwice,
    /// The push comes after the next one to the same user.
    PushLate,
    NoAnswer,
    AnswerTwice,
    SeqLeftOut,
    Refused,
    PushToAnother,
    Kicked,
    /// All are told to go, before the message is answered or pushed.
    GoAway,
    /// Nobody is told anything: all connections are closed.
    Closes,
    /// The push is left out, and the user is told so.
    Lagged,
    /// The answer is that nobody knows what became of it.
    Unknown,
    /// Not a message, but the first acknowledgement: it cannot be kept.
    AckRefused,
}

/// Which message it goes wrong with, of all that are sent.
pub(super) const FAULTY_MESSAGE: u64 = 40;

#[derive(Debug, Default)]
struct State {
    users: HashMap<UserId, (TcpStream, u64)>,
    heads: HashMap<ConversationId, u64>,
    logs: HashMap<ConversationId, Vec<Message>>,
    answered: HashMap<ClientId, Sent>,
    messages: u64,
    /// The message it went wrong with, if it got a number.
    faulty: Option<Sent>,
    /// How often all connections ended.
    ends: u64,
    late: Option<(UserId, Vec<u8>)>,
    complaints: Vec<String>,
    acks: u64,
    heartbeats: u64,
    /// Pages that were asked for: pushes of what a page had move no cursor.
    pulls: u64,
}

#[derive(Debug)]
struct Shared {
    fault: Fault,
    state: Mutex<State>,
    progress: Condvar,
}

#[derive(Debug)]
pub(super) struct FakeServer {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

impl FakeServer {
    pub(super) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared { fault, state: Mutex::default(), progress: Condvar::new() });
        let for_all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.expect("accepted"), Arc::clone(&for_all));
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { address, shared }
    }

    /// Waits until so many messages and heartbeats have come, or the check fails.
    pub(super) fn wait_for(
        &self,
        messages: u64,
        heartbeats: u64,
        check: impl FnMut() -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        self.wait_until(check, |state| state.messages >= messages && state.heartbeats >= heartbeats)
    }

    /// Waits until another message came to the conversation of the one it went wrong with: who got a message knows by the next
    /// one only that it lacks one.
    pub(super) fn wait_for_what_follows(
        &self,
        check: impl FnMut() -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        self.wait_until(check, |state| {
            state.faulty.as_ref().is_none_or(|faulty| state.heads[&faulty.conversation] > faulty.seq.0)
        })
    }

    fn wait_until(
        &self,
        mut check: impl FnMut() -> Result<(), LoadError>,
        is_so: impl Fn(&State) -> bool,
    ) -> Result<(), LoadError> {
        let begun = Instant::now();
        let mut state = self.shared.state.lock();
        while !is_so(&state) {
            assert!(begun.elapsed() < Duration::from_secs(30), "only {} messages came", state.messages);
            self.shared.progress.wait_for(&mut state, Duration::from_millis(20));
            check()?;
        }
        Ok(())
    }

    pub(super) fn messages(&self) -> u64 {
        self.shared.state.lock().messages
    }

    /// How many different messages came.
    pub(super) fn different(&self) -> u64 {
        self.shared.state.lock().answered.len() as u64
    }

    /// The message it went wrong with, and how far each conversation is.
    pub(super) fn account(&self) -> String {
        let State { faulty, heads, .. } = &*self.shared.state.lock();
        format!("{faulty:?}, heads {heads:?}")
    }

    pub(super) fn acks(&self) -> u64 {
        self.shared.state.lock().acks
    }

    /// What clients did that none should.
    pub(super) fn complaints(&self) -> Vec<String> {
        self.shared.state.lock().complaints.clone()
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let mut user = UserId::new("nobody").expect("an id");
        let ends = self.state.lock().ends;
        // The end of the stream is the end of the client.
        while let Ok((id, request)) = read(&mut stream) {
            let mut state = self.state.lock();
            // What had come before the connection's end, and would be answered on the next one.
            if state.ends != ends {
                return;
            }
            let answer: Answer = match request {
                Request::Hello(_) => welcome().into(),
                Request::Login(login) => {
                    user = UserId::new(&login.token).expect("in these tests the token is the user");
                    let clone = stream.try_clone().expect("a descriptor");
                    state.users.insert(user.clone(), (clone, 0));
                    let session = SessionId::generate();
                    LoggedIn { user: user.clone(), session, token_expires: Timestamp(0) }.into()
                }
                Request::Ack(ack) => {
                    state.acks += 1;
                    let pushed = state.users[&user].1;
                    let moved_none = ack.cursors.is_empty() && state.pulls == 0;
                    if ack.pushes > pushed || moved_none {
                        state.complaints.push(format!("{ack:?} after {pushed} pushes"));
                    }
                    for cursor in ack.cursors {
                        if state.heads.get(&cursor.conversation).is_none_or(|head| cursor.seq.0 > *head) {
                            state.complaints.push(format!("{cursor:?} is above the head"));
                        }
                    }
                    if self.fault == Fault::AckRefused && state.acks == 1 {
                        RequestError::not_done(ErrorCode::UNAVAILABLE, "later").retry_after(5).into()
                    } else {
                        Acked {}.into()
                    }
                }
                Request::Heartbeat(_) => {
                    state.heartbeats += 1;
                    HeartbeatAnswer { server_time: Timestamp(0) }.into()
                }
                Request::Send(send) => {
                    self.message(&mut state, &user, id, send);
                    self.progress.notify_all();
                    continue;
                }
                Request::Pull(pull) => {
                    state.pulls += 1;
                    let pages = pull.ranges.iter().map(|range| page(&state, range)).collect();
                    Pulled { pages }.into()
                }
                other => {
                    state.complaints.push(format!("{other:?}"));
                    continue;
                }
            };
            write(&mut stream, &answer.encode(Codec::Bincode, id));
        }
    }

    fn message(&self, state: &mut State, sender: &UserId, id: u64, send: Send) {
        if let Some(sent) = state.answered.get(&send.retry.client_id).cloned() {
            if send.retry.attempt < 2 {
                state.complaints.push(format!("{:?} is not new", send.retry));
            }
            return to_user(state, sender, &Answer::Sent(sent).encode(Codec::Bincode, id));
        }
        state.messages += 1;
        let faulty = |fault| self.fault == fault && state.messages == FAULTY_MESSAGE;
        if faulty(Fault::Refused) {
            let error = RequestError::not_done(ErrorCode::BUSY, "no").retry_after(5);
            return to_user(state, sender, &Answer::Error(error).encode(Codec::Bincode, id));
        }
        if faulty(Fault::Kicked) {
            let event = Event::Kicked(Kicked { reason: ErrorCode::ACKS_OVERDUE, message: String::new() });
            return to_user(state, sender, &event.encode(Codec::Bincode, 0));
        }
        let (no_push, push_twice, push_late) =
            (faulty(Fault::NoPush), faulty(Fault::PushTwice), faulty(Fault::PushLate));
        let (no_answer, answer_twice) = (faulty(Fault::NoAnswer), faulty(Fault::AnswerTwice));
        let (go_away, closes) = (faulty(Fault::GoAway), faulty(Fault::Closes));
        let (lagged, unknown) = (faulty(Fault::Lagged), faulty(Fault::Unknown));
        let (left_out, to_another) = (faulty(Fault::SeqLeftOut), faulty(Fault::PushToAnother));

        let conversation = send.target.conversation(sender);
        let head = state.heads.entry(conversation.clone()).or_default();
        *head += 1 + u64::from(left_out);
        let sent = Sent {
            conversation: conversation.clone(),
            seq: Seq(*head),
            message_id: MessageId(Uuid::now_v7()),
            time: Timestamp(1_700_000_000_000),
        };
        state.answered.insert(send.retry.client_id, sent.clone());
        if state.messages == FAULTY_MESSAGE {
            state.faulty = Some(sent.clone());
        }
        let push = push_of(&sent, sender, send);
        if let Event::Push(push) = &push {
            state.logs.entry(conversation.clone()).or_default().push(push.message.clone());
        }
        if unknown {
            let error = RequestError::unknown(ErrorCode::UNAVAILABLE, "who knows");
            let peer = conversation.peer_of(sender).expect("it is the sender's");
            state.users.get_mut(&peer).expect("logged in").1 += 1;
            to_user(state, &peer, &push.encode(Codec::Bincode, 0));
            return to_user(state, sender, &Answer::Error(error).encode(Codec::Bincode, id));
        }
        if go_away || closes {
            return leave(state, go_away);
        }
        if lagged {
            let peer = conversation.peer_of(sender).expect("it is the sender's");
            let event = Lagged { conversation, head: sent.seq, shed: 1 };
            to_user(state, &peer, &Event::Lagged(event).encode(Codec::Bincode, 0));
            return to_user(state, sender, &Answer::Sent(sent).encode(Codec::Bincode, id));
        }
        let push = push.encode(Codec::Bincode, 0);
        let answer = Answer::Sent(sent).encode(Codec::Bincode, id);
        for _ in 0..u32::from(!no_answer) + u32::from(answer_twice) {
            to_user(state, sender, &answer);
        }
        let mut peer = conversation.peer_of(sender).expect("it is the sender's");
        if to_another {
            let others = state.users.keys();
            peer = others.filter(|user| **user != peer && *user != sender).min().expect("a third").clone();
        }
        if push_late {
            state.late = Some((peer, push));
            return;
        }
        for _ in 0..u32::from(!no_push) + u32::from(push_twice) {
            to_user(state, &peer, &push);
            state.users.get_mut(&peer).expect("logged in").1 += 1;
        }
        if let Some((_, push)) = state.late.take_if(|(late, _)| *late == peer) {
            to_user(state, &peer, &push);
            state.users.get_mut(&peer).expect("logged in").1 += 1;
        }
    }
}

/// All connections end.
fn leave(state: &mut State, told: bool) {
    let go_away = GoAway { reason: ErrorCode::BUSY, retry_after_ms: 5, nodes: Vec::new() };
    let frame = Event::GoAway(go_away).encode(Codec::Bincode, 0);
    state.ends += 1;
    for (stream, _) in state.users.values_mut() {
        if told {
            write(stream, &frame);
        }
        // One that has gone already has nothing to be shut.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Two messages at a time, so that there is more than one page.
fn page(state: &State, range: &PullRange) -> Page {
    let head = Seq(state.heads.get(&range.conversation).copied().unwrap_or(0));
    let log = state.logs.get(&range.conversation).map_or(&[][..], |log| log);
    let mut wanted = log.iter().filter(|message| (range.from..=range.to).contains(&message.seq)).cloned();
    let messages: Vec<_> = wanted.by_ref().take(2).collect();
    let next = wanted.next().map(|message| message.seq);
    Page { conversation: range.conversation.clone(), messages, first: Seq(1), head, next, error: None }
}

fn push_of(sent: &Sent, sender: &UserId, send: Send) -> Event {
    Event::Push(Push {
        conversation: sent.conversation.clone(),
        lane_previous: Seq(sent.seq.0 - 1),
        message: Message {
            seq: sent.seq,
            message_id: sent.message_id,
            sender: sender.clone(),
            device: DeviceId::new("bench").expect("an id"),
            client_id: send.retry.client_id,
            time: sent.time,
            kind: MessageKind::USER,
            priority: send.priority,
            content: send.content,
            reply_to: send.reply_to,
            previous: send.previous,
            target: None,
            edited_at: None,
            recalled_at: None,
            deleted_at: None,
            reactions: Vec::new(),
        },
    })
}

fn welcome() -> Welcome {
    Welcome {
        protocol: convoke_protocol::PROTOCOL_VERSION,
        version: "0".to_owned(),
        node: "fake".to_owned(),
        features: Vec::new(),
        heartbeat_ms: 1_000,
        limits: Limits {
            max_frame_bytes: 1 << 20,
            max_body_bytes: 256 << 10,
            max_in_flight: 64,
            max_page_messages: 100,
            max_page_bytes: 256 << 10,
            max_ranges: 2,
            dedup_window_ms: 120_000,
            ack_deadline_ms: 30_000,
        },
        server_time: Timestamp(0),
        nodes: Vec::new(),
    }
}

fn read(stream: &mut TcpStream) -> io::Result<(u64, Request)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame)?;
    let raw = convoke_protocol::codec::split_frame(&frame).expect("a frame");
    let request = Request::decode(Codec::Bincode, raw.head.type_number, raw.body).expect("a body");
    Ok((raw.head.request_id, request.expect("a request that is known")))
}

fn to_user(state: &mut State, user: &UserId, frame: &[u8]) {
    write(&mut state.users.get_mut(user).expect("logged in").0, frame);
}

fn write(stream: &mut TcpStream, frame: &[u8]) {
    // A client that has gone away reads no more.
    let _ = stream.write_all(&Framing::Tcp.wrap(frame));
}
