//! A simulated cloud on Kafka and in files, and what `replay` makes of it.

#![allow(dead_code, reason = "each binary that tests with it uses a part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flopwatch::config::Config;
use flopwatch::detector::Stage as _;
use flopwatch::detector::account::Account;
use flopwatch::detector::alert::Alert;
use flopwatch::detector::cloudevent;
use flopwatch::detector::decode::decode_account;
use flopwatch::detector::group::Group;
use flopwatch::detector::internal::unpack_usage;
use flopwatch::detector::measure::Measure;
use flopwatch::detector::names::Names;
use flopwatch::detector::outbox::DeadLetter;
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::error::Fatal;
use flopwatch::kafka::topology;
use flopwatch::metrics::Stage;
use flopwatch::record_file::Format;
use flopwatch::replay::{Sink, Source, replay};
use flopwatch::simulate::encode::{encode_account, encode_event};
use flopwatch::simulate::publish::Publisher;
use flopwatch::simulate::{Cloud, KeyBy, Plan, Scenario};

use crate::broker::{Broker, Kept};

/// The account of the record that closes each partition: far ahead, so that everything before it
/// is applied and judged; its own sum never is.
const CLOSING: &str = "closing";

/// 2026-01-05T00:00:00Z.
pub(crate) const START: Timestamp = Timestamp(1_767_571_200_000_000_000);

/// Low thresholds at every scope: many alerts of every kind in a few days.
const POLICIES: &str = r#"
[[policy]]
id = "many"
version = 1
title = "Many accelerators"
severity = "warning"
scope = "account"
origin = "any"
window = "4h"
renotify = "12h"
[[policy.all]]
metric = "accelerators"
at_least = 24
[[policy]]
id = "site"
version = 1
title = "A busy site"
severity = "info"
mode = "shadow"
scope = "site"
origin = "foreign"
window = "3h"
keep_firing = "6h"
[[policy.all]]
metric = "accelerator_hours"
at_least = 100
[[policy]]
id = "owner-run"
version = 2
title = "A long run of one owner"
severity = "critical"
scope = "owner"
origin = "any"
report_within = "15d"
[[policy.all]]
metric = "run_hours"
at_least = 12
[[policy]]
id = "country"
version = 1
title = "Much compute by origin"
severity = "info"
scope = "country"
origin = "any"
window = "24h"
hold = "2h"
[[policy.all]]
metric = "flop_high"
at_least = 1e21
"#;

/// A deployment of its own on the shared broker: group and topics carry its name.
pub(crate) fn config(name: &str, instance: &str, workers: usize) -> Config {
    let text = config_text(name, instance, workers, &Broker::shared().address);
    Config::from_text(name, &text).expect("the test's configuration is valid")
}

pub(crate) fn config_text(name: &str, instance: &str, workers: usize, address: &str) -> String {
    format!(
        r#"
[kafka]
bootstrap_servers = "{address}"
group_id = "{name}"
workers = {workers}
instance = "{instance}"
[topics]
usage = "{name}.usage"
accounts = "{name}.accounts"
account_usage = "{name}.account-usage"
group_usage = "{name}.group-usage"
alerts = "{name}.alerts"
shadow_alerts = "{name}.shadow-alerts"
dead_letters = "{name}.dead-letters"
[run]
min_accelerators = 16
max_gap = "24h"
[http]
listen = "127.0.0.1:0"
{POLICIES}"#
    )
}

/// A usage record: key and value.
pub(crate) type Usage = (Option<Vec<u8>>, Vec<u8>);

/// Usage by partition, and the directory.
pub(crate) struct World {
    pub(crate) partitions: Vec<Vec<Usage>>,
    pub(crate) accounts: Vec<(Vec<u8>, Vec<u8>)>,
    closing: Timestamp,
}

/// What `run` must leave behind: alerts by topic and key in order, and retained slices.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Outcome {
    pub(crate) alerts: BTreeMap<(String, Vec<u8>), Vec<String>>,
    pub(crate) ledger: BTreeMap<(&'static str, String, Timestamp), Measure>,
    pub(crate) dead_letters: Vec<Letter>,
    /// What METER has sent on, by account and slice: what was counted, closing records included.
    pub(crate) sums: BTreeMap<(String, Timestamp), Measure>,
}

/// A refused record: where it stood and why.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
pub(crate) struct Letter {
    pub(crate) partition: usize,
    pub(crate) offset: u64,
    pub(crate) reason: String,
}

impl Letter {
    fn found(record: &Kept) -> Self {
        let header = |name: &str| {
            let mut found = record.headers.iter().filter(|(key, _)| key == name);
            let (_, value) = found.next().expect("dead letters say where they come from");
            String::from_utf8(value.clone().unwrap_or_default()).expect("text")
        };
        Self {
            partition: header("flopwatch.partition").parse().expect("a number"),
            offset: header("flopwatch.offset").parse().expect("a number"),
            reason: header("flopwatch.reason"),
        }
    }
}

impl Outcome {
    /// How much there is, for a message that a person can read.
    pub(crate) fn size(&self) -> (usize, usize, usize) {
        (self.alerts.values().map(Vec::len).sum(), self.ledger.len(), self.dead_letters.len())
    }
}

impl World {
    pub(crate) fn new(seed: u64, key: KeyBy, partitions: u32) -> Self {
        Self::of(Plan {
            seed,
            start: START,
            span: Span::hours(60),
            interval: Span::seconds(1800),
            partitions,
            key,
            accounts: 30,
            resources: 60,
            scenarios: Scenario::ALL.to_vec(),
            constant: false,
            duplicates_per_million: 20_000,
            disorder: Span::seconds(100),
        })
    }

    /// The closing records stand 36 h after the plan's end.
    pub(crate) fn of(plan: Plan) -> Self {
        let (key, partitions) = (plan.key, plan.partitions);
        let plan_end = plan.start.plus(plan.span);
        let mut cloud = Cloud::new(plan).expect("the plan makes sense");
        let mut bytes = Vec::new();
        let mut accounts = Vec::new();
        for tenant in cloud.tenants().iter().filter(|tenant| !tenant.unlisted) {
            encode_account(&tenant.entry, Format::Delimited, &mut bytes);
            accounts.push((tenant.entry.account_id.clone().into_bytes(), bytes.clone()));
        }
        let closing = plan_end.plus(Span::hours(36));
        let mut world = Self { partitions: Vec::new(), accounts, closing };
        world.partitions.resize_with(partitions as usize, Vec::new);
        while let Some(sent) = cloud.next() {
            encode_event(&sent.event, Format::Delimited, &mut bytes);
            let key = match key {
                KeyBy::Account => Some(sent.event.account_id.as_bytes().to_vec()),
                KeyBy::Event => Some(sent.event.id.as_bytes().to_vec()),
                KeyBy::None => None,
            };
            world.partitions[sent.partition as usize].push((key, bytes.clone()));
        }
        world.close();
        world
    }

    /// Usage as given, of accounts that nobody knows.
    pub(crate) fn listed(partitions: Vec<Vec<Usage>>, closing: Timestamp) -> Self {
        let mut world = Self { partitions, accounts: Vec::new(), closing };
        world.close();
        world
    }

    fn close(&mut self) {
        for (number, partition) in self.partitions.iter_mut().enumerate() {
            partition.push((None, b"{\"account_id\": 7}".to_vec()));
            let id = format!("{CLOSING}-{number}");
            let from = self.closing.minus(Span::seconds(1));
            partition.push((None, event(&id, CLOSING, from, self.closing)));
        }
    }

    /// Makes the topics and puts the directory there.
    pub(crate) fn prepare(&self, config: &Config) {
        let partitions = u32::try_from(self.partitions.len()).expect("few partitions");
        self.prepare_with(config, partitions);
    }

    /// As [`Self::prepare`], with fewer partitions than there will be.
    pub(crate) fn prepare_with(&self, config: &Config, partitions: u32) {
        topology::create(config, Some(partitions)).expect("topics can be made");
        self.send_accounts(config);
    }

    pub(crate) fn send_accounts(&self, config: &Config) {
        let publisher = publisher(config);
        for (key, value) in &self.accounts {
            let topic = &config.topics.accounts;
            publisher.send(topic, None, Some(key), value).expect("an account is sent");
        }
        publisher.finish(&config.topics.accounts).expect("accounts are written");
    }

    /// Sends the share from `from` to `until` (of 100) of each partition.
    pub(crate) fn send(&self, config: &Config, from: usize, until: usize) {
        let publisher = publisher(config);
        let topic = &config.topics.usage;
        for (number, records) in (0..).zip(&self.partitions) {
            let (from, until) = (records.len() * from / 100, records.len() * until / 100);
            for (key, value) in &records[from..until] {
                publisher.send(topic, Some(number), key.as_deref(), value).expect("usage is sent");
            }
        }
        publisher.finish(topic).expect("usage is written");
    }

    /// Takes what stands in the topic in place of what was sent.
    pub(crate) fn read_back(&mut self, broker: &Broker, topic: &str) {
        self.partitions.iter_mut().for_each(Vec::clear);
        for record in broker.read(topic, "read_committed") {
            let partition = usize::try_from(record.partition).expect("partitions from 0");
            let next = i64::try_from(self.partitions[partition].len()).ok();
            assert_eq!(next, Some(record.offset), "a topic without holes");
            self.partitions[partition].push((record.key, record.value.unwrap_or_default()));
        }
    }

    /// What `replay` makes of it, up to the last slice that `run` can judge.
    pub(crate) fn replayed(&self, config: &Config) -> Outcome {
        let accounts: Vec<_> = self
            .accounts
            .iter()
            .map(|(key, value)| decode_account(Some(key), Some(value)).expect("a sound account"))
            .collect();
        let sources = self.partitions.iter().map(|partition| {
            Box::new(Listed { records: partition, next: 0 }) as Box<dyn Source + '_>
        });
        let judged = config.rules.judged(self.closing.floor(config.rules.time.epoch));
        let mut sink = Collected { config, judged, outcome: Outcome::default() };
        let replayed =
            replay(&config.rules, &config.policies, &accounts, sources.collect(), &mut sink)
                .expect("a replay");
        let mut outcome = sink.outcome;
        outcome.dead_letters.sort();
        for row in replayed.ledger {
            let measure = Measure {
                accelerator_ms: row.sum.accelerator_ms,
                flop: row.sum.flop_gflop,
                flop_allocated: row.sum.flop_allocated_gflop,
                flop_theoretical: row.sum.flop_theoretical_gflop,
            };
            if row.scope == "account" {
                outcome.sums.insert((row.key.clone(), row.end), measure);
            }
            outcome.slice(row.scope, &row.key, row.end, measure, self.closing);
        }
        outcome
    }

    /// What stands on Kafka for a `read_committed` reader: alerts, dead letters, and the slices
    /// that the changelogs restore to.
    pub(crate) fn found(&self, config: &Config) -> Outcome {
        self.found_on(Broker::shared(), config)
    }

    pub(crate) fn found_on(&self, broker: &Broker, config: &Config) -> Outcome {
        let mut outcome = Outcome::default();
        for topic in [&config.topics.alerts, &config.topics.shadow_alerts] {
            for record in broker.read(topic, "read_committed") {
                let key = record.key.expect("alerts have keys");
                let value = String::from_utf8(record.value.expect("and values")).expect("JSON");
                outcome.alerts.entry((topic.clone(), key)).or_default().push(value);
            }
        }
        let letters = broker.read(&config.topics.dead_letters, "read_committed");
        outcome.dead_letters = letters.iter().map(Letter::found).collect();
        outcome.dead_letters.sort();
        outcome.sums = sums(&broker.read(&config.topics.account_usage, "read_committed"));
        let tasks = broker.partitions(&config.topics.account_usage);
        let accounts = broker.read(&topology::changelog(config, Stage::Account), "read_committed");
        let groups = broker.read(&topology::changelog(config, Stage::Group), "read_committed");
        for task in 0..tasks {
            let (rules, policies) = (Arc::clone(&config.rules), Arc::clone(&config.policies));
            let mut account = Account::new(rules, policies, task, tasks);
            restore(&accounts, task, |key, value| account.restore(key, value));
            for (key, end, measure) in account.ledger() {
                outcome.slice("account", key, end, measure, self.closing);
            }
            let mut group = Group::new(Arc::clone(&config.rules), Arc::clone(&config.policies));
            restore(&groups, task, |key, value| group.restore(key, value));
            for (scope, key, end, measure) in group.ledger() {
                outcome.slice(scope.name(), key, end, measure, self.closing);
            }
        }
        outcome
    }

    /// Waits until Kafka holds `expected`; the test compares once more when all has stopped.
    pub(crate) fn await_outcome(&self, config: &Config, expected: &Outcome, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let found = self.found(config);
            if &found == expected {
                return;
            }
            if Instant::now() >= deadline {
                assert_eq!(found.size(), expected.size(), "alerts, slices, dead letters");
                assert_eq!(&found, expected);
            }
        }
    }
}

impl Outcome {
    fn slice(
        &mut self,
        scope: &'static str,
        key: &str,
        end: Timestamp,
        measure: Measure,
        closing: Timestamp,
    ) {
        // the closing records' own slice, which only a replay applies, is nobody else's
        if end.0 < closing.minus(Span::hours(2)).0 && !measure.is_zero() {
            self.ledger.insert((scope, key.to_owned(), end), measure);
        }
    }
}

fn restore<E: std::fmt::Debug>(
    changelog: &[Kept],
    task: u32,
    mut apply: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
) {
    for record in changelog.iter().filter(|record| u32::try_from(record.partition) == Ok(task)) {
        let key = record.key.as_deref().expect("changelogs have keys");
        apply(key, record.value.as_deref()).expect("a sound changelog");
    }
}

/// One accelerator for an interval, metered at its end.
pub(crate) fn event(id: &str, account: &str, from: Timestamp, until: Timestamp) -> Vec<u8> {
    let (from, until) = (from.0, until.0);
    let event = format!(
        r#"{{"id":"{id}","source":"test","account_id":"{account}",
        "accelerator":"nvidia-h100-sxm","quantity":1,"start_time_unix_nano":"{from}",
        "end_time_unix_nano":"{until}"}}"#
    );
    event.into_bytes()
}

/// Every record of account-usage added up.
fn sums(records: &[Kept]) -> BTreeMap<(String, Timestamp), Measure> {
    let mut names = Names::default();
    let mut sums: BTreeMap<_, Measure> = BTreeMap::new();
    for record in records {
        let value = record.value.as_deref().expect("sums have values");
        for sum in unpack_usage(value, &mut names).expect("a sound record").1 {
            let key = (names.text(sum.account).to_owned(), sum.slice_end);
            *sums.entry(key).or_default() += sum.measure;
        }
    }
    sums.retain(|_, sum| !sum.is_zero());
    sums
}

pub(crate) fn publisher(config: &Config) -> Publisher {
    Publisher::new(&config.kafka.bootstrap_servers, &config.kafka.client).expect("a producer")
}

struct Listed<'a> {
    records: &'a [Usage],
    next: usize,
}

impl Source for Listed<'_> {
    fn next(&mut self) -> Result<Option<(u64, &[u8])>, Fatal> {
        let Some((_, value)) = self.records.get(self.next) else { return Ok(None) };
        self.next += 1;
        Ok(Some((self.next as u64, value)))
    }
}

struct Collected<'a> {
    config: &'a Config,
    judged: Timestamp,
    outcome: Outcome,
}

impl Sink for Collected<'_> {
    fn alert(&mut self, alert: &Alert) -> Result<(), Fatal> {
        if alert.at <= self.judged {
            let topics = &self.config.topics;
            let live = alert.policy.mode == flopwatch::detector::policy::Mode::Live;
            let topic = if live { &topics.alerts } else { &topics.shadow_alerts };
            let published = cloudevent::structured(alert);
            let key = (topic.clone(), published.key.into_bytes());
            let value = String::from_utf8(published.value).expect("JSON is text");
            self.outcome.alerts.entry(key).or_default().push(value);
        }
        Ok(())
    }

    fn dead_letter(&mut self, source: usize, letter: &DeadLetter) -> Result<(), Fatal> {
        let reason = letter.invalid.reason.name().to_owned();
        // records of a file are numbered from 1
        let offset = letter.offset - 1;
        self.outcome.dead_letters.push(Letter { partition: source, offset, reason });
        Ok(())
    }
}
