//! `flopwatch demo`: a simulated cloud at high speed, alerts as they fire, and at the end what was
//! found against what was true.
//!
//! librdkafka's in-process mock cluster stands in for Kafka; over it runs what `run` runs, threads,
//! transactions and all. The mock keeps 5 MiB of a partition: plenty for readers that keep up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use super::print;
use super::show::{self, Alert, Names, State, Style};
use crate::config::Config;
use crate::detector::time::{Span, Timestamp};
use crate::error::Fatal;
use crate::http::health::Health;
use crate::kafka::topology::{self, Layout};
use crate::kafka::{Options, Service};
use crate::metrics::{self, Stage};
use crate::record_file::Format;
use crate::simulate::encode::{encode_account, encode_event};
use crate::simulate::publish::Publisher;
use crate::simulate::scenario::Tenant;
use crate::simulate::truth::{self, Used};
use crate::simulate::{Cloud, KeyBy, Plan, Scenario};

/// 2026-01-05T00:00:00Z, a Monday.
const START: Timestamp = Timestamp(1_767_571_200_000_000_000);
/// Accounts of no interest among those that matter.
const BACKGROUND: u32 = 60;
/// Partitions of usage, tasks of every stage, and workers.
const PARTITIONS: u32 = 2;
/// How long the mock cluster and the group may take to come up, and the last records to be read.
const PATIENCE: Duration = Duration::from_secs(30);
/// No alert for this long after the last record was read: there is none to come.
const SILENCE: Duration = Duration::from_secs(2);
/// Records that may lie unread: compressed, they are a quarter of what the mock keeps.
const BACKLOG: u64 = 60_000;
/// Between two looks at the alert topic.
const TICK: Duration = Duration::from_millis(50);

/// Watch a simulated cloud: no broker, no configuration.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Simulated hours a second.
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    speed: u32,
    /// Simulated days.
    #[arg(long, value_name = "DAYS", default_value_t = 35, value_parser = clap::value_parser!(u32).range(1..=400))]
    days: u32,
    /// The same seed gives the same cloud.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The demo's cloud: every scenario, metered hourly.
fn plan(args: &Args) -> Plan {
    Plan {
        seed: args.seed,
        start: START,
        span: Span::days(u64::from(args.days)),
        interval: Span::hours(1),
        partitions: PARTITIONS,
        key: KeyBy::Account,
        accounts: BACKGROUND,
        resources: BACKGROUND * 4,
        scenarios: Scenario::ALL.to_vec(),
        constant: false,
        duplicates_per_million: 10_000,
        disorder: Span::seconds(120),
    }
}

/// Simulated time against the clock.
#[derive(Debug, Clone, Copy)]
struct Pace {
    started: Instant,
    hours_per_second: u32,
}

impl Pace {
    fn start(hours_per_second: u32) -> Self {
        Self { started: Instant::now(), hours_per_second: hours_per_second.max(1) }
    }

    /// How long a record must wait that is written at this instant.
    fn until(&self, written: Timestamp) -> Duration {
        let simulated = written.since(START).0;
        let due = Duration::from_nanos(simulated / 3600 / u64::from(self.hours_per_second));
        due.saturating_sub(self.started.elapsed())
    }
}

/// Prints alerts as they come and remembers them for the summary.
#[derive(Debug)]
struct Printer {
    names: Names,
    style: Style,
    /// Policies that fired, by scope and key.
    fired: BTreeMap<(String, String), BTreeSet<String>>,
    firing: u64,
    updated: u64,
    resolved: u64,
}

impl Printer {
    fn new(tenants: &[Tenant], style: Style) -> Self {
        let names = tenants
            .iter()
            .map(|tenant| (tenant.entry.account_id.clone(), tenant.entry.legal_name.clone()));
        let names = names.collect();
        Self { names, style, fired: BTreeMap::new(), firing: 0, updated: 0, resolved: 0 }
    }

    fn print(&mut self, alert: &Alert) -> Result<(), Fatal> {
        match alert.state {
            State::Firing => {
                self.firing += 1;
                let key = (alert.scope.clone(), alert.key.clone());
                self.fired.entry(key).or_default().insert(alert.policy.id.clone());
            }
            State::Updated => self.updated += 1,
            State::Resolved => self.resolved += 1,
        }
        // running totals grow all the time
        if alert.state == State::Updated && alert.policy.severity == "info" {
            return Ok(());
        }
        print(&show::alert(alert, &self.names, self.style))
    }

    /// What was found of each scenario, beside what was true.
    fn summary(&self, tenants: &[Tenant], used: &[Used], counts: &Counts) -> String {
        let mut text = String::from("\nWhat was simulated, and what was said about it\n");
        for scenario in truth::scenarios(tenants) {
            let mut seen = Seen::default();
            for (tenant, used) in tenants.iter().zip(used) {
                if tenant.scenario == scenario {
                    seen.add(tenant, used, &self.fired);
                }
            }
            text.push_str(&seen.row(scenario));
        }
        text.push_str(&format!(
            "\n{} events read = {} counted + {} duplicates + {} dead letters; {} late, counted all \
             the same\n{} alerts fired, {} updates, {} resolved\n",
            counts.read,
            counts.counted,
            counts.duplicate,
            counts.dead_lettered,
            counts.late,
            self.firing,
            self.updated,
            self.resolved
        ));
        text
    }
}

/// One scenario's accounts together.
#[derive(Default)]
struct Seen {
    accounts: u32,
    foreign: u32,
    flop: f64,
    peak: f64,
    policies: BTreeSet<String>,
}

impl Seen {
    fn add(
        &mut self,
        tenant: &Tenant,
        used: &Used,
        fired: &BTreeMap<(String, String), BTreeSet<String>>,
    ) {
        self.accounts += 1;
        self.foreign += u32::from(truth::is_foreign(tenant));
        #[expect(clippy::cast_precision_loss, reason = "for people to read")]
        let flop = used.measure.flop as f64 * 1e9;
        self.flop += flop;
        self.peak += used.peak_accelerators;
        let account = &tenant.entry.account_id;
        let owner = &tenant.entry.owner_id;
        for ((scope, key), policies) in fired {
            let concerned = match scope.as_str() {
                "account" => key == account,
                "site" => key.split('@').next() == Some(account),
                "owner" => key == account || (!owner.is_empty() && key == owner),
                _ => false,
            };
            if concerned {
                self.policies.extend(policies.iter().cloned());
            }
        }
    }

    fn row(&self, scenario: Scenario) -> String {
        let policies: Vec<&str> = self.policies.iter().map(String::as_str).collect();
        let said = if policies.is_empty() { "nothing".to_owned() } else { policies.join(", ") };
        format!(
            "  {:<16} {:>3} accounts, {:>3} foreign  {:>8.1e} FLOP  up to {:>5.0} accelerators  {said}\n",
            scenario.name(),
            self.accounts,
            self.foreign,
            self.flop,
            self.peak
        )
    }
}

/// The service's own counters.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    read: u64,
    counted: u64,
    duplicate: u64,
    dead_lettered: u64,
    late: u64,
}

impl Counts {
    /// From the text that `/metrics` would give.
    fn of(metrics: &str) -> Self {
        let total = |name: &str| {
            let series = metrics.lines().filter_map(|line| line.strip_prefix(name));
            let values = series.filter(|rest| rest.starts_with(['{', ' ']));
            values.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        Self {
            read: total("flopwatch_events_read_total"),
            counted: total("flopwatch_events_counted_total"),
            duplicate: total("flopwatch_events_duplicate_total"),
            dead_lettered: total("flopwatch_events_dead_lettered_total"),
            late: total("flopwatch_events_late_total"),
        }
    }
}

pub fn execute(args: Args) -> Result<(), Fatal> {
    let broker = MockCluster::new(1)
        .map_err(|error| Fatal::Broker(format!("starting the mock cluster: {error}")))?;
    let config = Arc::new(configuration(&broker.bootstrap_servers())?);
    create_topics(&broker, &config)?;
    let cloud = Cloud::new(plan(&args)).map_err(Fatal::Internal)?;
    print(&format!(
        "{} accounts on {} nodes, {} simulated days at {} hours a second, the shipped policies\n\n",
        cloud.tenants().len(),
        cloud.resources(),
        args.days,
        args.speed
    ))?;
    let metrics = metrics::install()?;
    let health = Arc::new(Health::new(config.kafka.workers));
    let publisher = Publisher::new(&config.kafka.bootstrap_servers, &config.kafka.client)?;
    publish_directory(&publisher, &config, &cloud)?;
    let layout = Layout { usage: PARTITIONS, tasks: PARTITIONS };
    let service = Service::start(&config, layout, Options::default(), &health)?;
    let counts = move || Counts::of(&metrics.render());
    let watched = watch(&args, &config, (&service, &health), cloud, publisher, counts);
    let stopped = service.join();
    print(&watched?)?;
    stopped
}

/// The shipped policies and defaults, over the mock. A simulated hour lasts milliseconds, so METER
/// may run days ahead of ACCOUNT.
fn configuration(bootstrap: &str) -> Result<Config, Fatal> {
    let text = format!(
        "[kafka]\nbootstrap_servers = \"{bootstrap}\"\nworkers = {PARTITIONS}\n\
         instance = \"demo\"\n[time]\nmax_skew = \"7d\"\n"
    );
    Config::from_text("the demo's configuration", &text)
}

fn create_topics(
    broker: &MockCluster<'_, DefaultProducerContext>,
    config: &Config,
) -> Result<(), Fatal> {
    let names = &config.topics;
    let tasks = i32::try_from(PARTITIONS).expect("two");
    let mut topics = vec![
        (names.usage.clone(), tasks),
        (names.accounts.clone(), 1),
        (names.account_usage.clone(), tasks),
        (names.group_usage.clone(), tasks),
        (names.alerts.clone(), 1),
        (names.shadow_alerts.clone(), 1),
        (names.dead_letters.clone(), 1),
    ];
    topics.extend(Stage::ALL.map(|stage| (topology::changelog(config, stage), tasks)));
    for (name, partitions) in topics {
        broker
            .create_topic(&name, partitions, 1)
            .map_err(|error| Fatal::Broker(format!("making topic {name}: {error}")))?;
    }
    Ok(())
}

fn publish_directory(publisher: &Publisher, config: &Config, cloud: &Cloud) -> Result<(), Fatal> {
    let mut bytes = Vec::new();
    for tenant in cloud.tenants().iter().filter(|tenant| !tenant.unlisted) {
        encode_account(&tenant.entry, Format::Delimited, &mut bytes);
        let key = tenant.entry.account_id.as_bytes();
        publisher.send(&config.topics.accounts, Some(0), Some(key), &bytes)?;
    }
    publisher.finish(&config.topics.accounts)
}

fn await_ready(service: &Service, health: &Health) -> Result<(), Fatal> {
    let deadline = Instant::now() + PATIENCE;
    while let Some(reason) = health.unready() {
        if let Some(fatal) = service.failure(TICK) {
            return Err(fatal);
        }
        if Instant::now() >= deadline {
            return Err(Fatal::Broker(format!("the mock cluster is not ready: {reason}")));
        }
    }
    Ok(())
}

/// Prints alerts while the cloud is fed in, until nothing more comes; returns the summary.
fn watch(
    args: &Args,
    config: &Config,
    (service, health): (&Service, &Health),
    cloud: Cloud,
    publisher: Publisher,
    counts: impl Fn() -> Counts + Clone + Send + 'static,
) -> Result<String, Fatal> {
    let tenants = cloud.tenants().to_vec();
    let mut printer = Printer::new(&tenants, Style::of_stdout());
    let alerts = alert_reader(config)?;
    let pace = Pace::start(args.speed);
    let usage = config.topics.usage.clone();
    let read = counts.clone();
    let feeder = thread::spawn(move || feed(cloud, &publisher, &usage, pace, &|| read().read));
    // the first records wait for the group to form
    await_ready(service, health)?;
    while !feeder.is_finished() {
        print_alerts(&alerts, &mut printer)?;
        if let Some(fatal) = service.failure(Duration::ZERO) {
            return Err(fatal);
        }
    }
    let fed = feeder.join().map_err(|_| Fatal::Internal("the feeder panicked".to_owned()))??;
    let deadline = Instant::now() + PATIENCE;
    let mut heard = Instant::now();
    while Instant::now() < deadline && (counts().read < fed.records || heard.elapsed() < SILENCE) {
        if print_alerts(&alerts, &mut printer)? {
            heard = Instant::now();
        }
    }
    Ok(printer.summary(&tenants, fed.cloud.used(), &counts()))
}

struct Fed {
    cloud: Cloud,
    records: u64,
}

/// Sends each record when its simulated time has come, unless too many are unread.
fn feed(
    mut cloud: Cloud,
    publisher: &Publisher,
    topic: &str,
    pace: Pace,
    read: &dyn Fn() -> u64,
) -> Result<Fed, Fatal> {
    let mut bytes = Vec::new();
    let mut records = 0;
    while let Some(sent) = cloud.next() {
        let wait = pace.until(sent.written);
        if wait > Duration::from_millis(5) {
            thread::sleep(wait);
        }
        encode_event(&sent.event, Format::Delimited, &mut bytes);
        let key = sent.event.account_id.as_bytes();
        publisher.send(topic, Some(sent.partition), Some(key), &bytes)?;
        records += 1;
        if records % 4096 == 0 {
            while records > read() + BACKLOG {
                thread::sleep(TICK);
            }
        }
    }
    publisher.finish(topic)?;
    Ok(Fed { cloud, records })
}

fn alert_reader(config: &Config) -> Result<BaseConsumer, Fatal> {
    let refused = |error| Fatal::Broker(format!("reading alerts: {error}"));
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &config.kafka.bootstrap_servers)
        .set("group.id", "flopwatch-demo-reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()
        .map_err(refused)?;
    let mut assignment = TopicPartitionList::new();
    assignment
        .add_partition_offset(&config.topics.alerts, 0, Offset::Beginning)
        .map_err(refused)?;
    consumer.assign(&assignment).map_err(refused)?;
    Ok(consumer)
}

/// Prints what has come within a tick; whether anything has.
fn print_alerts(alerts: &BaseConsumer, printer: &mut Printer) -> Result<bool, Fatal> {
    let mut any = false;
    let until = Instant::now() + TICK;
    while Instant::now() < until {
        let Some(record) = alerts.poll(TICK) else { continue };
        let record = record.map_err(|error| Fatal::Broker(format!("reading alerts: {error}")))?;
        let alert = Alert::read(record.payload().unwrap_or_default())
            .map_err(|error| Fatal::Internal(format!("an alert cannot be read: {error}")))?;
        printer.print(&alert)?;
        any = true;
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_their_labels_and_not_over_longer_names() {
        let text = "# TYPE flopwatch_events_read_total counter\n\
                    flopwatch_events_read_total 12\n\
                    flopwatch_events_dead_lettered_total{reason=\"invalid_id\"} 1\n\
                    flopwatch_events_dead_lettered_total{reason=\"undecodable\"} 2\n\
                    flopwatch_events_read_total_other 5\n";
        let counts = Counts::of(text);
        assert_eq!(counts, Counts { read: 12, dead_lettered: 3, ..Counts::default() });
    }
}
