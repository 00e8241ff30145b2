//! Which node owns what, and how nodes speak to each other.

pub mod shard_map;
