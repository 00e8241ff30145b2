//! Which node owns what, and how nodes speak to each other.
//!
//! # Ownership
//! [`ownership`] is the core of one node: store answers, timers and commands go in, statements to run and shards to
//! start and stop come out. It is put together from parts that each keep one rule: [`lease`] (who is alive), [`fence`]
//! (who is dead for good), [`claim`] (who owns a shard), [`confirm`] (whether what was written may be used) and
//! [`rendezvous`] (who should own a shard). None of them does I/O or asks for the time; `docs/ownership.md` has the rules.

pub mod claim;
pub mod confirm;
pub mod fence;
pub mod lease;
pub mod link;
pub mod membership;
pub mod owner;
pub mod owners;
pub mod ownership;
pub mod rendezvous;
pub mod shard_map;
pub mod store;
