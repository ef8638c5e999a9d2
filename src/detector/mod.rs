//! The detector: a pure function of its input, in three stages.
//!
//! Rules of this module: no clock, thread, lock, randomness, network, log or metric; all time comes
//! from records; all state has one owner; the same records give the same outputs, whatever the
//! batches. The shells (`kafka/`, `replay.rs`) feed records and publish outputs.
//!
//! ```text
//! usage ──▶ meter ──▶ account-usage ──▶ account ──▶ group-usage ──▶ group
//!             │                            │                          │
//!             └▶ dead letters              └▶ alerts ◀────────────────┘
//! ```

pub mod account;
pub mod alert;
pub mod align;
pub mod catalogue;
pub mod changelog;
pub mod cloudevent;
pub mod decode;
pub mod dedup;
pub mod directory;
pub mod event;
pub mod group;
pub mod internal;
pub mod invalid;
pub mod judge;
pub mod key_state;
pub mod keyed;
pub mod measure;
pub mod meter;
pub mod names;
pub mod outbox;
pub mod policy;
pub mod rules;
pub mod run;
pub mod sums;
pub mod text;
pub mod time;
pub mod window;

use alert::{Alert, State};
use event::Record;
use outbox::{Outbox, Output};

/// One partition of one stage: a state machine fed records.
///
/// Between two calls of `seal` the shell may feed any number of records. What `seal` leaves in the
/// outbox, together with what `process` put there and the position, is published atomically or
/// not at all; after a failure the machine is dropped and rebuilt by `restore`.
pub trait Stage {
    /// Feeds the next input record, in order of offset.
    fn process(&mut self, record: &Record<'_>, outbox: &mut Outbox) -> Result<(), StageError>;

    /// Feeds the next few records: the same as one after the other, and quicker where a stage can
    /// look ahead.
    fn process_all(
        &mut self,
        records: &[Record<'_>],
        outbox: &mut Outbox,
    ) -> Result<(), StageError> {
        records.iter().try_for_each(|record| self.process(record, outbox))
    }

    /// Before a commit: puts into the outbox what was gathered since the last one (sums, and the
    /// changelog of all that changed).
    fn seal(&mut self, outbox: &mut Outbox);

    /// The next offset to read after a restart; `None` before the first record.
    fn position(&self) -> Option<u64>;

    /// Applies one changelog record, in changelog order, before the first `process`.
    fn restore(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StageError>;

    /// Something waits that subscribers want at once: a moved watermark or an alert.
    fn is_urgent(&self) -> bool;
}

/// The alerts of one judgement, in order of scope, key and policy.
fn publish_alerts(mut alerts: Vec<Alert>, outbox: &mut Outbox) {
    alerts.sort_by(|a, b| {
        let rank = |alert: &Alert| (alert.scope, alert.policy.version, alert.state.name());
        (a.scope, &a.key, &a.policy.id)
            .cmp(&(b.scope, &b.key, &b.policy.id))
            .then_with(|| rank(a).cmp(&rank(b)))
    });
    for alert in alerts {
        let tally = outbox.tally.alerts(alert.policy.mode);
        match alert.state {
            State::Firing => tally.firing += 1,
            State::Updated => tally.updated += 1,
            State::Resolved => tally.resolved += 1,
        }
        outbox.push(Output::Alert(Box::new(alert)));
    }
}

/// Why a stage cannot go on. Nothing was published since the last commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageError {
    /// `dead_letter.max_consecutive` undecodable or invalid records in a row.
    TooManyInvalid { offset: u64, limit: u64, last: invalid::Invalid },
    /// A changelog or internal record that this version cannot read.
    State(String),
}

impl std::fmt::Display for StageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooManyInvalid { offset, limit, last } => write!(
                f,
                "{limit} invalid records in a row, next at offset {offset} ({}: {}): mend the \
                 producer or input.format, or raise dead_letter.max_consecutive",
                last.reason.name(),
                last.detail
            ),
            Self::State(detail) => f.write_str(detail),
        }
    }
}
