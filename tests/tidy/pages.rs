//! Pages that drift: what they name and where they point must be there.

use std::collections::BTreeSet;

use crate::source;
use crate::tree::{File, Finding, Tree};

const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// Directories that a path in the page may begin with.
const ROOTS: &[&str] =
    &["src", "docs", "protocol", "client", "tests", "scripts", "benches", "fuzz", "deploy", ".ci"];

/// The lines of a page outside of fenced code.
fn prose(file: &File) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    file.lines().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// What a line has between backticks.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Every path, file and type that `ARCHITECTURE.md` mentions in backticks exists.
pub(crate) fn architecture(tree: &Tree) -> Vec<Finding> {
    let Some(page) = tree.file(ARCHITECTURE) else {
        let why = "it is missing: the first page a newcomer reads".to_owned();
        return vec![Finding { path: ARCHITECTURE.to_owned(), line: 1, why }];
    };
    let words: BTreeSet<String> = tree
        .rust()
        .flat_map(|file| source::words(file.text.as_deref().unwrap_or_default()))
        .map(|(_, word)| word)
        .collect();
    let mut findings = Vec::new();
    for (number, line) in prose(page) {
        for span in spans(line) {
            if is_path(span) && !tree.has(span.trim_end_matches('/')) {
                findings.push(Finding::new(page, number, format!("`{span}` does not exist")));
            }
            for name in type_names(span).filter(|name| !words.contains(*name)) {
                findings.push(Finding::new(page, number, format!("no code names `{name}`")));
            }
        }
    }
    findings
}

fn is_path(span: &str) -> bool {
    let rooted = span.split_once('/').is_some_and(|(root, _)| ROOTS.contains(&root));
    let file = !span.contains('/') && [".toml", ".md", ".lock", ".rs"].iter().any(|end| span.ends_with(end));
    !span.contains(char::is_whitespace) && (rooted || file)
}

/// The segments of `ConversationCore::apply(..)`; nothing for a span that does not begin with a type's name.
fn type_names(span: &str) -> impl Iterator<Item = &str> {
    let name = span.split('(').next().unwrap_or_default();
    let is_word =
        |text: &str| !text.is_empty() && text.chars().all(|char| char == '_' || char.is_ascii_alphanumeric());
    let is_type = name.starts_with(|char: char| char.is_ascii_uppercase())
        && name.contains(|char: char| char.is_ascii_lowercase())
        && name.split("::").all(is_word);
    name.split("::").filter(move |_| is_type)
}

/// Every relative link between the pages leads to a file or directory, and its anchor to a heading.
pub(crate) fn links(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for page in tree.files().filter(|file| file.path.ends_with(".md")) {
        for (number, line) in prose(page) {
            for target in
                targets(line).filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
            {
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let path = if path.is_empty() { page.path.clone() } else { resolve(&page.path, path) };
                if !tree.has(&path) {
                    findings.push(Finding::new(page, number, format!("the link `{target}` leads nowhere")));
                } else if let Some(other) =
                    tree.file(&path).filter(|file| !anchor.is_empty() && file.path.ends_with(".md"))
                    && !prose(other).any(|(_, line)| heading(line).as_deref() == Some(anchor))
                {
                    findings.push(Finding::new(page, number, format!("`{path}` has no heading `#{anchor}`")));
                }
            }
        }
    }
    findings
}

/// The targets of a line's links, `[text](target)` and `[name]: target`.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let defined =
        line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target.trim());
    let inline = line.match_indices("](").filter_map(|(at, opening)| {
        let rest = &line[at + opening.len()..];
        rest.find([')', ' ']).map(|end| &rest[..end])
    });
    inline.chain(defined)
}

/// A path as seen from the directory of a page.
fn resolve(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

/// The anchor that a heading gets from renderers.
fn heading(line: &str) -> Option<String> {
    let text = line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' ')?;
    let kept = |char: &char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_');
    Some(
        text.trim()
            .to_lowercase()
            .chars()
            .filter(kept)
            .map(|char| if char == ' ' { '-' } else { char })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::at;

    #[test]
    fn a_page_that_names_what_is_gone_is_found() {
        let page = "`src/node.rs` and `src/net/` and `Core::apply(..)`\n`src/gone.rs`\n`gone.toml`\n`Core::gone`\n\
                    `Gone`\n```\n`src/fenced.rs`\n```\n`src/net/{a,b}.rs` `GET /x` `SIGTERM` `g:{id}`\n";
        let tree = Tree::with(&[
            ("ARCHITECTURE.md", page),
            ("src/node.rs", "struct Core; fn apply() {} // Gone, gone"),
            ("src/net/tcp.rs", ""),
        ]);
        let expected = [2, 3, 4, 5, 9].map(|line| format!("ARCHITECTURE.md:{line}"));
        assert_eq!(at(&architecture(&tree)), expected);
        assert_eq!(at(&architecture(&Tree::with(&[]))), ["ARCHITECTURE.md:1"]);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let readme = "[a](docs/a.md) [b](docs/a.md#two-words) [c](https://example.org/x) [d](LICENSE) [e](docs)\n\
                      [a](docs/b.md)\n[b](docs/a.md#three)\n[c]: gone.md\n[d](#here)\n# Here\n[e](#here)";
        let tree = Tree::with(&[
            ("README.md", readme),
            ("docs/a.md", "## Two `words`!\n[up](../README.md)\n[up](README.md)\n```\n# three\n```"),
            ("LICENSE", ""),
        ]);
        let expected = ["README.md:2", "README.md:3", "README.md:4", "docs/a.md:3"];
        assert_eq!(at(&links(&tree)), expected);
    }
}
