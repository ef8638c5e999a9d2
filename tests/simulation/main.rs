//! The whole topology in one thread over an in-memory log with Kafka's transactions, under
//! crashes, aborts, rebalances, zombies and compaction from a seed.
//!
//! Whatever happens, the alerts, dead letters and final sums equal those of an undisturbed replay.
//! `SIMULATION_SEED=n` runs one seed, `SIMULATION_SEEDS=n` that many.

mod cluster;
mod log;
mod world;

use std::collections::BTreeMap;

use flopwatch::detector::alert::Alert;
use flopwatch::detector::cloudevent;
use flopwatch::detector::outbox::DeadLetter;
use flopwatch::error::Fatal;
use flopwatch::replay::{LedgerRow, Sink, Source, replay};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use cluster::{Cluster, Fault};
use world::World;

/// What must not depend on faults.
#[derive(Debug, Default, PartialEq)]
struct Result {
    /// CloudEvent by id.
    alerts: BTreeMap<String, String>,
    /// Reasons by usage partition and offset.
    dead_letters: BTreeMap<(u32, u64), &'static str>,
    ledger: Vec<LedgerRow>,
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

fn undisturbed(world: &World) -> Result {
    let mut result = Result::default();
    let sources = world.usage.iter().map(|events| {
        let memory: Box<dyn Source> = Box::new(Memory { events: (0u64..).zip(events.iter()) });
        memory
    });
    let sources = sources.collect();
    let outcome = replay(&world.rules, &world.policies, &world.directory, sources, &mut result)
        .expect("simulated usage is readable");
    let tally = &outcome.tally;
    assert_eq!(tally.read, tally.counted + tally.duplicate + tally.dead_letter_total());
    result.ledger = outcome.ledger;
    result
}

fn disturbed(world: &World, random: &mut ChaCha8Rng, planted: Option<Fault>) -> Result {
    let mut cluster = Cluster::new(world, planted);
    cluster.run(random);
    cluster.finish()
}

fn world_of(seed: u64) -> (World, ChaCha8Rng) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (World::generate(&mut random), random)
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(120),
    }
}

#[test]
fn faults_change_nothing_that_is_published() {
    let mut alerts = 0;
    for seed in seeds() {
        let (world, mut random) = world_of(seed);
        let expected = undisturbed(&world);
        let found = disturbed(&world, &mut random, None);
        alerts += expected.alerts.len();
        assert!(expected == found, "seed {seed} differs: {}", difference(&expected, &found));
    }
    assert!(alerts > 0, "the worlds are too quiet to show anything");
}

#[test]
fn a_seed_runs_the_same_every_time() {
    let (world, mut random) = world_of(7);
    let (again, mut random_again) = world_of(7);
    assert_eq!(disturbed(&world, &mut random, None), disturbed(&again, &mut random_again, None));
}

#[test]
fn every_planted_fault_is_seen() {
    for fault in Fault::ALL {
        let seen = (0..40).any(|seed| {
            let (world, mut random) = world_of(seed);
            let expected = undisturbed(&world);
            let run = std::panic::AssertUnwindSafe(|| disturbed(&world, &mut random, Some(fault)));
            // a fault may also trip an assertion of the detector's
            std::panic::catch_unwind(run).map_or(true, |found| found != expected)
        });
        assert!(seen, "{fault:?} changed nothing in 40 seeds");
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
    text
}
