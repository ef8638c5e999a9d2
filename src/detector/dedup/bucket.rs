//! The identities of one time bucket: a table, and what the changelog has of it.

use std::collections::BTreeMap;

use super::super::StageError;
use super::super::changelog::{VERSION, damaged};
use super::Identity;
use super::table::{Entry, Table, entry, identity_of};

/// Records numbered from here on are chunks of the table; those below are blocks.
pub(super) const CHUNKS: u32 = 1 << 31;
/// Slots in a chunk: a quarter of a megabyte when all are taken.
const CHUNK: usize = 16_384;
const ENTRY_BYTES: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Bucket {
    table: Table,
    /// Inserted since the last log.
    news: Vec<Entry>,
    /// Blocks on the changelog: from `first_block` up to `next_block`.
    first_block: u32,
    next_block: u32,
    /// Chunks on the changelog, of a table that was not resized since the first.
    chunks: u32,
    /// The table stands on the changelog whole.
    is_written: bool,
    /// Slots of the table that the chunks are of.
    written_slots: usize,
    restored: Restored,
}

/// Records of the changelog that wait for the rest.
#[derive(Debug, Default)]
struct Restored {
    blocks: BTreeMap<u32, Vec<Entry>>,
    chunks: BTreeMap<u32, Chunk>,
}

#[derive(Debug)]
struct Chunk {
    /// Slots of the whole table.
    capacity: usize,
    slots: Vec<Entry>,
}

impl Bucket {
    /// With room for this many identities.
    pub(super) fn with_capacity(identities: usize) -> Self {
        Self { table: Table::with_capacity(identities), ..Self::default() }
    }

    pub(super) fn approach(&self, identity: Identity) -> u64 {
        self.table.approach(identity)
    }

    /// Identities in place.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Nothing is in place, and nothing waits to be.
    pub(super) fn is_empty(&self) -> bool {
        let Restored { blocks, chunks } = &self.restored;
        self.table.len() == 0 && blocks.is_empty() && chunks.is_empty()
    }

    pub(super) fn time_of(&self, identity: Identity) -> Option<u64> {
        self.table.find(identity)
    }

    pub(super) fn identities(&self) -> impl Iterator<Item = Identity> {
        self.table.entries().map(identity_of)
    }

    pub(super) fn insert(&mut self, identity: Identity, offset: u64) {
        let entry = entry(identity, offset);
        self.table.insert(entry);
        self.news.push(entry);
    }

    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    pub(super) fn forget_news(&mut self) {
        self.news.clear();
    }

    /// Numbers of all records that the changelog has of it.
    pub(super) fn logged(&self) -> impl Iterator<Item = u32> + use<> {
        (self.first_block..self.next_block).chain(CHUNKS..CHUNKS + self.chunks)
    }

    /// Blocks of what was inserted since the last time, none larger than a chunk.
    pub(super) fn log_news(&mut self, write: &mut impl FnMut(u32, Option<Vec<u8>>)) {
        for entries in self.news.chunks(CHUNK) {
            let mut value = vec![VERSION];
            value.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
            write(self.next_block, Some(value));
            self.next_block += 1;
        }
        self.news.clear();
    }

    /// The next chunks of the table, at most `budget`; after the last one the blocks go.
    pub(super) fn log_chunks(
        &mut self,
        budget: &mut u32,
        write: &mut impl FnMut(u32, Option<Vec<u8>>),
    ) {
        // making the table small moves every identity: not before its first chunk can be written
        if self.is_written || *budget == 0 {
            return;
        }
        if self.chunks == 0 || self.written_slots != self.table.slots().len() {
            // late identities may have made it larger since the first chunk
            self.table.shrink();
            self.written_slots = self.table.slots().len();
            (CHUNKS..CHUNKS + self.chunks).for_each(|chunk| write(chunk, None));
            self.chunks = 0;
        }
        let mut chunks = self.table.slots().chunks(CHUNK).skip(self.chunks as usize);
        while *budget > 0 {
            let Some(slots) = chunks.next() else { break };
            write(CHUNKS + self.chunks, Some(encode(self.written_slots, slots)));
            self.chunks += 1;
            *budget -= 1;
        }
        if self.chunks as usize == self.written_slots.div_ceil(CHUNK) {
            self.is_written = true;
            (self.first_block..self.next_block).for_each(|block| write(block, None));
            self.first_block = self.next_block;
        }
    }

    /// Takes one record of the changelog; `settle` puts all in place.
    pub(super) fn restore(&mut self, number: u32, value: Option<&[u8]>) -> Result<(), StageError> {
        let waiting = &mut self.restored;
        match (number >= CHUNKS, value) {
            (true, Some(value)) => drop(waiting.chunks.insert(number - CHUNKS, decode(value)?)),
            (true, None) => drop(waiting.chunks.remove(&(number - CHUNKS))),
            (false, Some(value)) => drop(waiting.blocks.insert(number, entries(body(value)?)?)),
            (false, None) => drop(waiting.blocks.remove(&number)),
        }
        Ok(())
    }

    /// Chunks that make up a whole table are put back as they lay; everything else is inserted.
    pub(super) fn settle(&mut self) {
        let Restored { blocks, chunks } = std::mem::take(&mut self.restored);
        self.first_block = blocks.keys().next().copied().unwrap_or_default();
        self.next_block = blocks.keys().next_back().map_or(self.first_block, |last| last + 1);
        self.chunks = chunks.keys().next_back().map_or(0, |last| last + 1);
        let capacity = chunks.values().next().map_or(0, |chunk| chunk.capacity);
        let sound = chunks.values().map(|chunk| chunk.slots.len()).sum::<usize>();
        let mut slots: Vec<Entry> = Vec::with_capacity(sound);
        for (index, chunk) in (0u32..).zip(&chunks) {
            if *chunk.0 == index && chunk.1.capacity == capacity {
                slots.extend_from_slice(&chunk.1.slots);
            }
        }
        let blocks: Vec<Entry> = blocks.into_values().flatten().collect();
        let whole = if slots.len() == capacity { Table::from_slots(slots) } else { None };
        self.is_written = capacity > 0 && whole.is_some();
        self.written_slots = if self.is_written { capacity } else { 0 };
        self.table = whole.unwrap_or_else(|| Table::with_capacity(blocks.len()));
        for entry in blocks {
            self.table.insert(entry);
        }
        if !self.is_written {
            // the blocks hold them as well, and go first: entries in the order of a table would
            // crowd the front of one that grows
            for entry in chunks.into_values().flat_map(|chunk| chunk.slots) {
                if entry != 0 {
                    self.table.insert(entry);
                }
            }
        }
    }
}

/// Version, slots of the whole table, then for every 64 slots which are taken, and those.
fn encode(capacity: usize, slots: &[Entry]) -> Vec<u8> {
    let mut value = vec![VERSION];
    value.extend_from_slice(&(capacity as u64).to_le_bytes());
    value.extend_from_slice(&(slots.len() as u64).to_le_bytes());
    for group in slots.chunks(64) {
        let taken = (0u32..).zip(group).filter(|(_, entry)| **entry != 0);
        let map = taken.clone().fold(0u64, |map, (bit, _)| map | (1 << bit));
        value.extend_from_slice(&map.to_le_bytes());
        for (_, entry) in taken {
            value.extend_from_slice(&entry.to_le_bytes());
        }
    }
    value
}

fn decode(value: &[u8]) -> Result<Chunk, StageError> {
    let wrong = || damaged("a chunk of identities");
    let (capacity, rest) = number(body(value)?).ok_or_else(wrong)?;
    let (count, mut rest) = number(rest).ok_or_else(wrong)?;
    if count > CHUNK || capacity > 1 << 40 {
        return Err(wrong());
    }
    let mut slots = vec![0; count];
    for group in slots.chunks_mut(64) {
        let (map, after) = rest.split_first_chunk().ok_or_else(wrong)?;
        let map = u64::from_le_bytes(*map);
        rest = after;
        for (bit, slot) in (0u32..).zip(group) {
            if map & (1 << bit) != 0 {
                let (entry, after) = rest.split_first_chunk().ok_or_else(wrong)?;
                *slot = Entry::from_le_bytes(*entry);
                rest = after;
            }
        }
    }
    if rest.is_empty() { Ok(Chunk { capacity, slots }) } else { Err(wrong()) }
}

fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((usize::try_from(u64::from_le_bytes(*number)).ok()?, rest))
}

fn entries(bytes: &[u8]) -> Result<Vec<Entry>, StageError> {
    let (entries, rest) = bytes.as_chunks::<ENTRY_BYTES>();
    if !rest.is_empty() {
        return Err(damaged("whole identities"));
    }
    Ok(entries.iter().map(|bytes| Entry::from_le_bytes(*bytes)).filter(|e| *e != 0).collect())
}

/// What follows the version.
fn body(value: &[u8]) -> Result<&[u8], StageError> {
    super::super::changelog::Reader::new(value).map(super::super::changelog::Reader::rest)
}
