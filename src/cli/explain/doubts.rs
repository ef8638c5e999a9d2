//! What would have to be true for an alert to be wrong: for each of its conditions how far one
//! assumption would have to be off, the others standing.
//!
//! All from the numbers of the rerun: nothing here judges, and nothing here is a likelihood.

use std::collections::BTreeMap;

use super::super::show::{amount, grouped, listed};
use super::rerun::Rerun;
use crate::config::Config;
use crate::detector::alert::{Alert, Sum};
use crate::detector::measure::Measure;
use crate::detector::names::UNKNOWN_PREFIX;
use crate::detector::policy::{Condition, Metric, OriginMatch, Policy, Scope};
use crate::detector::time::Timestamp;
use crate::detector::window::slice_count;

/// One thing that would make the alert wrong.
#[derive(Debug, Clone, serde::Serialize)]
pub(super) struct Doubt {
    /// Place of the condition in the policy, from 1; none: all of them.
    pub(super) condition: Option<usize>,
    pub(super) kind: &'static str,
    /// The share, utilisation or peak at which the condition is no longer met.
    pub(super) bound: Option<f64>,
    pub(super) text: String,
}

pub(super) fn doubts(policy: &Policy, rerun: &Rerun, config: &Config) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    for (index, condition) in policy.conditions.iter().enumerate() {
        let Some(Some(window)) = rerun.windows.get(index) else { continue };
        let seen = Seen { condition, window, rerun, config, scope: policy.scope, index };
        if seen.observed() >= condition.at_least {
            let found = seen.doubts().into_iter();
            doubts.extend(found.map(|doubt| Doubt { condition: Some(index + 1), ..doubt }));
        }
    }
    doubts.extend(rerun.judged.as_ref().map(|judged| origin(policy, judged)));
    doubts
}

/// A condition that was met, with the sums behind it.
struct Seen<'a> {
    condition: &'a Condition,
    /// The condition over its own window.
    window: &'a Alert,
    rerun: &'a Rerun,
    config: &'a Config,
    scope: Scope,
    index: usize,
}

impl Seen<'_> {
    fn observed(&self) -> f64 {
        self.window.conditions.first().map_or(0.0, |observed| observed.observed)
    }

    /// What is left of the observed value where the condition is just met.
    fn left(&self) -> f64 {
        self.condition.at_least / self.observed()
    }

    fn doubts(&self) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        match self.condition.metric {
            Metric::Sustained { accelerators } => doubts.extend(self.sustained(accelerators)),
            Metric::RunHours => {
                let rules = self.config.rules.run;
                doubts.push(doubt(
                    "run",
                    None,
                    format!(
                        "what is one run here was several: it counts as one while at least {} \
                         accelerators come back within {}",
                        grouped(rules.min_accelerators),
                        rules.max_gap
                    ),
                ));
            }
            Metric::Accelerators
            | Metric::AcceleratorHours
            | Metric::Flop
            | Metric::FlopLow
            | Metric::FlopHigh
            | Metric::FlopAllocated
            | Metric::FlopTheoretical
            | Metric::FlopRate
            | Metric::FlopRateTheoretical
            | Metric::RunFlop
            | Metric::RunFlopLow
            | Metric::RunFlopHigh
            | Metric::ProjectedRunFlop { .. } => {
                doubts.push(self.utilization());
                doubts.push(self.excess());
                doubts.extend(self.unknown());
            }
        }
        doubts.extend(self.members());
        doubts
    }

    /// How busy the hardware would have to have been at most.
    fn utilization(&self) -> Doubt {
        let rules = &self.config.rules.utilization;
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let bound = |taken: f64, what: String| {
            let bound = taken * self.left();
            let text = format!(
                "the hardware did less than {} of its 16-bit peak on average ({what} {})",
                percent(bound),
                percent(taken)
            );
            doubt("utilization", Some(bound), text)
        };
        let central = |flop: f64, allocated: f64| {
            bound(flop / allocated, "the estimate, with telemetry where there is any, is".into())
        };
        match self.condition.metric {
            Metric::Flop | Metric::FlopRate => {
                central(self.window.estimate.flop, self.window.estimate.flop_allocated)
            }
            Metric::RunFlop | Metric::ProjectedRunFlop { .. } => match self.window.run {
                Some(run) => central(run.flop, run.flop_high / rules.high),
                None => central(0.0, 1.0),
            },
            Metric::FlopHigh | Metric::RunFlopHigh => {
                bound(rules.high, "the upper end of the band takes".into())
            }
            Metric::FlopLow | Metric::RunFlopLow => {
                bound(rules.low, "the lower end of the band takes".into())
            }
            Metric::Accelerators
            | Metric::AcceleratorHours
            | Metric::FlopAllocated
            | Metric::FlopTheoretical
            | Metric::FlopRateTheoretical
            | Metric::Sustained { .. }
            | Metric::RunHours => doubt(
                "utilization",
                None,
                "no utilisation makes it wrong: it counts what was rented, busy or idle".into(),
            ),
        }
    }

    /// How much of the metered amounts would have to be wrong.
    fn excess(&self) -> Doubt {
        let bound = 1.0 - self.left();
        let tally = &self.rerun.tally;
        let text = format!(
            "more than {:.1} % of the metered amounts stood idle unseen by telemetry, were counted \
             twice under other ids or belonged to somebody else (exact duplicates among the {} \
             events, already left out: {})",
            bound * 100.0,
            tally.read,
            tally.duplicate
        );
        doubt("excess", Some(bound), text)
    }

    /// An accelerator that the catalogue lacks was counted as another.
    fn unknown(&self) -> Option<Doubt> {
        let component = |sum: &Sum| match self.condition.metric {
            Metric::Flop | Metric::FlopRate => Some(sum.flop_gflop),
            Metric::FlopLow | Metric::FlopHigh | Metric::FlopAllocated => {
                Some(sum.flop_allocated_gflop)
            }
            Metric::FlopTheoretical | Metric::FlopRateTheoretical => {
                Some(sum.flop_theoretical_gflop)
            }
            // a run is longer than the window that the shares are of
            Metric::RunFlop
            | Metric::RunFlopLow
            | Metric::RunFlopHigh
            | Metric::ProjectedRunFlop { .. }
            | Metric::Accelerators
            | Metric::AcceleratorHours
            | Metric::Sustained { .. }
            | Metric::RunHours => None,
        };
        let shares = &self.window.evidence.by_accelerator;
        let names: Vec<String> =
            shares.keys().filter(|name| name.starts_with(UNKNOWN_PREFIX)).cloned().collect();
        if names.is_empty() {
            return None;
        }
        let total: f64 = shares.values().filter_map(component).map(to_f64).sum();
        let unknown: f64 =
            names.iter().filter_map(|name| component(&shares[name])).map(to_f64).sum();
        let catalogue = &self.config.rules.catalogue;
        let counted_as = format!(
            "{}, which the catalogue lacks and counts as {}",
            listed(&names),
            catalogue.unknown_key()
        );
        if unknown <= 0.0 || total <= 0.0 {
            let text = format!(
                "{counted_as}, does much less than that (its share above is of the estimate's \
                 window, not of the run)"
            );
            return Some(doubt("unknown-accelerator", None, text));
        }
        let bound = (self.left() * total - (total - unknown)) / unknown;
        if bound <= 0.0 {
            let text = format!("not even if {counted_as}, did nothing at all");
            return Some(doubt("unknown-accelerator", Some(0.0), text));
        }
        let text = format!(
            "{counted_as}, does less than {:.1} % of what that does ({:.1} % of this is of it)",
            bound * 100.0,
            unknown / total * 100.0
        );
        Some(doubt("unknown-accelerator", Some(bound), text))
    }

    fn sustained(&self, accelerators: f64) -> Vec<Doubt> {
        let Some((tier, count)) = self.slices() else { return Vec::new() };
        let slice_ms = tier.slice.as_seconds() * 1e3;
        let slices = &self.window.evidence.slices;
        let mut levels: Vec<f64> =
            slices.iter().map(|slice| to_f64(slice.sum.accelerator_ms) / slice_ms).collect();
        levels.sort_by(|a, b| b.total_cmp(a));
        let busy = levels.iter().filter(|level| **level >= accelerators).count();
        let needed = (1..=count)
            .find(|needed| *needed as f64 / count as f64 >= self.condition.at_least)
            .unwrap_or(count);
        let Some(weakest) = levels.get(needed.saturating_sub(1)) else { return Vec::new() };
        let idle = 1.0 - accelerators / weakest;
        let length = tier.slice;
        vec![
            doubt(
                "slices",
                Some(to_f64(i128::try_from(busy + 1 - needed).unwrap_or_default())),
                format!(
                    "{} more of the {busy} slices of {length} with {} accelerators had fewer \
                     ({needed} of {count} are asked for)",
                    busy + 1 - needed,
                    grouped(accelerators)
                ),
            ),
            doubt(
                "excess",
                Some(idle),
                format!(
                    "in every slice more than {:.1} % of the accelerators were counted twice or \
                     belonged to somebody else; idle ones count, as rented",
                    idle * 100.0
                ),
            ),
        ]
    }

    /// The tier of the condition's window, and how many slices the window has.
    fn slices(&self) -> Option<(crate::detector::rules::TierRules, usize)> {
        let window = self.condition.length()?;
        let tier = self.config.rules.tiers[self.config.rules.tier_of(window)?];
        Some((tier, usize::try_from(slice_count(&tier, window)).ok()?))
    }

    /// An owner's or country's largest account belongs to another.
    fn members(&self) -> Option<Doubt> {
        let members = self.member_sums()?;
        if members.len() < 2 {
            return None;
        }
        let mut rest: Measure = Measure::ZERO;
        members.values().for_each(|sum| rest += *sum);
        let whole = self.value(&rest)?;
        // what has been moved, or has left its tier, is not in a sum over events
        if (whole - self.observed()).abs() > 1e-9 * self.observed() {
            return None;
        }
        let mut by_size: Vec<(&String, f64)> = Vec::new();
        for (account, sum) in &members {
            by_size.push((account, self.value(sum)?));
        }
        by_size.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
        let (largest, share) = by_size[0];
        let mut left = whole;
        let enough = by_size.iter().position(|(_, value)| {
            left -= value;
            left < self.condition.at_least
        });
        let unit = self.condition.metric.unit();
        let text = match enough {
            Some(0) => format!(
                "account {largest} is not {}'s: it has {:.1} %, and {} remain without it",
                self.window.key,
                share / whole * 100.0,
                amount((whole - share).max(0.0), unit)
            ),
            Some(more) => format!(
                "the {} largest of {} accounts are not {}'s (the largest, {largest}, has {:.1} %)",
                more + 1,
                members.len(),
                self.window.key,
                share / whole * 100.0
            ),
            None => return None,
        };
        Some(doubt("owner", Some(share / whole), text))
    }

    /// Each account's sum behind the observed value.
    fn member_sums(&self) -> Option<BTreeMap<String, Measure>> {
        match self.scope {
            Scope::Account | Scope::Site => None,
            Scope::Country => Some(self.rerun.members.get(self.index)?.clone()),
            Scope::Owner if self.condition.metric.is_run() => {
                let start: Timestamp = self.window.run?.start;
                let sum = |slices: &BTreeMap<Timestamp, Measure>| {
                    let mut sum = Measure::ZERO;
                    slices.iter().filter(|(end, _)| **end > start).for_each(|(_, part)| {
                        sum += *part;
                    });
                    sum
                };
                let slices = self.rerun.slices.iter();
                Some(slices.map(|(account, slices)| (account.clone(), sum(slices))).collect())
            }
            Scope::Owner => Some(self.rerun.members.get(self.index)?.clone()),
        }
    }

    /// The metric of a sum, where it is a plain multiple of one.
    fn value(&self, sum: &Measure) -> Option<f64> {
        let utilization = &self.config.rules.utilization;
        let seconds = self.condition.length().map_or(1.0, |window| window.as_seconds());
        let flop = |gflop: i128| to_f64(gflop) * 1e9;
        match self.condition.metric {
            Metric::Accelerators => Some(to_f64(sum.accelerator_ms) / 1000.0 / seconds),
            Metric::AcceleratorHours => Some(to_f64(sum.accelerator_ms) / 3_600_000.0),
            Metric::Flop | Metric::RunFlop => Some(flop(sum.flop)),
            Metric::FlopLow | Metric::RunFlopLow => {
                Some(flop(sum.flop_allocated) * utilization.low)
            }
            Metric::FlopHigh | Metric::RunFlopHigh => {
                Some(flop(sum.flop_allocated) * utilization.high)
            }
            Metric::FlopAllocated => Some(flop(sum.flop_allocated)),
            Metric::FlopTheoretical => Some(flop(sum.flop_theoretical)),
            Metric::FlopRate => Some(flop(sum.flop) / seconds),
            Metric::FlopRateTheoretical => Some(flop(sum.flop_theoretical) / seconds),
            Metric::Sustained { .. } | Metric::RunHours | Metric::ProjectedRunFlop { .. } => None,
        }
    }
}

/// What the directory would have to have wrong.
fn origin(policy: &Policy, judged: &Alert) -> Doubt {
    let origin = &judged.origin;
    let named = |field: &str| {
        let value = origin.facts.get(field).map_or("", String::as_str);
        format!("{field} ({value})")
    };
    let unknown = origin.decided_by == "unknown";
    let text = match &policy.origin {
        OriginMatch::Any => "no origin makes it wrong: the policy looks at every one".to_owned(),
        OriginMatch::Foreign if unknown => "the account is at home: the directory does not say, \
            and origin.unknown_is_foreign takes it for foreign"
            .to_owned(),
        OriginMatch::Foreign if origin.foreign_by.is_empty() => {
            format!("{} is at home (origin.home)", origin.country)
        }
        OriginMatch::Foreign => {
            let fields: Vec<String> = origin.foreign_by.iter().map(|field| named(field)).collect();
            let (are, all) = if fields.len() == 1 { ("is", "") } else { ("are", "all of ") };
            format!(
                "{all}{} {are} wrong in the directory: nothing else says foreign",
                listed(&fields)
            )
        }
        OriginMatch::Home => "a field of the directory lacks a country outside home".to_owned(),
        OriginMatch::Unknown => "the directory learns the account's country".to_owned(),
        OriginMatch::Countries(_) => {
            format!("{} is wrong in the directory", named(origin.decided_by))
        }
    };
    doubt("origin", None, text)
}

fn doubt(kind: &'static str, bound: Option<f64>, text: String) -> Doubt {
    Doubt { condition: None, kind, bound, text }
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn to_f64(sum: i128) -> f64 {
    sum as f64
}
