//! `flopwatch validate`: public job traces through the pipeline against a plain sum, and the
//! estimator against published training runs.
//!
//! Where a trace names no accelerator, one is assumed: by default an A100, which none of those
//! clusters surpassed at the time, so that what stays silent here stays silent on the truth. All
//! accounts are taken to be foreign, so that every policy looks at them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::detector::alert::{Alert, State};
use crate::detector::catalogue::Catalogue;
use crate::detector::decode::decode_account;
use crate::detector::event::UsageEvent;
use crate::detector::outbox::{DeadLetter, Tally};
use crate::detector::time::Span;
use crate::error::Fatal;
use crate::record_file::Format;
use crate::replay::{LedgerRow, Outcome, Sink, Source, replay};
use crate::simulate::Trace;
use crate::simulate::cloud::partition;
use crate::simulate::encode::{encode_account, encode_event};
use crate::simulate::trace::Events;

/// No account of the public traces comes near these: they must stay silent.
const SILENT: [&str; 3] = ["validate-run", "validate-month", "validate-sustained"];

/// Everything is retained, so that the ledger is the whole trace; the shipped policies are judged
/// beside those that must stay silent.
const CONFIG: &str = r#"
policies = ["preset:default"]
[[tier]]
slice = "1h"
keep = "1500d"
[[policy]]
id = "validate-run"
version = 1
title = "A run of 1e23 FLOP"
severity = "critical"
mode = "live"
scope = "account"
origin = "any"
[[policy.all]]
metric = "run_flop_high"
at_least = 1e23
[[policy]]
id = "validate-month"
version = 1
title = "1e23 FLOP within 30 days"
severity = "critical"
mode = "live"
scope = "account"
origin = "any"
window = "30d"
[[policy.all]]
metric = "flop_high"
at_least = 1e23
[[policy]]
id = "validate-sustained"
version = 1
title = "512 accelerators for 72 hours"
severity = "critical"
mode = "live"
scope = "account"
origin = "any"
window = "72h"
[[policy.all]]
metric = "sustained"
accelerators = 512
at_least = 0.9
[[policy]]
id = "validate-fires"
version = 1
title = "1e22 FLOP within 30 days: shows that silence is not deafness"
severity = "info"
mode = "live"
scope = "account"
origin = "foreign"
window = "30d"
[[policy.all]]
metric = "flop_high"
at_least = 1e22
"#;

const PARTITIONS: u32 = 4;
/// Accounts printed for each trace.
const TOP: usize = 5;

/// Check the pipeline on public traces and the estimator on published runs.
///
/// DIR holds traces/*.csv[.gz] and runs.csv. Every trace becomes metering events, which go through
/// the stages of `run`; the sums must equal a plain sum over the events to the last GFLOP, and
/// policies at 1e23 FLOP or 512 accelerators for 72 hours must stay silent.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Metering interval.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = super::duration::parse_span)]
    interval: Span,
    /// Accelerator of jobs that name none.
    #[arg(long, value_name = "NAME", default_value = "nvidia-a100-80-sxm")]
    accelerator: String,
}

pub fn execute(args: Args) -> Result<(), Fatal> {
    let mut out = io::stdout().lock();
    let failures = validate(&args, &mut out)?;
    if failures.is_empty() {
        return Ok(());
    }
    Err(Fatal::Input(format!("validation failed: {}", failures.join("; "))))
}

/// Prints the findings and returns what failed.
fn validate(args: &Args, out: &mut impl Write) -> Result<Vec<String>, Fatal> {
    let config = Config::from_text("the validation's configuration", CONFIG)?;
    let mut failures = Vec::new();
    let traces = trace_files(&args.data)?;
    for path in &traces {
        failures.extend(validate_trace(path, args, &config, out)?);
    }
    validate_estimator(&args.data.join("runs.csv"), &config, out)?;
    Ok(failures)
}

fn trace_files(data: &Path) -> Result<Vec<PathBuf>, Fatal> {
    let directory = data.join("traces");
    let refuse = |error: &dyn std::fmt::Display| {
        Fatal::Input(format!("{}: cannot be listed: {error}", directory.display()))
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(&directory).map_err(|error| refuse(&error))? {
        let path = entry.map_err(|error| refuse(&error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".csv") || name.ends_with(".csv.gz") || name.ends_with(".csv.zst") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    if paths.is_empty() {
        return Err(refuse(&"it holds no *.csv, *.csv.gz or *.csv.zst"));
    }
    Ok(paths)
}

fn validate_trace(
    path: &Path,
    args: &Args,
    config: &Config,
    out: &mut impl Write,
) -> Result<Vec<String>, Fatal> {
    let trace = Trace::open(path, &args.accelerator)?;
    let plain = PlainSums::over(&trace, args.interval, config);
    let mut found = Found::default();
    let outcome = run(&trace, args.interval, config, &mut found)?;
    let failures = compare(&trace.source, &plain, &outcome, &found);
    print_trace(out, &trace, args, &plain, &outcome.tally, &found, &failures)
        .map_err(|error| Fatal::Input(format!("standard output: {error}")))?;
    Ok(failures)
}

/// The plain sum: each event on its own, in the order of the file, no slice or stage in sight.
#[derive(Default)]
struct PlainSums {
    events: u64,
    accounts: BTreeMap<String, Sums>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sums {
    accelerator_ms: i128,
    flop: i128,
    allocated: i128,
    theoretical: i128,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.accelerator_ms += other.accelerator_ms;
        self.flop += other.flop;
        self.allocated += other.allocated;
        self.theoretical += other.theoretical;
    }
}

impl PlainSums {
    fn over(trace: &Trace, interval: Span, config: &Config) -> Self {
        let rules = &config.rules;
        let mut plain = Self::default();
        for event in trace.events(interval) {
            plain.events += 1;
            let resolved = rules.catalogue.resolve(&event.accelerator, &event.instance_type);
            let peaks = resolved.peaks;
            let quantity = event.quantity;
            #[expect(clippy::cast_precision_loss, reason = "the contract's arithmetic is f64")]
            let seconds = (event.end.0 - event.start.0) as f64 / 1e9;
            let central = rules.utilization.central;
            let sums = Sums {
                accelerator_ms: integer(quantity * seconds * 1000.0),
                flop: integer(quantity * seconds * peaks.dense16 * central / 1e9),
                allocated: integer(quantity * seconds * peaks.dense16 / 1e9),
                theoretical: integer(quantity * seconds * peaks.dense_max / 1e9),
            };
            plain.accounts.entry(event.account_id.to_string()).or_default().add(sums);
        }
        plain
    }
}

#[expect(clippy::cast_possible_truncation, reason = "sums of a trace lie far below 2^127")]
fn integer(value: f64) -> i128 {
    value.round() as i128
}

/// What the pipeline said while it ran.
#[derive(Default)]
struct Found {
    /// First alerts by policy.
    firing: BTreeMap<String, Vec<String>>,
    dead_letters: Vec<String>,
}

impl Sink for Found {
    fn alert(&mut self, alert: &Alert) -> Result<(), Fatal> {
        if alert.state == State::Firing {
            let key = format!("{}/{}", alert.scope, alert.key);
            self.firing.entry(alert.policy.id.clone()).or_default().push(key);
        }
        Ok(())
    }

    fn dead_letter(&mut self, _source: usize, letter: &DeadLetter) -> Result<(), Fatal> {
        self.dead_letters.push(letter.invalid.detail.clone());
        Ok(())
    }
}

/// The events of one partition of a trace.
struct TraceSource<'a> {
    events: Events<'a>,
    partition: u32,
    number: u64,
    bytes: Vec<u8>,
}

impl TraceSource<'_> {
    fn is_mine(&self, event: &UsageEvent<'_>) -> bool {
        partition(event.account_id.as_bytes(), PARTITIONS) == self.partition
    }
}

impl Source for TraceSource<'_> {
    fn next(&mut self) -> Result<Option<(u64, &[u8])>, Fatal> {
        while let Some(event) = self.events.next() {
            if self.is_mine(&event) {
                encode_event(&event, Format::Delimited, &mut self.bytes);
                self.number += 1;
                return Ok(Some((self.number, &self.bytes)));
            }
        }
        Ok(None)
    }
}

fn run(
    trace: &Trace,
    interval: Span,
    config: &Config,
    found: &mut Found,
) -> Result<Outcome, Fatal> {
    let mut accounts = Vec::new();
    let mut bytes = Vec::new();
    for account in trace.directory("CN") {
        encode_account(&account, Format::Delimited, &mut bytes);
        let record = decode_account(None, Some(&bytes))
            .map_err(|invalid| Fatal::Internal(format!("an own account: {}", invalid.detail)))?;
        accounts.push(record);
    }
    let sources = (0..PARTITIONS)
        .map(|partition| {
            let events = trace.events(interval);
            let source = TraceSource { events, partition, number: 0, bytes: Vec::new() };
            Box::new(source) as Box<dyn Source + '_>
        })
        .collect();
    replay(&config.rules, &config.policies, &accounts, sources, found)
}

/// What does not agree, or fired and must not.
fn compare(source: &str, plain: &PlainSums, outcome: &Outcome, found: &Found) -> Vec<String> {
    let mut failures = Vec::new();
    let tally = &outcome.tally;
    if (tally.counted, tally.duplicate, tally.dead_letter_total()) != (plain.events, 0, 0) {
        let first = found.dead_letters.first().map_or("", String::as_str);
        failures.push(format!(
            "{source}: of {} events {} were counted, {} taken for duplicates, {} refused {first}",
            plain.events,
            tally.counted,
            tally.duplicate,
            tally.dead_letter_total()
        ));
    }
    for scope in ["account", "owner"] {
        let sums = ledger_sums(&outcome.ledger, scope);
        for (key, expected) in &plain.accounts {
            let seen = sums.get(key).copied().unwrap_or_default();
            if seen != *expected {
                failures.push(format!("{source}: {scope} {key} is {seen:?}, not {expected:?}"));
            }
        }
    }
    let mut total = Sums::default();
    plain.accounts.values().for_each(|sums| total.add(*sums));
    let countries = ledger_sums(&outcome.ledger, "country");
    if countries.get("CN") != Some(&total) {
        failures.push(format!("{source}: the country is {countries:?}, not {total:?}"));
    }
    for policy in SILENT {
        if let Some(keys) = found.firing.get(policy) {
            failures.push(format!("{source}: policy {policy} fired for {}", keys.join(", ")));
        }
    }
    failures
}

fn ledger_sums(ledger: &[LedgerRow], scope: &str) -> BTreeMap<String, Sums> {
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    for row in ledger.iter().filter(|row| row.scope == scope) {
        sums.entry(row.key.clone()).or_default().add(Sums {
            accelerator_ms: row.sum.accelerator_ms,
            flop: row.sum.flop_gflop,
            allocated: row.sum.flop_allocated_gflop,
            theoretical: row.sum.flop_theoretical_gflop,
        });
    }
    sums
}

fn print_trace(
    out: &mut impl Write,
    trace: &Trace,
    args: &Args,
    plain: &PlainSums,
    tally: &Tally,
    found: &Found,
    failures: &[String],
) -> io::Result<()> {
    writeln!(
        out,
        "{}: {} jobs ({} taken to run on {}), {} accounts, {} events of at most {}",
        trace.source,
        trace.jobs(),
        trace.assumed,
        args.accelerator,
        plain.accounts.len(),
        plain.events,
        args.interval
    )?;
    writeln!(
        out,
        "  counted {}, late {}, unknown accelerator {}",
        tally.counted, tally.late, tally.unknown_accelerator
    )?;
    let mut top: Vec<(&String, &Sums)> = plain.accounts.iter().collect();
    top.sort_by_key(|(_, sums)| std::cmp::Reverse(sums.flop));
    writeln!(out, "  {:<28} {:>9} {:>9} {:>9} FLOP", "largest accounts", "low", "central", "high")?;
    for (account, sums) in top.into_iter().take(TOP) {
        let [low, central, high] = band(sums);
        writeln!(out, "  {account:<28} {low:>9.2e} {central:>9.2e} {high:>9.2e}")?;
    }
    for policy in SILENT {
        if !found.firing.contains_key(policy) {
            writeln!(out, "  {policy}: silent")?;
        }
    }
    for (policy, keys) in &found.firing {
        let named: Vec<&str> = keys.iter().take(TOP).map(String::as_str).collect();
        let more = if keys.len() > TOP { ", ..." } else { "" };
        writeln!(out, "  {policy}: {} alerts ({}{more})", keys.len(), named.join(", "))?;
    }
    if failures.is_empty() {
        writeln!(out, "  sums by account, owner and country agree with a plain sum, to the GFLOP")?;
    }
    for failure in failures {
        writeln!(out, "  WRONG: {failure}")?;
    }
    writeln!(out)
}

/// FLOP at the low, central and high utilisation; traces have no telemetry.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn band(sums: &Sums) -> [f64; 3] {
    let allocated = sums.allocated as f64 * 1e9;
    [allocated * 0.18, sums.flop as f64 * 1e9, allocated * 0.50]
}

/// How far the estimate is from the FLOP that the runs' authors published.
fn validate_estimator(path: &Path, config: &Config, out: &mut impl Write) -> Result<(), Fatal> {
    let refuse = |error: &dyn std::fmt::Display| {
        Fatal::Input(format!("{}: cannot be read: {error}", path.display()))
    };
    let text = fs::read(path).map_err(|error| refuse(&error))?;
    let runs = read_runs(&text, &config.rules.catalogue).map_err(|error| refuse(&error))?;
    let utilization = config.rules.utilization;
    let total = runs.len();
    let share = |within: &dyn Fn(f64) -> bool| {
        runs.iter().filter(|run| within(run.flop / run.allocated)).count()
    };
    let within = |factor: f64| {
        share(&|used| {
            let ratio = utilization.central / used;
            ratio <= factor && ratio >= 1.0 / factor
        })
    };
    let inside = share(&|used| used >= utilization.low && used <= utilization.high);
    let mut print = || -> io::Result<()> {
        writeln!(out, "estimator over {total} published runs, by chip-hours x 16-bit peak:")?;
        writeln!(
            out,
            "  inside the band {} to {}: {inside} of {total}",
            utilization.low, utilization.high
        )?;
        writeln!(out, "  central {} within x1.5: {} of {total}", utilization.central, within(1.5))?;
        writeln!(out, "  central {} within x2: {} of {total}", utilization.central, within(2.0))?;
        for run in &runs {
            let estimate = run.allocated * utilization.central;
            writeln!(
                out,
                "  {:<24} published {:.2e}, estimated {estimate:.2e} ({:.2}x)",
                run.name,
                run.flop,
                estimate / run.flop
            )?;
        }
        Ok(())
    };
    print().map_err(|error| Fatal::Input(format!("standard output: {error}")))
}

struct PublishedRun {
    name: String,
    flop: f64,
    /// At the 16-bit peak of all its chip-hours.
    allocated: f64,
}

fn read_runs(text: &[u8], catalogue: &Catalogue) -> Result<Vec<PublishedRun>, String> {
    let mut reader = csv::Reader::from_reader(text);
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let column = |name: &str| {
        header.iter().position(|column| column == name).ok_or_else(|| format!("no column {name}"))
    };
    let (name, chip) = (column("run")?, column("chip")?);
    let (chip_hours, flop) = (column("chip_hours")?, column("flop")?);
    let mut runs = Vec::new();
    for row in reader.records() {
        let row = row.map_err(|error| error.to_string())?;
        let line = row.position().map_or(0, csv::Position::line);
        let text = |column: usize| row.get(column).unwrap_or_default().trim();
        let number = |column: usize| {
            text(column)
                .parse::<f64>()
                .map_err(|_| format!("line {line}: {:?} is no number", text(column)))
        };
        let resolved = catalogue.resolve(text(chip), "");
        if resolved.unknown {
            return Err(format!("line {line}: the catalogue has no {:?}", text(chip)));
        }
        runs.push(PublishedRun {
            name: text(name).to_owned(),
            flop: number(flop)?,
            allocated: number(chip_hours)? * 3600.0 * resolved.peaks.dense16,
        });
    }
    Ok(runs)
}
