//! Alerts: what they say, and the life of one (pending, firing, resolved).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::StageError;
use super::changelog::{Reader, Writer, damaged};
use super::directory::{self, Country, Facts};
use super::measure::Measure;
use super::policy::{Mode, Policy, Scope, Severity};
use super::rules::OriginField;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Records that retention removed before they were read: sums since then are too low.
    #[serde(skip_serializing_if = "is_zero")]
    pub gap_records: u64,
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

impl Sum {
    pub fn of(measure: &Measure) -> Self {
        Self {
            accelerator_ms: measure.accelerator_ms,
            flop_gflop: measure.flop,
            flop_allocated_gflop: measure.flop_allocated,
            flop_theoretical_gflop: measure.flop_theoretical,
        }
    }
}

impl Origin {
    pub fn of(origin: &directory::Origin, facts: &Facts) -> Self {
        Self {
            country: origin.country,
            foreign: origin.foreign,
            decided_by: origin.decided_by.map_or("unknown", OriginField::name),
            foreign_by: origin.foreign_by.iter().map(|field| field.name()).collect(),
            facts: facts.named(),
        }
    }
}

impl PolicyRef {
    pub fn of(policy: &Policy) -> Self {
        Self {
            id: policy.id.clone(),
            version: policy.version,
            title: policy.title.clone(),
            severity: policy.severity.name(),
            mode: policy.mode,
            hash: policy.hash.clone(),
            references: policy.references.clone(),
        }
    }
}

/// A pure function of policy, scope, key and the start of the episode.
pub fn alert_id(policy: &PolicyRef, scope: Scope, key: &str, since: Timestamp) -> String {
    let mut hasher = Xxh3::new();
    for text in [&policy.id, scope.name(), key] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.update(&policy.version.to_le_bytes());
    hasher.update(&since.0.to_le_bytes());
    format!("{:032x}", hasher.digest128())
}

/// One policy's hold on one key, from the first judgement that met it to its resolution.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    policy_id: String,
    version: u32,
    mode: Mode,
    since: Timestamp,
    fired: Option<Fired>,
}

/// What an episode that has fired remembers.
#[derive(Debug, Clone, PartialEq)]
pub struct Fired {
    pub first_at: Timestamp,
    pub report_due: Option<Timestamp>,
    pub revision: u32,
    /// For when the policy is withdrawn.
    pub policy: PolicyRef,
    pub withdrawn: bool,
    last_at: Timestamp,
    last_flop: f64,
    unmet_since: Option<Timestamp>,
}

/// How many alerts fire, by all that a series may say of one: never whose they are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Firing(pub BTreeMap<FiringKey, u32>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FiringKey {
    pub mode: Mode,
    pub policy: String,
    pub scope: Scope,
    /// The policy's when the alert began to fire.
    pub severity: &'static str,
}

impl Firing {
    pub fn count(&mut self, scope: Scope, episodes: &[Episode]) {
        for fired in episodes.iter().filter_map(Episode::fired) {
            let PolicyRef { mode, id, severity, .. } = &fired.policy;
            let (policy, mode) = (id.clone(), *mode);
            *self.0.entry(FiringKey { mode, policy, scope, severity }).or_default() += 1;
        }
    }
}

/// What a judgement did to an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    None,
    /// Its state changed; nothing is said.
    Quiet,
    /// Pending, and unmet: as if it had never been.
    Ended,
    Revised(State),
}

impl Episode {
    /// Met for the first time at `since`.
    pub fn pending(policy: &Policy, since: Timestamp) -> Self {
        Self {
            policy_id: policy.id.clone(),
            version: policy.version,
            mode: policy.mode,
            since,
            fired: None,
        }
    }

    /// Alert state belongs to a policy's id and version, and to the topic that it speaks on.
    pub fn is_of(&self, policy: &Policy) -> bool {
        self.policy_id == policy.id && self.version == policy.version && self.mode == policy.mode
    }

    pub fn since(&self) -> Timestamp {
        self.since
    }

    pub fn fired(&self) -> Option<&Fired> {
        self.fired.as_ref()
    }

    /// Takes the verdict of the judgement at `at`; `flop` is the estimate then.
    pub fn judge(
        &mut self,
        policy: &Policy,
        at: Timestamp,
        met: bool,
        flop: impl Fn() -> f64,
    ) -> Transition {
        let Some(fired) = &mut self.fired else {
            if !met {
                return Transition::Ended;
            }
            if at.since(self.since) < policy.hold {
                // only the first judgement is news to the changelog
                return if at == self.since { Transition::Quiet } else { Transition::None };
            }
            self.fired = Some(Fired {
                first_at: at,
                report_due: policy.report_within.map(|within| at.plus(within)),
                revision: 1,
                policy: PolicyRef::of(policy),
                withdrawn: false,
                last_at: at,
                last_flop: flop(),
                unmet_since: None,
            });
            return Transition::Revised(State::Firing);
        };
        if met {
            let was_unmet = fired.unmet_since.take().is_some();
            let flop = flop();
            let due = policy.renotify.is_some_and(|renotify| at.since(fired.last_at) >= renotify);
            if due || flop >= 2.0 * fired.last_flop {
                fired.revise(at, flop);
                return Transition::Revised(State::Updated);
            }
            return if was_unmet { Transition::Quiet } else { Transition::None };
        }
        let was_met = fired.unmet_since.is_none();
        let unmet_since = *fired.unmet_since.get_or_insert(at);
        if at.since(unmet_since) >= policy.keep_firing {
            fired.revise(at, flop());
            return Transition::Revised(State::Resolved);
        }
        if was_met { Transition::Quiet } else { Transition::None }
    }

    /// The policy is gone: whether there is an alert to resolve.
    pub fn withdraw(&mut self, at: Timestamp) -> bool {
        let Some(fired) = &mut self.fired else { return false };
        fired.withdrawn = true;
        fired.revise(at, 0.0);
        true
    }

    pub fn write(&self, writer: &mut Writer) {
        writer.text(&self.policy_id);
        writer.unsigned(self.version);
        writer.unsigned(self.mode as u32);
        writer.time(self.since);
        writer.flag(self.fired.is_some());
        let Some(fired) = &self.fired else { return };
        writer.time(fired.first_at);
        writer.optional_time(fired.report_due);
        writer.unsigned(fired.revision);
        writer.time(fired.last_at);
        writer.float(fired.last_flop);
        writer.optional_time(fired.unmet_since);
        writer.text(&fired.policy.title);
        writer.text(fired.policy.severity);
        writer.text(&fired.policy.hash);
        writer.unsigned(fired.policy.references.len() as u64);
        for reference in &fired.policy.references {
            writer.text(reference);
        }
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        let policy_id = reader.text()?.to_owned();
        let version = reader.small()?;
        let mode = reader.small()?;
        let mode = Mode::ALL.into_iter().find(|known| *known as u32 == mode);
        let mode = mode.ok_or_else(|| damaged("a policy mode"))?;
        let since = reader.time()?;
        let mut episode = Self { policy_id, version, mode, since, fired: None };
        if reader.flag()? {
            episode.fired = Some(episode.read_fired(reader)?);
        }
        Ok(episode)
    }

    fn read_fired(&self, reader: &mut Reader<'_>) -> Result<Fired, StageError> {
        let (first_at, report_due) = (reader.time()?, reader.optional_time()?);
        let (revision, last_at) = (reader.small()?, reader.time()?);
        if revision == u32::MAX {
            return Err(damaged("a revision that others can follow"));
        }
        let (last_flop, unmet_since) = (reader.float()?, reader.optional_time()?);
        let title = reader.text()?.to_owned();
        let severity = reader.text()?;
        let severity = Severity::ALL.iter().find(|known| known.name() == severity);
        let severity = severity.ok_or_else(|| damaged("a severity"))?.name();
        let hash = reader.text()?.to_owned();
        let mut references = Vec::new();
        for _ in 0..reader.small()? {
            references.push(reader.text()?.to_owned());
        }
        let (id, version, mode) = (self.policy_id.clone(), self.version, self.mode);
        let policy = PolicyRef { id, version, title, severity, mode, hash, references };
        let withdrawn = false;
        Ok(Fired {
            first_at,
            report_due,
            revision,
            policy,
            withdrawn,
            last_at,
            last_flop,
            unmet_since,
        })
    }
}

impl Fired {
    fn revise(&mut self, at: Timestamp, flop: f64) {
        self.revision += 1;
        self.last_at = at;
        self.last_flop = flop;
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn mode_name<S: serde::Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode.name())
}
