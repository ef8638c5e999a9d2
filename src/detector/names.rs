//! Names as numbers: accounts, regions, fabrics and accelerators occur in millions of sums, their
//! text once.
//!
//! A number means one text for as long as its owner refers to it: the owner frees what it no longer
//! refers to, now and then, so that names are bounded by twice what its state holds.

use std::collections::HashMap;

use foldhash::fast::FixedState;

/// What an accelerator that the catalogue lacks is called, before its name as given.
pub const UNKNOWN_PREFIX: &str = "unknown:";

/// So many names are not worth a look at which are in use.
const LEAST: usize = 16;

/// Interned text; id 0 is the empty name.
#[derive(Debug)]
pub struct Names {
    texts: Vec<Box<str>>,
    ids: HashMap<Box<str>, NameId, FixedState>,
    /// Ids that mean nothing, to be given out again.
    free: Vec<NameId>,
    /// Names in use when it was last looked, at least `LEAST`.
    used: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NameId(pub u32);

impl NameId {
    pub const EMPTY: Self = Self(0);
}

impl Default for Names {
    fn default() -> Self {
        let ids = HashMap::with_hasher(FixedState::default());
        let mut names = Self { texts: Vec::new(), ids, free: Vec::new(), used: LEAST };
        names.intern("");
        names
    }
}

impl Names {
    pub fn intern(&mut self, text: &str) -> NameId {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let id = match self.free.pop() {
            Some(id) => {
                self.texts[id.0 as usize] = text.into();
                id
            }
            None => {
                let id = NameId(u32::try_from(self.texts.len()).expect("fewer than 2^32 names"));
                self.texts.push(text.into());
                id
            }
        };
        self.ids.insert(text.into(), id);
        id
    }

    /// There are twice as many names as were in use when it was last looked.
    pub fn is_crowded(&self) -> bool {
        self.len() >= 2 * self.used
    }

    /// Frees every name but those in use.
    pub fn keep(&mut self, used: impl Iterator<Item = NameId>) {
        let mut is_used = vec![false; self.texts.len()];
        is_used[0] = true;
        used.for_each(|id| is_used[id.0 as usize] = true);
        self.free.clear();
        for (index, text) in (0u32..).zip(&mut self.texts) {
            if !is_used[index as usize] {
                self.ids.remove(text);
                *text = Box::default();
                self.free.push(NameId(index));
            }
        }
        // the empty text of a free id must not have taken the empty name's entry along
        self.ids.insert(Box::default(), NameId::EMPTY);
        self.used = self.len().max(LEAST);
    }

    pub fn text(&self, id: NameId) -> &str {
        &self.texts[id.0 as usize]
    }

    pub fn find(&self, text: &str) -> Option<NameId> {
        self.ids.get(text).copied()
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_in_use_are_kept_and_numbers_are_given_out_again() {
        let mut names = Names::default();
        let [a, b, c] = ["a", "b", "c"].map(|text| names.intern(text));
        names.keep([a, c].into_iter());
        assert_eq!((names.len(), names.find("b")), (3, None));
        assert_eq!(names.intern(""), NameId::EMPTY);
        assert_eq!((names.text(a), names.text(c)), ("a", "c"));
        assert_eq!(names.intern("d"), b, "a number nobody refers to");
        assert_eq!((names.text(b), names.find("d")), ("d", Some(b)));
        names.keep([b].into_iter());
        names.keep([b].into_iter());
        assert_eq!((names.len(), names.intern("")), (2, NameId::EMPTY));
    }

    #[test]
    fn it_is_crowded_when_twice_as_many_have_come() {
        let mut names = Names::default();
        let ids: Vec<_> = (0..2 * LEAST).map(|number| names.intern(&number.to_string())).collect();
        assert!(names.is_crowded());
        names.keep(ids[..10].iter().copied());
        assert!(!names.is_crowded());
    }
}
