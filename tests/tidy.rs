//! Rules of the house that a machine keeps.
//!
//! Each rule is a pure function from the tree (the files git tracks, and those it would) to what breaks it; each has
//! a test that shows it can fail. A finding names the file, the line and the reason, so that a reader needs no other
//! page to mend it.

#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/pages.rs"]
mod pages;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/tree.rs"]
mod tree;
#[path = "tidy/words.rs"]
mod words;

use tree::{Finding, Tree};

/// Source files longer than [`sizes::MAX_LINES`], at their present size. The list only shrinks: a file that got
/// shorter gets its new number here, one that fits leaves the list, and nothing is added.
const LONG_FILES: &[(&str, usize)] = &[];

#[track_caller]
fn none(findings: &[Finding]) {
    let list: String = findings.iter().map(|finding| format!("\n  {finding}")).collect();
    assert!(findings.is_empty(), "{} to mend:{list}\n", findings.len());
}

#[test]
fn long_files_only_shrink() {
    none(&sizes::long_files(&Tree::of_repository(), LONG_FILES));
}

#[test]
fn nothing_tracked_is_large() {
    none(&sizes::large_files(&Tree::of_repository()));
}

#[test]
fn the_lock_file_is_tracked() {
    none(&sizes::lock_file(&Tree::of_repository()));
}

#[test]
fn modules_are_self_named_and_have_a_subject() {
    none(&names::modules(&Tree::of_repository()));
}

#[test]
fn crates_are_named_only_where_they_belong() {
    none(&names::places(&Tree::of_repository()));
}

#[test]
fn layers_do_not_know_what_is_above_them() {
    none(&names::layers(&Tree::of_repository()));
}

#[test]
fn no_code_is_unsafe() {
    none(&names::unsafe_code(&Tree::of_repository()));
}

#[test]
fn nothing_is_left_for_later_and_nothing_names_one_machine() {
    none(&words::unwanted(&Tree::of_repository()));
}

#[test]
fn architecture_names_what_exists() {
    none(&pages::architecture(&Tree::of_repository()));
}

#[test]
fn links_between_pages_resolve() {
    none(&pages::links(&Tree::of_repository()));
}
