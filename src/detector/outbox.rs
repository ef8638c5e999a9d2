//! Outputs as values. What a stage wants to happen waits here until the shell publishes it
//! together with the changelog and the positions, or drops it all.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::alert::Alert;
use super::directory::Country;
use super::invalid::{Invalid, Reason};
use super::measure::Measure;
use super::policy::Mode;

/// One thing to publish.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// To a partition of the stage's downstream topic.
    Forward {
        partition: u32,
        value: Vec<u8>,
    },
    /// A state update to the stage's changelog; `None` removes the key.
    Change {
        key: Vec<u8>,
        value: Option<Vec<u8>>,
    },
    Alert(Box<Alert>),
    DeadLetter(DeadLetter),
}

/// A refused record, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub invalid: Invalid,
    pub offset: u64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl DeadLetter {
    /// The headers that it is published with: the refused record's own, then ours, which say why
    /// it was refused and where it stood.
    pub fn published_headers(
        &self,
        topic: &str,
        partition: u32,
    ) -> Vec<(&str, Option<Cow<'_, [u8]>>)> {
        let own = self.headers.iter().map(|(name, value)| {
            let value = value.as_deref().map(Cow::Borrowed);
            (name.as_str(), value)
        });
        let ours = [
            ("flopwatch.reason", self.invalid.reason.name().to_owned()),
            ("flopwatch.detail", self.invalid.detail.clone()),
            ("flopwatch.topic", topic.to_owned()),
            ("flopwatch.partition", partition.to_string()),
            ("flopwatch.offset", self.offset.to_string()),
        ];
        let ours = ours.into_iter().map(|(name, text)| (name, Some(text.into_bytes().into())));
        own.chain(ours).collect()
    }
}

/// What one or more stages want to happen, in order, and what they counted.
#[derive(Debug, Default)]
pub struct Outbox {
    pub outputs: Vec<Output>,
    pub tally: Tally,
    without_changes: bool,
}

impl Outbox {
    /// For a shell that keeps no changelog.
    pub fn without_changes() -> Self {
        Self { without_changes: true, ..Self::default() }
    }

    pub fn keeps_changes(&self) -> bool {
        !self.without_changes
    }

    /// A state update, for a shell that keeps them.
    pub fn change(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        if self.keeps_changes() {
            self.outputs.push(Output::Change { key, value });
        }
    }

    pub fn push(&mut self, output: Output) {
        self.outputs.push(output);
    }

    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }
}

/// Plain counters; the shell records them once a batch.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Usage records read = counted + duplicate + dead letters, always.
    pub read: u64,
    pub counted: u64,
    pub duplicate: u64,
    pub dead_letters: [u64; Reason::ALL.len()],
    /// Counted, but after the first slice it touches had been judged.
    pub late: u64,
    /// Telemetry ratios outside 0..1.
    pub telemetry_dropped: u64,
    /// Counted events whose accelerator or instance type the catalogue lacks.
    pub unknown_accelerator: u64,
    /// Sums applied by ACCOUNT.
    pub sums: u64,
    /// Epochs stepped by ACCOUNT and GROUP.
    pub steps: u64,
    /// Keys judged, over all slice ends.
    pub judged: u64,
    pub live: AlertTally,
    pub shadow: AlertTally,
    /// Compute applied by GROUP, by country of origin and what it is to us. What corrections take
    /// back is left out: these become counters, which cannot fall.
    pub compute: BTreeMap<(Country, &'static str), Compute>,
}

/// Of the four integers of a measure, the two that no telemetry moves.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    pub accelerator_ms: u64,
    /// In GFLOP.
    pub flop_allocated: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct AlertTally {
    pub firing: u64,
    pub updated: u64,
    pub resolved: u64,
}

impl Tally {
    pub fn dead_letter(&mut self, reason: Reason) {
        self.dead_letters[reason as usize] += 1;
    }

    /// Dead letters of every reason.
    pub fn dead_letter_total(&self) -> u64 {
        self.dead_letters.iter().sum()
    }

    pub fn alerts(&mut self, mode: Mode) -> &mut AlertTally {
        match mode {
            Mode::Live => &mut self.live,
            Mode::Shadow | Mode::Off => &mut self.shadow,
        }
    }

    /// Compute of an origin: `home`, `foreign`, or `unknown` for ZZ.
    pub fn compute_of(&mut self, country: Country, home: &[Country], measure: &Measure) {
        let kind = if country == Country::UNKNOWN {
            "unknown"
        } else if home.contains(&country) {
            "home"
        } else {
            "foreign"
        };
        // one step's share of one place is far below 2^63
        let counted = |sum: i128| u64::try_from(sum.max(0)).unwrap_or(u64::MAX);
        self.compute.entry((country, kind)).or_default().add(Compute {
            accelerator_ms: counted(measure.accelerator_ms),
            flop_allocated: counted(measure.flop_allocated),
        });
    }

    /// Adds what another tally counted.
    pub fn add(&mut self, other: &Self) {
        self.read += other.read;
        self.counted += other.counted;
        self.duplicate += other.duplicate;
        for (mine, theirs) in self.dead_letters.iter_mut().zip(other.dead_letters) {
            *mine += theirs;
        }
        self.late += other.late;
        self.telemetry_dropped += other.telemetry_dropped;
        self.unknown_accelerator += other.unknown_accelerator;
        self.sums += other.sums;
        self.steps += other.steps;
        self.judged += other.judged;
        self.live.add(other.live);
        self.shadow.add(other.shadow);
        for (origin, compute) in &other.compute {
            self.compute.entry(*origin).or_default().add(*compute);
        }
    }
}

impl Compute {
    fn add(&mut self, other: Self) {
        self.accelerator_ms = self.accelerator_ms.saturating_add(other.accelerator_ms);
        self.flop_allocated = self.flop_allocated.saturating_add(other.flop_allocated);
    }
}

impl AlertTally {
    fn add(&mut self, other: Self) {
        self.firing += other.firing;
        self.updated += other.updated;
        self.resolved += other.resolved;
    }
}
