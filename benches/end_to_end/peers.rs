//! The same task in Kafka Streams, in Flink and in flopwatch, over the same topic in turn, with a
//! bare consumer beside them; results are compared to the last digit.
//!
//! The task: join the account directory, FLOP per event, dedup, 24 h windows every hour by account
//! and by country, an alert once per foreign account over a threshold, exactly once. Theirs is in
//! `benches/peers`, built by `make bench-peers`; ours is `run` with the two policies below.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::backlog;
use crate::cluster::{Cluster, Loaded, PARTITIONS, Positions};
use crate::process::{Running, cpu_seconds, peak_megabytes};
use crate::report::{self, Run, median};
use crate::service::{self, Deployment};
use crate::{Args, broker};

const LOOK: Duration = Duration::from_millis(20);

/// How long outputs may follow the last committed position.
const SETTLE: Duration = Duration::from_secs(60);

/// Watermarks trail the greatest time by this on all sides: more than the workloads' disorder, and
/// little enough that `fleet`, a little over an hour, closes its hour.
const LATENESS_SECONDS: u64 = 300;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    Streams,
    StreamsPlain,
    Flink,
    FlinkPlain,
    FlinkSql,
}

impl Peer {
    const ALL: [Self; 5] =
        [Self::Flink, Self::Streams, Self::FlinkPlain, Self::StreamsPlain, Self::FlinkSql];

    const fn name(self) -> &'static str {
        match self {
            Self::Streams => "Kafka Streams",
            Self::StreamsPlain => "Kafka Streams, no dedup",
            Self::Flink => "Flink",
            Self::FlinkPlain => "Flink, no dedup",
            Self::FlinkSql => "Flink SQL HOP, no dedup",
        }
    }

    const fn class(self) -> &'static str {
        match self {
            Self::Streams | Self::StreamsPlain => "flopwatch.peers.StreamsPeer",
            Self::Flink | Self::FlinkPlain => "flopwatch.peers.FlinkPeer",
            Self::FlinkSql => "flopwatch.peers.FlinkSqlPeer",
        }
    }

    /// Where it was built.
    const fn project(self) -> &'static str {
        match self {
            Self::Streams | Self::StreamsPlain => "streams",
            Self::Flink | Self::FlinkPlain | Self::FlinkSql => "flink",
        }
    }

    const fn has_dedup(self) -> bool {
        match self {
            Self::Streams | Self::Flink => true,
            Self::StreamsPlain | Self::FlinkPlain | Self::FlinkSql => false,
        }
    }
}

/// GFLOP in 24 hours that an alert takes: some hundred accounts reach it, by different hours.
const THRESHOLD: u64 = 100_000_000_000;

/// What a system found: when each account was first over the threshold, and each country's total
/// at each hour, in FLOP.
#[derive(Debug, Default, PartialEq)]
struct Found {
    accounts: BTreeMap<String, (i64, f64)>,
    totals: BTreeMap<(i64, String), f64>,
}

pub(crate) fn run(args: &Args, folder: &Path) {
    let header = report::header();
    report::print_header(&header);
    let mut results = Vec::new();
    let mut all_equal = true;
    for workload in args.workloads() {
        let cluster = Cluster::start(folder, args.events);
        let loaded = cluster.load(workload, args.events);
        let mut rounds = Vec::new();
        for round in 0..args.rounds {
            let (runs, equal) = one_round(args, &cluster, &loaded, round);
            all_equal &= equal;
            rounds.push(runs);
        }
        let title = format!("{}: {} events ({})", workload.name(), loaded.events, loaded.made);
        println!("{}\n", report::table(&title, &rounds, backlog::is_bare));
        println!("{}\n", ahead(&rounds));
        results.push(json!({ "workload": workload.name(), "rounds": rounds }));
    }
    report::save(folder, "peers.json", &json!({ "header": header, "workloads": results }));
    assert!(all_equal, "some results differ from flopwatch's: see above");
}

/// flopwatch's events a second over each other system's, within each round.
fn ahead(rounds: &[Vec<Run>]) -> String {
    let mut ratios: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in rounds {
        let Some(ours) = round.iter().find(|run| run.system == "flopwatch") else { continue };
        for run in round.iter().filter(|run| run.system != "flopwatch") {
            ratios.entry(&run.system).or_default().push(ours.rate() / run.rate());
        }
    }
    let mut lines = vec![
        "| flopwatch's events/s over those of | median | runs |".to_owned(),
        "| --- | --- | --- |".to_owned(),
    ];
    for (system, values) in ratios {
        let runs: Vec<String> = values.iter().map(|value| format!("{value:.2}")).collect();
        let median = median(values.iter().copied());
        lines.push(format!("| {system} | {median:.2} | {} |", runs.join(" ")));
    }
    lines.join("\n")
}

/// Each system once; who begins changes from round to round. Whether all results are equal.
fn one_round(args: &Args, cluster: &Cluster, loaded: &Loaded, round: usize) -> (Vec<Run>, bool) {
    let limit = Duration::from_secs(args.limit);
    let chosen = if args.peer.is_empty() { Peer::ALL.to_vec() } else { args.peer.clone() };
    let (run, ours) = flopwatch(cluster, loaded, round, limit);
    let mut runs = vec![run];
    eprintln!("round {}: flopwatch: {:.3} M events/s", round + 1, runs[0].rate() / 1e6);
    let mut equal = !ours.accounts.is_empty() && !ours.totals.is_empty();
    assert!(equal, "flopwatch found nothing: a comparison would say nothing: {ours:?}");
    // what the first without dedup found: duplicates included, so that it is not what ours is
    let mut plain = None;
    for &threads in &args.bare {
        runs.push(backlog::bare(cluster, loaded, threads, limit));
    }
    for turn in 0..chosen.len() {
        let peer = chosen[(turn + round) % chosen.len()];
        let reference = if peer.has_dedup() { Some(&ours) } else { plain.as_ref() };
        let (run, found) = java(args, cluster, loaded, (peer, round), (&ours, reference));
        eprintln!("round {}: {}: {:.3} M events/s", round + 1, run.system, run.rate() / 1e6);
        equal &= found.is_some();
        runs.push(run);
        if !peer.has_dedup() && plain.is_none() {
            plain = found;
        }
    }
    (runs, equal)
}

fn flopwatch(cluster: &Cluster, loaded: &Loaded, round: usize, limit: Duration) -> (Run, Found) {
    let group = format!("peers-{}-{round}", loaded.workload.name());
    let policies = format!(
        "[time]\nlateness = \"{LATENESS_SECONDS}s\"\n\
         [[policy]]\nid = \"account\"\nversion = 1\ntitle = \"24 h of an account\"\n\
         severity = \"warning\"\nscope = \"account\"\norigin = \"foreign\"\nwindow = \"24h\"\n\
         [[policy.all]]\nmetric = \"flop\"\nat_least = {THRESHOLD}e9\n\
         [[policy]]\nid = \"country\"\nversion = 1\ntitle = \"24 h of a country\"\n\
         severity = \"info\"\nscope = \"country\"\norigin = \"any\"\nwindow = \"24h\"\n\
         renotify = \"1h\"\n[[policy.all]]\nmetric = \"flop\"\nat_least = 1e9\n"
    );
    let deployment = Deployment::new(cluster, &group, &loaded.usage, &loaded.accounts, &policies);
    let run = service::measure(cluster, &deployment, loaded, limit);
    let found = our_alerts(cluster, &deployment.config.topics.alerts);
    deployment.remove(cluster);
    (run, found)
}

fn our_alerts(cluster: &Cluster, topic: &str) -> Found {
    let mut found = Found::default();
    for record in cluster.broker.read(topic, "read_committed") {
        let value = record.value.expect("an alert");
        let event: Value = serde_json::from_slice(&value).expect("a CloudEvent");
        let data = &event["data"];
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let at: jiff::Timestamp = text(&data["at"]).parse().expect("an instant");
        let at = at.as_millisecond();
        let observed = data["conditions"][0]["observed"].as_f64();
        let (key, state) = (text(&data["key"]), text(&data["state"]));
        match (data["policy"]["id"].as_str(), state.as_str(), observed) {
            (_, "resolved", _) => {}
            (Some("account"), "firing", Some(observed)) => {
                let first = found.accounts.entry(key).or_insert((at, observed));
                if at < first.0 {
                    *first = (at, observed);
                }
            }
            (Some("country"), _, Some(observed)) => {
                found.totals.insert((at, key), observed);
            }
            (..) => {}
        }
    }
    found
}

/// Lines of `account,<id>,<end ms>,<GFLOP>` and `country,<code>,<end ms>,<GFLOP>`.
#[allow(clippy::cast_precision_loss, reason = "converted once, as the contract says")]
fn their_lines(records: Vec<broker::Kept>) -> Found {
    let mut found = Found::default();
    for record in records {
        let value = record.value.expect("a line");
        let line = String::from_utf8(value).expect("a line of text");
        let parts: Vec<&str> = line.split(',').collect();
        let at: i64 = parts[2].parse().expect("milliseconds");
        let sum: i128 = parts[3].parse().expect("a sum");
        let flop = sum as f64 * 1e9;
        match parts[0] {
            "account" => {
                let first = found.accounts.entry(parts[1].to_owned()).or_insert((at, flop));
                if at < first.0 {
                    *first = (at, flop);
                }
            }
            "country" => {
                found.totals.insert((at, parts[1].to_owned()), flop);
            }
            other => panic!("a line of {other}"),
        }
    }
    found
}

impl Found {
    /// What was found for hours up to `last`.
    fn until(&self, last: i64) -> Self {
        let accounts = self.accounts.iter().filter(|(_, (at, _))| *at <= last);
        let totals = self.totals.iter().filter(|((at, _), _)| *at <= last);
        Self {
            accounts: accounts.map(|(key, value)| (key.clone(), *value)).collect(),
            totals: totals.map(|(key, value)| (key.clone(), *value)).collect(),
        }
    }

    /// Every total is at least the other's, and every account is there no later.
    fn is_nowhere_below(&self, other: &Self) -> bool {
        let total = |(key, flop): (_, &f64)| self.totals.get(key).is_some_and(|mine| mine >= flop);
        let account = |(key, (at, _)): (&String, &(i64, f64))| {
            self.accounts.get(key).is_some_and(|mine| mine.0 <= *at)
        };
        other.totals.iter().all(total) && other.accounts.iter().all(account)
    }

    /// Some of what the other has not, or has otherwise.
    fn lacking(&self, other: &Self) -> String {
        let accounts =
            self.accounts.iter().filter(|(key, it)| other.accounts.get(*key) != Some(it));
        let totals = self.totals.iter().filter(|(key, it)| other.totals.get(*key) != Some(it));
        let accounts: Vec<_> = accounts.take(3).collect();
        let totals: Vec<_> = totals.take(3).collect();
        format!("{accounts:?} {totals:?}")
    }

    fn last(&self) -> i64 {
        self.totals.keys().map(|(at, _)| *at).max().unwrap_or(0)
    }
}

fn java(
    args: &Args,
    cluster: &Cluster,
    loaded: &Loaded,
    (peer, round): (Peer, usize),
    (ours, reference): (&Found, Option<&Found>),
) -> (Run, Option<Found>) {
    let limit = Duration::from_secs(args.limit);
    let class = peer.class().rsplit('.').next().unwrap_or_default();
    let group = format!("{class}-{}-{}-{round}", peer.has_dedup(), loaded.workload.name());
    let (output, countries) = (format!("{group}.output"), format!("{group}.countries"));
    cluster.broker.create_topic(&output, 1, &[]);
    cluster.broker.create_topic(&countries, 1, &[]);
    let folder = tempfile::tempdir_in(cluster.folder()).expect("a folder for local state");
    let mut command = java_command(peer);
    command.arg(peer.class()).args([
        format!("servers={}", cluster.broker.address),
        format!("usage={}", loaded.usage),
        format!("accounts={}", loaded.accounts),
        format!("group={group}"),
        format!("output={output}"),
        format!("countries={countries}"),
        format!("folder={}", folder.path().display()),
        format!("threshold={THRESHOLD}"),
        format!("lateness-seconds={LATENESS_SECONDS}"),
        format!("dedup={}", peer.has_dedup()),
        format!("partitions={PARTITIONS}"),
        format!("threads={}", thread::available_parallelism().map_or(2, usize::from)),
    ]);
    let mut running = Running::start(&mut command, &cluster.log(&group));
    let pid = running.pid();
    let look = || (Instant::now(), cpu_seconds(pid), cluster.cpu_seconds());
    assert_eq!(running.line(limit), "first", "what a peer says first");
    let began = look();
    let positions = Positions::new(cluster, &group, &loaded.usage);
    let mut progress = Vec::new();
    let ended = loop {
        let committed = positions.committed();
        let now = look();
        progress.push((now.0, committed));
        if committed >= loaded.events {
            break now;
        }
        running.assert_alive();
        if now.0 > running.started + limit {
            running.fail(&format!("at {committed} of {} events", loaded.events));
        }
        thread::sleep(LOOK);
    };
    let run = Run {
        system: peer.name().to_owned(),
        events: loaded.events,
        seconds: (ended.0 - began.0).as_secs_f64(),
        start_up_seconds: (began.0 - running.started).as_secs_f64(),
        warm: report::warm(&progress),
        cpu_seconds: ended.1 - began.1,
        broker_cpu_seconds: ended.2 - began.2,
        peak_megabytes: peak_megabytes(pid),
        drained_seconds: None,
        notes: BTreeMap::new(),
    };
    let found = settled(cluster, &output, peer, (ours, reference));
    running.stop();
    cluster.delete(&cluster.topics(&group));
    (run, found)
}

/// Waits until the outputs are those of the reference, or without one are nowhere below ours, and
/// returns them; says where they differ when they do not become so.
fn settled(
    cluster: &Cluster,
    output: &str,
    peer: Peer,
    (ours, reference): (&Found, Option<&Found>),
) -> Option<Found> {
    let deadline = Instant::now() + SETTLE;
    let wanted = reference.unwrap_or(ours);
    let last = ours.last();
    loop {
        // the last hour of all may be closed on one side alone, by a millisecond
        let theirs = their_lines(cluster.broker.read(output, "read_committed"));
        let complete = theirs.last() >= last;
        let theirs = theirs.until(last);
        let agrees = match reference {
            Some(reference) => theirs == reference.until(last),
            None => theirs.is_nowhere_below(ours),
        };
        if complete && agrees {
            let (accounts, totals) = (theirs.accounts.len(), theirs.totals.len());
            let how = if reference.is_some() { "equal" } else { "plausible" };
            eprintln!("{}: {how}: {accounts} accounts, {totals} totals", peer.name());
            return Some(theirs);
        }
        if Instant::now() > deadline {
            eprintln!("{}: DIFFERS: wanted {}", peer.name(), wanted.lacking(&theirs));
            eprintln!("{}: found {}", peer.name(), theirs.lacking(wanted));
            return None;
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// A virtual machine with room, and the collector that serves throughput best on two cores.
fn java_command(peer: Peer) -> Command {
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let built = root.parent().expect("target").join("peers").join(peer.project());
    let (classes, libraries) = (built.join("classes"), built.join("libs"));
    assert!(classes.exists() && libraries.exists(), "`make bench-peers` builds them");
    let heap = std::env::var("PEER_HEAP").unwrap_or_else(|_| "8g".to_owned());
    let mut command = Command::new("java");
    command.arg(format!("-Xmx{heap}")).args(["-XX:+UseParallelGC"]);
    for package in ["util", "lang", "nio", "time", "net", "io", "util.concurrent"] {
        command.arg(format!("--add-opens=java.base/java.{package}=ALL-UNNAMED"));
    }
    command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
    command.arg("-cp").arg(format!("{}:{}/*", classes.display(), libraries.display()));
    command
}
