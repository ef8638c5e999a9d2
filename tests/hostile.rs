//! Records and files made to hurt: each ends in dead letters or a refusal, in bounded time and
//! memory, and harms nobody else.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use flopwatch::config::Config;
use flopwatch::detector::event::{Header, Record};
use flopwatch::detector::invalid::Reason;
use flopwatch::detector::meter::Meter;
use flopwatch::detector::outbox::{Outbox, Output as Sent};
use flopwatch::detector::time::Timestamp;
use flopwatch::detector::{Stage as _, StageError};

/// Address space of a replay, in KiB: a record takes up to 64 MiB, and its buffer doubles.
const MEMORY_KIB: u32 = 640 << 10;
/// Processor time of a replay, in seconds, without optimisation.
const SECONDS: u32 = 120;
const MIB: usize = 1 << 20;

/// A sound event; its number makes the id.
fn event(number: usize) -> String {
    format!(
        r#"{{"id":"good-{number}","source":"s","account_id":"a","accelerator":"h100","quantity":8,
        "start_time":"2026-01-05T00:00:00Z","end_time":"2026-01-05T01:00:00Z"}}"#
    )
    .replace('\n', "")
}

/// A sound event but for one field.
fn with(field: &str, value: &str) -> Vec<u8> {
    let sound = event(0);
    let at = sound.find(&format!("\"{field}\":")).expect("the field is there");
    let end = at + sound[at..].find([',', '}']).expect("the object ends");
    format!("{}\"{field}\":{value}{}", &sound[..at], &sound[end..]).into_bytes()
}

/// What a hostile producer sends as JSON, and why it is refused.
fn hostile() -> Vec<(Vec<u8>, Reason)> {
    let undecodable = |bytes: Vec<u8>| (bytes, Reason::Undecodable);
    let quantity = |value: &str| (with("quantity", value), Reason::Quantity);
    let long = format!("\"{}\"", "x".repeat(MIB));
    let mut records = vec![
        undecodable(with("quantity", &"[".repeat(MIB))),
        undecodable([b"{\"a\":".repeat(MIB / 5), b"1".to_vec()].concat()),
        undecodable([b"{\"data\":".to_vec(), b"[{\"data\":".repeat(MIB / 9)].concat()),
        undecodable("[".repeat(MIB).into_bytes()),
        undecodable(with("account_id", "\"\u{1}\"")),
        undecodable(with("account_id", r#""\ud800""#)),
        undecodable([&b"{\"id\":\""[..], &[0xFF; 40], b"\"}"].concat()),
        undecodable(b"\x0a\x80\x80\x80\x80\x08".to_vec()),
        undecodable(b"\x0b".repeat(MIB)),
        undecodable(with("quantity", "NaN")),
        undecodable(with("quantity", "-Infinity")),
        undecodable(with("quantity", "{}")),
        quantity("-0.0"),
        quantity("-1"),
        quantity("1e999"),
        quantity("1e999999999999"),
        quantity(&"9".repeat(MIB)),
        quantity("10000000.5"),
        (with("id", &long), Reason::Id),
        (with("source", &long), Reason::Source),
        (with("account_id", &long), Reason::AccountId),
        (with("accelerator", &long), Reason::NameTooLong),
    ];
    for time in ["\"1999-12-31T23:59:59Z\"", "\"2500-01-01T00:00:00Z\"", "\"9999-01-01T00:00:00Z\""]
    {
        records.push((with("start_time", time), Reason::TimeOutOfRange));
    }
    records
}

fn meter() -> (Meter, Outbox) {
    let config = Config::from_text("default", "").expect("defaults are valid");
    (Meter::new(Arc::clone(&config.rules), 0, 1, 1), Outbox::default())
}

fn record<'a>(offset: u64, value: &'a [u8], headers: &'a [Header<'a>]) -> Record<'a> {
    Record { offset, timestamp: None, key: None, value: Some(value), headers }
}

/// The only dead letter's reason, and the size of all that it repeats.
fn dead_letter(outbox: Outbox) -> (Reason, usize) {
    let mut found = None;
    for output in outbox.outputs {
        if let Sent::DeadLetter(letter) = output {
            let headers = letter.headers.iter();
            let size: usize = headers
                .map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len))
                .chain([letter.value.map_or(0, |value| value.len()), letter.invalid.detail.len()])
                .sum();
            assert!(found.is_none(), "one record, one dead letter");
            found = Some((letter.invalid.reason, size));
        }
    }
    found.expect("a dead letter")
}

#[test]
fn a_hostile_record_is_one_dead_letter_of_its_own_size() {
    for (value, reason) in hostile() {
        let start = String::from_utf8_lossy(&value[..value.len().min(60)]).into_owned();
        let (mut meter, mut outbox) = meter();
        meter.process(&record(0, &value, &[]), &mut outbox).expect("a dead letter");
        let (found, size) = dead_letter(outbox);
        assert_eq!(found.name(), reason.name(), "{start}");
        // the detail never repeats a record
        assert!(size < value.len() + 1024, "{size} bytes for {}: {start}", value.len());
    }
}

#[test]
fn lengths_that_lie_reserve_nothing() {
    // a field of 2^31, 2^63 and 2^64 - 1 bytes, in a message, in telemetry, in a frame
    for length in [&b"\x80\x80\x80\x80\x08"[..], &[0x80; 9], &[0xFF; 9]] {
        let last: &[u8] = if length.len() == 9 { b"\x01" } else { b"" };
        let lie = [length, last].concat();
        for prefix in [&b"\x0a"[..], b"\x72\x05\x0a", b"\0\0\0\0\x01\0\x0a", b"\0\0\0\0\x01"] {
            let value = [prefix, &lie].concat();
            let (mut meter, mut outbox) = meter();
            meter.process(&record(0, &value, &[]), &mut outbox).expect("a dead letter");
            assert_eq!(dead_letter(outbox).0.name(), "undecodable", "{value:?}");
        }
    }
}

#[test]
fn ten_thousand_headers_go_whole_to_the_dead_letters() {
    let name = "x".repeat(100);
    let headers = vec![Header { name: &name, value: Some(&[0xFF; 100]) }; 10_000];
    let (mut meter, mut outbox) = meter();
    meter.process(&record(0, b"{", &headers), &mut outbox).expect("a dead letter");
    let (reason, size) = dead_letter(outbox);
    assert_eq!(reason.name(), "undecodable");
    assert!((2_000_000..2_001_024).contains(&size), "{size}");
    // headers that say nothing of the event do not refuse it
    let (sound, mut outbox) = (event(1), Outbox::default());
    meter.process(&record(1, sound.as_bytes(), &headers), &mut outbox).expect("counted");
    assert_eq!(outbox.tally.counted, 1);
}

#[test]
fn a_record_stamped_at_the_end_of_time_is_counted_and_stops_nobody() {
    let (mut meter, mut outbox) = meter();
    let value = event(1);
    for timestamp in [u64::MAX, u64::MAX - 1, 0] {
        let stamped = Record {
            timestamp: Some(Timestamp(timestamp)),
            ..record(u64::MAX - timestamp.max(9), value.as_bytes(), &[])
        };
        meter.process(&stamped, &mut outbox).expect("no fault of the stage");
    }
    let tally = &outbox.tally;
    assert_eq!((tally.counted, tally.duplicate, tally.dead_letter_total()), (1, 1, 1));
}

#[test]
fn the_record_after_too_many_invalid_ones_stops_the_partition_even_after_a_restart() {
    let config = Config::from_text("few", "[dead_letter]\nmax_consecutive = 3\n").expect("valid");
    let new = || Meter::new(Arc::clone(&config.rules), 0, 1, 1);
    let (mut live, mut outbox) = (new(), Outbox::default());
    for offset in 0..3 {
        live.process(&record(offset, b"{", &[]), &mut outbox).expect("a dead letter");
        live.seal(&mut outbox);
        live = new();
        for output in &outbox.outputs {
            if let Sent::Change { key, value } = output {
                live.restore(key, value.as_deref()).expect("our own state");
            }
        }
    }
    let error = live.process(&record(3, b"{", &[]), &mut outbox).expect_err("the fourth");
    assert!(matches!(error, StageError::TooManyInvalid { offset: 3, limit: 3, .. }), "{error}");
    assert_eq!(outbox.tally.dead_letter_total(), 3);
    // a sound record, once the producer is mended, starts anew
    let value = event(1);
    live.process(&record(3, value.as_bytes(), &[]), &mut outbox).expect("counted");
    live.process(&record(4, b"{", &[]), &mut outbox).expect("a dead letter again");
}

/// Runs a replay within `MEMORY_KIB` and `SECONDS`.
fn replay(directory: &Path, arguments: &[&str]) -> Output {
    let limits = format!("ulimit -v {MEMORY_KIB} && ulimit -t {SECONDS} && exec \"$@\"");
    Command::new("sh")
        .args(["-c", &limits, "sh", env!("CARGO_BIN_EXE_flopwatch"), "replay"])
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("the program runs")
}

fn error_of(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).expect("text");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

fn summary(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a summary")
}

#[test]
fn a_replay_of_hostile_lines_counts_every_sound_one_between_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let hostile: Vec<_> = hostile()
        .into_iter()
        .filter(|(value, _)| value.first() == Some(&b'{') && !value.contains(&b'\n'))
        .collect();
    let mut lines = Vec::new();
    for (number, (value, _)) in hostile.iter().enumerate() {
        lines.extend_from_slice(event(number).as_bytes());
        lines.push(b'\n');
        lines.extend_from_slice(value);
        lines.push(b'\n');
    }
    fs::write(directory.path().join("usage.ndjson"), lines).expect("written");
    let summary = summary(&replay(
        directory.path(),
        &["--usage", "usage.ndjson", "--dead-letters", "dead.ndjson", "--summary", "-"],
    ));
    assert_eq!(summary["counted"], hostile.len(), "{summary}");
    assert_eq!(summary["dead_letter"], hostile.len(), "{summary}");
    let letters = fs::read_to_string(directory.path().join("dead.ndjson")).expect("dead letters");
    assert_eq!(letters.lines().count(), hostile.len());
}

/// Writes `count` times `piece`, packed.
fn packed(path: &Path, piece: &[u8], count: usize, zstandard: bool) {
    let file = fs::File::create(path).expect("a file");
    if zstandard {
        let mut writer = zstd::Encoder::new(file, 1).expect("an encoder");
        (0..count).try_for_each(|_| writer.write_all(piece)).expect("packed");
        writer.finish().expect("packed");
    } else {
        let mut writer = GzEncoder::new(file, Compression::fast());
        (0..count).try_for_each(|_| writer.write_all(piece)).expect("packed");
        writer.finish().expect("packed");
    }
}

#[test]
fn a_packed_line_without_an_end_is_refused_in_bounded_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let zeros = vec![b'0'; MIB];
    // unpacked, more than the replay may take
    for (name, zstandard) in [("bomb.ndjson.zst", true), ("bomb.ndjson.gz", false)] {
        let path = directory.path().join(name);
        let count = if zstandard { 2048 } else { 700 };
        packed(&path, &zeros, count, zstandard);
        assert!(fs::metadata(&path).expect("a file").len() < 8 << 20, "{name} is a bomb");
        let error = error_of(&replay(directory.path(), &["--usage", name]));
        assert!(error.contains("line 1") && error.contains("longer than"), "{error}");
    }
}

#[test]
fn packed_garbage_stops_at_the_thousand_and_first_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut line = b"x".repeat(1023);
    line.push(b'\n');
    packed(&directory.path().join("garbage.ndjson.zst"), &line.repeat(1024), 1024, true);
    let error = error_of(&replay(directory.path(), &["--usage", "garbage.ndjson.zst"]));
    assert!(error.contains("garbage.ndjson.zst:1001: 1000 invalid records in a row"), "{error}");
    assert!(error.contains("dead_letter.max_consecutive"), "{error}");
}

#[test]
fn sound_records_of_a_mebibyte_each_are_replayed_in_bounded_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut line, count) = (with("quantity", "8"), 600);
    assert_eq!(line.pop(), Some(b'}'));
    line.extend_from_slice(format!(",\"note\":\"{}\"}}\n", "x".repeat(MIB)).as_bytes());
    packed(&directory.path().join("large.ndjson.zst"), &line, count, true);
    let arguments = ["--usage", "large.ndjson.zst", "--summary", "-"];
    let summary = summary(&replay(directory.path(), &arguments));
    assert_eq!(summary["counted"], 1, "{summary}");
    assert_eq!(summary["duplicate"], count - 1, "{summary}");
}

#[test]
fn a_packed_file_that_asks_for_a_huge_window_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    // a frame whose window is 3.75 TiB
    let frame = [&b"\x28\xb5\x2f\xfd\x00\xff"[..], &[0; 64]].concat();
    fs::write(directory.path().join("window.ndjson.zst"), frame).expect("written");
    let error = error_of(&replay(directory.path(), &["--usage", "window.ndjson.zst"]));
    assert!(error.contains("zstd"), "{error}");
}

#[test]
fn garbage_on_one_partition_changes_no_byte_of_any_output() {
    let directory = tempfile::tempdir().expect("a directory");
    let simulated = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
        .args("simulate --seed 4 --accounts 20 --span 3d --interval 1h --partitions 2".split(' '))
        .args(["--usage", "usage-%.ndjson", "--directory", "accounts.ndjson"])
        .current_dir(directory.path())
        .output()
        .expect("the program runs");
    assert!(simulated.status.success(), "{}", String::from_utf8_lossy(&simulated.stderr));
    let mut files: Vec<String> = fs::read_dir(directory.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| name.starts_with("usage"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 2, "{files:?}");
    let clean = fs::read_to_string(directory.path().join(&files[0])).expect("usage");
    // three of ten lines
    let (mut spoilt, mut garbage) = (String::new(), 0);
    for (number, line) in clean.lines().enumerate() {
        spoilt += line;
        spoilt.push('\n');
        if number % 7 < 3 {
            spoilt += ["{\"id\":7}\n", "\u{fffd}\n", "{\"quantity\":-0.0}\n"][number % 7];
            garbage += 1;
        }
    }
    fs::write(directory.path().join("spoilt.ndjson"), spoilt).expect("written");
    let run = |first: &str, tag: &str| {
        let [alerts, ledger] = ["alerts", "ledger"].map(|name| format!("{tag}.{name}"));
        let output = replay(
            directory.path(),
            &[
                "--accounts",
                "accounts.ndjson",
                "--usage",
                first,
                "--usage",
                &files[1],
                "--alerts",
                &alerts,
                "--ledger",
                &ledger,
                "--summary",
                "-",
            ],
        );
        let read = |name| fs::read(directory.path().join(name)).expect("an output");
        (read(alerts), read(ledger), summary(&output))
    };
    let (alerts, ledger, before) = run(&files[0], "clean");
    let (same_alerts, same_ledger, after) = run("spoilt.ndjson", "spoilt");
    assert!(!alerts.is_empty() && !ledger.is_empty());
    assert!(alerts == same_alerts && ledger == same_ledger, "garbage changed an output");
    assert_eq!(after["counted"], before["counted"]);
    assert_eq!(after["dead_letter"], garbage + before["dead_letter"].as_u64().unwrap_or(0));
}
