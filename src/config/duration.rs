//! Durations as people write them: `200ms`, `72h`, `1h30m`, `30d`.

use std::str::FromStr;

use crate::detector::time::Span;

/// Parses whole numbers with units, largest unit first; the error says what is wrong.
pub(crate) fn parse(text: &str) -> Result<Span, String> {
    if text.is_empty() {
        return Err("\"\" is not a duration".to_owned());
    }
    let mut total: u64 = 0;
    let mut last_unit = u64::MAX;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        if number.is_empty() {
            return Err(format!("{text:?} is not a duration"));
        }
        if unit.is_empty() {
            return Err(match tail.chars().next() {
                Some(_) => format!("{text:?} is not a duration of whole numbers"),
                None => format!("{text:?} has no unit"),
            });
        }
        let Some(unit_ns) = unit_ns(unit) else {
            return Err(format!("{text:?} has the unknown unit {unit:?}"));
        };
        if unit_ns >= last_unit {
            return Err(format!("{text:?} does not go from large units to small ones"));
        }
        let part = u64::from_str(number).ok().and_then(|number| number.checked_mul(unit_ns));
        total = part
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= Span::LONGEST.0)
            .ok_or_else(|| format!("{text:?} is longer than 25 years"))?;
        last_unit = unit_ns;
        rest = tail;
    }
    Ok(Span(total))
}

fn unit_ns(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => Span::seconds(1).0,
        "m" => Span::seconds(60).0,
        "h" => Span::hours(1).0,
        "d" => Span::days(1).0,
        "w" => Span::days(7).0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_with_units_are_durations() {
        for (text, span) in [
            ("200ms", Span(200_000_000)),
            ("30s", Span::seconds(30)),
            ("5m", Span::seconds(300)),
            ("72h", Span::hours(72)),
            ("30d", Span::days(30)),
            ("2w", Span::days(14)),
            ("1h30m", Span::seconds(5400)),
            ("1d12h", Span::hours(36)),
            ("0s", Span(0)),
            ("1us", Span(1000)),
            ("9131d", Span::LONGEST),
        ] {
            assert_eq!(parse(text), Ok(span), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_what_is_wrong() {
        for (text, wrong) in [
            ("", "not a duration"),
            ("5", "no unit"),
            ("h", "not a duration"),
            ("1.5h", "whole numbers"),
            ("5 m", "whole numbers"),
            ("-5m", "not a duration"),
            ("5min", "unknown unit \"min\""),
            ("5M", "unknown unit \"M\""),
            ("30m1h", "large units to small"),
            ("1h1h", "large units to small"),
            ("9132d", "longer than 25 years"),
            ("99999999999999999999d", "longer than 25 years"),
            ("1h30", "no unit"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }
}
