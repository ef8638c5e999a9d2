//! Dashboards: what they may use, and each of their queries asked of a Prometheus that has scraped
//! a running flopwatch, the demo, with the shipped rules.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{RULES, deploy, named, read};

/// For the demo to fire its first alerts, and for Prometheus to have seen some of it.
const PATIENCE: Duration = Duration::from_secs(240);

/// Queries that the demo has no data for: it restores nothing, and refuses nothing.
const WITHOUT_DATA: [&str; 2] = [
    "sum by (reason) (rate(flopwatch_events_dead_lettered_total",
    "histogram_quantile(0.99, sum by (le, stage) (rate(flopwatch_restore_duration_seconds_bucket",
];

/// Between two looks at a Prometheus that scrapes every second.
const LOOK: Duration = Duration::from_millis(200);

struct Dashboard {
    name: String,
    json: Value,
}

fn dashboards() -> Vec<Dashboard> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(deploy("grafana/dashboards")).expect("dashboards") {
        let path = entry.expect("a file").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("it can be read");
        found.push(Dashboard { name, json: serde_json::from_str(&text).expect("JSON") });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

impl Dashboard {
    fn variables(&self) -> BTreeSet<&str> {
        list(&self.json, "/templating/list").iter().map(|one| text(one, "name")).collect()
    }

    /// Expressions of its panels.
    fn panels(&self) -> Vec<&str> {
        let panels = list(&self.json, "/panels").iter();
        panels.flat_map(|panel| list(panel, "/targets")).map(|one| text(one, "expr")).collect()
    }

    /// Selectors that its variables list label values of.
    fn listed(&self) -> Vec<&str> {
        let variables = list(&self.json, "/templating/list").iter();
        let queries = variables.filter_map(|one| one["query"]["query"].as_str());
        queries
            .map(|query| {
                let inner = query.strip_prefix("label_values(").expect("values of a label");
                inner.rsplit_once(',').expect("a selector and a label").0
            })
            .collect()
    }
}

/// What Grafana puts in place of variables when everything is selected.
fn filled(expression: &str, variables: &BTreeSet<&str>) -> String {
    let mut filled = expression.replace("$__rate_interval", "30s").replace("$__range", "5m");
    for name in variables {
        filled = filled.replace(&format!("\"${name}\""), "\".*\"");
    }
    assert!(!filled.contains('$'), "a variable that is not defined: {expression}");
    filled
}

#[test]
fn dashboards_have_stable_names_and_use_what_is_there() {
    let table: BTreeSet<&str> =
        flopwatch::metrics::table::SERIES.iter().map(|series| series.name).collect();
    let mut uids = BTreeSet::new();
    for dashboard in dashboards() {
        let Dashboard { name, json } = &dashboard;
        assert_eq!(text(json, "uid"), name, "links rest on it");
        assert!(uids.insert(name.clone()), "{name} twice");
        assert!(dashboard.variables().contains("datasource"), "{name}");
        for panel in list(json, "/panels") {
            let uid = panel.pointer("/datasource/uid").and_then(Value::as_str);
            assert_eq!(uid, Some("${datasource}"), "{name}: {}", text(panel, "title"));
            assert!(panel.get("targets").is_some(), "{name}: {}", text(panel, "title"));
        }
        for expression in dashboard.panels().into_iter().chain(dashboard.listed()) {
            filled(expression, &dashboard.variables());
            for prefix in ["flopwatch_", "librdkafka_"] {
                for rest in named(expression, prefix) {
                    let series = format!("{prefix}{rest}");
                    let base = ["_bucket", "_sum", "_count"];
                    let base = base.iter().find_map(|end| series.strip_suffix(end));
                    let known = table.contains(series.as_str())
                        || base.is_some_and(|base| table.contains(base));
                    assert!(known, "{name}: no series {series}");
                }
            }
        }
    }
    assert_eq!(uids.len(), 3);
}

/// A child that does not outlive the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // gone already, perhaps
        self.0.kill().unwrap_or_default();
        drop(self.0.wait());
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Starts the demo; it plays on for longer than any test. Its output is read, or it would stop.
fn demo(port: u16) -> Running {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
        .args(["demo", "--days", "400", "--speed", "24", "--listen"])
        .arg(format!("127.0.0.1:{port}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    std::thread::spawn(move || output.lines().map_while(Result::ok).count());
    Running(child)
}

/// A Prometheus with the shipped rules, which scrapes every second.
fn prometheus(port: u16, target: u16, folder: &Path) -> Running {
    for rules in RULES {
        let to = folder.join(rules);
        std::fs::copy(deploy("prometheus").join(rules), to).expect("rules can be copied");
    }
    let shipped = read("prometheus/prometheus.yml");
    let config = shipped
        .replace("127.0.0.1:9464", &format!("127.0.0.1:{target}"))
        .replace("scrape_interval: 15s", "scrape_interval: 1s");
    assert_ne!(config, shipped, "the target was put in");
    let config = format!("global:\n  evaluation_interval: 1s\n{config}");
    let file = folder.join("prometheus.yml");
    std::fs::write(&file, config).expect("a temporary file can be written");
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus is installed: .ci/setup test brings it");
    Running(child)
}

/// The answer's data, or why there is none.
fn ask(port: u16, path: &str, expression: &str) -> Result<Value, String> {
    let mut query = String::new();
    for byte in expression.bytes() {
        query.push_str(&format!("%{byte:02X}"));
    }
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).map_err(|error| error.to_string())?;
    let request = format!("GET {path}{query} HTTP/1.0\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let mut answer: Value = serde_json::from_str(body).map_err(|error| error.to_string())?;
    match answer["status"].as_str() {
        Some("success") => Ok(answer["data"].take()),
        _ => Err(answer["error"].as_str().unwrap_or(body).to_owned()),
    }
}

/// Samples of an instant query.
fn samples(port: u16, expression: &str) -> Result<usize, String> {
    let data = ask(port, "/api/v1/query?query=", expression)?;
    Ok(data["result"].as_array().map_or(0, Vec::len))
}

fn await_data(port: u16, expression: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = samples(port, expression);
        if matches!(found, Ok(1..)) {
            return;
        }
        assert!(Instant::now() < deadline, "{expression}: {found:?}");
        std::thread::park_timeout(LOOK);
    }
}

#[test]
fn every_query_of_the_dashboards_is_answered_and_has_data_where_the_demo_has() {
    let (target, port) = (free_port(), free_port());
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let _demo = demo(target);
    let _prometheus = prometheus(port, target, folder.path());
    await_data(port, "flopwatch_alerts_firing{mode=\"live\"} > 0");
    await_data(port, "histogram_quantile(0.5, rate(flopwatch_alert_delay_seconds_bucket[1h])) > 0");
    await_data(port, "rate(flopwatch_country_accelerator_ms_total{origin=\"unknown\"}[30s]) > 0");
    await_data(port, "rate(librdkafka_rx_bytes_total[30s]) > 0");
    // rules have been evaluated over it as well
    await_data(port, "country:flopwatch_accelerators:rate5m > 0");
    await_data(port, "ALERTS{alertname=\"FlopwatchCriticalAlertFiring\", alertstate=\"firing\"}");
    let mut findings = Vec::new();
    let mut asked = 0;
    for dashboard in dashboards() {
        let variables = dashboard.variables();
        for expression in dashboard.panels().into_iter().chain(dashboard.listed()) {
            asked += 1;
            let filled = filled(expression, &variables);
            let expected = !WITHOUT_DATA.iter().any(|none| expression.starts_with(none));
            match samples(port, &filled) {
                Err(error) => findings.push(format!("{}: {filled}: {error}", dashboard.name)),
                Ok(0) if expected => findings.push(format!("{}: {filled}: empty", dashboard.name)),
                Ok(_) => {}
            }
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    assert!(asked >= 50, "{asked} queries");
    let broken = samples(port, "sum by (");
    assert!(broken.is_err(), "a query that is none is refused");
    assert_eq!(samples(port, "flopwatch_no_such_series"), Ok(0));
}
