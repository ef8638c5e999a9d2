//! Where a hash leads: open addressing, kinds as small numbers.

/// Positions in `kinds` by hash: a power of two of slots, half of them empty at least, so that one
/// look takes one line of memory.
#[derive(Debug, Default)]
pub(super) struct Index {
    slots: Vec<Slot>,
    len: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The upper half of the hash.
    hash: u32,
    /// One more than the position; 0 is an empty slot.
    kind: u32,
}

impl Index {
    /// Reads the slot where the hash would be.
    pub(super) fn approach(&self, hash: u64) -> u32 {
        self.home(hash).map_or(0, |slot| self.slots[slot].kind)
    }

    /// The first slot to look at; `None` while there is none.
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    fn home(&self, hash: u64) -> Option<usize> {
        Some(hash as usize & self.slots.len().checked_sub(1)?)
    }

    /// The first kind of that hash which `is_it`.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mut slot = self.home(hash)?;
        loop {
            let Slot { hash: other, kind } = self.slots[slot];
            let kind = kind.checked_sub(1)?;
            if other == upper(hash) && is_it(kind) {
                return Some(kind);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    pub(super) fn insert(&mut self, hash: u64, kind: u32, hash_of: impl Fn(u32) -> u64) {
        if (self.len + 1) * 2 > self.slots.len() {
            let slots = (self.slots.len() * 2).max(64);
            let old = std::mem::replace(&mut self.slots, vec![Slot::default(); slots]);
            for kind in old.iter().filter_map(|slot| slot.kind.checked_sub(1)) {
                self.put(hash_of(kind), kind);
            }
        }
        self.put(hash, kind);
        self.len += 1;
    }

    fn put(&mut self, hash: u64, kind: u32) {
        let mut slot = self.home(hash).expect("room was made");
        while self.slots[slot].kind != 0 {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = Slot { hash: upper(hash), kind: kind + 1 };
    }
}

const fn upper(hash: u64) -> u32 {
    (hash >> 32) as u32
}
