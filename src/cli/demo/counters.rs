//! What the service says of itself on `/metrics`, read in this process.

use metrics_exporter_prometheus::PrometheusHandle;

use crate::detector::time::{SECOND_NS, Timestamp};
use crate::metrics::Stage;
use crate::metrics::table;

pub(super) struct Counters {
    handle: PrometheusHandle,
}

/// The counters of conservation, and how far the last stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) read: u64,
    pub(super) counted: u64,
    pub(super) duplicate: u64,
    pub(super) dead_letter: u64,
    pub(super) late: u64,
    /// M of the GROUP partition that is furthest behind; 0 before its first step.
    pub(super) watermark: Timestamp,
}

impl Counters {
    pub(super) const fn new(handle: PrometheusHandle) -> Self {
        Self { handle }
    }

    pub(super) fn read(&self) -> Counts {
        Counts::parse(&self.handle.render())
    }
}

impl Counts {
    fn parse(page: &str) -> Self {
        let sum = |name| integer(values(page, name).map(|(_, value)| value).sum());
        let group = format!("stage=\"{}\"", Stage::Group.name());
        let seconds = values(page, table::WATERMARK.name)
            .filter(|(labels, _)| labels.contains(&group))
            .map(|(_, value)| value)
            .reduce(f64::min);
        Self {
            read: sum(table::EVENTS_READ.name),
            counted: sum(table::EVENTS_COUNTED.name),
            duplicate: sum(table::EVENTS_DUPLICATE.name),
            dead_letter: sum(table::EVENTS_DEAD_LETTERED.name),
            late: sum(table::EVENTS_LATE.name),
            watermark: Timestamp(integer(seconds.unwrap_or_default()) * SECOND_NS),
        }
    }
}

/// Labels and value of each line of a series.
fn values<'a>(page: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    page.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let is_ours = labels.is_empty() || labels.starts_with('{');
        Some((labels, value.parse().ok()?)).filter(|_| is_ours)
    })
}

/// Counters and epochs in seconds are whole; a gauge of a task that has left is NaN, which is 0.
#[expect(clippy::cast_possible_truncation, reason = "a float saturates, and these are small")]
#[expect(clippy::cast_sign_loss, reason = "a float saturates, and these are not negative")]
fn integer(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_over_labels_and_the_watermark_is_the_least_of_the_last_stage() {
        let page = "\
# TYPE flopwatch_events_read_total counter
flopwatch_events_read_total 12
flopwatch_events_dead_lettered_total{reason=\"undecodable\"} 2
flopwatch_events_dead_lettered_total{reason=\"beyond_horizon\"} 1
flopwatch_watermark_timestamp_seconds{stage=\"account\",partition=\"0\"} 900
flopwatch_watermark_timestamp_seconds{stage=\"group\",partition=\"0\"} 600
flopwatch_watermark_timestamp_seconds{stage=\"group\",partition=\"1\"} 300
";
        let counts = Counts::parse(page);
        assert_eq!((counts.read, counts.dead_letter), (12, 3));
        assert_eq!(counts.watermark, Timestamp(300 * SECOND_NS));
    }
}
