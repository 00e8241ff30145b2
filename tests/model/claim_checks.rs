//! Every state of a shard's claims, and every mutation of them.

use crate::checking::{holds, is_found};
use crate::claim_world::{ClaimModel, ClaimMutation};

fn model(nodes: u8, epochs: u64, mutation: ClaimMutation) -> ClaimModel {
    ClaimModel { nodes, epochs, mutation, fine: false }
}

#[test]
fn two_nodes_claim_and_release() {
    holds("2 incarnations, 2 epochs", model(2, 2, ClaimMutation::None));
}

#[test]
fn two_nodes_and_all_that_costs_states() {
    holds("2 incarnations, 1 epoch, fine", ClaimModel { fine: true, ..model(2, 1, ClaimMutation::None) });
}

/// `CONVOKE_MODEL="incarnations epochs fine"`, such as `"3 3 0"`.
#[test]
#[ignore = "as large as CONVOKE_MODEL says: run by hand"]
fn explore_claims() {
    let text = std::env::var("CONVOKE_MODEL").expect("CONVOKE_MODEL is set");
    let numbers: Vec<u8> = text.split_whitespace().map(|part| part.parse().expect("a number")).collect();
    let model = model(numbers[0], u64::from(numbers[1]), ClaimMutation::None);
    holds(&text, ClaimModel { fine: numbers[2] > 0, ..model });
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
