//! Slices of compute in tiers, by region, fabric and accelerator, for one account, owner or
//! country; windows are runs of slices.
//!
//! Invariants: a cell's measure is the exact sum of the parts added to it; a slice that has left
//! its tier is never entered again (the stage checks); only blocks touched since the last commit
//! are written.

use std::collections::{BTreeMap, BTreeSet};

use super::StageError;
use super::changelog::{Reader, Writer, damaged};
use super::measure::Measure;
use super::names::{NameId, Names};
use super::rules::TierRules;
use super::time::{Span, Timestamp};

/// Slices per changelog block: a commit rewrites the blocks that it touched.
const BLOCK_SLICES: u64 = 8;

/// Where and on what compute was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Place {
    pub region: NameId,
    pub fabric: NameId,
    pub accelerator: NameId,
}

/// The sums of one key.
#[derive(Debug, Default)]
pub struct Windows {
    /// Cells refer to places by index; a place without cells is free for reuse.
    places: Vec<PlaceSlot>,
    tiers: Vec<Tier>,
    dirty: BTreeSet<Block>,
    places_changed: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct PlaceSlot {
    place: Place,
    cells: u32,
}

#[derive(Debug, Default)]
struct Tier {
    slices: BTreeMap<Timestamp, Vec<Cell>>,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    place: u32,
    measure: Measure,
}

/// A run of slices of one tier, as the changelog keys them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    pub tier: u8,
    pub number: u64,
}

impl Block {
    fn holding(tier: usize, rules: &TierRules, end: Timestamp) -> Self {
        let tier = u8::try_from(tier).expect("few tiers");
        Self { tier, number: (end.0 / rules.slice.0) / BLOCK_SLICES }
    }

    fn range(self, rules: &TierRules) -> std::ops::Range<Timestamp> {
        let length = BLOCK_SLICES * rules.slice.0;
        let start = self.number * length;
        Timestamp(start)..Timestamp(start.saturating_add(length))
    }
}

/// Which cells a sum takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    All,
    Fabric(NameId),
}

impl Part {
    fn takes(self, place: &Place) -> bool {
        match self {
            Self::All => true,
            Self::Fabric(fabric) => place.fabric == fabric,
        }
    }
}

impl Windows {
    pub fn new(tiers: usize) -> Self {
        Self { tiers: (0..tiers).map(|_| Tier::default()).collect(), ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.tiers.iter().all(|tier| tier.slices.is_empty())
    }

    /// Adds to the slice of `tier` that ends at `end`.
    pub fn add(
        &mut self,
        tier: usize,
        rules: &TierRules,
        end: Timestamp,
        place: Place,
        measure: Measure,
    ) {
        let place = self.place_index(place);
        let cells = self.tiers[tier].slices.entry(end).or_default();
        match cells.iter_mut().find(|cell| cell.place == place) {
            Some(cell) => cell.measure += measure,
            None => {
                cells.push(Cell { place, measure });
                self.places[place as usize].cells += 1;
            }
        }
        self.dirty.insert(Block::holding(tier, rules, end));
    }

    /// The sum over the slices of `tier` with ends in `(after, until]`.
    pub fn sum(&self, tier: usize, after: Timestamp, until: Timestamp, part: Part) -> Measure {
        let mut total = Measure::ZERO;
        for (_, measure) in self.slices(tier, after, until, part) {
            total += measure;
        }
        total
    }

    /// The slices of `tier` with ends in `(after, until]`, in order, as far as they hold cells.
    pub fn slices(
        &self,
        tier: usize,
        after: Timestamp,
        until: Timestamp,
        part: Part,
    ) -> impl Iterator<Item = (Timestamp, Measure)> {
        let bounds = (std::ops::Bound::Excluded(after), std::ops::Bound::Included(until));
        let slices = (after < until).then(|| self.tiers[tier].slices.range(bounds));
        slices.into_iter().flatten().filter_map(move |(&end, cells)| {
            let mut total = None;
            for cell in
                cells.iter().filter(|cell| part.takes(&self.places[cell.place as usize].place))
            {
                *total.get_or_insert(Measure::ZERO) += cell.measure;
            }
            total.map(|total| (end, total))
        })
    }

    /// Every cell of `tier` with its end in `(after, until]`.
    pub fn cells(
        &self,
        tier: usize,
        after: Timestamp,
        until: Timestamp,
        part: Part,
    ) -> impl Iterator<Item = (Timestamp, Place, Measure)> {
        let bounds = (std::ops::Bound::Excluded(after), std::ops::Bound::Included(until));
        let slices = (after < until).then(|| self.tiers[tier].slices.range(bounds));
        slices.into_iter().flatten().flat_map(move |(&end, cells)| {
            cells.iter().filter_map(move |cell| {
                let place = self.places[cell.place as usize].place;
                part.takes(&place).then_some((end, place, cell.measure))
            })
        })
    }

    pub fn tiers(&self) -> usize {
        self.tiers.len()
    }

    /// Every retained slice of a tier.
    pub fn all_slices(&self, tier: usize) -> impl Iterator<Item = (Timestamp, Measure)> {
        self.slices(tier, Timestamp(0), Timestamp(u64::MAX), Part::All)
    }

    /// Every retained cell of a tier.
    pub fn all_cells(&self, tier: usize) -> impl Iterator<Item = (Timestamp, Place, Measure)> {
        self.cells(tier, Timestamp(0), Timestamp(u64::MAX), Part::All)
    }

    /// The fabrics with a retained slice in any tier, each once.
    pub fn fabrics(&self) -> BTreeSet<NameId> {
        let used = self.places.iter().filter(|slot| slot.cells > 0);
        used.map(|slot| slot.place.fabric).filter(|fabric| *fabric != NameId::EMPTY).collect()
    }

    /// Slices of `tier` with ends at or before `bound` leave, oldest first.
    pub fn expire(
        &mut self,
        tier: usize,
        rules: &TierRules,
        bound: Timestamp,
        mut left: impl FnMut(Timestamp, Measure),
    ) {
        while let Some(first) = self.tiers[tier].slices.first_entry()
            && *first.key() <= bound
        {
            let (end, cells) = first.remove_entry();
            let mut total = Measure::ZERO;
            for cell in cells {
                total += cell.measure;
                self.release(cell.place);
            }
            self.dirty.insert(Block::holding(tier, rules, end));
            left(end, total);
        }
    }

    fn place_index(&mut self, place: Place) -> u32 {
        let used = |slot: &PlaceSlot| slot.cells > 0 && slot.place == place;
        let index = self.places.iter().position(used).unwrap_or_else(|| {
            self.places_changed = true;
            let slot = PlaceSlot { place, cells: 0 };
            if let Some(free) = self.places.iter().position(|slot| slot.cells == 0) {
                self.places[free] = slot;
                free
            } else {
                self.places.push(slot);
                self.places.len() - 1
            }
        });
        u32::try_from(index).expect("fewer than 2^32 places")
    }

    fn release(&mut self, place: u32) {
        self.places[place as usize].cells -= 1;
    }
}

/// The changelog's side: places in the key's head, cells in blocks.
impl Windows {
    /// Blocks were touched since the last `log`.
    pub fn is_changed(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// For who keeps no changelog.
    pub fn forget_changes(&mut self) {
        self.dirty.clear();
        self.places_changed = false;
    }

    /// The places differ from those last written: the head must be written too.
    pub fn places_changed(&self) -> bool {
        self.places_changed
    }

    pub fn write_places(&mut self, names: &Names, writer: &mut Writer) {
        self.places_changed = false;
        writer.unsigned(self.places.len() as u64);
        for slot in &self.places {
            for name in [slot.place.region, slot.place.fabric, slot.place.accelerator] {
                writer.text(names.text(name));
            }
        }
    }

    /// Reads the places; cells of blocks restored before or after keep their counts.
    pub fn read_places(
        &mut self,
        names: &mut Names,
        reader: &mut Reader<'_>,
    ) -> Result<(), StageError> {
        let count = reader.small()?;
        for index in 0..count {
            let place = Place {
                region: names.intern(reader.text()?),
                fabric: names.intern(reader.text()?),
                accelerator: names.intern(reader.text()?),
            };
            self.slot(index)?.place = place;
        }
        Ok(())
    }

    /// Blocks touched since the last call, with their content; `None` when nothing is left.
    pub fn log(&mut self, rules: &[TierRules], mut written: impl FnMut(Block, Option<Vec<u8>>)) {
        for block in std::mem::take(&mut self.dirty) {
            let tier = usize::from(block.tier);
            let mut writer = Writer::default();
            let mut any = false;
            for (end, cells) in self.tiers[tier].slices.range(block.range(&rules[tier])) {
                any = true;
                writer.unsigned(end.0 / rules[tier].slice.0 - block.number * BLOCK_SLICES);
                writer.unsigned(cells.len() as u64);
                for cell in cells {
                    writer.unsigned(cell.place);
                    writer.measure(&cell.measure);
                }
            }
            written(block, any.then(|| writer.finish()));
        }
    }

    /// Replaces the content of a block.
    pub fn restore(
        &mut self,
        rules: &[TierRules],
        block: Block,
        value: Option<&[u8]>,
    ) -> Result<(), StageError> {
        let tier = usize::from(block.tier);
        let rule = rules.get(tier).ok_or_else(|| damaged("a configured tier"))?;
        if block.number > Timestamp::LIMIT.0 / (BLOCK_SLICES * rule.slice.0) {
            return Err(damaged("a block before 2525"));
        }
        let ends: Vec<Timestamp> =
            self.tiers[tier].slices.range(block.range(rule)).map(|(end, _)| *end).collect();
        for end in ends {
            for cell in self.tiers[tier].slices.remove(&end).into_iter().flatten() {
                self.release(cell.place);
            }
        }
        let Some(value) = value else { return Ok(()) };
        let mut reader = Reader::new(value)?;
        while !reader.is_empty() {
            let within = reader.number()?;
            if within >= BLOCK_SLICES {
                return Err(damaged("a slice within its block"));
            }
            let number = block.number * BLOCK_SLICES + within;
            let end = Timestamp(number.saturating_mul(rule.slice.0));
            let count = reader.small()?;
            let mut cells = Vec::new();
            for _ in 0..count {
                let cell = Cell { place: reader.small()?, measure: reader.measure()? };
                self.slot(cell.place)?.cells += 1;
                cells.push(cell);
            }
            self.tiers[tier].slices.insert(end, cells);
        }
        Ok(())
    }

    /// The slot of a place that may be restored later than its cells.
    fn slot(&mut self, index: u32) -> Result<&mut PlaceSlot, StageError> {
        const LIMIT: u32 = 1 << 20;
        if index >= LIMIT {
            return Err(damaged("a place index"));
        }
        let index = index as usize;
        if index >= self.places.len() {
            self.places.resize(index + 1, PlaceSlot::default());
        }
        Ok(&mut self.places[index])
    }
}

/// The end of the window's last slice when judged at `end`: the tier's last boundary.
pub fn window_end(rules: &TierRules, end: Timestamp) -> Timestamp {
    end.floor(rules.slice)
}

/// How many slices a window of `length` has.
pub fn slice_count(rules: &TierRules, length: Span) -> u64 {
    length.0 / rules.slice.0
}
