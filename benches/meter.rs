//! METER over a partition of `fleet` in memory, one core, no Kafka: events a second, with all that
//! it does for an event (decode, validate, dedup, measure, sum) and a seal for every half million.
//!
//! `cargo bench --bench meter`; `METER_EVENTS` (default 2,000,000 over 5 intervals of 100,000
//! accounts) makes it larger: the state of dedup grows with it.

#[path = "support/cpu.rs"]
mod cpu;
#[path = "support/records.rs"]
mod records;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use flopwatch::config::Config;
use flopwatch::detector::Stage;
use flopwatch::detector::dedup::{Dedup, Identity};
use flopwatch::detector::meter::Meter;
use flopwatch::detector::outbox::{Outbox, Tally};
use flopwatch::detector::time::{Span, Timestamp};

use cpu::Clock;
use records::{Records, Wire, fleet};

/// What a worker reads in a second of catching up, about.
const SEAL: u64 = 500_000;
const PARTITIONS: u32 = 4;

fn events() -> u64 {
    std::env::var("METER_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000_000)
}

fn meter_each_format(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("meter");
    group.sample_size(10);
    for wire in Wire::ALL {
        let records = fleet(wire, events(), 100_000, 5);
        over(&mut group, wire.name(), &records);
    }
    group.finish();
}

/// Ten times the accounts with ten times the nodes and events: the cost per event must not grow.
fn meter_by_accounts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("meter by accounts");
    group.sample_size(10);
    for (name, share) in [("10k accounts", 10), ("100k accounts", 1)] {
        let accounts = 100_000 / u32::try_from(share).expect("small");
        let records = fleet(Wire::Protobuf, events() / share, accounts, 5);
        over(&mut group, name, &records);
    }
    group.finish();
}

fn over(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, records: &Records) {
    let tally = pass(records).1;
    assert_eq!(tally.read, tally.counted + tally.duplicate, "nothing is refused: {tally:?}");
    assert!(tally.duplicate > 0, "the workload has duplicates");
    group.throughput(Throughput::Elements(records.len()));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|times| (0..times).map(|_| pass(records).0).sum());
    });
}

/// All records through a fresh METER; making and dropping it is not in the time.
fn pass(records: &Records) -> (Duration, Tally) {
    let config = Config::from_text("bench", "").expect("the defaults are valid");
    let mut meter = Meter::new(Arc::clone(&config.rules), 0, PARTITIONS, PARTITIONS);
    let mut outbox = Outbox::default();
    let began = Clock::start();
    let mut sealed = 0;
    records.groups(|group| {
        meter.process_all(group, &mut outbox).expect("valid records");
        let read = outbox.tally.read;
        if read >= sealed + SEAL {
            sealed = read;
            meter.seal(&mut outbox);
            black_box(&outbox.outputs);
            outbox.outputs.clear();
        }
    });
    meter.seal(&mut outbox);
    let took = began.elapsed();
    black_box(&outbox.outputs);
    (took, outbox.tally)
}

/// Identities alone: hashing, and asking for and adding each of `events` within the horizon.
fn dedup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dedup");
    group.sample_size(10);
    let count = events();
    let horizon = Span::hours(2);
    let start = Timestamp(1_767_571_200_000_000_000);
    let step = Span::seconds(25 * 60).0 / count;
    group.throughput(Throughput::Elements(count));
    group.bench_function("ask and add", |bencher| {
        bencher.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let mut dedup = Dedup::new(horizon);
                let mut id = String::with_capacity(24);
                let began = Clock::start();
                for number in 0..count {
                    id.clear();
                    std::fmt::Write::write_fmt(&mut id, format_args!("i-{number:017x}"))
                        .expect("memory");
                    let identity = Identity::new("meter", &id);
                    let time = start.plus(Span(number * step));
                    let bound = start.minus(horizon);
                    assert!(!dedup.was_counted(identity, time, bound), "ids are unique");
                    dedup.insert(identity, time);
                    if number % SEAL == SEAL - 1 {
                        dedup.log(time, |change| {
                            black_box(change);
                        });
                    }
                }
                took += began.elapsed();
            }
            took
        });
    });
    group.finish();
}

criterion_group!(benches, meter_each_format, meter_by_accounts, dedup);
criterion_main!(benches);
