//! Identities and times of one bucket, by open addressing: 16 bytes a slot, no pointers, so that
//! a table can be written and put back as it lies.

use super::Identity;

/// Bits of an entry that hold the time within the bucket.
pub(super) const OFFSET_BITS: u32 = 48;
const OFFSET_MASK: u128 = (1 << OFFSET_BITS) - 1;
const LEAST: usize = 64;

/// identity << 48 | nanoseconds within the bucket + 1; 0 is an empty slot.
pub(super) type Entry = u128;

#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Entry>,
    len: usize,
}

impl Table {
    pub(super) fn with_capacity(entries: usize) -> Self {
        let slots = if entries == 0 { 0 } else { (entries + entries / 2).max(LEAST) };
        Self { slots: vec![0; slots], len: 0 }
    }

    /// Reads where the identity would be.
    #[expect(clippy::cast_possible_truncation, reason = "the value means nothing")]
    pub(super) fn approach(&self, identity: Identity) -> u64 {
        self.slots.get(home(identity, self.slots.len())).map_or(0, |entry| *entry as u64)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn slots(&self) -> &[Entry] {
        &self.slots
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> {
        self.slots.iter().copied().filter(|entry| *entry != 0)
    }

    pub(super) fn find(&self, identity: Identity) -> Option<u64> {
        if self.slots.is_empty() {
            return None;
        }
        let slot = self.slot_of(identity);
        let entry = self.slots[slot];
        (entry != 0).then(|| offset_of(entry))
    }

    /// Inserts an entry, or moves its identity's time on; true when it was not there.
    pub(super) fn insert(&mut self, entry: Entry) -> bool {
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.resize((self.slots.len() * 2).max(LEAST));
        }
        let slot = self.slot_of(identity_of(entry));
        let found = &mut self.slots[slot];
        let is_new = *found == 0;
        *found = entry.max(*found);
        self.len += usize::from(is_new);
        is_new
    }

    /// Makes a table that grows no more as small as it can be and still be quick.
    pub(super) fn shrink(&mut self) {
        self.resize((self.len + self.len / 4).max(LEAST));
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![0; slots]);
        for entry in old.into_iter().filter(|entry| *entry != 0) {
            let slot = self.slot_of(identity_of(entry));
            self.slots[slot] = entry;
        }
    }

    /// The slot that holds the identity, or the empty one where it would go.
    fn slot_of(&self, identity: Identity) -> usize {
        let capacity = self.slots.len();
        let mut slot = home(identity, capacity);
        loop {
            let entry = self.slots[slot];
            if entry == 0 || identity_of(entry) == identity {
                return slot;
            }
            slot += 1;
            if slot == capacity {
                slot = 0;
            }
        }
    }

    /// A table of slots as they lay in another; `None` when they cannot have.
    pub(super) fn from_slots(slots: Vec<Entry>) -> Option<Self> {
        let len = slots.iter().filter(|entry| **entry != 0).count();
        (len < slots.len()).then_some(Self { slots, len })
    }
}

pub(super) fn entry(identity: Identity, offset: u64) -> Entry {
    (identity.0 << OFFSET_BITS) | u128::from(offset + 1)
}

pub(super) fn identity_of(entry: Entry) -> Identity {
    Identity(entry >> OFFSET_BITS)
}

pub(super) fn offset_of(entry: Entry) -> u64 {
    ((entry & OFFSET_MASK) as u64).saturating_sub(1)
}

/// The first slot to look at: the identity's upper 64 bits, spread over the slots.
#[expect(clippy::cast_possible_truncation, reason = "less than the number of slots")]
fn home(identity: Identity, capacity: usize) -> usize {
    let upper = identity.0 >> 16;
    ((upper * capacity as u128) >> 64) as usize
}
