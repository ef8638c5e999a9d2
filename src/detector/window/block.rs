//! Eight consecutive slices of one tier: open as cells, or closed as packed bytes.
//!
//! Packed bytes are what the changelog holds, so that a restore takes them as they are. They hold
//! differences from cell to cell: steady usage takes a few bytes a slice.

use super::super::StageError;
use super::super::changelog::{Reader, Writer, damaged};
use super::super::measure::Measure;

/// Slices per block: a commit writes the blocks that it touched.
pub(super) const SLICES: u64 = 8;

/// Changelogs of this format hold whole sums.
const FIRST_FORMAT: u8 = 1;

/// A block that is added to.
#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) number: u64,
    /// In order of slice and place.
    pub(super) cells: Vec<Cell>,
    /// Since the last log.
    pub(super) changed: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    /// The slice within the block.
    pub(super) within: u8,
    pub(super) place: u32,
    pub(super) measure: Measure,
}

/// What an addition did to a cell.
pub(super) struct Added {
    pub(super) is_new: bool,
    pub(super) before: Measure,
    pub(super) after: Measure,
}

/// A block at rest.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) number: u64,
    packed: Box<[u8]>,
}

impl Open {
    pub(super) fn new(number: u64) -> Self {
        Self { number, ..Self::default() }
    }

    pub(super) fn add(&mut self, within: u64, place: u32, measure: Measure) -> Added {
        let within = u8::try_from(within).expect("a slice within its block");
        self.changed = true;
        let newest = self.cells.len().wrapping_sub(1);
        let found = match self.cells.last() {
            Some(cell) if (cell.within, cell.place) == (within, place) => Ok(newest),
            Some(_) | None => {
                self.cells.binary_search_by_key(&(within, place), |c| (c.within, c.place))
            }
        };
        match found {
            Ok(at) => {
                let before = self.cells[at].measure;
                self.cells[at].measure += measure;
                Added { is_new: false, before, after: self.cells[at].measure }
            }
            Err(at) => {
                self.cells.insert(at, Cell { within, place, measure });
                Added { is_new: true, before: Measure::ZERO, after: measure }
            }
        }
    }

    pub(super) fn close(&self) -> Closed {
        Closed { number: self.number, packed: self.encode().into() }
    }

    /// As the changelog holds it, and memory once it is closed.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        let mut before = Measure::ZERO;
        for cell in &self.cells {
            writer.unsigned(u64::from(cell.place) * SLICES + u64::from(cell.within));
            let mut change = cell.measure;
            change -= before;
            writer.measure(&change);
            before = cell.measure;
        }
        writer.finish()
    }

    /// The changelog's bytes of format 1, which has whole sums by slice.
    fn decode_first_format(number: u64, bytes: &[u8]) -> Result<Self, StageError> {
        let mut reader = Reader::new(bytes)?;
        let mut open = Self::new(number);
        let mut next = 0;
        while !reader.is_empty() {
            let within = reader.number()?;
            if !(next..SLICES).contains(&within) {
                return Err(damaged("slices of the block, in order"));
            }
            next = within + 1;
            let within = u8::try_from(within).expect("one of eight");
            for _ in 0..reader.small()? {
                let (place, measure) = (reader.small()?, reader.measure()?);
                open.cells.push(Cell { within, place, measure });
            }
        }
        Ok(open)
    }
}

impl Closed {
    pub(super) fn open(&self) -> Open {
        let mut open = Open::new(self.number);
        self.each_cell(|cell| open.cells.push(cell));
        open
    }

    pub(super) fn each_cell(&self, cell: impl FnMut(Cell)) {
        read_cells(&self.packed, cell).expect("packed by ourselves or checked when taken in");
    }

    /// Takes the changelog's bytes as they are, if they are sound; `cell` is told of each.
    pub(super) fn restore(
        number: u64,
        bytes: &[u8],
        cell: impl FnMut(Cell),
    ) -> Result<Self, StageError> {
        if bytes.first() == Some(&FIRST_FORMAT) {
            let open = Open::decode_first_format(number, bytes)?;
            open.cells.iter().copied().for_each(cell);
            return Ok(open.close());
        }
        read_cells(bytes, cell)?;
        Ok(Self { number, packed: bytes.into() })
    }
}

/// Place and slice in one number, then the difference to the sums of the cell before.
#[inline]
fn read_cells(bytes: &[u8], mut cell: impl FnMut(Cell)) -> Result<(), StageError> {
    let mut reader = Reader::new(bytes)?;
    let mut measure = Measure::ZERO;
    let mut before = None;
    while !reader.is_empty() {
        let place_and_slice = reader.number()?;
        // of two plausible sums, so that adding cannot overflow
        measure += reader.measure()?;
        let within = u8::try_from(place_and_slice % SLICES).expect("one of eight");
        let place = u32::try_from(place_and_slice / SLICES).map_err(|_| damaged("a place"))?;
        if before >= Some((within, place)) || !measure.is_plausible() {
            return Err(damaged("cells of the block, in order"));
        }
        before = Some((within, place));
        cell(Cell { within, place, measure });
    }
    Ok(())
}
