//! The node's conversations without a socket: what the application's rules are told.

use std::time::Duration;

use convoke_protocol::group::GroupProfile;
use convoke_protocol::id::{DeviceId, Seq, UserId};
use convoke_protocol::message::{Content, MessageKind, Priority};
use convoke_protocol::request::Retry;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use super::*;
use crate::actors::conversation::core::CoreLimits;
use crate::actors::conversation::group::Asking;
use crate::actors::directory::Directory;
use crate::actors::hub::Hub;
use crate::actors::peer::hubs::Hubs;
use crate::actors::peer::outgoing::Peers;
use crate::actors::session::SessionTable;
use crate::clock::Clock;
use crate::hooks::Hooks;
use crate::storage::memory::MemoryStore;
use crate::storage::{Epoch, Stores};
use crate::telemetry::metrics::Metrics;

struct Root;

impl Actor for Root {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

/// What was committed: where, from, to, and who was not there.
type Commit = (ConversationId, Seq, Seq, Vec<UserId>);

struct Told(mpsc::Sender<Commit>);

impl Hooks for Told {
    fn wants_commits(&self) -> bool {
        true
    }

    fn after_commit(&self, conversation: &ConversationId, first: Seq, last: Seq, offline: &[UserId]) {
        let mut offline = offline.to_vec();
        offline.sort();
        self.0.try_send((conversation.clone(), first, last, offline)).expect("there is room");
    }
}

fn user(name: &str) -> UserId {
    UserId::new(name).expect("valid")
}

fn device() -> DeviceId {
    DeviceId::new("phone").expect("valid")
}

#[tokio::test]
async fn rules_are_told_of_commits_and_of_who_is_offline() {
    let (root, _) = Actor::spawn(None, Root, ()).await.expect("it starts");
    let (clock, cell) = (Clock::new(0), root.get_cell());
    let sessions = SessionTable::default();
    let (tell, mut told) = mpsc::channel(8);
    let map = ShardMap::new(4);
    let known = (Peers::none(), map, "n1");
    let hub = Hub::start(1, sessions, map, clock, &cell).await.expect("it starts");
    let surroundings = Surroundings {
        stores: Stores::of(Arc::new(MemoryStore::new())),
        directory: Directory::start(1, None, known, &cell).await.expect("it starts"),
        hubs: Hubs::new(hub, Peers::none()),
        clock,
        limits: CoreLimits::default(),
        metrics: Arc::new(Metrics::new()),
        hooks: Arc::new(Told(tell)),
    };
    let conversations = Conversations::new(map, Owner::Permanent(Epoch(1)), surroundings, cell);
    let team = ConversationId::new("g:team").expect("valid");
    let asking = Asking { user: user("alice"), role: Role::User };
    let members = vec![user("bob")];
    let create = GroupCommand::Create { profile: GroupProfile::default(), members, unique: false };
    let act = Act::Group(create);
    let command = ActCommand { asking, device: device(), retry: Retry::first(), act };
    let place = conversations.act(team.clone(), Box::new(command)).await.expect("allowed");
    assert_eq!(place.map(|place| place.seq), Some(Seq(1)));
    let send = SendCommand {
        sender: user("alice"),
        role: Role::User,
        device: device(),
        retry: Retry::first(),
        kind: MessageKind::USER,
        priority: Priority::NORMAL,
        content: Content::text("hello"),
        reply_to: None,
        previous: None,
    };
    let place = conversations.send_told(team.clone(), Box::new(send), None).await.await.expect("allowed");
    assert_eq!(place.seq, Seq(2));
    let mut next = async || {
        let coming = tokio::time::timeout(Duration::from_secs(30), told.recv());
        coming.await.expect("in time").expect("told")
    };
    let both = vec![user("alice"), user("bob")];
    assert_eq!(next().await, (team.clone(), Seq(1), Seq(1), both.clone()));
    assert_eq!(next().await, (team, Seq(2), Seq(2), both));
    root.stop(None);
}
