//! Metrics: the table of series and the functions that record them.
//!
//! The detector counts into a `Tally`, which `record` adds up once a batch; everything else is an
//! event of the shell, with one function each. No series is written elsewhere. The functions look
//! their series up by name, so none belongs in a loop over records.
//!
//! What `record` adds is not one atomic step: a scrape in between may see the sums of conservation
//! (read = counted + duplicate + dead-lettered) apart by one batch, never for long.

pub mod librdkafka;
pub mod table;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Label, SharedString};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::detector::alert::{Alert, Firing, FiringKey, State};
use crate::detector::invalid::Reason;
use crate::detector::outbox::{AlertTally, Tally};
use crate::detector::policy::{Mode, Policies};
use crate::detector::time::Timestamp;
use crate::error::Fatal;
use table::{Kind, SERIES, Series, Unit};

/// The `stage` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Meter,
    Account,
    Group,
}

impl Stage {
    pub const ALL: [Self; 3] = [Self::Meter, Self::Account, Self::Group];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Meter => "meter",
            Self::Account => "account",
            Self::Group => "group",
        }
    }
}

/// Why a commit failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// The broker refused or lost the transaction; another try may work.
    Failed,
    /// Another process has taken over this worker's transactional id.
    Fenced,
    /// The group has moved on: the partitions belong to somebody else.
    LostAssignment,
}

impl Abort {
    pub const ALL: [Self; 3] = [Self::Failed, Self::Fenced, Self::LostAssignment];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Fenced => "fenced",
            Self::LostAssignment => "lost_assignment",
        }
    }
}

/// A change of assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebalance {
    Assigned,
    Revoked,
    Lost,
}

impl Rebalance {
    pub const ALL: [Self; 3] = [Self::Assigned, Self::Revoked, Self::Lost];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Revoked => "revoked",
            Self::Lost => "lost",
        }
    }
}

/// Where `notify` takes alerts: the `target` label, and the end of its group's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Alertmanager,
    Webhook,
    Ocsf,
}

impl Target {
    pub const ALL: [Self; 3] = [Self::Alertmanager, Self::Webhook, Self::Ocsf];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Alertmanager => "alertmanager",
            Self::Webhook => "webhook",
            Self::Ocsf => "ocsf",
        }
    }
}

/// Why a notification was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undelivered {
    /// It will be tried again.
    Again,
    /// The target never takes it.
    Refused,
    /// The record is no alert.
    Unreadable,
}

impl Undelivered {
    pub const ALL: [Self; 3] = [Self::Again, Self::Refused, Self::Unreadable];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Again => "again",
            Self::Refused => "refused",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Makes the recorder the process's own; once a process, before anything is recorded.
pub fn install() -> Result<PrometheusHandle, Fatal> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)
        .map_err(|_| Fatal::Internal("the metrics recorder was installed twice".into()))?;
    describe();
    Ok(handle)
}

/// A recorder of our own making; tests use it locally.
pub fn recorder() -> Result<PrometheusRecorder, Fatal> {
    Ok(PrometheusBuilder::new()
        .set_buckets(&table::BUCKETS_SECONDS)
        .map_err(|error| Fatal::Internal(format!("histogram buckets: {error}")))?
        .build_recorder())
}

/// Registers help and unit of every series, and the ones that are 0 until something happens, so
/// that `rate()` sees their first increment.
pub fn describe() {
    for series in SERIES {
        let unit = match series.unit {
            Unit::Seconds | Unit::Timestamp => Some(metrics::Unit::Seconds),
            Unit::Bytes => Some(metrics::Unit::Bytes),
            Unit::Count => Some(metrics::Unit::Count),
            Unit::Ratio | Unit::Info => None,
        };
        match (series.kind, unit) {
            (Kind::Counter, Some(unit)) => {
                metrics::describe_counter!(series.name, unit, series.help);
            }
            (Kind::Counter, None) => metrics::describe_counter!(series.name, series.help),
            (Kind::Gauge, Some(unit)) => metrics::describe_gauge!(series.name, unit, series.help),
            (Kind::Gauge, None) => metrics::describe_gauge!(series.name, series.help),
            (Kind::Histogram, Some(unit)) => {
                metrics::describe_histogram!(series.name, unit, series.help);
            }
            (Kind::Histogram, None) => metrics::describe_histogram!(series.name, series.help),
        }
    }
    record(&Tally::default());
    for cause in Abort::ALL {
        count(&table::ABORTS, [cause.name().into()], 0);
    }
    for event in Rebalance::ALL {
        count(&table::REBALANCES, [event.name().into()], 0);
    }
    for stage in Stage::ALL {
        count(&table::GAP_RECORDS, [stage.name().into()], 0);
        count(&table::RESTORE_BYTES, [stage.name().into()], 0);
    }
    count(&table::DIRECTORY_INVALID, [], 0);
    for outcome in ["applied", "refused"] {
        count(&table::POLICY_RELOADS, [outcome.into()], 0);
    }
    for target in Target::ALL {
        notified(target, 0);
        for cause in Undelivered::ALL {
            count(&table::NOTIFY_FAILURES, [target.name().into(), cause.name().into()], 0);
        }
    }
    set(&table::BUILD_INFO, [env!("CARGO_PKG_VERSION").into()], 1.0);
    set(&table::START_TIME, [], unix_seconds(SystemTime::now()));
}

/// Adds what a batch counted.
pub fn record(tally: &Tally) {
    count(&table::EVENTS_COUNTED, [], tally.counted);
    count(&table::EVENTS_DUPLICATE, [], tally.duplicate);
    for (reason, n) in Reason::ALL.iter().zip(tally.dead_letters) {
        count(&table::EVENTS_DEAD_LETTERED, [reason.name().into()], n);
    }
    count(&table::EVENTS_READ, [], tally.read);
    count(&table::EVENTS_LATE, [], tally.late);
    count(&table::TELEMETRY_DROPPED, [], tally.telemetry_dropped);
    count(&table::UNKNOWN_ACCELERATOR, [], tally.unknown_accelerator);
    count(&table::SUMS_APPLIED, [], tally.sums);
    count(&table::EPOCHS_STEPPED, [], tally.steps);
    count(&table::KEYS_JUDGED, [], tally.judged);
    record_alerts(Mode::Live, tally.live);
    record_alerts(Mode::Shadow, tally.shadow);
    for ((country, origin), compute) in &tally.compute {
        let labels = [country.to_string().into(), (*origin).into()];
        count(&table::COUNTRY_ACCELERATOR_MS, labels.clone(), compute.accelerator_ms);
        count(&table::COUNTRY_FLOP_ALLOCATED, labels, compute.flop_allocated);
    }
}

fn record_alerts(mode: Mode, tally: AlertTally) {
    for (state, n) in [
        (State::Firing, tally.firing),
        (State::Updated, tally.updated),
        (State::Resolved, tally.resolved),
    ] {
        count(&table::ALERT_REVISIONS, [mode.name().into(), state.name().into()], n);
    }
}

/// An alert revision has been committed.
pub fn alert_published(alert: &Alert) {
    let at = Duration::from_nanos(alert.at.0).as_secs_f64();
    let delay = (unix_seconds(SystemTime::now()) - at).max(0.0);
    observe(&table::ALERT_DELAY, [alert.scope.into()], delay);
}

/// The alerts that fire in one task, within the process's sums; a task that is dropped takes its
/// own out of them, so that a sum over processes counts each alert once, wherever its task runs.
#[derive(Debug, Default)]
pub struct FiringSeries {
    shown: Firing,
}

impl FiringSeries {
    /// After a restore, and when an alert has begun or ceased to fire.
    pub fn show(&mut self, now: Firing) {
        for (key, count) in &now.0 {
            let before = self.shown.0.get(key).copied().unwrap_or_default();
            Self::change(key, f64::from(*count) - f64::from(before));
        }
        for (key, count) in self.shown.0.iter().filter(|(key, _)| !now.0.contains_key(key)) {
            Self::change(key, -f64::from(*count));
        }
        self.shown = now;
    }

    fn change(key: &FiringKey, change: f64) {
        let FiringKey { mode, policy, scope, severity } = key;
        let labels = labels(
            &table::ALERTS_FIRING,
            [mode.name().into(), policy.clone().into(), scope.name().into(), (*severity).into()],
        );
        metrics::gauge!(table::ALERTS_FIRING.name, labels).increment(change);
    }
}

impl Drop for FiringSeries {
    fn drop(&mut self) {
        self.show(Firing::default());
    }
}

/// A worker has committed a transaction.
pub fn committed(worker: usize, took: Duration) {
    observe(&table::COMMIT_DURATION, [], took.as_secs_f64());
    let now = unix_seconds(SystemTime::now());
    set(&table::LAST_COMMIT, [worker.to_string().into()], now);
}

/// A commit has failed; the worker drops its tasks.
pub fn aborted(cause: Abort) {
    count(&table::ABORTS, [cause.name().into()], 1);
}

/// A worker's assignment has changed.
pub fn rebalanced(event: Rebalance) {
    count(&table::REBALANCES, [event.name().into()], 1);
}

/// Records that retention removed before they were read.
pub fn gap_accepted(stage: Stage, records: u64) {
    count(&table::GAP_RECORDS, [stage.name().into()], records);
}

/// Changelog bytes read by a restore since the last call.
pub fn restore_read(stage: Stage, bytes: u64) {
    count(&table::RESTORE_BYTES, [stage.name().into()], bytes);
}

/// The directory holds this many accounts.
pub fn directory_read(entries: usize) {
    set(&table::DIRECTORY_ENTRIES, [], as_f64(entries as u64));
}

/// A directory record could not be read; the earlier entry stays.
pub fn directory_invalid() {
    count(&table::DIRECTORY_INVALID, [], 1);
}

/// These policies are in force, at start or after a reload.
pub fn policies_in_force(policies: &Policies) {
    for mode in Mode::ALL {
        let n = policies.list.iter().filter(|policy| policy.mode == mode).count();
        set(&table::POLICIES, [mode.name().into()], as_f64(n as u64));
    }
}

/// Changed policy files were read: applied, or refused whole.
pub fn policies_reloaded(applied: bool) {
    let outcome = if applied { "applied" } else { "refused" };
    count(&table::POLICY_RELOADS, [outcome.into()], 1);
}

/// A target has taken alert revisions.
pub fn notified(target: Target, revisions: usize) {
    count(&table::NOTIFY_DELIVERIES, [target.name().into()], revisions as u64);
}

/// A target has not taken one.
pub fn not_notified(target: Target, cause: Undelivered) {
    count(&table::NOTIFY_FAILURES, [target.name().into(), cause.name().into()], 1);
}

/// A target has this many records before it.
pub fn notify_lag(target: Target, records: u64) {
    set(&table::NOTIFY_LAG, [target.name().into()], as_f64(records));
}

/// This many alerts are kept to be sent to Alertmanager again.
pub fn notify_kept(alerts: usize) {
    set(&table::NOTIFY_KEPT, [], as_f64(alerts as u64));
}

/// A request was answered. `path` is one of the known ones or `other`.
pub fn http_answered(path: &'static str, code: u16) {
    count(&table::HTTP_REQUESTS, [path.into(), code.to_string().into()], 1);
}

/// What is only known when somebody asks: readiness and memory.
pub fn sample(ready: bool) {
    set(&table::READY, [], if ready { 1.0 } else { 0.0 });
    if let Some(bytes) = resident_memory() {
        set(&table::RESIDENT_MEMORY, [], as_f64(bytes));
    }
}

/// Counts how many partitions are in a state, over the whole process.
#[derive(Debug)]
struct Membership {
    gauge: metrics::Gauge,
    is_in: bool,
}

impl Membership {
    fn new(gauge: metrics::Gauge) -> Self {
        Self { gauge, is_in: false }
    }

    fn set(&mut self, is_in: bool) {
        if is_in != self.is_in {
            self.gauge.increment(if is_in { 1.0 } else { -1.0 });
            self.is_in = is_in;
        }
    }
}

/// The series of one partition of one stage, held by its task for as long as it lives.
///
/// The exporter cannot drop a gauge, so a task that leaves sets what is summed over partitions to
/// 0, and its watermark and progress to NaN, which no threshold matches. Handles are looked up
/// once, here: the setters are an atomic store each.
#[derive(Debug)]
pub struct PartitionSeries {
    watermark: metrics::Gauge,
    lag: metrics::Gauge,
    restore_progress: metrics::Gauge,
    restore_remaining: metrics::Gauge,
    restore_duration: metrics::Histogram,
    assigned: Membership,
    idle: Membership,
    paused: Membership,
}

impl PartitionSeries {
    pub fn new(stage: Stage, partition: u32) -> Self {
        let of_partition = |series: &'static Series| {
            let values = [stage.name().into(), partition.to_string().into()];
            metrics::gauge!(series.name, labels(series, values))
        };
        let mut assigned = Membership::new(metrics::gauge!(
            table::PARTITIONS_ASSIGNED.name,
            labels(&table::PARTITIONS_ASSIGNED, [stage.name().into()])
        ));
        assigned.set(true);
        let series = Self {
            watermark: of_partition(&table::WATERMARK),
            lag: of_partition(&table::LAG),
            restore_progress: of_partition(&table::RESTORE_PROGRESS),
            restore_remaining: of_partition(&table::RESTORE_REMAINING),
            restore_duration: metrics::histogram!(
                table::RESTORE_DURATION.name,
                labels(&table::RESTORE_DURATION, [stage.name().into()])
            ),
            assigned,
            idle: Membership::new(metrics::gauge!(table::PARTITIONS_IDLE.name)),
            paused: Membership::new(metrics::gauge!(table::PARTITIONS_PAUSED.name)),
        };
        series.clear();
        series
    }

    /// What they show while nothing is known.
    fn clear(&self) {
        self.watermark.set(f64::NAN);
        self.restore_progress.set(f64::NAN);
        self.lag.set(0.0);
        self.restore_remaining.set(0.0);
    }

    pub fn watermark(&self, watermark: Timestamp) {
        self.watermark.set(Duration::from_nanos(watermark.0).as_secs_f64());
    }

    /// Records between the position and the end of the partition.
    pub fn lag(&self, records: u64) {
        self.lag.set(as_f64(records));
    }

    pub fn idle(&mut self, idle: bool) {
        self.idle.set(idle);
    }

    pub fn paused(&mut self, paused: bool) {
        self.paused.set(paused);
    }

    /// A restore has read `done` of `total` changelog offsets in `elapsed`.
    pub fn restoring(&self, done: u64, total: u64, elapsed: Duration) {
        let share = if total == 0 { 1.0 } else { as_f64(done) / as_f64(total) };
        self.restore_progress.set(share.min(1.0));
        if done > 0 {
            let rate = as_f64(done) / elapsed.as_secs_f64().max(1e-3);
            self.restore_remaining.set(as_f64(total.saturating_sub(done)) / rate);
        }
    }

    pub fn restored(&self, took: Duration) {
        self.restore_progress.set(1.0);
        self.restore_remaining.set(0.0);
        self.restore_duration.record(took.as_secs_f64());
    }
}

impl Drop for PartitionSeries {
    fn drop(&mut self) {
        self.clear();
        self.assigned.set(false);
        self.idle.set(false);
        self.paused.set(false);
    }
}

fn labels<const N: usize>(series: &'static Series, values: [SharedString; N]) -> Vec<Label> {
    debug_assert_eq!(series.labels.len(), N, "labels of {}", series.name);
    series.labels.iter().zip(values).map(|(&name, value)| Label::new(name, value)).collect()
}

fn count<const N: usize>(series: &'static Series, values: [SharedString; N], n: u64) {
    metrics::counter!(series.name, labels(series, values)).increment(n);
}

fn set<const N: usize>(series: &'static Series, values: [SharedString; N], value: f64) {
    metrics::gauge!(series.name, labels(series, values)).set(value);
}

fn observe<const N: usize>(series: &'static Series, values: [SharedString; N], value: f64) {
    metrics::histogram!(series.name, labels(series, values)).record(value);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is an f64; 2^53 records are not in sight")]
fn as_f64(n: u64) -> f64 {
    n as f64
}

fn unix_seconds(instant: SystemTime) -> f64 {
    instant.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// `VmRSS` of this process; `None` where there is no procfs.
fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests;
