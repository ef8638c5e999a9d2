//! Usage to lose or repeat: a simulated cloud, and what real meters do to its records.

use flopwatch::detector::time::Span;
use flopwatch::simulate::{KeyBy, Plan, Scenario};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use crate::schedule::Dice;
use crate::world::{START, Usage, World};

pub(crate) const PARTITIONS: u32 = 6;

/// Records of the scenarios alone over 60 h in intervals of five minutes, and those that each
/// background node adds, both with [`spoil`]'s additions.
const SCENARIOS: u64 = 570_000;
const NODE: u64 = 550;

/// About this many records over 60 h of a cloud, with duplicates, corrections and outages of the
/// simulated meters, and with [`spoil`]'s additions.
pub(crate) fn world(seed: u64, records: u64) -> World {
    let nodes = (records.saturating_sub(SCENARIOS) / NODE).max(10);
    // fewer records than the scenarios have at five minutes: they report less often
    let seconds = 300 * SCENARIOS.div_ceil(records.clamp(SCENARIOS / 12, SCENARIOS));
    let nodes = u32::try_from(nodes).expect("at most billions of records");
    let mut world = World::of(Plan {
        seed,
        start: START,
        span: Span::hours(60),
        interval: Span::seconds(seconds),
        partitions: PARTITIONS,
        key: KeyBy::Event,
        accounts: (nodes / 4).max(10),
        resources: nodes,
        scenarios: Scenario::ALL.to_vec(),
        constant: false,
        duplicates_per_million: 20_000,
        disorder: Span::seconds(100),
    });
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed ^ 0x5b01));
    for partition in &mut world.partitions {
        spoil(partition, &mut dice);
    }
    world
}

/// Puts garbage, invalid events and late repetitions (a fifth of all records again: duplicates
/// within the dedup horizon of two hours, and some beyond it) between the records.
fn spoil(partition: &mut Vec<Usage>, dice: &mut Dice) {
    let closing = partition.len() - 2;
    // about two and a half of the 60 hours
    let reach = partition.len() / 24;
    let mut spoilt = Vec::with_capacity(partition.len() * 122 / 100);
    for (number, record) in partition.iter().enumerate() {
        if number < closing {
            match dice.between(0, 499) {
                0 => spoilt.push((None, dice.between(0, u64::MAX - 1).to_be_bytes().to_vec())),
                1 => spoilt.push((Some(b"?".to_vec()), Vec::new())),
                2 => spoilt.push((None, br#"{"id":"","source":"s","account_id":"a"}"#.to_vec())),
                3..=102 if number > reach => {
                    let back = dice.below(reach) + 1;
                    spoilt.push(partition[number - back].clone());
                }
                _ => {}
            }
        }
        spoilt.push(record.clone());
    }
    *partition = spoilt;
}
