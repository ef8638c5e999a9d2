//! Durations on the command line, as the configuration writes them.

use crate::config::parse_duration;
use crate::detector::time::Span;

/// `200ms`, `30s`, `1h30m`, `30d`.
pub(super) fn parse_span(text: &str) -> Result<Span, String> {
    parse_duration(text).map_err(|error| format!("{error}: wanted such as 30s, 5m, 72h or 30d"))
}
