//! What operators ask of a cluster, the same from every node.

use std::collections::HashMap;

use convoke_protocol::error_code::RequestError;
use convoke_protocol::id::UserId;

use super::super::cluster::{ClusterPart, KnownNode};
use super::Behind;
use crate::actors::peer::{Seat, SessionEntry};
use crate::cluster::membership::{NodeId, PeerId};
use crate::cluster::shard_map::{ShardId, ShardMap};
use crate::operator::{
    ConversationState, MoveShard, NodeLine, NodeLines, ShardLine, ShardLines, UserSession, UserState,
    WhichNode,
};
use crate::storage::Epoch;

const ALONE: &str = "this node is no part of a cluster: it keeps everything itself";

/// The name of the node that is a process.
fn name_of(behind: &Behind, process: PeerId) -> Option<String> {
    let mut nodes = behind.part.as_ref()?.nodes().into_iter();
    nodes.find(|known| known.addresses.process == process).map(|known| known.node.0)
}

fn map(behind: &Behind) -> Option<ShardMap> {
    Some(behind.part.as_ref()?.peers.owners()?.map())
}

/// Who serves a shard, as far as this node knows.
fn owner_of(behind: &Behind, shard: ShardId) -> Option<String> {
    let (process, _) = behind.part.as_ref()?.peers.owners()?.of(shard)?;
    name_of(behind, process)
}

/// A conversation's state, and who serves it.
pub(super) fn with_owner(behind: &Behind, state: ConversationState) -> ConversationState {
    let shard = map(behind).map(|map| map.of_conversation(&state.conversation));
    let owner = shard.and_then(|shard| owner_of(behind, shard));
    ConversationState { shard: shard.map(|shard| shard.0), owner, ..state }
}

pub(super) fn nodes(behind: &Behind) -> NodeLines {
    let Some(part) = &behind.part else {
        let services = &behind.services;
        let own = NodeLine {
            node: services.node.clone(),
            shards: 0,
            linked: None,
            draining: false,
            tcp: String::new(),
            ws: String::new(),
            link: String::new(),
            this: true,
        };
        return NodeLines { nodes: vec![own] };
    };
    let owners = part.peers.owners();
    let line = |(n, known): (usize, KnownNode)| NodeLine {
        node: known.node.0,
        shards: owners.map_or(0, |owners| owners.of_process(known.addresses.process).len()),
        linked: known.linked,
        draining: known.draining,
        tcp: known.addresses.tcp,
        ws: known.addresses.ws,
        link: known.addresses.link,
        this: n == 0,
    };
    let mut nodes: Vec<NodeLine> = part.nodes().into_iter().enumerate().map(line).collect();
    nodes.sort_by(|one, other| one.node.cmp(&other.node));
    NodeLines { nodes }
}

pub(super) fn shards(behind: &Behind) -> ShardLines {
    let Some(part) = &behind.part else { return ShardLines { shards: Vec::new() } };
    let names: HashMap<PeerId, String> =
        part.nodes().into_iter().map(|known| (known.addresses.process, known.node.0)).collect();
    let line = |(shard, owner): (ShardId, Option<(PeerId, Epoch)>)| ShardLine {
        shard: shard.0,
        node: owner.and_then(|(process, _)| names.get(&process).cloned()),
        epoch: owner.map(|(_, epoch)| epoch.0),
    };
    let all = part.peers.owners().map_or(Vec::new(), |owners| owners.all());
    ShardLines { shards: all.into_iter().map(line).collect() }
}

fn process_of(part: &ClusterPart, node: &str) -> Result<PeerId, String> {
    let found = part.nodes().into_iter().find(|known| known.node.0 == node);
    found
        .map(|known| known.addresses.process)
        .ok_or_else(|| format!("there is no node {node:?}: `convoke admin nodes` lists them"))
}

pub(super) fn drain(behind: &Behind, which: &WhichNode) -> Result<(), String> {
    let part = behind.part.as_ref().ok_or(ALONE)?;
    part.drain(process_of(part, &which.node)?);
    Ok(())
}

pub(super) fn move_shard(behind: &Behind, to: &MoveShard) -> Result<(), String> {
    let part = behind.part.as_ref().ok_or(ALONE)?;
    if let Some(node) = &to.node {
        process_of(part, node)?;
    }
    let shards = map(behind).map_or(0, |map| map.shards());
    if to.shard >= shards {
        return Err(format!("there are shards 0 to {}", shards.saturating_sub(1)));
    }
    part.from_peers.pin(ShardId(to.shard), to.node.clone().map(NodeId));
    Ok(())
}

pub(super) async fn user(behind: &Behind, user: UserId) -> Result<UserState, String> {
    let services = &behind.services;
    let sessions = services.directory.sessions(&user).await;
    let sessions = sessions.map_err(|error: RequestError| error.message)?;
    let shard = map(behind).map(|map| map.of_user(&user));
    let session = |(_, entry): (Seat, SessionEntry)| UserSession {
        session: entry.session,
        node: entry.node,
        device: entry.device,
        device_class: entry.device_class.to_string(),
        app: entry.app,
        since: entry.since,
    };
    Ok(UserState {
        sessions: sessions.into_iter().map(session).collect(),
        shard: shard.map(|shard| shard.0),
        directory: shard.and_then(|shard| owner_of(behind, shard)),
        user,
    })
}
