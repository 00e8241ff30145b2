//! Every state of a shard's claims, and every mutation of them.

use crate::checking::{holds, is_found};
use crate::claim_world::{ClaimModel, ClaimMutation};

fn model(nodes: u8, epochs: u64, mutation: ClaimMutation) -> ClaimModel {
    ClaimModel { nodes, epochs, mutation }
}

#[test]
fn two_nodes_claim_and_release() {
    holds("2 incarnations, 3 epochs", model(2, 3, ClaimMutation::None));
}

#[test]
fn three_nodes_claim_and_release() {
    holds("3 incarnations, 2 epochs", model(3, 2, ClaimMutation::None));
}

/// `CONVOKE_MODEL="incarnations epochs"`, such as `"3 3"`.
#[test]
#[ignore = "as large as CONVOKE_MODEL says: run by hand"]
fn explore_claims() {
    let text = std::env::var("CONVOKE_MODEL").expect("CONVOKE_MODEL is set");
    let (nodes, epochs) = text.split_once(' ').expect("two numbers");
    let (nodes, epochs) = (nodes.parse().expect("a number"), epochs.parse().expect("a number"));
    holds(&text, model(nodes, epochs, ClaimMutation::None));
}

#[test]
fn found_claim_before_fence_durable() {
    is_found(&model(2, 2, ClaimMutation::ClaimBeforeFenceDurable), ClaimMutation::ClaimBeforeFenceDurable);
}

#[test]
fn found_two_owners_in_one_epoch() {
    is_found(&model(2, 2, ClaimMutation::UnknownIsApplied), ClaimMutation::UnknownIsApplied);
}

#[test]
fn found_going_on_after_a_release() {
    is_found(&model(2, 2, ClaimMutation::GoesOnAfterRelease), ClaimMutation::GoesOnAfterRelease);
}

#[test]
fn found_closing_after_a_release() {
    is_found(&model(2, 2, ClaimMutation::ClosesAfterRelease), ClaimMutation::ClosesAfterRelease);
}

#[test]
fn found_ignoring_the_gate() {
    is_found(&model(2, 2, ClaimMutation::IgnoresGate), ClaimMutation::IgnoresGate);
}

#[test]
fn found_confirming_at_one() {
    is_found(&model(2, 2, ClaimMutation::ConfirmsAtOne), ClaimMutation::ConfirmsAtOne);
}
