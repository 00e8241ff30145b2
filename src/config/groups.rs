//! The bounds of groups.

use super::section::section;

section! {
    /// Groups.
    Groups in "groups" {
        /// Members of one group.
        Restart max_members: usize = 10_000, in 2..=10_000;
    }
}
