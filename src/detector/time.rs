//! Event time: instants and spans in integer nanoseconds, epochs and slice ends.
//!
//! Every instant comes from a record; nothing here reads a clock.

use std::fmt;

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// A length of time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub u64);

impl Span {
    /// The longest that can be configured, 25 years: 64 bits have room for two beyond 2500.
    pub const LONGEST: Self = Self::days(9131);

    pub const fn seconds(seconds: u64) -> Self {
        Self(seconds * SECOND_NS)
    }

    pub const fn hours(hours: u64) -> Self {
        Self::seconds(hours * 3600)
    }

    pub const fn days(days: u64) -> Self {
        Self::hours(days * 24)
    }

    /// Seconds as f64, the unit of rates.
    #[expect(clippy::cast_precision_loss, reason = "spans of whole seconds below 2^53 are exact")]
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }

    pub fn is_multiple_of(self, unit: Self) -> bool {
        unit.0 != 0 && self.0.is_multiple_of(unit.0)
    }
}

/// `90m`, `72h`, `30d`: the largest unit that divides the span.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 5] = [
            (86_400 * SECOND_NS, "d"),
            (3_600 * SECOND_NS, "h"),
            (60 * SECOND_NS, "m"),
            (SECOND_NS, "s"),
            (1_000_000, "ms"),
        ];
        for (unit, name) in UNITS {
            if self.0 != 0 && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        if self.0 == 0 { f.write_str("0s") } else { write!(f, "{}ns", self.0) }
    }
}

/// An instant in nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// 2000-01-01T00:00:00Z: nothing accepted lies before it.
    pub const EARLIEST: Self = Self(946_684_800 * SECOND_NS);
    /// 2500-01-01T00:00:00Z: nothing accepted lies at or after it.
    pub const LATEST: Self = Self(16_725_225_600 * SECOND_NS);
    /// No slice of accepted usage ends after it; adding any configured span cannot overflow.
    pub const LIMIT: Self = Self(Self::LATEST.0 + Span::LONGEST.0);

    /// The instant `span` later.
    pub fn plus(self, span: Span) -> Self {
        Self(
            self.0
                .checked_add(span.0)
                .expect("an instant up to the limit leaves room for every span"),
        )
    }

    /// The instant `span` earlier, or 0: before every accepted instant either way.
    pub fn minus(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }

    /// The last multiple of `unit` at or before this instant.
    pub fn floor(self, unit: Span) -> Self {
        Self(self.0 - self.0 % unit.0)
    }

    /// The end of the slice of length `slice` that holds this instant.
    pub fn slice_end(self, slice: Span) -> Self {
        self.floor(slice).plus(slice)
    }

    pub fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// RFC 3339 in UTC, with as many decimals as needed.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(instant) => instant.fmt(f),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_print_in_their_largest_unit() {
        assert_eq!(Span::hours(72).to_string(), "3d");
        assert_eq!(Span::hours(6).to_string(), "6h");
        assert_eq!(Span(200_000_000).to_string(), "200ms");
        assert_eq!(Span(0).to_string(), "0s");
    }

    #[test]
    fn an_instant_on_a_boundary_belongs_to_the_slice_that_starts_there() {
        let hour = Span::hours(1);
        let boundary = Timestamp(7200 * SECOND_NS);
        assert_eq!(boundary.slice_end(hour), Timestamp(10_800 * SECOND_NS));
        assert_eq!(Timestamp(boundary.0 - 1).slice_end(hour), boundary);
    }

    #[test]
    fn instants_print_as_rfc_3339() {
        assert_eq!(Timestamp::EARLIEST.to_string(), "2000-01-01T00:00:00Z");
        assert_eq!(Timestamp::LATEST.to_string(), "2500-01-01T00:00:00Z");
        assert_eq!(Timestamp(1_500_000_000).to_string(), "1970-01-01T00:00:01.5Z");
    }
}
