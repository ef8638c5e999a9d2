//! One threshold of one policy over a range: `policy.condition=from..to/steps`.

use serde::Serialize;

use super::score::Score;
use crate::detector::policy::{Metric, Mode, Policy};

/// More would be a table that nobody reads, and a pass that takes hours.
const MOST: u32 = 200;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sweep {
    policy: String,
    /// A metric's name, or its place from 1.
    condition: String,
    from: f64,
    to: f64,
    steps: u32,
}

/// A threshold, and what it comes to.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Step {
    pub(super) at_least: f64,
    pub(super) keys: usize,
    pub(super) alerts: usize,
    pub(super) score: Option<Score>,
}

pub(super) fn parse(text: &str) -> Result<Sweep, String> {
    const RIGHT: &str = "wanted policy.condition=from..to/steps, such as \
                         us-large-training.flop_high=1e22..1e24/9";
    let parts = || {
        let (name, range) = text.split_once('=')?;
        let (policy, condition) = name.rsplit_once('.')?;
        let (from, rest) = range.split_once("..")?;
        let (to, steps) = rest.rsplit_once('/')?;
        Some((policy, condition, from, to, steps))
    };
    let (policy, condition, from, to, steps) = parts().ok_or(RIGHT)?;
    let number = |text: &str| text.trim().parse::<f64>().map_err(|_| RIGHT.to_owned());
    let (from, to) = (number(from)?, number(to)?);
    let steps = steps.trim().parse::<u32>().map_err(|_| RIGHT.to_owned())?;
    if !(from > 0.0 && from < to && to.is_finite()) {
        return Err("thresholds must be above 0, the first below the last".to_owned());
    }
    if !(2..=MOST).contains(&steps) {
        return Err(format!("steps must be from 2 to {MOST}"));
    }
    let (policy, condition) = (policy.trim().to_owned(), condition.trim().to_owned());
    Ok(Sweep { policy, condition, from, to, steps })
}

impl Sweep {
    pub(super) fn title(&self) -> String {
        format!("{}.{}", self.policy, self.condition)
    }

    /// Even in the logarithm from a factor of ten on, both ends included; four digits in between.
    pub(super) fn is_logarithmic(&self) -> bool {
        self.to / self.from >= 10.0
    }

    pub(super) fn thresholds(&self) -> Vec<f64> {
        let last = self.steps - 1;
        let step = |step: u32| {
            let share = f64::from(step) / f64::from(last);
            let value = if self.is_logarithmic() {
                self.from * (self.to / self.from).powf(share)
            } else {
                self.from + (self.to - self.from) * share
            };
            match step {
                0 => self.from,
                step if step == last => self.to,
                _ => format!("{value:.3e}").parse().unwrap_or(value),
            }
        };
        (0..self.steps).map(step).collect()
    }

    /// The policy with each threshold, from the first set that has it.
    pub(super) fn policies(&self, sets: &[Vec<Policy>]) -> Result<Vec<Policy>, String> {
        let known = sets.iter().flatten().find(|policy| policy.id == self.policy);
        let policy =
            known.ok_or_else(|| format!("--sweep: no policy is named {:?}", self.policy))?;
        let conditions = &policy.conditions;
        let index = self.place(policy)?;
        if matches!(conditions[index].metric, Metric::Sustained { .. }) && self.to > 1.0 {
            return Err("--sweep: sustained is a share: right would be at most 1".to_owned());
        }
        let with = |at_least: f64| {
            let mut policy = Policy { mode: Mode::Live, ..policy.clone() };
            policy.conditions[index].at_least = at_least;
            policy
        };
        Ok(self.thresholds().into_iter().map(with).collect())
    }

    /// The threshold in force, if the current policies have the condition.
    pub(super) fn in_force(&self, current: &[Policy]) -> Option<f64> {
        let policy = current.iter().find(|policy| policy.id == self.policy)?;
        Some(policy.conditions[self.place(policy).ok()?].at_least)
    }

    /// Which condition is meant.
    fn place(&self, policy: &Policy) -> Result<usize, String> {
        let conditions = &policy.conditions;
        let names: Vec<&str> = conditions.iter().map(|condition| condition.metric.name()).collect();
        let by_name: Vec<usize> =
            (0..names.len()).filter(|index| names[*index] == self.condition).collect();
        let by_place = self.condition.parse::<usize>().ok();
        match (by_name.as_slice(), by_place) {
            ([index], _) => Ok(*index),
            ([], Some(place)) if (1..=names.len()).contains(&place) => Ok(place - 1),
            ([], _) => Err(format!(
                "--sweep: {} has no condition {:?}: right would be one of {}",
                self.policy,
                self.condition,
                names.join(", ")
            )),
            (_, _) => Err(format!(
                "--sweep: {} has {} twice: right would be its place from 1, as {}.2",
                self.policy, self.condition, self.policy
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_read_with_dots_in_the_policy_and_ends_where_it_says() {
        let sweep = parse("a.b.flop_high=1e22..1e24/5").expect("a sweep");
        assert_eq!((sweep.policy.as_str(), sweep.condition.as_str()), ("a.b", "flop_high"));
        assert_eq!(sweep.thresholds(), [1e22, 3.162e22, 1e23, 3.162e23, 1e24]);
        let sweep = parse("p.1=0.5..0.9/3").expect("a sweep");
        assert_eq!(sweep.thresholds(), [0.5, 0.7, 0.9]);
    }

    #[test]
    fn what_is_no_sweep_is_refused() {
        for text in
            ["", "p=1..2/3", "p.c=1..2", "p.c=2..1/3", "p.c=0..1/3", "p.c=1..2/1", "p.c=x..2/3"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
