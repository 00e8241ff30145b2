//! One session per connection.

pub mod egress;
