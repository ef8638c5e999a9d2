//! Slices of compute in tiers, by region, fabric and accelerator, for one account, owner or
//! country; windows are runs of slices.
//!
//! Slices stand in blocks of eight. The block that is added to is open, as cells; one that nothing
//! adds to is closed, as packed bytes. A late sum opens its block until the next commit.
//!
//! Invariants: a cell's measure is the exact sum of the parts added to it; a slice that has left
//! its tier is never seen or entered again, though its bytes go only with its block; only blocks
//! touched since the last commit are written; a block is in one place: the tier's open one, among
//! the late, or closed; no sum over cells of a tier exceeds its ceiling.

mod block;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use foldhash::fast::FixedState;

use super::StageError;
use super::changelog::{Reader, Writer, damaged};
use super::measure::Measure;
use super::names::{NameId, Names};
use super::rules::TierRules;
use super::time::{Span, Timestamp};
use block::{Cell, Closed, Open, SLICES};

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
    /// Blocks behind their tier's open one that were added to since the last log, by tier and
    /// number.
    late: Vec<(u8, Open)>,
    /// Blocks that are gone and not yet removed from the changelog.
    removed: Vec<BlockId>,
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
    /// The newest block, while it is added to; without cells there is none.
    open: Open,
    /// In order of number, all before the open one.
    closed: Vec<Closed>,
    /// Slices with ends at or before this have left.
    left: Timestamp,
    /// The greatest end that a slice ever had.
    newest: Timestamp,
    /// The sum of all positive cells, of slices that have left but not gone too.
    ceiling: Measure,
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
        self.late.is_empty() && self.tiers.iter().all(Tier::is_gone)
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
        let block = self.open(tier, slice / SLICES);
        let added = block.add(slice % SLICES, place, measure);
        if added.is_new {
            self.places[place as usize].cells += 1;
        }
        let tier = &mut self.tiers[tier];
        tier.newest = tier.newest.max(end);
        tier.ceiling += added.after.clamped();
        tier.ceiling -= added.before.clamped();
        self.blocks_changed = true;
    }

    /// No sum of cells of `tier`, whichever they are, comes to more.
    pub fn ceiling(&self, tier: usize) -> Measure {
        self.tiers[tier].ceiling
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
        let tier_index = tier;
        let tier = &self.tiers[tier];
        let (after, until) = (after.max(tier.left), until.min(tier.newest));
        if after >= until {
            return;
        }
        // numbers of the first and the last slice that can be in between
        let (first, last) = (after.0 / rules.slice.0 + 1, until.0 / rules.slice.0);
        self.each_block(tier_index, first / SLICES, last / SLICES, |block, found| {
            let number = block * SLICES + u64::from(found.within);
            let place = self.places[found.place as usize].place;
            let taken = match part {
                Part::All => true,
                Part::Fabric(fabric) => place.fabric == fabric,
            };
            if taken && (first..=last).contains(&number) {
                cell(Timestamp(number * rules.slice.0), place, found.measure);
            }
        });
    }

    /// The cells of the blocks of a tier with numbers in `first..=last`, in order, with their
    /// block's number.
    #[inline]
    fn each_block(&self, tier: usize, first: u64, last: u64, mut cell: impl FnMut(u64, Cell)) {
        let mut closed = self.tiers[tier].closed_from(first).take_while(|b| b.number <= last);
        let mut next = closed.next();
        let late = self.late.iter().filter(|(late, _)| usize::from(*late) == tier);
        for open in late.map(|(_, open)| open).chain([&self.tiers[tier].open]) {
            while let Some(block) = next.take_if(|block| block.number < open.number) {
                block.each_cell(|found| cell(block.number, found));
                next = closed.next();
            }
            if (first..=last).contains(&open.number) {
                open.cells.iter().for_each(|found| cell(open.number, *found));
            }
        }
        for block in next.into_iter().chain(closed) {
            block.each_cell(|found| cell(block.number, found));
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
        self.tiers[tier].left = bound;
        // the first block with a slice that stays
        let first = (bound.0 / rules.slice.0 + 1) / SLICES;
        while let Some(gone) = self.take_before(tier, first) {
            self.tiers[tier].forget(&gone);
            gone.cells.iter().for_each(|cell| self.let_go(cell.place));
            let id = BlockId { tier: tier_number(tier), number: gone.number };
            self.removed.push(id);
            self.blocks_changed = true;
        }
    }

    /// Takes out the first block of a tier if its number is below `first`.
    fn take_before(&mut self, tier: usize, first: u64) -> Option<Open> {
        let late = self.late.iter().position(|(late, _)| usize::from(*late) == tier);
        if let Some(late) = late
            && self.late[late].1.number < first
        {
            return Some(self.late.remove(late).1);
        }
        let tier = &mut self.tiers[tier];
        if tier.closed.first().is_some_and(|block| block.number < first) {
            return Some(tier.closed.remove(0).open());
        }
        let is_gone = !tier.open.cells.is_empty() && tier.open.number < first;
        is_gone.then(|| std::mem::take(&mut tier.open))
    }

    /// One cell less refers to the place.
    fn let_go(&mut self, place: u32) {
        let slot = &mut self.places[place as usize];
        slot.cells -= 1;
        if slot.cells == 0
            && let Some(index) = &mut self.index
        {
            index.by_place.remove(&slot.place);
            index.free.push(place);
        }
    }

    /// The block to add to.
    fn open(&mut self, tier_index: usize, number: u64) -> &mut Open {
        let tier = &mut self.tiers[tier_index];
        if tier.open.cells.is_empty() {
            tier.open_newest(number);
        }
        match tier.open.number.cmp(&number) {
            Ordering::Equal => &mut self.tiers[tier_index].open,
            Ordering::Greater => self.open_late(tier_index, number),
            Ordering::Less => {
                let before = std::mem::replace(&mut tier.open, Open::new(number));
                if before.changed {
                    // the next log needs the cells
                    let key = (tier_number(tier_index), before.number);
                    let at = self.late.partition_point(|(tier, open)| (*tier, open.number) < key);
                    self.late.insert(at, (key.0, before));
                } else {
                    tier.close(&before);
                }
                &mut self.tiers[tier_index].open
            }
        }
    }

    fn open_late(&mut self, tier_index: usize, number: u64) -> &mut Open {
        let key = (tier_number(tier_index), number);
        let at = match self.late.binary_search_by_key(&key, |(tier, open)| (*tier, open.number)) {
            Ok(at) => at,
            Err(at) => {
                let closed = self.tiers[tier_index].take_closed(number);
                let open = closed.map_or_else(|| Open::new(number), |closed| closed.open());
                self.late.insert(at, (key.0, open));
                at
            }
        };
        &mut self.late[at].1
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
                if self.places.is_empty() {
                    // most keys have one place for ever
                    self.places.reserve_exact(1);
                }
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

fn tier_number(tier: usize) -> u8 {
    u8::try_from(tier).expect("few tiers")
}

impl Tier {
    fn is_gone(&self) -> bool {
        self.open.cells.is_empty() && self.closed.is_empty()
    }

    /// Opens the newest block if that is `number`, or before it; else a new one.
    fn open_newest(&mut self, number: u64) {
        self.open = match self.closed.pop_if(|newest| newest.number >= number) {
            Some(newest) => newest.open(),
            None => Open::new(number),
        };
    }

    fn closed_from(&self, first: u64) -> impl Iterator<Item = &Closed> {
        self.closed[self.closed.partition_point(|block| block.number < first)..].iter()
    }

    fn take_closed(&mut self, number: u64) -> Option<Closed> {
        let at = self.closed.binary_search_by_key(&number, |block| block.number).ok()?;
        Some(self.closed.remove(at))
    }

    /// Puts a block at rest; memory is taken for it alone, as most keys have few.
    fn close(&mut self, open: &Open) {
        self.closed.reserve_exact(1);
        self.put(open.close());
    }

    fn put(&mut self, block: Closed) {
        let at = self.closed.partition_point(|known| known.number < block.number);
        self.closed.insert(at, block);
    }

    fn close_open(&mut self) {
        if !self.open.cells.is_empty() {
            let open = std::mem::take(&mut self.open);
            self.close(&open);
        }
    }

    /// What goes no longer counts.
    fn forget(&mut self, gone: &Open) {
        for cell in &gone.cells {
            self.ceiling -= cell.measure.clamped();
        }
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
    pub fn log(&mut self, mut written: impl FnMut(BlockId, Option<Vec<u8>>)) {
        if !self.blocks_changed {
            return;
        }
        self.removed.iter().for_each(|id| written(*id, None));
        for (tier, open) in &self.late {
            written(BlockId { tier: *tier, number: open.number }, Some(open.encode()));
        }
        for (index, tier) in (0u8..).zip(&self.tiers) {
            if tier.open.changed {
                let id = BlockId { tier: index, number: tier.open.number };
                written(id, Some(tier.open.encode()));
            }
        }
        self.blocks_logged();
    }

    /// For who keeps no changelog.
    pub fn forget_changes(&mut self) {
        self.places_changed = false;
        if self.blocks_changed {
            self.blocks_logged();
        }
    }

    fn blocks_logged(&mut self) {
        self.blocks_changed = false;
        self.removed = Vec::new();
        for (tier, open) in std::mem::take(&mut self.late) {
            self.tiers[usize::from(tier)].close(&open);
        }
        self.tiers.iter_mut().for_each(|tier| tier.open.changed = false);
    }

    /// Closes what nothing was added to since the last log.
    pub fn rest(&mut self) {
        for tier in self.tiers.iter_mut().filter(|tier| !tier.open.changed) {
            tier.close_open();
        }
    }

    /// Replaces the content of a block, before anything is added.
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
        let (mut ceiling, mut last, mut counted) = (Measure::ZERO, None, Ok(()));
        let take = |value| {
            Closed::restore(id.number, value, |cell| {
                ceiling += cell.measure.clamped();
                last = Some(cell.within);
                match self.slot(cell.place) {
                    Ok(slot) => slot.cells += 1,
                    Err(error) => counted = Err(error),
                }
            })
        };
        let block = value.map(take).transpose()?;
        counted?;
        let tier = &mut self.tiers[tier];
        if let Some(replaced) = tier.take_closed(id.number) {
            let replaced = replaced.open();
            tier.forget(&replaced);
            for cell in &replaced.cells {
                self.places[cell.place as usize].cells -= 1;
            }
        }
        if let Some(block) = block {
            tier.ceiling += ceiling;
            tier.put(block);
        }
        if let Some(last) = last {
            let number = id.number * SLICES + u64::from(last);
            tier.newest = tier.newest.max(Timestamp(number * rules.slice.0));
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
