//! Windows against a plain map of cells, through additions in any order, logs, rests and expiry.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const RULES: TierRules = TierRules { slice: Span::hours(1), keep: Span::hours(40) };

#[derive(Debug, Clone)]
enum Act {
    Add { hour: u64, place: u32, amount: i128 },
    Log,
    Forget,
    Rest,
    Expire { hours: u64 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        12 => (0u64..60, 0u32..20, -40i128..100).prop_map(|(hour, place, amount)| Act::Add {
            hour,
            place,
            amount
        }),
        3 => Just(Act::Log),
        1 => Just(Act::Forget),
        2 => Just(Act::Rest),
        2 => (1u64..9).prop_map(|hours| Act::Expire { hours }),
    ];
    proptest::collection::vec(act, 1..120)
}

/// The plain map, and what the changelog holds.
#[derive(Default)]
struct Model {
    cells: BTreeMap<(u64, u32), Measure>,
    left: u64,
    changelog: BTreeMap<BlockId, Vec<u8>>,
}

fn measure(amount: i128) -> Measure {
    Measure { accelerator_ms: amount, flop: amount * 3, flop_allocated: 7, ..Measure::ZERO }
}

fn end(hour: u64) -> Timestamp {
    Timestamp(0).plus(Span::hours(hour))
}

fn place(number: u32) -> Place {
    Place { fabric: NameId(number), ..Place::default() }
}

impl Model {
    fn act(&mut self, windows: &mut Windows, act: &Act) {
        match *act {
            Act::Add { hour, place: number, amount } => {
                let hour = self.left + 1 + hour;
                windows.add(0, &RULES, end(hour), place(number), measure(amount));
                *self.cells.entry((hour, number)).or_default() += measure(amount);
            }
            Act::Log => windows.log(|id, value| match value {
                Some(value) => {
                    self.changelog.insert(id, value);
                }
                None => {
                    self.changelog.remove(&id);
                }
            }),
            Act::Forget => windows.forget_changes(),
            Act::Rest => windows.rest(),
            Act::Expire { hours } => {
                let mut left = BTreeMap::new();
                windows.expire(0, &RULES, end(self.left + hours), |end, sum| {
                    left.insert(end, sum);
                });
                assert_eq!(left, self.slices(self.left, self.left + hours));
                self.left += hours;
                let gone = (self.left + 1) / SLICES * SLICES;
                self.cells.retain(|(hour, _), _| *hour >= gone);
            }
        }
    }

    fn slices(&self, after: u64, until: u64) -> BTreeMap<Timestamp, Measure> {
        let mut slices: BTreeMap<Timestamp, Measure> = BTreeMap::new();
        let after = after.max(self.left);
        for ((hour, _), measure) in &self.cells {
            if (after + 1..=until).contains(hour) {
                *slices.entry(end(*hour)).or_default() += *measure;
            }
        }
        slices
    }

    fn compare(&self, windows: &Windows) {
        let all: BTreeMap<_, _> = windows.all_slices(0, &RULES).into_iter().collect();
        assert_eq!(all, self.slices(0, u64::MAX - 1));
        assert_eq!(windows.is_empty(), all.is_empty() && self.newest_left());
        for length in [1, 5, 13, 40] {
            let until = self.left + 50;
            let mut expected = Measure::ZERO;
            self.slices(until - length, until).values().for_each(|sum| expected += *sum);
            let bounds = (end(until - length), end(until));
            assert_eq!(windows.sum(0, &RULES, bounds, Part::All), expected);
        }
        let mut ceiling = Measure::ZERO;
        self.cells.values().for_each(|measure| ceiling += measure.clamped());
        assert_eq!(windows.ceiling(0), ceiling);
    }

    fn newest_left(&self) -> bool {
        self.cells.keys().all(|(hour, _)| *hour <= self.left)
    }
}

fn restored(windows: &mut Windows, model: &Model, names: &mut Names) -> Windows {
    let mut writer = Writer::default();
    windows.write_places(names, &mut writer);
    let head = writer.finish();
    let mut restored = Windows::new(1);
    for (id, value) in &model.changelog {
        restored.restore(&[RULES], *id, Some(value)).expect("own state");
    }
    let mut reader = Reader::new(&head).expect("own version");
    restored.read_places(names, &mut reader).expect("own state");
    restored.set_left(windows.left());
    restored
}

proptest! {
    #[test]
    fn windows_hold_what_was_added_whatever_is_open_closed_logged_or_gone(acts in acts()) {
        let mut names = Names::default();
        (1..20).for_each(|number| assert_eq!(names.intern(&format!("{number}")), NameId(number)));
        let (mut windows, mut model) = (Windows::new(1), Model::default());
        for act in &acts {
            // what a changelog was not told stays out of it: such shells keep none
            if !matches!(act, Act::Forget) {
                model.act(&mut windows, act);
                model.compare(&windows);
            }
        }
        model.act(&mut windows, &Act::Log);
        model.compare(&restored(&mut windows, &model, &mut names));
    }

    #[test]
    fn a_shell_without_a_changelog_sees_the_same_windows(acts in acts()) {
        let (mut windows, mut model) = (Windows::new(1), Model::default());
        for act in &acts {
            model.act(&mut windows, act);
            model.compare(&windows);
        }
    }
}
