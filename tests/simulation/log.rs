//! Kafka as far as exactness needs it: partitions with offsets, transactions that append to many
//! partitions and move committed positions at once or not at all, commits whose end comes late to
//! the changelogs, aborted records that take up offsets, and compaction.

use std::collections::{BTreeMap, BTreeSet};

/// The topics of one flopwatch, the usage topic excepted: it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    Usage,
    AccountUsage,
    GroupUsage,
    Alerts,
    DeadLetters,
    MeterState,
    AccountState,
    GroupState,
    Accounts,
}

impl Topic {
    fn is_changelog(self) -> bool {
        matches!(self, Self::MeterState | Self::AccountState | Self::GroupState)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
    /// Aborted records and markers take up an offset; nobody reads them.
    visible: bool,
}

#[derive(Debug, Default)]
struct Partition {
    entries: Vec<Entry>,
    next: u64,
    /// The last stable offset, below a commit that is decided and whose end is not written here.
    stable: Option<u64>,
}

impl Partition {
    fn append(&mut self, key: Vec<u8>, value: Option<Vec<u8>>, visible: bool) {
        self.entries.push(Entry { offset: self.next, key, value, visible });
        self.next += 1;
    }
}

pub(crate) type TopicPartition = (Topic, u32);

#[derive(Debug, Default)]
pub(crate) struct Log {
    partitions: BTreeMap<TopicPartition, Partition>,
    positions: BTreeMap<TopicPartition, u64>,
}

/// What a transaction holds.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    pub(crate) records: Vec<(TopicPartition, Vec<u8>, Option<Vec<u8>>)>,
    pub(crate) positions: Vec<(TopicPartition, u64)>,
}

impl Log {
    /// Appends outside of any transaction, as a metering pipeline and a directory do.
    pub(crate) fn append(&mut self, at: TopicPartition, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.partitions.entry(at).or_default().append(key, value, true);
    }

    /// Everything becomes visible at once, followed by a marker on every partition.
    pub(crate) fn commit(&mut self, transaction: Transaction) {
        self.write(transaction.records, true);
        for (at, position) in transaction.positions {
            let before = self.positions.insert(at, position).unwrap_or_default();
            assert!(before <= position, "{at:?}: the position went back");
        }
    }

    /// The coordinator has decided and moved the positions; the changelogs have yet to be told.
    pub(crate) fn commit_in_flight(&mut self, transaction: Transaction) {
        let written: BTreeSet<_> = transaction.records.iter().map(|(at, _, _)| *at).collect();
        for at in written.into_iter().filter(|(topic, _)| topic.is_changelog()) {
            let partition = self.partitions.entry(at).or_default();
            partition.stable.get_or_insert(partition.next);
        }
        self.commit(transaction);
    }

    /// Every end has been written by the time that someone who waits for it goes on.
    pub(crate) fn await_ends(&mut self) {
        self.partitions.values_mut().for_each(|partition| partition.stable = None);
    }

    /// Only offsets are taken up.
    pub(crate) fn abort(&mut self, transaction: Transaction) {
        self.write(transaction.records, false);
    }

    fn write(&mut self, records: Vec<(TopicPartition, Vec<u8>, Option<Vec<u8>>)>, visible: bool) {
        let mut touched = BTreeSet::new();
        for (at, key, value) in records {
            self.partitions.entry(at).or_default().append(key, value, visible);
            touched.insert(at);
        }
        for at in touched {
            self.partitions.entry(at).or_default().append(Vec::new(), None, false);
        }
    }

    pub(crate) fn position(&self, at: TopicPartition) -> u64 {
        self.positions.get(&at).copied().unwrap_or_default()
    }

    /// Up to `count` visible records at or after `offset`, as `read_committed` has them: below the
    /// last stable offset.
    pub(crate) fn read(&self, at: TopicPartition, offset: u64, count: usize) -> Vec<Entry> {
        let Some(partition) = self.partitions.get(&at) else { return Vec::new() };
        let from = partition.entries.partition_point(|entry| entry.offset < offset);
        let stable = partition.stable.unwrap_or(partition.next);
        let visible =
            partition.entries[from..].iter().filter(|entry| entry.visible && entry.offset < stable);
        visible.take(count).cloned().collect()
    }

    pub(crate) fn all(&self, at: TopicPartition) -> Vec<Entry> {
        self.read(at, 0, usize::MAX)
    }

    /// Keeps the last visible record of every key, as the broker's cleaner does; tombstones that
    /// have done their work go too when `with_tombstones`.
    pub(crate) fn compact(&mut self, at: TopicPartition, with_tombstones: bool) {
        let Some(partition) = self.partitions.get_mut(&at) else { return };
        let mut seen = BTreeSet::new();
        let mut kept: Vec<Entry> = Vec::new();
        for entry in partition.entries.iter().rev().filter(|entry| entry.visible) {
            let newest = seen.insert(entry.key.clone());
            if newest && (entry.value.is_some() || !with_tombstones) {
                kept.push(entry.clone());
            }
        }
        kept.reverse();
        partition.entries = kept;
    }
}
