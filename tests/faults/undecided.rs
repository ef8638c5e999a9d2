//! A transaction that nobody ends, as a broker leaves it behind that has lost the end: the worker
//! stops in front of it, says so, and goes on once it has been ended, or ends.

use std::time::Duration;

use flopwatch::config::Config;
use flopwatch::simulate::KeyBy;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::{PATIENCE, await_positions, deployment, share};
use crate::broker::Broker;
use crate::fleet::Fleet;
use crate::world::World;

/// Beyond the worker's own limit.
const LONG: Duration = Duration::from_secs(400);

const TOLD: &str = "a transaction does not end";

/// An open transaction of a name that no process has.
fn open(config: &Config) -> BaseProducer {
    let producer: BaseProducer = Broker::shared()
        .client()
        .set("transactional.id", format!("{}-nobody", config.kafka.group_id))
        .set("transaction.timeout.ms", "900000")
        .create()
        .expect("a producer");
    producer.init_transactions(PATIENCE).expect("transactions");
    producer.begin_transaction().expect("a transaction");
    producer
}

/// Moves the group's first usage position, if it is ever decided.
fn hold_position(producer: &BaseProducer, config: &Config) {
    let group = &config.kafka.group_id;
    let client: BaseConsumer =
        Broker::shared().client().set("group.id", group).create().expect("a client");
    let metadata = client.group_metadata().expect("a group");
    let mut positions = TopicPartitionList::new();
    let usage = &config.topics.usage;
    positions.add_partition_offset(usage, 0, Offset::Offset(0)).expect("a partition");
    producer.send_offsets_to_transaction(&positions, &metadata, PATIENCE).expect("positions");
}

#[test]
fn a_record_that_stays_undecided_stops_a_running_process_until_it_is_ended() {
    let name = "undecided-record";
    let world = World::new(71, KeyBy::Event, 2);
    let (config, text) = deployment(name, &Broker::shared().address, "");
    let expected = world.replayed(&config);
    world.prepare(&config);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    world.send(&config, 0, 50);
    await_positions(&mut fleet, name, &config.topics.usage, &share(&world, 40));
    let foreign = open(&config);
    // on a topic that no process of ours reads
    let record = BaseRecord::<[u8], [u8]>::to(&config.topics.alerts).partition(1).payload(b"never");
    foreign.send(record).map_err(|(error, _)| error).expect("a record is queued");
    foreign.flush(PATIENCE).expect("the record is written");
    let process = fleet.pid(0);
    fleet.await_line(0, TOLD, PATIENCE);
    assert!(fleet.has_logged(0, &config.topics.alerts), "it names the topic: {}", fleet.tail(0));
    foreign.abort_transaction(PATIENCE).expect("the abort");
    world.send(&config, 50, 100);
    world.await_outcome(&config, &expected, PATIENCE);
    assert_eq!(fleet.pid(0), process, "no start was needed: {}", fleet.tail(0));
    fleet.terminate(0);
    assert_eq!(world.found(&config), expected);
}

#[test]
fn positions_that_stay_undecided_end_the_process_with_a_line_and_nothing_is_lost() {
    let name = "undecided-positions";
    let world = World::new(73, KeyBy::Event, 2);
    let (config, text) = deployment(name, &Broker::shared().address, "");
    let expected = world.replayed(&config);
    world.prepare(&config);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    world.send(&config, 0, 50);
    await_positions(&mut fleet, name, &config.topics.usage, &share(&world, 40));
    fleet.terminate(0);
    let foreign = open(&config);
    hold_position(&foreign, &config);
    world.send(&config, 50, 100);
    fleet.start(0);
    let status = fleet.await_end(0, LONG);
    let tail = fleet.tail(0);
    assert_eq!(status.code(), Some(1), "{tail}");
    assert!(tail.contains(TOLD), "it says so while it waits: {tail}");
    let last = tail.lines().last().unwrap_or_default();
    for part in ["error: kafka: ", "the group's positions", "Transactions that never end"] {
        assert!(last.contains(part), "{part}: {tail}");
    }
    foreign.abort_transaction(PATIENCE).expect("the abort");
    fleet.start(0);
    world.await_outcome(&config, &expected, PATIENCE);
    fleet.terminate(0);
    assert_eq!(world.found(&config), expected);
}
