//! The classic group protocol beside KIP-848, with bare clients: who is refused, and how long
//! partitions take to move. `kafka/client.rs` draws the conclusion.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::PATIENCE;
use crate::broker::Broker;

const PARTITIONS: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Classic,
    Kip848,
}

fn options(protocol: Protocol) -> &'static [(&'static str, &'static str)] {
    match protocol {
        Protocol::Classic => &[
            ("group.protocol", "classic"),
            ("partition.assignment.strategy", "range"),
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "2000"),
        ],
        Protocol::Kip848 => &[("group.protocol", "consumer"), ("group.remote.assignor", "range")],
    }
}

/// A static member of a group of its protocol, subscribed.
fn member(protocol: Protocol, topic: &str, instance: &str) -> BaseConsumer {
    let mut config = Broker::shared().client();
    config
        .set("group.id", topic)
        .set("group.instance.id", instance)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest");
    for (name, value) in options(protocol) {
        config.set(*name, *value);
    }
    let member: BaseConsumer = config.create().expect("a consumer");
    member.subscribe(&[topic]).expect("a subscription");
    member
}

/// Polls all members until they own these numbers of partitions.
fn await_shares(members: &[&BaseConsumer], shares: &[usize]) -> Duration {
    let began = Instant::now();
    loop {
        for member in members {
            // errors of a group that moves
            drop(member.poll(Duration::from_millis(2)));
        }
        let owned: Vec<usize> = members
            .iter()
            .map(|member| member.assignment().map_or(0, |assignment| assignment.count()))
            .collect();
        if owned == shares {
            return began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "{owned:?}, not {shares:?}");
    }
}

/// Who joined later and moved partitions makes the earlier metadata stale: positions under it are
/// refused, whatever the protocol.
fn stale_positions_are_refused(protocol: Protocol, topic: &str) -> RDKafkaErrorCode {
    let producer: BaseProducer =
        Broker::shared().client().set("transactional.id", topic).create().expect("a producer");
    producer.init_transactions(PATIENCE).expect("transactions");
    let first = member(protocol, topic, "first");
    await_shares(&[&first], &[PARTITIONS]);
    let stale = first.group_metadata().expect("it has a group");
    let second = member(protocol, topic, "second");
    await_shares(&[&first, &second], &[PARTITIONS / 2, PARTITIONS / 2]);
    let mut positions = TopicPartitionList::new();
    positions.add_partition_offset(topic, 5, Offset::Offset(1)).expect("a partition");
    producer.begin_transaction().expect("a transaction");
    let refused = producer.send_offsets_to_transaction(&positions, &stale, PATIENCE);
    let code = refused.expect_err("stale metadata").rdkafka_error_code().expect("a code");
    producer.abort_transaction(PATIENCE).expect("an abort");
    let fresh = second.group_metadata().expect("it has a group");
    producer.begin_transaction().expect("a transaction");
    producer.send_offsets_to_transaction(&positions, &fresh, PATIENCE).expect("the owner may");
    producer.commit_transaction(PATIENCE).expect("a commit");
    code
}

/// How long a member's join, its return under its name, and its absence take.
fn moves(protocol: Protocol, topic: &str) -> [(&'static str, Duration); 3] {
    let first = member(protocol, topic, "first");
    await_shares(&[&first], &[PARTITIONS]);
    let half = PARTITIONS / 2;
    let second = member(protocol, topic, "second");
    let join = await_shares(&[&first, &second], &[half, half]);
    // a static member that closes says nothing to a classic group: as a crash
    drop(second);
    let second = member(protocol, topic, "second");
    let back = await_shares(&[&first, &second], &[half, half]);
    drop(second);
    let absence = await_shares(&[&first], &[PARTITIONS]);
    [("a second member joins", join), ("it returns by name", back), ("it stays away", absence)]
}

#[test]
fn both_group_protocols_refuse_positions_of_a_stale_member() {
    let broker = Broker::shared();
    let mut refusals = BTreeMap::new();
    for protocol in [Protocol::Classic, Protocol::Kip848] {
        let topic = format!("stale-{protocol:?}");
        broker.create_topic(&topic, i32::try_from(PARTITIONS).expect("few"), &[]);
        refusals.insert(protocol, stale_positions_are_refused(protocol, &topic));
    }
    eprintln!("refused with {refusals:?}");
    // what the shell takes for a lost assignment
    assert_eq!(refusals[&Protocol::Classic], RDKafkaErrorCode::IllegalGeneration);
}

/// The client may not say how soon its absence shows: that is the broker's, 45 s by default.
#[test]
fn kip_848_takes_the_session_from_the_client() {
    for (name, value) in options(Protocol::Classic).iter().skip(1) {
        let mut config = Broker::shared().client();
        config.set("group.id", "refused").set("group.protocol", "consumer").set(*name, *value);
        let refused = config.create::<BaseConsumer>();
        assert!(refused.is_err(), "{name} has an effect under KIP-848");
    }
}

/// Durations are reported, not asserted: they are this machine's.
#[test]
fn how_long_partitions_take_to_move() {
    let broker = Broker::shared();
    for protocol in [Protocol::Classic, Protocol::Kip848] {
        let topic = format!("moves-{protocol:?}");
        broker.create_topic(&topic, i32::try_from(PARTITIONS).expect("few"), &[]);
        for (what, took) in moves(protocol, &topic) {
            eprintln!("{protocol:?}: {what}: {took:.1?}");
        }
    }
}
