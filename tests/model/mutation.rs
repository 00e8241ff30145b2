//! Ways to break the rules, each of which the model must find.
//!
//! The cores have no switches: a mutation stands between a core and the store, and shows the core what it would see, or
//! does for it what it would do, if the rule were missing.

use crate::row::SmallRow;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// The protocol as it is.
    None,
    /// What is durable is used without a confirmation.
    NoConfirmation,
    /// The read of a confirmation begins while the write is under way.
    ConfirmBeforeDurable,
    /// One replica is asked for the fence, and it does not have it yet.
    ConfirmAtOne,
    /// Write timestamps come from somewhere else, here from clocks that an earlier owner has ahead.
    StampsIgnoreEpoch,
    /// An activation begins again with the number that the one before it had.
    TieAfterRestart,
    /// Two owners believe that they claimed the same epoch.
    TwoOwnersInOneEpoch,
    /// The next owner claims when the fence was sent, not when it is durable.
    ClaimBeforeFenceDurable,
    /// Adopted rows are taken as they are.
    NoRewrite,
    /// Rows written again carry the epoch of who does it. This breaks nothing; the next one needs it.
    RewriteNamesWriter,
    /// Only the rows of the last batch are written again: those that were last written together with the head.
    RewriteLastBatch,
    /// The confirmation of a recovery begins while its rows are being written.
    ConfirmBeforeRewriteDurable,
    /// Adopted rows are told before they are written again.
    ExposeBeforeRewrite,
    /// A row is adopted because it is there.
    AdoptAnyPresent,
    /// A row is adopted because it is there and its epoch is not below that of the row before it.
    AdoptRisingEpochs,
    /// The dedup window begins empty.
    NoDedupOnRecovery,
    /// Recovery asks one replica.
    ReadsAtOne,
    /// A hint names what is written and not confirmed.
    HintBeforeConfirmation,
    /// Rows are trimmed below a hint that is durable and not confirmed.
    TrimBeforeConfirmation,
    /// A row is changed as soon as the entry that says so was sent.
    OverwriteBeforeConfirmed,
    /// A new owner leaves changes that its predecessor had not finished.
    NoRepeat,
    /// A new owner repeats every change above base, one after the other.
    RepeatEveryChange,
}

impl Mutation {
    /// The epoch that an owner believes to have.
    pub(crate) fn epoch(self, owner: u8) -> u8 {
        if self == Self::TwoOwnersInOneEpoch { 1 } else { owner + 1 }
    }

    /// The epoch that its stamps follow.
    pub(crate) fn stamp_epoch(self, owner: u8) -> u8 {
        if self == Self::StampsIgnoreEpoch { 9 - owner } else { self.epoch(owner) }
    }

    /// Whether a claim leaves its predecessor unfenced.
    pub(crate) fn claims_unfenced(self) -> bool {
        matches!(self, Self::ClaimBeforeFenceDurable | Self::TwoOwnersInOneEpoch)
    }

    /// Whether a fence is not seen by the confirmation that should see it.
    pub(crate) fn misses_fences(self) -> bool {
        matches!(self, Self::NoConfirmation | Self::ConfirmAtOne)
    }

    /// Whether a row passes for the next of the chain although its `prev` may say otherwise.
    pub(crate) fn adopts_by_position(self, before: &SmallRow, row: &SmallRow) -> bool {
        self == Self::AdoptAnyPresent || self == Self::AdoptRisingEpochs && row.epoch >= before.epoch
    }

    /// Whether it needs to know what a recovery wrote again.
    pub(crate) fn looks_at_rewritten(self) -> bool {
        self == Self::RepeatEveryChange
    }
}
