//! The fuzz targets on a stable toolchain: a fixed number of inputs, made from the golden frames by a seeded mutator,
//! so that any failure repeats. `fuzz/` runs the same targets under libFuzzer for as long as one likes.
//!
//! `CONVOKE_FUZZ_ITERATIONS` and `CONVOKE_FUZZ_SEED` set how many and which.

#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/targets.rs"]
mod targets;

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use mutate::Mutator;

/// Enough to notice a decoder that trusts its input, and done in a moment.
const ITERATIONS: u64 = 20_000;
const SEED: u64 = 0x00c0_ffee;

fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}"))
}

/// The frames of a golden file, without the framing of a transport.
fn corpus(file: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    let text = std::fs::read_to_string(&path).expect("the golden file can be read");
    let frames: Vec<_> =
        text.lines().map(|line| if file.ends_with(".hex") { bytes(line) } else { line.into() }).collect();
    assert!(!frames.is_empty(), "{file} is empty");
    frames
}

/// The bytes of a line `number name hex`.
fn bytes(line: &str) -> Vec<u8> {
    let hex = line.rsplit(' ').next().unwrap_or_default();
    let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("the golden file holds hex");
    (0..hex.len()).step_by(2).map(pair).collect()
}

/// Gives `target` every input of the corpus and then `iterations` mutated ones; a panic is told with what repeats it.
fn drive(seed: u64, iterations: u64, corpus: &[Vec<u8>], target: impl Fn(&[u8])) {
    let mut mutator = Mutator::new(seed);
    let inputs = corpus.iter().cloned().map(Some).chain((0..iterations).map(|_| None));
    for (number, given) in inputs.enumerate() {
        let input = given.unwrap_or_else(|| mutator.input(corpus));
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let hex = input.iter().fold(String::new(), |mut text, byte| {
                write!(text, "{byte:02x}").expect("writing to memory");
                text
            });
            panic!("input {number} of CONVOKE_FUZZ_SEED={seed} fails: {hex}");
        }
    }
}

fn run(file: &str, target: fn(&[u8])) {
    let (seed, iterations) =
        (setting("CONVOKE_FUZZ_SEED", SEED), setting("CONVOKE_FUZZ_ITERATIONS", ITERATIONS));
    drive(seed, iterations, &corpus(file), target);
}

#[test]
fn requests_in_bincode() {
    run("frames.hex", targets::request_bincode);
}

#[test]
fn requests_in_json() {
    run("frames.json", targets::request_json);
}

#[test]
fn what_clients_receive_in_bincode() {
    run("frames.hex", targets::incoming_bincode);
}

#[test]
fn what_clients_receive_in_json() {
    run("frames.json", targets::incoming_json);
}

#[test]
#[should_panic(expected = "CONVOKE_FUZZ_SEED=1 fails")]
fn a_decoder_that_trusts_a_length_is_caught() {
    let corpus = [vec![3, b'a', b'b', b'c']];
    drive(1, 1_000, &corpus, |input| {
        if let [length, rest @ ..] = input {
            assert!(usize::from(*length) <= rest.len(), "the length is believed");
        }
    });
}

#[test]
fn a_seed_gives_the_same_inputs_again() {
    let corpus = corpus("frames.hex");
    let inputs = |seed| {
        let mut mutator = Mutator::new(seed);
        (0..100).map(|_| mutator.input(&corpus)).collect::<Vec<_>>()
    };
    assert_eq!(inputs(7), inputs(7));
    assert_ne!(inputs(7), inputs(8));
}
