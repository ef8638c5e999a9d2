//! The worked clouds of `deploy/SIZING.md`, computed from the figures at its top.

use std::collections::BTreeMap;

const PAGE: &str = include_str!("../../deploy/SIZING.md");

/// Accelerators for each account.
const ACCELERATORS_AN_ACCOUNT: f64 = 10.0;

pub(crate) fn print() {
    let figures = figures(PAGE);
    let of = |name: &str| {
        *figures.get(name).unwrap_or_else(|| panic!("deploy/SIZING.md has no figure {name}"))
    };
    println!(
        "| accelerators | metered every | events/s | cores, `fleet` | cores, `sparse` | identities, \
         2 h | 10 min | accounts | broker writes | `usage` kept 7 d |\n|{}",
        " --- |".repeat(10)
    );
    for (cloud, accelerators) in [("10 thousand", 1e4), ("1 million", 1e6), ("50 million", 5e7)] {
        for (interval, seconds) in [("5 min", 300.0), ("1 min", 60.0), ("1 s", 1.0)] {
            let events: f64 = accelerators / seconds;
            let identities = |horizon: f64| bytes(events * horizon * of("identity_bytes"));
            let accounts = accelerators / ACCELERATORS_AN_ACCOUNT;
            let account = f64::midpoint(of("account_bytes"), of("sparse_bytes"));
            let written = of("usage_bytes") + of("state_bytes") + of("sum_bytes");
            println!(
                "| {cloud} | {interval} | {} | {} | {} | {} | {} | {} | {}/s | {} |",
                count(events),
                cores(events * of("cpu_fleet")),
                cores(events * of("cpu_sparse")),
                identities(7200.0),
                identities(600.0),
                bytes(accounts * account),
                bytes(events * written),
                bytes(events * of("usage_bytes") * 7.0 * 86_400.0),
            );
        }
    }
}

/// Rows of a name in code and a number.
fn figures(page: &str) -> BTreeMap<&str, f64> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| {
        let (name, rest) = row.split_once("` | ")?;
        let value = rest.split(' ').next()?.parse().ok()?;
        Some((name, value))
    })
    .collect()
}

/// Cores for so many CPU seconds per million seconds, at two thirds of their capacity.
fn cores(millionths: f64) -> String {
    let cores = millionths / 1e6 * 1.5;
    if cores < 1.0 { "1".to_owned() } else { format!("{:.0}", cores.ceil()) }
}

fn count(value: f64) -> String {
    scaled(value, &[("", 1.0), (" k", 1e3), (" M", 1e6)])
}

fn bytes(value: f64) -> String {
    scaled(value, &[(" kB", 1e3), (" MB", 1e6), (" GB", 1e9), (" TB", 1e12), (" PB", 1e15)])
}

/// Two digits with the largest unit that leaves at least one before the point.
fn scaled(value: f64, units: &[(&str, f64)]) -> String {
    let fits = units.iter().rev().find(|(_, unit)| value >= *unit);
    let (name, unit) = fits.unwrap_or(&units[0]);
    let value = value / unit;
    if value < 10.0 { format!("{value:.1}{name}") } else { format!("{value:.0}{name}") }
}
