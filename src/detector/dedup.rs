//! Identities counted within the dedup horizon.
//!
//! An identity is 80 bits of the hash of source and id. What is asked is exact: was it counted
//! with a `time` at or after a bound? So every identity keeps the greatest time it was counted
//! with. On the changelog identities stand in blocks per time bucket: one block for what a commit
//! added to a bucket, removed by tombstone when the bucket leaves the horizon.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::FixedState;
use xxhash_rust::xxh3::Xxh3;

use super::StageError;
use super::changelog::damaged;
use super::time::{Span, Timestamp};

/// Times within a bucket fit the 48 bits that an entry has for them.
const BUCKET: Span = Span::seconds(300);
const OFFSET_BITS: u32 = 48;
/// More blocks than a bucket can have: thousands of commits a second for as long as it fills.
const BLOCK_LIMIT: u32 = 1 << 20;

/// 80 bits of a hash, in the low bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(u128);

impl Identity {
    pub fn new(source: &str, id: &str) -> Self {
        let mut hasher = Xxh3::new();
        // the length keeps ("ab", "c") and ("a", "bc") apart
        hasher.update(&(source.len() as u64).to_le_bytes());
        hasher.update(source.as_bytes());
        hasher.update(id.as_bytes());
        Self(hasher.digest128() >> OFFSET_BITS)
    }
}

/// The identities of one input partition.
#[derive(Debug)]
pub struct Dedup {
    /// Identity -> the greatest time it was counted with, in nanoseconds.
    latest: HashMap<Identity, Timestamp, FixedState>,
    buckets: BTreeMap<u64, Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    /// identity << 48 | nanoseconds since the bucket's start
    entries: Vec<u128>,
    /// How many of the entries stand on the changelog, in how many blocks.
    logged: usize,
    blocks: u32,
}

/// One block to write or, without a value, to remove.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockChange {
    pub bucket: u64,
    pub block: u32,
    pub value: Option<Vec<u8>>,
}

impl Default for Dedup {
    fn default() -> Self {
        Self { latest: HashMap::with_hasher(FixedState::default()), buckets: BTreeMap::new() }
    }
}

impl Dedup {
    /// Whether the identity was counted with a time at or after `bound`.
    pub fn was_counted(&self, identity: Identity, bound: Timestamp) -> bool {
        self.latest.get(&identity).is_some_and(|&time| time >= bound)
    }

    pub fn insert(&mut self, identity: Identity, time: Timestamp) {
        let bucket = time.0 / BUCKET.0;
        let offset = u128::from(time.0 % BUCKET.0);
        let entry = (identity.0 << OFFSET_BITS) | offset;
        self.buckets.entry(bucket).or_default().entries.push(entry);
        self.remember(identity, time);
    }

    /// Every time a bucket holds lies before `bound`: it leaves, and its blocks with it.
    pub fn expire(&mut self, bound: Timestamp, mut removed: impl FnMut(BlockChange)) {
        while let Some(first) = self.buckets.first_entry()
            && bound >= Timestamp((first.key() + 1) * BUCKET.0)
        {
            let (bucket, content) = first.remove_entry();
            for entry in content.entries {
                let (identity, time) = unpack(bucket, entry);
                if self.latest.get(&identity) == Some(&time) {
                    self.latest.remove(&identity);
                }
            }
            for block in 0..content.blocks {
                removed(BlockChange { bucket, block, value: None });
            }
        }
    }

    /// Something was inserted since the last `log`.
    pub fn has_news(&self) -> bool {
        self.buckets.values().any(|content| content.logged < content.entries.len())
    }

    /// The blocks that hold what was inserted since the last call.
    pub fn log(&mut self, mut written: impl FnMut(BlockChange)) {
        for (&bucket, content) in &mut self.buckets {
            if content.logged == content.entries.len() {
                continue;
            }
            let fresh = &content.entries[content.logged..];
            let value = fresh.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            written(BlockChange { bucket, block: content.blocks, value: Some(value) });
            content.logged = content.entries.len();
            content.blocks += 1;
        }
    }

    /// Loads one block; `None` removes its bucket: tombstones come for whole buckets.
    pub fn restore(
        &mut self,
        bucket: u64,
        block: u32,
        value: Option<&[u8]>,
    ) -> Result<(), StageError> {
        if bucket > Timestamp::LATEST.0 / BUCKET.0 || block >= BLOCK_LIMIT {
            return Err(damaged("a block of accepted identities"));
        }
        let Some(value) = value else {
            self.expire(Timestamp((bucket + 1) * BUCKET.0), |_| ());
            return Ok(());
        };
        let (entries, rest) = value.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(damaged("whole identities"));
        }
        let content = self.buckets.entry(bucket).or_default();
        content.entries.extend(entries.iter().map(|bytes| u128::from_le_bytes(*bytes)));
        content.logged = content.entries.len();
        content.blocks = content.blocks.max(block + 1);
        for bytes in entries {
            let (identity, time) = unpack(bucket, u128::from_le_bytes(*bytes));
            self.remember(identity, time);
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.latest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.latest.is_empty()
    }

    fn remember(&mut self, identity: Identity, time: Timestamp) {
        let latest = self.latest.entry(identity).or_insert(time);
        *latest = time.max(*latest);
    }
}

fn unpack(bucket: u64, entry: u128) -> (Identity, Timestamp) {
    let offset = (entry & ((1 << OFFSET_BITS) - 1)) as u64;
    (Identity(entry >> OFFSET_BITS), Timestamp(bucket * BUCKET.0 + offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::EARLIEST.plus(Span::seconds(seconds))
    }

    fn logged(dedup: &mut Dedup) -> Vec<BlockChange> {
        let mut blocks = Vec::new();
        dedup.log(|block| blocks.push(block));
        blocks
    }

    #[test]
    fn source_and_id_are_told_apart() {
        assert_ne!(Identity::new("ab", "c"), Identity::new("a", "bc"));
    }

    #[test]
    fn the_bound_is_exact_within_a_bucket() {
        let mut dedup = Dedup::default();
        let identity = Identity::new("meter", "1");
        dedup.insert(identity, at(10));
        assert!(dedup.was_counted(identity, at(10)));
        assert!(!dedup.was_counted(identity, Timestamp(at(10).0 + 1)));
    }

    #[test]
    fn an_identity_counted_again_later_outlives_its_first_bucket() {
        let mut dedup = Dedup::default();
        let identity = Identity::new("meter", "1");
        dedup.insert(identity, at(10));
        dedup.insert(identity, at(700));
        dedup.expire(at(600), |_| ());
        assert!(dedup.was_counted(identity, at(700)));
        dedup.expire(at(900), |_| ());
        assert!(dedup.is_empty());
    }

    #[test]
    fn restored_identities_equal_live_ones() {
        let mut live = Dedup::default();
        for number in 0..1000 {
            live.insert(Identity::new("meter", &number.to_string()), at(number));
        }
        let first = logged(&mut live);
        live.insert(Identity::new("meter", "again"), at(3));
        let second = logged(&mut live);
        assert_eq!(second.len(), 1);
        assert_eq!((second[0].bucket, second[0].block), (first[0].bucket, 1));

        let mut restored = Dedup::default();
        for change in first.iter().chain(&second) {
            restored.restore(change.bucket, change.block, change.value.as_deref()).expect("sound");
        }
        assert_eq!(restored.latest, live.latest);
        assert!(logged(&mut restored).is_empty(), "nothing is logged twice");

        let mut removed = Vec::new();
        live.expire(at(300), |change| removed.push(change));
        assert_eq!(removed.len(), 2, "both blocks of the first bucket");
        for change in removed {
            restored.restore(change.bucket, change.block, change.value.as_deref()).expect("sound");
        }
        assert_eq!(restored.latest, live.latest);
    }
}
