//! One pass over a history, judged by every set of policies at once.
//!
//! Each set's policies go by an id of their own, `number/id`: no id of a policy has a slash. The
//! hash of a policy and everything judged stay as they are.

use std::collections::{BTreeMap, BTreeSet};

use super::labels::Labels;
use crate::detector::alert::{Alert, State};
use crate::detector::internal::AccountSum;
use crate::detector::outbox::DeadLetter;
use crate::detector::policy::{Mode, Policies, Policy};
use crate::detector::time::{Span, Timestamp};
use crate::error::Fatal;
use crate::replay::Sink;

/// A key of a policy's alerts: scope and key.
pub(super) type Key = (&'static str, String);

/// Alerts of one set: by policy, by key.
pub(super) type Alerts = BTreeMap<String, BTreeMap<Key, Told>>;

/// What one policy said of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) first_at: Timestamp,
    /// Each revision: its state and the slice end.
    pub(super) revisions: Vec<(&'static str, Timestamp)>,
    /// From the first usage of its accounts to the first alert.
    pub(super) after: Option<Span>,
}

impl Told {
    pub(super) fn firings(&self) -> usize {
        self.revisions.iter().filter(|(state, _)| *state == State::Firing.name()).count()
    }
}

/// The policies of all sets, each named after its set; those that are off are left out.
pub(super) fn all(sets: &[Vec<Policy>]) -> Policies {
    let mut list = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        for policy in set.iter().filter(|policy| policy.mode != Mode::Off) {
            let id = format!("{number}/{}", policy.id);
            list.push(Policy { id, mode: Mode::Live, ..policy.clone() });
        }
    }
    Policies { list }
}

/// What a replay of all sets has said.
#[derive(Debug)]
pub(super) struct History {
    /// In the order of the sets.
    pub(super) sets: Vec<Alerts>,
    /// GFLOP of labelled accounts by slice end.
    pub(super) used: BTreeMap<String, BTreeMap<Timestamp, i128>>,
    labelled: BTreeSet<String>,
    /// Each account's first slice end.
    began: BTreeMap<String, Timestamp>,
    /// Length of a slice of the finest tier.
    slice: Span,
}

impl History {
    pub(super) fn new(sets: usize, labels: Option<&Labels>, slice: Span) -> Self {
        let accounts = labels.iter().flat_map(|labels| &labels.runs).flat_map(|run| &run.accounts);
        Self {
            sets: vec![Alerts::new(); sets],
            used: BTreeMap::new(),
            labelled: accounts.cloned().collect(),
            began: BTreeMap::new(),
            slice,
        }
    }

    /// GFLOP that these accounts had used by `at`.
    pub(super) fn used_until(&self, accounts: &BTreeSet<String>, at: Timestamp) -> i128 {
        let slices = accounts.iter().filter_map(|account| self.used.get(account));
        slices.flat_map(|slices| slices.range(..=at)).map(|(_, flop)| flop).sum()
    }

    /// The start of the first slice with usage.
    pub(super) fn from(&self) -> Option<Timestamp> {
        self.began.values().min().map(|end| end.minus(self.slice))
    }
}

impl Sink for History {
    fn alert(&mut self, alert: &Alert) -> Result<(), Fatal> {
        let (set, policy) = alert.policy.id.split_once('/').expect("named by us");
        let set: usize = set.parse().expect("named by us");
        let by_key = self.sets[set].entry(policy.to_owned()).or_default();
        let told = by_key.entry((alert.scope, alert.key.clone())).or_insert_with(|| {
            let began = alert.accounts.iter().filter_map(|account| self.began.get(account)).min();
            Told {
                first_at: alert.at,
                revisions: Vec::new(),
                after: began.map(|end| alert.at.since(end.minus(self.slice))),
            }
        });
        told.revisions.push((alert.state.name(), alert.at));
        Ok(())
    }

    fn dead_letter(&mut self, _source: usize, _letter: &DeadLetter) -> Result<(), Fatal> {
        Ok(())
    }

    fn watches(&self) -> bool {
        true
    }

    fn sum(&mut self, account: &str, sum: &AccountSum) -> bool {
        match self.began.get_mut(account) {
            Some(began) => *began = (*began).min(sum.slice_end),
            None => {
                self.began.insert(account.to_owned(), sum.slice_end);
            }
        }
        if self.labelled.contains(account) {
            let slices = self.used.entry(account.to_owned()).or_default();
            *slices.entry(sum.slice_end).or_default() += sum.measure.flop;
        }
        true
    }
}
