//! Durations on the command line.

use crate::detector::time::Span;

/// `200ms`, `30s`, `5m`, `72h`, `30d`.
pub(super) fn parse_span(text: &str) -> Result<Span, String> {
    const UNITS: [(&str, u64); 5] =
        [("ms", 1_000_000), ("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    let wanted = || format!("{text:?} is no duration: wanted such as 200ms, 30s, 5m, 72h or 30d");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wanted())?;
    let (name, factor) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wanted)?;
    let factor = if name == "ms" { factor } else { factor * 1_000_000_000 };
    number.checked_mul(factor).map(Span).ok_or_else(|| format!("{text} is too long"))
}
