//! One key against every policy of its scope at one slice end: observed values, verdicts, and the
//! alerts that follow.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::alert::{
    Alert, Episode, Estimate, Evidence, Observed, PolicyRef, Projection, Run, SliceSum, State, Sum,
    Transition, alert_id,
};
use super::directory::{Facts, Origin};
use super::key_state::{KeyState, activity};
use super::measure::Measure;
use super::names::{NameId, Names, UNKNOWN_PREFIX};
use super::policy::{Condition, Metric, Mode, OriginMatch, Policies, Policy, Scope};
use super::rules::{Rules, UtilizationRules};
use super::run::RunView;
use super::time::{Span, Timestamp};
use super::window::{Part, Windows, slice_count, window_end};

/// The estimate's window when its policy has none.
const DEFAULT_WINDOW: Span = Span::hours(24);
/// A run's recent rate is taken over its last 24 hours.
const RECENT: Span = Span::hours(24);
/// Shares named in the evidence; the rest is summed as `other`.
const SHARES: usize = 20;

/// Who stands behind a key.
pub trait Behind {
    fn matches(&self, wanted: &OriginMatch) -> bool;

    /// The key, its accounts and its origin, for a policy that looks at `wanted`.
    fn describe(&self, wanted: &OriginMatch) -> Description;
}

#[derive(Debug, Clone)]
pub struct Description {
    pub key: String,
    /// In order of id, at most 100.
    pub accounts: Vec<String>,
    pub accounts_total: u64,
    pub origin: Origin,
    pub facts: Facts,
}

/// One key at one slice end.
pub struct Subject<'a> {
    pub scope: Scope,
    pub at: Timestamp,
    pub rules: &'a Rules,
    pub names: &'a Names,
    pub windows: &'a Windows,
    pub part: Part,
    /// None at scopes that keep no runs.
    pub run: Option<RunView>,
    pub behind: &'a dyn Behind,
    /// Records lost to retention.
    pub gap: u64,
    /// What windows came to: policies often share one.
    sums: RefCell<Vec<(Span, Measure)>>,
}

/// A look at the ceilings alone: false if no policy of `scope` can be met by the key, whatever its
/// windows hold. True for nearly no key, so that judging costs little for all the others.
pub fn may_meet(policies: &Policies, scope: Scope, rules: &Rules, key: &KeyState) -> bool {
    let carry = &key.runs.carry;
    let ceiling = key.windows.ceiling(0);
    let can_run = !carry.is_none() || activity(rules).is_active(&ceiling);
    let run = can_run.then(|| {
        let mut sum = ceiling;
        sum += carry.sum().clamped();
        sum
    });
    policies.of(scope).any(|policy| {
        policy.conditions.iter().all(|c| most(c, rules, &key.windows, run) >= c.at_least)
    })
}

/// No observed value of the condition is greater: values only grow with the sums, and no sum is
/// greater than its ceiling. `run` is the run's, if there can be one.
fn most(condition: &Condition, rules: &Rules, windows: &Windows, run: Option<Measure>) -> f64 {
    /// A quotient of two converted integers may be off by a part in 10^15.
    const SLACK: f64 = 1.0 + 1e-9;
    let window = condition.length().unwrap_or_default();
    let value = |sum| value(condition.metric, sum, window, &rules.utilization);
    let ceiling = || {
        let tier = rules.tier_of(window).expect("policies with other windows are refused");
        (rules.tiers[tier], windows.ceiling(tier))
    };
    match condition.metric {
        Metric::RunFlop | Metric::RunFlopLow | Metric::RunFlopHigh => run.map_or(0.0, value),
        Metric::RunHours | Metric::ProjectedRunFlop { .. } => run.map_or(0.0, |_| f64::INFINITY),
        Metric::Sustained { accelerators } => {
            let (tier, ceiling) = ceiling();
            let least_ms = least_ms(accelerators, tier.slice);
            if least_ms <= 0.0 {
                return f64::INFINITY;
            }
            let busy = to_f64(ceiling.accelerator_ms) / least_ms;
            busy / count(slice_count(&tier, window)) * SLACK
        }
        Metric::Accelerators
        | Metric::AcceleratorHours
        | Metric::Flop
        | Metric::FlopLow
        | Metric::FlopHigh
        | Metric::FlopAllocated
        | Metric::FlopTheoretical
        | Metric::FlopRate
        | Metric::FlopRateTheoretical => value(ceiling().1),
    }
}

impl<'a> Subject<'a> {
    pub fn new(
        scope: Scope,
        at: Timestamp,
        rules: &'a Rules,
        names: &'a Names,
        windows: &'a Windows,
        behind: &'a dyn Behind,
    ) -> Self {
        let (part, run) = (Part::All, None);
        let sums = RefCell::default();
        Self { scope, at, rules, names, windows, part, run, behind, gap: 0, sums }
    }

    pub fn on_fabric(mut self, fabric: NameId) -> Self {
        self.part = Part::Fabric(fabric);
        self
    }

    pub fn with_gap(mut self, records: u64) -> Self {
        self.gap = records;
        self
    }

    pub fn with_run(mut self, run: Option<RunView>) -> Self {
        self.run = run;
        self
    }

    /// Judges every policy of the scope; the alerts join `alerts`, and whether any episode changed
    /// is returned.
    pub fn judge(
        &self,
        policies: &Policies,
        episodes: &mut Vec<Episode>,
        alerts: &mut Vec<Alert>,
    ) -> bool {
        let mut changed = self.withdraw(policies, episodes, alerts);
        for policy in policies.of(self.scope) {
            let index = episodes.iter().position(|episode| episode.is_of(policy));
            let met = self.is_met(policy);
            if index.is_none() && !met {
                continue;
            }
            let index = index.unwrap_or_else(|| {
                episodes.push(Episode::pending(policy, self.at));
                episodes.len() - 1
            });
            let transition =
                episodes[index].judge(policy, self.at, met, || self.estimate(policy.window).flop);
            match transition {
                Transition::None => {}
                Transition::Quiet => changed = true,
                Transition::Ended => {
                    episodes.swap_remove(index);
                    changed = true;
                }
                Transition::Revised(state) => {
                    changed = true;
                    alerts.push(self.alert(&episodes[index], state, Some(policy)));
                    if state == State::Resolved {
                        episodes.swap_remove(index);
                    }
                }
            }
        }
        changed
    }

    /// Episodes whose policy is gone, off or in another mode end.
    fn withdraw(
        &self,
        policies: &Policies,
        episodes: &mut Vec<Episode>,
        alerts: &mut Vec<Alert>,
    ) -> bool {
        let before = episodes.len();
        episodes.retain_mut(|episode| {
            let mut list = policies.list.iter();
            let in_force = list.any(|policy| policy.is_judged() && episode.is_of(policy));
            if !in_force && episode.withdraw(self.at) {
                alerts.push(self.alert(episode, State::Resolved, None));
            }
            in_force
        });
        episodes.len() != before
    }

    /// The cheap looks first: most policies are met by few.
    fn is_met(&self, policy: &Policy) -> bool {
        let run = self.run.map(|run| run.sum);
        let conditions = || policy.conditions.iter();
        conditions().all(|c| most(c, self.rules, self.windows, run) >= c.at_least)
            && self.behind.matches(&policy.origin)
            && conditions().all(|condition| self.observe(condition) >= condition.at_least)
    }

    /// The alert that a revised episode says; without a policy it has been withdrawn.
    fn alert(&self, episode: &Episode, state: State, policy: Option<&Policy>) -> Alert {
        let wanted = policy.map_or(&OriginMatch::Any, |policy| &policy.origin);
        let who = self.behind.describe(wanted);
        let fired = episode.fired().expect("only an episode that fired has revisions");
        let window = policy.and_then(|policy| policy.window);
        let conditions = policy.map_or(&[][..], |policy| &policy.conditions);
        let policy = policy.map_or_else(|| fired.policy.clone(), PolicyRef::of);
        Alert {
            alert_id: alert_id(&policy, self.scope, &who.key, episode.since()),
            revision: fired.revision,
            state,
            at: self.at,
            reason: fired.withdrawn.then_some("withdrawn"),
            policy,
            scope: self.scope.name(),
            key: who.key,
            accounts: who.accounts,
            accounts_total: who.accounts_total,
            origin: super::alert::Origin::of(&who.origin, &who.facts),
            conditions: conditions.iter().map(|condition| self.observed(condition)).collect(),
            estimate: self.estimate(window),
            run: self.run.map(|run| self.run_said(&run)),
            projection: self.projection(conditions),
            evidence: self.evidence(window),
            first_at: fired.first_at,
            report_due: fired.report_due,
        }
    }
}

/// Observed values: the integer sum (clamped at 0 in windows), converted once, x 1e9, x factor,
/// / seconds, in that order.
impl Subject<'_> {
    fn observe(&self, condition: &Condition) -> f64 {
        let window = condition.length().unwrap_or_default();
        let value = |sum| value(condition.metric, sum, window, &self.rules.utilization);
        match condition.metric {
            Metric::Accelerators
            | Metric::AcceleratorHours
            | Metric::Flop
            | Metric::FlopLow
            | Metric::FlopHigh
            | Metric::FlopAllocated
            | Metric::FlopTheoretical
            | Metric::FlopRate
            | Metric::FlopRateTheoretical => value(self.window_sum(window)),
            Metric::Sustained { accelerators } => self.sustained(window, accelerators),
            Metric::RunFlop | Metric::RunFlopLow | Metric::RunFlopHigh => {
                self.run.map_or(0.0, |run| value(run.sum))
            }
            Metric::RunHours => self.run.map_or(0.0, |run| run.length.as_seconds() / 3600.0),
            Metric::ProjectedRunFlop { horizon } => self.run.map_or(0.0, |run| {
                flop(run.sum.flop) + self.recent_rate(&run) * horizon.as_seconds()
            }),
        }
    }

    fn observed(&self, condition: &Condition) -> Observed {
        let observed = self.observe(condition);
        Observed {
            metric: condition.metric.name(),
            window: condition.window.as_ref().map(|window| window.text.clone()),
            observed,
            at_least: condition.at_least,
            unit: condition.metric.unit(),
            met: observed >= condition.at_least,
        }
    }

    /// Tier and bounds of a window judged at `at`: slices with ends in `(after, until]`.
    fn bounds(&self, window: Span) -> (usize, Timestamp, Timestamp) {
        let tier = self.rules.tier_of(window).expect("policies with other windows are refused");
        let until = window_end(&self.rules.tiers[tier], self.at);
        (tier, until.minus(window), until)
    }

    fn window_sum(&self, window: Span) -> Measure {
        let known =
            self.sums.borrow().iter().find(|(known, _)| *known == window).map(|(_, sum)| *sum);
        known.unwrap_or_else(|| {
            let (tier, after, until) = self.bounds(window);
            let rules = &self.rules.tiers[tier];
            let sum = self.windows.sum(tier, rules, (after, until), self.part).clamped();
            self.sums.borrow_mut().push((window, sum));
            sum
        })
    }

    fn sustained(&self, window: Span, accelerators: f64) -> f64 {
        let (tier, after, until) = self.bounds(window);
        let rules = &self.rules.tiers[tier];
        let least_ms = least_ms(accelerators, rules.slice);
        let mut busy = 0u32;
        self.windows.each_slice(tier, rules, (after, until), self.part, |_, sum| {
            busy += u32::from(to_f64(sum.accelerator_ms) >= least_ms);
        });
        f64::from(busy) / count(slice_count(rules, window))
    }

    /// FLOP/s over the run's last 24 hours, or all of it when it is shorter.
    fn recent_rate(&self, run: &RunView) -> f64 {
        let recent = run.length.min(RECENT);
        let bounds = (self.at.minus(recent), self.at);
        let sum = self.windows.sum(0, &self.rules.finest(), bounds, Part::All);
        flop(sum.flop) / recent.as_seconds()
    }
}

/// What the alert says beside its verdict.
impl Subject<'_> {
    /// The estimate's window: the policy's, else 24 h, else the longest that the finest tier has.
    fn estimate_window(&self, window: Option<Span>) -> Span {
        let window = window.unwrap_or(DEFAULT_WINDOW);
        if self.rules.tier_of(window).is_some() {
            return window;
        }
        let finest = self.rules.finest();
        Span(window.0.min(finest.keep.0) / finest.slice.0 * finest.slice.0)
    }

    fn estimate(&self, window: Option<Span>) -> Estimate {
        let window = self.estimate_window(window);
        let sum = self.window_sum(window);
        let utilization = &self.rules.utilization;
        Estimate {
            flop_low: flop(sum.flop_allocated) * utilization.low,
            flop: flop(sum.flop),
            flop_high: flop(sum.flop_allocated) * utilization.high,
            flop_allocated: flop(sum.flop_allocated),
            accelerators: to_f64(sum.accelerator_ms) / 1000.0 / window.as_seconds(),
            accelerator_hours: to_f64(sum.accelerator_ms) / 3_600_000.0,
        }
    }

    fn run_said(&self, run: &RunView) -> Run {
        let utilization = &self.rules.utilization;
        Run {
            start: run.start,
            hours: run.length.as_seconds() / 3600.0,
            flop_low: flop(run.sum.flop_allocated) * utilization.low,
            flop: flop(run.sum.flop),
            flop_high: flop(run.sum.flop_allocated) * utilization.high,
        }
    }

    /// When the run reaches the threshold of the first projecting condition at its recent rate.
    fn projection(&self, conditions: &[Condition]) -> Option<Projection> {
        let projecting =
            |condition: &&Condition| matches!(condition.metric, Metric::ProjectedRunFlop { .. });
        let threshold = conditions.iter().find(projecting)?.at_least;
        let run = self.run?;
        let seconds = ((threshold - flop(run.sum.flop)) / self.recent_rate(&run)).max(0.0);
        let reached_at = later(self.at, seconds);
        Some(Projection { threshold, reached_at })
    }

    fn evidence(&self, window: Option<Span>) -> Evidence {
        let (tier, after, until) = self.bounds(self.estimate_window(window));
        let (rules, bounds) = (&self.rules.tiers[tier], (after, until));
        let mut evidence = Evidence { gap_records: self.gap, ..Evidence::default() };
        self.windows.each_slice(tier, rules, bounds, self.part, |end, sum| {
            evidence.slices.push(SliceSum { end, sum: Sum::of(&sum) });
        });
        let mut shares = [const { BTreeMap::<NameId, Measure>::new() }; 3];
        self.windows.each_cell(tier, rules, bounds, self.part, |_, place, measure| {
            let names = [place.accelerator, place.region, place.fabric];
            for (share, name) in shares.iter_mut().zip(names) {
                *share.entry(name).or_default() += measure;
            }
        });
        evidence.unknown_accelerator =
            shares[0].keys().any(|name| self.names.text(*name).starts_with(UNKNOWN_PREFIX));
        let [by_accelerator, by_region, by_fabric] = shares.map(|share| self.largest(share));
        Evidence { by_accelerator, by_region, by_fabric, ..evidence }
    }

    /// The largest shares by allocated FLOP, and the rest as `other`.
    fn largest(&self, shares: BTreeMap<NameId, Measure>) -> BTreeMap<String, Sum> {
        let mut named: Vec<(&str, Measure)> =
            shares.into_iter().map(|(name, sum)| (self.names.text(name), sum)).collect();
        named.sort_by(|(a, x), (b, y)| y.flop_allocated.cmp(&x.flop_allocated).then(a.cmp(b)));
        let mut other = Measure::ZERO;
        for (_, sum) in named.iter().skip(SHARES) {
            other += *sum;
        }
        let mut largest: BTreeMap<String, Sum> =
            named.iter().take(SHARES).map(|(name, sum)| ((*name).into(), Sum::of(sum))).collect();
        if named.len() > SHARES {
            largest.insert("other".into(), Sum::of(&other));
        }
        largest
    }
}

impl Policies {
    /// Those of a scope that are judged.
    fn of(&self, scope: Scope) -> impl Iterator<Item = &Policy> {
        self.list.iter().filter(move |policy| policy.scope == scope && policy.is_judged())
    }
}

impl Policy {
    fn is_judged(&self) -> bool {
        self.mode != Mode::Off
    }
}

/// What a sum over a window or a run is as a metric that looks at nothing else.
fn value(metric: Metric, sum: Measure, window: Span, utilization: &UtilizationRules) -> f64 {
    match metric {
        Metric::Accelerators => to_f64(sum.accelerator_ms) / 1000.0 / window.as_seconds(),
        Metric::AcceleratorHours => to_f64(sum.accelerator_ms) / 3_600_000.0,
        Metric::Flop | Metric::RunFlop => flop(sum.flop),
        Metric::FlopLow | Metric::RunFlopLow => flop(sum.flop_allocated) * utilization.low,
        Metric::FlopHigh | Metric::RunFlopHigh => flop(sum.flop_allocated) * utilization.high,
        Metric::FlopAllocated => flop(sum.flop_allocated),
        Metric::FlopTheoretical => flop(sum.flop_theoretical),
        Metric::FlopRate => flop(sum.flop) / window.as_seconds(),
        Metric::FlopRateTheoretical => flop(sum.flop_theoretical) / window.as_seconds(),
        Metric::Sustained { .. } | Metric::RunHours | Metric::ProjectedRunFlop { .. } => {
            unreachable!("it looks at more than a sum")
        }
    }
}

/// The accelerator time of a slice in which `accelerators` were in use all the time.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of a slice are few")]
fn least_ms(accelerators: f64, slice: Span) -> f64 {
    accelerators * (slice.0 as f64 / 1e6)
}

#[expect(clippy::cast_precision_loss, reason = "slices of a window are few")]
fn count(slices: u64) -> f64 {
    slices as f64
}

/// GFLOP as FLOP.
fn flop(gflop: i128) -> f64 {
    to_f64(gflop) * 1e9
}

#[expect(clippy::cast_precision_loss, reason = "the contract converts the integer sum once")]
fn to_f64(sum: i128) -> f64 {
    sum as f64
}

/// The instant `seconds` after `at`; `None` when that is never, or after the last accepted year.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "bounded just before"
)]
fn later(at: Timestamp, seconds: f64) -> Option<Timestamp> {
    let nanos = seconds * 1e9;
    (nanos < (Timestamp::LATEST.0 - at.0) as f64).then(|| at.plus(Span(nanos as u64)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::directory::Country;
    use super::super::policy::{Severity, Window};
    use super::super::window::Place;
    use super::*;
    use crate::config::Config;

    struct Nobody;

    impl Behind for Nobody {
        fn matches(&self, _wanted: &OriginMatch) -> bool {
            true
        }

        fn describe(&self, _wanted: &OriginMatch) -> Description {
            let facts = Facts::Missing;
            let country = Country::UNKNOWN;
            let origin = Origin { country, foreign: true, decided_by: None, foreign_by: vec![] };
            Description { key: "k".into(), accounts: vec![], accounts_total: 0, origin, facts }
        }
    }

    const METRICS: [Metric; 15] = [
        Metric::Accelerators,
        Metric::AcceleratorHours,
        Metric::Flop,
        Metric::FlopLow,
        Metric::FlopHigh,
        Metric::FlopAllocated,
        Metric::FlopTheoretical,
        Metric::FlopRate,
        Metric::FlopRateTheoretical,
        Metric::Sustained { accelerators: 64.0 },
        Metric::RunFlop,
        Metric::RunFlopLow,
        Metric::RunFlopHigh,
        Metric::RunHours,
        Metric::ProjectedRunFlop { horizon: Span::days(90) },
    ];

    fn policy(metric: Metric, length: Span, at_least: f64) -> Policy {
        let window = Window { length, text: length.to_string() };
        Policy {
            id: "p".into(),
            version: 1,
            title: String::new(),
            severity: Severity::Info,
            mode: Mode::Live,
            scope: Scope::Account,
            origin: OriginMatch::Any,
            window: None,
            hold: Span::hours(1),
            keep_firing: Span(0),
            renotify: None,
            report_within: None,
            references: Vec::new(),
            conditions: vec![Condition { metric, window: Some(window), at_least }],
            hash: String::new(),
        }
    }

    proptest! {
        /// Usage and corrections of ten days, some of it gone from the finest tier.
        #[test]
        fn the_look_at_the_ceilings_passes_over_no_policy_that_is_met(
            usage in proptest::collection::vec((1u64..240, 0u32..3, -90i128..300), 1..300),
        ) {
            let rules = Config::from_text("test", "").expect("the defaults are valid").rules;
            let (names, start) = (Names::default(), Timestamp::EARLIEST);
            let at = start.plus(Span::hours(240));
            let mut key = KeyState::new(&rules);
            for (hour, fabric, accelerators) in usage {
                let measure = Measure {
                    accelerator_ms: accelerators * 3_600_000,
                    flop: accelerators * 1_187_123_456_789,
                    flop_allocated: accelerators * 3_560_999_999_999,
                    flop_theoretical: accelerators * 7_124_000_000_001,
                };
                let place = Place { fabric: NameId(fabric), ..Place::default() };
                key.add(&rules, start, start.plus(Span::hours(hour)), place, measure);
                key.expire(&rules, start.plus(Span::hours(hour.min(200))));
            }
            let run = key.run(&rules, at);
            let subject = Subject::new(Scope::Account, at, &rules, &names, &key.windows, &Nobody)
                .with_run(run);
            for metric in METRICS {
                for length in [1, 24, 72, 720].map(Span::hours) {
                    let observed = subject.observe(&policy(metric, length, 1.0).conditions[0]);
                    if observed <= 0.0 {
                        continue;
                    }
                    let list = vec![policy(metric, length, observed)];
                    let policies = Policies { list };
                    prop_assert!(may_meet(&policies, Scope::Account, &rules, &key), "{metric:?}");
                    let (mut episodes, mut alerts) = (Vec::new(), Vec::new());
                    subject.judge(&policies, &mut episodes, &mut alerts);
                    prop_assert_eq!(episodes.len(), 1, "{:?} is met", metric);
                }
            }
        }
    }
}
