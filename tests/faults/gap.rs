//! What an operator sees of records that retention removed unread, once the gap is accepted.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use flopwatch::config::Config;
use flopwatch::simulate::KeyBy;
use serde_json::Value;

use super::{PATIENCE, await_positions, deployment, share};
use crate::broker::Broker;
use crate::fleet::Fleet;
use crate::world::World;

/// How many records retention takes.
const GAP: usize = 7;

/// `evidence.gap_records` of every alert, by where it stands.
fn gaps(config: &Config) -> Vec<((String, i32, i64), u64)> {
    let topics = [&config.topics.alerts, &config.topics.shadow_alerts];
    let mut gaps = Vec::new();
    for topic in topics {
        for record in Broker::shared().read(topic, "read_committed") {
            let value = record.value.expect("alerts have values");
            let event: Value = serde_json::from_slice(&value).expect("JSON");
            let gap = event["data"]["evidence"]["gap_records"].as_u64().unwrap_or(0);
            gaps.push(((topic.clone(), record.partition, record.offset), gap));
        }
    }
    gaps
}

/// The sum of a series over its labels.
fn metric(fleet: &Fleet, series: &str) -> u64 {
    let line = fleet.line(0, "http listens").expect("it listens");
    let line: Value = serde_json::from_str(&line).expect("the log is JSON");
    let address = line["address"].as_str().expect("where it listens");
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("the request is sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the answer ends");
    let values = text.lines().filter(|line| line.starts_with(series));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok());
    values.map(|line| value(line).expect("a count")).sum()
}

#[test]
fn an_accepted_gap_stands_in_the_series_and_in_every_later_alert() {
    let name = "accepted-gap";
    let world = World::new(89, KeyBy::Event, 2);
    let (config, text) = deployment(name, &Broker::shared().address, "");
    let usage = &config.topics.usage;
    world.prepare(&config);
    let mut fleet = Fleet::new(&[text]);
    fleet.start(0);
    world.send(&config, 0, 40);
    let read = share(&world, 40);
    await_positions(&mut fleet, name, usage, &read);
    fleet.terminate(0);
    let before = gaps(&config);
    assert!(!before.is_empty() && before.iter().all(|(_, gap)| *gap == 0), "{before:?}");

    world.send(&config, 40, 60);
    let removed = i64::try_from(read[0] + GAP).expect("few records");
    Broker::shared().truncate(usage, 0, removed);
    fleet.start(0);
    let status = fleet.await_end(0, PATIENCE);
    let tail = fleet.tail(0);
    assert_eq!(status.code(), Some(1), "{tail}");
    let last = tail.lines().last().unwrap_or_default();
    for part in ["error: state: ", usage, "partition 0", "(7 records)", "--accept-gap"] {
        assert!(last.contains(part), "{part}: {tail}");
    }

    fleet.start_with(0, &["--accept-gap"]);
    world.send(&config, 60, 100);
    await_positions(&mut fleet, name, usage, &share(&world, 100));
    let deadline = Instant::now() + PATIENCE;
    let later = loop {
        let mut later = gaps(&config);
        later.retain(|alert| !before.contains(alert));
        if later.len() >= 20 {
            break later;
        }
        assert!(Instant::now() < deadline, "{} later alerts", later.len());
        fleet.tend();
    };
    assert_eq!(metric(&fleet, "flopwatch_gap_records_total"), GAP as u64, "{}", fleet.tail(0));
    fleet.terminate(0);
    let wrong: Vec<_> = later.iter().filter(|(_, gap)| *gap != GAP as u64).collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), later.len());
}
