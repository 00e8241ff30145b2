//! The ownership protocol under a model checker. `docs/ownership.md` says what is covered, and how to run more.

mod log_checks;
mod log_model;
mod log_world;
mod mutation;
mod register;
mod row;
