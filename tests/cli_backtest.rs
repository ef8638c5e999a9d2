//! `flopwatch backtest` and `flopwatch policies diff`: what is new, lost and changed on a history
//! whose answers are known, and what labels make of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use flopwatch::simulate::publish::Publisher;
use rdkafka::mocking::MockCluster;
use serde_json::Value;
use tempfile::TempDir;

/// 2026-03-01T00:00:00Z in seconds.
const START: u64 = 1_772_323_200;

fn flopwatch(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flopwatch"));
    command.current_dir(folder).env_clear().args(arguments);
    command.output().expect("the program starts")
}

fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = flopwatch(folder, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(folder: &Path, arguments: &[&str]) -> Value {
    let text = printed(folder, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn refused(folder: &Path, arguments: &[&str], part: &str) {
    let output = flopwatch(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(error.contains(part), "{error}");
}

fn policy(id: &str, version: u32, scope: &str, at_least: f64) -> String {
    format!(
        "[[policy]]\nid = \"{id}\"\nversion = {version}\nseverity = \"info\"\nscope = \"{scope}\"\n\
         origin = \"foreign\"\nwindow = \"2h\"\n[[policy.all]]\nmetric = \"accelerators\"\n\
         at_least = {at_least}\n"
    )
}

/// Five foreign accounts, from the hour on, with so many accelerators; `e` and `f` are one owner's.
const USED: [(&str, u64, u32); 6] =
    [("a", 0, 100), ("b", 0, 200), ("c", 0, 300), ("d", 4, 400), ("e", 0, 60), ("f", 0, 60)];

fn history() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let write = |name: &str, text: String| {
        fs::write(folder.path().join(name), text).expect("the folder can be written");
    };
    let mut usage = String::new();
    let mut accounts = String::new();
    let mut truth = "account,scenario,owner,foreign,flop_gflop\n".to_owned();
    for hour in 0..10 {
        for (account, from, quantity) in USED {
            // b pauses for three hours
            if hour < from || (account == "b" && (4..7).contains(&hour)) {
                continue;
            }
            let (start, end) = (START + hour * 3600, START + (hour + 1) * 3600);
            usage += &format!(
                "{{\"id\":\"{account}{hour}\",\"source\":\"m\",\"account_id\":\"{account}\",\
                 \"accelerator\":\"nvidia-h100-sxm\",\"quantity\":{quantity},\
                 \"start_time_unix_nano\":{start}000000000,\"end_time_unix_nano\":{end}000000000}}\n"
            );
        }
    }
    for (account, from, quantity) in USED {
        let owner = if account == "e" || account == "f" { "ef" } else { account };
        accounts += &format!(
            "{{\"account_id\":\"{account}\",\"owner_id\":\"{owner}\",\"country\":\"CN\"}}\n"
        );
        // 0.33 of 989.4 TFLOP/s
        let hours = if account == "b" { 7 } else { 10 - from };
        let gflop = u64::from(quantity) * hours * 3600 * 326_502;
        let scenario = if account < "c" { "inference" } else { "steady-training" };
        truth += &format!("{account},{scenario},{owner},true,{gflop}\n");
    }
    write("usage.ndjson", usage);
    write("accounts.ndjson", accounts);
    write("truth.csv", truth);
    let current = [policy("size", 1, "account", 250.0), policy("other", 1, "country", 1.0)];
    write("current.toml", current.concat());
    write(
        "candidate.toml",
        policy("size", 2, "account", 150.0) + &policy("owners", 1, "owner", 110.0),
    );
    folder
}

const FILES: [&str; 8] = [
    "backtest",
    "--config",
    "current.toml",
    "--accounts",
    "accounts.ndjson",
    "--usage",
    "usage.ndjson",
    "--policies",
];

fn keys(list: &Value) -> Vec<String> {
    let key = |change: &Value| {
        format!(
            "{} {}",
            change["scope"].as_str().expect("one"),
            change["key"].as_str().expect("one")
        )
    };
    list.as_array().expect("a list").iter().map(key).collect()
}

#[test]
fn new_lost_and_changed_alerts_are_told_by_policy_and_key() {
    let folder = history();
    let forward = json(folder.path(), &[&FILES[..], &["candidate.toml"]].concat());
    let size = &forward["policies"][0];
    assert_eq!(size["policy"], "size");
    assert_eq!(keys(&size["new"]), ["account b"]);
    assert_eq!(keys(&size["lost"]), [""; 0]);
    // 300 accelerators fill an hour of two at 150, and not at 250
    assert_eq!(keys(&size["changed"]), ["account c", "account d"]);
    let c = &size["changed"][0];
    assert_eq!(c["current"]["first_at"], "2026-03-01T02:00:00Z");
    assert_eq!(c["candidate"]["first_at"], "2026-03-01T01:00:00Z");
    assert_eq!(c["candidate"]["hours_from_first_usage"], 1.0);
    let b = &size["new"][0]["candidate"];
    assert_eq!(
        (&b["alerts"], &b["revisions"]),
        (&2.into(), &3.into()),
        "its pause ends an episode"
    );
    let owners = &forward["policies"][1];
    assert_eq!(owners["current"], Value::Null);
    assert!(keys(&owners["new"]).contains(&"owner ef".to_owned()), "{owners}");
    assert_eq!(forward["only_current"][0]["policy"], "other");

    fs::write(folder.path().join("higher.toml"), policy("size", 2, "account", 350.0))
        .expect("written");
    let backward = json(folder.path(), &[&FILES[..], &["higher.toml"]].concat());
    assert_eq!(keys(&backward["policies"][0]["lost"]), ["account c"]);
    let same = json(folder.path(), &[&FILES[..], &["current.toml"]].concat());
    for policy in same["policies"].as_array().expect("two") {
        assert_eq!(policy["is_same_wording"], true);
        let differing = ["new", "lost", "changed"].map(|kind| keys(&policy[kind]).len());
        assert_eq!(differing, [0, 0, 0], "{policy}");
        assert!(policy["same"].as_u64() > Some(0), "{policy}");
    }
}

#[test]
fn the_text_says_what_the_json_says() {
    let folder = history();
    let arguments = [&FILES[..], &["candidate.toml", "--labels", "truth.csv"]].concat();
    let said = printed(folder.path(), &arguments);
    for part in [
        "size: version 2 against version 1",
        "account b: 2 alerts, the first at 2026-03-01 02:00, 2 h after its first usage",
        "1 h earlier",
        "owners: version 1, which is new",
        "not in the candidate, so not compared",
        "3 owners of 6 labelled accounts are to be found",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn labels_give_precision_recall_and_the_share_spent() {
    let folder = history();
    let arguments = [&FILES[..], &["candidate.toml", "--labels", "truth.csv"]].concat();
    let found = json(folder.path(), &arguments);
    let (current, candidate) = (&found["labels"]["current"], &found["labels"]["candidate"]);
    // c and d are alerted on, ef is missed
    assert_eq!((&current["keys"], &current["true_keys"]), (&2.into(), &2.into()));
    assert_eq!((&current["found"], &current["runs"]), (&2.into(), &3.into()));
    assert_eq!(current["precision"], 1.0);
    // c after 2 of 10 hours; d after 2 of 6: its first hour makes 200 of 250
    assert_eq!(current["spent_median"], 0.2);
    assert_eq!(current["spent_most"].as_f64().map(|share| (share * 1e6).round()), Some(333_333.0));
    assert_eq!(candidate["recall"], 1.0);
    // accounts b, c, d; owners b, c, d, ef: those of b are false
    assert_eq!((&candidate["keys"], &candidate["true_keys"]), (&7.into(), &5.into()));
    // c after 1 of 10 hours, d after 1 of 6, ef after 2 of 10
    assert_eq!(
        candidate["spent_median"].as_f64().map(|share| (share * 1e6).round()),
        Some(166_667.0)
    );
}

#[test]
fn other_scenarios_may_be_the_ones_to_find() {
    let folder = history();
    let more = ["candidate.toml", "--labels", "truth.csv", "--positive", "inference"];
    let found = json(folder.path(), &[&FILES[..], &more].concat());
    assert_eq!(found["labels"]["candidate"]["runs"], 2);
    assert_eq!(found["labels"]["candidate"]["found"], 1, "a is too small");
}

#[test]
fn a_sweep_is_a_table_and_a_picture() {
    let folder = history();
    let more =
        ["candidate.toml", "--labels", "truth.csv", "--sweep", "size.accelerators=50..450/9"];
    let arguments = [&FILES[..], &more, &["--plot", "sweep.svg"]].concat();
    let found = json(folder.path(), &arguments);
    let steps = found["sweep"]["steps"].as_array().expect("steps");
    let by_threshold: Vec<(f64, u64)> = steps
        .iter()
        .map(|step| (step["at_least"].as_f64().expect("one"), step["keys"].as_u64().expect("one")))
        .collect();
    let expected = [(50.0, 6), (100.0, 4), (150.0, 3), (200.0, 3), (250.0, 2), (300.0, 2)];
    assert_eq!(by_threshold[..6], expected);
    assert_eq!(by_threshold[6..], [(350.0, 1), (400.0, 1), (450.0, 0)]);
    assert_eq!(found["sweep"]["in_force"], 250.0);
    let picture = fs::read_to_string(folder.path().join("sweep.svg")).expect("a picture");
    let circles = picture.matches("<circle").count();
    // keys and alerts; recall everywhere, precision and share but where nothing is found
    assert_eq!(circles, 2 * 9 + 9 + 8 + 8, "{picture}");
    let said = printed(folder.path(), &[&FILES[..], &more].concat());
    assert!(said.contains("sweep of size.accelerators"), "{said}");
    assert!(said.lines().any(|line| line.starts_with(" *") && line.contains("250")), "{said}");
}

#[test]
fn bad_sweeps_and_candidates_are_exit_code_2() {
    let folder = history();
    let sweep = |range| [&FILES[..], &["candidate.toml", "--sweep", range]].concat();
    refused(folder.path(), &sweep("size=1..2/3"), "wanted policy.condition=from..to/steps");
    refused(folder.path(), &sweep("none.flop=1..2/3"), "no policy is named \"none\"");
    refused(folder.path(), &sweep("size.flop=1..2/3"), "right would be one of accelerators");
    refused(folder.path(), &[&FILES[..], &["none.toml"]].concat(), "none.toml: cannot read");
    refused(folder.path(), &[&FILES[..], &["preset:none"]].concat(), "no preset is named");
    assert!(
        json(folder.path(), &[&FILES[..], &["preset:default"]].concat())["policies"].is_array()
    );
}

/// Live alerts of one policy and shadow alerts of another on the same history.
fn live_and_shadow(folder: &Path) {
    let shadow = policy("wider", 1, "account", 150.0)
        .replace("version = 1", "version = 1\nmode = \"shadow\"");
    fs::write(folder.join("both.toml"), policy("size", 1, "account", 250.0) + &shadow)
        .expect("written");
    let arguments = "replay --config both.toml --accounts accounts.ndjson --usage usage.ndjson \
                     --alerts live.ndjson --shadow-alerts shadow.ndjson";
    printed(folder, &arguments.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn live_and_shadow_alerts_are_compared_by_key_and_time() {
    let folder = history();
    live_and_shadow(folder.path());
    let files = ["policies", "diff", "--live", "live.ndjson", "--shadow", "shadow.ndjson"];
    let found = json(folder.path(), &files);
    assert_eq!(keys(&found["both"]), ["account c", "account d"]);
    assert_eq!(keys(&found["only_shadow"]), ["account b"]);
    assert_eq!(keys(&found["only_live"]), [""; 0]);
    assert_eq!(found["both"][0]["live"]["first_at"], "2026-03-01T02:00:00Z");
    assert_eq!(found["both"][0]["shadow"]["first_at"], "2026-03-01T01:00:00Z");
    assert_eq!(found["both"][0]["shadow"]["policies"][0], "wider");
    let said = printed(folder.path(), &files);
    assert!(
        said.contains("account c: live 2026-03-01 02:00, shadow 2026-03-01 01:00 (1 h earlier)"),
        "{said}"
    );

    // b's first episode is over before 07:00 and its second begins at 09:00
    let within = |since, until| {
        let found =
            json(folder.path(), &[&files[..], &["--since", since, "--until", until]].concat());
        (keys(&found["both"]), keys(&found["only_shadow"]))
    };
    let quiet = within("2026-03-01T06:30:00Z", "2026-03-01T08:30:00Z");
    assert_eq!(quiet.0, ["account c", "account d"], "they go on through it");
    assert_eq!(quiet.1, [""; 0]);
    assert_eq!(within("2026-03-01T08:30:00Z", "2026-03-02T00:00:00Z").1, ["account b"]);
    let early = within("2026-03-01T00:00:00Z", "2026-03-01T01:30:00Z");
    assert_eq!((early.0.len(), early.1.as_slice()), (0, &["account c".to_owned()][..]));
}

#[test]
fn the_alert_topics_say_what_the_files_say() {
    let folder = history();
    live_and_shadow(folder.path());
    let broker = MockCluster::new(1).expect("a mock broker");
    let topics = ["flopwatch.alerts", "flopwatch.shadow-alerts"];
    let publisher =
        Publisher::new(&broker.bootstrap_servers(), &BTreeMap::new()).expect("a producer");
    for (topic, file) in topics.into_iter().zip(["live.ndjson", "shadow.ndjson"]) {
        broker.create_topic(topic, 3, 1).expect("a topic");
        let lines = fs::read_to_string(folder.path().join(file)).expect("alerts");
        for line in lines.lines() {
            let alert: Value = serde_json::from_str(line).expect("JSON");
            let key = alert["subject"].as_str().expect("text").as_bytes();
            publisher.send(topic, None, Some(key), line.as_bytes()).expect("sent");
        }
        publisher.finish(topic).expect("written");
    }
    let config = format!("[kafka]\nbootstrap_servers = \"{}\"\n", broker.bootstrap_servers());
    fs::write(folder.path().join("kafka.toml"), config).expect("written");
    let files = ["policies", "diff", "--live", "live.ndjson", "--shadow", "shadow.ndjson"];
    let found = json(folder.path(), &["policies", "diff", "--config", "kafka.toml"]);
    assert_eq!(found, json(folder.path(), &files));
}

#[test]
fn files_that_hold_no_alerts_are_named() {
    let folder = history();
    live_and_shadow(folder.path());
    fs::write(folder.path().join("other"), "{\"data\": 1}\n").expect("written");
    let arguments = ["policies", "diff", "--live", "live.ndjson", "--shadow", "other"];
    let output = flopwatch(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(error.starts_with("error: input: other:1: this is no alert"), "{error}");
}
