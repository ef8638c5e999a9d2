//! Every series: name, kind, unit, labels, and when to worry. A series that is not here does not
//! exist: `tests` below compare the table with what the recording functions write, with the golden
//! list, and with the page for operators in `deploy/prometheus/SERIES.md`.
//!
//! Names: `flopwatch_`, base units, `_total` on counters. Labels come from enums, from partitions
//! and from the operator's own policy ids: never an account, which would grow without bound.

/// How a series behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    /// Buckets in seconds, see [`BUCKETS_SECONDS`].
    Histogram,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Count,
    Seconds,
    Bytes,
    Ratio,
    /// Seconds since the Unix epoch.
    Timestamp,
    /// Always 1: the labels are the information.
    Info,
}

impl Unit {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Ratio => "ratio",
            Self::Timestamp => "timestamp",
            Self::Info => "info",
        }
    }
}

/// One series of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Series {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub labels: &'static [&'static str],
    /// What it counts, and "alert when" where a person should be told.
    pub help: &'static str,
}

/// From a commit on an idle broker to a restore of a large state.
pub const BUCKETS_SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
    600.0,
];

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Series {
    Series { name, kind: Kind::Counter, unit: Unit::Count, labels, help }
}

const fn gauge(
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
) -> Series {
    Series { name, kind: Kind::Gauge, unit, labels, help }
}

const fn seconds(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Series {
    Series { name, kind: Kind::Histogram, unit: Unit::Seconds, labels, help }
}

// What was read: read = counted + duplicate + dead-lettered, always.

pub static EVENTS_READ: Series = counter(
    "flopwatch_events_read_total",
    &[],
    "Usage records read. Alert when it stands still while the usage topic grows.",
);
pub static EVENTS_COUNTED: Series = counter(
    "flopwatch_events_counted_total",
    &[],
    "Usage events whose compute was counted, late ones included.",
);
pub static EVENTS_DUPLICATE: Series = counter(
    "flopwatch_events_duplicate_total",
    &[],
    "Usage events whose identity had been counted within the dedup horizon. Alert when the share \
     changes suddenly: a producer resends, or reuses ids.",
);
pub static EVENTS_DEAD_LETTERED: Series = counter(
    "flopwatch_events_dead_lettered_total",
    &["reason"],
    "Usage records refused and written whole to the dead-letter topic. Alert when it grows: their \
     compute is not counted until they are mended and sent again.",
);
pub static EVENTS_LATE: Series = counter(
    "flopwatch_events_late_total",
    &[],
    "Counted usage events that came after their first slice had been judged. Alert when the share \
     of counted ones stays above a few percent: raise time.lateness, or mend the meter.",
);
pub static TELEMETRY_DROPPED: Series = counter(
    "flopwatch_telemetry_dropped_total",
    &[],
    "Telemetry values outside their range, left out of the estimate; the event was counted.",
);
pub static UNKNOWN_ACCELERATOR: Series = counter(
    "flopwatch_events_unknown_accelerator_total",
    &[],
    "Counted usage events whose accelerator or instance type the catalogue lacks, counted at \
     catalogue.unknown. Alert when it grows: add the name through catalogue.files.",
);

// What the stages did.

pub static SUMS_APPLIED: Series = counter(
    "flopwatch_sums_applied_total",
    &[],
    "Sums applied to slices by the account and group stages.",
);
pub static EPOCHS_STEPPED: Series = counter(
    "flopwatch_epochs_stepped_total",
    &[],
    "Epochs stepped by the account and group stages. Alert when it stands still for several \
     epochs while usage is read: a partition holds the watermark back.",
);
pub static KEYS_JUDGED: Series = counter(
    "flopwatch_keys_judged_total",
    &[],
    "Accounts, sites, owners and countries judged, once a slice end each.",
);
pub static ALERT_REVISIONS: Series = counter(
    "flopwatch_alert_revisions_total",
    &["mode", "state"],
    "Alert revisions by mode (live, shadow) and state (firing, updated, resolved).",
);
pub static ALERTS_FIRING: Series = gauge(
    "flopwatch_alerts_firing",
    Unit::Count,
    &["mode", "policy", "scope", "severity"],
    "Alerts that fire now, over the tasks of this process. Alert when a live critical one fires.",
);
pub static COUNTRY_ACCELERATOR_MS: Series = counter(
    "flopwatch_country_accelerator_ms_total",
    &["country", "origin"],
    "Accelerator-milliseconds applied, by country of origin and whether that is home, foreign or \
     unknown: rate() / 1000 is accelerators in use. What corrections take back is left out.",
);
pub static COUNTRY_FLOP_ALLOCATED: Series = counter(
    "flopwatch_country_flop_allocated_gflop_total",
    &["country", "origin"],
    "Allocated compute applied, in 10^9 FLOP, by country of origin and whether that is home, \
     foreign or unknown. What corrections take back is left out.",
);
pub static ALERT_DELAY: Series = seconds(
    "flopwatch_alert_delay_seconds",
    &["scope"],
    "From the end of the judged slice to the publication of the alert: time.lateness, the meter's \
     own delay and ours. Alert when it exceeds what report_within leaves.",
);

// Time.

pub static WATERMARK: Series = gauge(
    "flopwatch_watermark_timestamp_seconds",
    Unit::Timestamp,
    &["stage", "partition"],
    "Event time up to which a partition is complete; NaN where this process does not hold it. \
     Alert when time() - min by (stage) exceeds an hour.",
);
pub static PARTITIONS_IDLE: Series = gauge(
    "flopwatch_partitions_idle",
    Unit::Count,
    &[],
    "Usage partitions of this process declared idle: they hold nobody back. Alert when one that \
     should have traffic is idle: its usage is missing.",
);
pub static PARTITIONS_PAUSED: Series = gauge(
    "flopwatch_partitions_paused",
    Unit::Count,
    &[],
    "Usage partitions paused because their watermark is more than time.max_skew ahead. Normal \
     while catching up. Alert when it stays above 0 for an hour.",
);

// Kafka.

pub static LAG: Series = gauge(
    "flopwatch_consumer_lag_records",
    Unit::Count,
    &["stage", "partition"],
    "Records between the position of a partition and its end; 0 where this process does not hold \
     it. Alert when the sum grows for 15 minutes.",
);
pub static PARTITIONS_ASSIGNED: Series = gauge(
    "flopwatch_partitions_assigned",
    Unit::Count,
    &["stage"],
    "Partitions held by this process. Alert when the sum over processes is below the topic's.",
);
pub static COMMIT_DURATION: Series = seconds(
    "flopwatch_commit_duration_seconds",
    &[],
    "Transactions committed: begin, produce, send offsets, commit. Alert when p99 exceeds 1 s: \
     the transaction timeout is 10 s.",
);
pub static LAST_COMMIT: Series = gauge(
    "flopwatch_last_commit_timestamp_seconds",
    Unit::Timestamp,
    &["worker"],
    "When a worker last committed. Alert when it is minutes old while there is lag.",
);
pub static ABORTS: Series = counter(
    "flopwatch_aborts_total",
    &["cause"],
    "Commits that failed: the worker drops its tasks and restores. Alert when it keeps growing.",
);
pub static REBALANCES: Series = counter(
    "flopwatch_rebalances_total",
    &["event"],
    "Changes of assignment seen by this process's workers. Alert when it grows without a \
     deployment: a worker exceeds its session or poll interval.",
);
pub static GAP_RECORDS: Series = counter(
    "flopwatch_gap_records_total",
    &["stage"],
    "Records that retention had removed before they were read, passed over by --accept-gap. \
     Alert when above 0: the sums since then are too low.",
);

// librdkafka's own statistics, under the names of its STATISTICS.md. They are there once
// kafka.client sets statistics.interval.ms; of a worker's consumer and producer alone.

pub static RDKAFKA_TX: Series = counter(
    "librdkafka_tx_total",
    &["client", "worker"],
    "Requests sent to brokers (tx). With statistics.interval.ms only.",
);
pub static RDKAFKA_TX_BYTES: Series = counter(
    "librdkafka_tx_bytes_total",
    &["client", "worker"],
    "Bytes sent to brokers (tx_bytes). With statistics.interval.ms only.",
);
pub static RDKAFKA_RX: Series = counter(
    "librdkafka_rx_total",
    &["client", "worker"],
    "Responses received from brokers (rx). With statistics.interval.ms only.",
);
pub static RDKAFKA_RX_BYTES: Series = counter(
    "librdkafka_rx_bytes_total",
    &["client", "worker"],
    "Bytes received from brokers (rx_bytes). With statistics.interval.ms only.",
);
pub static RDKAFKA_TXMSGS: Series = counter(
    "librdkafka_txmsgs_total",
    &["client", "worker"],
    "Records produced (txmsgs). With statistics.interval.ms only.",
);
pub static RDKAFKA_RXMSGS: Series = counter(
    "librdkafka_rxmsgs_total",
    &["client", "worker"],
    "Records fetched (rxmsgs). With statistics.interval.ms only.",
);
pub static RDKAFKA_RTT_AVG: Series = gauge(
    "librdkafka_broker_rtt_avg_seconds",
    Unit::Seconds,
    &["client", "worker", "broker"],
    "Mean round trip to a broker (rtt.avg); a fetch waits at the broker for up to \
     fetch.wait.max.ms. Alert when a producer's stays above 0.1. With statistics.interval.ms only.",
);
pub static RDKAFKA_RTT_P99: Series = gauge(
    "librdkafka_broker_rtt_p99_seconds",
    Unit::Seconds,
    &["client", "worker", "broker"],
    "99th percentile of the round trip to a broker (rtt.p99). With statistics.interval.ms only.",
);
pub static RDKAFKA_REQ_TIMEOUTS: Series = counter(
    "librdkafka_broker_req_timeouts_total",
    &["client", "worker", "broker"],
    "Requests that timed out (req_timeouts). Alert when it grows. With statistics.interval.ms only.",
);
pub static RDKAFKA_DISCONNECTS: Series = counter(
    "librdkafka_broker_disconnects_total",
    &["client", "worker", "broker"],
    "Connections that ended (disconnects); idle ones do. With statistics.interval.ms only.",
);
pub static RDKAFKA_FETCHQ_CNT: Series = gauge(
    "librdkafka_fetchq_cnt",
    Unit::Count,
    &["topic", "partition"],
    "Records fetched that wait for us (fetchq_cnt): near 0 with lag means that the broker is the \
     slow side, at queued.min.messages that we are. With statistics.interval.ms only.",
);
pub static RDKAFKA_FETCHQ_SIZE: Series = gauge(
    "librdkafka_fetchq_size_bytes",
    Unit::Bytes,
    &["topic", "partition"],
    "Bytes fetched that wait for us (fetchq_size). With statistics.interval.ms only.",
);
pub static RDKAFKA_CONSUMER_LAG: Series = gauge(
    "librdkafka_consumer_lag",
    Unit::Count,
    &["topic", "partition"],
    "Records between what librdkafka has handed over (app_offset) and the last stable offset; \
     flopwatch_consumer_lag_records is the lag of what is committed. With statistics.interval.ms \
     only.",
);

// Restore.

pub static RESTORE_PROGRESS: Series = gauge(
    "flopwatch_restore_progress_ratio",
    Unit::Ratio,
    &["stage", "partition"],
    "Share of a task's changelog that has been read; 1 when restored.",
);
pub static RESTORE_REMAINING: Series = gauge(
    "flopwatch_restore_remaining_seconds",
    Unit::Seconds,
    &["stage", "partition"],
    "Time until a task is restored, at the rate so far; 0 when restored. Alert when above 60.",
);
pub static RESTORE_BYTES: Series =
    counter("flopwatch_restore_bytes_total", &["stage"], "Changelog bytes read by restores.");
pub static RESTORE_DURATION: Series = seconds(
    "flopwatch_restore_duration_seconds",
    &["stage"],
    "Restores of a task's state from its changelog. Alert when p99 exceeds 5 s.",
);

// Directory and policies.

pub static DIRECTORY_ENTRIES: Series = gauge(
    "flopwatch_directory_entries",
    Unit::Count,
    &[],
    "Accounts in the directory. Alert when it drops by a tenth: their owners and origins are \
     unknown from then on.",
);
pub static DIRECTORY_INVALID: Series = counter(
    "flopwatch_directory_invalid_total",
    &[],
    "Directory records that could not be read; the earlier entry stays in force. Alert when it \
     grows.",
);
pub static POLICIES: Series = gauge(
    "flopwatch_policies",
    Unit::Count,
    &["mode"],
    "Policies in force by mode. Alert when none is live.",
);
pub static POLICY_RELOADS: Series = counter(
    "flopwatch_policy_reloads_total",
    &["outcome"],
    "Reloads of changed policy files: applied, or refused whole with the old ones in force. Alert \
     when refused grows.",
);

// Notifications: `flopwatch notify` alone writes them.

pub static NOTIFY_DELIVERIES: Series = counter(
    "flopwatch_notify_deliveries_total",
    &["target"],
    "Alert revisions that a target has taken, for the first time or again after a restart.",
);
pub static NOTIFY_FAILURES: Series = counter(
    "flopwatch_notify_failures_total",
    &["target", "cause"],
    "Deliveries that failed: again (will be tried again), refused (the target takes this revision \
     never; it stays in the topic), unreadable (no alert). Alert when it grows for 10 minutes.",
);
pub static NOTIFY_LAG: Series = gauge(
    "flopwatch_notify_lag_records",
    Unit::Count,
    &["target"],
    "Records of the alert topics that a target has not taken yet, over the partitions of this \
     process. Alert when above 0 for 10 minutes: somebody is not told.",
);
pub static NOTIFY_KEPT: Series = gauge(
    "flopwatch_notify_kept_alerts",
    Unit::Count,
    &[],
    "Alerts kept to be sent to Alertmanager again: live ones, and resolved ones for 15 minutes. \
     Alert when it nears 100000: what is beyond is sent once only.",
);

// The process.

pub static BUILD_INFO: Series =
    gauge("flopwatch_build_info", Unit::Info, &["version"], "The version that runs; always 1.");
pub static START_TIME: Series = gauge(
    "flopwatch_start_timestamp_seconds",
    Unit::Timestamp,
    &[],
    "When the process started. Alert when it changes often: the process restarts in a loop.",
);
pub static READY: Series = gauge(
    "flopwatch_ready",
    Unit::Count,
    &[],
    "1 when the directory is read and every task restored, else 0: the answer of /healthz/ready. \
     Alert when 0 for 5 minutes.",
);
pub static RESIDENT_MEMORY: Series = gauge(
    "flopwatch_resident_memory_bytes",
    Unit::Bytes,
    &[],
    "Resident memory of the process; the state is most of it. Alert when it nears the limit.",
);
pub static HTTP_REQUESTS: Series = counter(
    "flopwatch_http_requests_total",
    &["path", "code"],
    "Requests answered by path and status; path is other when unknown.",
);

/// The table, in the order of the page for operators.
pub static SERIES: [&Series; 55] = [
    &EVENTS_READ,
    &EVENTS_COUNTED,
    &EVENTS_DUPLICATE,
    &EVENTS_DEAD_LETTERED,
    &EVENTS_LATE,
    &TELEMETRY_DROPPED,
    &UNKNOWN_ACCELERATOR,
    &SUMS_APPLIED,
    &EPOCHS_STEPPED,
    &KEYS_JUDGED,
    &ALERT_REVISIONS,
    &ALERTS_FIRING,
    &COUNTRY_ACCELERATOR_MS,
    &COUNTRY_FLOP_ALLOCATED,
    &ALERT_DELAY,
    &WATERMARK,
    &PARTITIONS_IDLE,
    &PARTITIONS_PAUSED,
    &LAG,
    &PARTITIONS_ASSIGNED,
    &COMMIT_DURATION,
    &LAST_COMMIT,
    &ABORTS,
    &REBALANCES,
    &GAP_RECORDS,
    &RDKAFKA_TX,
    &RDKAFKA_TX_BYTES,
    &RDKAFKA_RX,
    &RDKAFKA_RX_BYTES,
    &RDKAFKA_TXMSGS,
    &RDKAFKA_RXMSGS,
    &RDKAFKA_RTT_AVG,
    &RDKAFKA_RTT_P99,
    &RDKAFKA_REQ_TIMEOUTS,
    &RDKAFKA_DISCONNECTS,
    &RDKAFKA_FETCHQ_CNT,
    &RDKAFKA_FETCHQ_SIZE,
    &RDKAFKA_CONSUMER_LAG,
    &RESTORE_PROGRESS,
    &RESTORE_REMAINING,
    &RESTORE_BYTES,
    &RESTORE_DURATION,
    &DIRECTORY_ENTRIES,
    &DIRECTORY_INVALID,
    &POLICIES,
    &POLICY_RELOADS,
    &NOTIFY_DELIVERIES,
    &NOTIFY_FAILURES,
    &NOTIFY_LAG,
    &NOTIFY_KEPT,
    &BUILD_INFO,
    &START_TIME,
    &READY,
    &RESIDENT_MEMORY,
    &HTTP_REQUESTS,
];
