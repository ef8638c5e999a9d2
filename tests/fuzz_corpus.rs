//! Replays the corpus of `tests/fuzz`: what the fuzzers found once must never come back. Around each
//! input it tries seeded mutations, for those who have no fuzzer: `MUTATIONS=n` of each,
//! `MUTATION_SEED=n`.

#[path = "fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

/// The names in a directory, in order.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("a name in UTF-8");
    entries.map(|entry| name(entry.expect("a directory can be listed"))).collect()
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let targets: BTreeSet<String> =
        targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&corpus()), targets);
    let programs = names(&corpus().with_file_name("targets"));
    let programs: BTreeSet<String> =
        programs.iter().map(|name| name.trim_end_matches(".rs").to_owned()).collect();
    assert_eq!(programs, targets);
}

#[test]
fn nothing_in_the_corpus_makes_a_decoder_panic() {
    let mut failures = Vec::new();
    for (target, _) in targets::TARGETS {
        let directory = corpus().join(target);
        let inputs = names(&directory);
        assert!(!inputs.is_empty(), "{target} has no corpus");
        for name in inputs {
            let data = fs::read(directory.join(&name)).expect("the input can be read");
            if catch_unwind(|| targets::run(target, &data)).is_err() {
                failures.push(format!("{target}/{name}"));
            }
        }
    }
    assert!(failures.is_empty(), "panics, see above: {}", failures.join(", "));
}

/// One to four changes of the kinds that break parsers; `other` is another input to splice in.
fn mutated(random: &mut ChaCha8Rng, input: &[u8], other: &[u8]) -> Vec<u8> {
    const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, b'"', b'{'];
    let mut data = input.to_vec();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=data.len());
        let until = data.len().min(at + random.random_range(1..=8));
        match random.random_range(0..6) {
            0 if at < data.len() => data[at] ^= 1 << random.random_range(0..8),
            1 => data[at..until].fill(EDGES[random.random_range(0..EDGES.len())]),
            2 => data.truncate(at),
            3 => drop(data.drain(at..until)),
            4 => {
                let again = data[at..until].to_vec();
                data.splice(at..at, again);
            }
            _ => {
                let from = random.random_range(0..=other.len());
                let length = random.random_range(0..=(other.len() - from).min(64));
                data.splice(at..at, other[from..from + length].iter().copied());
            }
        }
    }
    data
}

#[test]
fn nothing_near_the_corpus_makes_a_decoder_panic() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let count: u64 = number("MUTATIONS").unwrap_or(50);
    let seed = number("MUTATION_SEED").unwrap_or_default();
    let mut failures = Vec::new();
    for (target, _) in targets::TARGETS {
        let directory = corpus().join(target);
        let read = |name: String| fs::read(directory.join(name)).expect("the input can be read");
        let inputs: Vec<Vec<u8>> = names(&directory).into_iter().map(read).collect();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for input in inputs.iter().filter(|input| input.len() < 1 << 16) {
            for _ in 0..count {
                let other = &inputs[random.random_range(0..inputs.len())];
                let data = mutated(&mut random, input, other);
                if catch_unwind(|| targets::run(target, &data)).is_err() {
                    failures.push(format!("{target}: {data:02x?}"));
                    break;
                }
            }
        }
    }
    assert!(failures.is_empty(), "panics, see above:\n{}", failures.join("\n"));
}
