//! `flopwatch simulate` and `validate`, run as a user runs them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use flopwatch::record_file::RecordFile;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;

/// (accelerator_ms, flop, flop_allocated) of an account.
type Sums = BTreeMap<String, (i128, i128, i128)>;

fn flopwatch(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flopwatch"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("the binary runs")
}

fn succeed(directory: &Path, arguments: &[&str]) -> Output {
    let output = flopwatch(directory, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    output
}

/// A small cloud with every scenario, in two partitions.
fn simulate(directory: &Path, seed: &str, usage: &str, more: &[&str]) {
    let arguments = [
        "simulate",
        "--seed",
        seed,
        "--accounts",
        "20",
        "--span",
        "3d",
        "--interval",
        "1h",
        "--partitions",
        "2",
        "--usage",
        usage,
        "--directory",
        "accounts.ndjson",
        "--truth",
        "truth.csv",
    ];
    succeed(directory, &[&arguments, more].concat());
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("readable");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn truth(directory: &Path) -> Vec<HashMap<String, String>> {
    let mut reader = csv::Reader::from_path(directory.join("truth.csv")).expect("readable");
    reader.deserialize().map(|row| row.expect("a row")).collect()
}

fn true_sums(directory: &Path) -> Sums {
    let number = |row: &HashMap<String, String>, name: &str| row[name].parse().expect("an integer");
    truth(directory)
        .iter()
        .filter(|row| row["events"] != "0")
        .map(|row| {
            let flop = number(row, "flop_gflop");
            let allocated = number(row, "flop_allocated_gflop");
            (row["account"].clone(), (number(row, "accelerator_ms"), flop, allocated))
        })
        .collect()
}

/// The contract's arithmetic, written again, over each distinct event.
#[expect(clippy::cast_possible_truncation, reason = "telemetry is f32; sums are small")]
fn plain_sums(events: &[Value]) -> Sums {
    let peaks: HashMap<&str, (f64, f64)> = [
        ("nvidia-h100-sxm", (1.0, 989.4e12)),
        ("nvidia-h200-sxm", (1.0, 989.4e12)),
        ("nvidia-a100-80-sxm", (1.0, 312e12)),
        ("nvidia-l40s", (1.0, 362e12)),
        ("nvidia-l4", (1.0, 121e12)),
        ("google-tpu-v5p", (1.0, 459e12)),
        ("p5.48xlarge", (8.0, 989.4e12)),
        ("vcpu", (1.0, 0.1e12)),
    ]
    .into();
    let mut seen = BTreeSet::new();
    let mut sums = Sums::new();
    for event in events {
        if !seen.insert(event["id"].as_str().expect("an id")) {
            continue;
        }
        let name = event["accelerator"].as_str().or(event["instance_type"].as_str());
        let name = name.expect("a name");
        let (count, peak) = peaks[name];
        let quantity = event["quantity"].as_f64().expect("a number") * count;
        let instant = |name: &str| event[name].as_u64().expect("nanoseconds");
        let length = instant("end_time_unix_nano") - instant("start_time_unix_nano");
        let seconds = length as f64 / 1e9;
        let ratio = |name: &str| event["telemetry"][name].as_f64().map(|v| f64::from(v as f32));
        let used = match (ratio("tensor_active"), ratio("utilization")) {
            (Some(tensor_active), _) => tensor_active,
            (None, Some(utilization)) => 0.33 * utilization,
            (None, None) => 0.33,
        };
        let account = event["account_id"].as_str().expect("an account").to_owned();
        let sum = sums.entry(account).or_default();
        sum.0 += if name == "vcpu" { 0 } else { (quantity * seconds * 1000.0).round() as i128 };
        sum.1 += (quantity * seconds * peak * used / 1e9).round() as i128;
        sum.2 += (quantity * seconds * peak / 1e9).round() as i128;
    }
    sums
}

fn partitions(directory: &Path) -> [Vec<Value>; 2] {
    ["usage-0.ndjson", "usage-1.ndjson"].map(|name| lines(&directory.join(name)))
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_does_not() {
    let runs = ["7", "7", "8"].map(|seed| {
        let directory = scratch();
        simulate(directory.path(), seed, "usage-%.pb.zst", &[]);
        let names = ["usage-0.pb.zst", "usage-1.pb.zst", "accounts.ndjson", "truth.csv"];
        let bytes = names.map(|name| fs::read(directory.path().join(name)).expect("written"));
        bytes.concat()
    });
    assert!(runs[0] == runs[1], "one seed, two outcomes");
    assert!(runs[0] != runs[2], "the seed has no effect");
}

#[test]
fn the_truth_adds_up_to_a_plain_sum_over_the_events() {
    let directory = scratch();
    simulate(directory.path(), "3", "usage-%.ndjson", &["--key", "event"]);
    let [mut events, rest] = partitions(directory.path());
    events.extend(rest);
    assert_eq!(true_sums(directory.path()), plain_sums(&events));
}

#[test]
fn every_scenario_is_present_and_does_what_its_label_says() {
    let directory = scratch();
    simulate(directory.path(), "3", "usage-%.ndjson", &[]);
    let truth = truth(directory.path());
    let of = |scenario: &str| -> Vec<_> {
        truth.iter().filter(|row| row["scenario"] == scenario).collect()
    };
    let peak = |scenario: &str| -> f64 {
        of(scenario).iter().map(|row| row["peak_accelerators"].parse::<f64>().expect("f64")).sum()
    };
    for scenario in ["fine-tuning", "inference", "batch", "rendering", "background"] {
        assert!(of(scenario).iter().any(|row| row["events"] != "0"), "{scenario}");
    }
    assert_eq!(peak("steady-training"), 1024.0);
    assert_eq!(peak("split-accounts"), 1024.0);
    assert_eq!(peak("split-regions"), 1024.0);
    assert_eq!(peak("subsidiary"), 640.0);
    assert_eq!(peak("below-threshold"), 504.0);
    assert_eq!(of("split-accounts").len(), 8);
    assert!(of("split-accounts").iter().all(|row| row["owner"] == "owner-jade-harbour"));
    assert!(of("reseller").iter().any(|row| row["listed"] == "false"));
    assert_eq!(of("subsidiary")[0]["foreign"], "true");

    let directory_entries = lines(&directory.path().join("accounts.ndjson"));
    let subsidiary = of("subsidiary")[0]["account"].clone();
    let entry = directory_entries.iter().find(|entry| entry["account_id"] == subsidiary.as_str());
    let entry = entry.expect("listed");
    assert_eq!(
        (&entry["country"], &entry["ultimate_parent_country"]),
        (&"US".into(), &"CN".into())
    );

    let [mut events, rest] = partitions(directory.path());
    events.extend(rest);
    let split = of("split-regions")[0]["account"].clone();
    let regions: BTreeSet<_> = events
        .iter()
        .filter(|event| event["account_id"] == split.as_str())
        .map(|event| event["region"].to_string())
        .collect();
    assert_eq!(regions.len(), 4);
    let corrections = of("corrections")[0]["account"].clone();
    let signs: BTreeSet<_> = events
        .iter()
        .filter(|event| event["kind"] == "CORRECTION")
        .inspect(|event| assert_eq!(event["account_id"], corrections.as_str()))
        .map(|event| event["quantity"].as_f64().expect("a number") > 0.0)
        .collect();
    assert_eq!(signs.len(), 2, "usage is taken back and added");
}

#[test]
fn duplicates_are_exact_and_disorder_is_bounded() {
    let directory = scratch();
    let scenario = ["--scenario", "steady-training", "--duplicates", "0.05"];
    simulate(directory.path(), "5", "usage-%.ndjson", &scenario);
    for events in partitions(directory.path()) {
        let mut seen: HashMap<String, &Value> = HashMap::new();
        let mut duplicates = 0;
        let mut latest = 0;
        for event in &events {
            let time = event["time_unix_nano"].as_u64().expect("nanoseconds");
            assert!(time + 120_000_000_000 > latest, "more than two minutes out of order");
            latest = latest.max(time);
            if let Some(first) = seen.insert(event["id"].to_string(), event) {
                assert_eq!(first, event);
                duplicates += 1;
            }
        }
        let share = f64::from(duplicates) / seen.len() as f64;
        assert!((0.03..0.07).contains(&share), "{share}");
    }
}

#[test]
fn replay_finds_the_truth() {
    for key in ["account", "event", "none"] {
        let directory = scratch();
        simulate(directory.path(), "11", "usage-%.pb.gz", &["--key", key]);
        let arguments = [
            "replay",
            "--accounts",
            "accounts.ndjson",
            "--usage",
            "usage-0.pb.gz",
            "--usage",
            "usage-1.pb.gz",
            "--ledger",
            "ledger.ndjson",
            "--summary",
            "summary.json",
        ];
        succeed(directory.path(), &arguments);
        let mut sums = Sums::new();
        for row in lines(&directory.path().join("ledger.ndjson")) {
            if row["scope"] == "account" {
                let number = |name: &str| i128::from(row[name].as_i64().expect("an integer"));
                let sum = sums.entry(row["key"].as_str().expect("a key").to_owned()).or_default();
                sum.0 += number("accelerator_ms");
                sum.1 += number("flop_gflop");
                sum.2 += number("flop_allocated_gflop");
            }
        }
        assert_eq!(sums, true_sums(directory.path()), "by {key}");
        let summary = lines(&directory.path().join("summary.json")).remove(0);
        let counted: u64 = truth(directory.path())
            .iter()
            .map(|row| row["events"].parse::<u64>().expect("u64"))
            .sum();
        assert_eq!(summary["counted"], counted);
        assert_eq!(summary["dead_letter"], 0, "{summary}");
        assert!(summary["duplicate"].as_u64() > Some(0) && summary["late"].as_u64() > Some(0));
    }
}

#[test]
fn a_trace_becomes_events_and_a_directory() {
    let directory = scratch();
    let trace = "account,job,accelerator,count,start,end\na,j,,16,1588291100.25,1588291700\n";
    fs::write(directory.path().join("t.csv"), trace).expect("written");
    let arguments = [
        "simulate",
        "--trace",
        "t.csv",
        "--accelerator",
        "nvidia-l4",
        "--usage",
        "u.ndjson",
        "--directory",
        "a.ndjson",
        "--country",
        "FR",
    ];
    succeed(directory.path(), &arguments);
    let events = lines(&directory.path().join("u.ndjson"));
    assert_eq!(events.len(), 3);
    assert_eq!(events[0]["start_time_unix_nano"], 1_588_291_100_250_000_000_u64);
    assert_eq!(events[0]["source"], "t.csv");
    assert_eq!(events[2]["accelerator"], "nvidia-l4");
    assert_eq!(lines(&directory.path().join("a.ndjson"))[0]["country"], "FR");
}

#[test]
fn wrong_arguments_and_rows_say_what_would_be_right() {
    let directory = scratch();
    fs::write(
        directory.path().join("t.csv"),
        "account,job,accelerator,count,start,end\na,j,,1,2\n",
    )
    .expect("written");
    let wrong: [(&[&str], i32, &str); 8] = [
        (&["--usage", "u.txt"], 2, "u.txt: the name must end in .ndjson"),
        (&["--usage", "u.pb", "--partitions", "2"], 2, "must contain % for the partition"),
        (&["--usage", "u.pb", "--interval", "5"], 2, "\"5\" has no unit"),
        (&["--usage", "u.pb", "--interval", "2d"], 2, "must be from 1s to 1d"),
        (&["--usage", "u.pb", "--disorder", "1h"], 2, "must be at most 20m"),
        (&["--usage", "u.pb", "--scenario", "nonsense"], 2, "steady-training"),
        (&[], 2, "--usage"),
        (&["--usage", "u.pb", "--trace", "t.csv"], 1, "t.csv: "),
    ];
    for (arguments, code, message) in wrong {
        let output = flopwatch(directory.path(), &[&["simulate"], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}

/// A data directory with one trace of `count` accelerators for 80 hours.
fn data(directory: &Path, count: u32) -> PathBuf {
    let data = directory.join("data");
    fs::create_dir_all(data.join("traces")).expect("created");
    let end = 1_588_291_200 + 80 * 3600;
    let trace = format!(
        "account,job,accelerator,count,start,end,class\n\
         small,j1,V100-32GB,3,1588290000.5,1588300000.000000001,x\n\
         large,j2,,{count},1588291200,{end},y\n"
    );
    fs::write(data.join("traces/tiny.csv"), trace).expect("written");
    let runs = "run,chip,chips,hours,chip_hours,published_utilisation,kind,flop\n\
                Good,A100,384,2808,1.0e6,,,3.7e23\nOdd,A100,800,1560,1.0e6,,,1e23\n";
    fs::write(data.join("runs.csv"), runs).expect("written");
    data
}

#[test]
fn validate_agrees_with_a_plain_sum_and_prints_the_estimator() {
    let directory = scratch();
    data(directory.path(), 500);
    let output = succeed(directory.path(), &["validate", "--data", "data"]);
    let text = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "tiny.csv: 2 jobs (1 taken to run on nvidia-a100-80-sxm), 2 accounts, 994 events",
        "validate-sustained: silent",
        "agree with a plain sum, to the GFLOP",
        "inside the band 0.18 to 0.5: 1 of 2",
        "within x1.5: 1 of 2",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn validate_fails_when_a_policy_that_must_be_silent_fires() {
    let directory = scratch();
    data(directory.path(), 600);
    let output = flopwatch(directory.path(), &["validate", "--data", "data"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("policy validate-sustained fired for account/large"), "{error}");
}

#[test]
fn kafka_gets_the_same_events_as_files_and_the_directory() {
    let directory = scratch();
    let broker = MockCluster::new(1).expect("a mock broker");
    broker.create_topic("usage", 2, 1).expect("a topic");
    broker.create_topic("accounts", 1, 1).expect("a topic");
    let config = format!("[kafka]\nbootstrap_servers = \"{}\"\n", broker.bootstrap_servers());
    fs::write(directory.path().join("flopwatch.toml"), config).expect("written");
    let kafka = ["--kafka", "--config", "flopwatch.toml", "--key", "none"];
    simulate(directory.path(), "2", "usage-%.pb", &kafka);

    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap_servers())
        .set("group.id", "test")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let read = |topic: &str, partition: i32| {
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
        consumer.assign(&assignment).expect("assigned");
        let mut values = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(Instant::now() < deadline, "the end of {topic} does not come");
            let Some(polled) = consumer.poll(Duration::from_secs(1)) else { continue };
            match polled {
                Ok(record) => values.push(record.payload().expect("a value").to_vec()),
                Err(KafkaError::PartitionEOF(_)) => return values,
                Err(error) => panic!("{error}"),
            }
        }
    };
    for partition in 0..2_u8 {
        let path = directory.path().join(format!("usage-{partition}.pb"));
        let mut file = RecordFile::open(&path).expect("opened");
        let mut expected = Vec::new();
        while let Some(record) = file.next().expect("sound") {
            expected.push(record.value.to_vec());
        }
        assert!(read("usage", i32::from(partition)) == expected, "partition {partition}");
    }
    let accounts = lines(&directory.path().join("accounts.ndjson")).len();
    assert_eq!(read("accounts", 0).len(), accounts);
}

#[test]
fn a_missing_topic_is_named_with_its_remedy() {
    let directory = scratch();
    let broker = MockCluster::new(1).expect("a mock broker");
    let config = format!("[kafka]\nbootstrap_servers = \"{}\"\n", broker.bootstrap_servers());
    fs::write(directory.path().join("flopwatch.toml"), config).expect("written");
    let output =
        flopwatch(directory.path(), &["simulate", "--kafka", "--config", "flopwatch.toml"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("usage: there is no such topic; `flopwatch topics`"), "{error}");
}
