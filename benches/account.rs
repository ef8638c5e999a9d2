//! ACCOUNT in memory, one core: sums a second that a step applies, accounts judged a second, alerts
//! encoded a second, accounts restored a second.
//!
//! `cargo bench --bench account`; what restores many accounts and identities cost in bytes is
//! `cargo bench --bench restore`.

#[path = "support/cpu.rs"]
mod cpu;
#[path = "support/lived.rs"]
mod lived;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flopwatch::detector::cloudevent;
use flopwatch::detector::time::{Span, Timestamp};

use cpu::Clock;
use lived::{START, Said, Stages, packed, restore, template};

/// Accounts of a bench that does not vary them.
const ACCOUNTS: u64 = 10_000;
/// State lived through before: more than the longest window.
const HOURS: u64 = 110 * 24;
const EPOCH: Span = Span::seconds(300);
const LATENESS: Span = Span::seconds(900);

/// An epoch step with one sum of every account, as in `sparse`; one in twelve closes a slice and
/// judges. Per sum, the cost at ten times the accounts must not grow.
fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("account step");
    group.sample_size(10);
    for accounts in [ACCOUNTS, 10 * ACCOUNTS] {
        group.throughput(Throughput::Elements(accounts));
        group.bench_function(BenchmarkId::from_parameter(accounts), |bencher| {
            bencher.iter_custom(|times| {
                let mut stages = Stages::new("");
                let mut tag = START;
                // twelve epochs an iteration: an hour, with its judgement
                let mut hour = |stages: &mut Stages| {
                    let mut took = Duration::ZERO;
                    for _ in 0..12 {
                        let slice_end = tag.slice_end(Span::hours(1));
                        let records = packed(tag, slice_end, 0..accounts);
                        let said = &mut Said::default();
                        let began = Clock::start();
                        for record in &records {
                            black_box(stages.read_account(record, said));
                        }
                        took += began.elapsed();
                        tag = tag.plus(EPOCH);
                    }
                    took / 12
                };
                hour(&mut stages);
                (0..times).map(|_| hour(&mut stages)).sum()
            });
        });
    }
    group.finish();
}

/// So many policies at account scope, of which none is ever met.
fn policies(count: u64, window: &str) -> String {
    let policy = |number: u64| {
        format!(
            "[[policy]]\nid = \"p{number}\"\nversion = 1\ntitle = \"bench\"\nseverity = \"info\"\n\
             scope = \"account\"\norigin = \"any\"\nwindow = \"{window}\"\n\
             [[policy.all]]\nmetric = \"flop\"\nat_least = 1e{}\n",
            30 + number % 10
        )
    };
    (0..count).map(policy).collect()
}

/// The step that judges a slice end, for accounts with months of state: at 5 and 50 policies, and
/// at 100 times the length of the window.
fn judgement(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("judgement");
    group.sample_size(10);
    group.throughput(Throughput::Elements(ACCOUNTS));
    let cases = [
        ("5 policies, 24 h", policies(5, "24h")),
        ("50 policies, 24 h", policies(50, "24h")),
        ("5 policies, 100 d", policies(5, "100d")),
        ("default policies", String::new()),
    ];
    for (name, configuration) in cases {
        let [changes, _] = template(&configuration, HOURS, |_| true);
        let mut stages = Stages::new(&configuration);
        restore(&mut stages.account, &changes, 0..ACCOUNTS);
        let mut tag = START.plus(Span::hours(HOURS));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| judge(&mut stages, &mut tag)).sum());
        });
    }
    group.finish();
}

/// An hour of every account; the time of the step alone that judges its end.
fn judge(stages: &mut Stages, tag: &mut Timestamp) -> Duration {
    let end = tag.plus(Span::hours(1));
    let said = &mut Said::default();
    for record in packed(*tag, end, 0..ACCOUNTS) {
        stages.read_account(&record, said);
    }
    *tag = end;
    let last = end.plus(LATENESS);
    watermark(stages, last.minus(EPOCH));
    watermark(stages, last)
}

fn watermark(stages: &mut Stages, watermark: Timestamp) -> Duration {
    let packer = flopwatch::detector::internal::UsagePacker::new(0, 1, 0);
    let records = packer.finish(Some(watermark), false);
    let said = &mut Said::default();
    let began = Clock::start();
    for record in &records {
        black_box(stages.read_account(record, said));
    }
    began.elapsed()
}

fn alert_encode(criterion: &mut Criterion) {
    let policy = "[[policy]]\nid = \"p\"\nversion = 1\ntitle = \"bench\"\nseverity = \"info\"\n\
                  scope = \"account\"\norigin = \"any\"\nwindow = \"72h\"\n\
                  [[policy.all]]\nmetric = \"flop\"\nat_least = 1.0\n";
    let mut stages = Stages::new(policy);
    let mut said = Said::default();
    for hour in 0..80 {
        let tag = START.plus(Span::hours(hour));
        stages.feed(tag, tag.plus(Span::hours(1)), 0..1, &mut said);
    }
    stages.advance(START.plus(Span::hours(81)), &mut said);
    let alert = said.alerts.pop().expect("an alert fired");
    let mut group = criterion.benchmark_group("alert encode");
    group.throughput(Throughput::Elements(1));
    group.bench_function("json", |bencher| {
        bencher.iter(|| cloudevent::structured(black_box(&alert)));
    });
    group.bench_function("protobuf", |bencher| {
        bencher.iter(|| cloudevent::binary(black_box(&alert)));
    });
    group.finish();
}

fn restore_accounts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("restore");
    group.sample_size(10);
    let [changes, _] = template("", 90 * 24, |_| true);
    group.throughput(Throughput::Elements(ACCOUNTS));
    group.bench_function("accounts of 90 days", |bencher| {
        bencher.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let mut stages = Stages::new("");
                let began = Clock::start();
                // renaming the template's records is in it
                restore(&mut stages.account, &changes, 0..ACCOUNTS);
                took += began.elapsed();
            }
            took
        });
    });
    group.finish();
}

criterion_group!(benches, step, judgement, alert_encode, restore_accounts);
criterion_main!(benches);
