//! What an account costs in memory: half of the accounts active around the clock for 90 days on one
//! region, fabric and accelerator, half sparse (an hour every ten days), through ACCOUNT and,
//! each account being its own owner, through GROUP.
//!
//! Accounts are restored; then an hour of usage of every steady one goes through both stages, so
//! that the blocks that are open in a running process are counted open.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use flopwatch::detector::Stage;
use flopwatch::detector::time::Span;
use serde_json::json;

use crate::Args;
use crate::lived::{Changes, START, Said, Stages, restore, template};
use crate::report;

const HOURS: u64 = 90 * 24;
/// A sparse account is active for an hour of so many.
const SPARSE: u64 = 240;
/// Accounts between two looks at the memory that is left, and in one pack of the living hour.
const PACK: u64 = 10_000;
const SPARE_MEGABYTES: u64 = 1500;

pub(crate) fn run(args: &Args, folder: &Path) {
    let header = report::header();
    report::print_header(&header);
    let half = args.accounts / 2;
    let steady = template("", HOURS, |_| true);
    let sparse = template("", HOURS, |hour| hour % SPARSE == SPARSE - 1);
    let mut stages = Stages::new("");
    let mut rows = BTreeMap::new();
    let mut measured = |name: &str, work: &mut dyn FnMut(&mut Stages)| {
        let (before, began) = (resident(), Instant::now());
        work(&mut stages);
        let bytes = resident().saturating_sub(before) / half.max(1);
        eprintln!("{name}: {bytes} bytes an account, in {:.1} s", began.elapsed().as_secs_f64());
        rows.insert(name.to_owned(), bytes);
        bytes
    };
    let (first, second) = (0..half, half..2 * half);
    let restored = [
        measured("sparse, ACCOUNT", &mut |it| {
            restore_within_memory(&mut it.account, &sparse[0], first.clone())
        }),
        measured("steady, ACCOUNT", &mut |it| {
            restore_within_memory(&mut it.account, &steady[0], second.clone())
        }),
        measured("sparse, GROUP", &mut |it| {
            restore_within_memory(&mut it.group, &sparse[1], first.clone())
        }),
        measured("steady, GROUP", &mut |it| {
            restore_within_memory(&mut it.group, &steady[1], second.clone())
        }),
    ];
    let open = measured("steady, what is open", &mut |stages| live(stages, second.clone()));
    let total = resident();
    println!("| bytes an account | sparse | steady |\n| --- | --- | --- |");
    println!("| ACCOUNT | {} | {} |", restored[0], restored[1]);
    println!("| GROUP, as its own owner | {} | {} |", restored[2], restored[3]);
    println!("| more in both after an hour of usage | - | {open} |");
    println!("| changelog of ACCOUNT | {} | {} |", size(&sparse[0]), size(&steady[0]));
    println!("| changelog of GROUP | {} | {} |", size(&sparse[1]), size(&steady[1]));
    println!("\n{} accounts, half of each kind: {:.2} GB resident", 2 * half, total as f64 / 1e9);
    let value = json!({ "header": header, "accounts": 2 * half, "resident": total, "rows": rows });
    report::save(folder, "memory.json", &value);
}

/// Restores accounts, and stops before the machine has to: it may serve others.
fn restore_within_memory(stage: &mut impl Stage, changes: &Changes, numbers: Range<u64>) {
    each_pack(numbers, |pack| {
        let text = std::fs::read_to_string("/proc/meminfo").expect("Linux");
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        let megabytes = kilobytes.expect("a number") / 1000;
        assert!(megabytes > SPARE_MEGABYTES, "{megabytes} MB are left: give fewer --accounts");
        restore(stage, changes, pack);
    });
}

fn each_pack(numbers: Range<u64>, mut work: impl FnMut(Range<u64>)) {
    let mut from = numbers.start;
    while from < numbers.end {
        let to = numbers.end.min(from + PACK);
        work(from..to);
        from = to;
    }
}

/// The hour after all that is restored, in packs whose outputs go at once.
fn live(stages: &mut Stages, numbers: Range<u64>) {
    let tag = START.plus(Span::hours(HOURS));
    let end = tag.plus(Span::hours(1));
    each_pack(numbers, |pack| stages.feed(tag, end, pack, &mut Said::default()));
    stages.advance(end, &mut Said::default());
}

fn size(changes: &Changes) -> usize {
    changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}
