//! The model against examples worked out by hand: it must be right before it can judge.

use super::input::{
    Condition, DAY, DirectoryLine, Event, Field, HOUR, Line, MINUTE, Metric, Mode, Nanos,
    OriginMatch, Policy, Scenario, Scope, Settings, Tier,
};
use super::judging::Alert;
use super::{Fault, Outcome, outcome};
use crate::scenario::START;

/// Hours of slices, one day kept beyond the longest gap, nothing late before an hour.
fn settings() -> Settings {
    Settings {
        epoch: 5 * MINUTE,
        lateness: HOUR,
        dedup_horizon: 2 * HOUR,
        max_future: 10 * MINUTE,
        max_interval: 31 * DAY,
        tiers: vec![Tier { slice: HOUR, keep: 30 * HOUR }, Tier { slice: DAY, keep: 9 * DAY }],
        home: vec!["US"],
        basis: Field::ALL.to_vec(),
        foreign_if_any: Field::ALL.to_vec(),
        unknown_is_foreign: true,
        low: 0.18,
        central: 0.33,
        high: 0.5,
        unknown: "nvidia-h100-sxm",
        unknown_count: 8,
        min_accelerators: 64.0,
        max_gap: 3 * HOUR,
    }
}

/// `quantity` H100 during the hour that ends `end` hours after the start, told at `time` hours.
fn hour(id: &str, quantity: f64, end: Nanos, time: Nanos) -> Event {
    Event {
        id: id.to_owned(),
        source: "m".to_owned(),
        account: "a".to_owned(),
        region: String::new(),
        fabric: "f".to_owned(),
        accelerator: "nvidia-h100-sxm".to_owned(),
        instance_type: String::new(),
        quantity,
        start: START + (end - 1) * HOUR,
        end: START + end * HOUR,
        time: START + time * HOUR,
        correction: false,
        utilization: None,
        tensor_active: None,
        spelling: 0,
    }
}

fn policy(scope: Scope, metric: Metric, at_least: f64) -> Policy {
    Policy {
        id: "p".to_owned(),
        version: 1,
        mode: Mode::Live,
        scope,
        origin: OriginMatch::Any,
        window: Some(HOUR),
        hold: 0,
        keep_firing: 0,
        renotify: None,
        report_within: None,
        conditions: vec![Condition { metric, window: None, at_least }],
    }
}

fn of(events: Vec<Event>, policy: Policy, directory: Vec<DirectoryLine>) -> Outcome {
    let lines = events.into_iter().map(|event| Line::Event(Box::new(event))).collect();
    let policies = vec![policy];
    let scenario = Scenario { settings: settings(), policies, directory, partitions: vec![lines] };
    outcome(&scenario, Fault::None)
}

fn idle_policy() -> Policy {
    policy(Scope::Account, Metric::Accelerators, 1e6)
}

/// State and slice end in hours after the start.
fn told(alerts: &[Alert]) -> Vec<(&'static str, Nanos)> {
    alerts.iter().map(|alert| (alert.state, (alert.at - START) / HOUR)).collect()
}

#[test]
fn eight_h100_for_an_hour_are_worth_what_the_data_sheet_says() {
    let outcome = of(vec![hour("1", 8.0, 1, 1)], idle_policy(), Vec::new());
    let key = ("account".to_owned(), "a".to_owned(), START + HOUR);
    let amount = outcome.ledger[&key];
    assert_eq!(amount.accelerator_ms, 28_800_000);
    assert_eq!(amount.flop_allocated, 28_494_720_000);
    assert_eq!(amount.flop_theoretical, 56_992_320_000);
    assert_eq!(amount.flop, 9_403_257_600);
    assert_eq!(outcome.ledger.len(), 3, "account, owner and country ZZ");
}

#[test]
fn an_odd_total_leaves_the_greater_part_to_the_later_slice() {
    let mut event = hour("1", 1.0, 1, 2);
    event.quantity = 3.0;
    (event.start, event.end) = (START + HOUR - 500_000, START + HOUR + 500_000);
    // 3 ms of accelerator time in all: half of it, rounded down, before the boundary.
    let outcome = of(vec![event], idle_policy(), Vec::new());
    let of_slice = |end: Nanos| outcome.ledger[&("account".to_owned(), "a".to_owned(), end)];
    assert_eq!(of_slice(START + HOUR).accelerator_ms, 1);
    assert_eq!(of_slice(START + 2 * HOUR).accelerator_ms, 2);
}

#[test]
fn usage_is_late_from_the_tag_that_its_first_slice_was_judged_with() {
    let events = vec![hour("on time", 1.0, 5, 6), hour("late", 1.0, 5, 6)];
    let late_of = |minutes: Nanos| {
        let mut events = events.clone();
        events[1].time = START + 6 * HOUR + minutes * MINUTE;
        events[0].time = START + 6 * HOUR - 1;
        of(events, idle_policy(), Vec::new()).summary.late
    };
    assert_eq!(late_of(-1), 0);
    assert_eq!(late_of(0), 1);
}

#[test]
fn an_identity_is_forgotten_once_its_time_lies_beyond_the_horizon() {
    let at = |time: Nanos| hour("same", 1.0, 5, time);
    let between = |time: Nanos| hour("between", 1.0, 5, time);
    let summary = |events| of(events, idle_policy(), Vec::new()).summary;
    assert_eq!(summary(vec![at(5), between(7), at(7)]).duplicate, 1);
    assert_eq!(summary(vec![at(5), between(8), at(8)]).counted, 3);
    let beyond = summary(vec![at(5), between(8), at(5)]);
    assert_eq!(beyond.dead_letters["beyond_horizon"], 1);
}

#[test]
fn an_alert_waits_for_hold_and_outlasts_keep_firing() {
    let mut policy = policy(Scope::Site, Metric::Accelerators, 10.0);
    (policy.hold, policy.keep_firing) = (HOUR, 2 * HOUR);
    let events = vec![
        hour("1", 10.0, 1, 1),
        hour("2", 10.0, 2, 2),
        hour("3", 9.0, 3, 3),
        hour("4", 20.0, 4, 4),
        hour("7", 1.0, 7, 7),
        hour("8", 1.0, 8, 8),
    ];
    let outcome = of(events, policy, Vec::new());
    let told = told(&outcome.live);
    assert_eq!(told, vec![("firing", 2), ("updated", 4), ("resolved", 7)]);
    assert_eq!(outcome.live[2].episode, START + HOUR);
    assert_eq!(outcome.live[2].key, "a@f");
}

#[test]
fn a_run_lasts_while_active_slices_are_at_most_the_gap_apart() {
    let events = |gap: Nanos| {
        vec![
            hour("1", 64.0, 1, 1),
            hour("between", 63.0, 2, 2),
            hour("2", 64.0, 1 + gap, 1 + gap),
            hour("3", 1.0, 2 + gap, 2 + gap),
        ]
    };
    let hours_of = |gap: Nanos| {
        let policy = policy(Scope::Owner, Metric::RunHours, 1.0);
        let outcome = of(events(gap), policy, Vec::new());
        let last = outcome.live.last().expect("a run");
        (last.state, last.conditions[0].observed, last.run.map(|run| run.flop))
    };
    // 64 + 63 + 64 + 1 accelerator-hours at a third of 989.4 TFLOP/s.
    let three_hours = of(events(3), policy(Scope::Owner, Metric::RunHours, 5.0), Vec::new());
    let run = three_hours.live[0].run.expect("a run");
    assert_eq!(three_hours.live[0].conditions[0].observed, 5.0);
    assert_eq!(run.flop, 192.0 * 3600.0 * 989.4e3 * 0.33 * 1e9);
    // A gap of four hours ends the run and starts another.
    assert_eq!(hours_of(4).0, "firing");
    assert_eq!(hours_of(4).1, 1.0);
}

#[test]
fn retained_slices_move_with_an_account_to_its_new_owner() {
    let entry = |owner: &str, updated: Nanos| DirectoryLine {
        account: "a".to_owned(),
        owner: owner.to_owned(),
        countries: ["", "US", "CN", ""],
        updated,
        deleted: false,
    };
    let mut policy = policy(Scope::Owner, Metric::AcceleratorHours, 10.0);
    policy.window = Some(4 * HOUR);
    let events = vec![hour("1", 10.0, 1, 1), hour("4", 1.0, 4, 4)];
    // In force from the step 3 h 5 min on: the judgement of 2 h was at 3 h.
    let directory = vec![entry("old", 0), entry("new", START + 3 * HOUR + 1)];
    let outcome = of(events, policy, directory);
    let keys: Vec<&str> = outcome.live.iter().map(|alert| alert.key.as_str()).collect();
    assert_eq!(told(&outcome.live), vec![("firing", 1), ("firing", 3), ("resolved", 3)]);
    assert_eq!(keys, vec!["old", "new", "old"]);
    let abroad = ("US".to_owned(), true, None);
    assert!(outcome.live[0].origin.contains(&abroad), "incorporated in CN");
    assert!(outcome.ledger.keys().all(|(scope, key, _)| scope != "owner" || key == "new"));
}
