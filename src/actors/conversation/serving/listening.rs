//! Who listens to a conversation, on which nodes: found in the directories of its users, and told to the hubs.

use std::collections::HashSet;
use std::time::Duration;

use convoke_protocol::id::UserId;

use super::{Serving, WAIT_FOR_DIRECTORIES_MS};
use crate::actors::conversation::{Activation, ConversationHandle, Surroundings};
use crate::actors::peer::Seat;
use crate::cluster::membership::PeerId;
use crate::cluster::shard_map::ShardId;

impl Serving {
    pub(super) fn watch_all(&mut self, activation: &Activation) {
        self.watch(activation, self.watched.iter().cloned().collect());
    }

    pub(super) fn watch(&mut self, activation: &Activation, users: Vec<UserId>) {
        self.unanswered += users.len();
        let Surroundings { directory, clock, .. } = &activation.surroundings;
        self.wait_until_ms = clock.monotonic_ms() + WAIT_FOR_DIRECTORIES_MS;
        if directory.has_peers() {
            let wait = Duration::from_millis(WAIT_FOR_DIRECTORIES_MS);
            self.wake = Some(self.wake.map_or(wait, |earlier| earlier.min(wait)));
        }
        directory.watch(users, &self.handle);
    }

    /// After a loss: these listen, and may have missed something.
    pub(super) fn reset_now(&mut self, activation: &Activation) {
        if std::mem::take(&mut self.reset) {
            let all = self.listeners.keys().copied().collect();
            let head = self.core.head().seq;
            activation.surroundings.hubs.reset(&activation.conversation, all, head);
        }
    }

    /// Notes a listener; says whether it is new.
    pub(super) fn add(&mut self, seat: Seat, user: UserId) -> bool {
        let is_new = self.listeners.insert(seat, user).is_none();
        if is_new {
            *self.places.entry(seat.at).or_default() += 1;
        }
        is_new
    }

    /// Forgets a listener; says whether it was one.
    pub(super) fn remove(&mut self, seat: Seat) -> bool {
        let was_there = self.listeners.remove(&seat).is_some();
        if was_there && let Some(count) = self.places.get_mut(&seat.at) {
            *count -= 1;
            if *count == 0 {
                self.places.remove(&seat.at);
            }
        }
        was_there
    }

    pub(in crate::actors::conversation) fn watched(
        &mut self,
        activation: &Activation,
        users: usize,
        online: Vec<(UserId, Seat)>,
    ) {
        let hubs = &activation.surroundings.hubs;
        let is_late = self.unanswered == 0;
        let mut added = Vec::new();
        for (user, seat) in online {
            if self.watched.contains(&user) && self.add(seat, user) {
                added.push(seat);
            }
        }
        self.unanswered = self.unanswered.saturating_sub(users);
        let head = self.core.head().seq;
        if self.reset {
            if self.unanswered == 0 {
                self.reset_now(activation);
            }
        } else if is_late && !added.is_empty() {
            hubs.listen_late(&activation.conversation, added, head);
        } else if !added.is_empty() {
            hubs.listen(&activation.conversation, added);
        }
        self.go_on(activation);
    }

    pub(in crate::actors::conversation) fn session_changed(
        &mut self,
        activation: &Activation,
        user: UserId,
        seat: Seat,
        (online, late): (bool, bool),
    ) {
        let hubs = &activation.surroundings.hubs;
        if online {
            // A word of somebody who left meanwhile comes too late.
            if self.watched.contains(&user) && self.add(seat, user) {
                if late {
                    let head = self.core.head().seq;
                    hubs.listen_late(&activation.conversation, vec![seat], head);
                } else {
                    hubs.listen(&activation.conversation, vec![seat]);
                }
            }
        } else if self.remove(seat) {
            hubs.leave(&activation.conversation, seat);
        }
    }

    /// The directories of these shards' users are served by another, or know nothing any more: they are asked again.
    pub(in crate::actors::conversation) fn watch_again(
        &mut self,
        activation: &Activation,
        shards: &HashSet<ShardId>,
    ) {
        let map = activation.surroundings.directory.map();
        let users = self.watched.iter().filter(|user| shards.contains(&map.of_user(user)));
        let users: Vec<UserId> = users.cloned().collect();
        if !users.is_empty() {
            // Nothing waits for the answers: whom they name as new catches up.
            activation.surroundings.directory.watch(users, &self.handle);
        }
    }

    /// A node is gone, with its listeners.
    pub(in crate::actors::conversation) fn peer_gone(&mut self, peer: PeerId) {
        self.listeners.retain(|seat, _| seat.at != peer);
        self.places.remove(&peer);
    }

    /// The link to a node stands again: its hub is told who listens there, and they catch up.
    pub(in crate::actors::conversation) fn tell_again(&mut self, activation: &Activation, peer: PeerId) {
        let there: Vec<Seat> = self.listeners.keys().filter(|seat| seat.at == peer).copied().collect();
        if !there.is_empty() {
            activation.surroundings.hubs.reset(&activation.conversation, there, self.core.head().seq);
        }
    }

    pub(in crate::actors::conversation) fn refresh(
        &mut self,
        activation: &Activation,
        handle: &ConversationHandle,
    ) {
        self.handle = handle.clone();
        self.listeners.clear();
        self.places.clear();
        self.unanswered = 0;
        self.reset = !self.watched.is_empty();
        self.watch_all(activation);
        self.go_on(activation);
    }
}
