//! Runs the program over a case, reads back what it wrote, and tells the first difference from the
//! model. Numbers are compared to the last bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::files::{rfc3339, usage_line};
use super::input::{DAY, HOUR, Line, MINUTE, Nanos, SECOND, Scenario};
use super::judging::{Alert, Evidence, RunView};
use super::metering::Amount;
use super::{LedgerKey, Outcome, Summary};

/// The folder of one run, with everything read and written.
pub(crate) struct Ran {
    folder: PathBuf,
    usage: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct LedgerRow {
    scope: String,
    key: String,
    end: String,
    accelerator_ms: i128,
    flop_gflop: i128,
    flop_allocated_gflop: i128,
    flop_theoretical_gflop: i128,
}

#[derive(Debug, Deserialize)]
struct SummaryFile {
    read: u64,
    counted: u64,
    duplicate: u64,
    dead_letter: u64,
    late: u64,
    alerts: BTreeMap<String, u64>,
    dead_letters: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct DeadLetterRow {
    reason: String,
    file: String,
    line: usize,
    value: String,
}

#[derive(Debug, Deserialize)]
struct CloudEvent {
    specversion: String,
    #[serde(rename = "type")]
    kind: String,
    id: String,
    subject: String,
    time: String,
    data: Data,
}

#[derive(Debug, Deserialize)]
struct Data {
    alert_id: String,
    revision: u32,
    state: String,
    at: String,
    policy: PolicyData,
    scope: String,
    key: String,
    accounts: Vec<String>,
    accounts_total: usize,
    origin: OriginData,
    conditions: Vec<ConditionData>,
    estimate: EstimateData,
    run: Option<RunData>,
    evidence: EvidenceData,
    first_at: String,
    report_due: Option<String>,
}

#[derive(Debug, Deserialize)]
struct PolicyData {
    id: String,
    version: u32,
    mode: String,
}

#[derive(Debug, Deserialize)]
struct OriginData {
    country: String,
    foreign: bool,
    decided_by: String,
}

#[derive(Debug, Deserialize)]
struct ConditionData {
    metric: String,
    window: Option<String>,
    observed: f64,
    at_least: f64,
    met: bool,
}

#[derive(Debug, Deserialize)]
struct EstimateData {
    flop_low: f64,
    flop: f64,
    flop_high: f64,
    flop_allocated: f64,
    accelerators: f64,
    accelerator_hours: f64,
}

#[derive(Debug, Deserialize)]
struct RunData {
    start: String,
    hours: f64,
    flop_low: f64,
    flop: f64,
    flop_high: f64,
}

#[derive(Debug, Deserialize)]
struct EvidenceData {
    slices: Vec<SliceData>,
    by_accelerator: BTreeMap<String, SumData>,
    by_region: BTreeMap<String, SumData>,
    by_fabric: BTreeMap<String, SumData>,
    unknown_accelerator: bool,
}

#[derive(Debug, Deserialize)]
struct SliceData {
    end: String,
    accelerator_ms: i128,
    flop_gflop: i128,
    flop_allocated_gflop: i128,
    flop_theoretical_gflop: i128,
}

#[derive(Debug, Deserialize)]
struct SumData {
    accelerator_ms: i128,
    flop_gflop: i128,
    flop_allocated_gflop: i128,
    flop_theoretical_gflop: i128,
}

/// Runs a replay in `folder`, whose files are there; the usage files are partitions in this order.
pub(crate) fn replay(folder: &Path, usage: &[PathBuf]) -> Result<Ran, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flopwatch"));
    command.arg("replay");
    let files = [
        ("--config", "flopwatch.toml"),
        ("--accounts", "accounts.ndjson"),
        ("--alerts", "alerts.ndjson"),
        ("--shadow-alerts", "shadow.ndjson"),
        ("--dead-letters", "dead.ndjson"),
        ("--ledger", "ledger.ndjson"),
        ("--summary", "summary.json"),
    ];
    for (option, name) in files {
        command.arg(option).arg(folder.join(name));
    }
    for path in usage {
        command.arg("--usage").arg(path);
    }
    let output = command.output().expect("the program under test can be started");
    if output.status.success() {
        Ok(Ran { folder: folder.to_owned(), usage: usage.to_vec() })
    } else {
        let error = String::from_utf8_lossy(&output.stderr);
        Err(format!("replay ended with {}: {error}", output.status))
    }
}

impl Ran {
    /// The bytes of one output file.
    pub(crate) fn output(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// The counters of `--summary`.
    pub(crate) fn summary(&self) -> Result<Summary, String> {
        let text = self.output("summary.json");
        let file: SummaryFile = parse(&text)?;
        Ok(Summary {
            read: file.read,
            counted: file.counted,
            duplicate: file.duplicate,
            dead_letter: file.dead_letter,
            late: file.late,
            alerts: file.alerts,
            dead_letters: file.dead_letters.into_iter().filter(|(_, count)| *count > 0).collect(),
        })
    }

    /// The rows of `--ledger`, in the order of the file.
    pub(crate) fn ledger(&self) -> Result<Vec<(LedgerKey, Amount)>, String> {
        let text = self.output("ledger.ndjson");
        let rows: Vec<LedgerRow> = text.lines().map(parse).collect::<Result<_, _>>()?;
        let row = |row: LedgerRow| {
            let amount = Amount {
                accelerator_ms: row.accelerator_ms,
                flop: row.flop_gflop,
                flop_allocated: row.flop_allocated_gflop,
                flop_theoretical: row.flop_theoretical_gflop,
            };
            ((row.scope, row.key, instant(&row.end)), amount)
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// Compares everything; the first difference as an error.
    pub(crate) fn check(&self, scenario: &Scenario, expected: &Outcome) -> Result<(), String> {
        equal("summary", &self.summary()?, &expected.summary)?;
        self.check_dead_letters(scenario, expected)?;
        self.check_ledger(expected)?;
        self.check_alerts("alerts.ndjson", &expected.live)?;
        self.check_alerts("shadow.ndjson", &expected.shadow)
    }

    fn check_dead_letters(&self, scenario: &Scenario, expected: &Outcome) -> Result<(), String> {
        let text = self.output("dead.ndjson");
        let rows: Vec<DeadLetterRow> = text.lines().map(parse).collect::<Result<_, _>>()?;
        let partitions = scenario.partitions.iter().zip(&expected.dead_letters).zip(&self.usage);
        for ((lines, expected), path) in partitions {
            let of_file = rows.iter().filter(|row| Path::new(&row.file) == path);
            let actual: Vec<(usize, &str)> =
                of_file.clone().map(|row| (row.line, row.reason.as_str())).collect();
            equal(&format!("dead letters of {}", path.display()), &actual, expected)?;
            for row in of_file {
                let line: &Line = &lines[row.line - 1];
                equal("value of a dead letter", &row.value, &usage_line(line))?;
            }
        }
        Ok(())
    }

    fn check_ledger(&self, expected: &Outcome) -> Result<(), String> {
        let rows = self.ledger()?;
        let expected = expected.ledger.iter().map(|(key, sum)| (key.clone(), *sum));
        let expected: Vec<(LedgerKey, Amount)> = expected.collect();
        for (actual, expected) in rows.iter().zip(&expected) {
            equal("ledger row", actual, expected)?;
        }
        equal("ledger length", &rows.len(), &expected.len())
    }

    fn check_alerts(&self, name: &str, expected: &[Alert]) -> Result<(), String> {
        let text = self.output(name);
        let events: Vec<CloudEvent> = text.lines().map(parse).collect::<Result<_, _>>()?;
        let mut ids: BTreeMap<(String, String, Nanos), String> = BTreeMap::new();
        for (place, (event, expected)) in events.iter().zip(expected).enumerate() {
            let data = &event.data;
            check_alert(event, expected).map_err(|difference| {
                format!("{name} line {}: {difference}\nactual {event:?}", place + 1)
            })?;
            let episode =
                (expected.policy.clone(), format!("{}/{}", data.scope, data.key), expected.episode);
            let id = ids.entry(episode).or_insert_with(|| data.alert_id.clone());
            equal("alert_id within its episode", &data.alert_id, id)?;
        }
        let mut distinct: Vec<&String> = ids.values().collect();
        distinct.sort();
        distinct.dedup();
        equal("distinct alert ids", &distinct.len(), &ids.len())?;
        let next = expected.get(events.len());
        let surplus = events.get(expected.len());
        equal(
            &format!("number of alerts in {name}; next expected {next:?}, surplus {surplus:?}"),
            &events.len(),
            &expected.len(),
        )
    }
}

fn check_alert(event: &CloudEvent, expected: &Alert) -> Result<(), String> {
    let data = &event.data;
    let actual = (&*data.at, &*data.scope, &*data.key, &*data.policy.id, &*data.state);
    let at = rfc3339(expected.at);
    let wanted = (&*at, expected.scope.name(), &*expected.key, &*expected.policy, expected.state);
    equal("at, scope, key, policy, state", &actual, &wanted)?;
    equal("revision", &data.revision, &expected.revision)?;
    equal("version", &data.policy.version, &expected.version)?;
    equal("mode", &*data.policy.mode, expected.mode.name())?;
    equal("specversion", &*event.specversion, "1.0")?;
    equal("type", &*event.kind, "flopwatch.alert.v1")?;
    equal("id", &event.id, &format!("{}/{}", data.alert_id, data.revision))?;
    equal("subject", &event.subject, &format!("{}/{}", expected.scope.name(), expected.key))?;
    equal("time", &event.time, &at)?;
    equal("accounts", &data.accounts, &expected.accounts)?;
    equal("accounts_total", &data.accounts_total, &expected.accounts_total)?;
    check_origin(data, expected)?;
    check_conditions(data, expected)?;
    let estimate = &data.estimate;
    bits("estimate.flop_low", estimate.flop_low, expected.estimate.flop_low)?;
    bits("estimate.flop", estimate.flop, expected.estimate.flop)?;
    bits("estimate.flop_high", estimate.flop_high, expected.estimate.flop_high)?;
    bits("estimate.flop_allocated", estimate.flop_allocated, expected.estimate.flop_allocated)?;
    bits("estimate.accelerators", estimate.accelerators, expected.estimate.accelerators)?;
    bits("accelerator_hours", estimate.accelerator_hours, expected.estimate.accelerator_hours)?;
    check_run(data.run.as_ref(), expected.run)?;
    equal("first_at", &data.first_at, &rfc3339(expected.first_at))?;
    equal("report_due", &data.report_due, &expected.report_due.map(rfc3339))?;
    check_evidence(&data.evidence, &expected.evidence)
}

fn check_origin(data: &Data, expected: &Alert) -> Result<(), String> {
    let decided_by = data.origin.decided_by.as_str();
    let is_told = |(country, foreign, field): &(String, bool, Option<&str>)| {
        *country == data.origin.country
            && *foreign == data.origin.foreign
            && field.is_none_or(|field| field == decided_by)
    };
    // An owner that has no account left has no origin either.
    if expected.origin.is_empty() || expected.origin.iter().any(is_told) {
        return Ok(());
    }
    Err(format!("origin: program {:?}, model one of {:?}", data.origin, expected.origin))
}

fn check_conditions(data: &Data, expected: &Alert) -> Result<(), String> {
    equal("number of conditions", &data.conditions.len(), &expected.conditions.len())?;
    for (actual, expected) in data.conditions.iter().zip(&expected.conditions) {
        let name = expected.metric;
        equal("metric", &*actual.metric, name)?;
        equal(name, &actual.window.as_deref().map(span), &expected.window)?;
        bits(&format!("observed {name}"), actual.observed, expected.observed)?;
        bits(&format!("at_least of {name}"), actual.at_least, expected.at_least)?;
        equal(&format!("met of {name}"), &actual.met, &expected.met)?;
    }
    Ok(())
}

fn check_run(actual: Option<&RunData>, expected: Option<RunView>) -> Result<(), String> {
    match (actual, expected) {
        (None, None) => Ok(()),
        (Some(actual), Some(expected)) => {
            equal("run.start", &actual.start, &rfc3339(expected.start))?;
            bits("run.hours", actual.hours, expected.hours)?;
            bits("run.flop_low", actual.flop_low, expected.flop_low)?;
            bits("run.flop", actual.flop, expected.flop)?;
            bits("run.flop_high", actual.flop_high, expected.flop_high)
        }
        (actual, expected) => Err(format!("run: {actual:?}, model {expected:?}")),
    }
}

/// Slices and shares that are all zero may be listed or not.
fn check_evidence(actual: &EvidenceData, expected: &Evidence) -> Result<(), String> {
    let slices: BTreeMap<Nanos, Amount> = actual
        .slices
        .iter()
        .map(|slice| {
            let amount = Amount {
                accelerator_ms: slice.accelerator_ms,
                flop: slice.flop_gflop,
                flop_allocated: slice.flop_allocated_gflop,
                flop_theoretical: slice.flop_theoretical_gflop,
            };
            (instant(&slice.end), amount)
        })
        .collect();
    equal("evidence.slices", &without_zeros(&slices), &without_zeros(&expected.slices))?;
    let shares = [
        ("by_accelerator", &actual.by_accelerator, &expected.by_accelerator),
        ("by_region", &actual.by_region, &expected.by_region),
        ("by_fabric", &actual.by_fabric, &expected.by_fabric),
    ];
    for (name, actual, expected) in shares {
        let actual = actual.iter().map(|(name, sum)| {
            let amount = Amount {
                accelerator_ms: sum.accelerator_ms,
                flop: sum.flop_gflop,
                flop_allocated: sum.flop_allocated_gflop,
                flop_theoretical: sum.flop_theoretical_gflop,
            };
            (name.clone(), amount)
        });
        equal(name, &without_zeros(&actual.collect()), &without_zeros(expected))?;
    }
    // An account that moved away leaves slices of nothing behind, which may still bear its mark.
    let is_residue = |(name, sum): (&String, &SumData)| {
        name.starts_with("unknown:") && sum.accelerator_ms == 0 && sum.flop_theoretical_gflop == 0
    };
    let marked = expected.unknown_accelerator || actual.by_accelerator.iter().any(is_residue);
    if actual.unknown_accelerator && marked {
        return Ok(());
    }
    equal("unknown_accelerator", &actual.unknown_accelerator, &expected.unknown_accelerator)
}

fn without_zeros<K: Ord + Clone>(sums: &BTreeMap<K, Amount>) -> BTreeMap<K, Amount> {
    let sums = sums.iter().filter(|(_, sum)| **sum != Amount::default());
    sums.map(|(key, sum)| (key.clone(), *sum)).collect()
}

fn equal<T: PartialEq<U> + std::fmt::Debug + ?Sized, U: std::fmt::Debug + ?Sized>(
    what: &str,
    actual: &T,
    expected: &U,
) -> Result<(), String> {
    if actual == expected {
        return Ok(());
    }
    Err(format!("{what}: program {actual:?}, model {expected:?}"))
}

fn bits(what: &str, actual: f64, expected: f64) -> Result<(), String> {
    if actual.to_bits() == expected.to_bits() {
        return Ok(());
    }
    Err(format!("{what}: program {actual:?}, model {expected:?}"))
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("{error} in {text}"))
}

fn instant(text: &str) -> Nanos {
    let instant: jiff::Timestamp = text.parse().expect("instants are RFC 3339");
    instant.as_nanosecond()
}

fn span(text: &str) -> Nanos {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "d" => DAY,
        "h" => HOUR,
        "m" => MINUTE,
        "s" => SECOND,
        other => panic!("a span in {other}"),
    };
    digits.parse::<Nanos>().expect("a whole number of units") * unit
}
