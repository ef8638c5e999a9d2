//! One revision of an alert, as read back from the topic, in either of its two forms.
//!
//! Only what the targets say is kept, the directory's facts not; what is passed on whole is the
//! record itself. Whoever reads alerts sees bytes that somebody else may have written: a record
//! that is no alert is an error here, never a panic.

use prost::Message as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::detector::alert::State;
use crate::detector::event::Record;
use crate::detector::time::Timestamp;
use crate::proto;

/// How the record was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// CloudEvents structured mode: the value is the whole event, as JSON.
    Structured,
    /// CloudEvents binary mode: attributes are headers, the value is `flopwatch.v1.Alert`.
    Binary,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Notice {
    pub alert_id: String,
    pub revision: u32,
    pub state: State,
    #[serde(deserialize_with = "instant")]
    pub at: Timestamp,
    #[serde(default)]
    pub reason: Option<String>,
    pub policy: Policy,
    pub scope: String,
    pub key: String,
    pub accounts: Vec<String>,
    pub accounts_total: u64,
    pub origin: Origin,
    pub conditions: Vec<Condition>,
    pub estimate: Estimate,
    #[serde(default)]
    pub run: Option<Run>,
    #[serde(deserialize_with = "instant")]
    pub first_at: Timestamp,
    #[serde(default, deserialize_with = "optional_instant")]
    pub report_due: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Policy {
    pub id: String,
    pub version: u32,
    pub title: String,
    pub severity: String,
    pub mode: String,
    pub hash: String,
    pub references: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Origin {
    pub country: String,
    pub foreign: bool,
    pub decided_by: String,
    #[serde(default)]
    pub foreign_by: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Condition {
    pub metric: String,
    #[serde(default)]
    pub window: Option<String>,
    pub observed: f64,
    pub at_least: f64,
    pub unit: String,
    pub met: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Estimate {
    pub flop_low: f64,
    pub flop: f64,
    pub flop_high: f64,
    pub flop_allocated: f64,
    pub accelerators: f64,
    pub accelerator_hours: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Run {
    #[serde(deserialize_with = "instant")]
    pub start: Timestamp,
    pub hours: f64,
    pub flop_low: f64,
    pub flop: f64,
    pub flop_high: f64,
}

#[derive(Deserialize)]
struct Event {
    data: Notice,
}

impl Notice {
    /// Reads a record of an alert topic.
    pub fn read(record: &Record<'_>) -> Result<(Self, Form), String> {
        let value = record.value.ok_or("it has no value")?;
        let content_type = record
            .headers
            .iter()
            .find(|header| header.name == "content-type")
            .and_then(|header| header.value);
        if content_type == Some(b"application/protobuf") {
            let alert = proto::Alert::decode(value).map_err(|error| error.to_string())?;
            return Self::from_proto(alert).map(|notice| (notice, Form::Binary));
        }
        let event: Event = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        event.data.checked().map(|notice| (notice, Form::Structured))
    }

    /// What the identity of a delivery rests on.
    fn checked(self) -> Result<Self, String> {
        if self.alert_id.is_empty() || !self.alert_id.chars().all(|c| c.is_ascii_graphic()) {
            return Err("alert_id is not printable ASCII".into());
        }
        Ok(self)
    }

    /// `<alert_id>/<revision>`, as in the CloudEvent: equal ones are one delivery.
    pub fn id(&self) -> String {
        format!("{}/{}", self.alert_id, self.revision)
    }

    /// One sentence for a person: who, and each condition with its threshold.
    pub fn summary(&self) -> String {
        let mut text = format!("{} {} ({})", self.scope, self.key, self.origin.country);
        let mut lead = ": ";
        for condition in &self.conditions {
            let Condition { metric, unit, .. } = condition;
            let (observed, at_least) = (shown(condition.observed), shown(condition.at_least));
            let window = condition.window.as_ref();
            let window = window.map_or_else(String::new, |window| format!(" over {window}"));
            text += &format!("{lead}{metric}{window} {observed} of {at_least} {unit}");
            lead = ", ";
        }
        text + "."
    }

    fn from_proto(alert: proto::Alert) -> Result<Self, String> {
        let state = match alert.state() {
            proto::alert::State::Firing => State::Firing,
            proto::alert::State::Updated => State::Updated,
            proto::alert::State::Resolved => State::Resolved,
            proto::alert::State::Unspecified => return Err("it has no state".into()),
        };
        let policy = alert.policy.ok_or("it has no policy")?;
        let origin = alert.origin.ok_or("it has no origin")?;
        let estimate = alert.estimate.ok_or("it has no estimate")?;
        let given = |text: String| (!text.is_empty()).then_some(text);
        let conditions = alert.conditions.into_iter().map(|condition| Condition {
            metric: condition.metric,
            window: given(condition.window),
            observed: condition.observed,
            at_least: condition.at_least,
            unit: condition.unit,
            met: condition.met,
        });
        Self {
            alert_id: alert.alert_id,
            revision: alert.revision,
            state,
            at: Timestamp(alert.at_unix_nano),
            reason: given(alert.reason),
            policy: Policy {
                id: policy.id,
                version: policy.version,
                title: policy.title,
                severity: policy.severity,
                mode: policy.mode,
                hash: policy.hash,
                references: policy.references,
            },
            scope: alert.scope,
            key: alert.key,
            accounts: alert.accounts,
            accounts_total: alert.accounts_total,
            origin: Origin {
                country: origin.country,
                foreign: origin.foreign,
                decided_by: origin.decided_by,
                foreign_by: origin.foreign_by,
            },
            conditions: conditions.collect(),
            estimate: Estimate {
                flop_low: estimate.flop_low,
                flop: estimate.flop,
                flop_high: estimate.flop_high,
                flop_allocated: estimate.flop_allocated,
                accelerators: estimate.accelerators,
                accelerator_hours: estimate.accelerator_hours,
            },
            run: alert.run.map(|run| Run {
                start: Timestamp(run.start_unix_nano),
                hours: run.hours,
                flop_low: run.flop_low,
                flop: run.flop,
                flop_high: run.flop_high,
            }),
            first_at: Timestamp(alert.first_at_unix_nano),
            report_due: (alert.report_due_unix_nano > 0)
                .then_some(Timestamp(alert.report_due_unix_nano)),
        }
        .checked()
    }
}

/// Four digits: a count as people write it, FLOP with an exponent.
fn shown(number: f64) -> String {
    let size = number.abs();
    if size == 0.0 || (0.001..1e6).contains(&size) {
        let text = format!("{number:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{number:.3e}")
    }
}

fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let instant: jiff::Timestamp =
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)?;
    let nanoseconds = u64::try_from(instant.as_nanosecond());
    nanoseconds.map(Timestamp).map_err(|_| serde::de::Error::custom("an instant before 1970"))
}

fn optional_instant<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Timestamp>, D::Error> {
    #[derive(Deserialize)]
    struct Given(#[serde(deserialize_with = "instant")] Timestamp);
    Ok(Option::<Given>::deserialize(deserializer)?.map(|Given(instant)| instant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_people_write_them() {
        for (number, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.9583333, "0.958"),
            (100.0, "100"),
            (98_316.5, "98316.5"),
            (1.25e24, "1.250e24"),
            (2e-9, "2.000e-9"),
        ] {
            assert_eq!(shown(number), text);
        }
    }
}
