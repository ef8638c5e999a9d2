//! From the append of the event that lets a slice close to the append of its alerts, at a steady
//! rate, from the broker's own timestamps.
//!
//! Event time runs faster than the clock: at the default rate a metering interval of 5 minutes is
//! sent in a quarter of a second, so that a slice of an hour closes every 3 s. Everything else is
//! as configured by default; several policies hold for some hundred keys at every slice end, so
//! that every closing has alerts of every scope. A commit for every epoch, four a second, is more
//! than a cloud would ever ask for.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::record_file::Format;
use flopwatch::simulate::encode::{encode_account, encode_event};
use flopwatch::simulate::publish::Publisher;
use flopwatch::simulate::{Cloud, KeyBy, Plan};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::Args;
use crate::cluster::{Cluster, PARTITIONS};
use crate::report;
use crate::service::Deployment;

/// A metering interval of event time.
const INTERVAL: Span = Span::seconds(300);
/// In so much time on the clock.
const SQUEEZE: Duration = Duration::from_millis(250);
const LATENESS: Span = Span::seconds(15 * 60);
/// Slices closed first, while everything is being allocated and compiled into caches.
const WARM_UP: usize = 3;
const SILENCE: Duration = Duration::from_secs(30);

const POLICIES: &str = r#"
[[policy]]
id = "account"
version = 1
title = "account"
severity = "info"
scope = "account"
origin = "any"
window = "24h"
renotify = "1h"
[[policy.all]]
metric = "accelerator_hours"
at_least = 24.0
[[policy]]
id = "site"
version = 1
title = "site"
severity = "info"
scope = "site"
origin = "any"
window = "24h"
renotify = "1h"
[[policy.all]]
metric = "accelerator_hours"
at_least = 24.0
[[policy]]
id = "owner"
version = 1
title = "owner"
severity = "info"
scope = "owner"
origin = "any"
window = "24h"
renotify = "1h"
[[policy.all]]
metric = "accelerator_hours"
at_least = 24.0
[[policy]]
id = "country"
version = 1
title = "country"
severity = "info"
scope = "country"
origin = "any"
window = "24h"
renotify = "1h"
[[policy.all]]
metric = "accelerator_hours"
at_least = 1.0
"#;

pub(crate) fn run(args: &Args, folder: &Path) {
    let header = report::header();
    report::print_header(&header);
    let cluster = Cluster::start(folder, args.rate * args.seconds);
    // the broker's clock alone says when what was appended
    let stamped = ("message.timestamp.type", "LogAppendTime");
    let broker = &cluster.broker;
    broker.create_topic("usage", PARTITIONS, &[("retention.ms", "-1"), stamped]);
    broker.create_topic("accounts", PARTITIONS, &[("cleanup.policy", "compact")]);
    broker.create_topic("latency.alerts", PARTITIONS, &[("retention.ms", "-1"), stamped]);
    let client = BTreeMap::from([("linger.ms".to_owned(), "2".to_owned())]);
    let publisher = Publisher::new(&broker.address, &client).expect("a producer");
    let mut cloud = Cloud::new(plan(args)).expect("a sound plan");
    send_accounts(&cloud, &publisher);
    let deployment = Deployment::new(&cluster, "latency", "usage", "accounts", POLICIES);
    let mut running = deployment.start(&cluster);
    await_ready(&deployment, &mut running);
    let cpu = (running.cpu_seconds(), cluster.cpu_seconds());
    let sent = send(args.rate, &mut cloud, &publisher);
    await_silence(&deployment, sent.events, &mut running);
    let cpu = (running.cpu_seconds() - cpu.0, cluster.cpu_seconds() - cpu.1);
    let closed = closing_appends(&cluster);
    let delays = delays(&cluster, &closed, &deployment.config.topics.alerts);
    running.stop();
    let rate = sent.events as f64 / sent.seconds;
    println!(
        "{} events in {:.1} s, {rate:.0} a second; flopwatch used {:.0} % of a core, the broker \
         {:.0} %; at worst the sender was {:.0} ms behind\n",
        sent.events,
        sent.seconds,
        cpu.0 / sent.seconds * 100.0,
        cpu.1 / sent.seconds * 100.0,
        sent.behind.as_secs_f64() * 1000.0
    );
    println!(
        "| scope | closings | alerts | p50 ms | p99 ms | max ms |\n| --- | --- | --- | --- | --- | --- |"
    );
    let mut results = BTreeMap::new();
    for (scope, by_end) in &delays {
        let closings = by_end.len();
        let mut all: Vec<i64> = by_end.values().flatten().copied().collect();
        all.sort_unstable();
        let at = |share: usize| all[(all.len() - 1) * share / 100];
        let (p50, p99, max) = (at(50), at(99), at(100));
        println!("| {scope} | {closings} | {} | {p50} | {p99} | {max} |", all.len());
        let ends: Vec<_> =
            by_end.iter().map(|(end, delays)| json!([end.to_string(), delays])).collect();
        results
            .insert(scope.clone(), json!({ "p50": p50, "p99": p99, "max": max, "by_end": ends }));
    }
    report::save(
        folder,
        "latency.json",
        &json!({ "header": header, "rate": rate, "scopes": results }),
    );
}

fn await_ready(deployment: &Deployment, running: &mut crate::process::Running) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while deployment.series().get("flopwatch_ready") != Some(&1.0) {
        running.assert_alive();
        if Instant::now() > deadline {
            running.fail("does not become ready");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

struct Sent {
    events: u64,
    seconds: f64,
    /// The most that the sender was late by.
    behind: Duration,
}

fn plan(args: &Args) -> Plan {
    let squeeze = u64::try_from(SQUEEZE.as_millis()).expect("short");
    let per_interval = squeeze * args.rate / 1000;
    Plan {
        seed: 1,
        start: Timestamp(1_767_571_200_000_000_000),
        span: Span(INTERVAL.0 * (args.seconds * 1000 / squeeze)),
        interval: INTERVAL,
        partitions: PARTITIONS.unsigned_abs(),
        key: KeyBy::Account,
        accounts: 100_000,
        resources: u32::try_from(per_interval).expect("a few million at most"),
        scenarios: Vec::new(),
        constant: true,
        duplicates_per_million: 10_000,
        disorder: Span::seconds(120),
    }
}

fn send_accounts(cloud: &Cloud, publisher: &Publisher) {
    let mut bytes = Vec::new();
    for tenant in cloud.tenants().iter().filter(|tenant| !tenant.unlisted) {
        encode_account(&tenant.entry, Format::Delimited, &mut bytes);
        let key = tenant.entry.account_id.as_bytes();
        publisher.send("accounts", None, Some(key), &bytes).expect("a record is queued");
    }
    publisher.finish("accounts").expect("the broker has everything");
}

/// Sends events at the rate, each when it is due.
fn send(rate: u64, cloud: &mut Cloud, publisher: &Publisher) -> Sent {
    let mut bytes = Vec::new();
    let (began, mut events, mut behind) = (Instant::now(), 0_u64, Duration::ZERO);
    while let Some(sent) = cloud.next() {
        if events.is_multiple_of(64) {
            let due = Duration::from_nanos(events * 1_000_000_000 / rate);
            match due.checked_sub(began.elapsed()) {
                Some(early) => thread::sleep(early),
                None => behind = behind.max(began.elapsed().saturating_sub(due)),
            }
        }
        encode_event(&sent.event, Format::Delimited, &mut bytes);
        publisher.send("usage", Some(sent.partition), None, &bytes).expect("a record is queued");
        events += 1;
    }
    publisher.finish("usage").expect("the broker has everything");
    Sent { events, seconds: began.elapsed().as_secs_f64(), behind }
}

/// Until all is read and nothing more is judged.
fn await_silence(deployment: &Deployment, events: u64, running: &mut crate::process::Running) {
    let deadline = Instant::now() + Duration::from_secs(120);
    let judged = || {
        let series = deployment.series();
        let of = |name: &str| series.get(name).copied().unwrap_or(0.0);
        (of("flopwatch_events_read_total"), of("flopwatch_keys_judged_total"))
    };
    let mut before = judged();
    loop {
        running.assert_alive();
        thread::sleep(Duration::from_secs(1));
        let now = judged();
        if now.0 >= events as f64 && now == before {
            return;
        }
        if Instant::now() > deadline {
            running.fail("does not come to rest");
        }
        before = now;
    }
}

/// When the event was appended that let each slice end be judged: on every partition the first
/// with a time at or after its end and the lateness, and of those the last.
fn closing_appends(cluster: &Cluster) -> BTreeMap<Timestamp, i64> {
    let slice = Span::hours(1);
    let mut closed: BTreeMap<Timestamp, Vec<i64>> = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let mut next: Option<Timestamp> = None;
        each_record(cluster, "usage", partition, |appended, value| {
            let event: flopwatch::proto::UsageEvent =
                prost::Message::decode(value).expect("our own event");
            let judged = Timestamp(event.time_unix_nano).minus(LATENESS).floor(slice);
            let mut end = next.unwrap_or(judged);
            while end <= judged {
                closed.entry(end).or_default().push(appended);
                end = end.plus(slice);
            }
            next = Some(end);
        });
    }
    let all = usize::try_from(PARTITIONS).expect("few partitions");
    let by_all = closed.into_iter().filter(|(_, appended)| appended.len() == all);
    by_all.filter_map(|(end, appended)| Some((end, appended.into_iter().max()?))).collect()
}

type Delays = BTreeMap<String, BTreeMap<Timestamp, Vec<i64>>>;

/// Milliseconds from there to each alert, by scope and slice end.
fn delays(cluster: &Cluster, closed: &BTreeMap<Timestamp, i64>, topic: &str) -> Delays {
    let warm: BTreeMap<Timestamp, i64> =
        closed.iter().skip(WARM_UP).map(|(end, appended)| (*end, *appended)).collect();
    let mut delays = Delays::new();
    for partition in 0..PARTITIONS {
        each_record(cluster, topic, partition, |appended, value| {
            let event: Value = serde_json::from_slice(value).expect("a CloudEvent");
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            let at: jiff::Timestamp = text(&event["data"]["at"]).parse().expect("an instant");
            let at = Timestamp(u64::try_from(at.as_nanosecond()).expect("after 1970"));
            let Some(closing) = warm.get(&at) else { return };
            let scope = text(&event["data"]["scope"]);
            delays.entry(scope).or_default().entry(at).or_default().push(appended - closing);
        });
    }
    delays
}

/// Every committed record of a partition with the time of its append.
fn each_record(cluster: &Cluster, topic: &str, partition: i32, mut each: impl FnMut(i64, &[u8])) {
    let mut client = cluster.broker.client();
    let consumer: BaseConsumer = client
        .set("group.id", "latency-reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Beginning).expect("a partition");
    consumer.assign(&assignment).expect("an assignment");
    loop {
        match consumer.poll(SILENCE).expect("the topic comes to its end") {
            Ok(record) => {
                let appended = record.timestamp().to_millis().expect("the broker's timestamp");
                each(appended, record.payload().unwrap_or_default());
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return,
            Err(error) => panic!("reading {topic}: {error}"),
        }
    }
}
