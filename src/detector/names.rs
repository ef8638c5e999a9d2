//! Names as numbers: accounts, regions, fabrics and accelerators occur in millions of sums, their
//! text once.

use std::collections::HashMap;

use foldhash::fast::FixedState;

/// What an accelerator that the catalogue lacks is called, before its name as given.
pub const UNKNOWN_PREFIX: &str = "unknown:";

/// Interned text; id 0 is the empty name.
#[derive(Debug)]
pub struct Names {
    texts: Vec<Box<str>>,
    ids: HashMap<Box<str>, NameId, FixedState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NameId(pub u32);

impl NameId {
    pub const EMPTY: Self = Self(0);
}

impl Default for Names {
    fn default() -> Self {
        let mut names =
            Self { texts: Vec::new(), ids: HashMap::with_hasher(FixedState::default()) };
        names.intern("");
        names
    }
}

impl Names {
    pub fn intern(&mut self, text: &str) -> NameId {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let id = NameId(u32::try_from(self.texts.len()).expect("fewer than 2^32 names"));
        self.texts.push(text.into());
        self.ids.insert(text.into(), id);
        id
    }

    pub fn text(&self, id: NameId) -> &str {
        &self.texts[id.0 as usize]
    }

    pub fn find(&self, text: &str) -> Option<NameId> {
        self.ids.get(text).copied()
    }

    pub fn len(&self) -> usize {
        self.texts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }
}
