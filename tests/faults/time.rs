//! Partitions that come late, grow in number, stand still or run ahead, and clocks that are wrong:
//! the outputs stay those of a replay.

use std::fs;
use std::time::{Duration, Instant};

use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::simulate::{KeyBy, Plan, Scenario};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::{PATIENCE, await_positions, deployment, share};
use crate::broker::Broker;
use crate::fleet::Fleet;
use crate::world::{START, Usage, World, event};

/// Looks for new partitions often.
const ATTENTIVE: &str = "[kafka.client]\n\"topic.metadata.refresh.interval.ms\" = 1000\n";

/// Splits partitions 0 and 1 of a world of four: every other of their records from `percent` on is
/// in one of two partitions more.
fn grown(percent: usize) -> World {
    let mut world = World::new(53, KeyBy::Event, 4);
    for number in 0..2 {
        let records = std::mem::take(&mut world.partitions[number]);
        let (from, until) = (records.len() * percent / 100, records.len() - 2);
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (index, record) in records.into_iter().enumerate() {
            if index >= until {
                old.push(record.clone());
                new.push(record);
            } else if index >= from && index % 2 == 1 {
                new.push(record);
            } else {
                old.push(record);
            }
        }
        world.partitions[number] = old;
        world.partitions.push(new);
    }
    world
}

#[test]
fn a_usage_topic_that_grows_while_it_is_read_gives_what_a_replay_of_all_partitions_gives() {
    let name = "grown";
    let broker = Broker::shared();
    // what is sent before it grows lies three hours below the new partitions' first records
    let world = grown(55);
    let (config, text) = deployment(name, &broker.address, ATTENTIVE);
    let expected = world.replayed(&config);
    world.prepare_with(&config, 4);
    let mut second = text.clone();
    second = second.replace("instance = \"a\"", "instance = \"b\"");
    let mut fleet = Fleet::new(&[text, second]);
    fleet.start(0);
    fleet.start(1);
    let usage = &config.topics.usage;
    // all four end at about the same time: one far ahead would wait for the others to go idle
    let whole = |number: usize| {
        let moved = world.partitions.get(number + 4).map_or(0, |new| new.len() - 2);
        world.partitions[number].len() + moved
    };
    let halves: Vec<usize> = (0..4).map(|number| whole(number) * 45 / 100).collect();
    send(&world, usage, &halves, 0);
    await_positions(&mut fleet, name, usage, &halves);
    broker.add_partitions(usage, 6);
    // the first records of the new partitions, then the rest once they are read
    send(&world, usage, &[0, 0, 0, 0, 1, 1], 0);
    await_positions(&mut fleet, name, usage, &[0, 0, 0, 0, 1, 1]);
    let all: Vec<usize> = world.partitions.iter().map(Vec::len).collect();
    let sent = [&halves[..], &[1, 1]].concat();
    for number in 0..6 {
        let mut until = vec![0; 6];
        until[number] = all[number];
        send(&world, usage, &until, sent[number]);
    }
    world.await_outcome(&config, &expected, PATIENCE);
    fleet.terminate(1);
    fleet.terminate(0);
    assert_eq!(world.found(&config), expected);
}

/// Sends each partition's records from `from` until its own limit.
fn send(world: &World, topic: &str, until: &[usize], from: usize) {
    let producer: BaseProducer = producer();
    for ((number, records), &until) in (0..).zip(&world.partitions).zip(until) {
        for (key, value) in records.iter().take(until).skip(from) {
            produce(&producer, topic, number, (key.as_deref(), value), None);
        }
    }
    producer.flush(PATIENCE).expect("records are written");
}

fn producer() -> BaseProducer {
    Broker::shared().client().set("enable.idempotence", "true").create().expect("a producer")
}

fn produce(
    producer: &BaseProducer,
    topic: &str,
    partition: i32,
    (key, value): (Option<&[u8]>, &[u8]),
    at: Option<Timestamp>,
) {
    let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition).payload(value);
    if let Some(key) = key {
        record = record.key(key);
    }
    if let Some(at) = at {
        record = record.timestamp(i64::try_from(at.0 / 1_000_000).expect("before 2262"));
    }
    producer.send(record).map_err(|(error, _)| error).expect("room for a record");
    producer.poll(Duration::ZERO);
}

#[test]
fn a_partition_that_starts_late_holds_nobody_back_before_and_loses_nothing_after() {
    let name = "late-start";
    let broker = Broker::shared();
    let mut world = World::new(59, KeyBy::Event, 3);
    // partition 2 begins when the others are beyond their middle
    let silent = world.partitions[2].len() * 60 / 100;
    world.partitions[2].drain(..silent);
    let (config, text) = deployment(name, &broker.address, "[time]\nidle_timeout = \"5s\"\n");
    let expected = world.replayed(&config);
    world.prepare(&config);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    let usage = &config.topics.usage;
    // the others come by and by: they must not be silent for as long as the third is
    let mut sent = 0;
    let middle = share(&world, 50);
    while sent < 50 {
        sent += 1;
        let limits = share(&world, sent);
        let from = share(&world, sent - 1);
        for number in 0..2 {
            let mut until = vec![0; 2];
            until[number] = limits[number];
            send(&world, usage, &until, from[number]);
        }
        if !fleet.has_logged(0, "partition is idle") && sent < 45 {
            fleet.hold(Duration::from_millis(200));
        }
    }
    await_positions(&mut fleet, name, usage, &middle[..2]);
    let idle = broker.read(&config.topics.alerts, "read_committed").len();
    assert!(fleet.has_logged(0, "partition is idle"), "{}", fleet.tail(0));
    assert!(idle > 0, "alerts came while a partition had nothing");
    let all: Vec<usize> = world.partitions.iter().map(Vec::len).collect();
    for number in [2, 1, 0] {
        let mut until = vec![0; 3];
        until[number] = all[number];
        send(&world, usage, &until, if number == 2 { 0 } else { middle[number] });
    }
    world.await_outcome(&config, &expected, PATIENCE);
    fleet.terminate(0);
    assert_eq!(world.found(&config), expected);
}

/// A partition's records and when they reach it.
type Stamped = Vec<(Usage, Timestamp)>;

/// An event a minute of every account for two days; those of one producer are stamped by a clock
/// that is an hour ahead or behind.
fn with_wrong_clocks() -> (Vec<Stamped>, Vec<(usize, u64)>) {
    let mut partitions = vec![Vec::new(), Vec::new()];
    let mut ahead = Vec::new();
    for minute in 0..2880 {
        let now = START.plus(Span::seconds(60 * (minute + 61)));
        for (number, partition) in partitions.iter_mut().enumerate() {
            let (account, shown) = match minute % 10 {
                3 => {
                    ahead.push((number, partition.len() as u64));
                    ("ahead", now.plus(Span::hours(1)))
                }
                7 => ("behind", now.minus(Span::hours(1))),
                _ => ("exact", now),
            };
            let id = format!("{account}-{minute}");
            let record = event(&id, account, shown.minus(Span::seconds(60)), shown);
            partition.push(((None, record), now));
        }
    }
    (partitions, ahead)
}

#[test]
fn a_clock_an_hour_ahead_ends_in_dead_letters_and_one_behind_counts_and_makes_nobody_late() {
    let name = "clocks";
    let (partitions, ahead) = with_wrong_clocks();
    let closing = START.plus(Span::days(5));
    let sound: Vec<Vec<Usage>> = (0..)
        .zip(&partitions)
        .map(|(number, records)| {
            let kept = (0..).zip(records).filter(|(offset, _)| !ahead.contains(&(number, *offset)));
            kept.map(|(_, (usage, _))| usage.clone()).collect()
        })
        .collect();
    let sound = World::listed(sound, closing);
    let more = "[[policy]]\nid = \"any\"\nversion = 1\ntitle = \"Any use\"\nseverity = \"info\"\n\
                scope = \"account\"\norigin = \"any\"\nwindow = \"1h\"\nrenotify = \"1h\"\n\
                [[policy.all]]\nmetric = \"accelerator_hours\"\nat_least = 0.5\n";
    let (config, text) = deployment(name, &Broker::shared().address, more);
    let expected = sound.replayed(&config);
    assert!(expected.size().0 > 40, "{:?}", expected.size());
    sound.prepare(&config);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    let (producer, usage) = (producer(), &config.topics.usage);
    for (number, (records, sound)) in (0..).zip(partitions.iter().zip(&sound.partitions)) {
        for ((key, value), at) in records {
            produce(&producer, usage, number, (key.as_deref(), value), Some(*at));
        }
        for (key, value) in &sound[sound.len() - 2..] {
            produce(&producer, usage, number, (key.as_deref(), value), None);
        }
    }
    producer.flush(PATIENCE).expect("records are written");
    let ends: Vec<usize> = partitions.iter().map(|records| records.len() + 2).collect();
    await_positions(&mut fleet, name, usage, &ends);
    let deadline = Instant::now() + PATIENCE;
    let mut found = sound.found(&config);
    while found.alerts != expected.alerts && Instant::now() < deadline {
        fleet.tend();
        found = sound.found(&config);
    }
    fleet.terminate(0);
    assert_eq!(found.alerts, expected.alerts);
    assert_eq!(found.sums, expected.sums);
    let refused: Vec<_> = found
        .dead_letters
        .iter()
        .filter(|letter| letter.reason == "time_in_future")
        .map(|letter| (letter.partition, letter.offset))
        .collect();
    let mut ahead = ahead;
    ahead.sort_unstable();
    assert_eq!(refused, ahead);
    assert_eq!(found.dead_letters.len(), ahead.len() + 2, "and one of each partition's last");
}

/// The most memory that a process has used, in MiB.
fn peak_mib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("on Linux");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib / 1024
}

#[test]
fn a_week_of_backlog_at_different_speeds_is_caught_up_in_bounded_memory() {
    let name = "backlog";
    let mut world = World::of(Plan {
        seed: 61,
        start: START,
        // with the closing records a day and a half later, within the finest tier's 8 d
        span: Span::days(6),
        interval: Span::seconds(1800),
        partitions: 4,
        key: KeyBy::Event,
        accounts: 40,
        resources: 100,
        scenarios: Scenario::ALL.to_vec(),
        constant: false,
        duplicates_per_million: 20_000,
        disorder: Span::seconds(100),
    });
    // an hour of event time is many records in one partition and few in another
    let last = world.partitions[3].len() - 2;
    let (mut dense, mut sparse) = (Vec::new(), Vec::new());
    for (index, record) in world.partitions[3].drain(..).enumerate() {
        let target = if index % 40 == 0 || index >= last { &mut sparse } else { &mut dense };
        target.push(record);
    }
    world.partitions[3] = sparse;
    let mut added = dense.into_iter();
    let before = std::mem::take(&mut world.partitions[0]);
    for (index, record) in before.into_iter().enumerate() {
        // in step: both partitions had about as many records
        if index % 40 != 0 {
            world.partitions[0].extend(added.next());
        }
        world.partitions[0].push(record);
    }
    let (config, text) = deployment(name, &Broker::shared().address, "");
    let expected = world.replayed(&config);
    world.prepare(&config);
    world.send(&config, 0, 100);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    world.await_outcome(&config, &expected, PATIENCE);
    let peak = peak_mib(fleet.pid(0));
    fleet.terminate(0);
    assert_eq!(world.found(&config), expected);
    // the queues of four partitions may hold 64 MiB, the rest is the program and its state
    assert!(peak < 256, "{peak} MiB");
    eprintln!("a week of backlog: {peak} MiB at most");
}
