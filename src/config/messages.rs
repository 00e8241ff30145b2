//! What may be done to messages after they were said.

use super::section::{Millis, section};

section! {
    /// What may be done to messages after they were said. Services may do all of it, whatever stands here.
    Messages in "messages" {
        /// Whether messages may be recalled: by their sender, and by the admins of a group.
        Restart recall: bool = true;
        /// For how long their sender may recall them, in milliseconds; 0: not at all. Admins may at any time.
        Restart recall_window_ms: Millis = Millis(120_000), in 0..=31_536_000_000;
        /// Whether messages may be edited: by their sender, and by the admins of a group.
        Restart edit: bool = true;
        /// For how long their sender may edit them, in milliseconds; 0: not at all. Admins may at any time.
        Restart edit_window_ms: Millis = Millis(86_400_000), in 0..=31_536_000_000;
        /// Whether messages may be deleted for all: by their sender, and by the admins of a group.
        Restart delete_for_all: bool = true;
        /// Whether deleting a message for all recalls it instead: readers see that it was taken back.
        Restart recall_on_delete: bool = false;
        /// Whether messages may be given reactions.
        Restart reactions: bool = true;
        /// Whether entries that recall are pushed. One that is not is fetched with the next message.
        Restart push_recalls: bool = true;
        /// Whether entries that edit are pushed.
        Restart push_edits: bool = true;
        /// Whether entries that delete are pushed.
        Restart push_deletes: bool = true;
        /// Whether entries of reactions are pushed.
        Restart push_reactions: bool = true;
    }
}
