//! How long and how large files may be.

use crate::tree::{File, Finding, Tree};

/// A longer source file has more than one subject.
pub(crate) const MAX_LINES: usize = 600;

/// What is larger belongs into a release, not into every clone.
const MAX_BYTES: usize = 512 * 1024;

fn is_source(file: &File) -> bool {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let script = (file.path.starts_with("scripts/") || file.path.starts_with(".ci/")) && !name.contains('.');
    script
        || [".rs", ".sh", ".py", ".js", ".mjs", ".ts", ".java", ".cql", ".lua"]
            .iter()
            .any(|end| name.ends_with(end))
}

/// Source files have at most [`MAX_LINES`] lines, or exactly those they are listed with.
pub(crate) fn long_files(tree: &Tree, listed: &[(&str, usize)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files().filter(|file| is_source(file)) {
        let lines = file.lines().count();
        let entry = listed.iter().find(|(path, _)| *path == file.path);
        let why = match entry {
            None if lines > MAX_LINES => {
                format!("{lines} lines, at most {MAX_LINES}: it has more than one subject; split it")
            }
            Some((_, most)) if lines > *most => {
                format!("{lines} lines, listed in LONG_FILES with {most}: the list only shrinks; split it")
            }
            Some(_) if lines <= MAX_LINES => format!("{lines} lines, it fits now: take it out of LONG_FILES"),
            Some((_, most)) if lines < *most => {
                format!("it became shorter: lower its number in LONG_FILES from {most} to {lines}")
            }
            _ => continue,
        };
        findings.push(Finding::new(file, lines, why));
    }
    for (path, _) in listed.iter().filter(|(path, _)| tree.file(path).is_none()) {
        let why = "it is gone: take it out of LONG_FILES".to_owned();
        findings.push(Finding { path: (*path).to_owned(), line: 1, why });
    }
    findings
}

/// Nothing tracked is larger than [`MAX_BYTES`].
pub(crate) fn large_files(tree: &Tree) -> Vec<Finding> {
    tree.files()
        .filter(|file| file.tracked && file.size > MAX_BYTES)
        .map(|file| {
            let why = format!("{} bytes, at most {MAX_BYTES}: every clone carries it for ever", file.size);
            Finding::new(file, 1, why)
        })
        .collect()
}

/// `Cargo.lock` is tracked.
pub(crate) fn lock_file(tree: &Tree) -> Vec<Finding> {
    if tree.file("Cargo.lock").is_some_and(|file| file.tracked) {
        return Vec::new();
    }
    let why = "it must be tracked: a binary is built from the versions that were tested".to_owned();
    vec![Finding { path: "Cargo.lock".to_owned(), line: 1, why }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::at;

    #[test]
    fn long_files_are_found_and_the_list_only_shrinks() {
        let text = |lines: usize| "x\n".repeat(lines);
        let (fits, long, longer) = (text(600), text(601), text(700));
        let tree = Tree::with(&[
            ("src/fits.rs", &fits),
            ("src/long.rs", &long),
            ("src/same.rs", &longer),
            ("src/grew.rs", &longer),
            ("src/shrank.rs", &long),
            ("src/mended.rs", &fits),
            ("scripts/test", &long),
            ("docs/protocol.md", &longer),
        ]);
        let listed = [
            ("src/same.rs", 700),
            ("src/grew.rs", 699),
            ("src/shrank.rs", 700),
            ("src/mended.rs", 700),
            ("src/gone.rs", 700),
        ];
        let found = long_files(&tree, &listed);
        assert_eq!(
            at(&found),
            [
                "src/long.rs:601",
                "src/grew.rs:700",
                "src/shrank.rs:601",
                "src/mended.rs:600",
                "scripts/test:601",
                "src/gone.rs:1"
            ]
        );
        assert!(found[2].why.contains("from 700 to 601"), "{}", found[2]);
    }

    #[test]
    fn large_files_are_found() {
        let large = "x".repeat(MAX_BYTES + 1);
        let tree = Tree::with(&[("docs/large.svg", &large), ("docs/fits.svg", &large[1..])]);
        assert_eq!(at(&large_files(&tree)), ["docs/large.svg:1"]);
    }

    #[test]
    fn a_missing_lock_file_is_found() {
        assert_eq!(at(&lock_file(&Tree::with(&[("Cargo.toml", "")]))), ["Cargo.lock:1"]);
        assert!(lock_file(&Tree::with(&[("Cargo.lock", "")])).is_empty());
    }
}
