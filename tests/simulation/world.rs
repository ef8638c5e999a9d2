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

pub(crate) struct World {
    pub(crate) rules: Arc<Rules>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) directory: Vec<AccountRecord>,
    /// Encoded usage events of each partition, in order.
    pub(crate) usage: Vec<Vec<Vec<u8>>>,
}

impl World {
    pub(crate) fn generate(random: &mut ChaCha8Rng) -> Self {
        let partitions = random.random_range(1..=3);
        let accounts: Vec<String> = (0..8).map(|number| format!("account-{number}")).collect();
        let hours = random.random_range(30..200);
        let usage = (0..partitions).map(|partition| usage(random, partition, &accounts, hours));
        let usage = usage.collect();
        let directory = directory(random, &accounts, hours);
        Self { rules: Arc::new(rules()), policies: Arc::new(policies()), directory, usage }
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
        for change in 0..random.random_range(0..4) {
            let updated = START.plus(Span::hours(hours * change / 4));
            let removed = change > 0 && random.random_bool(0.1);
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
    partition: usize,
    accounts: &[String],
    hours: u64,
) -> Vec<Vec<u8>> {
    let mut events: Vec<Vec<u8>> = Vec::new();
    for hour in 0..hours {
        for _ in 0..random.random_range(0..6) {
            let account = &accounts[random.random_range(0..accounts.len())];
            let id = format!("{partition}-{}", events.len());
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
        fabric_id: ["", "f1", "f2"][random.random_range(0..3)].into(),
        accelerator: "nvidia-h100-sxm".into(),
        quantity: sign * random.random_range(1.0..400.0),
        start_time_unix_nano: end.minus(length).0,
        end_time_unix_nano: end.0,
        time_unix_nano: time.0,
        kind: i32::from(correction),
        ..proto::UsageEvent::default()
    }
}

fn country(code: &str) -> Country {
    Country::parse(code).expect("a country")
}
