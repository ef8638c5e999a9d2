//! `flopwatch replay` as its users meet it: what each output holds, what damaged input gets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use flopwatch::record_file::RecordWriter;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde_json::Value;
use tempfile::TempDir;

/// 2026-03-01T00:00:00Z in seconds.
const START: u64 = 1_772_323_200;

const CONFIG: &str = r#"
[[policy]]
id = "many"
version = 1
title = "Many accelerators"
severity = "warning"
scope = "account"
origin = "foreign"
window = "2h"
[[policy.all]]
metric = "accelerators"
at_least = 100
"#;

const ACCOUNTS: &str = "{\"account_id\":\"acme\",\"country\":\"CN\"}\n\
                        {\"account_id\":\"home\",\"country\":\"US\"}\n";

/// One hourly event.
struct Event {
    id: String,
    account: &'static str,
    quantity: f64,
    start: i64,
    end: i64,
}

impl Event {
    fn json(&self) -> String {
        format!(
            r#"{{"id":"{}","source":"meter","account_id":"{}","region":"eu","accelerator":"nvidia-h100-sxm","quantity":{},"start_time_unix_nano":{},"end_time_unix_nano":{}}}"#,
            self.id, self.account, self.quantity, self.start, self.end
        )
    }
}

/// Two accounts for twelve hours; the foreign one stops after eight.
fn events() -> Vec<Event> {
    let nanos = |hours: u64| i64::try_from((START + hours * 3600) * 1_000_000_000).expect("small");
    let mut events = Vec::new();
    for hour in 0..12 {
        for (account, quantity) in [("acme", 128.5), ("home", 256.0)] {
            if account == "home" || hour < 8 {
                let id = format!("{account}-{hour}");
                let (start, end) = (nanos(hour), nanos(hour + 1));
                events.push(Event { id, account, quantity, start, end });
            }
        }
    }
    events
}

fn ndjson() -> String {
    events().iter().map(|event| event.json() + "\n").collect()
}

struct Scratch(TempDir);

impl Scratch {
    /// With a configuration and accounts.
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir().expect("a directory"));
        scratch.file("flopwatch.toml", CONFIG.as_bytes());
        scratch.file("accounts.ndjson", ACCOUNTS.as_bytes());
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("written");
        path
    }

    /// As `RecordWriter` encodes and compresses by the file's name.
    fn records(&self, name: &str, values: &[Vec<u8>]) -> PathBuf {
        let path = self.path(name);
        let mut writer = RecordWriter::create(&path).expect("created");
        for value in values {
            writer.write(value).expect("written");
        }
        writer.finish().expect("finished");
        path
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a text file")
    }

    /// Replays with the configuration and accounts of this directory, which relative names are of.
    fn replay(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flopwatch"));
        command.current_dir(self.0.path()).env_clear().args(["replay", "--config"]);
        command.args(["flopwatch.toml", "--accounts", "accounts.ndjson"]).args(arguments);
        command.output().expect("the program starts")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

fn succeeded(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

/// The one line of a failure.
fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let error = text(&output.stderr);
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn the_summary_adds_up_and_has_the_fields_of_the_contract_in_their_order() {
    let scratch = Scratch::new();
    let mut events = events();
    let mut lines = ndjson();
    lines += &(events[23 - 4].json() + "\n\n");
    lines += "not json\n{\"id\":7}\n";
    let early = events.swap_remove(0);
    lines += &(Event { id: "too-late".into(), ..early }.json() + "\n");
    scratch.file("usage.ndjson", lines.as_bytes());
    let printed = succeeded(&scratch.replay(&["--usage", "usage.ndjson"]));
    let expected = r#"{"read":24,"counted":20,"duplicate":1,"dead_letter":3,"late":0,"alerts":{"firing":1,"updated":0,"resolved":1},"dead_letters":{"beyond_horizon":1,"undecodable":2}}"#;
    assert_eq!(printed.trim_end(), expected);
    let summary: Value = serde_json::from_str(&printed).expect("JSON");
    let count = |name: &str| summary[name].as_u64().expect("a count");
    assert_eq!(count("read"), count("counted") + count("duplicate") + count("dead_letter"));
    let reasons = summary["dead_letters"].as_object().expect("a map");
    let by_reason: u64 = reasons.values().filter_map(Value::as_u64).sum();
    assert_eq!(by_reason, count("dead_letter"));
}

#[test]
fn a_dead_letter_names_reason_file_and_line_and_keeps_the_value() {
    let scratch = Scratch::new();
    let usage = ndjson() + "\n[1, 2]\n{\"id\":7}\n";
    scratch.file("usage.ndjson", usage.as_bytes());
    scratch.records("more.pb", &[b"\xff\xfe".to_vec()]);
    let arguments = ["--usage", "usage.ndjson", "--usage", "more.pb", "--dead-letters", "dead"];
    succeeded(&scratch.replay(&arguments));
    let mut lines: Vec<String> = scratch.text("dead").lines().map(str::to_owned).collect();
    lines.sort_by_key(|line| line.contains("more.pb"));
    let detail = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["detail"].as_str().expect("text").to_owned()
    };
    let expected = [
        r#"{"reason":"undecodable","detail":"the line is no JSON object","file":"usage.ndjson","line":22,"value":"[1, 2]"}"#.to_owned(),
        r#"{"reason":"undecodable","detail":"json: id must be a string, found 7","file":"usage.ndjson","line":23,"value":"{\"id\":7}"}"#.to_owned(),
        format!(
            r#"{{"reason":"undecodable","detail":"{}","file":"more.pb","line":1,"value":"//4=","encoding":"base64"}}"#,
            detail(&lines[2])
        ),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_missing_file_is_one_line_and_exit_code_1() {
    let scratch = Scratch::new();
    scratch.file("usage.ndjson", ndjson().as_bytes());
    let error = failed(&scratch.replay(&["--usage", "none.ndjson"]));
    assert!(error.starts_with("error: input: none.ndjson: cannot be opened: No such"), "{error}");
    let error = failed(&scratch.replay(&["--usage", "usage.ndjson", "--accounts", "none.ndjson"]));
    assert!(error.starts_with("error: input: none.ndjson: cannot be opened"), "{error}");
    let error = failed(&scratch.replay(&["--usage", "usage.ndjson", "--alerts", "no/such/place"]));
    assert!(error.starts_with("error: input: no/such/place: cannot be written"), "{error}");
    let usage = scratch.replay(&[]);
    assert_eq!(usage.status.code(), Some(2), "no usage file: {usage:?}");
}

#[test]
fn a_truncated_file_is_one_line_that_names_it_and_exit_code_1() {
    let scratch = Scratch::new();
    let values: Vec<Vec<u8>> = events().iter().map(|event| event.json().into_bytes()).collect();
    scratch.file("whole.parquet", &parquet_file());
    for (whole, cut, part) in [
        ("whole.ndjson.gz", "cut.ndjson.gz", "truncated"),
        ("whole.ndjson.zst", "cut.ndjson.zst", "truncated"),
        ("whole.pb", "cut.pb", "truncated"),
        ("whole.parquet", "cut.parquet", "not a whole Parquet file"),
    ] {
        if whole != "whole.parquet" {
            scratch.records(whole, &values);
        }
        let bytes = fs::read(scratch.path(whole)).expect("just written");
        scratch.file(cut, &bytes[..bytes.len() - 20]);
        let error = failed(&scratch.replay(&["--usage", cut]));
        assert!(error.starts_with(&format!("error: input: {cut}: ")), "{error}");
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_unreadable_account_is_one_line_with_file_and_line() {
    let scratch = Scratch::new();
    scratch.file("usage.ndjson", ndjson().as_bytes());
    for (line, detail) in [
        ("null", "the line is no JSON object"),
        ("{\"country\":\"CN\"}", "account_id"),
        ("{\"account_id\":1}", "account_id"),
        ("{\"account_id\":\"x\"", "json"),
    ] {
        scratch.file("more.ndjson", format!("{ACCOUNTS}\n{line}\n").as_bytes());
        let error =
            failed(&scratch.replay(&["--usage", "usage.ndjson", "--accounts", "more.ndjson"]));
        assert!(error.starts_with("error: input: more.ndjson:4: this is no account: "), "{error}");
        assert!(error.contains(detail), "{error}");
    }
}

#[test]
fn too_many_invalid_lines_in_a_row_stop_before_the_next() {
    let scratch = Scratch::new();
    let flood = "garbage\n".repeat(1000);
    scratch.file("usage.ndjson", format!("{}{flood}", ndjson()).as_bytes());
    let printed = succeeded(&scratch.replay(&["--usage", "usage.ndjson"]));
    assert!(printed.contains("\"dead_letter\":1000,"), "exactly the limit passes: {printed}");

    scratch.file("usage.ndjson", format!("{}{flood}garbage\n", ndjson()).as_bytes());
    let error = failed(&scratch.replay(&["--usage", "usage.ndjson", "--dead-letters", "dead"]));
    let expected = "error: input: usage.ndjson:1021: 1000 invalid records in a row before this one \
                    (undecodable: the line is no JSON object): mend the file or input.format, or \
                    raise dead_letter.max_consecutive\n";
    assert_eq!(error, expected);
    assert_eq!(scratch.text("dead").lines().count(), 1000, "those before it are kept");
}

#[test]
fn a_dash_is_standard_output() {
    let scratch = Scratch::new();
    scratch.file("usage.ndjson", (ndjson() + "garbage\n").as_bytes());
    let files = ["alerts", "dead-letters", "ledger", "summary"];
    let options: Vec<String> = files.iter().map(|name| format!("--{name}")).collect();
    let mut arguments = vec!["--usage", "usage.ndjson"];
    for (option, file) in options.iter().zip(files) {
        arguments.extend([option.as_str(), file]);
    }
    assert_eq!(succeeded(&scratch.replay(&arguments)), "", "files were asked for");
    for (option, file) in options.iter().zip(files) {
        let printed = succeeded(&scratch.replay(&["--usage", "usage.ndjson", option, "-"]));
        assert!(!printed.is_empty(), "{file}");
        assert_eq!(printed, scratch.text(file));
    }
}

#[test]
fn every_kind_of_file_gives_the_same_alerts_and_ledger() {
    let scratch = Scratch::new();
    let values: Vec<Vec<u8>> = events().iter().map(|event| event.json().into_bytes()).collect();
    scratch.file("plain.ndjson", ndjson().as_bytes());
    let outputs = |usage: &Path| {
        let usage = usage.to_str().expect("UTF-8");
        let arguments = ["--usage", usage, "--alerts", "alerts", "--ledger", "ledger"];
        succeeded(&scratch.replay(&arguments));
        (scratch.text("alerts"), scratch.text("ledger"))
    };
    let expected = outputs(&scratch.path("plain.ndjson"));
    assert_eq!(expected.0.lines().count(), 2, "fires and resolves");
    // acme 8 slices, home 12, by account, owner and country
    assert_eq!(expected.1.lines().count(), 3 * (8 + 12));
    for name in ["usage.ndjson.zst", "usage.ndjson.gz", "usage.pb", "usage.pb.zst"] {
        assert_eq!(outputs(&scratch.records(name, &values)), expected, "{name}");
    }
    let parquet = scratch.file("usage.parquet", &parquet_file());
    assert_eq!(outputs(&parquet), expected, "Parquet");
}

/// The same events, a column for each field.
fn parquet_file() -> Vec<u8> {
    const SCHEMA: &str = "message usage {
        required binary id (UTF8);
        required binary source (UTF8);
        required binary account_id (UTF8);
        required binary region (UTF8);
        required binary accelerator (UTF8);
        required double quantity;
        required int64 start_time_unix_nano;
        required int64 end_time_unix_nano;
    }";
    let schema = Arc::new(parse_message_type(SCHEMA).expect("a schema"));
    let mut bytes = Vec::new();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut file = SerializedFileWriter::new(&mut bytes, schema, properties).expect("a writer");
    let mut group = file.next_row_group().expect("a row group");
    let events = events();
    texts(&mut group, events.iter().map(|event| event.id.clone()));
    texts(&mut group, events.iter().map(|_| "meter".into()));
    texts(&mut group, events.iter().map(|event| event.account.into()));
    texts(&mut group, events.iter().map(|_| "eu".into()));
    texts(&mut group, events.iter().map(|_| "nvidia-h100-sxm".into()));
    let mut column = group.next_column().expect("a column").expect("another column");
    let quantities: Vec<f64> = events.iter().map(|event| event.quantity).collect();
    column.typed::<DoubleType>().write_batch(&quantities, None, None).expect("doubles");
    column.close().expect("closed");
    for instant in [|event: &Event| event.start, |event: &Event| event.end] {
        let instants: Vec<i64> = events.iter().map(instant).collect();
        let mut column = group.next_column().expect("a column").expect("another column");
        column.typed::<Int64Type>().write_batch(&instants, None, None).expect("integers");
        column.close().expect("closed");
    }
    group.close().expect("closed");
    file.close().expect("closed");
    bytes
}

fn texts(
    group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    texts: impl Iterator<Item = String>,
) {
    let texts: Vec<ByteArray> = texts.map(|text| text.as_str().into()).collect();
    let mut column = group.next_column().expect("a column").expect("another column");
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).expect("texts");
    column.close().expect("closed");
}
