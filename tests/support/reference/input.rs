//! What the model is given: settings, policies, the directory and the records of each partition.
//!
//! Times and spans are nanoseconds in `i128`, so that no difference can wrap.

pub(crate) type Nanos = i128;

pub(crate) const SECOND: Nanos = 1_000_000_000;
pub(crate) const MINUTE: Nanos = 60 * SECOND;
pub(crate) const HOUR: Nanos = 60 * MINUTE;
pub(crate) const DAY: Nanos = 24 * HOUR;

/// One case: everything a replay reads.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) settings: Settings,
    pub(crate) policies: Vec<Policy>,
    /// In the order of the file.
    pub(crate) directory: Vec<DirectoryLine>,
    /// One for each `--usage` file.
    pub(crate) partitions: Vec<Vec<Line>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) epoch: Nanos,
    pub(crate) lateness: Nanos,
    pub(crate) dedup_horizon: Nanos,
    pub(crate) max_future: Nanos,
    pub(crate) max_interval: Nanos,
    /// Finest first.
    pub(crate) tiers: Vec<Tier>,
    pub(crate) home: Vec<&'static str>,
    pub(crate) basis: Vec<Field>,
    pub(crate) foreign_if_any: Vec<Field>,
    pub(crate) unknown_is_foreign: bool,
    pub(crate) low: f64,
    pub(crate) central: f64,
    pub(crate) high: f64,
    pub(crate) unknown: &'static str,
    pub(crate) unknown_count: u32,
    pub(crate) min_accelerators: f64,
    pub(crate) max_gap: Nanos,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tier {
    pub(crate) slice: Nanos,
    pub(crate) keep: Nanos,
}

/// A field of the directory that can tell a country, in the order of `DirectoryLine::countries`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    UltimateParent,
    Country,
    Incorporation,
    Payment,
}

impl Field {
    pub(crate) const ALL: [Self; 4] =
        [Self::UltimateParent, Self::Country, Self::Incorporation, Self::Payment];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::UltimateParent => "ultimate_parent_country",
            Self::Country => "country",
            Self::Incorporation => "incorporation_country",
            Self::Payment => "payment_country",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DirectoryLine {
    pub(crate) account: String,
    pub(crate) owner: String,
    /// As written, one for each of `Field::ALL`; empty when left out.
    pub(crate) countries: [&'static str; 4],
    pub(crate) updated: Nanos,
    /// `{"account_id": "...", "deleted": true}`: everything else is ignored.
    pub(crate) deleted: bool,
}

/// One line of a usage file.
#[derive(Debug, Clone)]
pub(crate) enum Line {
    /// No usage event in any format.
    Garbage(&'static str),
    Event(Box<Event>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) source: String,
    pub(crate) account: String,
    pub(crate) region: String,
    pub(crate) fabric: String,
    pub(crate) accelerator: String,
    pub(crate) instance_type: String,
    pub(crate) quantity: f64,
    pub(crate) start: Nanos,
    pub(crate) end: Nanos,
    /// 0: the end.
    pub(crate) time: Nanos,
    pub(crate) correction: bool,
    pub(crate) utilization: Option<f32>,
    pub(crate) tensor_active: Option<f32>,
    /// Which of the equivalent JSON spellings the file uses.
    pub(crate) spelling: u8,
}

#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) id: String,
    pub(crate) version: u32,
    pub(crate) mode: Mode,
    pub(crate) scope: Scope,
    pub(crate) origin: OriginMatch,
    pub(crate) window: Option<Nanos>,
    pub(crate) hold: Nanos,
    pub(crate) keep_firing: Nanos,
    pub(crate) renotify: Option<Nanos>,
    pub(crate) report_within: Option<Nanos>,
    pub(crate) conditions: Vec<Condition>,
}

#[derive(Debug, Clone)]
pub(crate) struct Condition {
    pub(crate) metric: Metric,
    /// Its own; `None`: its policy's.
    pub(crate) window: Option<Nanos>,
    pub(crate) at_least: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Metric {
    Accelerators,
    AcceleratorHours,
    Flop,
    FlopLow,
    FlopHigh,
    FlopAllocated,
    FlopTheoretical,
    FlopRate,
    FlopRateTheoretical,
    Sustained(f64),
    RunFlop,
    RunFlopLow,
    RunFlopHigh,
    RunHours,
    ProjectedRunFlop(Nanos),
}

impl Metric {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Accelerators => "accelerators",
            Self::AcceleratorHours => "accelerator_hours",
            Self::Flop => "flop",
            Self::FlopLow => "flop_low",
            Self::FlopHigh => "flop_high",
            Self::FlopAllocated => "flop_allocated",
            Self::FlopTheoretical => "flop_theoretical",
            Self::FlopRate => "flop_rate",
            Self::FlopRateTheoretical => "flop_rate_theoretical",
            Self::Sustained(_) => "sustained",
            Self::RunFlop => "run_flop",
            Self::RunFlopLow => "run_flop_low",
            Self::RunFlopHigh => "run_flop_high",
            Self::RunHours => "run_hours",
            Self::ProjectedRunFlop(_) => "projected_run_flop",
        }
    }

    pub(crate) const fn is_run(self) -> bool {
        matches!(
            self,
            Self::RunFlop
                | Self::RunFlopLow
                | Self::RunFlopHigh
                | Self::RunHours
                | Self::ProjectedRunFlop(_)
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Live,
    Shadow,
    Off,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Account,
    Site,
    Country,
    Owner,
}

impl Scope {
    pub(crate) const ALL: [Self; 4] = [Self::Account, Self::Site, Self::Country, Self::Owner];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Site => "site",
            Self::Country => "country",
            Self::Owner => "owner",
        }
    }

    /// Accounts and sites are judged by ACCOUNT, the others by GROUP.
    pub(crate) const fn stage(self) -> u8 {
        match self {
            Self::Account | Self::Site => 0,
            Self::Country | Self::Owner => 1,
        }
    }

    pub(crate) const fn keeps_runs(self) -> bool {
        matches!(self, Self::Account | Self::Owner)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OriginMatch {
    Any,
    Home,
    Foreign,
    Unknown,
    /// Codes, and `@d5`.
    Countries(Vec<&'static str>),
}

/// `floor(instant / unit) * unit`.
pub(crate) const fn floor_to(instant: Nanos, unit: Nanos) -> Nanos {
    instant.div_euclid(unit) * unit
}

/// The first multiple of `unit` at or after `instant`.
pub(crate) const fn ceil_to(instant: Nanos, unit: Nanos) -> Nanos {
    floor_to(instant + unit - 1, unit)
}
