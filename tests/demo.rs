//! `flopwatch demo`, run as a user runs it, only faster.

use std::process::Command;

#[test]
fn the_demo_prints_alerts_from_the_real_pipeline_and_a_summary_that_adds_up() {
    let output = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
        .args(["demo", "--days", "5", "--speed", "240"])
        .output()
        .expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}\n{text}");
    for expected in [
        "WARNING   A foreign account has held 512 accelerators for 72 hours",
        "who        Falcon Ridge Models FZ (account acct-000001)",
        "from       CN, foreign by ultimate_parent_country (country US",
        "why        sustained over 72h is",
        "What was simulated, and what was said about it",
    ] {
        assert!(text.contains(expected), "{expected}: {text}\n{error}");
    }
    assert!(!text.contains('\x1b'), "no colours into a pipe");

    let line = text.lines().find(|line| line.contains("events read =")).expect("the counts");
    let numbers: Vec<u64> =
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    let [read, counted, duplicates, dead_letters, _late] = numbers[..] else {
        panic!("five counts: {line}");
    };
    assert_eq!(read, counted + duplicates + dead_letters);
    assert_eq!(dead_letters, 0);
    assert!(duplicates > 0 && counted > 50_000, "{line}");
}
