//! What a backtest found, as a value and in words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use super::history::{Alerts, History, Key, Told};
use super::labels::Labels;
use super::score::{Score, score};
use super::sweep::Step;
use crate::cli::show::minute;
use crate::detector::policy::Policy;
use crate::detector::time::Timestamp;

/// Keys printed of each kind; `--json` has all.
const MOST: usize = 20;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) read: u64,
    pub(super) counted: u64,
    pub(super) from: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
    pub(super) labels: Option<Labelled>,
    pub(super) policies: Vec<PolicyReport>,
    /// Policies that the candidate does not have: not compared.
    pub(super) only_current: Vec<Counted>,
    pub(super) sweep: Option<SweepReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct Labelled {
    pub(super) rows: usize,
    pub(super) runs: usize,
    /// All policies of a set together.
    pub(super) current: Score,
    pub(super) candidate: Score,
}

#[derive(Debug, Serialize)]
pub(super) struct Counted {
    pub(super) policy: String,
    pub(super) version: u32,
    pub(super) keys: usize,
    pub(super) alerts: usize,
    pub(super) score: Option<Score>,
}

#[derive(Debug, Serialize)]
pub(super) struct PolicyReport {
    pub(super) policy: String,
    /// `None`: the policy is new.
    pub(super) current: Option<Counted>,
    pub(super) candidate: Counted,
    /// Equal hashes: nothing of the policy differs.
    pub(super) is_same_wording: bool,
    pub(super) new: Vec<Change>,
    pub(super) lost: Vec<Change>,
    pub(super) changed: Vec<Change>,
    pub(super) same: usize,
}

/// One key on which the two differ.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) scope: &'static str,
    pub(super) key: String,
    pub(super) current: Option<Said>,
    pub(super) candidate: Option<Said>,
}

#[derive(Debug, Serialize)]
pub(super) struct Said {
    pub(super) first_at: Timestamp,
    pub(super) hours_from_first_usage: Option<f64>,
    pub(super) alerts: usize,
    pub(super) revisions: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct SweepReport {
    pub(super) of: String,
    pub(super) in_force: Option<f64>,
    pub(super) steps: Vec<Step>,
}

impl Said {
    fn of(told: &Told) -> Self {
        Self {
            first_at: told.first_at,
            hours_from_first_usage: told.after.map(|after| after.as_seconds() / 3600.0),
            alerts: told.firings(),
            revisions: told.revisions.len(),
        }
    }
}

/// When each key first had an alert of one policy, or of all.
pub(super) fn firsts<'a>(
    policies: impl Iterator<Item = &'a BTreeMap<Key, Told>>,
) -> BTreeMap<Key, Timestamp> {
    let mut firsts: BTreeMap<Key, Timestamp> = BTreeMap::new();
    for (key, told) in policies.flatten() {
        let first = firsts.entry(key.clone()).or_insert(told.first_at);
        *first = (*first).min(told.first_at);
    }
    firsts
}

pub(super) fn labelled(labels: &Labels, history: &History) -> Labelled {
    let of = |set: usize| score(&firsts(history.sets[set].values()), labels, history);
    Labelled { rows: labels.rows, runs: labels.runs.len(), current: of(0), candidate: of(1) }
}

pub(super) fn counted(
    policy: &Policy,
    alerts: &Alerts,
    labels: Option<&Labels>,
    history: &History,
) -> Counted {
    let by_key = alerts.get(&policy.id);
    let score = |labels| score(&firsts(by_key.into_iter()), labels, history);
    Counted {
        policy: policy.id.clone(),
        version: policy.version,
        keys: by_key.map_or(0, BTreeMap::len),
        alerts: by_key.into_iter().flat_map(BTreeMap::values).map(Told::firings).sum(),
        score: labels.map(score),
    }
}

/// Candidate against current, policy by policy.
pub(super) fn compare(
    current: &[Policy],
    candidate: &[Policy],
    labels: Option<&Labels>,
    history: &History,
) -> Vec<PolicyReport> {
    let none = BTreeMap::new();
    let mut reports = Vec::new();
    for policy in candidate {
        let was = current.iter().find(|other| other.id == policy.id);
        let before = history.sets[0].get(&policy.id).unwrap_or(&none);
        let after = history.sets[1].get(&policy.id).unwrap_or(&none);
        let mut report = PolicyReport {
            policy: policy.id.clone(),
            current: was.map(|was| counted(was, &history.sets[0], labels, history)),
            candidate: counted(policy, &history.sets[1], labels, history),
            is_same_wording: was.is_some_and(|was| was.hash == policy.hash),
            new: Vec::new(),
            lost: Vec::new(),
            changed: Vec::new(),
            same: 0,
        };
        let keys: BTreeSet<&Key> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let (before, after) = (before.get(key), after.get(key));
            let list = match (before, after) {
                (None, _) => &mut report.new,
                (Some(_), None) => &mut report.lost,
                (Some(a), Some(b)) if a.revisions != b.revisions => &mut report.changed,
                (Some(_), Some(_)) => {
                    report.same += 1;
                    continue;
                }
            };
            let (scope, key) = key.clone();
            let (current, candidate) = (before.map(Said::of), after.map(Said::of));
            list.push(Change { scope, key, current, candidate });
        }
        reports.push(report);
    }
    reports
}

impl Report {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            text.write_fmt(arguments).expect("writing to a string cannot fail");
            text.push('\n');
        };
        if let (Some(from), Some(until)) = (self.from, self.until) {
            line(format_args!(
                "{} of {} events counted, usage from {}, the last alert at {}",
                self.counted,
                self.read,
                minute(from),
                minute(until)
            ));
        } else {
            line(format_args!("{} of {} events counted, no alert", self.counted, self.read));
        }
        if let Some(labels) = &self.labels {
            line(format_args!(
                "\n{} owners of {} labelled accounts are to be found",
                labels.runs, labels.rows
            ));
            line(format_args!("  {:<12} {SCORE_HEADER}", "all policies"));
            line(format_args!("  {:<12} {}", "current", scored(&labels.current)));
            line(format_args!("  {:<12} {}", "candidate", scored(&labels.candidate)));
        }
        for policy in &self.policies {
            policy.write(&mut line);
        }
        if !self.only_current.is_empty() {
            line(format_args!("\nnot in the candidate, so not compared"));
            for counted in &self.only_current {
                let Counted { policy, keys, alerts, .. } = counted;
                line(format_args!("  {policy}: {alerts} alerts on {keys} keys"));
            }
        }
        if let Some(sweep) = &self.sweep {
            line(format_args!("\nsweep of {}", sweep.of));
            let scores = sweep.steps.iter().any(|step| step.score.is_some());
            let header = if scores { SCORE_HEADER } else { "" };
            line(format_args!("  {:>12} {:>7} {:>7} {header}", "at_least", "keys", "alerts"));
            for step in &sweep.steps {
                let score = step.score.as_ref().map(scored).unwrap_or_default();
                let mark = if Some(step.at_least) == sweep.in_force { '*' } else { ' ' };
                let Step { at_least, keys, alerts, .. } = step;
                let at_least = if *at_least >= 1e5 {
                    format!("{at_least:.3e}")
                } else {
                    format!("{at_least}")
                };
                line(format_args!(" {mark}{at_least:>12} {keys:>7} {alerts:>7} {score}"));
            }
        }
        text
    }
}

const SCORE_HEADER: &str =
    "  true/keys precision  found/runs recall  spent at first alert: median, most";

fn scored(score: &Score) -> String {
    let share = |share: Option<f64>| match share {
        Some(share) => format!("{:.1} %", share * 100.0),
        None => "-".to_owned(),
    };
    format!(
        "{:>11} {:>9} {:>11} {:>6} {:>29}, {}",
        format!("{}/{}", score.true_keys, score.keys),
        share(score.precision),
        format!("{}/{}", score.found, score.runs),
        share(score.recall),
        share(score.spent_median),
        share(score.spent_most)
    )
}

impl PolicyReport {
    fn write(&self, line: &mut impl FnMut(std::fmt::Arguments<'_>)) {
        let candidate = &self.candidate;
        let wording = match &self.current {
            None => format!("version {}, which is new", candidate.version),
            Some(current) if self.is_same_wording => {
                format!("version {}, word for word the same", current.version)
            }
            Some(current) => {
                format!("version {} against version {}", candidate.version, current.version)
            }
        };
        line(format_args!("\n{}: {wording}", self.policy));
        let sets = [("current", self.current.as_ref()), ("candidate", Some(candidate))];
        let header = if candidate.score.is_some() { SCORE_HEADER } else { "" };
        line(format_args!("  {:<12} {:>7} {:>7} {header}", "", "keys", "alerts"));
        for (name, counted) in sets {
            let Some(counted) = counted else { continue };
            let score = counted.score.as_ref().map(scored).unwrap_or_default();
            line(format_args!("  {name:<12} {:>7} {:>7} {score}", counted.keys, counted.alerts));
        }
        for (word, changes) in
            [("new", &self.new), ("lost", &self.lost), ("changed", &self.changed)]
        {
            line(format_args!("  {word}: {}", changes.len()));
            for change in changes.iter().take(MOST) {
                line(format_args!("    {}", change.text()));
            }
            if changes.len() > MOST {
                line(format_args!("    and {} more: see --json", changes.len() - MOST));
            }
        }
        line(format_args!("  the same: {}", self.same));
    }
}

impl Change {
    fn text(&self) -> String {
        let said = |said: &Said| {
            let after = said.hours_from_first_usage;
            let after = after.map(|hours| format!(", {hours:.0} h after its first usage"));
            format!(
                "{} alerts, the first at {}{}",
                said.alerts,
                minute(said.first_at),
                after.unwrap_or_default()
            )
        };
        let Self { scope, key, current, candidate } = self;
        let words = match (current, candidate) {
            (Some(current), Some(candidate)) => {
                let (a, b) = (current.first_at, candidate.first_at);
                let hours = b.since(a).as_seconds().max(a.since(b).as_seconds()) / 3600.0;
                let when = match b.cmp(&a) {
                    std::cmp::Ordering::Less => format!(", {hours:.0} h earlier"),
                    std::cmp::Ordering::Equal => String::new(),
                    std::cmp::Ordering::Greater => format!(", {hours:.0} h later"),
                };
                format!(
                    "{} became {} in {} revisions{when}",
                    said(current),
                    said(candidate),
                    candidate.revisions
                )
            }
            (Some(one), None) | (None, Some(one)) => said(one),
            (None, None) => String::new(),
        };
        format!("{scope} {key}: {words}")
    }
}
