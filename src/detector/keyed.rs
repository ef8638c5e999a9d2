//! States by key: dense, so that a look at every state follows memory, and in an order that the
//! input alone decides.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::FixedState;

/// A map from `K` to `T` whose entries stand in slots; a slot is one key's until it is removed.
#[derive(Debug)]
pub struct Keyed<K, T> {
    slots: HashMap<K, u32, FixedState>,
    entries: Vec<Option<Entry<K, T>>>,
    free: Vec<u32>,
    /// Slots touched since they were last taken, each once.
    touched: Vec<u32>,
}

#[derive(Debug)]
struct Entry<K, T> {
    key: K,
    touched: bool,
    state: T,
}

impl<K: Copy + Eq + Hash, T> Default for Keyed<K, T> {
    fn default() -> Self {
        let slots = HashMap::with_hasher(FixedState::default());
        Self { slots, entries: Vec::new(), free: Vec::new(), touched: Vec::new() }
    }
}

impl<K: Copy + Eq + Hash, T> Keyed<K, T> {
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub fn slot(&self, key: K) -> Option<u32> {
        self.slots.get(&key).copied()
    }

    /// The key's slot; `make` makes its state if there is none.
    pub fn slot_or_insert_with(&mut self, key: K, make: impl FnOnce() -> T) -> u32 {
        *self.slots.entry(key).or_insert_with(|| {
            let entry = Some(Entry { key, touched: false, state: make() });
            if let Some(slot) = self.free.pop() {
                self.entries[slot as usize] = entry;
                return slot;
            }
            self.entries.push(entry);
            u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 keys")
        })
    }

    /// What stands in a slot, unless it was removed.
    pub fn at(&mut self, slot: u32) -> Option<(K, &mut T)> {
        self.entries[slot as usize].as_mut().map(|entry| (entry.key, &mut entry.state))
    }

    pub fn get_mut(&mut self, key: K) -> Option<&mut T> {
        let slot = self.slot(key)?;
        self.at(slot).map(|(_, state)| state)
    }

    pub fn remove(&mut self, key: K) {
        if let Some(slot) = self.slots.remove(&key) {
            self.entries[slot as usize] = None;
            self.free.push(slot);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        self.entries.iter().flatten().map(|entry| (entry.key, &entry.state))
    }

    /// The state has changed, or may have.
    pub fn touch(&mut self, slot: u32) {
        if let Some(entry) = &mut self.entries[slot as usize]
            && !std::mem::replace(&mut entry.touched, true)
        {
            self.touched.push(slot);
        }
    }

    /// Hands on every state; those for which `changed` returns true are touched.
    pub fn each_mut(&mut self, mut changed: impl FnMut(K, &mut T) -> bool) {
        for (slot, entry) in (0..).zip(&mut self.entries) {
            let Some(entry) = entry else { continue };
            if changed(entry.key, &mut entry.state) && !std::mem::replace(&mut entry.touched, true)
            {
                self.touched.push(slot);
            }
        }
    }

    /// The slots touched since the last call, in order.
    pub fn take_touched(&mut self) -> Vec<u32> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        for slot in &touched {
            if let Some(entry) = &mut self.entries[*slot as usize] {
                entry.touched = false;
            }
        }
        touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_slot_is_used_again_and_no_key_sees_anothers_state() {
        let mut keyed = Keyed::default();
        let slots: Vec<u32> =
            ["a", "b", "c"].iter().map(|key| keyed.slot_or_insert_with(*key, || *key)).collect();
        keyed.remove("b");
        assert!(keyed.at(slots[1]).is_none());
        assert_eq!((keyed.slot("b"), keyed.len()), (None, 2));
        assert_eq!(keyed.slot_or_insert_with("d", || "d"), slots[1]);
        assert_eq!(keyed.slot_or_insert_with("a", || "other"), slots[0]);
        let all: Vec<_> = keyed.iter().collect();
        assert_eq!(all, [("a", &"a"), ("d", &"d"), ("c", &"c")]);
    }

    #[test]
    fn what_is_touched_is_taken_once_in_order() {
        let mut keyed = Keyed::default();
        let slots: Vec<u32> =
            ["a", "b", "c"].iter().map(|key| keyed.slot_or_insert_with(*key, || ())).collect();
        keyed.touch(slots[2]);
        keyed.each_mut(|key, ()| key != "b");
        assert_eq!(keyed.take_touched(), [slots[0], slots[2]]);
        assert!(keyed.take_touched().is_empty());
        keyed.touch(slots[2]);
        assert_eq!(keyed.take_touched(), [slots[2]]);
    }
}
