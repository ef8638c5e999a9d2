//! Chaos on a real Kafka: processes, broker and network fail by a seeded schedule while usage
//! flows, and what a `read_committed` reader finds in the end is what a replay of the same
//! partitions makes of them, record by record.
//!
//! As everybody's test it is short, with the faults that matter most. `make chaos` runs it long
//! and with all of them; `CHAOS_SEED`, `CHAOS_EVENTS`, `CHAOS_SECONDS` and `CHAOS_FAULTS` (names of
//! [`schedule::Fault`] with commas between, or `all`) set its size. A seed gives the same usage and
//! the same order of faults; what they strike in is up to the machine. `plants.sh` shows that what
//! must not go unseen is seen.

mod books;
#[path = "../support/broker.rs"]
mod broker;
mod deployment;
#[path = "../support/feed.rs"]
mod feed;
#[path = "../support/fleet.rs"]
mod fleet;
#[path = "../support/proxy.rs"]
mod proxy;
mod schedule;
mod usage;
#[path = "../support/world.rs"]
mod world;

use std::time::Duration;

use deployment::Deployment;
use schedule::Schedule;

/// A setting of the run from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}={text}: a number"))
    })
}

#[test]
fn whatever_fails_the_outputs_equal_a_clean_replay() {
    let seed = setting("CHAOS_SEED", 1);
    let seconds = setting("CHAOS_SECONDS", 30);
    let events = setting("CHAOS_EVENTS", 120_000);
    let named = std::env::var("CHAOS_FAULTS").ok();
    let faults = named.as_deref().map_or(String::new(), |named| format!(" CHAOS_FAULTS={named}"));
    let again = format!("CHAOS_SEED={seed} CHAOS_SECONDS={seconds} CHAOS_EVENTS={events}{faults}");
    eprintln!("{again}");
    let length = Duration::from_secs(seconds);
    // two or three
    let processes = if seed.is_multiple_of(2) { 3 } else { 2 };
    let world = usage::world(seed, events);
    let mut deployment = Deployment::start("chaos", world, length, processes);
    let mut schedule = Schedule::new(seed, named.as_deref());
    let struck = deployment.rage(&mut schedule, length);
    let books = deployment.close();
    eprintln!("{}{}", books::survived(&struck), books.table());
    books.balance(&again);
}

#[test]
fn processes_come_and_go_one_to_four_and_back_and_nothing_is_lost_or_repeated() {
    let seed = setting("CHAOS_SEED", 1);
    let events = setting("CHAOS_EVENTS", 120_000);
    let length = Duration::from_secs(30);
    let mut deployment =
        Deployment::start("scaling", usage::world(seed ^ 0x5ca1, events), length, 1);
    let mut struck = Vec::new();
    for processes in [2, 3, 4, 3, 2, 1] {
        let one = deployment.scale_and_settle(processes);
        eprintln!("{processes} processes: {one:.1?}");
        struck.push(one);
        // usage flows through this many for a while
        deployment.fleet.hold(Duration::from_secs(1));
    }
    let books = deployment.close();
    eprintln!("{}{}", books::survived(&struck), books.table());
    books.balance(&format!("CHAOS_SEED={seed} CHAOS_EVENTS={events}"));
}
