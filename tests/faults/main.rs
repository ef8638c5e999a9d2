//! One fault at a time on a real Kafka, and what an operator sees of it.

#[path = "../support/broker.rs"]
mod broker;
#[path = "../support/fleet.rs"]
mod fleet;
mod full_disk;
mod gap;
mod protocols;
#[path = "../support/proxy.rs"]
mod proxy;
mod restart;
mod time;
mod undecided;
#[path = "../support/world.rs"]
mod world;

use std::time::{Duration, Instant};

use broker::Broker;
use fleet::Fleet;
use flopwatch::config::Config;
use flopwatch::kafka::topology;
use flopwatch::metrics::Stage;
use flopwatch::simulate::KeyBy;
use proxy::{Line, Proxy};
use world::{World, config_text};

/// A whole run on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(150);

/// Configuration of a deployment with one worker, and the same as text.
pub(crate) fn deployment(name: &str, address: &str, more: &str) -> (Config, String) {
    let text = config_text(name, "a", 1, address) + more;
    (Config::from_text(name, &text).expect("a valid configuration"), text)
}

/// Waits until the group has committed at least these positions.
pub(crate) fn await_positions(fleet: &mut Fleet, group: &str, topic: &str, wanted: &[usize]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        fleet.tend();
        let found = Broker::shared().positions(group, topic, wanted.len());
        let reached = found.iter().zip(wanted).all(|(found, &wanted)| {
            found.is_some_and(|found| usize::try_from(found).is_ok_and(|found| found >= wanted))
        });
        if reached {
            return;
        }
        assert!(Instant::now() < deadline, "positions {found:?}, not {wanted:?}");
    }
}

/// How many records of each partition lie in its first `percent`.
pub(crate) fn share(world: &World, percent: usize) -> Vec<usize> {
    world.partitions.iter().map(|records| records.len() * percent / 100).collect()
}

#[test]
fn a_broker_that_was_out_of_reach_is_used_again_by_the_same_process() {
    let name = "unreachable";
    let broker = Broker::shared();
    let proxy = Proxy::start(broker.proxied.1, broker.proxied.0);
    let world = World::new(41, KeyBy::Event, 2);
    let (config, _) = deployment(name, &broker.address, "");
    let (_, text) = deployment(name, &format!("127.0.0.1:{}", broker.proxied.1), "");
    let expected = world.replayed(&config);
    world.prepare(&config);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    world.send(&config, 0, 50);
    await_positions(&mut fleet, name, &config.topics.usage, &share(&world, 30));
    let process = fleet.pid(0);
    proxy.set(Line::Cut);
    world.send(&config, 50, 100);
    // beyond the session and the transaction timeout, when not told otherwise
    let length = std::env::var("UNREACHABLE_SECONDS")
        .map_or(60, |text| text.parse().expect("UNREACHABLE_SECONDS is a number"));
    fleet.hold(Duration::from_secs(length));
    proxy.set(Line::Sound);
    world.await_outcome(&config, &expected, PATIENCE);
    assert_eq!(fleet.pid(0), process, "no start was needed: {}", fleet.tail(0));
    fleet.terminate(0);
    assert_eq!(world.found(&config), expected);
}

/// The topics of a deployment that a process cannot do without.
fn topics_of(config: &Config) -> Vec<String> {
    let topics = &config.topics;
    let ours = [
        &topics.usage,
        &topics.accounts,
        &topics.account_usage,
        &topics.group_usage,
        &topics.alerts,
        &topics.shadow_alerts,
        &topics.dead_letters,
    ];
    let changelogs = Stage::ALL.map(|stage| topology::changelog(config, stage));
    ours.into_iter().cloned().chain(changelogs).collect()
}

/// Each in a deployment of its own, deleted while usage flows.
#[test]
fn every_topic_deleted_under_a_process_ends_it_with_a_line_that_names_it() {
    let broker = Broker::shared();
    let world = World::new(43, KeyBy::Event, 2);
    let more = "[kafka.client]\n\"topic.metadata.refresh.interval.ms\" = 1000\n";
    let deployments: Vec<_> = (0..10)
        .map(|number| deployment(&format!("deleted-{number}"), &broker.address, more))
        .collect();
    let texts: Vec<_> = deployments.iter().map(|(_, text)| text.clone()).collect();
    let mut fleet = Fleet::new(&texts);
    for (number, (config, _)) in deployments.iter().enumerate() {
        world.prepare(config);
        fleet.start(number);
        world.send(config, 0, 20);
        let (group, usage) = (&config.kafka.group_id, &config.topics.usage);
        await_positions(&mut fleet, group, usage, &share(&world, 10));
    }
    let topic = |number: usize| topics_of(&deployments[number].0)[number].clone();
    for (number, (config, _)) in deployments.iter().enumerate() {
        broker.delete_topic(&topic(number));
        if topic(number) != config.topics.usage {
            world.send(config, 20, 100);
        }
    }
    for number in 0..deployments.len() {
        let topic = &topic(number);
        let status = fleet.await_end(number, PATIENCE);
        let tail = fleet.tail(number);
        assert_eq!(status.code(), Some(1), "{topic}: {tail}");
        let last = tail.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: kafka: ") && last.contains(topic), "{topic}: {tail}");
        eprintln!("{last}");
    }
}

#[test]
fn records_removed_while_a_process_stands_still_stop_it() {
    let name = "overtaken";
    let broker = Broker::shared();
    let world = World::new(47, KeyBy::Event, 1);
    let (config, text) = deployment(name, &broker.address, "");
    world.prepare(&config);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    world.send(&config, 0, 20);
    let read = share(&world, 20);
    await_positions(&mut fleet, name, &config.topics.usage, &read);
    fleet.signal(0, "STOP");
    world.send(&config, 20, 40);
    let removed = i64::try_from(share(&world, 40)[0]).expect("few records");
    broker.truncate(&config.topics.usage, 0, removed);
    fleet.signal(0, "CONT");
    let status = fleet.await_end(0, PATIENCE);
    let tail = fleet.tail(0);
    assert_eq!(status.code(), Some(1), "{tail}");
    let last = tail.lines().last().unwrap_or_default();
    for part in ["error: state: ", "retention removed", "--accept-gap"] {
        assert!(last.contains(part), "{part}: {tail}");
    }
}
