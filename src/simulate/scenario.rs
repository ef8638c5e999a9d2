//! The labelled scenarios, and the terms in which they are told: tenants, sites, allocations, and
//! when how much of one is rented.

use super::hardware::Hardware;
use super::telemetry::{Behaviour, Probe};
use crate::proto::Account;

/// The label in the ground truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Scenario {
    /// Accounts of all sizes that mean nothing by it.
    Background,
    /// A foreign account trains on 1,024 accelerators for weeks, with restarts.
    SteadyTraining,
    /// Jobs of 8 to 64 accelerators, hours long.
    FineTuning,
    /// Replicas that follow their users through the day.
    Inference,
    /// Nightly jobs.
    Batch,
    /// A render farm in bursts: busy shaders, idle tensor cores.
    Rendering,
    /// One run split over eight accounts of one owner.
    SplitAccounts,
    /// One run of one account split over four regions.
    SplitRegions,
    /// A home address, a foreign ultimate parent.
    Subsidiary,
    /// A reseller, its customers, and a pool that it does not open up.
    Reseller,
    /// 504 accelerators, where policies ask for 512.
    BelowThreshold,
    /// Usage taken back and added later, meters cut off and heard of late.
    Corrections,
}

impl Scenario {
    pub const ALL: [Self; 12] = [
        Self::Background,
        Self::SteadyTraining,
        Self::FineTuning,
        Self::Inference,
        Self::Batch,
        Self::Rendering,
        Self::SplitAccounts,
        Self::SplitRegions,
        Self::Subsidiary,
        Self::Reseller,
        Self::BelowThreshold,
        Self::Corrections,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::SteadyTraining => "steady-training",
            Self::FineTuning => "fine-tuning",
            Self::Inference => "inference",
            Self::Batch => "batch",
            Self::Rendering => "rendering",
            Self::SplitAccounts => "split-accounts",
            Self::SplitRegions => "split-regions",
            Self::Subsidiary => "subsidiary",
            Self::Reseller => "reseller",
            Self::BelowThreshold => "below-threshold",
            Self::Corrections => "corrections",
        }
    }
}

/// An account with its label and what the directory says of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenant {
    pub scenario: Scenario,
    pub entry: Account,
    /// The directory lacks it.
    pub unlisted: bool,
}

/// Equal nodes rented by one account on one fabric.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Allocation {
    pub account: u32,
    /// Index of region and fabric among the cloud's sites.
    pub site: u32,
    pub hardware: &'static Hardware,
    /// Quantity of one node: accelerators, or instances.
    pub quantity: f64,
    pub nodes: u32,
    pub behaviour: Behaviour,
    pub probe: Probe,
    pub rhythm: Rhythm,
}

/// When how many of the nodes are rented.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rhythm {
    Always,
    /// All nodes at once, during these intervals of ticks, in order.
    Gang(Vec<(u32, u32)>),
    /// Most at `peak_hour` UTC, `floor` thousandths of them twelve hours from it.
    Daily {
        peak_hour: u32,
        floor: u32,
    },
}

impl Rhythm {
    /// Nodes rented during the tick that starts at `hour_ms` (milliseconds since midnight UTC).
    pub(super) fn active(&self, nodes: u32, tick: u32, day_ms: u32) -> u32 {
        match self {
            Self::Always => nodes,
            Self::Gang(up) => {
                let next = up.partition_point(|&(start, _)| start <= tick);
                let running = next > 0 && tick < up[next - 1].1;
                if running { nodes } else { 0 }
            }
            Self::Daily { peak_hour, floor } => {
                const DAY_MS: u32 = 86_400_000;
                let distance = day_ms.abs_diff(peak_hour * 3_600_000);
                let distance = distance.min(DAY_MS - distance);
                // a parabola through 1 at the peak and `floor` at its opposite
                let share = u64::from(distance / 43_200);
                let level = u64::from(*floor)
                    + (1000 - u64::from(*floor)) * (1_000_000 - share * share) / 1_000_000;
                let active = (u64::from(nodes) * level).div_ceil(1000);
                u32::try_from(active).expect("at most every node")
            }
        }
    }
}

/// A place: machines there share a fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    pub region: String,
    pub fabric: String,
}

/// How long and how fine the simulated time is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calendar {
    pub ticks: u32,
    pub ticks_per_hour_x1000: u64,
    /// Milliseconds since midnight UTC at the first tick.
    pub day_ms: u32,
    pub interval_ms: u64,
}

impl Calendar {
    /// Ticks in so many minutes, at least one.
    pub(super) fn minutes(self, minutes: u64) -> u32 {
        let ticks = (minutes * self.ticks_per_hour_x1000 / 60_000).max(1);
        u32::try_from(ticks).unwrap_or(self.ticks).min(self.ticks.max(1))
    }

    /// Milliseconds since midnight UTC at the start of a tick.
    pub(super) fn time_of_day(self, tick: u32) -> u32 {
        let ms = (u64::from(self.day_ms) + u64::from(tick) * self.interval_ms) % 86_400_000;
        u32::try_from(ms).expect("a day has fewer milliseconds than 2^32")
    }

    /// Days since the first midnight at the start of a tick.
    pub(super) fn day(self, tick: u32) -> u64 {
        (u64::from(self.day_ms) + u64::from(tick) * self.interval_ms) / 86_400_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u32 = 3_600_000;

    #[test]
    fn a_daily_rhythm_is_full_at_its_peak_and_at_its_floor_twelve_hours_away() {
        let daily = Rhythm::Daily { peak_hour: 21, floor: 250 };
        assert_eq!(daily.active(32, 0, 21 * HOUR_MS), 32);
        assert_eq!(daily.active(32, 0, 9 * HOUR_MS), 8);
        assert_eq!(daily.active(32, 0, 3 * HOUR_MS), daily.active(32, 0, 15 * HOUR_MS));
    }

    #[test]
    fn a_gang_runs_whole_or_not_at_all() {
        let gang = Rhythm::Gang(vec![(2, 4), (6, 7)]);
        let active: Vec<_> = (0..8).map(|tick| gang.active(5, tick, 0)).collect();
        assert_eq!(active, [0, 0, 5, 5, 0, 0, 5, 0]);
    }
}
