//! What to simulate, and what makes no sense.

use super::scenario::Scenario;
use crate::detector::time::{Span, Timestamp};

/// Disorder that leaves room for a late batch within the default `time.dedup_horizon`.
pub const DISORDER_LIMIT: Span = Span::seconds(20 * 60);
const MILLISECOND_NS: u64 = 1_000_000;

/// What gives a record its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyBy {
    Account,
    Event,
    None,
}

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub start: Timestamp,
    pub span: Span,
    pub interval: Span,
    pub partitions: u32,
    pub key: KeyBy,
    /// Background accounts, and the nodes spread over them by Zipf's law.
    pub accounts: u32,
    pub resources: u32,
    pub scenarios: Vec<Scenario>,
    /// Background nodes are rented all the time.
    pub constant: bool,
    /// Exact duplicates for each million events.
    pub duplicates_per_million: u32,
    pub disorder: Span,
}

impl Plan {
    /// The number of intervals, or what is wrong with the plan.
    pub(super) fn ticks(&self) -> Result<u32, String> {
        let (interval, span) = (self.interval, self.span);
        if interval < Span::seconds(1) || interval > Span::days(1) {
            return Err(format!("interval {interval} must be from 1s to 1d"));
        }
        if !interval.is_multiple_of(Span(MILLISECOND_NS)) {
            return Err(format!("interval {interval} must be whole milliseconds"));
        }
        if span < interval || span > Span::days(3660) {
            return Err(format!("span {span} must be from one interval to ten years"));
        }
        if self.start < Timestamp::EARLIEST || self.start.0 > Timestamp::LATEST.0 / 2 {
            return Err(format!("start {} must lie between 2000 and 2234", self.start));
        }
        if self.partitions == 0 {
            return Err("partitions must be at least 1".to_owned());
        }
        if self.disorder > DISORDER_LIMIT {
            let (given, limit) = (self.disorder, DISORDER_LIMIT);
            return Err(format!("disorder {given} must be at most {limit}"));
        }
        u32::try_from(span.0 / interval.0)
            .map_err(|_| format!("span {span} has too many intervals of {interval}"))
    }
}
