//! Seeded chance in integers, so that a seed gives the same cloud on every machine.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream of chance.
#[derive(Debug, Clone)]
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    /// Streams of one seed are independent: what one draws leaves the others alone.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Evenly from `0..bound`; the bias of the product is below 2^-32 for the bounds used here.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.bits()) * u128::from(bound);
        u64::try_from(product >> 64).expect("a product of 64-bit numbers has 64 high bits")
    }

    /// Evenly from `low..=high`.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    pub(super) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let index = usize::try_from(self.below(choices.len() as u64)).expect("an index");
        &choices[index]
    }

    /// Fisher and Yates.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).expect("an index");
            items.swap(last, other);
        }
    }
}

/// Sixteen of the bits, as `centre` give or take `spread`, kept within 0..=1000.
pub(super) fn permille(bits: u64, lane: u32, centre: u32, spread: u32) -> u16 {
    let chance = u32::try_from(bits >> (16 * lane) & 0xffff).expect("sixteen bits");
    let offset = (chance * (2 * spread + 1)) >> 16;
    u16::try_from((centre + offset).saturating_sub(spread).min(1000)).expect("at most 1000")
}
