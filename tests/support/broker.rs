//! A real Kafka for the tests of one binary: started once on free loopback ports, ended with it.

#![allow(dead_code, reason = "each binary that tests with it uses a part")]

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};

/// A broker takes a few seconds; the machine may be busy with other tests.
const START: Duration = Duration::from_secs(120);

const CALL: Duration = Duration::from_secs(30);

/// The version of a broker that comes back: 4.2 and 4.3 lose ends of transactions when a broker
/// that has no replicas beside it does (KAFKA-20734). `KAFKA_VERSION` takes another.
const RESTARTABLE: &str = "4.1.1";

#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) address: String,
    /// A second listener, for clients that come through a proxy: where the broker listens, and
    /// where it tells them to go.
    pub(crate) proxied: (u16, u16),
    controller: u16,
    /// Where its data lies, when it shall outlive the broker.
    data: Option<PathBuf>,
    extra: Extra,
    /// Holds the pipe whose end ends the broker.
    script: Child,
}

/// What `start.sh` adds to a broker.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Lines of server.properties.
    pub(crate) properties: String,
    /// Arguments for formatting the storage.
    pub(crate) format: String,
}

/// A record as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Broker {
    /// The broker that all tests of this binary share.
    pub(crate) fn shared() -> &'static Self {
        static BROKER: OnceLock<Broker> = OnceLock::new();
        BROKER.get_or_init(|| Self::start(None))
    }

    /// Starts one; with `data`, a directory, it can be restarted.
    pub(crate) fn start(data: Option<&Path>) -> Self {
        Self::start_with(data, |_, _| Extra::default())
    }

    /// Starts one with more settings, which may depend on its plain and its controller's port.
    pub(crate) fn start_with(data: Option<&Path>, extra: impl FnOnce(u16, u16) -> Extra) -> Self {
        let (port, controller) = (free_port(), free_port());
        let proxied = (free_port(), free_port());
        let (extra, data) = (extra(port, controller), data.map(Path::to_path_buf));
        let (script, log, settings) = launch(port, controller, proxied, data.as_deref(), &extra);
        let address = format!("127.0.0.1:{port}");
        let mut broker = Self { address, proxied, controller, data, extra, script };
        broker.await_start(log);
        // read by now
        drop(settings);
        broker
    }

    /// Ends it and starts it again over the same data, cleanly or as a power cut would.
    pub(crate) fn restart(&mut self, killed: bool) {
        self.stop(killed);
        self.resume();
    }

    /// Starts it again over the data of the one that was stopped.
    pub(crate) fn resume(&mut self) {
        let port = self.address.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.expect("an address ends in its port");
        let data = self.data.as_deref();
        let (script, log, settings) =
            launch(port, self.controller, self.proxied, data, &self.extra);
        self.script = script;
        self.await_start(log);
        drop(settings);
    }

    /// Ends it, cleanly or as a power cut would.
    pub(crate) fn stop(&mut self, killed: bool) {
        if killed {
            // it may have halted by itself
            drop(Command::new("kill").args(["-s", "KILL", &self.pid()]).status());
        }
        drop(self.script.stdin.take());
        self.script.wait().expect("the script ends with its input");
    }

    fn pid(&self) -> String {
        let data = self.data.as_ref().expect("only a broker with its own data comes back");
        let pid = std::fs::read_to_string(data.join("pid")).expect("the broker's number");
        pid.trim().to_owned()
    }

    /// Whether its process is there, dead ones that nobody has waited for aside.
    pub(crate) fn is_running(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    }

    fn await_start(&mut self, log: File) {
        let deadline = Instant::now() + START;
        while let Err(error) = self.answer() {
            let ended = self.script.try_wait().expect("a child can be asked");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no broker: {error}, {ended:?}\n{}",
                text(log)
            );
        }
    }

    fn answer(&self) -> Result<(), KafkaError> {
        let client: BaseConsumer = self.client().create()?;
        client.fetch_metadata(None, Duration::from_secs(1)).map(drop)
    }

    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address).set("log_level", "2");
        config
    }

    pub(crate) fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("an administrative client")
    }

    pub(crate) fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        let admin = self.admin();
        let made = wait_for(admin.create_topics([&topic], &AdminOptions::new()));
        for result in made.expect("topics can be made") {
            result.expect("the topic is made");
        }
        self.await_partitions(name, partitions);
    }

    fn await_partitions(&self, name: &str, partitions: i32) {
        let client: BaseConsumer = self.client().create().expect("a client");
        let deadline = Instant::now() + CALL;
        loop {
            let metadata = client.fetch_metadata(Some(name), CALL).expect("metadata");
            let found = metadata.topics().first().is_some_and(|topic| {
                topic.error().is_none()
                    && topic.partitions().len() == usize::try_from(partitions).unwrap_or(0)
            });
            if found {
                return;
            }
            assert!(Instant::now() < deadline, "topic {name} does not appear");
        }
    }

    pub(crate) fn delete_topic(&self, name: &str) {
        let admin = self.admin();
        let gone = wait_for(admin.delete_topics(&[name], &AdminOptions::new()));
        for result in gone.expect("topics can be deleted") {
            result.expect("the topic is deleted");
        }
        let client: BaseConsumer = self.client().create().expect("a client");
        let deadline = Instant::now() + CALL;
        let is_there = || {
            let metadata = client.fetch_metadata(Some(name), CALL).expect("metadata");
            metadata.topics().first().is_some_and(|topic| topic.error().is_none())
        };
        while is_there() {
            assert!(Instant::now() < deadline, "topic {name} stays");
        }
    }

    /// Removes what lies before `offset`, as retention would.
    pub(crate) fn truncate(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("a partition");
        let admin = self.admin();
        wait_for(admin.delete_records(&list, &AdminOptions::new())).expect("records can go");
    }

    /// Forgets a group's positions, as the broker does with a group that was long away.
    pub(crate) fn forget_group(&self, group: &str) {
        let admin = self.admin();
        let deadline = Instant::now() + CALL;
        loop {
            let gone = wait_for(admin.delete_groups(&[group], &AdminOptions::new()));
            let gone = gone.expect("groups can be deleted");
            if gone.iter().all(Result::is_ok) {
                return;
            }
            // its last member may still be leaving
            assert!(Instant::now() < deadline, "group {group}: {gone:?}");
        }
    }

    pub(crate) fn add_partitions(&self, topic: &str, count: usize) {
        let admin = self.admin();
        let more = NewPartitions::new(topic, count);
        let made = wait_for(admin.create_partitions([&more], &AdminOptions::new()));
        for result in made.expect("partitions can be made") {
            result.expect("the partitions are made");
        }
        self.await_partitions(topic, i32::try_from(count).expect("few partitions"));
    }

    pub(crate) fn partitions(&self, topic: &str) -> u32 {
        let client: BaseConsumer = self.client().create().expect("a client");
        let metadata = client.fetch_metadata(Some(topic), CALL).expect("metadata");
        u32::try_from(metadata.topics()[0].partitions().len()).expect("few partitions")
    }

    /// The group's committed position in each partition.
    pub(crate) fn positions(
        &self,
        group: &str,
        topic: &str,
        partitions: usize,
    ) -> Vec<Option<i64>> {
        let consumer: BaseConsumer =
            self.client().set("group.id", group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        let last = i32::try_from(partitions).expect("few partitions") - 1;
        list.add_partition_range(topic, 0, last);
        // a broker that has just started has yet to make its coordinators
        let deadline = Instant::now() + CALL;
        let found = loop {
            match consumer.committed_offsets(list.clone(), CALL) {
                Ok(found) => break found,
                Err(error) => assert!(Instant::now() < deadline, "committed positions: {error}"),
            }
        };
        let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
        found.elements().iter().map(|element| offset(element.offset())).collect()
    }

    /// The group's committed positions in a topic as they are given out: with those that an open
    /// transaction may still move, and only when none does.
    pub(crate) fn stability(&self, group: &str, topic: &str) -> [String; 2] {
        ["read_uncommitted", "read_committed"].map(|isolation| {
            let mut client = self.client();
            client.set("group.id", group).set("isolation.level", isolation);
            let consumer: BaseConsumer = client.create().expect("a consumer");
            let mut list = TopicPartitionList::new();
            let last = i32::try_from(self.partitions(topic)).expect("few partitions") - 1;
            list.add_partition_range(topic, 0, last);
            match consumer.committed_offsets(list, Duration::from_secs(5)) {
                Ok(found) => format!("{isolation}: {:?}", found.to_topic_map().values()),
                Err(error) => format!("{isolation}: {error}"),
            }
        })
    }

    /// The ends of a topic's partitions, added up: it moves whenever something is written.
    pub(crate) fn end(&self, topic: &str) -> i64 {
        let client: BaseConsumer = self.client().create().expect("a client");
        let partitions = 0..i32::try_from(self.partitions(topic)).expect("few partitions");
        let end = |partition| client.fetch_watermarks(topic, partition, CALL).expect("its end").1;
        partitions.map(end).sum()
    }

    /// How many members the group has.
    pub(crate) fn members(&self, group: &str) -> usize {
        let consumer: BaseConsumer = self.client().create().expect("a consumer");
        let groups = consumer.fetch_group_list(Some(group), CALL).expect("groups");
        groups.groups().iter().map(|found| found.members().len()).sum()
    }

    /// Everything on a topic, partition by partition, as `isolation` shows it now.
    pub(crate) fn read(&self, topic: &str, isolation: &str) -> Vec<Kept> {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "test-reader")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", isolation)
            .create()
            .expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(topic), CALL).expect("metadata");
        let partitions = metadata.topics()[0].partitions().len();
        let mut assignment = TopicPartitionList::new();
        for partition in 0..i32::try_from(partitions).expect("few partitions") {
            assignment
                .add_partition_offset(topic, partition, Offset::Beginning)
                .expect("a partition can be listed");
        }
        consumer.assign(&assignment).expect("an assignment");
        let (mut kept, mut ended) = (Vec::new(), 0);
        let mut deadline = Instant::now() + CALL;
        while ended < partitions {
            assert!(Instant::now() < deadline, "topic {topic} does not end");
            let polled = consumer.poll(Duration::from_millis(100));
            if polled.is_some() {
                deadline = Instant::now() + CALL;
            }
            match polled {
                None => {}
                Some(Ok(record)) => kept.push(Kept {
                    partition: record.partition(),
                    offset: record.offset(),
                    key: record.key().map(<[u8]>::to_vec),
                    value: record.payload().map(<[u8]>::to_vec),
                    headers: record.headers().map_or_else(Vec::new, |headers| {
                        headers
                            .iter()
                            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                            .collect()
                    }),
                }),
                Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
                Some(Err(error)) => panic!("reading {topic}: {error}"),
            }
        }
        kept.sort_by_key(|record| (record.partition, record.offset));
        kept
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        self.script.wait().expect("the script ends with its input");
    }
}

/// Runs the script that runs the broker; what it says goes to the file. Its settings must stay
/// until it has started.
fn launch(
    port: u16,
    controller: u16,
    proxied: (u16, u16),
    data: Option<&Path>,
    extra: &Extra,
) -> (Child, File, tempfile::TempPath) {
    let mut properties = tempfile::NamedTempFile::new().expect("a file of settings");
    properties.write_all(extra.properties.as_bytes()).expect("settings can be written");
    let properties = properties.into_temp_path();
    let log = tempfile::tempfile().expect("a log file");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("tests/support/kafka/start.sh"));
    command
        .env("PORT", port.to_string())
        .env("CONTROLLER_PORT", controller.to_string())
        .env("PROXIED_PORT", proxied.0.to_string())
        .env("ADVERTISED_PORT", proxied.1.to_string())
        .env("UNTIL_EOF", "1")
        .env("PROPERTIES", &properties)
        .env("FORMAT", &extra.format)
        .env_remove("DATA")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log.try_clone().expect("a second handle"));
    if let Some(data) = data {
        command.env("DATA", data);
        if std::env::var_os("KAFKA_VERSION").is_none() {
            command.env("KAFKA_VERSION", RESTARTABLE);
        }
    }
    (command.spawn().expect("start.sh runs"), log, properties)
}

/// Waits for a future of an administrative client, which its own thread completes.
pub(crate) fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its number").port()
}

fn text(mut log: File) -> String {
    let mut text = String::new();
    log.seek(SeekFrom::Start(0)).expect("the log can be read");
    log.read_to_string(&mut text).expect("the log is text");
    text
}
