//! Bytes to events, one core, for each input format: events a second, detection included.
//!
//! `cargo bench --bench decode`

#[path = "support/cpu.rs"]
mod cpu;
#[path = "support/records.rs"]
mod records;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flopwatch::detector::decode::{InputRules, decode};

use cpu::Clock;
use records::{Wire, fleet};

fn decode_each_format(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let rules = InputRules::default();
    for wire in Wire::ALL {
        let records = fleet(wire, 100_000, 10_000, 1);
        records.groups(|group| {
            for record in group {
                decode(&rules, record).expect("a bench over refused records measures nothing");
            }
        });
        group.throughput(Throughput::Elements(records.len()));
        group.bench_function(wire.name(), |bencher| {
            bencher.iter_custom(|times| {
                let clock = Clock::start();
                for _ in 0..times {
                    records.groups(|group| {
                        for record in group {
                            black_box(decode(&rules, black_box(record))).expect("decoded before");
                        }
                    });
                }
                clock.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode_each_format);
criterion_main!(benches);
