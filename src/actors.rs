//! The actors.
//!
//! # Supervision
//! ```text
//!   NodeActor                    one per process; restarts what below it crashes
//!   ├── DirectoryActor × stripes who is online, who watches     made again from sessions and conversations
//!   ├── HubActor × stripes       who gets pushes                conversations send their listeners again
//!   ├── MembershipActor          which shards are ours          in a cluster only; without it the node ends
//!   ├── ShardActor × used shards activates conversations        started again by the next request
//!   │   └── ConversationActor    numbers and keeps messages     started again from the store by the next request
//!   └── SessionActor × sessions  one logged-in connection       its end closes the connection
//! ```
//!
//! Between nodes stand no actors: [`peer`] finds who serves what and takes what others say, over links that `net` keeps and
//! makes anew.
//!
//! # Invariants
//! - Whatever comes from a network took a permit before it enters a mailbox: a session's requests in flight, a
//!   conversation's pending sends.
//! - No handler awaits storage or a socket: the outcome comes back as a message.
//! - Nothing here names a database or a socket.

pub mod conversation;
pub mod directory;
pub mod hub;
pub mod membership;
pub mod peer;
pub mod reply;
pub mod session;
pub mod shard;
