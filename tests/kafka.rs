//! The service on a real Kafka.

#[path = "support/broker.rs"]
mod broker;
#[path = "kafka/refusals.rs"]
mod refusals;
#[path = "kafka/running.rs"]
mod running;
#[path = "support/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use broker::{Broker, Kept};
use flopwatch::config::{Config, Topics};
use flopwatch::error::Fatal;
use flopwatch::http::health::Health;
use flopwatch::kafka::{Options, Service, topology};
use flopwatch::metrics::Stage;
use flopwatch::proto::Alert;
use flopwatch::simulate::KeyBy;
use flopwatch::simulate::publish::Publisher;
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;
use world::{World, config, config_text};

/// A whole run on a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);

/// One process of a deployment, in this one.
struct Member {
    service: Service,
    health: Arc<Health>,
}

impl Member {
    fn start(config: Config, options: Options) -> Self {
        // RUST_LOG shows what the service says; only the first test can install it
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init()
            .unwrap_or_default();
        let config = Arc::new(config);
        let health = Arc::new(Health::new(config.kafka.workers));
        let layout = topology::prepare(&config).expect("topics are as they should be").layout;
        let service =
            Service::start(&config, layout, options, &health).expect("the service starts");
        Self { service, health }
    }

    fn await_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(reason) = self.health.unready() {
            if let Some(fatal) = self.service.failure(Duration::from_millis(20)) {
                panic!("{fatal}");
            }
            assert!(Instant::now() < deadline, "not ready: {reason}");
        }
    }

    /// Waits for the service to end by itself.
    fn await_failure(self) -> Fatal {
        let fatal = self.service.failure(PATIENCE).expect("it fails");
        self.service.join().unwrap_or_default();
        fatal
    }

    fn stop(self) {
        self.service.join().expect("nothing went wrong");
    }
}

/// A real process of the program.
struct Process {
    child: Child,
    log: Option<Lines<BufReader<ChildStderr>>>,
    file: PathBuf,
    _directory: TempDir,
}

impl Process {
    fn run(name: &str, instance: &str, workers: usize) -> Self {
        Self::run_with(name, instance, workers, "")
    }

    /// With `more` settings.
    fn run_with(name: &str, instance: &str, workers: usize, more: &str) -> Self {
        let (directory, file) = config_file(name, instance, workers, &Broker::shared().address);
        append_to(&file, more);
        Self::start(directory, file)
    }

    /// With a configuration file, in a directory that lives as long as the process.
    fn start(directory: TempDir, file: PathBuf) -> Self {
        let (child, log) = Self::launch(&file);
        Self { child, log, file, _directory: directory }
    }

    /// Ends it as a power cut would and starts it again under its name.
    fn restart(&mut self) {
        self.signal("KILL");
        self.child.wait().expect("its end");
        (self.child, self.log) = Self::launch(&self.file);
    }

    fn launch(file: &Path) -> (Child, Option<Lines<BufReader<ChildStderr>>>) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
            .args(["run", "--config"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let log = Some(BufReader::new(child.stderr.take().expect("a pipe")).lines());
        (child, log)
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Reads its log until a line holds `text`, and returns that line.
    fn await_line(&mut self, text: &str) -> String {
        self.lines_until(text).pop().expect("the line was found")
    }

    /// Its log from where it was last read to a line that holds `text`.
    fn lines_until(&mut self, text: &str) -> Vec<String> {
        let log = self.log.as_mut().expect("not given away");
        let mut lines = Vec::new();
        for line in log.map_while(Result::ok) {
            let found = line.contains(text);
            lines.push(line);
            if found {
                return lines;
            }
        }
        panic!("the log ends without {text:?}: {lines:?}")
    }

    fn end(mut self) -> ExitStatus {
        self.child.wait().expect("the program ends")
    }

    /// Waits for the program to end by itself: its exit code and the last line that it wrote.
    fn failed(mut self) -> (Option<i32>, String) {
        let log = self.log.take().expect("read once");
        let (sender, last) = channel();
        // the log ends with the program; one that hangs must not take the test along
        let read = move || sender.send(log.map_while(Result::ok).last()).unwrap_or_default();
        thread::spawn(read);
        let last = last.recv_timeout(PATIENCE).expect("the program ends");
        (self.child.wait().expect("its end").code(), last.unwrap_or_default())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // after a failed assertion; gone already otherwise
        self.child.kill().unwrap_or_default();
    }
}

fn config_file(name: &str, instance: &str, workers: usize, address: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("flopwatch.toml");
    let text = config_text(name, instance, workers, address);
    std::fs::write(&file, text).expect("the file can be written");
    (directory, file)
}

fn run_equals_replay(name: &str, key: KeyBy, processes: usize) {
    let config = config(name, "test", 1);
    // something is left to read when the processes have started
    let world = World::new(7, key, 4);
    let expected = world.replayed(&config);
    assert!(expected.size().0 > 50, "{:?} alerts, slices, dead letters", expected.size());
    world.prepare(&config);
    world.send(&config, 0, 100);
    let running: Vec<Process> =
        (0..processes).map(|number| Process::run(name, &format!("p{number}"), 2)).collect();
    world.await_outcome(&config, &expected, PATIENCE);
    for process in running {
        process.signal("TERM");
        assert_eq!(process.end().code(), Some(0), "SIGTERM drains");
    }
    assert_eq!(world.found(&config), expected);
}

#[test]
fn one_process_over_usage_keyed_by_account_equals_replay() {
    run_equals_replay("one-account", KeyBy::Account, 1);
}

#[test]
fn three_processes_over_usage_keyed_by_account_equal_replay() {
    run_equals_replay("three-account", KeyBy::Account, 3);
}

#[test]
fn one_process_over_usage_keyed_by_event_equals_replay() {
    run_equals_replay("one-event", KeyBy::Event, 1);
}

#[test]
fn three_processes_over_usage_keyed_by_event_equal_replay() {
    run_equals_replay("three-event", KeyBy::Event, 3);
}

#[test]
fn one_process_over_unkeyed_usage_equals_replay() {
    run_equals_replay("one-none", KeyBy::None, 1);
}

#[test]
fn three_processes_over_unkeyed_usage_equal_replay() {
    run_equals_replay("three-none", KeyBy::None, 3);
}

#[test]
fn a_killed_process_that_comes_back_leaves_no_trace_in_the_outputs() {
    let name = "killed";
    let config = config(name, "test", 1);
    let world = World::new(11, KeyBy::Event, 3);
    let expected = world.replayed(&config);
    world.prepare(&config);
    let mut moved = [0; 3];
    for share in 0..5 {
        world.send(&config, share * 20, share * 20 + 20);
        let mut process = Process::run(name, "again", 1);
        process.await_line("running");
        // at once, or when another partition has moved on
        if let Some(partition) = share.checked_sub(1) {
            let before = moved[partition % 3];
            moved[partition % 3] =
                await_progress(name, &config.topics.usage, partition % 3, before);
        }
        process.signal("KILL");
        assert_eq!(process.end().code(), None);
    }
    let process = Process::run(name, "again", 1);
    world.await_outcome(&config, &expected, PATIENCE);
    process.signal("TERM");
    assert_eq!(process.end().code(), Some(0));
    assert_eq!(world.found(&config), expected);
}

#[test]
fn a_killed_process_is_replaced_by_the_others() {
    let name = "replaced";
    let config = config(name, "test", 1);
    let world = World::new(31, KeyBy::Event, 4);
    let expected = world.replayed(&config);
    world.prepare(&config);
    let mut doomed = Process::run(name, "doomed", 2);
    let other = Process::run(name, "other", 1);
    doomed.await_line("running");
    world.send(&config, 0, 50);
    await_progress(name, &config.topics.usage, 1, 0);
    doomed.signal("KILL");
    assert_eq!(doomed.end().code(), None);
    world.send(&config, 50, 100);
    world.await_outcome(&config, &expected, PATIENCE);
    other.signal("TERM");
    assert_eq!(other.end().code(), Some(0));
    assert_eq!(world.found(&config), expected);
}

#[test]
fn changed_policies_take_effect_in_a_running_process_and_wrong_ones_do_not() {
    let name = "reloaded";
    let config = config(name, "test", 1);
    let world = World::new(41, KeyBy::Account, 2);
    let expected = world.replayed(&config);
    world.prepare(&config);
    world.send(&config, 0, 50);
    let mut process = Process::run(name, "a", 1);
    process.await_line("running");
    await_progress(name, &config.topics.usage, 0, 0);
    // without a threshold the file is wrong, and refused whole
    append_to(
        &process.file,
        "[[policy]]\nid = \"added\"\nversion = 1\ntitle = \"T\"\nseverity = \"info\"\n\
         scope = \"account\"\norigin = \"any\"\nwindow = \"1h\"\n[[policy.all]]\n",
    );
    process.await_line("changed policies refused");
    append_to(&process.file, "metric = \"accelerators\"\nat_least = 0.5\n");
    process.await_line("policies reloaded");
    world.send(&config, 50, 100);
    let is_new = |key: &(String, Vec<u8>)| key.1.ends_with(b"/added");
    let deadline = Instant::now() + PATIENCE;
    let found = loop {
        let mut found = world.found(&config);
        let new = found.alerts.keys().any(is_new);
        found.alerts.retain(|key, _| !is_new(key));
        if (new && found == expected) || Instant::now() >= deadline {
            break found;
        }
    };
    assert_eq!(found, expected);
    process.signal("TERM");
    assert_eq!(process.end().code(), Some(0));
}

fn append_to(file: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(file).expect("the file");
    file.write_all(text.as_bytes()).expect("the file can be written");
}

/// What a demonstration rests on: no broker but librdkafka's own, which knows no administration.
#[test]
fn the_service_runs_over_an_in_process_mock_cluster() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    let text = config_text("mock", "a", 1, &cluster.bootstrap_servers());
    let config = Arc::new(Config::from_text("mock", &text).expect("a valid configuration"));
    let Topics { usage, accounts, account_usage, group_usage, .. } = &config.topics;
    let Topics { alerts, shadow_alerts, dead_letters, .. } = &config.topics;
    let ours = [account_usage, group_usage, alerts, shadow_alerts, dead_letters];
    let changelogs = Stage::ALL.map(|stage| topology::changelog(&config, stage));
    for name in [usage, accounts].into_iter().chain(ours).chain(&changelogs) {
        cluster.create_topic(name, 2, 1).expect("a topic");
    }
    let world = World::new(43, KeyBy::Account, 2);
    let live = |topic: &String| topic.as_str() == alerts.as_str();
    let expected = world.replayed(&config).alerts;
    let expected: usize =
        expected.iter().filter(|(key, _)| live(&key.0)).map(|(_, values)| values.len()).sum();
    world.send_accounts(&config);
    world.send(&config, 0, 100);
    let health = Arc::new(Health::new(1));
    let layout = topology::Layout { usage: 2, tasks: 2 };
    let service = Service::start(&config, layout, Options::default(), &health).expect("it starts");
    let reader: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", "reader")
        .create()
        .expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    for partition in 0..2 {
        assignment
            .add_partition_offset(alerts, partition, Offset::Beginning)
            .expect("a partition can be listed");
    }
    reader.assign(&assignment).expect("an assignment");
    let deadline = Instant::now() + PATIENCE;
    let mut found = 0;
    while found < expected {
        assert!(Instant::now() < deadline, "{found} of {expected} alerts");
        found += usize::from(matches!(reader.poll(Duration::from_millis(100)), Some(Ok(_))));
    }
    service.join().expect("nothing went wrong");
}

#[test]
fn a_directory_record_that_comes_while_it_runs_takes_effect() {
    let name = "directory";
    let mut world = World::new(73, KeyBy::Account, 2);
    let accounts = std::mem::take(&mut world.accounts);
    let deployment = config(name, "a", 1);
    world.prepare(&deployment);
    world.send(&deployment, 0, 40);
    let member = Member::start(config(name, "a", 1), Options::default());
    member.await_ready();
    await_share(&world, &deployment, 40);
    let origins = || {
        let alerts = Broker::shared().read(&deployment.topics.alerts, "read_committed");
        let values = alerts.iter().filter_map(|alert| alert.value.as_deref());
        let parsed = values.map(serde_json::from_slice::<serde_json::Value>);
        let mut origins = Vec::new();
        for alert in parsed.map(|alert| alert.expect("an alert is JSON")) {
            if alert["data"]["scope"] == "account" {
                origins.push(alert["data"]["origin"]["country"].clone());
            }
        }
        origins
    };
    let deadline = Instant::now() + PATIENCE;
    while origins().is_empty() {
        assert!(Instant::now() < deadline, "no alert");
    }
    assert!(origins().iter().all(|country| country == "ZZ"), "{:?}", origins());
    world.accounts = accounts;
    world.send_accounts(&deployment);
    // the directory is read beside usage: some share comes after it
    for share in (45..=100).step_by(5) {
        world.send(&deployment, share - 5, share);
        await_share(&world, &deployment, share);
    }
    while !origins().iter().any(|country| country != "ZZ") {
        assert!(Instant::now() < deadline, "every origin is unknown: {:?}", origins());
    }
    member.stop();
}

#[test]
fn alerts_as_protobuf_say_what_the_json_ones_do() {
    let name = "protobuf";
    let world = World::new(79, KeyBy::Account, 2);
    let text = config_text(name, "a", 1, &Broker::shared().address);
    let text = text + "[alerts]\nformat = \"protobuf\"\n";
    let config = Config::from_text(name, &text).expect("a valid configuration");
    let live = |key: &(String, Vec<u8>)| key.0 == config.topics.alerts;
    let json = world.replayed(&config).alerts;
    let expected: BTreeMap<_, Vec<_>> = json
        .into_iter()
        .filter(|(key, _)| live(key))
        .map(|(key, alerts)| (key.1, alerts.iter().map(|alert| essence_of_json(alert)).collect()))
        .collect();
    world.prepare(&config);
    world.send(&config, 0, 100);
    let member = Member::start(config.clone(), Options::default());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for record in Broker::shared().read(&config.topics.alerts, "read_committed") {
            let essence = essence_of_protobuf(&record);
            found.entry(record.key.expect("alerts have keys")).or_default().push(essence);
        }
        if found == expected {
            break;
        }
        if Instant::now() >= deadline {
            assert_eq!(found, expected);
        }
    }
    member.stop();
}

/// Identity, subject, state, estimate and conditions.
type Essence = (String, String, String, String, usize);

fn essence_of_json(alert: &str) -> Essence {
    let alert: serde_json::Value = serde_json::from_str(alert).expect("an alert is JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let data = &alert["data"];
    let flop = data["estimate"]["flop"].as_f64().expect("a number");
    let conditions = data["conditions"].as_array().expect("a list").len();
    (
        text(&alert["id"]),
        text(&alert["subject"]),
        text(&data["state"]),
        format!("{flop:e}"),
        conditions,
    )
}

fn essence_of_protobuf(record: &Kept) -> Essence {
    let header = |name: &str| {
        let mut values = record.headers.iter().filter(|(key, _)| key == name);
        let value = values.next().and_then(|(_, value)| value.clone()).expect("a header");
        String::from_utf8(value).expect("text")
    };
    let value = record.value.as_deref().expect("alerts have values");
    let alert = Alert::decode(value).expect("an alert is protobuf");
    let id = header("ce_id");
    assert_eq!(id, format!("{}/{}", alert.alert_id, alert.revision));
    let state = alert.state().as_str_name().to_lowercase();
    let estimate = alert.estimate.expect("an estimate");
    let flop = format!("{:e}", estimate.flop);
    (id, header("ce_subject"), state, flop, alert.conditions.len())
}

#[test]
fn a_partition_without_records_is_idle_and_holds_nobody_back() {
    let name = "idle";
    let mut world = World::new(37, KeyBy::Account, 2);
    world.partitions.push(Vec::new());
    let text = config_text(name, "a", 1, &Broker::shared().address);
    let text = text + "[time]\nidle_timeout = \"2s\"\n";
    let config = Config::from_text(name, &text).expect("a valid configuration");
    let expected = world.replayed(&config);
    world.prepare(&config);
    world.send(&config, 0, 100);
    let member = Member::start(config.clone(), Options::default());
    world.await_outcome(&config, &expected, PATIENCE);
    member.stop();
    assert_eq!(world.found(&config), expected);
}

#[test]
fn garbage_on_one_partition_leaves_the_outputs_of_all_as_they_were() {
    let name = "garbage";
    let config = config(name, "a", 1);
    let mut world = World::new(41, KeyBy::Account, 3);
    let clean = world.replayed(&config);
    let sound = std::mem::take(&mut world.partitions[1]);
    for (number, record) in sound.into_iter().enumerate() {
        world.partitions[1].push(record);
        if number % 7 < 3 {
            world.partitions[1].push((None, b"{\"quantity\":\xff}".to_vec()));
        }
    }
    let expected = world.replayed(&config);
    assert!(expected.dead_letters.len() > clean.dead_letters.len() + 100);
    assert!((&expected.alerts, &expected.ledger) == (&clean.alerts, &clean.ledger));
    world.prepare(&config);
    world.send(&config, 0, 100);
    let member = Member::start(config.clone(), Options::default());
    world.await_outcome(&config, &expected, PATIENCE);
    member.stop();
    assert_eq!(world.found(&config), expected);
}

#[test]
fn a_backlog_beside_a_partition_not_yet_heard_of_waits_in_kafka() {
    let name = "backlog";
    let mut world = World::new(71, KeyBy::Account, 2);
    let text = config_text(name, "a", 1, &Broker::shared().address);
    let text = text + "[time]\nidle_timeout = \"1h\"\n";
    let config = Config::from_text(name, &text).expect("a valid configuration");
    let expected = world.replayed(&config);
    world.prepare(&config);
    let late = std::mem::take(&mut world.partitions[1]);
    world.send(&config, 0, 100);
    let member = Member::start(config.clone(), Options::default());
    let usage = &config.topics.usage;
    let all = i64::try_from(world.partitions[0].len()).expect("few records");
    await_progress(name, usage, 0, 0);
    let waiting = Instant::now() + Duration::from_secs(4);
    while Instant::now() < waiting {
        let position = Broker::shared().positions(name, usage, 1)[0].expect("it has one");
        assert!(position < all * 3 / 4, "{position} of {all} records were read");
    }
    world.partitions = vec![Vec::new(), late];
    world.send(&config, 0, 100);
    world.await_outcome(&config, &expected, PATIENCE);
    member.stop();
    assert_eq!(world.found(&config), expected);
}

#[test]
fn too_many_invalid_records_in_a_row_end_the_process_at_every_start() {
    let name = "drained";
    let config = config(name, "a", 1);
    topology::create(&config, Some(1)).expect("topics can be made");
    let usage = &config.topics.usage;
    let servers = &config.kafka.bootstrap_servers;
    let publisher = Publisher::new(servers, &config.kafka.client).expect("a producer");
    for _ in 0..2500 {
        publisher.send(usage, Some(0), None, b"a bad deploy").expect("a record is sent");
    }
    publisher.finish(usage).expect("records are written");
    // a supervisor starts it again and again
    for _ in 0..3 {
        let (code, error) = refusals::verb(name, &Broker::shared().address, &["run"]);
        assert_eq!(code, 1, "{error}");
        let error = error.lines().last().unwrap_or_default();
        assert!(error.contains("1000 invalid records in a row"), "{error}");
        assert!(error.contains("dead_letter.max_consecutive"), "{error}");
    }
    let letters = Broker::shared().read(&config.topics.dead_letters, "read_committed").len();
    let position = Broker::shared().positions(name, usage, 1)[0].unwrap_or(0);
    assert!(letters <= 1000, "{letters} dead letters");
    assert_eq!(i64::try_from(letters).ok(), Some(position), "nothing beyond them is committed");
}

/// A transaction of somebody else, left open in every changelog, below commits that follow: the
/// last stable offset stands still while the end moves on.
#[test]
fn a_restore_waits_for_the_end_of_the_changelog_beyond_an_open_transaction() {
    let name = "open-transaction";
    let world = World::new(13, KeyBy::Account, 2);
    let expected = world.replayed(&config(name, "a", 1));
    world.prepare(&config(name, "a", 1));
    let first = Member::start(config(name, "a", 1), Options::default());
    first.await_ready();
    let foreign = open_transaction(&config(name, "a", 1), 2);
    world.send(&config(name, "a", 1), 0, 60);
    let usage = &config(name, "a", 1).topics.usage;
    await_positions(
        name,
        usage,
        &world.partitions.iter().map(|p| p.len() * 60 / 100).collect::<Vec<_>>(),
    );
    first.stop();

    let second = Member::start(config(name, "b", 1), Options::default());
    let waiting = Instant::now() + Duration::from_secs(4);
    while Instant::now() < waiting {
        assert!(second.health.unready().is_some(), "it ran without the last commits");
        assert!(second.service.failure(Duration::from_millis(50)).is_none());
    }
    foreign.abort_transaction(PATIENCE).expect("the abort");
    second.await_ready();
    world.send(&config(name, "b", 1), 60, 100);
    world.await_outcome(&config(name, "b", 1), &expected, PATIENCE);
    second.stop();
    assert_eq!(world.found(&config(name, "b", 1)), expected);
}

/// A transaction of somebody else that has written to every changelog, and stays open.
fn open_transaction(config: &Config, partitions: i32) -> BaseProducer {
    let foreign: BaseProducer = Broker::shared()
        .client()
        .set("transactional.id", format!("{}-foreign", config.kafka.group_id))
        .set("transaction.timeout.ms", "120000")
        .create()
        .expect("a producer");
    foreign.init_transactions(PATIENCE).expect("transactions");
    foreign.begin_transaction().expect("a transaction");
    for stage in Stage::ALL {
        for partition in 0..partitions {
            let topic = topology::changelog(config, stage);
            // no key of ours: whoever reads it would fail
            let record = BaseRecord::<[u8], [u8]>::to(&topic)
                .partition(partition)
                .key(b"?")
                .payload(b"never");
            foreign.send(record).map_err(|(error, _)| error).expect("a record is queued");
        }
    }
    foreign.flush(PATIENCE).expect("records are written");
    foreign
}

/// Waits until the group has moved beyond a position, and says where to.
fn await_progress(group: &str, topic: &str, partition: usize, beyond: i64) -> i64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = Broker::shared().positions(group, topic, partition + 1)[partition];
        if let Some(position) = found.filter(|&position| position > beyond) {
            return position;
        }
        assert!(Instant::now() < deadline, "position {found:?}, not beyond {beyond}");
    }
}

/// Waits until this share (of 100) of every usage partition has been read.
fn await_share(world: &World, config: &Config, share: usize) {
    let read: Vec<_> = world.partitions.iter().map(|p| p.len() * share / 100).collect();
    await_positions(&config.kafka.group_id, &config.topics.usage, &read);
}

/// Waits until the group has committed these positions.
fn await_positions(group: &str, topic: &str, wanted: &[usize]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = Broker::shared().positions(group, topic, wanted.len());
        if found.iter().zip(wanted).all(|(found, wanted)| *found == i64::try_from(*wanted).ok()) {
            return;
        }
        assert!(Instant::now() < deadline, "positions {found:?}, not {wanted:?}");
    }
}

#[test]
fn a_process_that_is_told_to_stop_leaves_its_partitions_at_once() {
    let name = "leaving";
    let world = World::new(19, KeyBy::Account, 2);
    world.prepare(&config(name, "x", 1));
    let first = Member::start(config(name, "a", 1), Options::default());
    first.await_ready();
    first.stop();
    // a member that had merely gone would hold its place for the session's 6 s: the next join
    // would wait for it
    assert_eq!(Broker::shared().members(name), 0);
}
