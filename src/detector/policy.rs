//! Policies as data, and their judgement: observed values against thresholds.
//!
//! Parsing from TOML, with its errors, is `config.rs`'s; here every policy is already valid.

use super::directory::Country;
use super::time::Span;

/// The policies in force, shared by every task; a reload swaps the whole.
#[derive(Debug, Default, PartialEq)]
pub struct Policies {
    pub list: Vec<Policy>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub id: String,
    pub version: u32,
    pub title: String,
    pub severity: Severity,
    pub mode: Mode,
    pub scope: Scope,
    pub origin: OriginMatch,
    /// The policy's own window: default of its conditions, and the estimate's.
    pub window: Option<Span>,
    pub hold: Span,
    pub keep_firing: Span,
    /// `None`: no repetition by time.
    pub renotify: Option<Span>,
    pub report_within: Option<Span>,
    pub references: Vec<String>,
    /// All must be met.
    pub conditions: Vec<Condition>,
    /// Hash of everything above, so that an edit without a new version shows.
    pub hash: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    pub metric: Metric,
    /// Its own window or its policy's; `None` for run metrics.
    pub window: Option<Window>,
    /// Greater than 0.
    pub at_least: f64,
}

impl Condition {
    /// The length of its window.
    pub fn length(&self) -> Option<Span> {
        self.window.as_ref().map(|window| window.length)
    }
}

/// The window of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub length: Span,
    /// As the policy's author wrote it: alerts quote it.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Metric {
    /// Mean accelerators at once over the window.
    Accelerators,
    AcceleratorHours,
    Flop,
    FlopLow,
    FlopHigh,
    FlopAllocated,
    FlopTheoretical,
    /// FLOP/s over the window.
    FlopRate,
    FlopRateTheoretical,
    /// Share of the window's slices with at least `accelerators` at once.
    Sustained {
        accelerators: f64,
    },
    RunFlop,
    RunFlopLow,
    RunFlopHigh,
    RunHours,
    /// The run's FLOP, and what its recent rate adds within `horizon`.
    ProjectedRunFlop {
        horizon: Span,
    },
}

impl Metric {
    /// Every name a policy may use.
    pub const NAMES: [&'static str; 15] = [
        "accelerators",
        "accelerator_hours",
        "flop",
        "flop_low",
        "flop_high",
        "flop_allocated",
        "flop_theoretical",
        "flop_rate",
        "flop_rate_theoretical",
        "sustained",
        "run_flop",
        "run_flop_low",
        "run_flop_high",
        "run_hours",
        "projected_run_flop",
    ];

    pub const fn name(self) -> &'static str {
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
            Self::Sustained { .. } => "sustained",
            Self::RunFlop => "run_flop",
            Self::RunFlopLow => "run_flop_low",
            Self::RunFlopHigh => "run_flop_high",
            Self::RunHours => "run_hours",
            Self::ProjectedRunFlop { .. } => "projected_run_flop",
        }
    }

    pub const fn unit(self) -> &'static str {
        match self {
            Self::Accelerators => "accelerators",
            Self::AcceleratorHours => "accelerator-hours",
            Self::Flop
            | Self::FlopLow
            | Self::FlopHigh
            | Self::FlopAllocated
            | Self::FlopTheoretical
            | Self::RunFlop
            | Self::RunFlopLow
            | Self::RunFlopHigh
            | Self::ProjectedRunFlop { .. } => "FLOP",
            Self::FlopRate | Self::FlopRateTheoretical => "FLOP/s",
            Self::Sustained { .. } => "ratio",
            Self::RunHours => "hours",
        }
    }

    /// Run metrics need no window and are kept per account and owner only.
    pub const fn is_run(self) -> bool {
        match self {
            Self::RunFlop
            | Self::RunFlopLow
            | Self::RunFlopHigh
            | Self::RunHours
            | Self::ProjectedRunFlop { .. } => true,
            Self::Accelerators
            | Self::AcceleratorHours
            | Self::Flop
            | Self::FlopLow
            | Self::FlopHigh
            | Self::FlopAllocated
            | Self::FlopTheoretical
            | Self::FlopRate
            | Self::FlopRateTheoretical
            | Self::Sustained { .. } => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Critical];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// A live policy's alerts go to the alert topic, a shadow policy's beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    Live,
    Shadow,
    Off,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Live, Self::Shadow, Self::Off];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// What is summed and judged as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Account,
    /// An account on one fabric: `<account>@<fabric>`.
    Site,
    Owner,
    Country,
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Account, Self::Site, Self::Owner, Self::Country];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Site => "site",
            Self::Owner => "owner",
            Self::Country => "country",
        }
    }
}

/// Which origins a policy looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginMatch {
    Any,
    Home,
    Foreign,
    Unknown,
    /// Matches the country of origin; `@lists` are resolved, sorted, without repeats.
    Countries(Vec<Country>),
}
