//! What a running process shows and takes up: probes, metrics, changed policies.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use flopwatch::config::Config;
use flopwatch::kafka::topology;
use rdkafka::producer::Producer as _;
use serde_json::Value;

use super::broker::Broker;
use super::world::{config_text, publisher};
use super::{PATIENCE, Process, open_transaction};

/// 2026-01-05T00:00:00Z in seconds.
const START: u64 = 1_767_571_200;

/// 128 accelerators of one foreign account, judged every hour; says so every hour.
const FIRST: &str = r#"
[[policy]]
id = "watched"
version = 1
title = "Any use"
severity = "info"
scope = "account"
origin = "foreign"
window = "2h"
renotify = "1h"
[[policy.all]]
metric = "accelerators"
at_least = 1
"#;

/// The threshold is exactly what eight hours add up to, all of them before the reload.
const SECOND: &str = r#"
[[policy]]
id = "watched"
version = 2
title = "Eight hours of use"
severity = "warning"
scope = "account"
origin = "foreign"
window = "8h"
[[policy.all]]
metric = "accelerator_hours"
at_least = 1024
[[policy]]
id = "tried"
version = 1
title = "On trial"
severity = "info"
mode = "shadow"
scope = "account"
origin = "foreign"
window = "2h"
[[policy.all]]
metric = "accelerators"
at_least = 1
"#;

/// Of an alert: policy, version, state, the hour judged, and the reason for a resolution.
type Judged = (String, u64, String, String, Value);

/// A process with a policy file of its own, and its deployment.
struct Running {
    process: Process,
    config: Config,
    address: String,
}

impl Running {
    /// Topics of one partition, a foreign account, and a process that may not be ready yet.
    fn start(name: &str, policies: &str, before: impl FnOnce(&Config)) -> Self {
        let text = config_text(name, "a", 1, &Broker::shared().address);
        // this test's policies alone
        let (text, _) = text.split_once("[[policy]]").expect("policies come last");
        let text = format!("policies = [\"policies.toml\"]\n{text}");
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("flopwatch.toml");
        fs::write(&file, text).expect("the file can be written");
        fs::write(directory.path().join("policies.toml"), policies).expect("written");
        let config = Config::load_with(Some(&file), []).expect("a valid configuration");
        topology::create(&config, Some(1)).expect("topics can be made");
        let publisher = publisher(&config);
        let account = br#"{"account_id":"acme","country":"CN"}"#;
        publisher.send(&config.topics.accounts, None, Some(b"acme"), account).expect("sent");
        publisher.finish(&config.topics.accounts).expect("written");
        before(&config);
        let mut process = Process::start(directory, file);
        let address = Self::address(&mut process);
        Self { process, config, address }
    }

    fn address(process: &mut Process) -> String {
        let line = process.await_line("http listens");
        let line: Value = serde_json::from_str(&line).expect("the log is JSON");
        line["address"].as_str().expect("where it listens").to_owned()
    }

    /// Killed, and started again under its name.
    fn restart(&mut self) {
        self.process.restart();
        self.address = Self::address(&mut self.process);
    }

    fn write_policies(&self, policies: &str) {
        let file = self.process.file.with_file_name("policies.toml");
        fs::write(file, policies).expect("the file can be written");
    }

    /// Status and body.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the request is sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("the answer ends");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    fn await_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, body) = self.get("/healthz/ready");
            if status == 200 {
                return;
            }
            assert!(Instant::now() < deadline, "{status} {body}");
        }
    }

    /// The sum of a series over its labels; those it has written count only.
    fn metric(&self, series: &str) -> u64 {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, 200);
        let values = body.lines().filter_map(|line| {
            let rest = line.strip_prefix(series)?;
            (rest.starts_with('{') || rest.starts_with(' ')).then(|| rest.rsplit(' ').next())?
        });
        values.map(|value| value.parse::<u64>().expect("a count")).sum()
    }

    fn await_metric(&self, series: &str, expected: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.metric(series);
            if found == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{series} is {found}, not {expected}");
        }
    }

    fn send(&self, values: &[String]) {
        let publisher = publisher(&self.config);
        let topic = &self.config.topics.usage;
        for value in values {
            publisher.send(topic, Some(0), None, value.as_bytes()).expect("usage is sent");
        }
        publisher.finish(topic).expect("usage is written");
    }

    /// What stands on a topic of alerts once there are `count`.
    fn await_alerts(&self, topic: &str, count: usize) -> Vec<Judged> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let kept = Broker::shared().read(topic, "read_committed");
            if kept.len() >= count {
                return kept.iter().map(|record| alert(record.value.as_deref())).collect();
            }
            assert!(Instant::now() < deadline, "{} of {count} alerts", kept.len());
        }
    }

    fn stop(self) {
        self.process.signal("TERM");
        assert_eq!(self.process.end().code(), Some(0));
    }
}

fn alert(value: Option<&[u8]>) -> Judged {
    let event: Value = serde_json::from_slice(value.expect("a value")).expect("JSON");
    let data = &event["data"];
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    (
        text(&data["policy"]["id"]),
        data["policy"]["version"].as_u64().expect("a number"),
        text(&data["state"]),
        text(&data["at"]).split_at(11).1.to_owned(),
        data["reason"].clone(),
    )
}

/// Use of 128 accelerators during the hour that ends at `hour`.
fn hour(hour: u64) -> String {
    let (start, end) = (START + (hour - 1) * 3600, START + hour * 3600);
    format!(
        r#"{{"id":"{hour}","source":"test","account_id":"acme","accelerator":"nvidia-h100-sxm","quantity":128,"start_time_unix_nano":"{start}000000000","end_time_unix_nano":"{end}000000000"}}"#
    )
}

fn expected(id: &str, version: u64, state: &str, hour: u64, reason: Value) -> Judged {
    (id.into(), version, state.into(), format!("{hour:02}:00:00Z"), reason)
}

#[test]
fn a_process_is_ready_once_restored_and_its_counters_add_up() {
    let mut open = None;
    let running = Running::start("probed", FIRST, |config| {
        open = Some(open_transaction(config, 1));
    });
    let (status, body) = running.get("/healthz/ready");
    assert_eq!(status, 503, "a restore waits for the open transaction: {body}");
    assert!(body.starts_with("not ready: "), "{body}");
    assert_eq!(running.get("/healthz/live"), (200, "live\n".into()));
    assert_eq!(running.metric("flopwatch_ready"), 0);
    open.expect("it was opened").abort_transaction(PATIENCE).expect("the abort");
    running.await_ready();
    assert_eq!(running.metric("flopwatch_ready"), 1);

    let mut usage: Vec<String> = (1..=5).map(hour).collect();
    usage.extend([hour(5), hour(1), hour(4)]);
    usage.extend(["{\"id\":7}".to_owned(), "x".to_owned()]);
    running.send(&usage);
    running.await_metric("flopwatch_events_read_total", 10);
    let count = |name: &str| running.metric(&format!("flopwatch_events_{name}_total"));
    let parts = ["counted", "duplicate", "dead_lettered"].map(count);
    // the horizon of 2 h reaches back to hour 3: hour 1 is beyond it
    assert_eq!(parts, [5, 2, 3]);
    assert_eq!(parts.iter().sum::<u64>(), 10, "read = counted + duplicate + dead-lettered");
    running.stop();
}

#[test]
fn a_process_that_was_killed_shows_the_alerts_that_fire_as_before_and_their_end() {
    let mut running = Running::start("restarted", FIRST, |_| {});
    running.await_ready();
    assert_eq!(running.metric("flopwatch_alerts_firing"), 0);
    running.send(&(1..=4).map(hour).collect::<Vec<_>>());
    running.await_metric("flopwatch_alerts_firing", 1);
    running.restart();
    running.await_ready();
    assert_eq!(running.metric("flopwatch_alerts_firing"), 1, "known from the restore");
    // the policy goes, and with its alert the gauge
    let next =
        FIRST.replace("version = 1", "version = 2").replace("at_least = 1", "at_least = 999");
    running.write_policies(&next);
    running.process.await_line("policies reloaded");
    running.send(&[hour(5)]);
    running.await_metric("flopwatch_alerts_firing", 0);
    running.stop();
}

#[test]
fn changed_policies_judge_the_state_that_was_gathered_before() {
    let mut running = Running::start("watched", FIRST, |_| {});
    running.await_ready();
    let (live, shadow) =
        (running.config.topics.alerts.clone(), running.config.topics.shadow_alerts.clone());
    // the watermark of hour 8 lets hour 7 be judged
    running.send(&(1..=8).map(hour).collect::<Vec<_>>());
    running.await_alerts(&live, 7);

    running.write_policies(&SECOND.replace("accelerator_hours", "accelerator_days"));
    let line = running.process.await_line("changed policies refused");
    let line: Value = serde_json::from_str(&line).expect("the log is JSON");
    let error = line["error"].as_str().expect("what is wrong");
    assert!(error.contains("policies.toml:11: policy.all.metric: unknown metric"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    running.send(&[hour(9)]);
    let found = running.await_alerts(&live, 8);
    let mut wanted = vec![expected("watched", 1, "firing", 1, Value::Null)];
    wanted.extend((2..=8).map(|hour| expected("watched", 1, "updated", hour, Value::Null)));
    assert_eq!(found, wanted, "the old policies stay in force");

    running.write_policies(SECOND);
    // refused once, not at every look
    let lines = running.process.lines_until("policies reloaded");
    assert!(!lines.iter().any(|line| line.contains("refused")), "{lines:?}");
    running.send(&[hour(10)]);
    let found = running.await_alerts(&live, 10);
    let changed = [
        expected("watched", 1, "resolved", 9, "withdrawn".into()),
        expected("watched", 2, "firing", 9, Value::Null),
    ];
    assert_eq!(found[8..], changed);
    let on_trial = running.await_alerts(&shadow, 1);
    assert_eq!(on_trial, [expected("tried", 1, "firing", 9, Value::Null)]);
    let (_, metrics) = running.get("/metrics");
    for outcome in ["applied", "refused"] {
        let series = format!("flopwatch_policy_reloads_total{{outcome=\"{outcome}\"}} 1\n");
        assert!(metrics.contains(&series), "{series}");
    }
    running.stop();
}
