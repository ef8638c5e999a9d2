//! Training runs: active slices of the finest tier that belong together while the gaps between
//! them are short.
//!
//! A run outlives its tier: what has left the tier is carried as one sum. The rest is read from
//! the retained slices, each once: what a judgement has read is kept for the next, until usage
//! comes late for a slice that was read.

use super::StageError;
use super::changelog::{Reader, Writer};
use super::measure::Measure;
use super::rules::RunRules;
use super::time::{Span, Timestamp};

/// The latest run of a key.
#[derive(Debug, Default)]
pub struct Runs {
    /// The part whose slices have left the finest tier: state.
    pub carry: RunCarry,
    /// The carry and the retained slices that end at or before `until`: found again when lost.
    read: RunCarry,
    /// Nothing has been read: 0.
    until: Timestamp,
}

impl Runs {
    pub fn of(carry: RunCarry) -> Self {
        Self { carry, ..Self::default() }
    }

    /// `each_slice` hands on the retained slices with ends in the given bounds, in order.
    pub fn at(
        &mut self,
        activity: &Activity,
        at: Timestamp,
        each_slice: impl FnOnce((Timestamp, Timestamp), &mut dyn FnMut(Timestamp, Measure)),
    ) -> Option<RunView> {
        if self.until == Timestamp::default() {
            self.read.clone_from(&self.carry);
        }
        let read = &mut self.read;
        each_slice((self.until, at), &mut |end, measure| {
            read.absorb(activity, end, measure);
        });
        self.until = at;
        self.read.view(activity, at)
    }

    /// The slice that ends at `end`, or what had left the tier by then, is another than was read.
    pub fn changed(&mut self, end: Timestamp) {
        if end <= self.until {
            self.forget_read();
        }
    }

    pub fn forget_read(&mut self) {
        self.read = RunCarry::default();
        self.until = Timestamp::default();
    }
}

/// A run up to some slice, as one sum.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunCarry(Option<Box<Carried>>);

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
    /// Monotone: a slice with no more accelerator time than an idle one is idle.
    #[expect(clippy::cast_precision_loss, reason = "accelerator-milliseconds of a slice < 2^53")]
    pub fn is_active(&self, measure: &Measure) -> bool {
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

    /// What the run comes to so far; nothing without one.
    pub fn sum(&self) -> Measure {
        self.0.as_ref().map_or(Measure::ZERO, |run| run.sum)
    }

    /// The next slice leaves the tier: its activity is fixed now. Whether anything changed is
    /// returned.
    pub fn absorb(&mut self, activity: &Activity, end: Timestamp, measure: Measure) -> bool {
        let active = activity.is_active(&measure);
        match &mut self.0 {
            Some(run) if activity.belongs(run.last_end, end) => {
                run.sum += measure;
                if active {
                    run.last_end = end;
                }
                active || !measure.is_zero()
            }
            run => {
                let was_some = run.is_some();
                let carried = Carried { first_end: end, last_end: end, sum: measure };
                *run = active.then(|| Box::new(carried));
                active || was_some
            }
        }
    }

    /// No slice at or before `left` is retained: a run that ended too long before is over.
    pub fn forget(&mut self, activity: &Activity, left: Timestamp) -> bool {
        let over = self.0.as_ref().is_some_and(|run| !activity.belongs(run.last_end, left));
        if over {
            self.0 = None;
        }
        over
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
        let run = self.0.as_ref().filter(|run| activity.belongs(run.last_end, at))?;
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
        Ok(Self(Some(Box::new(Carried {
            first_end: reader.time()?,
            last_end: reader.time()?,
            sum: reader.measure()?,
        }))))
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

    /// What `Runs` says at `at` of these slices.
    fn runs_at(runs: &mut Runs, slices: &[(Timestamp, Measure)], at: u64) -> Option<RunView> {
        runs.at(&ACTIVITY, hour(at), |(after, until), slice| {
            let inside = slices.iter().filter(|(end, _)| (after < *end) && (*end <= until));
            inside.for_each(|&(end, measure)| slice(end, measure));
        })
    }

    #[test]
    fn a_run_that_is_read_hour_by_hour_is_the_one_read_at_once() {
        let mut runs = Runs::default();
        let mut slices: Vec<_> = [10, 11, 50, 122, 130].map(|number| slice(number, 64)).into();
        for at in 10..300 {
            assert_eq!(runs_at(&mut runs, &slices, at), view_until(&slices, at), "hour {at}");
            if at == 60 {
                slices[1].1.flop += 7;
                runs.changed(hour(11));
            }
        }
    }

    fn view_until(slices: &[(Timestamp, Measure)], at: u64) -> Option<RunView> {
        let count = slices.partition_point(|(end, _)| *end <= hour(at));
        view(&slices[..count], at)
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
