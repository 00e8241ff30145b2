//! A client that speaks the protocol and nothing more, the same over every framing.

use std::collections::{HashMap, VecDeque};

use convoke_protocol::PROTOCOL_VERSION;
use convoke_protocol::error_code::ErrorCode;
use convoke_protocol::event::Push;
use convoke_protocol::frame::{Answer, Codec, Event, Incoming, Request};
use convoke_protocol::framing::Framing;
use convoke_protocol::id::{ConversationId, DeviceId, Seq, UserId};
use convoke_protocol::message::{Content, Message, Priority};
use convoke_protocol::request::Retry;
use convoke_protocol::request::messages::{
    Ack, Direction, History, HistoryFrom, HistoryPage, Pull, PullRange, Send, Sent, Target,
};
use convoke_protocol::request::session::{DeviceClass, Hello, LoggedIn, Login, Welcome};

use super::in_time;
use super::node::TestNode;
use super::wire::Wire;

/// The conversation of two users.
pub(crate) fn conversation(one: &str, other: &str) -> ConversationId {
    ConversationId::direct(&UserId::new(one).unwrap(), &UserId::new(other).unwrap())
}

/// A first attempt to say something to a user.
pub(crate) fn to_user(user: &str, text: &str) -> Send {
    Send {
        retry: Retry::first(),
        target: Target::User(UserId::new(user).unwrap()),
        content: Content::text(text),
        reply_to: None,
        previous: None,
        priority: Priority::NORMAL,
    }
}

/// What a client says first.
pub(crate) fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        app: "it".into(),
        version: "1".into(),
        os: "linux".into(),
        features: Vec::new(),
    }
}

/// How a session ended, as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With these last words.
    Kicked(ErrorCode),
    /// With these last words.
    GoAway(ErrorCode),
    /// An error that answers no request.
    Error(ErrorCode),
    /// Without a word.
    Silent,
}

/// One connection.
pub(crate) struct TestClient {
    wire: Wire,
    codec: Codec,
    next_id: u64,
    answers: HashMap<u64, Answer>,
    events: VecDeque<Event>,
    /// How many pushes came since the login.
    pub(crate) pushes: u64,
    /// The highest number that was pushed, by conversation and lane.
    highest: HashMap<(ConversationId, Priority), Seq>,
    last_word: End,
}

impl TestClient {
    /// A connection on which nothing was said yet.
    pub(crate) async fn connect(node: &TestNode, framing: Framing) -> Self {
        let wire = in_time("a connection", Wire::connect(node.address(framing), framing)).await;
        Self::on(wire, framing)
    }

    /// A client on a connection.
    pub(crate) fn on(wire: Wire, framing: Framing) -> Self {
        Self {
            wire,
            codec: framing.codec(),
            next_id: 1,
            answers: HashMap::new(),
            events: VecDeque::new(),
            pushes: 0,
            highest: HashMap::new(),
            last_word: End::Silent,
        }
    }

    /// A live session.
    pub(crate) async fn login(node: &TestNode, framing: Framing, user: &str, device: &str) -> Self {
        let mut client = Self::connect(node, framing).await;
        let token = node.token(user).await;
        let logged_in = client.log_in(token, device).await;
        assert_eq!(logged_in.user.as_str(), user);
        client
    }

    /// Hello and login on a new connection.
    pub(crate) async fn log_in(&mut self, token: String, device: &str) -> LoggedIn {
        self.greet().await;
        self.log_in_greeted(token, device).await
    }

    /// Login on a connection that was greeted.
    pub(crate) async fn log_in_greeted(&mut self, token: String, device: &str) -> LoggedIn {
        ask!(self, login(token, device, DeviceClass::DESKTOP), LoggedIn)
    }

    /// Says hello.
    pub(crate) async fn greet(&mut self) -> Welcome {
        ask!(self, hello(), Welcome)
    }

    /// Sends a request and returns its id; the answer is for [`Self::answer`].
    pub(crate) async fn post(&mut self, request: impl Into<Request>) -> u64 {
        let id = self.next_id;
        let frame = request.into().encode(self.codec, id);
        self.post_frame(&frame).await;
        id
    }

    /// Sends a frame as it is, which should carry the next id.
    pub(crate) async fn post_frame(&mut self, frame: &[u8]) -> u64 {
        self.next_id += 1;
        // Whether it arrived shows in what comes back.
        let _ = in_time("a frame is taken", self.wire.write(frame)).await;
        self.next_id - 1
    }

    /// The id of the next request.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// What stands below the frames.
    pub(crate) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn request(&mut self, request: impl Into<Request>) -> Answer {
        let id = self.post(request).await;
        self.answer(id).await
    }

    /// Waits for the answer to a request.
    pub(crate) async fn answer(&mut self, id: u64) -> Answer {
        match in_time("an answer", self.try_answer(id)).await {
            Some(answer) => answer,
            None => panic!("the connection ended without the answer: {:?}", self.last_word),
        }
    }

    /// Waits for the answer to a request; `None` if the connection ends before. Cancel-safe.
    pub(crate) async fn try_answer(&mut self, id: u64) -> Option<Answer> {
        while !self.answers.contains_key(&id) {
            self.receive().await?;
        }
        self.answers.remove(&id)
    }

    /// Takes an answer that has arrived already.
    pub(crate) fn arrived(&mut self, id: u64) -> Option<Answer> {
        self.answers.remove(&id)
    }

    /// Takes one frame in; `None` at the end. Cancel-safe.
    pub(crate) async fn receive(&mut self) -> Option<()> {
        let frame = self.wire.read().await?;
        match Incoming::decode(self.codec, &frame).unwrap() {
            Incoming::Answer(id, answer) => {
                assert!(id < self.next_id, "an answer to request {id}, which was never sent");
                let before = self.answers.insert(id, answer);
                assert!(before.is_none(), "request {id} is answered twice");
            }
            Incoming::Event(event) => self.note(event),
            Incoming::Unknown(head) => {
                // An error about bytes that are no request answers no request: its id is 0.
                let body = convoke_protocol::codec::with_frame(self.codec, &frame, |raw| {
                    Ok(Answer::decode(self.codec, raw.head.type_number, raw.body))
                });
                match body {
                    Ok(Ok(Some(Answer::Error(error)))) => self.last_word = End::Error(error.code),
                    _ => panic!("the server sent {head:?}"),
                }
            }
        }
        Some(())
    }

    /// Every test checks this by the way: pushes of a lane rise, and none comes twice.
    fn note(&mut self, event: Event) {
        match &event {
            Event::Push(push) => {
                self.pushes += 1;
                let lane = (push.conversation.clone(), push.message.priority);
                let before = self.highest.insert(lane, push.message.seq);
                assert!(before < Some(push.message.seq), "{} after {before:?}", push.message.seq);
            }
            Event::Kicked(kicked) => self.last_word = End::Kicked(kicked.reason),
            Event::GoAway(go_away) => self.last_word = End::GoAway(go_away.reason),
            _ => {}
        }
        self.events.push_back(event);
    }

    /// The next event.
    pub(crate) async fn event(&mut self) -> Event {
        let coming = async {
            loop {
                if let Some(event) = self.events.pop_front() {
                    return event;
                }
                assert!(self.receive().await.is_some(), "the connection ended: {:?}", self.last_word);
            }
        };
        in_time("an event", coming).await
    }

    /// The next event, which is a push.
    pub(crate) async fn push(&mut self) -> Push {
        match self.event().await {
            Event::Push(push) => push,
            other => panic!("{other:?} is no push"),
        }
    }

    /// Events that came while something else was waited for.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// Says that all pushes arrived.
    pub(crate) async fn acknowledge(&mut self) {
        ask!(self, Ack { pushes: self.pushes, cursors: Vec::new() }, Acked);
    }

    /// Reads to the end of the connection.
    pub(crate) async fn end(&mut self) -> End {
        in_time("the connection ends", async { while self.receive().await.is_some() {} }).await;
        self.last_word
    }

    /// Says something to a user.
    pub(crate) async fn say(&mut self, user: &str, text: &str) -> Sent {
        ask!(self, to_user(user, text), Sent)
    }

    /// All that was said in a conversation, read page by page.
    pub(crate) async fn pull_all(&mut self, conversation: &ConversationId) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut from = Some(Seq(1));
        while let Some(next) = from {
            let range = PullRange { conversation: conversation.clone(), from: next, to: Seq(u64::MAX) };
            let mut pages = ask!(self, Pull { ranges: vec![range] }, Pulled).pages;
            let page = pages.pop().unwrap();
            assert_eq!((pages.len(), page.error), (0, None));
            messages.extend(page.messages);
            from = page.next;
        }
        let seqs: Vec<_> = messages.iter().map(|message| message.seq.0).collect();
        assert_eq!(seqs, (1..=messages.len() as u64).collect::<Vec<_>>(), "a gap or a repeat");
        messages
    }

    /// A page of history.
    pub(crate) async fn history(
        &mut self,
        conversation: &ConversationId,
        from: HistoryFrom,
        direction: Direction,
        limit: u32,
    ) -> HistoryPage {
        ask!(self, History { conversation: conversation.clone(), from, direction, limit }, HistoryPage)
    }
}

/// A login with this token.
pub(crate) fn login(token: String, device: &str, device_class: DeviceClass) -> Login {
    Login { token, device: DeviceId::new(device).unwrap(), device_class }
}

/// A frame with the head of a request and a body of its own.
pub(crate) fn frame(codec: Codec, id: u64, type_number: u16, name: &str, body: &[u8]) -> Vec<u8> {
    match codec {
        Codec::Bincode => {
            let number = |value: u64| convoke_protocol::codec::encode(&value);
            [&number(id)[..], &number(type_number.into()), &number(body.len() as u64), body].concat()
        }
        Codec::Json => {
            let body = std::str::from_utf8(body).unwrap();
            format!(r#"{{"id":{id},"type":"{name}","body":{body}}}"#).into_bytes()
        }
    }
}
