//! `flopwatch explain`: what it says of a small example, that every alert of a replay is equal, and
//! that a changed number, a lost event and a changed policy are found and named.
//!
//! `UPDATE_GOLDEN=1 cargo test --test cli_explain` writes the example's alerts and text anew; review
//! the difference.

#![allow(dead_code, reason = "the reference model is for other tests; this one takes its worlds")]

#[path = "support/reference/mod.rs"]
mod reference;
#[path = "support/scenario.rs"]
mod scenario;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

fn flopwatch(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flopwatch"));
    command.current_dir(folder).env_clear().args(arguments);
    command.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/explain")
}

/// The example's files in a folder that may be changed.
fn copy() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    for entry in fs::read_dir(example()).expect("the example") {
        let path = entry.expect("a file").path();
        let name = path.file_name().expect("a name");
        fs::copy(&path, folder.path().join(name)).expect("copied");
    }
    folder
}

const FILES: [&str; 6] =
    ["--config", "flopwatch.toml", "--accounts", "accounts.ndjson", "--usage", "usage.ndjson"];

/// Explains an alert of the folder: exit code and what was printed.
fn explain(folder: &Path, more: &[&str]) -> (i32, String) {
    let arguments = [&["explain"], more, &FILES].concat();
    let output = flopwatch(folder, &arguments);
    let code = output.status.code().expect("it ends by itself");
    let error = text(&output.stderr);
    assert_eq!(error.lines().count(), usize::from(code != 0), "{error}");
    (code, text(&output.stdout) + &error)
}

/// The explanation for machines.
fn explanation(folder: &Path, more: &[&str]) -> (i32, Value) {
    let (code, text) = explain(folder, &[more, &["--json"]].concat());
    let line = text.lines().next().unwrap_or_default();
    (code, serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn alerts(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("alerts.ndjson")).expect("alerts");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

#[test]
fn the_example_is_explained_word_for_word() {
    if updating() {
        let arguments = [&["replay"], &FILES[..], &["--alerts", "alerts.ndjson"]].concat();
        assert!(flopwatch(&example(), &arguments).status.success());
    }
    let folder = copy();
    let usage = fs::read_to_string(folder.path().join("usage.ndjson")).expect("usage");
    let lost = usage.lines().filter(|line| !line.contains("\"jade-2-4\""));
    let lost: String = lost.map(|line| line.to_owned() + "\n").collect();
    for (name, lost_event, expected_code) in [("equal", false, 0), ("lost_event", true, 1)] {
        if lost_event {
            fs::write(folder.path().join("usage.ndjson"), &lost).expect("written");
        }
        let (code, said) = explain(folder.path(), &["alerts.ndjson", "--alert", "2"]);
        assert_eq!(code, expected_code, "{said}");
        let golden = example().join(format!("{name}.txt"));
        if updating() {
            fs::write(&golden, &said).expect("written");
        }
        assert_eq!(said, fs::read_to_string(&golden).expect("a golden text"), "{name}");
    }
}

#[test]
fn an_alert_is_chosen_by_number_by_id_and_alone_in_its_file_however_it_is_printed() {
    let folder = copy();
    let all = alerts(folder.path());
    assert!(all.len() > 2, "it fires, goes on and resolves");
    for (index, alert) in all.iter().enumerate() {
        let id = alert["id"].as_str().expect("an id");
        let number = (index + 1).to_string();
        for wanted in [number.as_str(), id] {
            let (code, found) = explanation(folder.path(), &["alerts.ndjson", "--alert", wanted]);
            assert_eq!((code, &found["verdict"]), (0, &Value::from("equal")), "{wanted}: {found}");
            let revision = found["revision"].as_u64();
            assert_eq!(revision, alert["data"]["revision"].as_u64(), "{wanted}");
        }
    }
    let pretty = serde_json::to_string_pretty(&all[0]).expect("JSON");
    fs::write(folder.path().join("one.json"), pretty).expect("written");
    assert_eq!(explain(folder.path(), &["one.json"]).0, 0);
}

#[test]
fn bad_usage_is_exit_code_2_and_what_cannot_be_read_is_1() {
    let folder = copy();
    let (code, said) = explain(folder.path(), &["alerts.ndjson"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("say which with --alert, by number or id"), "{said}");
    for wanted in ["0", "99", "nobody", "nobody/1"] {
        let (code, said) = explain(folder.path(), &["alerts.ndjson", "--alert", wanted]);
        assert_eq!(code, 2, "{said}");
    }
    fs::write(folder.path().join("other.json"), "{\"data\": {\"key\": 1}}").expect("written");
    for file in ["other.json", "none.json"] {
        let (code, said) = explain(folder.path(), &[file]);
        assert_eq!(code, 1, "{said}");
        assert!(said.starts_with(&format!("error: input: {file}")), "{said}");
    }
}

/// Every number of a value: how to reach it.
fn numbers(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(path.to_owned()),
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                numbers(value, &format!("{path}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                numbers(value, &format!("{path}/{index}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[test]
fn every_number_that_is_changed_is_found_and_named() {
    let folder = copy();
    let alert = alerts(folder.path()).swap_remove(0);
    let mut paths = Vec::new();
    numbers(&alert, "", &mut paths);
    assert!(paths.len() > 50, "{paths:?}");
    for path in paths {
        let mut changed = alert.clone();
        let number = changed.pointer_mut(&path).expect("just found");
        *number = match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => (whole + 1).into(),
            (None, Some(value)) => (value * (1.0 + 1e-15)).into(),
            (None, None) => panic!("{path} is neither"),
        };
        fs::write(folder.path().join("changed.json"), changed.to_string()).expect("written");
        let (code, found) = explanation(folder.path(), &["changed.json"]);
        assert_eq!(code, 1, "{path}: {found}");
        let differences = found["differences"].as_array().expect("a list");
        let is_possible = path != "/data/policy/version";
        assert_eq!(found["verdict"] == "not reproducible", !is_possible, "{path}: {found}");
        if path == "/data/revision" {
            // it is compared with the revision that it says it is
            assert!(differences.len() > 20, "{found}");
            continue;
        }
        assert_eq!(differences.len(), usize::from(is_possible), "{path}: {found}");
        if let Some(difference) = differences.first() {
            let last = difference["path"].as_array().expect("a path").last().expect("a name");
            let name = path.rsplit('/').next().expect("a name");
            assert_eq!(last.as_str(), Some(name), "{path}");
        }
    }
}

#[test]
fn a_lost_event_is_named_by_slice_and_resource() {
    let folder = copy();
    let usage = fs::read_to_string(folder.path().join("usage.ndjson")).expect("usage");
    let count = alerts(folder.path()).len();
    let mut seen = 0;
    for lost in usage.lines().filter(|line| line.contains("\"jade-")) {
        let event: Value = serde_json::from_str(lost).expect("JSON");
        let end = event["end_time_unix_nano"].as_i64().expect("nanoseconds");
        let end = jiff::Timestamp::from_nanosecond(end.into()).expect("an instant");
        let rest: String =
            usage.lines().filter(|line| *line != lost).map(|line| line.to_owned() + "\n").collect();
        fs::write(folder.path().join("usage.ndjson"), rest).expect("written");
        let mut found_by_one = false;
        for number in 1..=count {
            let number = number.to_string();
            let (code, found) = explanation(folder.path(), &["alerts.ndjson", "--alert", &number]);
            let differences = found["differences"].to_string();
            let named = differences.contains("by_fabric")
                && differences.contains(event["fabric_id"].as_str().expect("one"))
                && differences.contains(&format!("\"slices\",\"{end}\""));
            assert!(code == 1 || !named, "{found}");
            found_by_one |= named;
        }
        assert!(found_by_one, "{lost}");
        seen += 1;
    }
    assert_eq!(seen, 19, "18 events and a duplicate");
}

#[test]
fn what_the_configuration_no_longer_holds_is_not_reproducible() {
    let folder = copy();
    let config = fs::read_to_string(folder.path().join("flopwatch.toml")).expect("a file");
    let verdict = |from: &str, to: &str| {
        fs::write(folder.path().join("flopwatch.toml"), config.replace(from, to)).expect("written");
        let (code, found) = explanation(folder.path(), &["alerts.ndjson", "--alert", "1"]);
        assert_eq!(code, 1, "{found}");
        (found["verdict"].as_str().expect("text").to_owned(), found.to_string())
    };
    let (kind, said) = verdict("version = 2", "version = 3");
    assert!(kind == "not reproducible" && said.contains("version 3 of training"), "{said}");
    let (kind, said) = verdict("id = \"training\"", "id = \"trains\"");
    assert!(kind == "not reproducible" && said.contains("no policy training"), "{said}");
    let (kind, said) = verdict("report_within = \"15d\"", "report_within = \"16d\"");
    assert!(kind == "not equal" && said.contains("report_due"), "{said}");
    let (kind, said) = verdict("at_least = 1.5e21", "at_least = 1.5e23");
    assert!(kind == "not equal" && said.contains("condition 2 is not met"), "{said}");
    let (kind, said) = verdict("origin = \"foreign\"", "origin = \"unknown\"");
    assert!(kind == "not equal" && said.contains("none that the policy looks at"), "{said}");
}

/// Explains at most `most` alerts of each of a folder's two files, evenly over it; how many.
fn all_are_equal(folder: &Path, usage: &[String], most: usize, what: &str) -> usize {
    let mut count = 0;
    for file in ["alerts", "shadow"] {
        let lines = fs::read_to_string(folder.join(file)).expect("alerts").lines().count();
        for number in (1..=lines).step_by(lines.div_ceil(most).max(1)) {
            let number = number.to_string();
            let mut arguments = vec!["explain", file, "--alert", &number];
            arguments.extend(&FILES[..4]);
            usage.iter().for_each(|name| arguments.extend(["--usage", name]));
            let output = flopwatch(folder, &arguments);
            let said = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{what}, {file} {number}: {said}");
            count += 1;
        }
    }
    count
}

fn replay_alerts(folder: &Path, usage: &[String]) {
    let mut arguments = vec!["replay", "--alerts", "alerts", "--shadow-alerts", "shadow"];
    arguments.extend(&FILES[..4]);
    usage.iter().for_each(|name| arguments.extend(["--usage", name]));
    let output = flopwatch(folder, &arguments);
    assert!(output.status.success(), "{output:?}");
}

/// Late and early events, corrections, garbage, owners and origins that change, every metric.
#[test]
fn alerts_of_seeded_worlds_are_equal() {
    let mut count = 0;
    for seed in 0..16 {
        let folder = TempDir::new().expect("a temporary folder");
        let files = reference::files::write(&scenario::scenario(seed), folder.path());
        let name = |file: &PathBuf| file.display().to_string();
        let usage: Vec<String> = files.iter().map(name).collect();
        replay_alerts(folder.path(), &usage);
        count += all_are_equal(folder.path(), &usage, 6, &format!("seed {seed}"));
    }
    assert!(count >= 50, "{count} alerts in 16 worlds");
}

const LOW: &str = r#"
[run]
min_accelerators = 16
max_gap = "24h"
[[policy]]
id = "account"
severity = "info"
origin = "foreign"
window = "24h"
[[policy.all]]
metric = "flop_high"
at_least = 3e22
[[policy]]
id = "site"
severity = "info"
scope = "site"
window = "12h"
mode = "shadow"
[[policy.all]]
metric = "sustained"
accelerators = 500
at_least = 0.9
[[policy]]
id = "owner"
severity = "info"
scope = "owner"
origin = "foreign"
renotify = "24h"
[[policy.all]]
metric = "run_flop"
at_least = 5e22
[[policy]]
id = "country"
severity = "info"
scope = "country"
window = "24h"
[[policy.all]]
metric = "accelerator_hours"
at_least = 5000
"#;

#[test]
fn every_alert_of_a_simulated_cloud_is_equal() {
    let folder = TempDir::new().expect("a temporary folder");
    fs::write(folder.path().join("flopwatch.toml"), LOW).expect("written");
    let arguments = "simulate --seed 5 --accounts 20 --span 3d --interval 1h --partitions 2 --usage \
                     usage-%.ndjson --directory accounts.ndjson";
    let arguments: Vec<&str> = arguments.split(' ').collect();
    assert!(flopwatch(folder.path(), &arguments).status.success());
    let usage = ["usage-0.ndjson", "usage-1.ndjson"].map(str::to_owned);
    replay_alerts(folder.path(), &usage);
    let count = all_are_equal(folder.path(), &usage, usize::MAX, "the cloud");
    assert!(count >= 10, "{count} alerts");
}
