//! The ownership protocol under a model checker. `docs/ownership.md` says what is covered, and how to run more.

mod checking;
mod claim_checks;
mod claim_world;
mod log_checks;
mod log_model;
mod log_world;
mod mutation;
mod register;
mod row;
mod whole;
