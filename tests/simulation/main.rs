//! The whole topology in one thread over an in-memory log with Kafka's transactions, under
//! crashes, aborts, rebalances, zombies and compaction from a seed.
//!
//! Whatever happens, dead letters and final sums equal those of a replay with the directory's final
//! history, wherever in the run its records were read; and so do the alerts if they were read
//! beforehand. Read at given points between, the alerts are those of a run without faults.
//! `SIMULATION_SEED=n` runs one seed, `SIMULATION_SEEDS=n` that many.

mod changelogs;
mod cluster;
mod log;
mod process;
mod world;

use std::collections::BTreeMap;

use flopwatch::detector::alert::{Alert, Sum};
use flopwatch::detector::cloudevent;
use flopwatch::detector::directory::Facts;
use flopwatch::detector::outbox::{DeadLetter, Tally};
use flopwatch::detector::time::Timestamp;
use flopwatch::error::Fatal;
use flopwatch::replay::{LedgerRow, Sink, Source, replay};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use cluster::{Cluster, Fault, Outcome};
use world::{Reading, World};

/// What must not depend on faults.
#[derive(Debug, Default, PartialEq)]
struct Result {
    /// CloudEvent by id.
    alerts: BTreeMap<String, String>,
    /// Reasons by usage partition and offset.
    dead_letters: BTreeMap<(u32, u64), &'static str>,
    ledger: Vec<LedgerRow>,
    /// Accounts by scope and key of their group; a replay does not say.
    members: BTreeMap<(&'static str, String), u64>,
}

struct Memory<'a> {
    events: std::iter::Zip<std::ops::RangeFrom<u64>, std::slice::Iter<'a, Vec<u8>>>,
}

impl Source for Memory<'_> {
    fn next(&mut self) -> std::result::Result<Option<(u64, &[u8])>, Fatal> {
        Ok(self.events.next().map(|(offset, value)| (offset, value.as_slice())))
    }
}

impl Sink for Result {
    fn alert(&mut self, alert: &Alert) -> std::result::Result<(), Fatal> {
        let id = format!("{}/{}", alert.alert_id, alert.revision);
        let value = cloudevent::structured(alert).value;
        let text = String::from_utf8(value).expect("structured CloudEvents are text");
        assert!(self.alerts.insert(id, text).is_none(), "an alert was published twice");
        Ok(())
    }

    fn dead_letter(
        &mut self,
        source: usize,
        letter: &DeadLetter,
    ) -> std::result::Result<(), Fatal> {
        let partition = u32::try_from(source).expect("few sources");
        let known =
            self.dead_letters.insert((partition, letter.offset), letter.invalid.reason.name());
        assert!(known.is_none(), "a dead letter was written twice");
        Ok(())
    }
}

/// A replay with the directory known beforehand.
fn replayed(world: &World) -> (Result, Tally) {
    let mut result = Result::default();
    let usage = world.usage();
    let sources = usage.iter().map(|events| {
        let memory: Box<dyn Source> = Box::new(Memory { events: (0u64..).zip(events.iter()) });
        memory
    });
    let (sources, directory) = (sources.collect(), world.directory());
    let outcome = replay(&world.rules, &world.policies, &directory, sources, &mut result)
        .expect("simulated usage is readable");
    let tally = outcome.tally;
    assert_eq!(tally.read, tally.counted + tally.duplicate + tally.dead_letter_total());
    result.ledger = outcome.ledger;
    (result, tally)
}

/// What the groups must hold: the accounts' slices under the directory's last word.
fn grouped(world: &World, ledger: &[LedgerRow]) -> Vec<LedgerRow> {
    let mut last = BTreeMap::new();
    for record in world.directory() {
        last.insert(record.account_id, record.entry.map_or(Facts::Removed, Facts::Known));
    }
    let mut groups: BTreeMap<(&'static str, String, Timestamp), Sum> = BTreeMap::new();
    for row in ledger.iter().filter(|row| row.scope == "account") {
        let facts = last.get(&row.key).unwrap_or(&Facts::Missing);
        let country = facts.origin(&world.rules.origin).country;
        let owner = ("owner", facts.owner(&row.key).to_owned(), row.end);
        for key in [("country", country.as_str().to_owned(), row.end), owner] {
            let sum = groups.entry(key).or_default();
            sum.accelerator_ms += row.sum.accelerator_ms;
            sum.flop_gflop += row.sum.flop_gflop;
            sum.flop_allocated_gflop += row.sum.flop_allocated_gflop;
            sum.flop_theoretical_gflop += row.sum.flop_theoretical_gflop;
        }
    }
    let rows = groups.into_iter().filter(|(_, sum)| *sum != Sum::default());
    rows.map(|((scope, key, end), sum)| LedgerRow { scope, key, end, sum }).collect()
}

/// What must be so after faults, from what the world was in the end.
fn check(outcome: &Outcome) -> std::result::Result<usize, String> {
    let (world, found) = (&outcome.world, &outcome.result);
    let differs = |what: &str, expected: &Result, found: &Result| {
        Err(format!("{what} ({:?}): {}", world.reading, difference(expected, found)))
    };
    let (replayed, _) = replayed(world);
    let calm = Cluster::new(world.foretold(), None).run_undisturbed().result;
    let mut expected = Result { members: calm.members.clone(), ..replayed };
    if expected != calm {
        return differs("a run without faults is not a replay", &expected, &calm);
    }
    match world.reading {
        Reading::Beforehand => {}
        Reading::Staged => {
            expected.alerts = Cluster::new(world.clone(), None).run_undisturbed().result.alerts;
        }
        // alerts tell when the directory was read, which is nobody's promise
        Reading::AnyTime => expected.alerts.clone_from(&found.alerts),
    }
    if expected != *found {
        return differs("faults have left a trace", &expected, found);
    }
    let groups = found.ledger.iter().filter(|row| row.scope != "account").cloned();
    let groups = Result { ledger: groups.collect(), ..Result::default() };
    let ledger = grouped(world, &found.ledger);
    let by_directory = Result { ledger, ..Result::default() };
    if groups != by_directory {
        return differs("groups are not those of the directory", &by_directory, &groups);
    }
    Ok(found.alerts.len())
}

fn disturbed(seed: u64, planted: Option<Fault>) -> Outcome {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let world = World::generate(&mut random);
    Cluster::new(world, planted).run(&mut random)
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(200),
    }
}

/// Alerts by when the directory was read; the text names the seed that failed.
fn alerts_of(seed: u64) -> std::result::Result<[usize; 3], String> {
    let run = || {
        let outcome = disturbed(seed, None);
        check(&outcome).map(|count| (outcome.world.reading, count))
    };
    let told = |what: &str| format!("SIMULATION_SEED={seed}: {what}");
    // an assertion of the detector's says nothing of seeds
    let ran = std::panic::catch_unwind(run).map_err(|_| told("a panic, see above"))?;
    let (reading, count) = ran.map_err(|difference| told(&difference))?;
    let mut alerts = [0; 3];
    alerts[reading as usize] = count;
    Ok(alerts)
}

#[test]
fn faults_change_nothing_that_is_published() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = |thread: usize| {
        let mut total = [0; 3];
        for seed in seeds().skip(thread).step_by(threads) {
            let alerts = alerts_of(seed)?;
            total.iter_mut().zip(alerts).for_each(|(total, more)| *total += more);
        }
        Ok(total)
    };
    let shares: Vec<std::result::Result<[usize; 3], String>> = std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
        running.into_iter().map(|share| share.join().expect("panics are caught")).collect()
    });
    let mut total = [0; 3];
    for share in shares {
        let share = share.unwrap_or_else(|failure| panic!("{failure}"));
        total.iter_mut().zip(share).for_each(|(total, more)| *total += more);
    }
    let quiet = total.contains(&0);
    assert!(!quiet || seeds().count() < 30, "the worlds are too quiet: {total:?}");
}

#[test]
fn a_seed_runs_the_same_every_time() {
    for seed in 7..13 {
        assert_eq!(disturbed(seed, None).result, disturbed(seed, None).result, "seed {seed}");
    }
}

#[test]
fn every_planted_fault_is_seen() {
    for fault in Fault::ALL {
        let seen = (0..60).find(|seed| {
            // a fault may also trip an assertion of the detector's
            std::panic::catch_unwind(|| check(&disturbed(*seed, Some(fault))))
                .map_or(true, |checked| checked.is_err())
        });
        assert!(seen.is_some(), "{fault:?} changed nothing in 60 seeds");
    }
}

/// Three records in ten of one partition are no usage: each is refused by itself, and nobody has
/// more to do for it.
#[test]
fn garbage_on_one_partition_makes_no_more_work_for_the_others() {
    for seed in 0..10 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let clean = World::generate(&mut random).foretold();
        let mut spoilt = clean.clone();
        let mut garbage = 0;
        for phase in &mut spoilt.phases {
            let events = std::mem::take(&mut phase.usage[0]);
            for (number, event) in events.into_iter().enumerate() {
                phase.usage[0].push(event);
                if number % 7 < 3 {
                    phase.usage[0].push(vec![b'{'; 1 + number % 300]);
                    garbage += 1;
                }
            }
        }
        let (before, work_before) = replayed(&clean);
        let (after, mut work) = replayed(&spoilt);
        assert!(garbage > 0 && before.alerts == after.alerts && before.ledger == after.ledger);
        let refused = flopwatch::detector::invalid::Reason::Undecodable as usize;
        work.read -= garbage;
        work.dead_letters[refused] -= garbage;
        // sums, steps and judgements among the rest
        assert_eq!(work, work_before, "seed {seed}");
    }
}

fn difference(expected: &Result, found: &Result) -> String {
    let mut text = String::new();
    for (id, alert) in &expected.alerts {
        match found.alerts.get(id) {
            None => text += &format!("\nlost {alert}"),
            Some(other) if other != alert => text += &format!("\nwas {alert}\nis  {other}"),
            Some(_) => {}
        }
    }
    for (id, alert) in &found.alerts {
        if !expected.alerts.contains_key(id) {
            text += &format!("\nnew {alert}");
        }
    }
    for row in expected.ledger.iter().filter(|row| !found.ledger.contains(row)) {
        text += &format!("\nledger lacks {row:?}");
    }
    for row in found.ledger.iter().filter(|row| !expected.ledger.contains(row)) {
        text += &format!("\nledger has {row:?}");
    }
    if expected.dead_letters != found.dead_letters {
        text += "\ndead letters differ";
    }
    if expected.members != found.members {
        text += &format!("\nmembers were {:?}\nand are {:?}", expected.members, found.members);
    }
    text
}
