//! One key against every policy of its scope at one slice end: observed values, verdicts, and the
//! alerts that follow.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use super::alert::{
    Alert, Episode, Estimate, Evidence, Observed, PolicyRef, Projection, Run, SliceSum, State, Sum,
    Transition, alert_id,
};
use super::directory::{Facts, Origin};
use super::measure::Measure;
use super::names::{NameId, Names, UNKNOWN_PREFIX};
use super::policy::{Condition, Metric, Mode, OriginMatch, Policies, Policy, Scope};
use super::rules::Rules;
use super::run::{Activity, RunCarry, RunView};
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
    /// `None` at scopes that keep no runs.
    pub carry: Option<&'a RunCarry>,
    pub behind: &'a dyn Behind,
    /// Records lost to retention.
    pub gap: u64,
    run: OnceCell<Option<RunView>>,
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
        let (part, carry, run) = (Part::All, None, OnceCell::new());
        Self { scope, at, rules, names, windows, part, carry, behind, gap: 0, run }
    }

    pub fn on_fabric(mut self, fabric: NameId) -> Self {
        self.part = Part::Fabric(fabric);
        self
    }

    pub fn with_gap(mut self, records: u64) -> Self {
        self.gap = records;
        self
    }

    pub fn with_runs(mut self, carry: &'a RunCarry) -> Self {
        self.carry = Some(carry);
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
        let in_force =
            policies.list.iter().filter(|policy| policy.scope == self.scope && policy.is_judged());
        for policy in in_force {
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

    fn is_met(&self, policy: &Policy) -> bool {
        self.behind.matches(&policy.origin)
            && policy
                .conditions
                .iter()
                .all(|condition| self.observe(condition) >= condition.at_least)
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
            run: self.run().map(|run| self.run_said(&run)),
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
        let utilization = &self.rules.utilization;
        let seconds = window.as_seconds();
        let sum = || self.window_sum(window);
        let run = || self.run().map_or(Measure::ZERO, |run| run.sum);
        match condition.metric {
            Metric::Accelerators => to_f64(sum().accelerator_ms) / 1000.0 / seconds,
            Metric::AcceleratorHours => to_f64(sum().accelerator_ms) / 3_600_000.0,
            Metric::Flop => flop(sum().flop),
            Metric::FlopLow => flop(sum().flop_allocated) * utilization.low,
            Metric::FlopHigh => flop(sum().flop_allocated) * utilization.high,
            Metric::FlopAllocated => flop(sum().flop_allocated),
            Metric::FlopTheoretical => flop(sum().flop_theoretical),
            Metric::FlopRate => flop(sum().flop) / seconds,
            Metric::FlopRateTheoretical => flop(sum().flop_theoretical) / seconds,
            Metric::Sustained { accelerators } => self.sustained(window, accelerators),
            Metric::RunFlop => flop(run().flop),
            Metric::RunFlopLow => flop(run().flop_allocated) * utilization.low,
            Metric::RunFlopHigh => flop(run().flop_allocated) * utilization.high,
            Metric::RunHours => self.run().map_or(0.0, |run| run.length.as_seconds() / 3600.0),
            Metric::ProjectedRunFlop { horizon } => self.run().map_or(0.0, |run| {
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
        let (tier, after, until) = self.bounds(window);
        let rules = &self.rules.tiers[tier];
        self.windows.sum(tier, rules, (after, until), self.part).clamped()
    }

    #[expect(clippy::cast_precision_loss, reason = "slice counts and milliseconds are small")]
    fn sustained(&self, window: Span, accelerators: f64) -> f64 {
        let (tier, after, until) = self.bounds(window);
        let rules = &self.rules.tiers[tier];
        let least_ms = accelerators * (rules.slice.0 as f64 / 1e6);
        let mut busy = 0u32;
        self.windows.each_slice(tier, rules, (after, until), self.part, |_, sum| {
            busy += u32::from(to_f64(sum.accelerator_ms) >= least_ms);
        });
        f64::from(busy) / slice_count(rules, window) as f64
    }

    fn run(&self) -> Option<RunView> {
        *self.run.get_or_init(|| {
            let rules = self.rules.run;
            let activity = Activity { rules, slice: self.rules.finest().slice };
            let mut run = *self.carry?;
            let (finest, until) = (&self.rules.finest(), (Timestamp(0), self.at));
            self.windows.each_slice(0, finest, until, Part::All, |end, sum| {
                run.absorb(&activity, end, sum);
            });
            run.view(&activity, self.at)
        })
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
        let run = self.run()?;
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

impl Policy {
    fn is_judged(&self) -> bool {
        self.mode != Mode::Off
    }
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
