//! An alert as the record that carries it: CloudEvents 1.0 on Kafka.
//!
//! Structured mode puts the whole event as JSON into the value; binary mode puts the attributes
//! into headers and `flopwatch.v1.Alert` into the value. Both say the same. Equal alerts give
//! equal bytes: field order is that of the types, maps are sorted.
//!
//! A record is at most 256 KiB. A larger alert loses proof until its structured form fits, in this
//! order, whatever form is published:
//! 1. facts of the origin are cut to 1 KiB each: only a list of addresses is ever longer, and it
//!    must not cost an alert its sums;
//! 2. `evidence.slices` loses its older half, again and again, until none is left;
//! 3. of `by_fabric`, then `by_region`, then `by_accelerator` the smaller half is added to
//!    `other`, again and again, until only `other` is left: the sums still add up.
//!
//! The rest is never touched: names are bounded, and so are the accounts of an owner.

use std::borrow::Cow;
use std::collections::BTreeMap;

use prost::Message;
use serde::Serialize;

use super::alert::{Alert, Evidence, State, Sum};
use super::time::Timestamp;
use crate::proto;

/// Largest record in bytes: key, headers and value.
pub const SIZE_LIMIT: usize = 256 * 1024;

const SOURCE: &str = "flopwatch";
const TYPE: &str = "flopwatch.alert.v1";
const SPEC_VERSION: &str = "1.0";
/// Where shares are gathered that have no entry of their own.
const OTHER: &str = "other";
/// Longest fact of an oversized alert, in bytes.
const FACT_LIMIT: usize = 1024;

/// A record ready for the alert topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// `scope/key/policy`.
    pub key: String,
    pub headers: Vec<(&'static str, String)>,
    pub value: Vec<u8>,
}

/// The event in structured mode, its attributes in the order of the specification.
#[derive(Serialize)]
struct Event<'a> {
    specversion: &'static str,
    id: String,
    source: &'static str,
    r#type: &'static str,
    subject: String,
    time: Timestamp,
    datacontenttype: &'static str,
    data: &'a Alert,
}

/// The whole event as JSON.
pub fn structured(alert: &Alert) -> Published {
    encode(&trimmed(alert))
}

/// The attributes as headers, the alert as protobuf.
pub fn binary(alert: &Alert) -> Published {
    let alert = trimmed(alert);
    let headers = vec![
        ("content-type", "application/protobuf".to_owned()),
        ("ce_specversion", SPEC_VERSION.to_owned()),
        ("ce_id", id(&alert)),
        ("ce_source", SOURCE.to_owned()),
        ("ce_type", TYPE.to_owned()),
        ("ce_subject", subject(&alert)),
        ("ce_time", alert.at.to_string()),
    ];
    Published { key: key(&alert), headers, value: message(&alert).encode_to_vec() }
}

fn encode(alert: &Alert) -> Published {
    let event = Event {
        specversion: SPEC_VERSION,
        id: id(alert),
        source: SOURCE,
        r#type: TYPE,
        subject: subject(alert),
        time: alert.at,
        datacontenttype: "application/json",
        data: alert,
    };
    let content_type = "application/cloudevents+json; charset=UTF-8".to_owned();
    Published {
        key: key(alert),
        headers: vec![("content-type", content_type)],
        value: serde_json::to_vec(&event).expect("the types hold nothing that JSON cannot say"),
    }
}

fn id(alert: &Alert) -> String {
    format!("{}/{}", alert.alert_id, alert.revision)
}

fn subject(alert: &Alert) -> String {
    format!("{}/{}", alert.scope, alert.key)
}

fn key(alert: &Alert) -> String {
    format!("{}/{}/{}", alert.scope, alert.key, alert.policy.id)
}

/// The alert with as much evidence as a record holds.
fn trimmed(alert: &Alert) -> Cow<'_, Alert> {
    let mut trimmed = Cow::Borrowed(alert);
    while size(&encode(&trimmed)) > SIZE_LIMIT {
        if !(trim_facts(trimmed.to_mut()) || trim_evidence(&mut trimmed.to_mut().evidence)) {
            break;
        }
    }
    trimmed
}

fn size(published: &Published) -> usize {
    let headers = published.headers.iter().map(|(name, value)| name.len() + value.len());
    published.key.len() + published.value.len() + headers.sum::<usize>()
}

/// Cuts long facts; false when none is long.
fn trim_facts(alert: &mut Alert) -> bool {
    let mut cut = false;
    for fact in alert.origin.facts.values_mut().filter(|fact| fact.len() > FACT_LIMIT) {
        fact.truncate(fact.floor_char_boundary(FACT_LIMIT));
        cut = true;
    }
    cut
}

/// Gives up the next evidence in the order above; false when none is left.
fn trim_evidence(evidence: &mut Evidence) -> bool {
    if !evidence.slices.is_empty() {
        let older = evidence.slices.len().div_ceil(2);
        evidence.slices.drain(..older);
        return true;
    }
    let Evidence { by_fabric, by_region, by_accelerator, .. } = evidence;
    [by_fabric, by_region, by_accelerator].into_iter().any(gather_smaller_half)
}

/// Adds the smaller half of the shares to `other`; false when there is nothing but `other`.
fn gather_smaller_half(shares: &mut BTreeMap<String, Sum>) -> bool {
    let mut names: Vec<String> = shares.keys().filter(|name| *name != OTHER).cloned().collect();
    // by size, equal ones by name: the same alert loses the same shares everywhere
    names.sort_by_key(|name| (shares[name].flop_allocated_gflop, shares[name].accelerator_ms));
    names.truncate(names.len().div_ceil(2));
    for name in &names {
        let share = shares.remove(name).expect("named from the map itself");
        let other = shares.entry(OTHER.to_owned()).or_default();
        other.accelerator_ms += share.accelerator_ms;
        other.flop_gflop += share.flop_gflop;
        other.flop_allocated_gflop += share.flop_allocated_gflop;
        other.flop_theoretical_gflop += share.flop_theoretical_gflop;
    }
    !names.is_empty()
}

fn message(alert: &Alert) -> proto::Alert {
    let policy = &alert.policy;
    let origin = &alert.origin;
    proto::Alert {
        alert_id: alert.alert_id.clone(),
        revision: alert.revision,
        state: match alert.state {
            State::Firing => proto::alert::State::Firing,
            State::Updated => proto::alert::State::Updated,
            State::Resolved => proto::alert::State::Resolved,
        }
        .into(),
        at_unix_nano: alert.at.0,
        reason: alert.reason.unwrap_or_default().to_owned(),
        policy: Some(proto::AlertPolicy {
            id: policy.id.clone(),
            version: policy.version,
            title: policy.title.clone(),
            severity: policy.severity.to_owned(),
            mode: policy.mode.name().to_owned(),
            hash: policy.hash.clone(),
            references: policy.references.clone(),
        }),
        scope: alert.scope.to_owned(),
        key: alert.key.clone(),
        accounts: alert.accounts.clone(),
        accounts_total: alert.accounts_total,
        origin: Some(proto::AlertOrigin {
            country: origin.country.to_string(),
            foreign: origin.foreign,
            decided_by: origin.decided_by.to_owned(),
            foreign_by: origin.foreign_by.iter().map(|&field| field.to_owned()).collect(),
            facts: origin
                .facts
                .iter()
                .map(|(&field, value)| (field.to_owned(), value.clone()))
                .collect(),
        }),
        conditions: conditions(alert),
        estimate: Some(estimate(alert)),
        run: alert.run.map(|run| proto::AlertRun {
            start_unix_nano: run.start.0,
            hours: run.hours,
            flop_low: run.flop_low,
            flop: run.flop,
            flop_high: run.flop_high,
        }),
        projection: alert.projection.map(|projection| proto::AlertProjection {
            threshold: projection.threshold,
            reached_at_unix_nano: projection.reached_at.unwrap_or_default().0,
        }),
        evidence: Some(evidence(&alert.evidence)),
        first_at_unix_nano: alert.first_at.0,
        report_due_unix_nano: alert.report_due.unwrap_or_default().0,
    }
}

fn conditions(alert: &Alert) -> Vec<proto::AlertCondition> {
    let message = |condition: &super::alert::Observed| proto::AlertCondition {
        metric: condition.metric.to_owned(),
        window: condition.window.clone().unwrap_or_default(),
        observed: condition.observed,
        at_least: condition.at_least,
        unit: condition.unit.to_owned(),
        met: condition.met,
    };
    alert.conditions.iter().map(message).collect()
}

fn estimate(alert: &Alert) -> proto::AlertEstimate {
    let estimate = alert.estimate;
    proto::AlertEstimate {
        flop_low: estimate.flop_low,
        flop: estimate.flop,
        flop_high: estimate.flop_high,
        flop_allocated: estimate.flop_allocated,
        accelerators: estimate.accelerators,
        accelerator_hours: estimate.accelerator_hours,
    }
}

fn evidence(evidence: &Evidence) -> proto::AlertEvidence {
    let slice = |slice: &super::alert::SliceSum| proto::AlertSlice {
        end_unix_nano: slice.end.0,
        sum: Some(sum(slice.sum)),
    };
    proto::AlertEvidence {
        gap_records: evidence.gap_records,
        slices: evidence.slices.iter().map(slice).collect(),
        by_accelerator: shares(&evidence.by_accelerator),
        by_region: shares(&evidence.by_region),
        by_fabric: shares(&evidence.by_fabric),
        unknown_accelerator: evidence.unknown_accelerator,
    }
}

fn shares(shares: &BTreeMap<String, Sum>) -> Vec<proto::AlertShare> {
    let message = |(name, share): (&String, &Sum)| proto::AlertShare {
        name: name.clone(),
        sum: Some(sum(*share)),
    };
    shares.iter().map(message).collect()
}

fn sum(sum: Sum) -> proto::AlertSum {
    proto::AlertSum {
        accelerator_ms: sum.accelerator_ms.to_string(),
        flop_gflop: sum.flop_gflop.to_string(),
        flop_allocated_gflop: sum.flop_allocated_gflop.to_string(),
        flop_theoretical_gflop: sum.flop_theoretical_gflop.to_string(),
    }
}
