//! The numbers of one alert again, from the events, with the stages of production.
//!
//! Beside the alert's own policy, probes are judged: the same conditions over the same windows with
//! thresholds that everything meets. They tell what was observed at the alert's slice end even
//! where the events give no alert. Only the sums of accounts that belong to the key go on to the
//! later stages: those depend on no other account, and time passes for all.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::published::Head;
use crate::config::Config;
use crate::detector::alert::Alert;
use crate::detector::directory::{AccountRecord, Facts};
use crate::detector::internal::AccountSum;
use crate::detector::measure::Measure;
use crate::detector::outbox::{DeadLetter, Tally};
use crate::detector::policy::{Condition, Mode, OriginMatch, Policies, Policy, Scope};
use crate::detector::time::{Span, Timestamp};
use crate::detector::window::window_end;
use crate::error::Fatal;
use crate::replay::{Sink, Source, replay};

/// No id of a policy has a slash: these cannot be taken for another's.
const WHOLE: &str = "probe/whole";
const ANY_ORIGIN: &str = "probe/any-origin";
const CONDITION: &str = "probe/condition/";

/// What the events give.
#[derive(Debug, Default)]
pub(super) struct Rerun {
    /// The revision itself.
    pub(super) alert: Option<Alert>,
    /// Its policy and key at its slice end, thresholds and episode aside.
    pub(super) judged: Option<Alert>,
    /// The origin is another than the policy looks at.
    pub(super) other_origin: bool,
    /// Each condition over its own window at the slice end.
    pub(super) windows: Vec<Option<Alert>>,
    /// Other alerts of the policy on the key.
    pub(super) others: Vec<Alert>,
    /// Of an owner or country: each account's sum over each condition's window.
    pub(super) members: Vec<BTreeMap<String, Measure>>,
    /// Of an owner: each account's slices of the finest tier up to the judgement.
    pub(super) slices: BTreeMap<String, BTreeMap<Timestamp, Measure>>,
    pub(super) tally: Tally,
}

pub(super) fn rerun(
    head: &Head,
    policy: &Policy,
    config: &Config,
    accounts: &[AccountRecord],
    sources: Vec<Box<dyn Source + '_>>,
) -> Result<Rerun, Fatal> {
    let policies = Arc::new(Policies { list: judged(policy) });
    let mut collected = Collected {
        head,
        scope: policy.scope,
        accounts: belonging(head, policy.scope, config, accounts),
        visible: head.at.plus(config.rules.time.lateness),
        bounds: policy.conditions.iter().map(|condition| bounds(condition, head, config)).collect(),
        rerun: Rerun {
            windows: vec![None; policy.conditions.len()],
            members: vec![BTreeMap::new(); policy.conditions.len()],
            ..Rerun::default()
        },
    };
    let outcome = replay(&config.rules, &policies, accounts, sources, &mut collected)?;
    let mut rerun = collected.rerun;
    rerun.tally = outcome.tally;
    // the threshold of a probe is none of the policy's
    for alert in rerun.judged.iter_mut() {
        for (observed, condition) in alert.conditions.iter_mut().zip(&policy.conditions) {
            observed.at_least = condition.at_least;
            observed.met = observed.observed >= condition.at_least;
        }
    }
    Ok(rerun)
}

/// The policy, and its probes.
fn judged(policy: &Policy) -> Vec<Policy> {
    let met =
        |condition: &Condition| Condition { at_least: f64::NEG_INFINITY, ..condition.clone() };
    let probe = |id: String, origin: OriginMatch, window: Option<Span>, conditions| Policy {
        id,
        mode: Mode::Shadow,
        origin,
        window,
        hold: Span(0),
        keep_firing: Span(0),
        // an alert at every slice end
        renotify: Some(Span(0)),
        report_within: None,
        references: Vec::new(),
        conditions,
        ..policy.clone()
    };
    let all: Vec<Condition> = policy.conditions.iter().map(met).collect();
    let mut list = vec![
        policy.clone(),
        probe(WHOLE.to_owned(), policy.origin.clone(), policy.window, all.clone()),
        probe(ANY_ORIGIN.to_owned(), OriginMatch::Any, policy.window, all),
    ];
    list.extend(policy.conditions.iter().enumerate().map(|(index, condition)| {
        let window = condition.length().or(policy.window);
        probe(format!("{CONDITION}{index}"), OriginMatch::Any, window, vec![met(condition)])
    }));
    list
}

/// The part of time that a condition sums over; run conditions have none of their own.
fn bounds(condition: &Condition, head: &Head, config: &Config) -> Option<(Timestamp, Timestamp)> {
    let window = condition.length()?;
    let tier = config.rules.tier_of(window)?;
    let until = window_end(&config.rules.tiers[tier], head.at);
    Some((until.minus(window), until))
}

/// Which accounts a key is made of.
enum Belonging {
    /// The account that a site or account names.
    Key,
    /// Accounts that the directory has ever given to the owner, and the owner's own.
    Owner(Vec<String>),
    /// All go on; these are the country's by the directory.
    Country(BTreeMap<String, bool>, bool),
}

fn belonging(head: &Head, scope: Scope, config: &Config, accounts: &[AccountRecord]) -> Belonging {
    let facts = |record: &AccountRecord| match &record.entry {
        Some(entry) => Facts::Known(entry.clone()),
        None => Facts::Removed,
    };
    match scope {
        Scope::Account | Scope::Site => Belonging::Key,
        Scope::Owner => {
            let owned = accounts
                .iter()
                .filter(|record| facts(record).owner(&record.account_id) == head.key);
            let mut owned: Vec<String> = owned.map(|record| record.account_id.clone()).collect();
            owned.push(head.key.clone());
            owned.sort_unstable();
            owned.dedup();
            Belonging::Owner(owned)
        }
        Scope::Country => {
            let origin = |facts: &Facts| facts.origin(&config.rules.origin).country;
            let visible = head.at.plus(config.rules.time.lateness);
            let mut known = BTreeMap::new();
            for record in accounts {
                let has_effect = record.entry.as_ref().is_none_or(|entry| entry.updated <= visible);
                if has_effect || !known.contains_key(&record.account_id) {
                    let is_of = origin(&facts(record)).as_str() == head.key;
                    known.insert(record.account_id.clone(), is_of);
                }
            }
            Belonging::Country(known, origin(&Facts::Missing).as_str() == head.key)
        }
    }
}

impl Belonging {
    fn is_member(&self, account: &str) -> bool {
        match self {
            Self::Key => false,
            Self::Owner(accounts) => {
                accounts.binary_search_by(|known| (**known).cmp(account)).is_ok()
            }
            Self::Country(known, unknown) => *known.get(account).unwrap_or(unknown),
        }
    }
}

struct Collected<'a> {
    head: &'a Head,
    scope: Scope,
    accounts: Belonging,
    /// Sums with a tag before this were seen by the judgement.
    visible: Timestamp,
    bounds: Vec<Option<(Timestamp, Timestamp)>>,
    rerun: Rerun,
}

impl Sink for Collected<'_> {
    fn alert(&mut self, alert: &Alert) -> Result<(), Fatal> {
        let head = self.head;
        if alert.scope != head.scope || alert.key != head.key {
            return Ok(());
        }
        let is_then = alert.at == head.at;
        let rerun = &mut self.rerun;
        if alert.policy.id == head.policy.id {
            if alert.alert_id == head.alert_id && alert.revision == head.revision {
                rerun.alert = Some(alert.clone());
            } else {
                rerun.others.push(alert.clone());
            }
        } else if !is_then {
            // a probe at another time
        } else if alert.policy.id == WHOLE {
            (rerun.judged, rerun.other_origin) = (Some(alert.clone()), false);
        } else if alert.policy.id == ANY_ORIGIN {
            if rerun.judged.is_none() {
                (rerun.judged, rerun.other_origin) = (Some(alert.clone()), true);
            }
        } else if let Some(index) = alert.policy.id.strip_prefix(CONDITION) {
            let index: usize = index.parse().expect("written by us");
            rerun.windows[index] = Some(alert.clone());
        }
        Ok(())
    }

    fn dead_letter(&mut self, _source: usize, _letter: &DeadLetter) -> Result<(), Fatal> {
        Ok(())
    }

    fn watches(&self) -> bool {
        true
    }

    fn sum(&mut self, account: &str, sum: &AccountSum) -> bool {
        if matches!(self.accounts, Belonging::Key) {
            let rest = self.head.key.strip_prefix(account);
            return rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('@'));
        }
        let is_member = self.accounts.is_member(account);
        if is_member && sum.tag < self.visible {
            let rerun = &mut self.rerun;
            for (members, bounds) in rerun.members.iter_mut().zip(&self.bounds) {
                let within = bounds
                    .is_some_and(|(after, until)| after < sum.slice_end && sum.slice_end <= until);
                if within {
                    *members.entry(account.to_owned()).or_default() += sum.measure;
                }
            }
            if self.scope == Scope::Owner && sum.slice_end <= self.head.at {
                let slices = rerun.slices.entry(account.to_owned()).or_default();
                *slices.entry(sum.slice_end).or_default() += sum.measure;
            }
        }
        is_member || self.scope == Scope::Country
    }
}
