//! Identities counted within the dedup horizon.
//!
//! An identity is 80 bits of the hash of source and id. What is asked is exact: was it counted
//! with a `time` at or after a bound? So every identity keeps the greatest time it was counted
//! with, to the nanosecond, in 16 bytes altogether.
//!
//! Identities stand in one table per time bucket, so that a bucket leaves the horizon as a whole.
//! An event is looked for in its own bucket; a filter over all buckets tells whether its identity
//! may stand in another, where it was counted with another time.
//!
//! On the changelog a bucket is a block of identities for each commit that added some, until its
//! time is over: then its table is written as it lies in memory, in chunks, and the blocks are
//! removed. A restore puts chunks back as they are and inserts only what blocks still hold.
//!
//! Two identities of the same 80 bits would count as one. At 50,000 events a second and a horizon
//! of 2 h, an event meets 3.6e8 others, so that one event in 3.4e15 is a false duplicate: 1.6e14
//! events a century make 0.05 expected false duplicates.

mod bucket;
mod filter;
mod table;

use xxhash_rust::xxh3::xxh3_128;

use super::StageError;
use super::changelog::damaged;
use super::event::NAME_LIMIT;
use super::time::{Span, Timestamp};
use bucket::Bucket;
use filter::Filter;

/// Times within a bucket fit the 48 bits that an entry has for them.
const BUCKET: Span = Span::seconds(300);

/// Bytes of a length where identities are hashed.
const LENGTH: usize = size_of::<u64>();
/// Bytes of most identities.
const SHORT: usize = 128;

/// 80 bits of a hash, in the low bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(u128);

impl Identity {
    /// Of two names, each of at most `NAME_LIMIT` bytes; their lengths keep ("ab", "c") and
    /// ("a", "bc") apart.
    pub fn new(source: impl AsRef<[u8]>, id: impl AsRef<[u8]>) -> Self {
        let (source, id) = (source.as_ref(), id.as_ref());
        // hashing in one go takes a third of feeding the parts to a hasher, and clearing room for
        // the longest names as long as hashing those that occur
        Self(match LENGTH + source.len() + id.len() {
            ..=SHORT => hash::<SHORT>(source, id),
            _ => hash::<{ LENGTH + 2 * NAME_LIMIT }>(source, id),
        })
    }
}

/// The upper bits of the hash of the first name's length and both names.
fn hash<const ROOM: usize>(source: &[u8], id: &[u8]) -> u128 {
    let mut text = [0; ROOM];
    let (body, all) = (LENGTH + source.len(), LENGTH + source.len() + id.len());
    text[..LENGTH].copy_from_slice(&(source.len() as u64).to_le_bytes());
    text[LENGTH..body].copy_from_slice(source);
    text[body..all].copy_from_slice(id);
    xxh3_128(&text[..all]) >> table::OFFSET_BITS
}

/// The identities of one input partition.
#[derive(Debug)]
pub struct Dedup {
    /// By number, ascending; what comes belongs to the last few.
    buckets: Vec<(u64, Bucket)>,
    /// Buckets in a horizon.
    per_horizon: usize,
    filter: Filter,
    /// Read from the changelog and not yet put in place.
    restoring: bool,
}

/// One record of the changelog to write or, without a value, to remove.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockChange {
    pub bucket: u64,
    pub block: u32,
    pub value: Option<Vec<u8>>,
}

impl Dedup {
    pub fn new(horizon: Span) -> Self {
        let buckets = horizon.0 / BUCKET.0 + 1;
        let per_horizon = usize::try_from(buckets).expect("a horizon of years has fewer");
        let filter = Filter::new(buckets);
        Self { buckets: Vec::new(), per_horizon, filter, restoring: false }
    }

    /// Reads what the next two will look at, so that the processor fetches it while it does the
    /// same for other identities; what it returns means nothing, but must be used.
    pub fn approach(&self, identity: Identity, time: Timestamp) -> u64 {
        let table = match self.find(time.0 / BUCKET.0) {
            Ok(index) => self.buckets[index].1.approach(identity),
            Err(_) => 0,
        };
        table ^ self.filter.approach(identity)
    }

    /// Whether the identity was counted with a time at or after `bound`; the event's own `time` is
    /// at or after it.
    pub fn was_counted(&mut self, identity: Identity, time: Timestamp, bound: Timestamp) -> bool {
        self.settle();
        let counted_in = |(bucket, content): &(u64, Bucket)| {
            content.time_of(identity).is_some_and(|offset| at(*bucket, offset) >= bound)
        };
        let own = self.find(time.0 / BUCKET.0);
        if own.is_ok_and(|index| counted_in(&self.buckets[index])) {
            return true;
        }
        let lanes = self.filter.lanes_of(identity);
        let may_hold = |(bucket, _): &&(u64, Bucket)| self.filter.is_in(*bucket, lanes);
        !lanes.is_none() && self.buckets.iter().filter(may_hold).any(counted_in)
    }

    pub fn insert(&mut self, identity: Identity, time: Timestamp) {
        self.settle();
        let number = time.0 / BUCKET.0;
        let index = self.find(number).unwrap_or_else(|index| self.open(index, number));
        self.buckets[index].1.insert(identity, time.0 % BUCKET.0);
        if self.filter.add(number, identity) {
            self.fill_filter(self.len());
        }
    }

    /// Where the bucket of that number is, or would be.
    fn find(&self, number: u64) -> Result<usize, usize> {
        match self.buckets.iter().rposition(|(other, _)| *other <= number) {
            Some(index) if self.buckets[index].0 == number => Ok(index),
            Some(index) => Err(index + 1),
            None => Err(0),
        }
    }

    /// A bucket of that number; one that follows the others will hold about as much.
    fn open(&mut self, index: usize, number: u64) -> usize {
        let capacity = match self.buckets.last() {
            Some((_, last)) if index == self.buckets.len() => last.len(),
            Some(_) | None => 0,
        };
        let horizon = capacity * self.per_horizon;
        if self.filter.is_small_for(horizon) {
            self.fill_filter(horizon);
        }
        self.buckets.insert(index, (number, Bucket::with_capacity(capacity)));
        index
    }

    /// Every time a bucket holds lies before `bound`: it leaves, and with it what the changelog
    /// has of it.
    pub fn expire(&mut self, bound: Timestamp, mut removed: impl FnMut(BlockChange)) {
        self.settle();
        let is_over = |(bucket, _): &(u64, Bucket)| bound >= at(bucket + 1, 0);
        let over = self.buckets.iter().take_while(|bucket| is_over(bucket)).count();
        for (bucket, content) in self.buckets.drain(..over) {
            content.logged().for_each(|block| removed(BlockChange { bucket, block, value: None }));
        }
    }

    /// Something was inserted since the last `log`.
    pub fn has_news(&self) -> bool {
        self.buckets.iter().any(|(_, content)| content.has_news())
    }

    /// What the changelog lacks: blocks of what was inserted since the last call, and a few chunks
    /// of buckets whose time was over at `now`, the stream time.
    pub fn log(&mut self, now: Timestamp, mut written: impl FnMut(BlockChange)) {
        self.settle();
        // enough that a bucket is written within its own length, and little for one commit
        let mut chunks = 2;
        for (bucket, content) in &mut self.buckets {
            let bucket = *bucket;
            let mut write = |block, value| written(BlockChange { bucket, block, value });
            content.log_news(&mut write);
            if now >= at(bucket + 2, 0) {
                content.log_chunks(&mut chunks, &mut write);
            }
        }
    }

    /// For who keeps no changelog.
    pub fn forget_changes(&mut self) {
        self.buckets.iter_mut().for_each(|(_, content)| content.forget_news());
    }

    /// Takes one record of the changelog.
    pub fn restore(
        &mut self,
        bucket: u64,
        block: u32,
        value: Option<&[u8]>,
    ) -> Result<(), StageError> {
        // no partition fills more: what names others is damage
        let number = block & !bucket::CHUNKS;
        if number > 1 << 24 || bucket > Timestamp::LIMIT.0 / BUCKET.0 {
            return Err(damaged("a block of identities"));
        }
        self.restoring = true;
        let index = self.find(bucket).unwrap_or_else(|index| {
            self.buckets.insert(index, (bucket, Bucket::default()));
            index
        });
        let (_, content) = &mut self.buckets[index];
        content.restore(block, value)?;
        if content.is_empty() {
            self.buckets.remove(index);
        }
        Ok(())
    }

    /// Identities held; those of a restore once the first record has been processed.
    pub fn len(&self) -> usize {
        self.buckets.iter().map(|(_, content)| content.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn settle(&mut self) {
        if self.restoring {
            self.put_in_place();
        }
    }

    /// What was restored.
    #[cold]
    fn put_in_place(&mut self) {
        self.restoring = false;
        self.buckets.iter_mut().for_each(|(_, content)| content.settle());
        self.fill_filter(self.len());
    }

    /// Makes the filter anew, for this many identities.
    fn fill_filter(&mut self, identities: usize) {
        self.filter.clear(identities);
        for (bucket, content) in &self.buckets {
            for identity in content.identities() {
                self.filter.add(*bucket, identity);
            }
        }
    }
}

fn at(bucket: u64, offset: u64) -> Timestamp {
    Timestamp(bucket.saturating_mul(BUCKET.0).saturating_add(offset))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const HORIZON: Span = Span::hours(2);

    fn time(seconds: u64) -> Timestamp {
        Timestamp::EARLIEST.plus(Span::seconds(seconds))
    }

    fn identity(number: u64) -> Identity {
        Identity::new(b"meter", number.to_string().as_bytes())
    }

    fn logged(dedup: &mut Dedup, now: Timestamp) -> Vec<BlockChange> {
        let mut blocks = Vec::new();
        dedup.log(now, |block| blocks.push(block));
        blocks
    }

    fn restored(changes: &[BlockChange]) -> Dedup {
        let mut dedup = Dedup::new(HORIZON);
        for change in changes {
            dedup.restore(change.bucket, change.block, change.value.as_deref()).expect("sound");
        }
        dedup
    }

    fn counted(dedup: &mut Dedup, number: u64, bound: u64) -> bool {
        dedup.was_counted(identity(number), time(bound), time(bound))
    }

    #[test]
    fn source_and_id_are_told_apart() {
        assert_ne!(Identity::new(b"ab", b"c"), Identity::new(b"a", b"bc"));
    }

    #[test]
    fn the_bound_is_exact_within_a_bucket() {
        let mut dedup = Dedup::new(HORIZON);
        dedup.insert(identity(1), time(10));
        assert!(dedup.was_counted(identity(1), time(10), time(10)));
        let later = Timestamp(time(10).0 + 1);
        assert!(!dedup.was_counted(identity(1), later, later));
    }

    #[test]
    fn an_identity_is_found_in_another_bucket_than_its_events() {
        let mut dedup = Dedup::new(HORIZON);
        dedup.insert(identity(1), time(10));
        assert!(dedup.was_counted(identity(1), time(7000), time(10)));
        assert!(!dedup.was_counted(identity(1), time(7000), time(11)));
    }

    #[test]
    fn an_identity_counted_again_later_outlives_its_first_bucket() {
        let mut dedup = Dedup::new(HORIZON);
        dedup.insert(identity(1), time(10));
        dedup.insert(identity(1), time(700));
        dedup.expire(time(600), |_| ());
        assert!(dedup.was_counted(identity(1), time(700), time(700)));
        dedup.expire(time(900), |_| ());
        assert!(dedup.is_empty());
    }

    #[test]
    fn every_identity_is_found_at_any_size_and_no_other() {
        let mut dedup = Dedup::new(HORIZON);
        for number in 0..40_000 {
            assert!(!dedup.was_counted(identity(number), time(number / 8), time(0)), "{number}");
            dedup.insert(identity(number), time(number / 8));
        }
        for number in 0..40_000 {
            assert!(dedup.was_counted(identity(number), time(5000), time(number / 8)), "{number}");
        }
        assert!((40_000..80_000).all(|number| !counted(&mut dedup, number, 0)));
    }

    #[test]
    fn restored_identities_equal_live_ones_whatever_was_written_of_them() {
        let mut live = Dedup::new(HORIZON);
        let mut changes = Vec::new();
        for round in 0..40 {
            for number in 0..1000 {
                live.insert(identity(round * 1000 + number), time(round * 60 + number / 20));
            }
            changes.extend(logged(&mut live, time(round * 60 + 50)));
        }
        // as the log stands after every commit, and as compaction leaves it
        for cut in [1, changes.len() / 3, changes.len() / 2, changes.len()] {
            let mut compacted = BTreeMap::new();
            for change in &changes[..cut] {
                compacted.insert((change.bucket, change.block), change.value.clone());
            }
            let kept = compacted.into_iter().map(|((bucket, block), value)| BlockChange {
                bucket,
                block,
                value,
            });
            let mut from_compacted = restored(&kept.collect::<Vec<_>>());
            let mut from_log = restored(&changes[..cut]);
            for number in 0..40_000 {
                let found = counted(&mut from_log, number, 0);
                assert_eq!(counted(&mut from_compacted, number, 0), found, "{number} of {cut}");
                assert!(found || cut < changes.len(), "{number} was lost");
            }
        }
        let chunks = changes.iter().filter(|change| change.block >= bucket::CHUNKS).count();
        assert!(chunks > 3, "closed buckets are written as tables");
    }

    #[test]
    fn no_record_of_the_changelog_is_larger_than_half_a_megabyte() {
        let mut live = Dedup::new(HORIZON);
        for number in 0..100_000 {
            live.insert(identity(number), time(10));
        }
        let changes: Vec<_> = (0..9).flat_map(|_| logged(&mut live, time(1000))).collect();
        let sizes = changes.iter().filter_map(|change| change.value.as_ref().map(Vec::len));
        assert!(sizes.max().is_some_and(|largest| largest < 512 * 1024));
        let mut restored = restored(&changes);
        assert!((0..100_000).all(|number| counted(&mut restored, number, 0)));
    }

    #[test]
    fn what_expires_is_removed_from_the_changelog_whole() {
        let mut live = Dedup::new(HORIZON);
        let mut changes = Vec::new();
        for minute in 0..60 {
            live.insert(identity(minute), time(minute * 60));
            changes.extend(logged(&mut live, time(minute * 60)));
        }
        live.expire(time(3300), |change| changes.push(change));
        let mut left: BTreeMap<(u64, u32), bool> = BTreeMap::new();
        for change in &changes {
            left.insert((change.bucket, change.block), change.value.is_some());
        }
        let buckets: std::collections::BTreeSet<u64> =
            left.iter().filter(|(_, there)| **there).map(|((bucket, _), _)| *bucket).collect();
        assert_eq!(buckets.len(), 1, "only the last bucket is still there: {buckets:?}");
        let mut restored = restored(&changes);
        assert!((55..60).all(|minute| restored.was_counted(identity(minute), time(3600), time(0))));
        assert_eq!(restored.len(), 5);
    }
}
