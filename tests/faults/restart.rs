//! A broker that goes and comes back while a transaction of ours is open, and a process that stands
//! still for longer than its session.

use std::time::{Duration, Instant};

use flopwatch::config::Config;
use flopwatch::kafka::topology;
use flopwatch::metrics::Stage;
use flopwatch::simulate::KeyBy;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::{PATIENCE, deployment};
use crate::broker::Broker;
use crate::fleet::Fleet;
use crate::world::{Outcome, World};

/// A broker's start, timeouts of session and transaction, a restore, on a busy machine.
const RECOVERY: Duration = Duration::from_secs(300);

#[test]
fn a_broker_that_is_restarted_amid_a_transaction_loses_and_repeats_nothing() {
    restart_amid_a_transaction("restarted", false);
}

#[test]
fn a_broker_that_is_killed_amid_a_transaction_loses_and_repeats_nothing() {
    restart_amid_a_transaction("killed", true);
}

/// Ends the broker while a transaction is seen open, three times.
fn restart_amid_a_transaction(name: &str, killed: bool) {
    let data = tempfile::tempdir().expect("a directory");
    let mut broker = Broker::start(Some(data.path()));
    let world = World::new(79, KeyBy::Event, 2);
    let (config, text) = deployment(name, &broker.address, "");
    let expected = world.replayed(&config);
    world.prepare(&config);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    for round in 0..3 {
        stop_amid_a_transaction(&broker, &world, &config, &mut fleet, round * 30);
        broker.stop(killed);
        fleet.signal(0, "CONT");
        broker.resume();
    }
    world.send(&config, 90, 100);
    await_outcome_on(&broker, &world, &config, &expected, &mut fleet);
    // a static member whose answer died with the broker is told that its name is taken, and ends
    eprintln!("{name}: started again after {:?}", fleet.ended);
    fleet.terminate(0);
    assert!(world.found_on(&broker, &config) == expected);
}

/// Sends 30 hundredths from `from` on, and stops the process while a transaction of its is open.
fn stop_amid_a_transaction(
    broker: &Broker,
    world: &World,
    config: &Config,
    fleet: &mut Fleet,
    from: usize,
) {
    let changelog = topology::changelog(config, Stage::Meter);
    let ends = |isolation: &str| {
        let mut client = broker.client();
        let client: BaseConsumer =
            client.set("isolation.level", isolation).create().expect("a client");
        move |changelog: &str| {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(changelog, 0, 1);
            list.set_all_offsets(rdkafka::Offset::End).expect("an end can be asked for");
            let found = client.offsets_for_times(list, PATIENCE).expect("ends");
            found.elements().iter().map(|end| end.offset().to_raw()).collect::<Vec<_>>()
        }
    };
    let (stable, all) = (ends("read_committed"), ends("read_uncommitted"));
    // the order of the two matters: what is written in between must not look open
    let is_open = || {
        let all = all(&changelog);
        stable(&changelog).iter().zip(&all).any(|(stable, end)| stable < end)
    };
    for share in from..from + 30 {
        world.send(config, share, share + 1);
    }
    let deadline = Instant::now() + RECOVERY;
    loop {
        fleet.signal(0, "STOP");
        if is_open() {
            return;
        }
        fleet.signal(0, "CONT");
        assert!(Instant::now() < deadline, "no open transaction was met: {}", fleet.tail(0));
        fleet.tend();
    }
}

fn await_outcome_on(
    broker: &Broker,
    world: &World,
    config: &Config,
    expected: &Outcome,
    fleet: &mut Fleet,
) {
    let deadline = Instant::now() + RECOVERY;
    while &world.found_on(broker, config) != expected {
        assert!(
            Instant::now() < deadline,
            "{:#?} {}",
            [&config.topics.usage, &config.topics.account_usage, &config.topics.group_usage]
                .map(|topic| broker.stability(&config.kafka.group_id, topic)),
            fleet.tail(0)
        );
        fleet.tend();
    }
}

#[test]
fn a_process_that_stood_still_beyond_its_session_is_told_so_and_repeats_nothing() {
    let name = "zombie";
    let broker = Broker::shared();
    let world = World::new(83, KeyBy::Event, 4);
    let (config, text) = deployment(name, &broker.address, "");
    let expected = world.replayed(&config);
    world.prepare(&config);
    let second = text.replace("instance = \"a\"", "instance = \"b\"");
    let mut fleet = Fleet::new(&[text, second]);
    fleet.start(0);
    fleet.await_line(0, "\"tasks\":12", PATIENCE);
    fleet.start(1);
    fleet.await_line(1, "\"tasks\":6", PATIENCE);
    world.send(&config, 0, 40);
    // what it has read of this and not committed must not show
    world.send(&config, 40, 41);
    fleet.signal(0, "STOP");
    // the other has everything once the session is over
    fleet.await_line(1, "\"tasks\":12", PATIENCE);
    world.send(&config, 41, 70);
    fleet.signal(0, "CONT");
    // fenced or without its assignment; either way it joins again, or ends and is started again
    let told = ["\"message\":\"aborted\"", "\"lost\":true", "error: fenced: "];
    let deadline = Instant::now() + PATIENCE;
    while !told.iter().any(|text| fleet.has_logged(0, text)) {
        assert!(Instant::now() < deadline, "{}", fleet.tail(0));
        fleet.hold(Duration::from_millis(50));
    }
    world.send(&config, 70, 100);
    world.await_outcome(&config, &expected, PATIENCE);
    fleet.terminate(0);
    fleet.terminate(1);
    assert_eq!(world.found(&config), expected);
}
