//! Every state of small worlds, and every mutation.

use crate::checking;
use crate::log_model::LogModel;
use crate::log_world::Bounds;
use crate::mutation::Mutation;

#[track_caller]
fn holds(name: &str, bounds: Bounds) {
    checking::holds(name, LogModel { bounds, mutation: Mutation::None });
}

#[track_caller]
fn is_found(mutation: Mutation, bounds: Bounds) {
    checking::is_found(&LogModel { bounds, mutation }, mutation);
}

/// Messages only.
const TWO: &[u8] = &[0, 0];
const THREE: &[u8] = &[0, 0, 0];
/// Messages, and changes of row 1.
const CHANGES: &[u8] = &[0, 1, 1];

#[test]
fn owners_one_after_the_other() {
    holds("3 owners, 3 seqs, 3 messages, batches of 2", Bounds::log(3, 3, THREE, 2));
    holds("4 owners, 3 seqs, 3 messages, batches of 2", Bounds::log(4, 3, THREE, 2));
    holds("3 owners, 4 seqs, 4 messages, batches of 2", Bounds::log(3, 4, &[0, 0, 0, 0], 2));
}

#[test]
fn actors_that_are_restarted() {
    let bounds = Bounds { restarts: 2, ..Bounds::log(2, 2, TWO, 2) };
    holds("2 owners, 2 restarts, 2 seqs, 2 messages, batches of 2", bounds);
    let bounds = Bounds { restarts: 1, ..Bounds::log(2, 3, THREE, 2) };
    holds("2 owners, 1 restart, 3 seqs, 3 messages, batches of 2", bounds);
}

#[test]
fn rows_that_are_changed() {
    holds("3 owners, 4 seqs, 2 messages, 2 changes, batches of 2", Bounds::log(3, 4, &[0, 1, 1, 0], 2));
    let bounds = Bounds { restarts: 1, ..Bounds::log(3, 3, CHANGES, 2) };
    holds("3 owners, 1 restart, 3 seqs, 1 message, 2 changes, batches of 2", bounds);
}

#[test]
fn hints_and_trims() {
    let bounds = Bounds { hints: 2, trims: 1, ..Bounds::log(2, 3, THREE, 2) };
    holds("2 owners, 3 seqs, 3 messages, batches of 2, 2 hints, 1 trim", bounds);
    let bounds = Bounds { hints: 1, ..Bounds::log(3, 3, THREE, 2) };
    holds("3 owners, 3 seqs, 3 messages, batches of 2, 1 hint", bounds);
}

#[test]
fn three_replicas_one_by_one() {
    let bounds = Bounds { replicas: true, ..Bounds::log(2, 2, TWO, 2) };
    holds("2 owners, 2 seqs, 2 messages, batches of 2, replicas", bounds);
    let bounds = Bounds { replicas: true, ..Bounds::log(2, 3, CHANGES, 2) };
    holds("2 owners, 3 seqs, 1 message, 2 changes, batches of 2, replicas", bounds);
}

#[test]
fn confirmations_step_by_step() {
    let bounds = Bounds { fine: true, ..Bounds::log(3, 3, THREE, 2) };
    holds("3 owners, 3 seqs, 3 messages, batches of 2, step by step", bounds);
    let bounds = Bounds { fine: true, restarts: 1, ..Bounds::log(2, 3, CHANGES, 2) };
    holds("2 owners, 1 restart, 3 seqs, 1 message, 2 changes, batches of 2, step by step", bounds);
}

/// Rows that name who wrote them last: not what the owners do, but what one of the mutations supposes.
#[test]
fn rewritten_rows_may_name_their_writer() {
    checking::holds(
        "3 owners, 3 seqs, 3 messages, batches of 2, rewritten rows name their writer",
        LogModel { bounds: Bounds::log(3, 3, THREE, 2), mutation: Mutation::RewriteNamesWriter },
    );
}

/// Larger than can be visited whole: owners that come and go, actors that restart, hints and trims, changes, replicas that
/// get each write on its own, confirmations step by step.
const LARGE: Bounds = Bounds {
    restarts: 3,
    hints: 3,
    trims: 2,
    replicas: true,
    fine: true,
    ..Bounds::log(5, 6, &[0, 0, 1, 0, 2, 1, 0, 0], 3)
};
const STEPS: usize = 400;

#[test]
fn walks_through_large_worlds() {
    let model = LogModel { bounds: LARGE, mutation: Mutation::None };
    checking::holds_on_walks("5 owners, 6 seqs, 5 messages, 3 changes, everything", &model, STEPS);
    let bounds = Bounds { replicas: false, ..LARGE };
    let model = LogModel { bounds, mutation: Mutation::None };
    checking::holds_on_walks("the same, each write delivered to any replicas at any time", &model, STEPS);
}

#[test]
fn walks_find_what_is_wrong() {
    for mutation in [
        Mutation::NoConfirmation,
        Mutation::NoRewrite,
        Mutation::StampsIgnoreEpoch,
        Mutation::NoDedupOnRecovery,
    ] {
        let bounds = Bounds { replicas: false, ..LARGE };
        checking::is_found_on_walks(&LogModel { bounds, mutation }, STEPS, mutation);
    }
}

/// `CONVOKE_MODEL="owners seqs sends batch restarts hints trims replicas fine"`, such as `"4 3 0,0,0 1 0 0 0 0 0"`.
#[test]
#[ignore = "as large as CONVOKE_MODEL says: run by hand"]
fn explore() {
    let text = std::env::var("CONVOKE_MODEL").expect("CONVOKE_MODEL is set");
    let parts: Vec<&str> = text.split_whitespace().collect();
    let number = |at: usize| parts[at].parse::<u8>().expect("a number");
    let sends: Vec<u8> = parts[2].split(',').map(|part| part.parse().expect("a seq")).collect();
    let bounds = Bounds {
        restarts: number(4),
        hints: number(5),
        trims: number(6),
        replicas: number(7) > 0,
        fine: number(8) > 0,
        ..Bounds::log(number(0), number(1), sends.leak(), usize::from(number(3)))
    };
    holds(&text, bounds);
}

macro_rules! mutations {
    ($($name:ident: $mutation:ident in $bounds:expr;)*) => {
        $(
            #[test]
            fn $name() {
                is_found(Mutation::$mutation, $bounds);
            }
        )*
    };
}

mutations! {
    found_no_confirmation: NoConfirmation in Bounds::log(2, 2, TWO, 2);
    found_confirm_before_durable: ConfirmBeforeDurable in Bounds::log(2, 2, TWO, 2);
    found_confirm_at_one: ConfirmAtOne in Bounds::log(2, 2, TWO, 2);
    found_stamps_ignore_epoch: StampsIgnoreEpoch in Bounds::log(2, 2, TWO, 2);
    found_tie_after_restart: TieAfterRestart in Bounds { restarts: 1, ..Bounds::log(1, 2, TWO, 2) };
    found_two_owners_in_one_epoch: TwoOwnersInOneEpoch in Bounds::log(2, 2, TWO, 2);
    found_claim_before_fence_durable: ClaimBeforeFenceDurable in Bounds::log(2, 2, TWO, 2);
    found_no_rewrite: NoRewrite in Bounds::log(3, 2, TWO, 2);
    found_rewrite_last_batch: RewriteLastBatch in Bounds::log(3, 3, THREE, 2);
    found_confirm_before_rewrite_durable: ConfirmBeforeRewriteDurable in Bounds::log(3, 2, TWO, 2);
    found_expose_before_rewrite: ExposeBeforeRewrite in Bounds::log(3, 2, TWO, 2);
    found_adopt_any_present: AdoptAnyPresent in Bounds::log(3, 3, THREE, 2);
    found_adopt_rising_epochs: AdoptRisingEpochs in Bounds::log(3, 3, THREE, 2);
    found_no_dedup_on_recovery: NoDedupOnRecovery in Bounds::log(2, 2, TWO, 2);
    found_reads_at_one: ReadsAtOne in Bounds::log(2, 2, TWO, 2);
    found_hint_before_confirmation: HintBeforeConfirmation in Bounds { hints: 1, ..Bounds::log(3, 2, TWO, 2) };
    found_trim_before_confirmation: TrimBeforeConfirmation
        in Bounds { hints: 2, trims: 1, ..Bounds::log(3, 3, THREE, 2) };
    found_overwrite_before_confirmed: OverwriteBeforeConfirmed in Bounds::log(2, 3, CHANGES, 2);
    found_no_repeat: NoRepeat in Bounds::log(2, 3, CHANGES, 2);
    found_repeat_every_change: RepeatEveryChange in Bounds::log(2, 3, CHANGES, 2);
}
