//! Slices of compute in tiers, by region, fabric and accelerator, for one account, owner or
//! country; windows are runs of slices.
//!
//! Slices stand in blocks of eight. A block that nothing adds to any more is kept as the bytes that
//! the changelog holds of it: a few dozen bytes a slice, and a restore takes them as they are.
//!
//! Invariants: a cell's measure is the exact sum of the parts added to it; a slice that has left
//! its tier is never seen or entered again, though its bytes go only with its block; only blocks
//! touched since the last commit are written.

mod block;

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::FixedState;

use super::StageError;
use super::changelog::{Reader, Writer, damaged};
use super::measure::Measure;
use super::names::{NameId, Names};
use super::rules::TierRules;
use super::time::{Span, Timestamp};
use block::{Block, SLICES};

/// Where and on what compute was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Place {
    pub region: NameId,
    pub fabric: NameId,
    pub accelerator: NameId,
}

impl Place {
    pub fn names(self) -> [NameId; 3] {
        [self.region, self.fabric, self.accelerator]
    }
}

/// The sums of one key.
#[derive(Debug, Default)]
pub struct Windows {
    /// Cells refer to places by index; a place without cells is free for reuse.
    places: Vec<PlaceSlot>,
    /// For more places than a look at each would find quickly.
    index: Option<Box<PlaceIndex>>,
    tiers: Box<[Tier]>,
    places_changed: bool,
    blocks_changed: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct PlaceSlot {
    place: Place,
    cells: u32,
}

#[derive(Debug)]
struct PlaceIndex {
    by_place: HashMap<Place, u32, FixedState>,
    /// Places without cells; some may have been taken again since.
    free: Vec<u32>,
}

/// Places that are searched one by one.
const FEW_PLACES: usize = 16;

#[derive(Debug, Default)]
struct Tier {
    /// In order of number.
    blocks: Vec<Block>,
    /// Numbers of blocks that are gone and not yet removed from the changelog.
    removed: Vec<u64>,
    /// Slices with ends at or before this have left.
    left: Timestamp,
    /// The greatest end that a slice ever had.
    newest: Timestamp,
}

/// How the changelog names a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockId {
    pub tier: u8,
    pub number: u64,
}

/// Which cells a sum takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    All,
    Fabric(NameId),
}

impl Windows {
    pub fn new(tiers: usize) -> Self {
        Self { tiers: (0..tiers).map(|_| Tier::default()).collect(), ..Self::default() }
    }

    /// No tier keeps a slice.
    pub fn is_empty(&self) -> bool {
        self.tiers.iter().all(|tier| tier.newest <= tier.left)
    }

    /// Not even a slice that has left waits for its block.
    pub fn is_gone(&self) -> bool {
        self.tiers.iter().all(|tier| tier.blocks.is_empty())
    }

    pub fn tiers(&self) -> usize {
        self.tiers.len()
    }

    /// Adds to the slice of `tier` that ends at `end` and has not left.
    pub fn add(
        &mut self,
        tier: usize,
        rules: &TierRules,
        end: Timestamp,
        place: Place,
        measure: Measure,
    ) {
        let place = self.place_index(place);
        let slice = end.0 / rules.slice.0;
        let tier = &mut self.tiers[tier];
        tier.newest = tier.newest.max(end);
        let block = tier.block_mut(slice / SLICES);
        if block.add(slice % SLICES, place, measure) {
            self.places[place as usize].cells += 1;
        }
        self.blocks_changed = true;
    }

    /// The sum over the slices of `tier` with ends in `(after, until]`.
    pub fn sum(
        &self,
        tier: usize,
        rules: &TierRules,
        (after, until): (Timestamp, Timestamp),
        part: Part,
    ) -> Measure {
        let mut total = Measure::ZERO;
        self.each_cell(tier, rules, (after, until), part, |_, _, measure| total += measure);
        total
    }

    /// The slices of `tier` with ends in `(after, until]`, in order, as far as they hold cells.
    pub fn each_slice(
        &self,
        tier: usize,
        rules: &TierRules,
        bounds: (Timestamp, Timestamp),
        part: Part,
        mut slice: impl FnMut(Timestamp, Measure),
    ) {
        let mut open: Option<(Timestamp, Measure)> = None;
        self.each_cell(tier, rules, bounds, part, |end, _, measure| match &mut open {
            Some((current, sum)) if *current == end => *sum += measure,
            Some(_) | None => {
                if let Some((end, sum)) = open.replace((end, measure)) {
                    slice(end, sum);
                }
            }
        });
        if let Some((end, sum)) = open {
            slice(end, sum);
        }
    }

    /// Every retained slice of a tier.
    pub fn all_slices(&self, tier: usize, rules: &TierRules) -> Vec<(Timestamp, Measure)> {
        let mut slices = Vec::new();
        self.each_slice(tier, rules, Self::EVER, Part::All, |end, sum| slices.push((end, sum)));
        slices
    }

    /// Bounds that leave nothing out.
    pub const EVER: (Timestamp, Timestamp) = (Timestamp(0), Timestamp(u64::MAX));

    /// Every cell of `tier` with its end in `(after, until]`, in order of end.
    pub fn each_cell(
        &self,
        tier: usize,
        rules: &TierRules,
        (after, until): (Timestamp, Timestamp),
        part: Part,
        mut cell: impl FnMut(Timestamp, Place, Measure),
    ) {
        let tier = &self.tiers[tier];
        let (after, until) = (after.max(tier.left), until.min(tier.newest));
        if after >= until {
            return;
        }
        // numbers of the first and the last slice that can be in between
        let (first, last) = (after.0 / rules.slice.0 + 1, until.0 / rules.slice.0);
        let from = tier.blocks.partition_point(|block| block.number() < first / SLICES);
        for block in tier.blocks[from..].iter().take_while(|b| b.number() <= last / SLICES) {
            let base = block.number() * SLICES;
            block.each_cell(|within, place, measure| {
                let number = base + within;
                let place = self.places[place as usize].place;
                let taken = match part {
                    Part::All => true,
                    Part::Fabric(fabric) => place.fabric == fabric,
                };
                if taken && (first..=last).contains(&number) {
                    cell(Timestamp(number * rules.slice.0), place, measure);
                }
            });
        }
    }

    /// The fabrics with a slice in any tier, each once.
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
        left: impl FnMut(Timestamp, Measure),
    ) {
        let before = self.tiers[tier].left;
        if bound <= before {
            return;
        }
        self.each_slice(tier, rules, (before, bound), Part::All, left);
        let tier = &mut self.tiers[tier];
        tier.left = bound;
        let last_slice = |block: &Block| (block.number() + 1) * SLICES - 1;
        let gone = tier.blocks.partition_point(|b| last_slice(b) <= bound.0 / rules.slice.0);
        for block in tier.blocks.drain(..gone) {
            block.each_cell(|_, place, _| {
                let slot = &mut self.places[place as usize];
                slot.cells -= 1;
                if slot.cells == 0
                    && let Some(index) = &mut self.index
                {
                    index.by_place.remove(&slot.place);
                    index.free.push(place);
                }
            });
            tier.removed.push(block.number());
            self.blocks_changed = true;
        }
    }

    /// The end up to which slices of the finest tier have left; state, with what left them.
    pub fn left(&self) -> Timestamp {
        self.tiers[0].left
    }

    pub fn set_left(&mut self, left: Timestamp) {
        self.tiers[0].left = left;
    }

    /// Every name that it refers to, some more than once.
    pub fn names(&self) -> impl Iterator<Item = NameId> {
        self.places.iter().flat_map(|slot| slot.place.names())
    }

    fn place_index(&mut self, place: Place) -> u32 {
        let held = |slot: &PlaceSlot| slot.cells > 0 && slot.place == place;
        let found = if self.places.len() <= FEW_PLACES {
            self.places.iter().position(held)
        } else {
            let index = self.index.get_or_insert_with(|| PlaceIndex::of(&self.places));
            let known = index.by_place.get(&place).map(|index| *index as usize);
            known.filter(|index| held(&self.places[*index]))
        };
        let index = found.unwrap_or_else(|| self.take_place(place));
        u32::try_from(index).expect("fewer than 2^32 places")
    }

    /// A place without cells, or a new one.
    fn take_place(&mut self, place: Place) -> usize {
        self.places_changed = true;
        let is_free = |index: &usize| self.places[*index].cells == 0;
        let free = match &mut self.index {
            None => (0..self.places.len()).find(is_free),
            Some(index) => {
                std::iter::from_fn(|| index.free.pop()).map(|index| index as usize).find(is_free)
            }
        };
        let slot = PlaceSlot { place, cells: 0 };
        let taken = match free {
            Some(free) => {
                self.places[free] = slot;
                free
            }
            None => {
                self.places.push(slot);
                self.places.len() - 1
            }
        };
        if let Some(index) = &mut self.index {
            index.by_place.insert(place, u32::try_from(taken).expect("fewer than 2^32 places"));
        }
        taken
    }
}

impl PlaceIndex {
    fn of(places: &[PlaceSlot]) -> Box<Self> {
        let mut by_place = HashMap::with_hasher(FixedState::default());
        let mut free = Vec::new();
        for (index, slot) in (0u32..).zip(places) {
            if slot.cells == 0 {
                free.push(index);
            } else {
                by_place.insert(slot.place, index);
            }
        }
        Box::new(Self { by_place, free })
    }
}

impl Tier {
    fn block_mut(&mut self, number: u64) -> &mut Block {
        let at = self.blocks.partition_point(|block| block.number() < number);
        if self.blocks.get(at).is_none_or(|block| block.number() != number) {
            self.blocks.insert(at, Block::new(number));
        }
        &mut self.blocks[at]
    }
}

/// The changelog's side: places in the key's head, cells in blocks.
impl Windows {
    /// Blocks were touched since the last `log`.
    pub fn is_changed(&self) -> bool {
        self.blocks_changed
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

    /// Blocks touched since the last call, with their content; `None` when nothing is left. Only
    /// the newest block of a tier stays open.
    pub fn log(&mut self, mut written: impl FnMut(BlockId, Option<&[u8]>)) {
        if !std::mem::take(&mut self.blocks_changed) {
            return;
        }
        for (index, tier) in (0u8..).zip(&mut self.tiers) {
            for number in tier.removed.drain(..) {
                written(BlockId { tier: index, number }, None);
            }
            let newest = tier.blocks.len().saturating_sub(1);
            for (position, block) in tier.blocks.iter_mut().enumerate() {
                let number = block.number();
                block.log(position == newest, |value| {
                    written(BlockId { tier: index, number }, Some(value));
                });
            }
        }
    }

    /// For who keeps no changelog.
    pub fn forget_changes(&mut self) {
        self.log(|_, _| ());
        self.places_changed = false;
    }

    /// Replaces the content of a block.
    pub fn restore(
        &mut self,
        rules: &[TierRules],
        id: BlockId,
        value: Option<&[u8]>,
    ) -> Result<(), StageError> {
        let tier = usize::from(id.tier);
        let rules = rules.get(tier).ok_or_else(|| damaged("a configured tier"))?;
        if id.number > Timestamp::LIMIT.0 / (SLICES * rules.slice.0) {
            return Err(damaged("a block of accepted years"));
        }
        // the last slice of the block that holds cells
        let mut last = None;
        let mut counted = Ok(());
        let take = |value| {
            Block::restore(id.number, value, |within, place| {
                last = last.max(Some(within));
                match self.slot(place) {
                    Ok(slot) => slot.cells += 1,
                    Err(error) => counted = Err(error),
                }
            })
        };
        let block = value.map(take).transpose()?;
        counted?;
        let places = &mut self.places;
        let tier = &mut self.tiers[tier];
        let at = tier.blocks.partition_point(|known| known.number() < id.number);
        if tier.blocks.get(at).is_some_and(|known| known.number() == id.number) {
            let replaced = tier.blocks.remove(at);
            replaced.each_cell(|_, place, _| places[place as usize].cells -= 1);
        }
        if let Some(block) = block {
            tier.blocks.insert(at, block);
        }
        if let Some(within) = last {
            let end = Timestamp((id.number * SLICES + within) * rules.slice.0);
            tier.newest = tier.newest.max(end);
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
