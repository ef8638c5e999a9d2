//! What flows through a simulated cluster: rules, policies, a directory and usage, from a seed.

use std::sync::Arc;

use flopwatch::detector::catalogue::Catalogue;
use flopwatch::detector::decode::InputRules;
use flopwatch::detector::directory::{AccountRecord, Country, Entry};
use flopwatch::detector::policy::{
    Condition, Metric, Mode, OriginMatch, Policies, Policy, Scope, Severity, Window,
};
use flopwatch::detector::rules::{
    OriginField, OriginRules, Rules, RunRules, TierRules, TimeRules, UtilizationRules,
};
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::proto;
use prost::Message;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

const START: Timestamp = Timestamp(1_704_067_200 * 1_000_000_000);
const COUNTRIES: [&str; 4] = ["US", "CN", "DE", "FR"];

/// When the directory is read, and so what must not depend on faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Before anything else: alerts are those of a replay.
    Beforehand,
    /// At the start of every phase, when nothing waits: alerts are those of a run without faults.
    Staged,
    /// At any time, with compaction of the topic: only the end is sure.
    AnyTime,
}

/// What arrives between two moments at which nothing waits anywhere.
#[derive(Debug, Clone, Default)]
pub(crate) struct Phase {
    /// Encoded usage events of each partition, in order.
    pub(crate) usage: Vec<Vec<Vec<u8>>>,
    pub(crate) directory: Vec<AccountRecord>,
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) rules: Arc<Rules>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) reading: Reading,
    /// Partitions of usage at first, and of every internal topic.
    pub(crate) partitions: u32,
    pub(crate) phases: Vec<Phase>,
    /// A partition whose tasks are seldom read.
    pub(crate) lagging: u32,
}

impl World {
    pub(crate) fn generate(random: &mut ChaCha8Rng) -> Self {
        let partitions = random.random_range(1..=3);
        let accounts: Vec<String> = (0..8).map(|number| format!("account-{number}")).collect();
        let hours = random.random_range(30..200);
        let reading = [Reading::Beforehand, Reading::Staged, Reading::AnyTime];
        let reading = reading[random.random_range(0..3)];
        let (grows, count) = match reading {
            Reading::Beforehand => (random.random_bool(0.3), 1),
            Reading::Staged | Reading::AnyTime => (random.random_bool(0.3), 4),
        };
        let count = if grows { count.max(2) } else { count };
        let mut phases: Vec<Phase> = Vec::new();
        for number in 0..count {
            let grown = u32::from(grows && number > 0);
            let from = hours * number / count;
            let until = hours * (number + 1) / count;
            let mut usage: Vec<_> = (0..partitions + grown)
                .map(|partition| usage(random, (partition, number), &accounts, from..until))
                .collect();
            if grown == 1 && number == 1 {
                // what it is heard of by, before the others go on
                let first = event(random, "first", &accounts[0], START.plus(Span::hours(from)));
                let grown = usage.last_mut().expect("a partition more");
                grown.insert(0, first.encode_to_vec());
            }
            phases.push(Phase { usage, directory: Vec::new() });
        }
        for record in directory(random, &accounts, hours) {
            let phase = match reading {
                Reading::Beforehand => 0,
                // an account's records in order
                Reading::Staged | Reading::AnyTime => {
                    let named = |phase: &Phase| {
                        phase.directory.iter().any(|other| other.account_id == record.account_id)
                    };
                    let first = phases.iter().rposition(named).unwrap_or(0);
                    random.random_range(first..phases.len())
                }
            };
            phases[phase].directory.push(record);
        }
        let lagging = random.random_range(0..partitions);
        let (rules, policies) = (Arc::new(rules()), Arc::new(policies()));
        Self { rules, policies, reading, partitions, phases, lagging }
    }

    /// Every record of the directory in the order read.
    pub(crate) fn directory(&self) -> Vec<AccountRecord> {
        self.phases.iter().flat_map(|phase| phase.directory.iter().cloned()).collect()
    }

    /// All that each partition ever holds.
    pub(crate) fn usage(&self) -> Vec<Vec<Vec<u8>>> {
        let last = self.phases.last().expect("at least one phase");
        let mut usage = vec![Vec::new(); last.usage.len()];
        for phase in &self.phases {
            for (all, more) in usage.iter_mut().zip(&phase.usage) {
                all.extend(more.iter().cloned());
            }
        }
        usage
    }

    /// The same with the whole directory known beforehand.
    pub(crate) fn foretold(&self) -> Self {
        let mut foretold = self.clone();
        foretold.phases.iter_mut().for_each(|phase| phase.directory.clear());
        foretold.phases[0].directory = self.directory();
        foretold
    }
}

fn rules() -> Rules {
    let fields = OriginField::ALL[..4].to_vec();
    Rules {
        time: TimeRules {
            epoch: Span::hours(1),
            lateness: Span::hours(2),
            dedup_horizon: Span::hours(4),
            max_future: Span::seconds(600),
            max_interval: Span::days(31),
        },
        tiers: vec![
            TierRules { slice: Span::hours(1), keep: Span::days(2) },
            TierRules { slice: Span::days(1), keep: Span::days(6) },
        ],
        input: InputRules::default(),
        origin: OriginRules {
            home: vec![country("US")],
            basis: fields.clone(),
            foreign_if_any: fields,
            unknown_is_foreign: true,
            lists: std::collections::BTreeMap::new(),
        },
        utilization: UtilizationRules { low: 0.18, central: 0.33, high: 0.50 },
        catalogue: Catalogue::shipped(),
        run: RunRules { min_accelerators: 64.0, max_gap: Span::hours(12) },
        dead_letter_max_consecutive: 1000,
    }
}

fn policies() -> Policies {
    let policy = |scope: Scope, metric: Metric, window: Option<u64>, at_least: f64| Policy {
        id: format!("{}-{}", scope.name(), metric.name()),
        version: 1,
        title: "simulated".into(),
        severity: Severity::Warning,
        mode: Mode::Live,
        scope,
        origin: OriginMatch::Foreign,
        window: window.map(Span::hours),
        hold: Span::hours(2),
        keep_firing: Span::hours(3),
        renotify: Some(Span::hours(5)),
        report_within: Some(Span::days(15)),
        references: Vec::new(),
        conditions: vec![Condition {
            metric,
            window: window
                .map(|hours| Window { length: Span::hours(hours), text: format!("{hours}h") }),
            at_least,
        }],
        hash: "simulated".into(),
    };
    let sustained = Metric::Sustained { accelerators: 64.0 };
    Policies {
        list: vec![
            policy(Scope::Account, Metric::Accelerators, Some(6), 100.0),
            policy(Scope::Account, Metric::RunFlop, None, 1e20),
            policy(Scope::Site, sustained, Some(4), 0.5),
            policy(Scope::Owner, Metric::FlopHigh, Some(24), 1e20),
            policy(Scope::Owner, Metric::RunHours, None, 10.0),
            policy(Scope::Country, Metric::AcceleratorHours, Some(72), 4000.0),
        ],
    }
}

fn directory(random: &mut ChaCha8Rng, accounts: &[String], hours: u64) -> Vec<AccountRecord> {
    let mut records = Vec::new();
    for account in accounts {
        // some never appear, some change, some are removed
        for change in 0..random.random_range(0..5) {
            // mostly in order of time; all before the end
            let at = if random.random_bool(0.2) { random.random_range(0..4) } else { change };
            let updated = START.plus(Span::hours(hours * at.min(3) / 4));
            let removed = change > 0 && random.random_bool(0.2);
            let entry = (!removed).then(|| Entry {
                owner_id: ["", "owner-1", "owner-2"][random.random_range(0..3)].into(),
                country: Country::parse(COUNTRIES[random.random_range(0..4)]),
                updated,
                ..Entry::default()
            });
            records.push(AccountRecord { account_id: account.clone(), entry });
        }
    }
    records
}

/// Usage of one partition: hourly events, some of them doubled, late, corrected or broken.
fn usage(
    random: &mut ChaCha8Rng,
    (partition, phase): (u32, u64),
    accounts: &[String],
    hours: std::ops::Range<u64>,
) -> Vec<Vec<u8>> {
    let mut events: Vec<Vec<u8>> = Vec::new();
    for hour in hours {
        for _ in 0..random.random_range(0..6) {
            let account = &accounts[random.random_range(0..accounts.len())];
            let id = format!("{partition}-{phase}-{}", events.len());
            let event = event(random, &id, account, START.plus(Span::hours(hour)));
            let bytes = event.encode_to_vec();
            events.push(if random.random_bool(0.02) { b"broken".to_vec() } else { bytes });
            if random.random_bool(0.1) {
                let earlier =
                    events[events.len() - 1 - random.random_range(0..events.len().min(9))].clone();
                events.push(earlier);
            }
        }
    }
    events
}

fn event(random: &mut ChaCha8Rng, id: &str, account: &str, hour: Timestamp) -> proto::UsageEvent {
    let time = hour.plus(Span::seconds(random.random_range(0..3600)));
    let correction = random.random_bool(0.1);
    // most usage is of the last hours, some of it days late
    let back = if random.random_bool(0.1) { random.random_range(0..150) } else { 1 };
    let end = time.minus(Span::hours(back));
    let length = Span::seconds(random.random_range(60..14_400));
    let sign = if correction && random.random_bool(0.7) { -1.0 } else { 1.0 };
    proto::UsageEvent {
        id: id.into(),
        source: "simulated".into(),
        account_id: account.into(),
        region: ["eu", "us"][random.random_range(0..2)].into(),
        fabric_id: fabric(random, time),
        accelerator: "nvidia-h100-sxm".into(),
        quantity: sign * random.random_range(1.0..400.0),
        start_time_unix_nano: end.minus(length).0,
        end_time_unix_nano: end.0,
        time_unix_nano: time.0,
        kind: i32::from(correction),
        ..proto::UsageEvent::default()
    }
}

/// Some stay, others are new every few hours.
fn fabric(random: &mut ChaCha8Rng, time: Timestamp) -> String {
    match random.random_range(0..4) {
        0 => String::new(),
        1 | 2 => "f1".into(),
        _ => format!("f-{}", time.since(START).0 / Span::hours(6).0),
    }
}

fn country(code: &str) -> Country {
    Country::parse(code).expect("a country")
}
