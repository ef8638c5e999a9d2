//! SPEC 7 and 8: observed values, verdicts, and the life of every alert.

use std::collections::{BTreeMap, BTreeSet};

use super::Fault;
use super::history::{History, Judgement, Run, Window};
use super::input::{Condition, DAY, Metric, Mode, Nanos, Policy, SECOND, Scope, Settings};
use super::metering::{Amount, to_f64};
use super::origin::{Standing, matches};

/// One revision of an alert, as far as SPEC fixes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Alert {
    pub(crate) mode: Mode,
    pub(crate) state: &'static str,
    pub(crate) revision: u32,
    pub(crate) at: Nanos,
    pub(crate) policy: String,
    pub(crate) version: u32,
    pub(crate) scope: Scope,
    pub(crate) key: String,
    /// The slice end at which it became pending: what its id depends on.
    pub(crate) episode: Nanos,
    pub(crate) accounts: Vec<String>,
    pub(crate) accounts_total: usize,
    pub(crate) origin: OriginView,
    pub(crate) conditions: Vec<Observed>,
    pub(crate) estimate: Estimate,
    pub(crate) run: Option<RunView>,
    pub(crate) first_at: Nanos,
    pub(crate) report_due: Option<Nanos>,
    pub(crate) evidence: Evidence,
}

/// What may be said of the origin, which is that of one account: country, foreign, and (of accounts
/// and sites) the field that decided. An owner is spoken for by an account that the policy looks
/// for, or by any when none is left that it looks for; SPEC does not say by which.
pub(crate) type OriginView = BTreeSet<(String, bool, Option<&'static str>)>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    pub(crate) metric: &'static str,
    pub(crate) window: Option<Nanos>,
    pub(crate) observed: f64,
    pub(crate) at_least: f64,
    pub(crate) met: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) flop_low: f64,
    pub(crate) flop: f64,
    pub(crate) flop_high: f64,
    pub(crate) flop_allocated: f64,
    pub(crate) accelerators: f64,
    pub(crate) accelerator_hours: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RunView {
    pub(crate) start: Nanos,
    pub(crate) hours: f64,
    pub(crate) flop_low: f64,
    pub(crate) flop: f64,
    pub(crate) flop_high: f64,
}

/// The sums behind the estimate, unclamped.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Evidence {
    pub(crate) slices: BTreeMap<Nanos, Amount>,
    pub(crate) by_accelerator: BTreeMap<String, Amount>,
    pub(crate) by_region: BTreeMap<String, Amount>,
    pub(crate) by_fabric: BTreeMap<String, Amount>,
    pub(crate) unknown_accelerator: bool,
}

/// What is remembered of one policy and key between judgements.
#[derive(Debug, Clone, Default)]
enum Life {
    #[default]
    Inactive,
    Pending {
        since: Nanos,
    },
    Firing(Firing),
}

#[derive(Debug, Clone)]
struct Firing {
    episode: Nanos,
    first_at: Nanos,
    revision: u32,
    last_at: Nanos,
    last_flop: f64,
    unmet_since: Option<Nanos>,
}

/// Every alert in the order of the file: by slice end, then accounts and sites before owners and
/// countries, then scope, key and policy.
pub(crate) fn alerts(history: &History<'_>) -> Vec<Alert> {
    let mut alerts = Vec::new();
    let mut lives: BTreeMap<(usize, String), Life> = BTreeMap::new();
    for end in history.ends() {
        let judgement = history.judge(end);
        let mut now = Vec::new();
        for scope in Scope::ALL {
            let policies = history.scenario.policies.iter().enumerate();
            if policies.clone().all(|(_, policy)| policy.scope != scope) {
                continue;
            }
            let with_slices = judgement.keys(scope);
            for (place, policy) in policies.filter(|(_, policy)| policy.scope == scope) {
                if policy.mode == Mode::Off {
                    continue;
                }
                let live = lives.keys().filter(|(other, _)| *other == place);
                let keys: BTreeSet<String> =
                    with_slices.iter().cloned().chain(live.map(|(_, key)| key.clone())).collect();
                for key in keys {
                    let life = lives.remove(&(place, key.clone())).unwrap_or_default();
                    let life = step(&judgement, policy, &key, life, &mut now);
                    if !matches!(life, Life::Inactive) {
                        lives.insert((place, key), life);
                    }
                }
            }
        }
        now.sort_by(|a, b| order(a).cmp(&order(b)));
        alerts.extend(now);
    }
    alerts
}

fn order(alert: &Alert) -> (u8, &'static str, &str, &str) {
    (alert.scope.stage(), alert.scope.name(), &alert.key, &alert.policy)
}

fn step(
    judgement: &Judgement<'_>,
    policy: &Policy,
    key: &str,
    life: Life,
    out: &mut Vec<Alert>,
) -> Life {
    let at = judgement.end;
    let conditions = observe(judgement, policy, key);
    let met = conditions.iter().all(|condition| condition.met)
        && matches(&policy.origin, &judgement.origins(policy.scope, key));
    let mut say = |state, firing: &Firing| {
        out.push(describe(judgement, policy, key, conditions.clone(), state, firing));
    };
    let since = match (life, met) {
        (Life::Inactive | Life::Pending { .. }, false) => return Life::Inactive,
        (Life::Inactive, true) => at,
        (Life::Pending { since }, true) => since,
        (Life::Firing(mut firing), true) => {
            firing.unmet_since = None;
            let flop = estimate(judgement, policy, key).1.flop;
            let due = policy.renotify.is_some_and(|renotify| at - firing.last_at >= renotify);
            if due || flop >= 2.0 * firing.last_flop {
                firing.revision += 1;
                firing.last_at = at;
                firing.last_flop = flop;
                say("updated", &firing);
            }
            return Life::Firing(firing);
        }
        (Life::Firing(mut firing), false) => {
            let since = *firing.unmet_since.get_or_insert(at);
            if at - since < policy.keep_firing {
                return Life::Firing(firing);
            }
            firing.revision += 1;
            say("resolved", &firing);
            return Life::Inactive;
        }
    };
    if at - since < policy.hold {
        return Life::Pending { since };
    }
    let firing = Firing {
        episode: since,
        first_at: at,
        revision: 1,
        last_at: at,
        last_flop: estimate(judgement, policy, key).1.flop,
        unmet_since: None,
    };
    say("firing", &firing);
    Life::Firing(firing)
}

pub(crate) fn observe(judgement: &Judgement<'_>, policy: &Policy, key: &str) -> Vec<Observed> {
    let conditions = policy.conditions.iter();
    conditions.map(|condition| observe_one(judgement, policy, condition, key)).collect()
}

fn observe_one(
    judgement: &Judgement<'_>,
    policy: &Policy,
    condition: &Condition,
    key: &str,
) -> Observed {
    let settings = &judgement.history.scenario.settings;
    let metric = condition.metric;
    let window = if metric.is_run() { None } else { condition.window.or(policy.window) };
    let observed = match window {
        None => run_metric(settings, metric, judgement.run(policy.scope, key)),
        Some(length) => {
            let window = judgement.window(policy.scope, key, length);
            window_metric(judgement.history, metric, &window)
        }
    };
    let met = if judgement.history.fault == Fault::NeedsMoreThanTheThreshold {
        observed > condition.at_least
    } else {
        observed >= condition.at_least
    };
    Observed { metric: metric.name(), window, observed, at_least: condition.at_least, met }
}

fn flop(gflop: i128) -> f64 {
    to_f64(gflop) * 1e9
}

fn seconds(length: Nanos) -> f64 {
    to_f64(length) / to_f64(SECOND)
}

/// The integer sum clamped at 0, converted once, x 1e9, x factor, / seconds.
fn window_metric(history: &History<'_>, metric: Metric, window: &Window<'_>) -> f64 {
    let settings = &history.scenario.settings;
    let least = if history.fault == Fault::ShowsLessThanNothing { i128::MIN } else { 0 };
    let sum = window.sum.each(|value| value.max(least));
    match metric {
        Metric::Accelerators => to_f64(sum.accelerator_ms) / 1000.0 / seconds(window.length),
        Metric::AcceleratorHours => to_f64(sum.accelerator_ms) / 3_600_000.0,
        Metric::Flop => flop(sum.flop),
        Metric::FlopLow => flop(sum.flop_allocated) * settings.low,
        Metric::FlopHigh => flop(sum.flop_allocated) * settings.high,
        Metric::FlopAllocated => flop(sum.flop_allocated),
        Metric::FlopTheoretical => flop(sum.flop_theoretical),
        Metric::FlopRate => flop(sum.flop) / seconds(window.length),
        Metric::FlopRateTheoretical => flop(sum.flop_theoretical) / seconds(window.length),
        Metric::Sustained(accelerators) => {
            let needed = accelerators * to_f64(window.slice / 1_000_000);
            let held = window.slices.values();
            let enough = held.filter(|slice| to_f64(slice.accelerator_ms) >= needed).count();
            enough as f64 / to_f64(window.length / window.slice)
        }
        Metric::RunFlop
        | Metric::RunFlopLow
        | Metric::RunFlopHigh
        | Metric::RunHours
        | Metric::ProjectedRunFlop(_) => unreachable!("run metrics have no window"),
    }
}

/// 0 without a run.
fn run_metric(settings: &Settings, metric: Metric, run: Option<Run>) -> f64 {
    let Some(run) = run else { return 0.0 };
    match metric {
        Metric::RunFlop => flop(run.sum.flop),
        Metric::RunFlopLow => flop(run.sum.flop_allocated) * settings.low,
        Metric::RunFlopHigh => flop(run.sum.flop_allocated) * settings.high,
        Metric::RunHours => run.hours,
        Metric::ProjectedRunFlop(horizon) => {
            let rate = flop(run.recent.flop) / seconds(run.recent_length);
            flop(run.sum.flop) + rate * seconds(horizon)
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
        | Metric::Sustained(_) => unreachable!("window metrics have a window"),
    }
}

/// Over the policy's window, or 24 h.
fn estimate<'a>(judgement: &Judgement<'a>, policy: &Policy, key: &str) -> (Window<'a>, Estimate) {
    let window = judgement.window(policy.scope, key, policy.window.unwrap_or(DAY));
    let value = |metric| window_metric(judgement.history, metric, &window);
    let estimate = Estimate {
        flop_low: value(Metric::FlopLow),
        flop: value(Metric::Flop),
        flop_high: value(Metric::FlopHigh),
        flop_allocated: value(Metric::FlopAllocated),
        accelerators: value(Metric::Accelerators),
        accelerator_hours: value(Metric::AcceleratorHours),
    };
    (window, estimate)
}

fn describe(
    judgement: &Judgement<'_>,
    policy: &Policy,
    key: &str,
    conditions: Vec<Observed>,
    state: &'static str,
    firing: &Firing,
) -> Alert {
    let settings = &judgement.history.scenario.settings;
    let scope = policy.scope;
    let origins = judgement.origins(scope, key);
    let members: Vec<String> =
        judgement.members(scope, key).into_iter().map(|(account, _)| account).collect();
    let (accounts, accounts_total) = match scope {
        Scope::Account | Scope::Site => (vec![judgement.account_of(scope, key).to_owned()], 1),
        Scope::Owner => (members.iter().take(100).cloned().collect(), members.len()),
        Scope::Country => (Vec::new(), members.len()),
    };
    let run = judgement.run(scope, key).filter(|_| scope.keeps_runs()).map(|run| RunView {
        start: run.start,
        hours: run.hours,
        flop_low: flop(run.sum.flop_allocated) * settings.low,
        flop: flop(run.sum.flop),
        flop_high: flop(run.sum.flop_allocated) * settings.high,
    });
    let (window, estimate) = estimate(judgement, policy, key);
    Alert {
        mode: policy.mode,
        state,
        revision: firing.revision,
        at: judgement.end,
        policy: policy.id.clone(),
        version: policy.version,
        scope,
        key: key.to_owned(),
        episode: firing.episode,
        accounts,
        accounts_total,
        origin: origin_views(policy, &origins),
        conditions,
        estimate,
        run,
        first_at: firing.first_at,
        report_due: policy.report_within.map(|within| firing.first_at + within),
        evidence: evidence(&window),
    }
}

fn origin_views(policy: &Policy, origins: &[Standing]) -> OriginView {
    let looked_for: Vec<&Standing> =
        origins.iter().filter(|one| matches(&policy.origin, std::slice::from_ref(one))).collect();
    let speakers = if looked_for.is_empty() { origins.iter().collect() } else { looked_for };
    let decided_by = |one: &Standing| (policy.scope.stage() == 0).then_some(one.decided_by);
    speakers.iter().map(|one| (one.country.clone(), one.foreign, decided_by(one))).collect()
}

fn evidence(window: &Window<'_>) -> Evidence {
    let mut evidence = Evidence {
        slices: window.slices.clone(),
        by_accelerator: BTreeMap::new(),
        by_region: BTreeMap::new(),
        by_fabric: BTreeMap::new(),
        unknown_accelerator: window.parts.iter().any(|part| part.unknown),
    };
    for part in &window.parts {
        let add = |map: &mut BTreeMap<String, Amount>, name: &str| {
            let sum = map.entry(name.to_owned()).or_default();
            *sum = sum.plus(part.amount);
        };
        add(&mut evidence.by_accelerator, &part.accelerator);
        add(&mut evidence.by_region, &part.region);
        add(&mut evidence.by_fabric, &part.fabric);
    }
    evidence
}
