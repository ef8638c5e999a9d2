//! Properties of a whole replay, checked over seeded cases against a brute-force model and against
//! each other. `SEED=n CASES=m` choose the cases; a failure names its seed, and leaves the smallest
//! case that halving found in a folder, ready to be replayed by hand.

#[path = "support/reference/mod.rs"]
mod reference;
#[path = "support/scenario.rs"]
mod scenario;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use reference::comparison::{Ran, replay};
use reference::files::write;
use reference::input::{DAY, Line, MINUTE, Nanos, Scenario, Tier, ceil_to};
use reference::metering::Amount;
use reference::{Fault, outcome};
use scenario::scenario;
use tempfile::TempDir;

/// The seeds to try: `CASES` of them from `SEED` on.
fn seeds(default_cases: u64) -> Range<u64> {
    let setting = |name, default| match std::env::var(name) {
        Ok(text) => text.parse().expect("SEED and CASES are whole numbers"),
        Err(_) => default,
    };
    let first = setting("SEED", 0);
    first..first + setting("CASES", default_cases)
}

/// One replay in a folder of its own.
struct Replayed {
    folder: TempDir,
    files: Vec<PathBuf>,
    ran: Ran,
}

fn run(scenario: &Scenario) -> Result<Replayed, String> {
    let folder = TempDir::new().expect("a temporary folder");
    let files = write(scenario, folder.path());
    let ran = replay(folder.path(), &files)?;
    Ok(Replayed { folder, files, ran })
}

fn run_seed(seed: u64, scenario: &Scenario) -> Replayed {
    run(scenario).unwrap_or_else(|error| panic!("seed {seed}: {error}"))
}

/// How the program's outputs differ from the model's.
fn difference(scenario: &Scenario) -> Option<String> {
    let expected = outcome(scenario, Fault::None);
    run(scenario).and_then(|replayed| replayed.ran.check(scenario, &expected)).err()
}

#[test]
fn the_program_agrees_with_the_model() {
    for seed in seeds(120) {
        let scenario = scenario(seed);
        if difference(&scenario).is_some() {
            report_smallest(seed, scenario);
        }
    }
}

fn report_smallest(seed: u64, scenario: Scenario) -> ! {
    let smallest = shrink(scenario);
    let difference = difference(&smallest).unwrap_or_default();
    let folder = TempDir::new().expect("a temporary folder").keep();
    write(&smallest, &folder);
    panic!("seed {seed}, reduced in {}: {difference}", folder.display());
}

/// Leaves out ever smaller runs of lines, directory entries, policies and conditions while the
/// program and the model still differ.
fn shrink(scenario: Scenario) -> Scenario {
    let mut smallest = scenario;
    let mut budget = 600;
    loop {
        let before = smallest.clone();
        for partition in 0..smallest.partitions.len() {
            shrink_list(&mut smallest, &mut budget, |case| &mut case.partitions[partition]);
        }
        shrink_list(&mut smallest, &mut budget, |case| &mut case.directory);
        shrink_list(&mut smallest, &mut budget, |case| &mut case.policies);
        for policy in 0..smallest.policies.len() {
            shrink_list(&mut smallest, &mut budget, |case| &mut case.policies[policy].conditions);
        }
        if budget == 0 || size(&smallest) == size(&before) {
            return smallest;
        }
    }
}

fn size(case: &Scenario) -> usize {
    let lines: usize = case.partitions.iter().map(Vec::len).sum();
    let conditions: usize = case.policies.iter().map(|policy| policy.conditions.len()).sum();
    lines + case.directory.len() + case.policies.len() + conditions
}

fn shrink_list<T: Clone>(
    smallest: &mut Scenario,
    budget: &mut usize,
    list: impl Fn(&mut Scenario) -> &mut Vec<T>,
) {
    let mut chunk = list(smallest).len().div_ceil(2);
    while chunk > 0 {
        let mut from = 0;
        while from < list(smallest).len() && *budget > 0 {
            let mut candidate = smallest.clone();
            let kept = list(&mut candidate);
            kept.drain(from..kept.len().min(from + chunk));
            let is_valid = !candidate.policies.is_empty()
                && candidate.policies.iter().all(|policy| !policy.conditions.is_empty());
            *budget -= 1;
            if is_valid && difference(&candidate).is_some() {
                *smallest = candidate;
            } else {
                from += chunk;
            }
        }
        chunk /= 2;
    }
}

#[test]
fn the_suite_sees_planted_faults() {
    let mut unseen = Fault::PLANTED.to_vec();
    for seed in seeds(200) {
        let scenario = scenario(seed);
        let faithful = outcome(&scenario, Fault::None);
        let faulty: Vec<_> =
            unseen.iter().map(|fault| (*fault, outcome(&scenario, *fault))).collect();
        if faulty.iter().all(|(_, outcome)| *outcome == faithful) {
            continue;
        }
        let replayed = run_seed(seed, &scenario);
        for (fault, outcome) in faulty {
            if replayed.ran.check(&scenario, &outcome).is_err() {
                unseen.retain(|other| *other != fault);
            }
        }
        if unseen.is_empty() {
            return;
        }
    }
    panic!("the cases do not tell {unseen:?} from the contract");
}

const OUTPUTS: [&str; 4] = ["alerts.ndjson", "shadow.ndjson", "ledger.ndjson", "summary.json"];

#[test]
fn the_order_of_usage_files_changes_no_byte() {
    for seed in seeds(30) {
        let replayed = run_seed(seed, &scenario(seed));
        let before = OUTPUTS.map(|name| replayed.ran.output(name));
        let files: Vec<PathBuf> = replayed.files.iter().rev().cloned().collect();
        let again = replay(replayed.folder.path(), &files)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(before, OUTPUTS.map(|name| again.output(name)), "seed {seed}");
    }
}

#[test]
fn every_record_is_counted_or_a_duplicate_or_a_dead_letter() {
    for seed in seeds(30) {
        let scenario = scenario(seed);
        let replayed = run_seed(seed, &scenario);
        let summary = replayed.ran.summary().expect("a summary");
        let written: usize = scenario.partitions.iter().map(Vec::len).sum();
        let dead_letters = replayed.ran.output("dead.ndjson").lines().count();
        let reasons: u64 = summary.dead_letters.values().sum();
        assert_eq!(u64::try_from(written), Ok(summary.read), "seed {seed}");
        assert_eq!(u64::try_from(dead_letters), Ok(summary.dead_letter), "seed {seed}");
        assert_eq!(reasons, summary.dead_letter, "seed {seed}");
        let accounted = summary.counted + summary.duplicate + summary.dead_letter;
        assert_eq!(accounted, summary.read, "seed {seed}");
        assert!(summary.late <= summary.counted, "seed {seed}");
    }
}

#[test]
fn dead_letters_leave_no_trace() {
    for seed in seeds(30) {
        let mut scenario = scenario(seed);
        let with = run_seed(seed, &scenario);
        let refused = outcome(&scenario, Fault::None).dead_letters;
        for (lines, refused) in scenario.partitions.iter_mut().zip(refused) {
            for (line, _) in refused.iter().rev() {
                lines.remove(line - 1);
            }
        }
        let without = run_seed(seed, &scenario);
        for name in ["alerts.ndjson", "shadow.ndjson", "ledger.ndjson"] {
            assert_eq!(with.ran.output(name), without.ran.output(name), "seed {seed}");
        }
        let remaining = without.ran.summary().expect("a summary").dead_letter;
        assert_eq!(remaining, 0, "seed {seed}");
    }
}

#[test]
fn owners_and_countries_add_up_to_their_accounts() {
    for seed in seeds(30) {
        let replayed = run_seed(seed, &scenario(seed));
        let mut sums: BTreeMap<(String, Nanos), Amount> = BTreeMap::new();
        for ((scope, _, end), amount) in replayed.ran.ledger().expect("a ledger") {
            let sum = sums.entry((scope, end)).or_default();
            *sum = sum.plus(amount);
        }
        let of = |wanted: &str| -> Vec<(Nanos, Amount)> {
            let nonzero = sums.iter().filter(|(_, sum)| **sum != Amount::default());
            nonzero
                .filter(|((scope, _), _)| scope == wanted)
                .map(|((_, end), sum)| (*end, *sum))
                .collect()
        };
        assert_eq!(of("account"), of("owner"), "seed {seed}");
        assert_eq!(of("account"), of("country"), "seed {seed}");
    }
}

/// Nothing is too old for the ledger here, whatever the slices.
#[test]
fn a_day_is_the_sum_of_its_quarter_hours() {
    for seed in seeds(30) {
        let mut scenario = scenario(seed);
        scenario.settings.epoch = 5 * MINUTE;
        scenario.settings.lateness = 0;
        scenario.settings.max_gap = DAY;
        scenario.policies.truncate(1);
        scenario.policies[0].window = None;
        scenario.policies[0].conditions.truncate(1);
        scenario.policies[0].conditions[0].window = Some(DAY);
        let mut ledger_of = |slice: Nanos| {
            scenario.settings.tiers = vec![Tier { slice, keep: 400 * DAY }];
            let replayed = run_seed(seed, &scenario);
            let mut days: BTreeMap<(String, String, Nanos), Amount> = BTreeMap::new();
            for ((scope, key, end), amount) in replayed.ran.ledger().expect("a ledger") {
                let day = days.entry((scope, key, ceil_to(end, DAY))).or_default();
                *day = day.plus(amount);
            }
            days.retain(|_, sum| *sum != Amount::default());
            days
        };
        assert_eq!(ledger_of(15 * MINUTE), ledger_of(DAY), "seed {seed}");
    }
}

/// Which rules the cases of the first seeds reach: a generator that goes blind must not go unseen.
#[test]
fn the_cases_reach_every_rule() {
    let mut reached: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..100 {
        let scenario = scenario(seed);
        let outcome = outcome(&scenario, Fault::None);
        let mut reach = |name: String| *reached.entry(name).or_default() += 1;
        for reason in outcome.summary.dead_letters.keys() {
            reach(reason.clone());
        }
        for (name, count) in [
            ("duplicate", outcome.summary.duplicate),
            ("late", outcome.summary.late),
            ("ledger", u64::try_from(outcome.ledger.len()).expect("a count fits")),
            ("shadow", u64::try_from(outcome.shadow.len()).expect("a count fits")),
        ] {
            if count > 0 {
                reach(name.to_owned());
            }
        }
        for alert in &outcome.live {
            reach(format!("{} {}", alert.scope.name(), alert.state));
            for condition in alert.conditions.iter().filter(|condition| condition.met) {
                reach(condition.metric.to_owned());
            }
        }
        let lines = scenario.partitions.iter().flatten();
        let corrections = lines.filter(|line| matches!(line, Line::Event(e) if e.correction));
        if corrections.count() > 0 {
            reach("correction".to_owned());
        }
    }
    let few: Vec<_> = reached.iter().filter(|(_, count)| **count < 3).collect();
    assert!(few.is_empty(), "hardly reached: {few:?}");
    // 12 reasons, 5 others, 12 alert states, 15 metrics.
    assert_eq!(reached.len(), 44, "{reached:?}");
}
