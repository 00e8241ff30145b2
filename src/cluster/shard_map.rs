//! Which shard a conversation or a user belongs to.

use convoke_protocol::id::{ConversationId, UserId};
use xxhash_rust::xxh3::xxh3_64;

/// One of the `shards` slices of the conversation ids and user ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u32);

/// The fixed mapping of ids to shards: the same on every node, for the life of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardMap {
    shards: u32,
}

impl ShardMap {
    /// A mapping to so many shards.
    ///
    /// # Panics
    /// If `shards` is 0; the configuration refuses that.
    pub fn new(shards: u32) -> Self {
        assert!(shards > 0, "a cluster has at least one shard");
        Self { shards }
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// The shard of a conversation.
    pub fn of_conversation(&self, conversation: &ConversationId) -> ShardId {
        self.of(conversation.as_str())
    }

    /// The shard of a user's directory.
    pub fn of_user(&self, user: &UserId) -> ShardId {
        self.of(user.as_str())
    }

    fn of(&self, id: &str) -> ShardId {
        // The remainder is below `shards`, a u32.
        ShardId((xxh3_64(id.as_bytes()) % u64::from(self.shards)) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written down, because rows and owners depend on it for ever.
    #[test]
    fn the_mapping_never_changes() {
        let map = ShardMap::new(1024);
        let of = |id: &str| map.of_conversation(&ConversationId::new(id).expect("valid")).0;
        assert_eq!([of("d:alice:bob"), of("d:alice:alice"), of("g:team")], [704, 641, 117]);
    }
}
