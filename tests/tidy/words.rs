//! Words that no file of the repository contains.

use crate::tree::{Finding, Tree};

struct Word {
    text: &'static str,
    why: &'static str,
}

const LATER: &str = "do it now, or write down where users read it that it is not there";
const MACHINE: &str = "a path of one machine means nothing on another";
const ELSEWHERE: &str = "a reader of the repository cannot open it: say it here";

// Written in pieces, so that this file does not contain them.
const WORDS: &[Word] = &[
    Word { text: concat!("TO", "DO"), why: LATER },
    Word { text: concat!("FIX", "ME"), why: LATER },
    Word { text: concat!("X", "XX"), why: LATER },
    Word { text: concat!("Co-", "authored"), why: "who wrote what is in the history" },
    Word { text: concat!("/wo", "rk/"), why: MACHINE },
    Word { text: concat!("/ro", "ot/"), why: MACHINE },
    Word { text: concat!("/ho", "me/"), why: MACHINE },
    Word { text: concat!("/Us", "ers/"), why: MACHINE },
    Word { text: concat!("design", ".md"), why: ELSEWHERE },
    Word { text: concat!("style", ".md"), why: ELSEWHERE },
];

/// No file contains one of [`WORDS`] as a word of its own, nor names an issue by number.
pub(crate) fn unwanted(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files() {
        for (number, line) in file.lines() {
            for word in WORDS.iter().filter(|word| contains(line, word.text)) {
                findings.push(Finding::new(file, number, format!("`{}`: {}", word.text, word.why)));
            }
            if names_an_issue(line) {
                findings.push(Finding::new(file, number, format!("an issue by its number: {ELSEWHERE}")));
            }
        }
    }
    findings
}

/// Whether a line has the text with nothing before or after it that would make it part of a longer word or path.
fn contains(line: &str, text: &str) -> bool {
    let part = |char: char| char.is_alphanumeric() || char == '_';
    line.match_indices(text).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + text.len()..].chars().next());
        if text.starts_with('/') {
            return !before.is_some_and(|char| part(char) || matches!(char, '.' | '-' | '}' | ')' | '/'));
        }
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

/// `issue` and a tracker's short name for one: a letter and a number, or a number.
fn names_an_issue(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).any(|pair| {
        let noun = pair[0].trim_start_matches(|char: char| !char.is_alphanumeric()).to_ascii_lowercase();
        let name = pair[1].trim_matches(|char: char| !char.is_alphanumeric());
        let digits = |text: &str| !text.is_empty() && text.chars().all(|char| char.is_ascii_digit());
        let short = name.starts_with(|char: char| char.is_ascii_uppercase()) && digits(&name[1..]);
        (noun == "issue" && (short || digits(name))) || (noun == "issues" && short)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::at;

    #[test]
    fn each_word_is_found() {
        for word in WORDS {
            let text = format!(
                "first line\nsecond ({}x is not it) {} line\n",
                word.text.trim_end_matches('/'),
                word.text
            );
            assert_eq!(at(&unwanted(&Tree::with(&[("docs/a.md", &text)]))), ["docs/a.md:2"], "{}", word.text);
        }
    }

    #[test]
    fn a_part_of_a_longer_path_or_word_is_no_finding() {
        let text = format!("app{} {}S x{}y\n", WORDS[4].text, WORDS[0].text, WORDS[0].text);
        assert!(unwanted(&Tree::with(&[("docs/a.md", &text)])).is_empty());
    }

    #[test]
    fn an_issue_by_its_number_is_found() {
        let noun = "issue";
        for text in [format!("see {noun} A1."), format!("({noun} #12)"), format!("{noun}s B1 and B2")] {
            assert_eq!(at(&unwanted(&Tree::with(&[("src/a.rs", &text)]))), ["src/a.rs:1"], "{text}");
        }
        let text = "the node issues 2 tokens; fjall#304; the issue is known";
        assert!(unwanted(&Tree::with(&[("src/a.rs", text)])).is_empty());
    }
}
