//! A small fixed cloud: what every kind of internal and changelog record has in it, in seven commits.

use std::collections::BTreeMap;
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

/// 2026-03-01T00:00:00Z.
const START: Timestamp = Timestamp(1_772_323_200_000_000_000);

/// What arrives before one commit.
#[derive(Default)]
pub(crate) struct Arrival {
    pub(crate) directory: Vec<AccountRecord>,
    /// Values by usage partition.
    pub(crate) usage: [Vec<Vec<u8>>; 2],
    /// The second partition has been silent for long.
    pub(crate) second_is_idle: bool,
}

impl Arrival {
    /// Usage with its partition.
    pub(crate) fn records(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.usage.iter().enumerate().flat_map(|(partition, values)| {
            values.iter().map(move |value| (partition, value.as_slice()))
        })
    }
}

pub(crate) fn rules() -> Arc<Rules> {
    let fields = OriginField::ALL[..4].to_vec();
    Arc::new(Rules {
        time: TimeRules {
            epoch: Span::hours(1),
            lateness: Span::hours(1),
            dedup_horizon: Span::hours(2),
            max_future: Span::seconds(600),
            max_interval: Span::days(31),
        },
        tiers: vec![
            TierRules { slice: Span::hours(1), keep: Span::days(2) },
            TierRules { slice: Span::days(1), keep: Span::days(3) },
        ],
        input: InputRules::default(),
        origin: OriginRules {
            home: vec![country("US")],
            basis: fields.clone(),
            foreign_if_any: fields,
            unknown_is_foreign: true,
            lists: BTreeMap::new(),
        },
        utilization: UtilizationRules { low: 0.18, central: 0.33, high: 0.50 },
        catalogue: Catalogue::shipped(),
        run: RunRules { min_accelerators: 64.0, max_gap: Span::hours(12) },
        dead_letter_max_consecutive: 1000,
    })
}

/// One at each scope; holds and keeps, so that episodes wait, fire and linger.
pub(crate) fn policies() -> Arc<Policies> {
    let policy = |scope: Scope, metric: Metric, hours: u64, at_least: f64| Policy {
        id: format!("{}-{}", scope.name(), metric.name()),
        version: 1,
        title: "Größer als erlaubt".into(),
        severity: Severity::Warning,
        mode: if scope == Scope::Site { Mode::Shadow } else { Mode::Live },
        scope,
        origin: OriginMatch::Foreign,
        window: Some(Span::hours(hours)),
        hold: if scope == Scope::Country { Span::hours(3) } else { Span::hours(1) },
        keep_firing: Span::hours(3),
        renotify: Some(Span::hours(12)),
        report_within: (scope == Scope::Owner).then(|| Span::days(15)),
        references: vec!["89 FR 5698 (proposed)".into()],
        conditions: vec![Condition {
            metric,
            window: Some(Window { length: Span::hours(hours), text: format!("{hours}h") }),
            at_least,
        }],
        hash: "0123456789abcdef".into(),
    };
    Arc::new(Policies {
        list: vec![
            policy(Scope::Account, Metric::Accelerators, 2, 60.0),
            policy(Scope::Site, Metric::Sustained { accelerators: 100.0 }, 2, 0.5),
            policy(Scope::Owner, Metric::RunHours, 2, 3.0),
            policy(Scope::Country, Metric::AcceleratorHours, 24, 100.0),
        ],
    })
}

pub(crate) fn arrivals() -> Vec<Arrival> {
    let acme = |owner: &str, updated| AccountRecord {
        account_id: "acme".into(),
        entry: Some(Entry {
            owner_id: owner.into(),
            country: Some(country("US")),
            ultimate_parent_country: Some(country("CN")),
            access_ips: vec!["192.0.2.1".into(), "2001:db8::1".into()],
            access_countries: vec![country("SG")],
            updated,
            ..Entry::default()
        }),
    };
    vec![
        Arrival {
            directory: vec![acme("acme-group", START)],
            usage: [
                vec![event("a-1", "acme", 128.0, 0, 60), unknown("b-1", 0), b"{\"id\": 7}".into()],
                Vec::new(),
            ],
            second_is_idle: true,
        },
        Arrival {
            usage: [
                vec![
                    event("a-1", "acme", 128.0, 0, 60),
                    event("a-2", "acme", 128.0, 60, 150),
                    event("a-3", "acme", -8.0, 30, 90),
                ],
                vec![event("a-4", "acme", 96.0, 150, 210)],
            ],
            ..Arrival::default()
        },
        Arrival {
            directory: vec![acme("holding", START.plus(Span::hours(4)))],
            usage: [
                vec![event("a-5", "acme", 128.0, 210, 300)],
                vec![event("a-6", "acme", 96.0, 210, 320)],
            ],
            ..Arrival::default()
        },
        Arrival {
            usage: [vec![event("b-2", "beta", 1.5, 760, 780)], Vec::new()],
            second_is_idle: true,
            ..Arrival::default()
        },
        Arrival {
            // not yet gone from the daily tier, but from the hourly one
            usage: [vec![event("b-3", "beta", 2.0, 3720, 3780)], Vec::new()],
            second_is_idle: true,
            ..Arrival::default()
        },
        Arrival {
            usage: [vec![event("b-4", "beta", 2.0, 8640, 8700)], Vec::new()],
            second_is_idle: true,
            ..Arrival::default()
        },
        Arrival {
            // whole blocks of daily slices have gone
            usage: [vec![event("b-5", "beta", 2.0, 28_800, 28_860)], Vec::new()],
            second_is_idle: true,
            ..Arrival::default()
        },
    ]
}

/// Usage between two minutes after the start, metered at its end; less than nothing corrects.
fn event(id: &str, account: &str, quantity: f64, from: u64, until: u64) -> Vec<u8> {
    message(id, account, quantity, from, until).encode_to_vec()
}

/// Of an account that no directory names, on hardware that no catalogue has.
fn unknown(id: &str, from: u64) -> Vec<u8> {
    let event = proto::UsageEvent {
        accelerator: "Mystery 9000".into(),
        fabric_id: String::new(),
        ..message(id, "stranger", 4.0, from, from + 30)
    };
    event.encode_to_vec()
}

fn message(id: &str, account: &str, quantity: f64, from: u64, until: u64) -> proto::UsageEvent {
    let minute = |minutes: u64| START.plus(Span::seconds(minutes * 60)).0;
    proto::UsageEvent {
        id: id.into(),
        source: "//meter/1".into(),
        account_id: account.into(),
        region: "eu-west-1".into(),
        fabric_id: "pod-7".into(),
        accelerator: "nvidia-h100-sxm".into(),
        quantity,
        start_time_unix_nano: minute(from),
        end_time_unix_nano: minute(until),
        time_unix_nano: minute(until),
        kind: i32::from(quantity < 0.0),
        ..proto::UsageEvent::default()
    }
}

fn country(code: &str) -> Country {
    Country::parse(code).expect("a country")
}
