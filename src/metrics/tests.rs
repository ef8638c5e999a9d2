//! The table against what is written, against the golden list, and against the page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use super::*;
use crate::detector::alert::{Estimate, Evidence, Origin, PolicyRef};
use crate::detector::directory::Country;

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

/// Calls every recording function once.
fn record_everything() {
    record(&Tally::default());
    alert_published(&alert(State::Firing));
    alerts_moved(Mode::Live, "p", "account", "critical", 1);
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
        assert!(name.starts_with("flopwatch_"), "{name}");
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
        // paths and codes are known when they are asked for
        if series.name != table::HTTP_REQUESTS.name {
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
fn firing_alerts_go_up_and_down() {
    let series = "flopwatch_alerts_firing{mode=\"live\",policy=\"p\",scope=\"account\",\
                  severity=\"critical\"}";
    let text = render(|| {
        alert_published(&alert(State::Firing));
        alert_published(&alert(State::Updated));
        alerts_moved(Mode::Live, "p", "account", "critical", 2);
    });
    assert_eq!(value(&text, series), 3.0);
    let text = render(|| {
        alert_published(&alert(State::Firing));
        alert_published(&alert(State::Resolved));
    });
    assert_eq!(value(&text, series), 0.0);
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
         over its reasons.\n\n\
         | series | labels | kind | unit | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
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
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/flopwatch-alerts.yml");
    let rules = std::fs::read_to_string(path).expect("the rules are there");
    let known: BTreeSet<&str> = SERIES.iter().map(|series| series.name).collect();
    let mut used = 0;
    for (at, _) in rules.match_indices("flopwatch_") {
        let name = rules[at..]
            .split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
            .next()
            .expect("a split has a first part");
        assert!(known.contains(name), "{name} is not in the table");
        used += 1;
    }
    assert!(used > 20, "the rules use only {used} series");
}
