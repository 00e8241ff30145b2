//! Who may know whom: which names code may use where.

use crate::source;
use crate::tree::{File, Finding, Tree};

/// A crate (or a module of one) that only some places may name.
struct Place {
    name: &'static str,
    /// Modules (`src/net` is `src/net.rs` and `src/net/`) and directories.
    allowed: &'static [&'static str],
    why: &'static str,
}

const PLACES: &[Place] = &[
    Place {
        name: "scylla",
        allowed: &["src/storage/scylla"],
        why: "the rest knows the storage traits, so that every store serves it alike",
    },
    Place {
        name: "redis",
        allowed: &["src/storage/redis"],
        why: "the rest works without Redis and must not learn that it is there",
    },
    Place {
        name: "fjall",
        allowed: &["src/storage/embedded"],
        why: "the rest knows the storage traits, so that every store serves it alike",
    },
    Place {
        name: "bincode",
        allowed: &["protocol/src/codec"],
        why: "one module pins the format, so that the crate behind it can be replaced: call that one",
    },
    Place {
        name: "tokio::net",
        allowed: &["src/net", "src/cluster", "src/load", "client", "tests"],
        why: "sockets end in the network layer; what is above gets frames and handles",
    },
];

/// Names that a layer must not use, whatever path they come by.
struct Layer {
    modules: &'static [&'static str],
    unknown: &'static [&'static str],
    why: &'static str,
}

const LAYERS: &[Layer] = &[
    Layer {
        modules: &["src/actors"],
        unknown: &["scylla", "redis", "fjall", "TcpStream"],
        why: "actors know the storage traits and the session's handle, not what is behind them",
    },
    Layer {
        modules: &["src/storage", "src/cluster"],
        unknown: &["actors"],
        why: "storage and cluster serve the actors and never call them: hand results to a sink that the node fills in",
    },
];

/// Names that say nothing about what a module does.
const NAMELESS: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "type", "types", "misc", "shared"];

/// Whether a path belongs to a module, `src/net.rs` as well as `src/net/tcp.rs` to `src/net`.
fn is_in(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Crates are named only where [`PLACES`] allows it.
pub(crate) fn places(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        for name in source::names(file.text.as_deref().unwrap_or_default()) {
            for place in PLACES.iter().filter(|place| name.is_under(place.name)) {
                if !place.allowed.iter().any(|module| is_in(&file.path, module)) {
                    let why = format!(
                        "`{}` is named only in {}: {}",
                        place.name,
                        place.allowed.join(", "),
                        place.why
                    );
                    findings.push(Finding::new(file, name.line, why));
                }
            }
        }
    }
    findings
}

/// Layers name nothing that [`LAYERS`] hides from them: not as a word, nor as a part of one.
pub(crate) fn layers(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        for layer in
            LAYERS.iter().filter(|layer| layer.modules.iter().any(|module| is_in(&file.path, module)))
        {
            for (line, word) in source::words(file.text.as_deref().unwrap_or_default()) {
                if layer
                    .unknown
                    .iter()
                    .any(|unknown| word == *unknown || parts(&word).any(|part| part == *unknown))
                {
                    let why =
                        format!("`{word}` is unknown under {}: {}", layer.modules.join(", "), layer.why);
                    findings.push(Finding::new(file, line, why));
                }
            }
        }
    }
    findings
}

/// `ScyllaStore` and `scylla_store` are both `scylla` and `store`.
fn parts(word: &str) -> impl Iterator<Item = String> {
    let mut parts = vec![String::new()];
    for char in word.chars() {
        if char == '_' || char.is_uppercase() {
            parts.push(String::new());
        }
        if let Some(last) = parts.last_mut().filter(|_| char != '_') {
            last.extend(char.to_lowercase());
        }
    }
    parts.into_iter()
}

/// No code is unsafe.
pub(crate) fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        for (line, _) in
            source::words(file.text.as_deref().unwrap_or_default()).filter(|(_, word)| word == "unsafe")
        {
            findings.push(Finding::new(file, line, "the compiler keeps memory safe here, without exception"));
        }
    }
    findings
}

/// Modules are self-named files with a name that says what they do.
pub(crate) fn modules(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        findings.extend(file_name(file));
        let words: Vec<_> = source::words(file.text.as_deref().unwrap_or_default()).collect();
        for pair in words.windows(2).filter(|pair| pair[0].1 == "mod") {
            if NAMELESS.contains(&pair[1].1.as_str()) {
                findings.push(Finding::new(file, pair[1].0, nameless(&pair[1].1)));
            }
        }
    }
    findings
}

fn file_name(file: &File) -> Option<Finding> {
    if file.path.ends_with("/mod.rs") {
        let why =
            "modules are self-named: `storage.rs` beside `storage/`, so that a tab says which one it is";
        return Some(Finding::new(file, 1, why));
    }
    let mut parts = file.path.trim_end_matches(".rs").split('/');
    parts.find(|part| NAMELESS.contains(part)).map(|part| Finding::new(file, 1, nameless(part)))
}

fn nameless(name: &str) -> String {
    format!("`{name}` says nothing: a thing that fits nowhere has not been named yet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::at;

    #[test]
    fn a_crate_out_of_its_place_is_found() {
        let tree = Tree::with(&[
            ("src/node.rs", "// scylla::x\nuse scylla::Session;\nuse crate::storage::scylla::Store;\n"),
            ("src/storage/scylla.rs", "use scylla::Session;"),
            ("src/storage/scylla/rows.rs", "fn f() { scylla::row() }"),
            ("src/storage/scyllabus.rs", "use scylla;"),
            ("src/storage/redis.rs", "use redis as r; use fjall::Keyspace;"),
            ("src/network.rs", "use tokio::{\n    sync,\n    net::TcpStream,\n};"),
            ("src/net/tcp.rs", "use tokio::net::TcpStream;"),
            ("client/src/connection.rs", "let socket = tokio::net::TcpStream::connect(address);"),
            ("protocol/src/codec.rs", "bincode::encode(x)"),
            ("protocol/src/frame.rs", "bincode::encode(x)"),
        ]);
        assert_eq!(
            at(&places(&tree)),
            [
                "src/node.rs:2",
                "src/storage/scyllabus.rs:1",
                "src/storage/redis.rs:1",
                "src/network.rs:3",
                "protocol/src/frame.rs:1"
            ]
        );
    }

    #[test]
    fn a_layer_that_looks_up_is_found() {
        let tree = Tree::with(&[
            ("src/actors.rs", "use crate::storage::Log; fn redistribute() {} // redis"),
            ("src/actors/hub.rs", "use crate::storage::ScyllaStore;\nfn f(socket: TcpStream) {}"),
            ("src/storage.rs", "use crate::{\nactors::Hub};"),
            ("src/cluster/link.rs", "use super::super::actors;"),
            ("src/node.rs", "use crate::actors::NodeActor;"),
        ]);
        let expected =
            ["src/actors/hub.rs:1", "src/actors/hub.rs:2", "src/storage.rs:2", "src/cluster/link.rs:1"];
        assert_eq!(at(&layers(&tree)), expected);
    }

    #[test]
    fn unsafe_code_is_found() {
        let tree =
            Tree::with(&[("src/a.rs", "//! unsafe\n#![forbid(unsafe_code)]\nfn f() { unsafe { g() } }")]);
        assert_eq!(at(&unsafe_code(&tree)), ["src/a.rs:3"]);
    }

    #[test]
    fn modules_without_a_subject_are_found() {
        let tree = Tree::with(&[
            ("src/net/mod.rs", ""),
            ("src/utils.rs", ""),
            ("src/common/clock.rs", ""),
            ("src/lib.rs", "pub mod net;\nmod helpers {}\nmod types;"),
        ]);
        let expected =
            ["src/net/mod.rs:1", "src/utils.rs:1", "src/common/clock.rs:1", "src/lib.rs:2", "src/lib.rs:3"];
        assert_eq!(at(&modules(&tree)), expected);
    }
}
