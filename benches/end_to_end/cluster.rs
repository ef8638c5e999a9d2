//! The broker of a bench, its topics and workloads.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use flopwatch::config::Config;
use flopwatch::kafka::topology;
use flopwatch::metrics::Stage;
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::broker::{Broker, wait_for};
use crate::process::{Running, cpu_seconds, peak_megabytes};

/// As the measure says.
pub(crate) const PARTITIONS: i32 = 4;

const CALL: Duration = Duration::from_secs(30);

/// Bytes that an event may come to need on the disk, all topics together: far above what it does.
const BYTES_AN_EVENT: u64 = 600;
const DISK_SPARE: u64 = 4 << 30;

/// The two workloads of the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// A cloud's nodes, each metered every 5 minutes for a little over an hour.
    Fleet,
    /// About one event per account and epoch for three days.
    Sparse,
}

impl Workload {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fleet => "fleet",
            Self::Sparse => "sparse",
        }
    }

    /// What `simulate` is told to make about `events` instead of its 20 million.
    fn smaller(self, events: u64) -> Vec<String> {
        if events >= 20_000_000 {
            return Vec::new();
        }
        match self {
            // 13 intervals, and 1 % duplicates
            Self::Fleet => vec!["--resources".to_owned(), (events * 100 / 1313).to_string()],
            // 276,000 events an hour of 23,000 nodes
            Self::Sparse => {
                let minutes = (events * 6000 / 27_876_000).max(65);
                vec!["--span".to_owned(), format!("{minutes}m")]
            }
        }
    }
}

pub(crate) struct Cluster {
    pub(crate) broker: Broker,
    data: PathBuf,
    folder: PathBuf,
    pub(crate) pid: u32,
}

/// A workload on its topic.
pub(crate) struct Loaded {
    pub(crate) workload: Workload,
    pub(crate) usage: String,
    pub(crate) accounts: String,
    pub(crate) events: u64,
    /// On the broker's disk.
    pub(crate) bytes: u64,
    /// What made it, as printed.
    pub(crate) made: String,
}

impl Cluster {
    /// Starts a broker over data of its own; refuses when the disk cannot hold what will come.
    pub(crate) fn start(folder: &Path, events: u64) -> Self {
        let wanted = events * BYTES_AN_EVENT + DISK_SPARE;
        let free = free_bytes(folder);
        assert!(free > wanted, "{}: {free} bytes are free, {wanted} wanted", folder.display());
        let data = folder.join(format!("broker-{}", std::process::id()));
        let broker = Broker::start(Some(&data));
        let pid = fs::read_to_string(data.join("pid")).expect("the broker's number");
        let pid = pid.trim().parse().expect("a number");
        Self { broker, data, folder: folder.to_path_buf(), pid }
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.pid)
    }

    pub(crate) fn peak_megabytes(&self) -> f64 {
        peak_megabytes(self.pid)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).expect("a file of settings");
        path
    }

    /// Makes the topics of a workload and fills them.
    pub(crate) fn load(&self, workload: Workload, events: u64) -> Loaded {
        let name = workload.name();
        let (usage, accounts) = (format!("{name}.usage"), format!("{name}.accounts"));
        self.broker.create_topic(&usage, PARTITIONS, &[("retention.ms", "-1")]);
        self.broker.create_topic(&accounts, PARTITIONS, &[("cleanup.policy", "compact")]);
        let text = format!(
            "[kafka]\nbootstrap_servers = {:?}\n[topics]\nusage = {usage:?}\naccounts = {accounts:?}\n",
            self.broker.address
        );
        let config = self.write(&format!("{name}.toml"), &text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_flopwatch"));
        command.args(["simulate", "--kafka", "--workload", name, "--config"]).arg(config);
        command.args(workload.smaller(events));
        let log = self.log(&format!("simulate-{name}"));
        Running::start(&mut command, &log).wait(Duration::from_secs(1800));
        let said = fs::read_to_string(log).unwrap_or_default();
        let made = said.lines().last().unwrap_or_default().to_owned();
        let events = self.ends(&usage).iter().sum();
        let bytes = self.bytes(&usage);
        Loaded { workload, usage, accounts, events, bytes, made }
    }

    /// The end of each partition.
    pub(crate) fn ends(&self, topic: &str) -> Vec<u64> {
        let client: BaseConsumer = self.broker.client().create().expect("a client");
        (0..PARTITIONS)
            .map(|partition| {
                let (_, high) = client.fetch_watermarks(topic, partition, CALL).expect("an end");
                u64::try_from(high).expect("an offset")
            })
            .collect()
    }

    /// On the broker's disk, indexes included.
    pub(crate) fn bytes(&self, topic: &str) -> u64 {
        let mut bytes = 0;
        for partition in 0..PARTITIONS {
            let folder = self.data.join("logs").join(format!("{topic}-{partition}"));
            let Ok(entries) = fs::read_dir(folder) else { continue };
            let logs = entries.flatten().filter(|entry| {
                entry.path().extension().is_some_and(|extension| extension == "log")
            });
            bytes += logs.filter_map(|entry| entry.metadata().ok()).map(|at| at.len()).sum::<u64>();
        }
        bytes
    }

    /// Every topic that a deployment has beside its two inputs.
    pub(crate) fn own_topics(config: &Config) -> Vec<String> {
        let topics = &config.topics;
        let mut names: Vec<String> = [
            &topics.account_usage,
            &topics.group_usage,
            &topics.alerts,
            &topics.shadow_alerts,
            &topics.dead_letters,
        ]
        .map(Clone::clone)
        .into();
        names.extend(Stage::ALL.map(|stage| topology::changelog(config, stage)));
        names
    }

    /// Deletes topics, those that are not there included; the broker removes their files later.
    pub(crate) fn delete(&self, topics: &[String]) {
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let admin = self.broker.admin();
        drop(wait_for(admin.delete_topics(&names, &AdminOptions::new())));
    }

    /// Topics whose names begin so.
    pub(crate) fn topics(&self, prefix: &str) -> Vec<String> {
        let client: BaseConsumer = self.broker.client().create().expect("a client");
        let metadata = client.fetch_metadata(None, CALL).expect("metadata");
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
        names.filter(|name| name.starts_with(prefix)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // the broker itself ends with its owner, after this
        drop(Command::new("kill").args(["-s", "KILL", &self.pid.to_string()]).status());
        let deadline = Instant::now() + CALL;
        while Path::new(&format!("/proc/{}", self.pid)).exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Err(error) = fs::remove_dir_all(&self.data) {
            eprintln!("{}: {error}", self.data.display());
        }
    }
}

/// Asks for a group's committed positions again and again.
pub(crate) struct Positions {
    consumer: BaseConsumer,
    wanted: TopicPartitionList,
}

impl Positions {
    pub(crate) fn new(cluster: &Cluster, group: &str, topic: &str) -> Self {
        let mut client = cluster.broker.client();
        let consumer = client.set("group.id", group).create().expect("a consumer");
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_range(topic, 0, PARTITIONS - 1);
        Self { consumer, wanted }
    }

    /// Records before the positions; 0 while there are none.
    pub(crate) fn committed(&self) -> u64 {
        let Ok(found) = self.consumer.committed_offsets(self.wanted.clone(), CALL) else {
            return 0;
        };
        let offset = |offset: Offset| match offset {
            Offset::Offset(offset) => u64::try_from(offset).unwrap_or(0),
            Offset::Beginning
            | Offset::End
            | Offset::Stored
            | Offset::Invalid
            | Offset::OffsetTail(_) => 0,
        };
        found.elements().iter().map(|element| offset(element.offset())).sum()
    }
}

fn free_bytes(folder: &Path) -> u64 {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(folder).output();
    let output = output.expect("df is there");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("a number of bytes")
}
