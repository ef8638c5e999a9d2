//! What `deploy/` ships, in the hands of the programs that it is for: rules and configurations by
//! promtool, manifests by their schemas, the unit by systemd, dashboards by a Prometheus that
//! scrapes a running flopwatch. `.ci/setup test` installs them.

#[path = "deploy/dashboards.rs"]
mod dashboards;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const RULES: [&str; 3] =
    ["flopwatch-recording.yml", "flopwatch-alerts.yml", "flopwatch-compliance.yml"];

/// Fires always, by intent.
const DEAD_MAN: &str = "FlopwatchWatchdog";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn deploy(path: &str) -> PathBuf {
    root().join("deploy").join(path)
}

fn read(path: &str) -> String {
    let path = deploy(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn ran(command: &mut Command) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    command.output().unwrap_or_else(|error| panic!("{name}: {error}; .ci/setup test brings it"))
}

/// Runs it and expects success.
fn succeeds(command: &mut Command) -> String {
    let output = ran(command);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}:\n{text}");
    text
}

/// Names after `marker` in a file of rules or their tests, in order.
fn named(text: &str, marker: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let rest = text.split(marker).skip(1);
    rest.map(|rest| rest.chars().take_while(|c| is_name(*c)).collect()).collect()
}

#[test]
fn prometheus_accepts_the_rules_and_their_tests_pass() {
    let mut promtool = Command::new("promtool");
    succeeds(
        promtool
            .args(["check", "rules"])
            .args(RULES.map(|rules| format!("prometheus/{rules}")))
            .current_dir(deploy("")),
    );
    for rules in RULES {
        let tests = rules.replace(".yml", "-test.yml");
        let mut promtool = Command::new("promtool");
        let promtool = promtool.args(["test", "rules", &tests]);
        succeeds(promtool.current_dir(deploy("prometheus")));
    }
}

#[test]
fn prometheus_and_alertmanager_accept_their_configurations() {
    let mut promtool = Command::new("promtool");
    succeeds(promtool.args(["check", "config"]).arg(deploy("prometheus/prometheus.yml")));
    // as compose.yaml mounts them: beside each other
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for rules in RULES {
        let to = folder.path().join(rules);
        std::fs::copy(deploy("prometheus").join(rules), to).expect("rules can be copied");
    }
    let config = folder.path().join("prometheus.yml");
    std::fs::copy(deploy("compose/prometheus.yml"), &config).expect("it can be copied");
    let mut promtool = Command::new("promtool");
    succeeds(promtool.args(["check", "config"]).arg(config));
    let mut amtool = Command::new("amtool");
    succeeds(amtool.arg("check-config").arg(deploy("compose/alertmanager.yml")));
}

#[test]
fn every_alert_rule_is_seen_to_fire_and_not_to_fire_and_names_its_runbook() {
    let mut findings = Vec::new();
    let mut runbooks = BTreeSet::new();
    for rules in &RULES[1..] {
        let text = read(&format!("prometheus/{rules}"));
        let tests = read(&format!("prometheus/{}", rules.replace(".yml", "-test.yml")));
        let (silent, firing): (Vec<&str>, Vec<&str>) = tests
            .split("eval_time: ")
            .skip(1)
            .partition(|case| case.lines().next().unwrap_or_default().contains("exp_alerts: []"));
        let names = |cases: &[&str]| -> BTreeSet<String> {
            cases.iter().flat_map(|case| named(case, "alertname: ")).collect()
        };
        let (silent, firing) = (names(&silent), names(&firing));
        for rule in text.split("- alert: ").skip(1) {
            let name = rule.lines().next().expect("a name").trim().to_owned();
            if !firing.contains(&name) {
                findings.push(format!("{name} is never seen to fire"));
            }
            if !silent.contains(&name) && name != DEAD_MAN {
                findings.push(format!("{name} is never seen to be silent"));
            }
            let severity = named(rule, "severity: ").pop().unwrap_or_default();
            if !["critical", "warning", "info", "none"].contains(&severity.as_str()) {
                findings.push(format!("{name} has severity {severity:?}"));
            }
            let page = format!("deploy/runbooks/{name}.md");
            if !rule.contains(&format!("runbook_url: {page}\n")) || !root().join(&page).is_file() {
                findings.push(format!("{name}: {page} is not named, or not there"));
            }
            runbooks.insert(format!("{name}.md"));
        }
    }
    for entry in std::fs::read_dir(deploy("runbooks")).expect("runbooks") {
        let name = entry.expect("a file").file_name().to_string_lossy().into_owned();
        if name.starts_with("Flopwatch") && !runbooks.contains(&name) {
            findings.push(format!("deploy/runbooks/{name} is of no rule"));
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    assert!(runbooks.len() > 20, "{runbooks:?}");
}

#[test]
fn manifests_are_what_their_schemas_ask_for() {
    let python = root().join("target/python/bin/python");
    let mut script = Command::new(python);
    let findings = succeeds(script.arg(root().join("tests/deploy/manifests.py")).arg(deploy("")));
    assert!(findings.is_empty(), "{findings}");
}

/// Exposure by systemd's count, 0 to 10: what is left is that it talks to the network.
const MOST_EXPOSED: f64 = 1.5;

#[test]
fn systemd_accepts_the_unit_and_finds_it_hardened() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("flopwatch.service");
    let unit = read("systemd/flopwatch.service");
    // the binary must be there to be verified
    let unit = unit.replace("/usr/local/bin/flopwatch", env!("CARGO_BIN_EXE_flopwatch"));
    std::fs::write(&path, unit).expect("a temporary file can be written");
    let said = succeeds(Command::new("systemd-analyze").arg("verify").arg(&path));
    assert!(!said.contains("flopwatch.service"), "{said}");
    let mut security = Command::new("systemd-analyze");
    let said = succeeds(security.args(["security", "--offline=true", "--no-pager"]).arg(&path));
    let level = said.split("exposure level for flopwatch.service: ").nth(1).expect("a level");
    let level: f64 = level.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!(level <= MOST_EXPOSED, "{said}");
}
