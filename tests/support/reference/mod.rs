//! A brute-force model of what a replay must yield, written from the contract alone.
//!
//! It shares no code with the detector and keeps no incremental state: every judgement looks
//! through all records again. Slow and plain, so that its reading of the contract can be checked
//! line by line; only what the contract itself defines by history (stream time, the life of an
//! alert) is carried along.

pub(crate) mod comparison;
mod examples;
pub(crate) mod files;
pub(crate) mod history;
pub(crate) mod input;
pub(crate) mod judging;
pub(crate) mod metering;
pub(crate) mod origin;

use std::collections::BTreeMap;

use history::History;
use input::{Mode, Nanos, Scenario};
use judging::Alert;
use metering::Amount;

/// A mistake planted in the model, to see that the comparison notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    ForgetsACorrection,
    CeilsTheSplit,
    LateByMoreThan,
    NeverForgetsIdentities,
    DirectoryOneStepLate,
    RunsOverAtTheGap,
    NeedsMoreThanTheThreshold,
    NeverFixesActivity,
    MovesRunsWithTheirOwner,
    LosesLateSumsOfARun,
    KeepsASliceTooLong,
    ShowsLessThanNothing,
}

impl Fault {
    pub(crate) const PLANTED: [Self; 12] = [
        Self::ForgetsACorrection,
        Self::CeilsTheSplit,
        Self::LateByMoreThan,
        Self::NeverForgetsIdentities,
        Self::DirectoryOneStepLate,
        Self::RunsOverAtTheGap,
        Self::NeedsMoreThanTheThreshold,
        Self::NeverFixesActivity,
        Self::MovesRunsWithTheirOwner,
        Self::LosesLateSumsOfARun,
        Self::KeepsASliceTooLong,
        Self::ShowsLessThanNothing,
    ];
}

/// Scope, key and slice end.
pub(crate) type LedgerKey = (String, String, Nanos);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) summary: Summary,
    /// For each partition: line number from 1, and reason.
    pub(crate) dead_letters: Vec<Vec<(usize, &'static str)>>,
    pub(crate) ledger: BTreeMap<LedgerKey, Amount>,
    pub(crate) live: Vec<Alert>,
    pub(crate) shadow: Vec<Alert>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub(crate) read: u64,
    pub(crate) counted: u64,
    pub(crate) duplicate: u64,
    pub(crate) dead_letter: u64,
    pub(crate) late: u64,
    pub(crate) alerts: BTreeMap<String, u64>,
    pub(crate) dead_letters: BTreeMap<String, u64>,
}

pub(crate) fn outcome(scenario: &Scenario, fault: Fault) -> Outcome {
    let metered = metering::meter(&scenario.settings, &scenario.partitions, fault);
    let history = History { scenario, metered: &metered, fault };
    let alerts = judging::alerts(&history);
    let (live, shadow): (Vec<Alert>, Vec<Alert>) =
        alerts.into_iter().partition(|alert| alert.mode == Mode::Live);
    let mut summary = Summary {
        read: metered.read,
        counted: metered.counted,
        duplicate: metered.duplicate,
        late: metered.late,
        ..Summary::default()
    };
    for (_, reason) in metered.dead_letters.iter().flatten() {
        summary.dead_letter += 1;
        *summary.dead_letters.entry((*reason).to_owned()).or_default() += 1;
    }
    for state in ["firing", "updated", "resolved"] {
        let count = live.iter().filter(|alert| alert.state == state).count();
        summary.alerts.insert(state.to_owned(), u64::try_from(count).expect("a count fits"));
    }
    let ledger = history.ledger();
    Outcome { summary, dead_letters: metered.dead_letters, ledger, live, shadow }
}
