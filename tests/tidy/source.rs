//! Just enough of Rust's grammar to see which names code uses: comments and literals name nothing.

/// An identifier or a punctuation character, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) line: usize,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Word(String),
    Mark(char),
}

/// A path as code writes it, use trees taken apart: `use a::{b, c::d}` is `a::b` and `a::c::d`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
}

impl Name {
    /// Whether it begins with these segments.
    pub(crate) fn is_under(&self, path: &str) -> bool {
        let mut own = self.segments.iter();
        path.split("::").all(|segment| own.next().is_some_and(|have| have == segment))
    }
}

struct Scanner<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl Scanner<'_> {
    fn next(&mut self) -> Option<char> {
        let char = self.rest.next()?;
        self.line += usize::from(char == '\n');
        Some(char)
    }

    fn peek(&mut self) -> Option<char> {
        self.rest.peek().copied()
    }

    fn peek_second(&self) -> Option<char> {
        self.rest.clone().nth(1)
    }

    fn line_comment(&mut self) {
        while self.peek().is_some_and(|char| char != '\n') {
            self.next();
        }
    }

    fn block_comment(&mut self) {
        self.next();
        let mut depth = 1;
        while depth > 0 {
            match (self.next(), self.peek()) {
                (Some('/'), Some('*')) => {
                    self.next();
                    depth += 1;
                }
                (Some('*'), Some('/')) => {
                    self.next();
                    depth -= 1;
                }
                (None, _) => return,
                _ => {}
            }
        }
    }

    /// What follows an opening quote, up to the closing one.
    fn quoted(&mut self, quote: char) {
        while let Some(char) = self.next() {
            match char {
                '\\' => drop(self.next()),
                _ if char == quote => return,
                _ => {}
            }
        }
    }

    /// What follows `r`: hashes, and a string that ends with as many; or the rest of a raw identifier.
    fn raw(&mut self) -> Option<String> {
        let mut hashes = 0;
        while self.peek() == Some('#') {
            self.next();
            hashes += 1;
        }
        if self.peek() != Some('"') {
            return Some(self.word());
        }
        self.next();
        while let Some(char) = self.next() {
            if char == '"' {
                let mut closing = 0;
                while closing < hashes && self.peek() == Some('#') {
                    self.next();
                    closing += 1;
                }
                if closing == hashes {
                    break;
                }
            }
        }
        None
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(char) = self.peek().filter(|char| is_word(*char)) {
            word.push(char);
            self.next();
        }
        word
    }

    fn number(&mut self) {
        while let Some(char) = self.peek() {
            let fraction = char == '.' && self.peek_second().is_some_and(|next| next.is_ascii_digit());
            if !is_word(char) && !fraction {
                return;
            }
            self.next();
        }
    }

    /// After a `'`: a character, or a lifetime or label.
    fn character_or_lifetime(&mut self) {
        if self.peek() == Some('\\') || self.peek_second() == Some('\'') {
            self.quoted('\'');
        } else {
            self.word();
        }
    }
}

fn is_word(char: char) -> bool {
    char == '_' || char.is_alphanumeric()
}

/// The tokens of a Rust file without comments, literals and lifetimes.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let mut scanner = Scanner { rest: text.chars().peekable(), line: 1 };
    let mut tokens = Vec::new();
    while let Some(char) = scanner.peek() {
        let line = scanner.line;
        if char.is_ascii_digit() {
            scanner.number();
        } else if is_word(char) {
            let word = scanner.word();
            match (word.as_str(), scanner.peek()) {
                ("b" | "c", Some('"')) | ("b", Some('\'')) => {
                    let quote = scanner.next().unwrap_or('"');
                    scanner.quoted(quote);
                }
                ("r" | "br" | "cr", Some('"' | '#')) => {
                    if let Some(word) = scanner.raw() {
                        tokens.push(Token { line, kind: Kind::Word(word) });
                    }
                }
                _ => tokens.push(Token { line, kind: Kind::Word(word) }),
            }
        } else {
            scanner.next();
            match (char, scanner.peek()) {
                ('/', Some('/')) => scanner.line_comment(),
                ('/', Some('*')) => scanner.block_comment(),
                ('"', _) => scanner.quoted('"'),
                ('\'', _) => scanner.character_or_lifetime(),
                _ if char.is_whitespace() => {}
                _ => tokens.push(Token { line, kind: Kind::Mark(char) }),
            }
        }
    }
    tokens
}

/// The words of a Rust file's code, with their lines.
pub(crate) fn words(text: &str) -> impl Iterator<Item = (usize, String)> {
    tokens(text).into_iter().filter_map(|token| match token.kind {
        Kind::Word(word) => Some((token.line, word)),
        Kind::Mark(_) => None,
    })
}

/// The paths of two segments or more that code names, and every path of a `use` or `extern crate`.
pub(crate) fn names(text: &str) -> Vec<Name> {
    let tokens = tokens(text);
    let word = |at: usize| match tokens.get(at).map(|token| &token.kind) {
        Some(Kind::Word(word)) => Some(word.as_str()),
        _ => None,
    };
    let mark = |at: usize| match tokens.get(at).map(|token| &token.kind) {
        Some(Kind::Mark(mark)) => Some(*mark),
        _ => None,
    };
    let colons = |at: usize| mark(at) == Some(':') && mark(at + 1) == Some(':');

    let mut found = Vec::new();
    // Of each open brace: the path before it, if it belongs to a use tree.
    let mut groups: Vec<Option<Vec<String>>> = Vec::new();
    let mut in_use = false;
    let mut at = 0;
    while at < tokens.len() {
        match word(at) {
            Some("use") if mark(at + 1) != Some('<') => in_use = true,
            Some("extern") if word(at + 1) == Some("crate") => {
                in_use = true;
                at += 1;
            }
            Some("as") if in_use => at += 1,
            Some(first) => {
                let line = tokens[at].line;
                let mut segments = groups.last().cloned().flatten().unwrap_or_default();
                segments.push(first.to_owned());
                while let (true, Some(next)) = (colons(at + 1), word(at + 3)) {
                    segments.push(next.to_owned());
                    at += 3;
                }
                if colons(at + 1) && mark(at + 3) == Some('{') {
                    groups.push(Some(segments));
                    at += 3;
                } else if in_use || segments.len() > 1 {
                    found.push(Name { line, segments });
                }
            }
            None => match mark(at) {
                Some('{') => groups.push(None),
                Some('}') => drop(groups.pop()),
                Some(';') => in_use = false,
                _ => {}
            },
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Vec<String> {
        names(text).into_iter().map(|name| name.segments.join("::")).collect()
    }

    #[test]
    fn comments_and_literals_name_nothing() {
        let text = "// a::b\n/* c::d /* e::f */ g::h */ let x = \"i::j \\\" k::l\"; let y = r#\"m::n \" o::p\"#;\n\
                    let z = ('\\'', 'q', b'\"', b\"r::s\", c\"t::u\", 1.5e3, 0..2); fn f<'a>(v: &'a str) {} w::x();";
        assert_eq!(named(text), ["w::x"]);
    }

    #[test]
    fn use_trees_are_taken_apart() {
        let text =
            "use a::{b, c::{d as e, self}, f::*};\nuse {g, h::i}; pub(crate) use j as k; extern crate l;";
        assert_eq!(named(text), ["a::b", "a::c::d", "a::c::self", "a::f", "g", "h::i", "j", "l"]);
        let text = "fn f() -> impl T + use<'static> { x.y } mod m { fn g() { a::b::<C>::d(); ::e::f() } }";
        assert_eq!(named(text), ["a::b", "e::f"]);
    }

    #[test]
    fn lines_are_those_of_the_text() {
        let text = "/* 1\n2 */\nlet s = \"\n\";\nr#a::b();";
        assert_eq!(names(text), [Name { line: 5, segments: vec!["a".into(), "b".into()] }]);
    }
}
