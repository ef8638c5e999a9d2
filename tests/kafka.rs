//! The service on a real Kafka.

#[path = "support/broker.rs"]
mod broker;
#[path = "support/world.rs"]
mod world;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::Broker;
use flopwatch::config::Config;
use flopwatch::error::Fatal;
use flopwatch::http::health::Health;
use flopwatch::kafka::{Options, Service, topology};
use flopwatch::metrics::Stage;
use flopwatch::simulate::KeyBy;
use flopwatch::simulate::publish::Publisher;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
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
    _directory: TempDir,
}

impl Process {
    fn run(name: &str, instance: &str, workers: usize) -> Self {
        let (directory, file) = config_file(name, instance, workers, &Broker::shared().address);
        let child = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
            .args(["run", "--config"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        Self { child, _directory: directory }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Reads its log until a line holds `text`.
    fn await_line(&mut self, text: &str) {
        let log = BufReader::new(self.child.stderr.as_mut().expect("a pipe"));
        let found = log.lines().map_while(Result::ok).any(|line| line.contains(text));
        assert!(found, "the log ends without {text:?}");
    }

    fn end(mut self) -> ExitStatus {
        self.child.wait().expect("the program ends")
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

/// Runs a verb to its end: exit code and standard error.
fn verb(name: &str, address: &str, arguments: &[&str]) -> (i32, String) {
    let (_directory, file) = config_file(name, "cli", 1, address);
    let mut child = Command::new(env!("CARGO_BIN_EXE_flopwatch"))
        .args(arguments)
        .arg("--config")
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env("RUST_LOG", "error")
        .spawn()
        .expect("the program starts");
    let mut text = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut text).expect("text");
    let code = child.wait().expect("the program ends").code().expect("an exit code");
    (code, text)
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
    let mut expected = world.replayed(&config);
    let clean = std::mem::take(&mut world.partitions[1]);
    for (number, record) in clean.into_iter().enumerate() {
        world.partitions[1].push(record);
        if number % 7 < 3 {
            world.partitions[1].push((None, b"{\"quantity\":\xff}".to_vec()));
            expected.dead_letters += 1;
        }
    }
    world.prepare(&config);
    world.send(&config, 0, 100);
    let member = Member::start(config.clone(), Options::default());
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
        let (code, error) = verb(name, &Broker::shared().address, &["run"]);
        assert_eq!(code, 1, "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
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
    let foreign: BaseProducer = Broker::shared()
        .client()
        .set("transactional.id", "foreign")
        .set("transaction.timeout.ms", "120000")
        .create()
        .expect("a producer");
    foreign.init_transactions(PATIENCE).expect("transactions");
    foreign.begin_transaction().expect("a transaction");
    for stage in Stage::ALL {
        for partition in 0..2 {
            let topic = topology::changelog(&config(name, "a", 1), stage);
            // no key of ours: whoever reads it would fail
            let record = BaseRecord::<[u8], [u8]>::to(&topic)
                .partition(partition)
                .key(b"?")
                .payload(b"never");
            foreign.send(record).map_err(|(error, _)| error).expect("a record is queued");
        }
    }
    foreign.flush(PATIENCE).expect("records are written");
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
fn a_second_process_under_the_same_name_ends_the_first() {
    let name = "twins";
    let world = World::new(17, KeyBy::Account, 2);
    world.prepare(&config(name, "x", 1));
    let first = Member::start(config(name, "same", 1), Options::default());
    first.await_ready();
    let second = Member::start(config(name, "same", 1), Options::default());
    let fatal = first.await_failure();
    assert!(matches!(fatal, Fatal::Fenced(_)), "{fatal}");
    assert!(fatal.to_string().contains("kafka.instance"), "{fatal}");
    second.await_ready();
    second.stop();
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

#[test]
fn records_that_retention_removed_stop_the_start_unless_the_gap_is_accepted() {
    let name = "gap";
    let world = World::new(23, KeyBy::Account, 2);
    let deployment = || config(name, "a", 1);
    world.prepare(&deployment());
    world.send(&deployment(), 0, 20);
    let first = Member::start(deployment(), Options::default());
    let read: Vec<usize> = world.partitions.iter().map(|p| p.len() * 20 / 100).collect();
    await_positions(name, &deployment().topics.usage, &read);
    first.stop();
    world.send(&deployment(), 20, 60);
    let usage = deployment().topics.usage;
    let removed = i64::try_from(read[1]).expect("few records") + 5;
    Broker::shared().truncate(&usage, 1, removed);

    let fatal = Member::start(deployment(), Options::default()).await_failure();
    assert!(matches!(fatal, Fatal::State(_)), "{fatal}");
    let text = fatal.to_string();
    for part in [usage.as_str(), "partition 1", "(5 records)", "--accept-gap"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let accepting = Member::start(deployment(), Options { accept_gap: true });
    let read: Vec<usize> = world.partitions.iter().map(|p| p.len() * 60 / 100).collect();
    await_positions(name, &usage, &read);
    accepting.stop();
}

#[test]
fn state_without_a_position_stops_the_start() {
    let name = "forgotten";
    let world = World::new(29, KeyBy::Account, 2);
    let deployment = || config(name, "a", 1);
    world.prepare(&deployment());
    world.send(&deployment(), 0, 20);
    let first = Member::start(deployment(), Options::default());
    let read: Vec<usize> = world.partitions.iter().map(|p| p.len() * 20 / 100).collect();
    await_positions(name, &deployment().topics.usage, &read);
    first.stop();
    Broker::shared().forget_group(name);
    let fatal = Member::start(deployment(), Options::default()).await_failure();
    assert!(matches!(fatal, Fatal::State(_)), "{fatal}");
    assert!(fatal.to_string().contains("delete the state topics"), "{fatal}");
}

#[test]
fn topics_are_made_as_they_are_verified() {
    let config = config("made", "x", 1);
    let made = topology::create(&config, Some(3)).expect("topics can be made");
    assert!(made.topics.iter().all(|topic| topic.created && topic.partitions == 3), "{made:?}");
    let found = topology::verify(&config).expect("they are as they should be");
    assert!(found.topics.iter().all(|topic| !topic.created), "{found:?}");
    assert_eq!((found.layout.usage, found.layout.tasks), (3, 3));
    // usage may grow; the internal topics stay as they were made
    Broker::shared().add_partitions(&config.topics.usage, 5);
    let found = topology::verify(&config).expect("usage may grow");
    assert_eq!((found.layout.usage, found.layout.tasks), (5, 3));
}

#[test]
fn every_wrong_topic_is_one_line_with_its_remedy() {
    let broker = Broker::shared();
    let config = config("wrong", "x", 1);
    let topics = &config.topics;
    let complaint = || topology::prepare(&config).expect_err("something is wrong").to_string();

    let text = complaint();
    assert!(text.contains("\"wrong.usage\" is missing"), "{text}");
    assert!(text.contains("flopwatch topics --create --partitions"), "{text}");
    let error = topology::create(&config, None).expect_err("how many partitions?").to_string();
    assert!(error.contains("--partitions 12"), "{error}");

    broker.create_topic(&topics.usage, 2, &[("max.message.bytes", "2000000")]);
    let text = complaint();
    assert!(text.contains("\"wrong.accounts\" is missing"), "{text}");

    broker.create_topic(&topics.accounts, 1, &[("retention.ms", "1000")]);
    let text = complaint();
    assert!(text.contains("set cleanup.policy=compact"), "{text}");
    broker.delete_topic(&topics.accounts);
    broker.create_topic(&topics.accounts, 1, &[("cleanup.policy", "compact")]);
    topology::prepare(&config).expect("a first start makes the rest");

    broker.delete_topic(&topics.dead_letters);
    broker.create_topic(&topics.dead_letters, 1, &[]);
    let text = complaint();
    assert!(text.contains("max.message.bytes to 2065536"), "{text}");
    broker.delete_topic(&topics.dead_letters);

    broker.delete_topic(&topics.group_usage);
    let text = complaint();
    assert!(text.contains("part of the state is lost"), "{text}");
    broker.create_topic(&topics.group_usage, 3, &[]);
    let text = complaint();
    assert!(text.contains("has 3 partitions") && text.contains("must agree"), "{text}");
    for line in text.lines() {
        assert!(line.contains("topic"), "{line}");
    }
}

#[test]
fn verbs_say_what_is_wrong_with_kafka_in_one_line_and_exit_1() {
    let broker = &Broker::shared().address;
    let (code, text) = verb("absent", broker, &["run"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.lines().count() == 2, "usage and accounts: {text}");
    assert!(text.starts_with("error: kafka: topic \"absent.usage\" is missing"), "{text}");
    let (code, text) = verb("absent", broker, &["topics", "--create"]);
    assert_eq!(code, 1, "{text}");
    let (code, text) = verb("absent", broker, &["topics", "--create", "--partitions", "2"]);
    assert_eq!((code, text.as_str()), (0, ""));
    let (code, text) = verb("absent", broker, &["topics"]);
    assert_eq!((code, text.as_str()), (0, ""));

    // nothing listens on port 1
    let began = Instant::now();
    for arguments in [["run"], ["topics"]] {
        let (code, text) = verb("absent", "127.0.0.1:1", &arguments);
        assert_eq!(code, 1, "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("no broker answers at kafka.bootstrap_servers"), "{text}");
    }
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
}
