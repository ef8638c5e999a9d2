//! The table against what is written, against the golden list, and against the page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use super::*;
use crate::detector::alert::{Estimate, Evidence, Origin, PolicyRef};
use crate::detector::directory::Country;
use crate::detector::measure::Measure;
use crate::detector::policy::{Scope, Severity};

/// Everything a recorder of ours shows after `act`.
fn render(act: impl FnOnce()) -> String {
    let recorder = recorder().expect("the buckets are not empty");
    metrics::with_local_recorder(&recorder, || {
        describe();
        act();
    });
    recorder.handle().render()
}

/// The value of the one line that starts with `series` and a space.
fn value(text: &str, series: &str) -> f64 {
    let found: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).collect();
    assert_eq!(found.len(), 1, "{series} in\n{text}");
    found[0].parse().expect("a number")
}

fn alert(state: State) -> Alert {
    Alert {
        alert_id: "0".into(),
        revision: 1,
        state,
        at: Timestamp::EARLIEST,
        reason: None,
        policy: PolicyRef {
            id: "p".into(),
            version: 1,
            title: String::new(),
            severity: "critical",
            mode: Mode::Live,
            hash: String::new(),
            references: Vec::new(),
        },
        scope: "account",
        key: "a".into(),
        accounts: Vec::new(),
        accounts_total: 1,
        origin: Origin {
            country: Country::UNKNOWN,
            foreign: true,
            decided_by: "unknown",
            foreign_by: Vec::new(),
            facts: BTreeMap::new(),
        },
        conditions: Vec::new(),
        estimate: Estimate {
            flop_low: 0.0,
            flop: 0.0,
            flop_high: 0.0,
            flop_allocated: 0.0,
            accelerators: 0.0,
            accelerator_hours: 0.0,
        },
        run: None,
        projection: None,
        evidence: Evidence::default(),
        first_at: Timestamp::EARLIEST,
        report_due: None,
    }
}

/// What librdkafka says, shortened to what is read of it.
const STATISTICS: &str = r#"{"tx":1,"tx_bytes":1,"rx":1,"rx_bytes":1,"txmsgs":1,"rxmsgs":1,
    "brokers":{"b:9092/3":{"nodeid":3,"source":"learned","req_timeouts":1,"disconnects":1,
    "rtt":{"avg":1,"p99":1,"cnt":1}}},"topics":{"t":{"partitions":{"0":{"partition":0,
    "fetch_state":"active","fetchq_cnt":1,"fetchq_size":1,"app_offset":1,"ls_offset":2}}}}}"#;

/// Alerts of policy `p` at account scope, by severity.
fn firing(counts: &[(&'static str, u32)]) -> Firing {
    let key = |severity| FiringKey {
        mode: Mode::Live,
        policy: "p".into(),
        scope: Scope::Account,
        severity,
    };
    Firing(counts.iter().map(|(severity, count)| (key(severity), *count)).collect())
}

/// A tally with compute of a country at home, one abroad and an unknown one.
fn compute() -> Tally {
    let mut tally = Tally::default();
    let measure = Measure { accelerator_ms: 1500, flop_allocated: 7, ..Measure::ZERO };
    let home = [Country::parse("US").expect("a country")];
    for country in ["US", "FR", "ZZ"] {
        let country = Country::parse(country).unwrap_or(Country::UNKNOWN);
        tally.compute_of(country, &home, &measure);
        tally.compute_of(country, &home, &-measure);
    }
    tally
}

/// Calls every recording function once.
fn record_everything() {
    record(&Tally::default());
    record(&compute());
    alert_published(&alert(State::Firing));
    let mut alerts = FiringSeries::default();
    alerts.show(firing(&[("critical", 1)]));
    for client in [librdkafka::Client::Consumer, librdkafka::Client::Producer] {
        assert!(librdkafka::Bridge::new(client, 0).record(STATISTICS.as_bytes()));
    }
    committed(0, Duration::from_millis(3));
    aborted(Abort::Failed);
    rebalanced(Rebalance::Assigned);
    notified(Target::Webhook, 1);
    not_notified(Target::Webhook, Undelivered::Again);
    notify_lag(Target::Webhook, 1);
    notify_kept(1);
    gap_accepted(Stage::Meter, 1);
    restore_read(Stage::Meter, 1);
    directory_read(1);
    directory_invalid();
    policies_in_force(&Policies::default());
    policies_reloaded(true);
    http_answered("/metrics", 200);
    sample(true);
    let mut partition = PartitionSeries::new(Stage::Meter, 0);
    partition.watermark(Timestamp::EARLIEST);
    partition.lag(1);
    partition.idle(true);
    partition.paused(true);
    partition.restoring(1, 2, Duration::from_secs(1));
    partition.restored(Duration::from_secs(2));
}

#[test]
fn the_table_and_what_is_written_are_the_same() {
    let text = render(record_everything);
    let mut written: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a kind");
        written.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
    }
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (series, _) = line.rsplit_once(' ').expect("a series and a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|base| written.contains_key(*base))
            .unwrap_or(name);
        let names = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let entry = written.get_mut(base).expect("a TYPE line for every sample");
        entry.1.extend(
            names
                .filter_map(|label| label.split_once('='))
                .map(|(name, _)| name.to_owned())
                .filter(|name| name != "le"),
        );
    }
    let table: BTreeMap<String, (String, BTreeSet<String>)> = SERIES
        .iter()
        .map(|series| {
            let labels = series.labels.iter().map(|&label| label.to_owned()).collect();
            (series.name.to_owned(), (series.kind.name().to_owned(), labels))
        })
        .collect();
    assert_eq!(written, table);
    for series in SERIES {
        let help = format!("# HELP {} {}", series.name, series.help);
        assert!(text.contains(&help), "no help for {}", series.name);
    }
}

#[test]
fn names_follow_the_conventions_and_no_label_names_an_account() {
    let mut seen = BTreeSet::new();
    for series in SERIES {
        let Series { name, kind, unit, labels, help } = *series;
        assert!(seen.insert(name), "{name} is in the table twice");
        let of_librdkafka = name.starts_with("librdkafka_");
        assert!(name.starts_with("flopwatch_") || of_librdkafka, "{name}");
        assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "{name}");
        match unit {
            Unit::Seconds => assert!(name.ends_with("_seconds"), "{name}"),
            Unit::Timestamp => assert!(name.ends_with("_timestamp_seconds"), "{name}"),
            Unit::Bytes => assert!(name.ends_with("_bytes"), "{name}"),
            Unit::Ratio => assert!(name.ends_with("_ratio"), "{name}"),
            Unit::Info => assert!(name.ends_with("_info"), "{name}"),
            Unit::Count => {}
        }
        for label in labels {
            assert!(!label.contains("account") && !label.contains("owner"), "{name}{{{label}}}");
        }
        assert!(help.ends_with('.') && help.len() <= 240, "{name}: {help}");
    }
}

#[test]
fn conservation_can_be_added_up_from_the_page() {
    let mut tally = Tally { read: 10, counted: 6, duplicate: 1, late: 2, ..Tally::default() };
    tally.dead_letter(Reason::Id);
    tally.dead_letter(Reason::Id);
    tally.dead_letter(Reason::BeyondHorizon);
    let text = render(|| {
        record(&tally);
        record(&tally);
    });
    let dead: f64 = Reason::ALL
        .iter()
        .map(|reason| {
            let name = reason.name();
            value(&text, &format!("flopwatch_events_dead_lettered_total{{reason=\"{name}\"}}"))
        })
        .sum();
    assert_eq!(dead, 6.0);
    let counted = value(&text, "flopwatch_events_counted_total");
    let duplicate = value(&text, "flopwatch_events_duplicate_total");
    assert_eq!(value(&text, "flopwatch_events_read_total"), counted + duplicate + dead);
    assert_eq!(value(&text, "flopwatch_events_late_total"), 4.0);
}

#[test]
fn counters_are_there_at_zero_before_anything_happens() {
    let text = render(|| {});
    for series in SERIES.iter().filter(|series| series.kind == Kind::Counter) {
        // paths and codes are known when they are asked for, countries when they compute
        let later = ["path", "country"].iter().any(|label| series.labels.contains(label));
        if !later && !series.name.starts_with("librdkafka_") {
            assert!(text.contains(&format!("\n{}", series.name)), "{}", series.name);
        }
    }
}

#[test]
fn a_partition_that_left_matches_no_threshold_and_is_counted_nowhere() {
    let watermark = "flopwatch_watermark_timestamp_seconds{stage=\"meter\",partition=\"7\"}";
    let assigned = "flopwatch_partitions_assigned{stage=\"meter\"}";
    let mut held = None;
    let recorder = recorder().expect("the buckets are not empty");
    metrics::with_local_recorder(&recorder, || {
        let mut partition = PartitionSeries::new(Stage::Meter, 7);
        partition.watermark(Timestamp(1_500_000_000));
        partition.paused(true);
        partition.paused(true);
        held = Some(partition);
    });
    let text = recorder.handle().render();
    assert_eq!(value(&text, watermark), 1.5);
    assert_eq!(value(&text, assigned), 1.0);
    assert_eq!(value(&text, "flopwatch_partitions_paused"), 1.0);
    drop(held);
    let text = recorder.handle().render();
    assert!(value(&text, watermark).is_nan());
    assert_eq!(value(&text, assigned), 0.0);
    assert_eq!(value(&text, "flopwatch_partitions_paused"), 0.0);
}

#[test]
fn the_remaining_time_of_a_restore_follows_its_rate() {
    let labels = "{stage=\"account\",partition=\"1\"}";
    let recorder = recorder().expect("the buckets are not empty");
    metrics::with_local_recorder(&recorder, || {
        let partition = PartitionSeries::new(Stage::Account, 1);
        partition.restoring(250, 1000, Duration::from_secs(5));
        let text = recorder.handle().render();
        assert_eq!(value(&text, &format!("flopwatch_restore_progress_ratio{labels}")), 0.25);
        assert_eq!(value(&text, &format!("flopwatch_restore_remaining_seconds{labels}")), 15.0);
        partition.restoring(0, 0, Duration::ZERO);
        partition.restored(Duration::from_secs(6));
        let text = recorder.handle().render();
        assert_eq!(value(&text, &format!("flopwatch_restore_remaining_seconds{labels}")), 0.0);
        assert_eq!(value(&text, "flopwatch_restore_duration_seconds_sum{stage=\"account\"}"), 6.0);
    });
}

#[test]
fn firing_alerts_are_those_of_the_tasks_that_are_here() {
    let series = |severity: &str| {
        format!(
            "flopwatch_alerts_firing{{mode=\"live\",policy=\"p\",scope=\"account\",\
             severity=\"{severity}\"}}"
        )
    };
    let recorder = recorder().expect("the buckets are not empty");
    metrics::with_local_recorder(&recorder, || {
        let shown = |severity| value(&recorder.handle().render(), &series(severity));
        let mut here = FiringSeries::default();
        // restored with two that fire, beside another task's one
        here.show(firing(&[("critical", 2)]));
        let mut beside = FiringSeries::default();
        beside.show(firing(&[("critical", 1)]));
        assert_eq!(shown("critical"), 3.0);
        here.show(firing(&[("critical", 1), ("warning", 4)]));
        assert_eq!((shown("critical"), shown("warning")), (2.0, 4.0));
        here.show(firing(&[("warning", 4)]));
        assert_eq!((shown("critical"), shown("warning")), (1.0, 4.0));
        drop(here);
        assert_eq!((shown("critical"), shown("warning")), (1.0, 0.0));
        drop(beside);
        assert_eq!(shown("critical"), 0.0);
    });
}

#[test]
fn compute_is_counted_by_country_and_what_it_is_to_us_and_never_falls() {
    let text = render(|| {
        record(&compute());
        record(&compute());
    });
    for labels in [
        "{country=\"US\",origin=\"home\"}",
        "{country=\"FR\",origin=\"foreign\"}",
        "{country=\"ZZ\",origin=\"unknown\"}",
    ] {
        let ms = format!("flopwatch_country_accelerator_ms_total{labels}");
        assert_eq!(value(&text, &ms), 3000.0);
        let gflop = format!("flopwatch_country_flop_allocated_gflop_total{labels}");
        assert_eq!(value(&text, &gflop), 14.0);
    }
}

/// How many values a label can have in a deployment of `partitions` usage partitions, `workers`
/// threads a process, `policies` policies and `brokers` brokers; `None` for one without a bound.
fn most(label: &str, of: &Deployment) -> Option<usize> {
    Some(match label {
        "reason" => Reason::ALL.len(),
        "mode" => Mode::ALL.len() - 1,
        "state" | "origin" => 3,
        "policy" => of.policies,
        "scope" => Scope::ALL.len(),
        "severity" => Severity::ALL.len(),
        // ISO 3166-1 has 249, and ZZ; the directory decides which two letters are there
        "country" => 250,
        "stage" => Stage::ALL.len(),
        "partition" => of.partitions,
        "worker" => of.workers,
        "cause" => Abort::ALL.len().max(Undelivered::ALL.len()),
        "target" => Target::ALL.len(),
        "event" => Rebalance::ALL.len(),
        "outcome" | "client" => 2,
        "version" => 1,
        // three of ours and one for all others
        "path" => 5,
        "code" => 4,
        // and the two coordinators
        "broker" => of.brokers + 2,
        // what a worker reads
        "topic" => Stage::ALL.len(),
        _ => return None,
    })
}

struct Deployment {
    partitions: usize,
    workers: usize,
    policies: usize,
    brokers: usize,
}

impl Deployment {
    /// Lines on `/metrics` at most. A policy has one scope and one severity at a time.
    fn lines(&self, series: &Series) -> usize {
        let labels = series.labels.iter().filter(|label| {
            let of_policy = series.labels.contains(&"policy");
            // an origin belongs to its country
            let of_country = series.labels.contains(&"country");
            let with_policy = of_policy && matches!(**label, "mode" | "scope" | "severity");
            let with_country = of_country && **label == "origin";
            !with_policy && !with_country
        });
        let sets: usize =
            labels.map(|label| most(label, self).expect("every label has a bound")).product();
        let of_each = match series.kind {
            Kind::Counter | Kind::Gauge => 1,
            // buckets, +Inf, sum and count
            Kind::Histogram => table::BUCKETS_SECONDS.len() + 3,
        };
        sets * of_each
    }

    fn total(&self, prefix: &str) -> usize {
        let named = SERIES.iter().filter(|series| series.name.starts_with(prefix));
        named.map(|series| self.lines(series)).sum()
    }
}

/// What the page for operators reckons with.
const EXAMPLE: Deployment = Deployment { partitions: 24, workers: 4, policies: 20, brokers: 6 };

#[test]
fn every_series_is_bounded_by_the_deployment_and_not_by_its_tenants() {
    for label in SERIES.iter().flat_map(|series| series.labels) {
        assert!(most(label, &EXAMPLE).is_some(), "{label} has no bound");
    }
    assert_eq!(most("account_id", &EXAMPLE), None);
    let (ours, librdkafka) = (EXAMPLE.total("flopwatch_"), EXAMPLE.total("librdkafka_"));
    assert!(ours < 1500 && librdkafka < 600, "{ours} and {librdkafka} lines");
    let twice = Deployment { partitions: 48, ..EXAMPLE };
    assert!(twice.total("") < 2 * EXAMPLE.total(""), "only some grow with partitions");
}

/// The file holds `text`, or is made to hold it when `UPDATE_GOLDEN` is set.
fn assert_golden(path: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{} differs; UPDATE_GOLDEN=1 writes it", path.display());
}

#[test]
fn the_table_is_the_golden_list() {
    let mut list = String::new();
    for series in SERIES {
        let labels = series.labels.join(",");
        writeln!(
            list,
            "{} {} {} {{{labels}}}",
            series.name,
            series.kind.name(),
            series.unit.name()
        )
        .expect("writing to a string cannot fail");
    }
    assert_golden("tests/golden/series.txt", &list);
}

#[test]
fn the_page_for_operators_is_generated_from_the_table() {
    let mut page = String::from(
        "# Series on `/metrics`\n\n\
         Generated from `src/metrics/table.rs` by its tests: `UPDATE_GOLDEN=1 cargo test --lib \
         metrics::`. Conservation: `flopwatch_events_read_total` = `flopwatch_events_counted_total` \
         + `flopwatch_events_duplicate_total` + the sum of `flopwatch_events_dead_lettered_total` \
         over its reasons.\n\n",
    );
    let Deployment { partitions, workers, policies, brokers } = EXAMPLE;
    writeln!(
        page,
        "A process of {workers} workers with {policies} policies that has held every one of \
         {partitions} partitions shows at most {} lines, 500 of them for 250 countries; labels \
         come from enums, partitions, workers, brokers, policies and countries, never from \
         tenants. librdkafka's own statistics are off until `[kafka.client]` sets \
         `\"statistics.interval.ms\" = 15000`; then at most {} lines more with {brokers} \
         brokers.\n\n\
         | series | labels | kind | unit | meaning |\n| --- | --- | --- | --- | --- |",
        EXAMPLE.total("flopwatch_"),
        EXAMPLE.total("librdkafka_"),
    )
    .expect("writing to a string cannot fail");
    for series in SERIES {
        let labels: Vec<String> = series.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(
            page,
            "| `{}` | {} | {} | {} | {} |",
            series.name,
            labels.join(", "),
            series.kind.name(),
            series.unit.name(),
            series.help
        )
        .expect("writing to a string cannot fail");
    }
    assert_golden("deploy/prometheus/SERIES.md", &page);
}

#[test]
fn the_alert_rules_use_series_of_the_table() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    let known: BTreeSet<&str> = SERIES.iter().map(|series| series.name).collect();
    let mut used = 0;
    for file in ["flopwatch-recording.yml", "flopwatch-alerts.yml", "flopwatch-compliance.yml"] {
        let rules = std::fs::read_to_string(folder.join(file)).expect("the rules are there");
        // what a recording rule is called is its own
        let lines = rules.lines().filter(|line| !line.contains("- record: "));
        for word in lines.flat_map(|line| {
            line.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        }) {
            if word.starts_with("flopwatch_") {
                assert!(known.contains(word), "{file}: {word} is not in the table");
                used += 1;
            }
        }
    }
    assert!(used > 40, "the rules use series {used} times");
}
