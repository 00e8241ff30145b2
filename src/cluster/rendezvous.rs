//! Who should own a shard, pure: bounded-load rendezvous.
//!
//! Every (node, shard) has a weight that depends on nothing else. The pairs are taken from the heaviest down; a shard goes
//! to the first node that has room. No node has more than ⌈shards / nodes⌉, and only as many have that many as needed, so
//! that loads differ by one at most. A node that comes or goes moves little more than its own share.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::membership::NodeId;
use super::shard_map::ShardId;

/// The node of each shard, by index into `nodes`; empty without nodes. The order of `nodes` changes nothing, and none may
/// be there twice.
pub fn assign(shards: u32, nodes: &[NodeId]) -> Vec<usize> {
    let Ok(count) = u32::try_from(nodes.len()) else { return Vec::new() };
    if count == 0 {
        return Vec::new();
    }
    let mut pairs: Vec<(u64, u32, usize)> = Vec::with_capacity(nodes.len() * shards as usize);
    for (index, node) in nodes.iter().enumerate() {
        pairs.extend((0..shards).map(|shard| (weight(node, ShardId(shard)), shard, index)));
    }
    pairs.sort_unstable_by(|one, other| other.0.cmp(&one.0).then_with(|| nodes[one.2].cmp(&nodes[other.2])));
    let (floor, mut with_one_more) = (shards / count, shards % count);
    let mut loads = vec![0; nodes.len()];
    let mut owners = vec![None; shards as usize];
    for (_, shard, index) in pairs {
        let owner = &mut owners[shard as usize];
        if owner.is_some() || loads[index] > floor || (loads[index] == floor && with_one_more == 0) {
            continue;
        }
        with_one_more -= u32::from(loads[index] == floor);
        loads[index] += 1;
        *owner = Some(index);
    }
    owners.into_iter().flatten().collect()
}

fn weight(node: &NodeId, shard: ShardId) -> u64 {
    xxh3_64_with_seed(node.0.as_bytes(), u64::from(shard.0))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn nodes(count: usize, salt: u32) -> Vec<NodeId> {
        (0..count).map(|n| NodeId(format!("node-{salt}-{n}"))).collect()
    }

    fn by_name(shards: u32, nodes: &[NodeId]) -> Vec<NodeId> {
        assign(shards, nodes).into_iter().map(|index| nodes[index].clone()).collect()
    }

    proptest! {
        #[test]
        fn loads_differ_by_one_at_most(shards in 1..1500u32, count in 1..24usize, salt: u32) {
            let nodes = nodes(count, salt);
            let owners = by_name(shards, &nodes);
            prop_assert_eq!(owners.len(), shards as usize);
            let mut loads: HashMap<_, u32> = nodes.iter().map(|node| (node, 0)).collect();
            owners.iter().for_each(|owner| *loads.get_mut(owner).expect("one of them") += 1);
            let (least, most) = (loads.values().min(), loads.values().max());
            prop_assert!(most.expect("some") - least.expect("some") <= 1);
            let reversed: Vec<_> = nodes.iter().rev().cloned().collect();
            prop_assert_eq!(by_name(shards, &reversed), owners);
        }

        /// With 1,024 shards a node that comes takes its share, and who stays gives up little beyond that.
        #[test]
        fn little_moves(count in 1..12usize, salt: u32) {
            let nodes = nodes(count + 1, salt);
            let (before, after) = (by_name(1024, &nodes[..count]), by_name(1024, &nodes));
            let new = &nodes[count];
            let pairs = || before.iter().zip(&after);
            let taken = pairs().filter(|(_, after)| *after == new).count();
            let moved_beside = pairs().filter(|(before, after)| before != after && *after != new).count();
            prop_assert!(taken >= 1024 / (count + 1));
            prop_assert!(moved_beside <= taken / 2, "{moved_beside} beside {taken}");
        }
    }
}
