//! Training runs: active slices of the finest tier that belong together while the gaps between
//! them are short.
//!
//! A run outlives its tier: what has left the tier is carried as one sum. The rest is read from
//! the retained slices at every judgement, so that late usage is seen.

use super::StageError;
use super::changelog::{Reader, Writer};
use super::measure::Measure;
use super::rules::RunRules;
use super::time::{Span, Timestamp};

/// The part of the latest run whose slices have left the finest tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunCarry(Option<Carried>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Carried {
    /// The end of the first active slice.
    first_end: Timestamp,
    /// The end of the last active slice so far.
    last_end: Timestamp,
    sum: Measure,
}

/// A run as judged at one slice end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunView {
    pub start: Timestamp,
    /// From `start` to the judged slice end.
    pub length: Span,
    pub sum: Measure,
}

/// What tells an active slice from an idle one.
#[derive(Debug, Clone, Copy)]
pub struct Activity {
    pub rules: RunRules,
    pub slice: Span,
}

impl Activity {
    #[expect(clippy::cast_precision_loss, reason = "accelerator-milliseconds of a slice < 2^53")]
    fn is_active(&self, measure: &Measure) -> bool {
        let slice_ms = self.slice.0 as f64 / 1e6;
        measure.accelerator_ms as f64 >= self.rules.min_accelerators * slice_ms
    }

    fn belongs(&self, last_end: Timestamp, end: Timestamp) -> bool {
        end.since(last_end) <= self.rules.max_gap
    }
}

impl RunCarry {
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// The next slice leaves the tier: its activity is fixed now.
    pub fn absorb(&mut self, activity: &Activity, end: Timestamp, measure: Measure) {
        let active = activity.is_active(&measure);
        self.0 = match self.0 {
            Some(run) if activity.belongs(run.last_end, end) => {
                let mut run = run;
                run.sum += measure;
                if active {
                    run.last_end = end;
                }
                Some(run)
            }
            Some(_) | None if active => {
                Some(Carried { first_end: end, last_end: end, sum: measure })
            }
            Some(_) | None => None,
        };
    }

    /// No slice at or before `left` is retained: a run that ended too long before is over.
    pub fn forget(&mut self, activity: &Activity, left: Timestamp) {
        if self.0.is_some_and(|run| !activity.belongs(run.last_end, left)) {
            self.0 = None;
        }
    }

    /// A sum for a slice that has left the tier: inside the run it adds FLOP, nothing else.
    pub fn add_late(&mut self, end: Timestamp, measure: Measure) -> bool {
        match &mut self.0 {
            Some(run) if run.first_end <= end => {
                run.sum += measure;
                true
            }
            Some(_) | None => false,
        }
    }

    /// The run at the judged slice end `at`, once the retained slices up to `at` are absorbed too.
    pub fn view(&self, activity: &Activity, at: Timestamp) -> Option<RunView> {
        let run = self.0.filter(|run| activity.belongs(run.last_end, at))?;
        let start = run.first_end.minus(activity.slice);
        Some(RunView { start, length: at.since(start), sum: run.sum })
    }

    pub fn write(&self, writer: &mut Writer) {
        writer.flag(self.0.is_some());
        if let Some(run) = &self.0 {
            writer.time(run.first_end);
            writer.time(run.last_end);
            writer.measure(&run.sum);
        }
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        if !reader.flag()? {
            return Ok(Self(None));
        }
        Ok(Self(Some(Carried {
            first_end: reader.time()?,
            last_end: reader.time()?,
            sum: reader.measure()?,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVITY: Activity = Activity {
        rules: RunRules { min_accelerators: 64.0, max_gap: Span::hours(72) },
        slice: Span::hours(1),
    };

    fn hour(number: u64) -> Timestamp {
        Timestamp::EARLIEST.plus(Span::hours(number))
    }

    fn slice(number: u64, accelerators: i128) -> (Timestamp, Measure) {
        let measure = Measure {
            accelerator_ms: accelerators * 3_600_000,
            flop: accelerators,
            ..Measure::ZERO
        };
        (hour(number), measure)
    }

    fn view(slices: &[(Timestamp, Measure)], at: u64) -> Option<RunView> {
        after(RunCarry::default(), slices).view(&ACTIVITY, hour(at))
    }

    fn after(mut run: RunCarry, slices: &[(Timestamp, Measure)]) -> RunCarry {
        for &(end, measure) in slices {
            run.absorb(&ACTIVITY, end, measure);
        }
        run
    }

    #[test]
    fn a_gap_of_exactly_the_limit_joins_and_one_hour_more_parts() {
        let joined = view(&[slice(10, 64), slice(82, 64)], 82).expect("one run");
        assert_eq!((joined.start, joined.length), (hour(9), Span::hours(73)));
        let parted = view(&[slice(10, 64), slice(83, 64)], 83).expect("the second run");
        assert_eq!(parted.start, hour(82));
    }

    #[test]
    fn idle_slices_inside_a_run_add_their_flop() {
        let run = view(&[slice(10, 64), slice(11, 63), slice(12, 64)], 13).expect("a run");
        assert_eq!(run.sum.flop, 191);
        assert_eq!(run.length, Span::hours(4));
    }

    #[test]
    fn a_run_is_over_when_its_last_active_slice_is_more_than_the_gap_ago() {
        assert!(view(&[slice(10, 64)], 82).is_some());
        assert!(view(&[slice(10, 64)], 83).is_none());
    }

    #[test]
    fn a_carried_run_survives_the_changelog() {
        let carry = after(RunCarry::default(), &[3, 4, 30].map(|number| slice(number, 70)));
        let mut writer = Writer::default();
        carry.write(&mut writer);
        let bytes = writer.finish();
        let read = RunCarry::read(&mut Reader::new(&bytes).expect("own version"));
        assert_eq!(read, Ok(carry));
    }

    #[test]
    fn late_usage_before_the_run_adds_nothing() {
        let mut carry = RunCarry::default();
        carry.absorb(&ACTIVITY, hour(10), slice(10, 64).1);
        assert!(!carry.add_late(hour(9), slice(9, 64).1));
        assert!(carry.add_late(hour(10), slice(10, 1).1));
    }
}
