//! How long stages take to come back: state records as a changelog holds them, in memory, into a
//! fresh stage. Kafka's part (fetching the same bytes) is not in it.
//!
//! `cargo bench --bench restore [-- ACCOUNTS DAYS IDENTITIES]`: by default 100,000 accounts active
//! around the clock for 90 days on one region, fabric and accelerator, and 20 million identities.

#![expect(clippy::print_stdout, reason = "what a bench is for")]

mod state;

use std::time::Instant;

use flopwatch::detector::Stage;
use flopwatch::detector::dedup::{Dedup, Identity};
use flopwatch::detector::time::Span;
use state::{START, Templates, stage};

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let number = |index: usize, default| numbers.get(index).copied().unwrap_or(default);
    accounts(number(0, 100_000), number(1, 90));
    identities(number(2, 20_000_000));
}

fn accounts(count: u64, days: u64) {
    let template = Templates::new(days);
    let changes: Vec<_> = (0..count).flat_map(|number| template.account(number)).collect();
    let bytes: usize = changes.iter().map(|(key, value)| key.len() + value.len()).sum();
    let before = resident();
    let mut account = stage();
    let began = Instant::now();
    for (key, value) in &changes {
        account.restore(key, Some(value)).expect("own state");
    }
    let took = began.elapsed().as_secs_f64();
    let each = resident().saturating_sub(before) / count;
    println!(
        "accounts: {count} of {days} days, {} records, {:.0} MB, restored in {took:.2} s; \
         {} bytes of changelog and {each} of memory an account",
        changes.len(),
        to_f64(bytes as u64) / 1e6,
        bytes as u64 / count,
    );
}

/// Identities of two hours, as the changelog holds them after compaction.
fn identities(count: u64) {
    let horizon = Span::hours(2);
    let kept = state::identities(count, START.plus(horizon));
    let bytes: usize = kept.values().map(Vec::len).sum();
    let before = resident();
    let mut dedup = Dedup::new(horizon);
    let began = Instant::now();
    for ((bucket, block), value) in &kept {
        dedup.restore(*bucket, *block, Some(value)).expect("own state");
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
        to_f64(resident().saturating_sub(before)) / to_f64(count),
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
