//! OCSF: each revision as a Detection Finding (class 2004) on a topic, under the alert's own key.
//!
//! The schema is that of OCSF 1.6.0. `finding_info.uid` is the alert, `metadata.uid` the revision:
//! a finding that comes twice has the same one. `status_id` is 1 (New) until it is 4 (Resolved):
//! who reviews it, and when, is not known here.

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};
use serde_json::{Value, json};

use super::http::Failure;
use super::log::Delivery;
use super::notice::Notice;
use crate::config;
use crate::detector::alert::State;
use crate::detector::time::Timestamp;
use crate::error::Fatal;
use crate::kafka::client::{self, Producer};

const SCHEMA: &str = "1.6.0";
const CLASS: u32 = 2004;
/// How long one try waits for the broker.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Ocsf {
    kafka: config::Kafka,
    topic: String,
    producer: Producer,
    /// What is to be written has been handed to the producer, and may be on its way.
    handed: bool,
}

impl Ocsf {
    pub(crate) fn new(kafka: &config::Kafka, topic: &str) -> Result<Self, Fatal> {
        let producer = client::plain_producer(kafka, "notify-ocsf")?;
        Ok(Self { kafka: kafka.clone(), topic: topic.to_owned(), producer, handed: false })
    }

    /// Writes the findings, or says why not: then it is called again with the same ones.
    pub(crate) fn write(&mut self, deliveries: &[&Delivery]) -> Result<(), Failure> {
        let again = |error: KafkaError| Failure::Again(error.to_string());
        if !self.handed {
            for delivery in deliveries {
                self.hand(delivery).map_err(again)?;
            }
            self.handed = true;
        }
        // a record that is still on its way is not sent a second time
        let flushed = self.producer.flush(PATIENCE);
        let undelivered = self.producer.context().take_undelivered();
        if undelivered.is_some() || self.producer.client().fatal_error().is_some() {
            self.handed = false;
            if self.producer.client().fatal_error().is_some() {
                self.producer = client::plain_producer(&self.kafka, "notify-ocsf")
                    .map_err(|fatal| Failure::Again(fatal.to_string()))?;
            }
            let text = undelivered.map_or_else(
                || "the producer has failed".to_owned(),
                |lost| format!("a record for {:?} got {}", lost.topic, lost.code),
            );
            return Err(Failure::Again(text));
        }
        flushed.map_err(again)?;
        self.handed = false;
        Ok(())
    }

    fn hand(&self, delivery: &Delivery) -> Result<(), KafkaError> {
        let value = finding(&delivery.notice).to_string();
        let headers = OwnedHeaders::new()
            .insert(Header { key: "content-type", value: Some("application/json") });
        let record = BaseRecord::to(&self.topic)
            .key(&delivery.key)
            .payload(value.as_bytes())
            .headers(headers);
        self.producer.send(record).map_err(|(error, _)| error)
    }

    /// What was handed over belongs to a partition that is gone: its new owner writes it again.
    pub(crate) const fn forget(&mut self) {
        self.handed = false;
    }
}

/// The finding that a revision is.
pub fn finding(notice: &Notice) -> Value {
    let Notice { policy, origin, .. } = notice;
    let (activity, activity_name) = match notice.state {
        State::Firing => (1, "Create"),
        State::Updated => (2, "Update"),
        State::Resolved => (3, "Close"),
    };
    let (status, status_name) = match notice.state {
        State::Firing | State::Updated => (1, "New"),
        State::Resolved => (4, "Resolved"),
    };
    let (severity, severity_name) = severity(&policy.severity);
    let (first, at) = (milliseconds(notice.first_at), milliseconds(notice.at));
    let summary = notice.summary();
    json!({
        "activity_id": activity,
        "activity_name": activity_name,
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": CLASS,
        "class_name": "Detection Finding",
        "type_uid": CLASS * 100 + activity,
        "type_name": format!("Detection Finding: {activity_name}"),
        "severity_id": severity,
        "severity": severity_name,
        "status_id": status,
        "status": status_name,
        "is_alert": notice.state == State::Firing,
        "time": at,
        "start_time": notice.run.map_or(first, |run| milliseconds(run.start)),
        "end_time": at,
        "message": summary,
        "metadata": {
            "version": SCHEMA,
            "product": {
                "name": "flopwatch",
                "vendor_name": "flopwatch",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "uid": notice.id(),
            "correlation_uid": notice.alert_id,
            "sequence": notice.revision,
            "original_time": notice.at.to_string(),
        },
        "finding_info": {
            "uid": notice.alert_id,
            "title": policy.title,
            "desc": summary,
            "analytic": analytic(notice),
            "created_time": first,
            "first_seen_time": first,
            "modified_time": at,
            "last_seen_time": at,
        },
        "resources": resources(notice),
        "evidences": [{
            "uid": notice.id(),
            "name": "flopwatch.alert.v1",
            "data": {
                "scope": notice.scope,
                "key": notice.key,
                "accounts_total": notice.accounts_total,
                "origin": origin,
                "conditions": notice.conditions,
                "estimate": notice.estimate,
                "run": notice.run,
                "policy_hash": policy.hash,
                "references": policy.references,
                "reason": notice.reason,
                "report_due": notice.report_due,
            },
        }],
    })
}

fn analytic(notice: &Notice) -> Value {
    let policy = &notice.policy;
    let (state, state_name) =
        if policy.mode == "shadow" { (3, "Experimental") } else { (1, "Active") };
    json!({
        "type_id": 1,
        "type": "Rule",
        "uid": policy.id,
        "name": policy.title,
        "version": policy.version.to_string(),
        "state_id": state,
        "state": state_name,
    })
}

/// What the alert is about, and the accounts that it names.
fn resources(notice: &Notice) -> Vec<Value> {
    let mut resources = vec![json!({ "uid": notice.key, "type": notice.scope })];
    for account in &notice.accounts {
        let resource = json!({ "uid": account, "type": "account" });
        if resources[0] != resource {
            resources.push(resource);
        }
    }
    resources
}

fn severity(name: &str) -> (u32, &'static str) {
    match name {
        "critical" => (5, "Critical"),
        "warning" => (3, "Medium"),
        "info" => (1, "Informational"),
        _ => (0, "Unknown"),
    }
}

const fn milliseconds(instant: Timestamp) -> u64 {
    instant.0 / 1_000_000
}
