//! The repository as a value: what the rules look at.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::process::Command;

/// One file of the repository.
pub(crate) struct File {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    /// Whether git tracks it. What it does not track yet, and does not ignore, is looked at too.
    pub(crate) tracked: bool,
    /// In bytes.
    pub(crate) size: usize,
    /// `None` if it is not UTF-8.
    pub(crate) text: Option<String>,
}

impl File {
    /// Its text by lines, numbered from 1; nothing for a binary file.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.iter().flat_map(|text| text.lines()).enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// All files of the repository.
pub(crate) struct Tree {
    files: Vec<File>,
    places: BTreeSet<String>,
}

impl Tree {
    /// The repository this test was built from.
    pub(crate) fn of_repository() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: String, tracked| {
            let bytes = std::fs::read(root.join(&path)).ok()?;
            Some(File { path, tracked, size: bytes.len(), text: String::from_utf8(bytes).ok() })
        };
        let tracked = listed(root, &["--cached"]).into_iter().filter_map(|path| read(path, true));
        let others = listed(root, &["--others", "--exclude-standard"])
            .into_iter()
            .filter_map(|path| read(path, false));
        Self::new(tracked.chain(others).collect())
    }

    fn new(files: Vec<File>) -> Self {
        let mut places = BTreeSet::new();
        for file in &files {
            for (end, _) in file.path.match_indices('/') {
                places.insert(file.path[..end].to_owned());
            }
            places.insert(file.path.clone());
        }
        Self { files, places }
    }

    /// A tree for the rules' own tests: tracked files with their texts.
    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| File {
            path: (*path).to_owned(),
            tracked: true,
            size: text.len(),
            text: Some((*text).to_owned()),
        };
        Self::new(files.iter().map(file).collect())
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &File> {
        self.files.iter()
    }

    /// Files of Rust code.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files().filter(|file| file.path.ends_with(".rs"))
    }

    pub(crate) fn file(&self, path: &str) -> Option<&File> {
        self.files().find(|file| file.path == path)
    }

    /// Whether there is a file or a directory of that path.
    pub(crate) fn has(&self, path: &str) -> bool {
        path.is_empty() || self.places.contains(path)
    }
}

fn listed(root: &Path, which: &[&str]) -> Vec<String> {
    let output = Command::new("git")
        // The clone may belong to another user than the one that tests it.
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .args(which)
        .current_dir(root)
        .output()
        .expect("git is installed: it says which files there are");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("paths are UTF-8");
    names.split_terminator('\0').map(str::to_owned).collect()
}

/// One place that breaks a rule.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) why: String,
}

impl Finding {
    pub(crate) fn new(file: &File, line: usize, why: impl Into<String>) -> Self {
        Self { path: file.path.clone(), line, why: why.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.why)
    }
}

/// `path:line` of each finding, for the rules' own tests.
pub(crate) fn at(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| format!("{}:{}", finding.path, finding.line)).collect()
}
