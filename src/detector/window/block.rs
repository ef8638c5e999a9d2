//! Eight consecutive slices of one tier: open for adding, or as the changelog's bytes.

use super::super::StageError;
use super::super::changelog::{Reader, Writer, damaged};
use super::super::measure::Measure;

/// Slices per block: a commit rewrites the blocks that it touched.
pub(super) const SLICES: u64 = 8;

#[derive(Debug)]
pub(super) struct Block {
    number: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Validated when they were taken in, else our own.
    Closed(Box<[u8]>),
    Open(Box<Open>),
}

#[derive(Debug, Default)]
struct Open {
    /// In order of slice and place.
    cells: Vec<Cell>,
    changed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    /// The slice within the block.
    within: u8,
    place: u32,
    measure: Measure,
}

impl Block {
    pub(super) fn new(number: u64) -> Self {
        Self { number, content: Content::Open(Box::default()) }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Adds to a cell; true when there was none.
    pub(super) fn add(&mut self, within: u64, place: u32, measure: Measure) -> bool {
        let within = u8::try_from(within).expect("a slice within its block");
        let open = self.open();
        open.changed = true;
        let found = open.cells.binary_search_by_key(&(within, place), |c| (c.within, c.place));
        match found {
            Ok(at) => open.cells[at].measure += measure,
            Err(at) => open.cells.insert(at, Cell { within, place, measure }),
        }
        found.is_err()
    }

    pub(super) fn each_cell(&self, mut cell: impl FnMut(u64, u32, Measure)) {
        match &self.content {
            Content::Open(open) => {
                for found in &open.cells {
                    cell(u64::from(found.within), found.place, found.measure);
                }
            }
            Content::Closed(bytes) => {
                each_cell(bytes, cell).expect("bytes of a block are validated when taken in");
            }
        }
    }

    /// Hands on the bytes if they changed, and closes the block unless it is to stay open.
    pub(super) fn log(&mut self, stays_open: bool, written: impl FnOnce(&[u8])) {
        let Content::Open(open) = &mut self.content else { return };
        let changed = std::mem::take(&mut open.changed);
        if !changed && stays_open {
            return;
        }
        let bytes = open.encode();
        if changed {
            written(&bytes);
        }
        if !stays_open {
            self.content = Content::Closed(bytes.into());
        }
    }

    /// Takes the changelog's bytes as they are, if they are sound; `cell` is told the slice and
    /// the place of each.
    pub(super) fn restore(
        number: u64,
        bytes: &[u8],
        mut cell: impl FnMut(u64, u32),
    ) -> Result<Self, StageError> {
        each_cell(bytes, |within, place, _| cell(within, place))?;
        Ok(Self { number, content: Content::Closed(bytes.into()) })
    }

    fn open(&mut self) -> &mut Open {
        if let Content::Closed(_) = &self.content {
            let mut open = Box::<Open>::default();
            self.each_cell(|within, place, measure| {
                let within = u8::try_from(within).expect("a slice within its block");
                open.cells.push(Cell { within, place, measure });
            });
            self.content = Content::Open(open);
        }
        match &mut self.content {
            Content::Open(open) => open,
            Content::Closed(_) => unreachable!("opened just before"),
        }
    }
}

impl Open {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        for slice in self.cells.chunk_by(|a, b| a.within == b.within) {
            writer.unsigned(slice[0].within);
            writer.unsigned(slice.len() as u64);
            for cell in slice {
                writer.unsigned(cell.place);
                writer.measure(&cell.measure);
            }
        }
        writer.finish()
    }
}

fn each_cell(bytes: &[u8], mut cell: impl FnMut(u64, u32, Measure)) -> Result<(), StageError> {
    let mut reader = Reader::new(bytes)?;
    let mut next = 0;
    while !reader.is_empty() {
        let within = reader.number()?;
        if !(next..SLICES).contains(&within) {
            return Err(damaged("slices of the block, in order"));
        }
        next = within + 1;
        for _ in 0..reader.small()? {
            cell(within, reader.small()?, reader.measure()?);
        }
    }
    Ok(())
}
