//! How well a set of alerts agrees with the labels.

use std::collections::BTreeMap;

use serde::Serialize;

use super::history::{History, Key};
use super::labels::{Labels, Run};
use crate::detector::time::Timestamp;

/// Precision by alerted keys, recall by labelled owners; keys of countries point at nobody and are
/// left out of both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Score {
    pub(super) keys: usize,
    pub(super) true_keys: usize,
    /// `None`: no key.
    pub(super) precision: Option<f64>,
    pub(super) runs: usize,
    pub(super) found: usize,
    /// `None`: no run.
    pub(super) recall: Option<f64>,
    /// Of the runs found: the share of their FLOP that was spent at the first alert.
    pub(super) spent_median: Option<f64>,
    pub(super) spent_most: Option<f64>,
}

/// `firsts` is when each key first had an alert.
pub(super) fn score(
    firsts: &BTreeMap<Key, Timestamp>,
    labels: &Labels,
    history: &History,
) -> Score {
    let is_meant = |run: &Run, (scope, key): &Key| run.is_meant(scope, key);
    let keys: Vec<&Key> = firsts.keys().filter(|(scope, _)| *scope != "country").collect();
    let is_true = |key: &&&Key| labels.runs.iter().any(|run| is_meant(run, key));
    let true_keys = keys.iter().filter(is_true).count();
    let mut spent: Vec<f64> = Vec::new();
    let mut found = 0;
    for run in &labels.runs {
        let meant = firsts.iter().filter(|(key, _)| is_meant(run, key));
        let Some(first) = meant.map(|(_, at)| *at).min() else { continue };
        found += 1;
        if run.flop_gflop > 0 {
            spent.push(ratio(history.used_until(&run.accounts, first), run.flop_gflop));
        }
    }
    spent.sort_by(f64::total_cmp);
    let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
    Score {
        keys: keys.len(),
        true_keys,
        precision: share(true_keys, keys.len()),
        runs: labels.runs.len(),
        found,
        recall: share(found, labels.runs.len()),
        spent_median: spent.get(spent.len().saturating_sub(1) / 2).copied(),
        spent_most: spent.last().copied(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for people to read")]
fn ratio(part: i128, whole: i128) -> f64 {
    part as f64 / whole as f64
}
