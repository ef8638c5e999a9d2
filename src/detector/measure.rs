//! The four integers of an amount of compute, how an event yields them, and how they spread over
//! slices.
//!
//! Sums are exact and order-free: nothing here rounds after the event's own rounding.

use std::ops::{AddAssign, Neg, SubAssign};

use super::time::{SECOND_NS, Span, Timestamp};

/// An amount of compute. FLOP are in GFLOP (1e9). 128 bits: the total of one event and the day of
/// a country exceed 63 bits, and no accepted input can overflow these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measure {
    pub accelerator_ms: i128,
    /// The estimate of operations done.
    pub flop: i128,
    /// What the hardware could do at 16 bit.
    pub flop_allocated: i128,
    /// What the hardware could do at its highest dense rate.
    pub flop_theoretical: i128,
}

impl Measure {
    pub const ZERO: Self =
        Self { accelerator_ms: 0, flop: 0, flop_allocated: 0, flop_theoretical: 0 };

    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The largest event comes to less than 2^85, so that no input reaches 2^100; a damaged sum
    /// that does would make others overflow.
    pub fn is_plausible(&self) -> bool {
        [self.accelerator_ms, self.flop, self.flop_allocated, self.flop_theoretical]
            .iter()
            .all(|value| value.unsigned_abs() < 1 << 100)
    }

    /// Negative sums (more taken back than used) count as nothing in a window.
    pub fn clamped(self) -> Self {
        self.map(|value| value.max(0))
    }

    /// The part that falls before `elapsed` of `length` by cumulative floor, on absolute values.
    fn share(self, elapsed: u64, length: u64) -> Self {
        self.map(|total| {
            let magnitude = total.unsigned_abs();
            let (elapsed, length) = (u128::from(elapsed), u128::from(length));
            // total = whole * length + rest keeps every product below 2^128
            let (whole, rest) = (magnitude / length, magnitude % length);
            let part = whole * elapsed + rest * elapsed / length;
            let part = i128::try_from(part).expect("a share is at most its total");
            if total < 0 { -part } else { part }
        })
    }

    fn map(self, apply: impl Fn(i128) -> i128) -> Self {
        Self {
            accelerator_ms: apply(self.accelerator_ms),
            flop: apply(self.flop),
            flop_allocated: apply(self.flop_allocated),
            flop_theoretical: apply(self.flop_theoretical),
        }
    }
}

impl AddAssign for Measure {
    fn add_assign(&mut self, other: Self) {
        self.accelerator_ms += other.accelerator_ms;
        self.flop += other.flop;
        self.flop_allocated += other.flop_allocated;
        self.flop_theoretical += other.flop_theoretical;
    }
}

impl SubAssign for Measure {
    fn sub_assign(&mut self, other: Self) {
        *self += -other;
    }
}

impl Neg for Measure {
    type Output = Self;

    fn neg(self) -> Self {
        self.map(|value| -value)
    }
}

/// What of an accelerator the arithmetic needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Dense 16-bit peak in FLOP/s.
    pub dense16: f64,
    /// Highest dense peak in FLOP/s.
    pub dense_max: f64,
    /// Plain compute adds FLOP but no accelerator time.
    pub is_cpu: bool,
}

/// The measure of `accelerators` used during `length` at utilisation `utilization` (0..1).
///
/// Each integer is evaluated left to right in f64 and rounded half away from zero, once.
pub fn measure(accelerators: f64, length: Span, peaks: Peaks, utilization: f64) -> Measure {
    #[expect(clippy::cast_precision_loss, reason = "the contract's arithmetic is f64")]
    let seconds = length.0 as f64 / SECOND_NS as f64;
    let used = accelerators * seconds;
    Measure {
        accelerator_ms: if peaks.is_cpu { 0 } else { round(used * 1000.0) },
        flop: round(used * peaks.dense16 * utilization / 1e9),
        flop_allocated: round(used * peaks.dense16 / 1e9),
        flop_theoretical: round(used * peaks.dense_max / 1e9),
    }
}

/// Rounds half away from zero, as `f64::round` does; the result is exact as an integer.
///
/// Below 2^52 the fraction is what the truncated integer leaves, exactly: two instructions in
/// place of two calls.
#[expect(clippy::cast_possible_truncation, reason = "validated events stay below 2^127")]
#[expect(clippy::cast_precision_loss, reason = "below 2^52 nothing is lost")]
fn round(value: f64) -> i128 {
    const EXACT: f64 = (1_u64 << 52) as f64;
    if value.abs() >= EXACT || value.is_nan() {
        return value.round() as i128;
    }
    let whole = value as i64;
    let fraction = value - whole as f64;
    i128::from(whole + i64::from(fraction >= 0.5) - i64::from(fraction <= -0.5))
}

/// Spreads `total` over the slices that `[start, end)` touches, in order: each gets the difference
/// of the cumulative floors at its boundaries, so that the parts add up to the total.
pub fn split(
    total: Measure,
    start: Timestamp,
    end: Timestamp,
    slice: Span,
    mut part: impl FnMut(Timestamp, Measure),
) {
    let length = end.since(start).0;
    let mut given = Measure::ZERO;
    let mut boundary = start.slice_end(slice);
    while boundary < end {
        let share = total.share(boundary.since(start).0, length);
        let mut piece = share;
        piece -= given;
        part(boundary, piece);
        given = share;
        boundary = boundary.plus(slice);
    }
    let mut rest = total;
    rest -= given;
    part(boundary, rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Peaks = Peaks { dense16: 989.4e12, dense_max: 1978.9e12, is_cpu: false };

    fn seconds(value: u64) -> Timestamp {
        Timestamp(value * SECOND_NS)
    }

    #[test]
    fn eight_h100_for_an_hour_at_a_third() {
        let hour = measure(8.0, Span::hours(1), H100, 0.33);
        assert_eq!(hour.accelerator_ms, 8 * 3_600_000);
        assert_eq!(hour.flop_allocated, 28_494_720_000);
        assert_eq!(hour.flop_theoretical, 56_992_320_000);
        assert_eq!(hour.flop, 9_403_257_600);
    }

    #[test]
    fn plain_compute_has_no_accelerator_time() {
        let vcpu = Peaks { dense16: 0.1e12, dense_max: 0.1e12, is_cpu: true };
        let hour = measure(64.0, Span::hours(1), vcpu, 0.5);
        assert_eq!((hour.accelerator_ms, hour.flop_allocated), (0, 23_040_000));
    }

    #[test]
    fn halves_round_away_from_zero() {
        let peaks = Peaks { dense16: 1e9, dense_max: 1e9, is_cpu: false };
        assert_eq!(measure(0.0005, Span::seconds(1), peaks, 1.0).accelerator_ms, 1);
        assert_eq!(measure(-2.5, Span::seconds(1), peaks, 1.0).flop_allocated, -3);
    }

    #[test]
    fn the_parts_of_a_split_are_the_differences_of_floors() {
        let total = Measure { accelerator_ms: 10, flop: -10, ..Measure::ZERO };
        let mut parts = Vec::new();
        split(total, seconds(3000), seconds(12_000), Span::hours(1), |end, part| {
            parts.push((end, part.accelerator_ms, part.flop));
        });
        // shares at 600/9000, 4200/9000 and 7800/9000 of the interval: 0.67, 4.67, 8.67
        assert_eq!(
            parts,
            vec![
                (seconds(3600), 0, 0),
                (seconds(7200), 4, -4),
                (seconds(10_800), 4, -4),
                (seconds(14_400), 2, -2)
            ]
        );
    }

    #[test]
    fn an_interval_that_ends_on_a_boundary_touches_no_slice_after_it() {
        let mut ends = Vec::new();
        split(Measure::ZERO, seconds(3600), seconds(7200), Span::hours(1), |end, _| ends.push(end));
        assert_eq!(ends, vec![seconds(7200)]);
    }
}
