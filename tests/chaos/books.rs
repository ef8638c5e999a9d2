//! What was found beside what a clean replay makes of the same usage, record by record.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::deployment::Struck;
use crate::schedule::Fault;
use crate::world::Outcome;

/// The outcome of a deployment, and what it should be.
pub(crate) struct Books {
    /// Usage records that the topic held.
    pub(crate) records: usize,
    pub(crate) expected: Outcome,
    pub(crate) found: Outcome,
    /// The last line of each process that ended by itself and was started again.
    pub(crate) ended: Vec<String>,
}

/// How many are missing and how many are there too often.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    lost: usize,
    repeated: usize,
}

/// Compares two lists as sets with repetition.
fn difference<T: Ord>(
    expected: impl Iterator<Item = T>,
    found: impl Iterator<Item = T>,
) -> Difference {
    let mut balance: BTreeMap<T, i64> = BTreeMap::new();
    for item in expected {
        *balance.entry(item).or_default() -= 1;
    }
    for item in found {
        *balance.entry(item).or_default() += 1;
    }
    let count = |sign: i64| balance.values().map(|n| (n * sign).max(0)).sum::<i64>();
    let small = |count| usize::try_from(count).expect("a count");
    Difference { lost: small(count(-1)), repeated: small(count(1)) }
}

fn alerts(outcome: &Outcome) -> impl Iterator<Item = (&str, &[u8], &str)> {
    outcome.alerts.iter().flat_map(|((topic, key), values)| {
        values.iter().map(|value| (topic.as_str(), key.as_slice(), value.as_str()))
    })
}

/// A sum that differs is one lost and one repeated.
fn sums(outcome: &Outcome) -> impl Iterator<Item = (&str, u64, [i128; 4])> {
    outcome.sums.iter().map(|((account, end), sum)| {
        let sum = [sum.accelerator_ms, sum.flop, sum.flop_allocated, sum.flop_theoretical];
        (account.as_str(), end.0, sum)
    })
}

fn slices(outcome: &Outcome) -> impl Iterator<Item = (&str, &str, u64, [i128; 4])> {
    outcome.ledger.iter().map(|((scope, key, end), sum)| {
        let sum = [sum.accelerator_ms, sum.flop, sum.flop_allocated, sum.flop_theoretical];
        (*scope, key.as_str(), end.0, sum)
    })
}

impl Books {
    fn differences(&self) -> [(&'static str, usize, Difference); 4] {
        let (expected, found) = (&self.expected, &self.found);
        let letters = |outcome: &Outcome| outcome.dead_letters.clone().into_iter();
        [
            (
                "alert revisions",
                alerts(expected).count(),
                difference(alerts(expected), alerts(found)),
            ),
            (
                "dead letters",
                expected.dead_letters.len(),
                difference(letters(expected), letters(found)),
            ),
            (
                "sums by account and slice",
                expected.sums.len(),
                difference(sums(expected), sums(found)),
            ),
            ("restored slices", expected.ledger.len(), difference(slices(expected), slices(found))),
        ]
    }

    /// Fails with the first kind of record that differs.
    pub(crate) fn balance(&self, replayed_by: &str) {
        for (name, _, difference) in self.differences() {
            assert_eq!(difference, Difference::default(), "{name} differ, {replayed_by}");
        }
        // and in the order in which they were published
        assert!(self.found == self.expected, "the order of revisions differs, {replayed_by}");
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!("{} usage records\n", self.records);
        for (name, expected, Difference { lost, repeated }) in self.differences() {
            writeln!(text, "{name:26} {expected:8}  lost {lost}  repeated {repeated}")
                .expect("text grows");
        }
        let ended = &self.ended;
        writeln!(text, "{} processes ended by themselves and were started again", ended.len())
            .expect("text grows");
        for line in ended {
            writeln!(text, "  {line}").expect("text grows");
        }
        text
    }
}

/// By kind of fault: how often it struck, in how many of these a partition was heard of again
/// before the next fault, how long that took from the strike on, and the longest silence.
pub(crate) fn survived(struck: &[Struck]) -> String {
    let mut text = String::from(
        "\nfault              struck  recovered before the next  median s  longest s  silence s\n",
    );
    let mut kinds: BTreeMap<Fault, Vec<&Struck>> = BTreeMap::new();
    for one in struck {
        kinds.entry(one.fault).or_default().push(one);
    }
    for (fault, struck) in kinds {
        let recoveries = struck.iter().filter_map(|one| one.recovery);
        let mut seconds: Vec<f64> = recoveries.map(|taken| taken.as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        let silence = struck.iter().map(|one| one.silence.as_secs_f64()).fold(0.0, f64::max);
        let name = format!("{fault:?}");
        let shown =
            |second: Option<&f64>| second.map_or("-".into(), |second| format!("{second:.1}"));
        writeln!(
            text,
            "{name:18} {:6} {:26} {:>9} {:>10} {silence:10.1}",
            struck.len(),
            seconds.len(),
            shown(seconds.get(seconds.len() / 2)),
            shown(seconds.last()),
        )
        .expect("text grows");
    }
    writeln!(text, "{} faults survived", struck.len()).expect("text grows");
    text
}

#[test]
fn what_is_missing_and_what_is_there_twice_are_counted_apart() {
    let found = difference([1, 1, 2, 3].into_iter(), [1, 2, 2, 4].into_iter());
    assert_eq!(found, Difference { lost: 2, repeated: 2 });
    assert_eq!(difference([1, 1].into_iter(), [1, 1].into_iter()), Difference::default());
}
