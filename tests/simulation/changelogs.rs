//! What the compacted changelogs hold: accounts and slices kept, whatever the number of events, and
//! nothing of what has left.

use flopwatch::detector::key_state::StateKey;
use flopwatch::detector::time::Timestamp;

use super::cluster::{Cluster, Outcome};
use super::log::{Entry, Topic};
use super::world::World;

/// Slices in a block of the changelog: the last of a block may keep the others on the log.
const BLOCK: u64 = 8;

fn compacted(mut outcome: Outcome) -> (World, [Vec<Entry>; 3]) {
    let topics = [Topic::MeterState, Topic::AccountState, Topic::GroupState];
    let left = topics.map(|topic| {
        let mut left = Vec::new();
        for partition in 0..outcome.world.partitions {
            outcome.log.compact((topic, partition), true);
            left.extend(outcome.log.all((topic, partition)));
        }
        left
    });
    (outcome.world, left)
}

fn undisturbed(world: World) -> (World, [Vec<Entry>; 3]) {
    compacted(Cluster::new(world, None).run_undisturbed())
}

/// The greatest time of any event.
fn last(world: &World) -> Timestamp {
    let events = world.usage().into_iter().flatten();
    let times = events.filter_map(|event| {
        let event = <flopwatch::proto::UsageEvent as prost::Message>::decode(&event[..]).ok()?;
        Some(event.time_unix_nano)
    });
    Timestamp(times.max().expect("some usage"))
}

#[test]
fn what_has_left_is_not_on_the_compacted_changelogs() {
    let mut blocks = 0;
    for seed in 0..12 {
        let (world, [meters, accounts, groups]) = compacted(super::disturbed(seed, None));
        let (rules, last) = (&world.rules, last(&world));
        // every block that ends before this has left its tier at the last judgement
        let oldest = |tier: u8| {
            let rules = &rules.tiers[usize::from(tier)];
            last.floor(rules.slice).minus(rules.keep).0 / (BLOCK * rules.slice.0)
        };
        for entry in accounts.iter().chain(&groups) {
            assert!(entry.value.is_some(), "seed {seed}: a tombstone is left");
            if let StateKey::Slices { block, key, .. } = StateKey::parse(&entry.key).expect("own") {
                assert!(block.number >= oldest(block.tier), "seed {seed}: {key}, {block:?}");
                blocks += 1;
            }
        }
        // a METER key of more than its partition begins with the bucket, five minutes long
        let bucket = |key: &[u8]| u64::from_be_bytes(key[4..12].try_into().expect("a bucket"));
        let horizon = rules.time.dedup_horizon.0 / 300_000_000_000;
        for meter in 0..world.partitions {
            let of_meter =
                |entry: &&Entry| entry.key.len() > 4 && entry.key[..4] == meter.to_be_bytes();
            let buckets: Vec<u64> =
                meters.iter().filter(of_meter).map(|entry| bucket(&entry.key)).collect();
            let newest = buckets.iter().max().copied().unwrap_or_default();
            let kept = buckets.iter().all(|bucket| bucket + horizon + 1 >= newest);
            assert!(kept, "seed {seed}: identities from before the horizon");
        }
    }
    assert!(blocks > 100, "{blocks} blocks show little");
}

/// Ten times the events over the same accounts, places and slices.
#[test]
fn state_grows_with_accounts_and_slices_not_with_events() {
    let mut random = <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(3);
    let world = World::generate(&mut random).foretold();
    let mut denser = world.clone();
    for events in denser.phases.iter_mut().flat_map(|phase| &mut phase.usage) {
        let repeated =
            events.iter().flat_map(|event| (0..10).map(move |number| again(event, number)));
        *events = repeated.collect();
    }
    let (_, [_, accounts, groups]) = undisturbed(world);
    let (_, [_, more_accounts, more_groups]) = undisturbed(denser);
    for (before, after) in [(accounts, more_accounts), (groups, more_groups)] {
        let keys = |entries: &[Entry]| -> Vec<Vec<u8>> {
            let mut keys: Vec<_> = entries.iter().map(|entry| entry.key.clone()).collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(&before), keys(&after));
        let bytes = |entries: &[Entry]| -> usize {
            entries.iter().filter_map(|entry| entry.value.as_ref()).map(Vec::len).sum()
        };
        // the sums themselves are ten times as large: half a byte more for each of the four
        let (before, after) = (bytes(&before), bytes(&after));
        assert!(after * 10 < before * 12, "{before} bytes, then {after}");
    }
}

/// The event under another id.
fn again(event: &[u8], number: u64) -> Vec<u8> {
    let decoded = <flopwatch::proto::UsageEvent as prost::Message>::decode(event);
    let Ok(mut decoded) = decoded else { return event.to_vec() };
    decoded.id = format!("{}-{number}", decoded.id);
    prost::Message::encode_to_vec(&decoded)
}
