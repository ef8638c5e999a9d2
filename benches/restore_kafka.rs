//! How long a killed process takes to come back, on a real Kafka: `flopwatch run` against state
//! topics that hold what the stages themselves would have left there.
//!
//! `cargo bench --bench restore_kafka [-- ACCOUNTS DAYS IDENTITIES ROUNDS WORKERS]`: by default
//! 100,000 accounts, each its own owner, active around the clock for 90 days; first without, then
//! with 20 million identities; 3 rounds of kill -9 under load on 2 workers. Program, broker, load
//! and reader share the machine.

#![expect(clippy::print_stdout, reason = "what a bench is for")]

#[path = "../tests/support/broker.rs"]
mod broker;
#[path = "../tests/support/fleet.rs"]
mod fleet;
mod state;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use broker::{Broker, free_port};
use fleet::Fleet;
use flopwatch::config::Config;
use flopwatch::detector::internal::partition_of;
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::kafka::topology;
use flopwatch::metrics::Stage;
use flopwatch::proto::UsageEvent;
use flopwatch::simulate::publish::Publisher;
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use state::{START, Templates, name};

const PARTITIONS: u32 = 4;
const GROUP: &str = "restore";
const PATIENCE: Duration = Duration::from_secs(300);
/// Events a second while the process is killed.
const LOAD: u64 = 20_000;
/// Event time passes faster than the clock, so that epochs and judgements happen.
const PACE: u64 = 20;

struct Bench {
    broker: Broker,
    config: Config,
    http: u16,
    accounts: u64,
    began: Timestamp,
    /// Event time of the next event.
    now: AtomicU64,
    sent: AtomicU64,
}

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let number = |index: usize, default| numbers.get(index).copied().unwrap_or(default);
    let (accounts, days) = (number(0, 100_000), number(1, 90));
    let (identities, rounds) = (number(2, 20_000_000), number(3, 3));
    let data = tempfile::tempdir().expect("a directory");
    let (bench, mut fleet) = Bench::new(data.path(), accounts, days, number(4, 2));
    bench.begin(&mut fleet);
    let bytes = bench.fill_accounts(days);
    println!("{accounts} accounts of {days} days: {:.0} MB of keys and values", millions(bytes));
    bench.on_disk(data.path(), accounts.max(1), "account");
    bench.rounds(&mut fleet, "accounts", rounds);
    if identities > 0 {
        bench.fill_identities(identities);
        bench.on_disk(data.path(), identities, "identity");
        bench.rounds(&mut fleet, "accounts and identities", rounds);
    }
}

impl Bench {
    fn new(data: &Path, accounts: u64, days: u64, workers: u64) -> (Self, Fleet) {
        let broker = Broker::start(Some(data));
        let http = free_port();
        let text = format!(
            "[kafka]\nbootstrap_servers = \"{}\"\ngroup_id = \"{GROUP}\"\nworkers = {workers}\n\
             instance = \"bench\"\n[http]\nlisten = \"127.0.0.1:{http}\"\n",
            broker.address
        );
        let config = Config::from_text("bench", &text).expect("a valid configuration");
        let fleet = Fleet::new(&[text]);
        let began = START.plus(Span::days(days));
        let (now, sent) = (AtomicU64::new(began.0), AtomicU64::new(0));
        (Self { broker, config, http, accounts, began, now, sent }, fleet)
    }

    /// A first life over a few events: positions and alignment that the state is to stand beside.
    fn begin(&self, fleet: &mut Fleet) {
        topology::create(&self.config, Some(PARTITIONS)).expect("topics can be made");
        let publisher = self.publisher();
        self.send(&publisher, u64::from(PARTITIONS));
        publisher.finish(&self.config.topics.usage).expect("usage is written");
        fleet.start(0);
        let topics = Stage::ALL.map(|stage| topology::input(&self.config, stage));
        let deadline = Instant::now() + PATIENCE;
        for topic in topics {
            let committed = || self.broker.positions(GROUP, topic, PARTITIONS as usize);
            while committed().iter().any(Option::is_none) {
                assert!(Instant::now() < deadline, "{topic}: {}", fleet.tail(0));
            }
        }
        fleet.terminate(0);
    }

    fn publisher(&self) -> Publisher {
        Publisher::new(&self.broker.address, &Default::default()).expect("a producer")
    }

    /// So many events, over all partitions and accounts in turn.
    fn send(&self, publisher: &Publisher, count: u64) {
        for _ in 0..count {
            let number = self.sent.fetch_add(1, Ordering::Relaxed);
            let step = Span::seconds(1).0 * PACE / LOAD;
            let time = Timestamp(self.now.fetch_add(step, Ordering::Relaxed));
            let event = UsageEvent {
                id: format!("load-{number}"),
                source: "bench".into(),
                account_id: name(number * 7919 % self.accounts.max(1)),
                region: "eu-west-1".into(),
                fabric_id: "pod-17".into(),
                accelerator: "nvidia-h100-sxm".into(),
                quantity: 8.0,
                start_time_unix_nano: time.minus(Span::seconds(300)).0,
                end_time_unix_nano: time.0,
                time_unix_nano: time.0,
                ..UsageEvent::default()
            };
            let partition = u32::try_from(number % u64::from(PARTITIONS)).expect("less than a u32");
            let usage = &self.config.topics.usage;
            publisher.send(usage, Some(partition), None, &event.encode_to_vec()).expect("sent");
        }
    }

    fn fill_accounts(&self, days: u64) -> u64 {
        let template = Templates::new(days);
        let publisher = self.publisher();
        let [accounts, owners] =
            [Stage::Account, Stage::Group].map(|stage| topology::changelog(&self.config, stage));
        let mut bytes = 0;
        for number in 0..self.accounts {
            let name = name(number);
            let partition = partition_of(&name, PARTITIONS);
            for (key, value) in template.account(number) {
                bytes += (key.len() + value.len()) as u64;
                publisher.send(&accounts, Some(partition), Some(&key), &value).expect("sent");
            }
            let partition = partition_of(&format!("owner/{name}"), PARTITIONS);
            for (key, value) in template.owner(number) {
                bytes += (key.len() + value.len()) as u64;
                publisher.send(&owners, Some(partition), Some(&key), &value).expect("sent");
            }
        }
        publisher.finish(&accounts).expect("state is written");
        bytes
    }

    fn fill_identities(&self, count: u64) {
        let topic = topology::changelog(&self.config, Stage::Meter);
        let publisher = self.publisher();
        // buckets of their own: what the stage itself has written lies behind
        let end = self.began;
        let mut bytes = 0;
        let each = state::identities(count / u64::from(PARTITIONS), end);
        for partition in 0..PARTITIONS {
            for ((bucket, block), value) in &each {
                let key =
                    [&partition.to_be_bytes()[..], &bucket.to_be_bytes(), &block.to_be_bytes()];
                bytes += value.len() as u64;
                publisher.send(&topic, Some(partition), Some(&key.concat()), value).expect("sent");
            }
        }
        publisher.finish(&topic).expect("state is written");
        println!("{count} identities: {:.0} MB of values", millions(bytes));
    }

    /// What the state topics take on the broker's disk.
    fn on_disk(&self, data: &Path, count: u64, what: &str) {
        for stage in Stage::ALL {
            let prefix = format!("{}-", topology::changelog(&self.config, stage));
            let logs = std::fs::read_dir(data.join("logs")).expect("the broker's logs");
            let folders = logs.map(|entry| entry.expect("an entry").path()).filter(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            });
            let files = folders.flat_map(|folder| std::fs::read_dir(folder).expect("segments"));
            let segments = files
                .map(|file| file.expect("a file").path())
                .filter(|path| path.extension().is_some_and(|extension| extension == "log"));
            let bytes: u64 =
                segments.map(|path| path.metadata().map_or(0, |found| found.len())).sum();
            println!(
                "  {}-state on the broker: {:.0} MB, {} bytes for each {what}",
                stage.name(),
                millions(bytes),
                bytes / count
            );
        }
    }

    /// Starts the process, and kills and starts it again under load.
    fn rounds(&self, fleet: &mut Fleet, what: &str, rounds: u64) {
        let began = Instant::now();
        fleet.start(0);
        let ready = self.await_ready(fleet, began).as_secs_f64();
        let bytes = self.restored();
        println!(
            "{what}: ready {ready:.2} s after the start, {:.1} s of CPU, {:.0} MB restored, {:.0} \
             MB/s, {} MiB resident; slowest task of each stage:{}; load of the machine {}",
            cpu(fleet.pid(0)),
            millions(bytes),
            millions(bytes) / ready,
            resident_mib(fleet.pid(0)),
            slowest(fleet),
            load()
        );
        for round in 1..=rounds {
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| self.load(&stop));
                // caught up and committing at its usual pace
                let outputs = self.reader();
                (0..50).for_each(|_| next(&outputs));
                fleet.kill(0);
                let killed = Instant::now();
                let outputs = self.reader();
                fleet.start(0);
                let ready = self.await_ready(fleet, killed).as_secs_f64();
                next(&outputs);
                let output = killed.elapsed().as_secs_f64();
                println!(
                    "{what}, round {round}: kill -9 to ready {ready:.2} s, to the first committed \
                     output {output:.2} s, {:.1} s of CPU;{}; load of the machine {}",
                    cpu(fleet.pid(0)),
                    slowest(fleet),
                    load()
                );
                stop.store(true, Ordering::Relaxed);
            });
        }
        fleet.terminate(0);
    }

    fn load(&self, stop: &AtomicBool) {
        let publisher = self.publisher();
        let began = Instant::now();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let due = u64::try_from(began.elapsed().as_millis()).expect("soon") * LOAD / 1000;
            self.send(&publisher, due - sent);
            sent = due;
            thread::park_timeout(Duration::from_millis(10));
        }
        publisher.finish(&self.config.topics.usage).expect("usage is written");
    }

    /// Reads what METER commits from now on.
    fn reader(&self) -> BaseConsumer {
        let mut client = self.broker.client();
        client.set("group.id", "bench-reader").set("enable.auto.commit", "false");
        client.set("fetch.wait.max.ms", "10").set("isolation.level", "read_committed");
        let consumer: BaseConsumer = client.create().expect("a consumer");
        // what an open transaction has written lies before this, and is aborted by its successor
        let ends: BaseConsumer = self.broker.client().create().expect("a consumer");
        let topic = &self.config.topics.account_usage;
        let mut assignment = TopicPartitionList::new();
        for partition in (0..).take(PARTITIONS as usize) {
            let (_, high) = ends.fetch_watermarks(topic, partition, PATIENCE).expect("an end");
            let added = assignment.add_partition_offset(topic, partition, Offset::Offset(high));
            added.expect("a partition can be listed");
        }
        consumer.assign(&assignment).expect("an assignment");
        consumer
    }

    fn await_ready(&self, fleet: &Fleet, began: Instant) -> Duration {
        while !self.ask("/healthz/ready").starts_with("HTTP/1.1 200") {
            assert!(began.elapsed() < PATIENCE, "not ready: {}", fleet.tail(0));
            thread::park_timeout(Duration::from_millis(10));
        }
        began.elapsed()
    }

    /// Bytes that its restores have read.
    fn restored(&self) -> u64 {
        let metrics = self.ask("/metrics");
        let lines =
            metrics.lines().filter(|line| line.starts_with("flopwatch_restore_bytes_total{"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    fn ask(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.http)) {
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
            // it may end at any moment
            let sent = stream.write_all(request.as_bytes());
            drop(sent.and_then(|()| stream.read_to_string(&mut answer)));
        }
        answer
    }
}

/// CPU seconds that a process has used: what a quiet machine would divide by its cores.
fn cpu(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let fields = stat.rsplit(')').next().map(|rest| rest.split_whitespace().collect::<Vec<_>>());
    let fields = fields.expect("fields after the name");
    let ticks = |index: usize| fields[index].parse::<u32>().expect("a number of ticks");
    f64::from(ticks(11) + ticks(12)) / 100.0
}

fn resident_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("on Linux");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |n| n / 1024)
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").expect("on Linux");
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Until the next record.
fn next(outputs: &BaseConsumer) {
    let deadline = Instant::now() + PATIENCE;
    while !matches!(outputs.poll(Duration::from_millis(100)), Some(Ok(_))) {
        assert!(Instant::now() < deadline, "no output");
    }
}

/// The time that the slowest task of each stage took, as the process last logged it.
fn slowest(fleet: &Fleet) -> String {
    let tail = fleet.tail(0);
    let last = tail.rfind("\"starting\"").map_or(tail.as_str(), |at| &tail[at..]);
    let restored = last.lines().filter(|line| line.contains("task restored"));
    let number = |line: &str, name: &str| -> Option<u64> {
        let rest = line.split(&format!("\"{name}\":")).nth(1)?;
        rest.split([',', '}']).next()?.trim_matches('"').parse().ok()
    };
    let mut slowest = String::new();
    for stage in Stage::ALL {
        let of_stage = restored.clone().filter(|line| line.contains(stage.name()));
        let most = of_stage.filter_map(|line| number(line, "milliseconds")).max();
        slowest += &format!(" {} {} ms", stage.name(), most.unwrap_or_default());
    }
    slowest
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn millions(count: u64) -> f64 {
    count as f64 / 1e6
}
