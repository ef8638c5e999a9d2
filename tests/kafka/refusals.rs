//! What ends a process or keeps it from starting: state, topics and input that are not as they
//! should be, each with its line.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use flopwatch::error::Fatal;
use flopwatch::kafka::{Options, topology};
use flopwatch::metrics::Stage;
use flopwatch::simulate::KeyBy;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::broker::Broker;
use super::world::{World, config};
use super::{Member, PATIENCE, Process, await_positions, await_progress, await_share, config_file};

/// Runs a verb to its end: exit code and standard error.
pub(super) fn verb(name: &str, address: &str, arguments: &[&str]) -> (i32, String) {
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
    let mut pipe = child.stderr.take().expect("a pipe");
    let (sender, text) = channel();
    // the pipe ends with the program; one that hangs must not take the test along
    thread::spawn(move || {
        let mut text = String::new();
        let read = pipe.read_to_string(&mut text);
        sender.send(read.map(|_| text)).unwrap_or_default();
    });
    let Ok(text) = text.recv_timeout(PATIENCE) else {
        child.kill().unwrap_or_default();
        panic!("{arguments:?} does not end");
    };
    let code = child.wait().expect("the program ends").code().expect("an exit code");
    (code, text.expect("text"))
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
    let again = Member::start(deployment(), Options::default());
    again.await_ready();
    again.stop();
}

/// After a quiet week nothing is left of the internal topics but the number of their next record.
#[test]
fn a_restart_after_retention_emptied_what_was_read_finds_no_gap() {
    let name = "emptied";
    let world = World::new(61, KeyBy::Account, 3);
    let deployment = config(name, "a", 1);
    let expected = world.replayed(&deployment);
    world.prepare(&deployment);
    world.send(&deployment, 0, 100);
    let first = Member::start(config(name, "a", 1), Options::default());
    world.await_outcome(&deployment, &expected, PATIENCE);
    // the closing account's last sum is never applied: its partition is held there
    let topics = &deployment.topics;
    for (topic, held) in [(&topics.account_usage, 1), (&topics.group_usage, 0)] {
        for (partition, end) in await_read(name, topic, 3, 3 - held) {
            Broker::shared().truncate(topic, partition, end);
        }
    }
    first.stop();
    let second = Member::start(config(name, "a", 1), Options::default());
    second.await_ready();
    second.stop();
    // what METER has sent on is no longer there to be added up
    let found = world.found(&deployment);
    assert_eq!((found.alerts, found.ledger), (expected.alerts, expected.ledger));
}

/// Waits until the group's position is the end in so many partitions, and says which and where.
fn await_read(group: &str, topic: &str, partitions: usize, wanted: usize) -> Vec<(i32, i64)> {
    let deadline = Instant::now() + PATIENCE;
    let client: BaseConsumer = Broker::shared().client().create().expect("a client");
    loop {
        let found = Broker::shared().positions(group, topic, partitions);
        let at_end = |(partition, position): (i32, Option<i64>)| {
            let ends = client.fetch_watermarks(topic, partition, PATIENCE).expect("its ends");
            position.filter(|&position| position == ends.1).map(|position| (partition, position))
        };
        let read: Vec<_> = (0..).zip(found.iter().copied()).filter_map(at_end).collect();
        if read.len() >= wanted {
            return read;
        }
        assert!(Instant::now() < deadline, "positions {found:?} of {topic}, at the end {read:?}");
    }
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
fn a_state_topic_that_was_made_again_stops_the_start() {
    for stage in Stage::ALL {
        let name = format!("remade-{}", stage.name());
        let world = World::new(67, KeyBy::Account, 2);
        let deployment = config(&name, "a", 1);
        world.prepare(&deployment);
        world.send(&deployment, 0, 20);
        let first = Member::start(config(&name, "a", 1), Options::default());
        // its own position stands: that of a METER says nothing of a GROUP
        await_progress(&name, topology::input(&deployment, stage), 0, 0);
        first.stop();
        let changelog = topology::changelog(&deployment, stage);
        Broker::shared().delete_topic(&changelog);
        Broker::shared().create_topic(&changelog, 2, &[("cleanup.policy", "compact")]);
        let fatal = Member::start(config(&name, "a", 1), Options::default()).await_failure();
        assert!(matches!(fatal, Fatal::State(_)), "{fatal}");
        let text = fatal.to_string();
        for part in [changelog.as_str(), "partition 0", "no state", "a new kafka.group_id"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

/// Many records are in the worker's hands when it gives up.
#[test]
fn too_many_invalid_records_end_the_process_with_its_line_and_code() {
    let name = "nonsense";
    let mut world = World::new(53, KeyBy::Account, 2);
    world.partitions[1] = vec![(None, b"nonsense".to_vec()); 3000];
    world.prepare(&config(name, "a", 1));
    world.send(&config(name, "a", 1), 0, 100);
    let more = "[dead_letter]\nmax_consecutive = 10\n";
    let (code, last) = Process::run_with(name, "a", 1, more).failed();
    assert_eq!(code, Some(1), "{last}");
    let start = "error: input: topic \"nonsense.usage\", partition 1: 10 invalid records in a row";
    assert!(last.starts_with(start), "{last}");
}

/// Small on the broker, and more than a client takes once it is unpacked.
#[test]
fn a_batch_that_cannot_be_unpacked_ends_the_process_with_its_line_and_code() {
    let name = "bomb";
    let config = config(name, "a", 1);
    topology::create(&config, Some(1)).expect("topics can be made");
    let producer: BaseProducer = Broker::shared()
        .client()
        .set("compression.type", "zstd")
        .set("message.max.bytes", "200000000")
        .create()
        .expect("a producer");
    for value in [b"nonsense".to_vec(), vec![b'{'; 120_000_000]] {
        let record = BaseRecord::<[u8], [u8]>::to(&config.topics.usage).partition(0);
        let sent = producer.send(record.payload(&value));
        sent.map_err(|(error, _)| error).expect("a record is queued");
        producer.flush(PATIENCE).expect("the record is written");
    }
    assert_eq!(Broker::shared().end(&config.topics.usage), 2, "the broker takes it");
    let (code, last) = Process::run_with(name, "a", 1, "").failed();
    assert_eq!(code, Some(1), "{last}");
    let start = "error: input: topic \"bomb.usage\", partition 0: a batch of records at or after";
    assert!(last.starts_with(start), "{last}");
    assert!(last.contains("receive.message.max.bytes"), "{last}");
}

/// Its repetitions lie further apart than lz4 looks back, which is what dead letters are packed with.
#[test]
fn a_record_that_only_its_producer_packs_well_is_kept_whole_as_a_dead_letter() {
    let name = "well-packed";
    let config = config(name, "a", 1);
    topology::create(&config, Some(1)).expect("topics can be made");
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(400_000)
    .collect();
    let value = noise.repeat(20);
    let producer: BaseProducer = Broker::shared()
        .client()
        .set("compression.type", "zstd")
        .set("message.max.bytes", "20000000")
        .create()
        .expect("a producer");
    let record = BaseRecord::<[u8], [u8]>::to(&config.topics.usage).partition(0);
    producer.send(record.payload(&value)).map_err(|(error, _)| error).expect("it is queued");
    producer.flush(PATIENCE).expect("the record is written");
    let (usage, dead_letters) = (config.topics.usage.clone(), config.topics.dead_letters.clone());
    let member = Member::start(config, Options::default());
    await_positions(name, &usage, &[1]);
    member.stop();
    let letters = Broker::shared().read(&dead_letters, "read_committed");
    assert_eq!(letters.len(), 1);
    assert!(letters[0].value.as_deref() == Some(&*value), "not what was refused");
}

/// Many records are in the restore's hands when it gives up.
#[test]
fn state_built_under_other_rules_ends_the_process_with_its_line_and_code() {
    let name = "other-rules";
    let world = World::new(59, KeyBy::Account, 2);
    let deployment = config(name, "a", 1);
    world.prepare(&deployment);
    let first = Member::start(config(name, "a", 1), Options::default());
    for share in [20, 40, 60] {
        world.send(&deployment, share - 20, share);
        await_share(&world, &deployment, share);
    }
    first.stop();
    let (code, last) = Process::run_with(name, "a", 1, "[time]\nepoch = \"15m\"\n").failed();
    assert_eq!(code, Some(1), "{last}");
    assert!(last.starts_with("error: state: ") && last.contains("another time.epoch"), "{last}");
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
    let (code, checked) = verb("absent", broker, &["check"]);
    assert_eq!((code, checked), (1, text), "check finds what run would");
    let (code, text) = verb("absent", broker, &["topics", "--verify"]);
    assert_eq!(code, 1, "{text}");
    let (code, text) = verb("absent", broker, &["topics"]);
    assert_eq!(code, 1, "of how many partitions? {text}");
    let (code, text) = verb("absent", broker, &["topics", "--create", "--partitions", "2"]);
    assert_eq!((code, text.as_str()), (0, ""));
    let (code, text) = verb("absent", broker, &["topics", "--verify"]);
    assert_eq!((code, text.as_str()), (0, ""));
    let (code, text) = verb("absent", broker, &["check"]);
    assert_eq!((code, text.as_str()), (0, ""), "topics are as they should be");

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

#[test]
fn check_finds_a_topic_with_the_wrong_cleanup_and_says_what_would_be_right() {
    let broker = Broker::shared();
    let config = config("checked", "x", 1);
    topology::create(&config, Some(1)).expect("topics can be made");
    broker.delete_topic(&config.topics.accounts);
    broker.create_topic(&config.topics.accounts, 1, &[("retention.ms", "1000")]);
    let (code, text) = verb("checked", &broker.address, &["check"]);
    let expected = "error: kafka: topic \"checked.accounts\" has cleanup.policy=delete and \
                    retention.ms=1000: accounts would be forgotten by age and count as unknown; \
                    set cleanup.policy=compact\n";
    assert_eq!((code, text.as_str()), (1, expected));
}
