//! Tells of most identities that no bucket holds them, at the cost of one cache line.
//!
//! A line has a lane of 128 bits for each of four generations, a generation being half a horizon
//! of buckets. What is alive spans three at most, so the fourth can be emptied in time.

use super::Identity;

const LANES: u64 = 4;
/// Identities of one generation for each line: three bits each in one word of a lane, one in 40
/// found in error at the most.
const LOAD: usize = 10;
const LEAST: usize = 64;

#[derive(Debug)]
pub(super) struct Filter {
    /// A power of two of lines.
    lines: Vec<Line>,
    /// Buckets in a generation.
    generation: u64,
    /// The newest generation, and the identities of each lane.
    newest: u64,
    filled: [usize; 4],
}

/// One line of the cache: two words for each lane.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Line([[u64; 4]; 2]);

/// Where an identity's bits are, in every lane.
#[derive(Debug, Clone, Copy)]
struct Place {
    line: usize,
    word: usize,
    bits: u64,
}

/// Which lanes of a line hold an identity's bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes([bool; 4]);

impl Lanes {
    pub(super) fn is_none(self) -> bool {
        self.0 == [false; 4]
    }
}

impl Filter {
    /// For a horizon of this many buckets.
    pub(super) fn new(buckets: u64) -> Self {
        let lines = vec![Line::default(); LEAST];
        Self { lines, generation: buckets.div_ceil(2), newest: 0, filled: [0; 4] }
    }

    /// Whether a horizon of this many identities would soon make it too small.
    pub(super) fn is_small_for(&self, identities: usize) -> bool {
        identities / 2 > self.lines.len() * LOAD
    }

    /// Empties it, with room for this many identities.
    pub(super) fn clear(&mut self, identities: usize) {
        // half a horizon holds half of them, and some more are to come
        let lines = (identities / LOAD + 1).next_power_of_two().max(LEAST);
        self.lines.clear();
        self.lines.resize(lines, Line::default());
        self.filled = [0; 4];
    }

    /// Reads the identity's line.
    pub(super) fn approach(&self, identity: Identity) -> u64 {
        self.lines[self.place(identity).line].0[0][0]
    }

    /// The lanes of the buckets that may hold the identity.
    pub(super) fn lanes_of(&self, identity: Identity) -> Lanes {
        let Place { line, word, bits } = self.place(identity);
        Lanes(self.lines[line].0[word].map(|lane| lane & bits == bits))
    }

    pub(super) fn is_in(&self, bucket: u64, Lanes(lanes): Lanes) -> bool {
        lanes[lane(bucket / self.generation)]
    }

    /// Adds an identity of a bucket; true when it must be made larger first: fill it anew.
    pub(super) fn add(&mut self, bucket: u64, identity: Identity) -> bool {
        let generation = bucket / self.generation;
        while self.newest < generation {
            // nothing that far back is within the horizon any more
            self.newest =
                if generation - self.newest > LANES { generation - LANES } else { self.newest + 1 };
            let lane = lane(self.newest);
            for line in &mut self.lines {
                line.0.iter_mut().for_each(|words| words[lane] = 0);
            }
            self.filled[lane] = 0;
        }
        let lane = lane(generation);
        let Place { line, word, bits } = self.place(identity);
        self.lines[line].0[word][lane] |= bits;
        self.filled[lane] += 1;
        self.filled[lane] > self.lines.len() * LOAD
    }

    #[expect(clippy::cast_possible_truncation, reason = "bits of a hash")]
    fn place(&self, identity: Identity) -> Place {
        let hash = identity.0 as u64;
        let bit = |shift: u32| 1_u64 << ((hash >> shift) & 63);
        // in the order of a table's slots, so that filling it from tables goes from line to line
        let upper = (identity.0 >> 16) as u64;
        let line = (upper >> 1 >> (63 - self.lines.len().trailing_zeros())) as usize;
        Place { line, word: (hash >> 18) as usize & 1, bits: bit(0) | bit(6) | bit(12) }
    }
}

fn lane(generation: u64) -> usize {
    (generation % LANES) as usize
}
