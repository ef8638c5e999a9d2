//! Replays the corpus of `tests/fuzz`: what the fuzzers found once must never come back.

#[path = "fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

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
