//! How long stages take to come back: state records as a changelog holds them, in memory, into a
//! fresh stage. Kafka's part (fetching the same bytes) is not in it.
//!
//! `cargo bench --bench restore [-- ACCOUNTS DAYS IDENTITIES]`: by default 100,000 accounts active
//! around the clock for 90 days on one region, fabric and accelerator, and 20 million identities.

#![expect(clippy::print_stdout, reason = "what a bench is for")]

use std::time::Instant;

use flopwatch::config::Config;
use flopwatch::detector::Stage;
use flopwatch::detector::account::Account;
use flopwatch::detector::dedup::{Dedup, Identity};
use flopwatch::detector::event::Record;
use flopwatch::detector::internal::{AccountSum, UsagePacker};
use flopwatch::detector::measure::Measure;
use flopwatch::detector::names::Names;
use flopwatch::detector::outbox::{Outbox, Output};
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::detector::window::Place;

const START: Timestamp = Timestamp(1_767_225_600_000_000_000);

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let number = |index: usize, default| numbers.get(index).copied().unwrap_or(default);
    accounts(number(0, 100_000), number(1, 90));
    identities(number(2, 20_000_000));
}

type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// One account's state is made by the stage itself; the others are copies under other names.
fn accounts(count: u64, days: u64) {
    let template = account_changes(days);
    let named = |number: u64| format!("acct-{number:09}");
    let mut changes: Changes = Vec::new();
    for number in 0..count {
        for (key, value) in &template {
            let name = named(0);
            let Some(at) =
                key.len().checked_sub(name.len()).filter(|at| key[*at..] == *name.as_bytes())
            else {
                continue;
            };
            changes.push(([&key[..at], named(number).as_bytes()].concat(), value.clone()));
        }
    }
    let bytes: usize =
        changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
    let before = resident();
    let mut account = stage();
    let began = Instant::now();
    for (key, value) in &changes {
        account.restore(key, value.as_deref()).expect("own state");
    }
    let took = began.elapsed().as_secs_f64();
    let each = (resident() - before) / count;
    println!(
        "accounts: {count} of {days} days, {} records, {:.0} MB, restored in {took:.2} s; \
         {} bytes of changelog and {each} of memory an account",
        changes.len(),
        to_f64(bytes as u64) / 1e6,
        bytes as u64 / count,
    );
}

fn stage() -> Account {
    let config = Config::from_text("bench", "").expect("the defaults are valid");
    Account::new(config.rules, config.policies, 0, 1)
}

/// The changelog of an account that used 64 H100s all the time, compacted.
fn account_changes(days: u64) -> Changes {
    let mut account = stage();
    let mut names = Names::default();
    let id = names.intern("acct-000000000");
    let place = Place {
        region: names.intern("eu-west-1"),
        fabric: names.intern("pod-17"),
        accelerator: names.intern("nvidia-h100-sxm"),
    };
    let measure = Measure {
        accelerator_ms: 64 * 3_600_123,
        flop: 75_226_060_871,
        flop_allocated: 227_957_760_123,
        flop_theoretical: 455_938_560_321,
    };
    let mut kept = std::collections::BTreeMap::new();
    for hour in 0..days * 24 {
        let tag = START.plus(Span::hours(hour));
        let slice_end = tag.plus(Span::hours(1));
        let mut packer = UsagePacker::new(0, 1, 0);
        packer.add(&names, &AccountSum { account: id, tag, slice_end, place, measure });
        let value = packer.finish(Some(slice_end), false).pop().expect("one record");
        let record =
            Record { offset: hour, timestamp: None, key: None, value: Some(&value), headers: &[] };
        let mut outbox = Outbox::default();
        account.process(&record, &mut outbox).expect("own record");
        account.seal(&mut outbox);
        for output in outbox.outputs {
            if let Output::Change { key, value } = output {
                kept.insert(key, value);
            }
        }
    }
    kept.into_iter().filter(|(_, value)| value.is_some()).collect()
}

/// Identities of two hours, as the changelog holds them after compaction.
fn identities(count: u64) {
    let horizon = Span::hours(2);
    let mut live = Dedup::new(horizon);
    let mut kept = std::collections::BTreeMap::new();
    let step = horizon.0 / count;
    for number in 0..count {
        let time = START.plus(Span(number * step));
        live.insert(Identity::new("meter", number.to_string()), time);
        if number % 20_000 == 0 {
            live.log(time, |change| {
                kept.insert((change.bucket, change.block), change.value);
            });
        }
    }
    drop(live);
    kept.retain(|_, value| value.is_some());
    let bytes: usize = kept.values().flatten().map(Vec::len).sum();
    let before = resident();
    let mut dedup = Dedup::new(horizon);
    let began = Instant::now();
    for ((bucket, block), value) in &kept {
        dedup.restore(*bucket, *block, value.as_deref()).expect("own state");
    }
    let last = START.plus(horizon);
    let found = dedup.was_counted(Identity::new("meter", "7"), last, START);
    let took = began.elapsed().as_secs_f64();
    assert!(found, "a restored identity is found");
    println!(
        "identities: {} in {} records, restored in {took:.2} s ({:.1} million a second); {:.1} \
         bytes of changelog and {:.1} of memory each",
        dedup.len(),
        kept.len(),
        to_f64(count) / took / 1e6,
        to_f64(bytes as u64) / to_f64(count),
        to_f64(resident() - before) / to_f64(count),
    );
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}
