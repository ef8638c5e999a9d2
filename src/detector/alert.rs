//! Alerts: what they say, and the life of one (pending, firing, resolved).

use std::collections::BTreeMap;

use serde::Serialize;

use super::directory::Country;
use super::policy::Mode;
use super::time::Timestamp;

/// One revision of an alert, as its `data` says it: field names and order are the wire format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    pub alert_id: String,
    pub revision: u32,
    pub state: State,
    /// The end of the judged slice.
    pub at: Timestamp,
    /// Why it resolved without its conditions ceasing to hold: `withdrawn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    pub policy: PolicyRef,
    pub scope: &'static str,
    pub key: String,
    /// In order of id, at most 100; none at country scope.
    pub accounts: Vec<String>,
    pub accounts_total: u64,
    pub origin: Origin,
    pub conditions: Vec<Observed>,
    pub estimate: Estimate,
    pub run: Option<Run>,
    pub projection: Option<Projection>,
    pub evidence: Evidence,
    /// When the episode first fired.
    pub first_at: Timestamp,
    pub report_due: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Firing,
    Updated,
    Resolved,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Updated => "updated",
            Self::Resolved => "resolved",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyRef {
    pub id: String,
    pub version: u32,
    pub title: String,
    pub severity: &'static str,
    #[serde(serialize_with = "mode_name")]
    pub mode: Mode,
    pub hash: String,
    pub references: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    pub country: Country,
    pub foreign: bool,
    /// The field that gave the country of origin; `unknown` when none did.
    pub decided_by: &'static str,
    /// The fields that make the account foreign.
    pub foreign_by: Vec<&'static str>,
    /// Every known field.
    pub facts: BTreeMap<&'static str, String>,
}

/// One condition as judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Observed {
    pub metric: &'static str,
    pub window: Option<String>,
    pub observed: f64,
    pub at_least: f64,
    pub unit: &'static str,
    pub met: bool,
}

/// Compute over the policy's own window, or 24 h.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    pub flop_low: f64,
    pub flop: f64,
    pub flop_high: f64,
    pub flop_allocated: f64,
    pub accelerators: f64,
    pub accelerator_hours: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Run {
    pub start: Timestamp,
    pub hours: f64,
    pub flop_low: f64,
    pub flop: f64,
    pub flop_high: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Projection {
    pub threshold: f64,
    /// `None`: not at the present rate.
    pub reached_at: Option<Timestamp>,
}

/// The sums behind the estimate; the maps hold the largest shares and `other`.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Evidence {
    pub slices: Vec<SliceSum>,
    pub by_accelerator: BTreeMap<String, Sum>,
    pub by_region: BTreeMap<String, Sum>,
    pub by_fabric: BTreeMap<String, Sum>,
    /// Part of it was counted at `catalogue.unknown`.
    pub unknown_accelerator: bool,
}

/// A measure with the names that the ledger uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct Sum {
    pub accelerator_ms: i128,
    pub flop_gflop: i128,
    pub flop_allocated_gflop: i128,
    pub flop_theoretical_gflop: i128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SliceSum {
    pub end: Timestamp,
    #[serde(flatten)]
    pub sum: Sum,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn mode_name<S: serde::Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode.name())
}
