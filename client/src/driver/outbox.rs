//! What waits for the application, and what it has taken.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use convoke_protocol::id::{ConversationId, Seq};
use tokio::sync::mpsc;

use crate::acks::DELAY;
use crate::client::ClientEvent;
use crate::resume::Delivery;

/// Events that wait before nothing more is merged or pulled.
const MAX_EVENTS: usize = 1024;

/// Bytes of message bodies that wait before nothing more is merged or pulled.
const MAX_BYTES: usize = 8 << 20;

/// Events in the channel to the application; the rest waits in the outbox.
pub(crate) const CHANNEL: usize = 32;

/// What the application has done with: written by [`crate::Events`], read by the driver.
#[derive(Debug, Default)]
pub(crate) struct Had(Mutex<HadCursors>);

#[derive(Debug, Default)]
struct HadCursors {
    count: u64,
    cursors: BTreeMap<ConversationId, Seq>,
}

impl Had {
    /// The application has this message, and with it everything before.
    pub(crate) fn note(&self, conversation: ConversationId, seq: Seq) {
        let mut had = self.lock();
        had.count += 1;
        had.cursors.insert(conversation, seq);
    }

    fn take(&self) -> (u64, BTreeMap<ConversationId, Seq>) {
        let mut had = self.lock();
        (had.count, std::mem::take(&mut had.cursors))
    }

    fn lock(&self) -> MutexGuard<'_, HadCursors> {
        // Every state of the map is a valid one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue to the application. It has a bound: beyond it the merge notes what comes, and pulls it later.
pub(crate) struct Outbox {
    events: VecDeque<ClientEvent>,
    bytes: usize,
    channel: mpsc::Sender<ClientEvent>,
    had: Arc<Had>,
    /// Whether anybody asks what the application has done with.
    keeps: bool,
    handed_over: u64,
    check_at: Option<Instant>,
}

impl Outbox {
    pub(crate) fn new(channel: mpsc::Sender<ClientEvent>, had: Arc<Had>, keeps: bool) -> Self {
        Self { events: VecDeque::new(), bytes: 0, channel, had, keeps, handed_over: 0, check_at: None }
    }

    /// Whether the application still listens.
    pub(crate) fn is_open(&self) -> bool {
        !self.channel.is_closed()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.events.len() < MAX_EVENTS && self.bytes < MAX_BYTES
    }

    /// Whether [`Outbox::hand_over`] has something to do: to hand over, or to notice that nobody listens any more.
    pub(crate) fn wants(&self) -> bool {
        self.is_open()
    }

    /// Queues news of the connection; without room they are left out, as they are outdated by the time they are read.
    pub(crate) fn put(&mut self, event: ClientEvent) {
        if self.has_room() {
            self.put_last(event);
        }
    }

    /// Queues an event whatever the bound.
    pub(crate) fn put_last(&mut self, event: ClientEvent) {
        if self.is_open() {
            self.bytes += size(&event);
            self.events.push_back(event);
        }
    }

    pub(crate) fn deliver(&mut self, delivery: Delivery) {
        self.put_last(match delivery {
            Delivery::Message(conversation, message) => ClientEvent::Message { conversation, message },
            Delivery::Skipped(conversation, from, to) => ClientEvent::Skipped { conversation, from, to },
            Delivery::CaughtUp => ClientEvent::CaughtUp,
        });
    }

    /// Hands at least one event to the application, as soon as it takes one.
    ///
    /// # Cancel-safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn hand_over(&mut self) {
        if self.events.is_empty() {
            self.channel.closed().await;
            return;
        }
        let Ok(permit) = self.channel.reserve().await else {
            self.events.clear();
            self.bytes = 0;
            return;
        };
        let mut permit = Some(permit);
        while let Some(event) = self.events.pop_front() {
            self.bytes -= size(&event);
            if self.keeps && matches!(event, ClientEvent::Message { .. } | ClientEvent::Skipped { .. }) {
                self.handed_over += 1;
                self.check_at.get_or_insert_with(|| Instant::now() + DELAY);
            }
            match permit.take() {
                Some(permit) => permit.send(event),
                None => break,
            }
            permit = if self.events.is_empty() { None } else { self.channel.try_reserve().ok() };
            if permit.is_none() {
                break;
            }
        }
    }

    /// Hands over all that is left, or as much as the application takes before it stops listening.
    pub(crate) async fn drain(&mut self) {
        while !self.events.is_empty() {
            self.hand_over().await;
        }
    }

    /// When to ask what the application has done with: it does not wake the driver for every message.
    pub(crate) fn check_at(&self) -> Option<Instant> {
        self.check_at
    }

    /// What the application has done with since it was last asked, if it is time to ask, or `at_once`.
    pub(crate) fn had(&mut self, at_once: bool, now: Instant) -> BTreeMap<ConversationId, Seq> {
        if !self.keeps || !at_once && self.check_at.is_none_or(|at| at > now) {
            return BTreeMap::new();
        }
        let (count, cursors) = self.had.take();
        self.check_at = (count < self.handed_over && self.is_open()).then(|| now + DELAY);
        cursors
    }
}

fn size(event: &ClientEvent) -> usize {
    match event {
        ClientEvent::Message { message, .. } => message.content.body.len(),
        _ => 0,
    }
}
