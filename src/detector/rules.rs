//! What the operator decides, as the detector needs it: parsed and validated by `config.rs`, shared
//! by every stage, constant while a task lives (policies excepted: see `policy.rs`).

use std::collections::BTreeMap;

use super::catalogue::Catalogue;
use super::decode::InputRules;
use super::directory::Country;
use super::time::{Span, Timestamp};

/// Everything the stages obey, policies excepted.
#[derive(Debug)]
pub struct Rules {
    pub time: TimeRules,
    pub tiers: Vec<TierRules>,
    pub input: InputRules,
    pub origin: OriginRules,
    pub utilization: UtilizationRules,
    pub catalogue: Catalogue,
    pub run: RunRules,
    /// Undecodable or invalid records in a row on one partition that stop the process.
    pub dead_letter_max_consecutive: u64,
}

impl Rules {
    pub fn finest(&self) -> TierRules {
        self.tiers[0]
    }

    pub fn longest_keep(&self) -> Span {
        self.tiers.iter().map(|tier| tier.keep).max().unwrap_or_default()
    }

    /// The last judged slice end once the step `watermark` has been taken.
    pub fn judged(&self, watermark: Timestamp) -> Timestamp {
        watermark.minus(self.time.lateness).floor(self.finest().slice)
    }

    /// The slice end that is judged at a step, if one is.
    pub fn judged_at(&self, step: Timestamp) -> Option<Timestamp> {
        let at = step.minus(self.time.lateness);
        (at == at.floor(self.finest().slice)).then_some(at)
    }

    /// The index of the finest tier that can hold `window`: it keeps at least as long, and the
    /// window is a multiple of its slice.
    pub fn tier_of(&self, window: Span) -> Option<usize> {
        self.tiers.iter().position(|tier| tier.keep >= window && window.is_multiple_of(tier.slice))
    }
}

#[derive(Debug, Clone, Copy)]
pub struct TimeRules {
    pub epoch: Span,
    pub lateness: Span,
    pub dedup_horizon: Span,
    pub max_future: Span,
    pub max_interval: Span,
}

/// One tier of slices, finest first; each slice length is a multiple of the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierRules {
    pub slice: Span,
    pub keep: Span,
}

/// Factors on the 16-bit dense peak: p10, middle and p90 of published runs by default.
#[derive(Debug, Clone, Copy)]
pub struct UtilizationRules {
    pub low: f64,
    pub central: f64,
    pub high: f64,
}

#[derive(Debug, Clone, Copy)]
pub struct RunRules {
    pub min_accelerators: f64,
    pub max_gap: Span,
}

/// A field of the directory that can tell a country.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OriginField {
    UltimateParentCountry,
    Country,
    IncorporationCountry,
    PaymentCountry,
    /// Countries of `access_ips`, by GeoIP: never part of the basis.
    AccessIps,
}

impl OriginField {
    pub const ALL: [Self; 5] = [
        Self::UltimateParentCountry,
        Self::Country,
        Self::IncorporationCountry,
        Self::PaymentCountry,
        Self::AccessIps,
    ];

    /// The name in configuration and alerts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UltimateParentCountry => "ultimate_parent_country",
            Self::Country => "country",
            Self::IncorporationCountry => "incorporation_country",
            Self::PaymentCountry => "payment_country",
            Self::AccessIps => "access_ips",
        }
    }
}

#[derive(Debug, Clone)]
pub struct OriginRules {
    pub home: Vec<Country>,
    pub basis: Vec<OriginField>,
    /// Holds `AccessIps` as well when a GeoIP file is configured.
    pub foreign_if_any: Vec<OriginField>,
    pub unknown_is_foreign: bool,
    /// `@name` -> countries; shipped lists and the operator's.
    pub lists: BTreeMap<String, Vec<Country>>,
}
