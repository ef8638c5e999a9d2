//! Scalars from the raw text of a JSON value: names, numbers, instants.
//!
//! Numbers stay decimal text until the one conversion that their field needs, so that nanoseconds
//! never pass through f64.

use std::borrow::Cow;

use crate::detector::invalid::Invalid;
use crate::detector::time::{SECOND_NS, Timestamp};

/// A string; borrowed unless it holds escapes.
pub(super) fn text<'a>(field: &str, raw: &'a str) -> Result<Cow<'a, str>, Invalid> {
    let Some(inner) = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Err(wrong_type(field, "a string", raw));
    };
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    match serde_json::from_str::<String>(raw) {
        Ok(text) => Ok(Cow::Owned(text)),
        Err(error) => Err(Invalid::undecodable(format!("json: {field}: {error}"))),
    }
}

/// A JSON number or a string that holds one; `"NaN"`, `"Infinity"` and `"-Infinity"` as the
/// protobuf JSON mapping has them. What is too large becomes infinite.
pub(super) fn number(field: &str, raw: &str) -> Result<f64, Invalid> {
    let text = numeral(field, raw)?;
    let value = match text.as_ref() {
        "NaN" => Some(f64::NAN),
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        digits if is_numeral(digits) => digits.parse().ok(),
        _ => None,
    };
    value.ok_or_else(|| wrong_type(field, "a number", raw))
}

/// A single-precision number: read as f64, then narrowed, as the protobuf JSON mapping of C++ and
/// Java does; what protobuf prints for an f32 gives that f32 back.
#[expect(clippy::cast_possible_truncation, reason = "narrowing rounds to nearest, as meters do")]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

/// Nanoseconds since 1970 as an integer or a string of digits; 0 is not given.
pub(super) fn unix_nano(field: &str, raw: &str) -> Result<Option<Timestamp>, Invalid> {
    let text = numeral(field, raw)?;
    if let Ok(nanoseconds) = text.parse::<u64>()
        && is_numeral(&text)
    {
        return Ok((nanoseconds != 0).then_some(Timestamp(nanoseconds)));
    }
    match Decimal::parse(&text).map(|decimal| (decimal, decimal.times(1))) {
        Some((decimal, product)) if product.exact => Ok(Some(decimal.instant(product))),
        Some(_) | None => Err(wrong_type(field, "a whole number of nanoseconds", raw)),
    }
}

/// An RFC 3339 string.
pub(super) fn date_time(field: &str, raw: &str) -> Result<Timestamp, Invalid> {
    let text = text(field, raw)?;
    rfc3339(&text).ok_or_else(|| wrong_type(field, "an RFC 3339 date and time with zone", raw))
}

/// A number, or a string that holds one, of units of `unit` nanoseconds since 1970.
pub(super) fn scaled_instant(field: &str, raw: &str, unit: u64) -> Result<Timestamp, Invalid> {
    let decimal = decimal(field, raw)?;
    Ok(decimal.instant(decimal.times(unit)))
}

/// A number of units of `unit` nanoseconds, as nanoseconds; a negative one is 0.
pub(super) fn scaled_span(field: &str, raw: &str, unit: u64) -> Result<u64, Invalid> {
    let decimal = decimal(field, raw)?;
    Ok(if decimal.negative { 0 } else { decimal.times(unit).whole })
}

/// Whether a text follows JSON's grammar of numbers.
pub(super) fn is_numeral(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|text| digits(text.strip_prefix(['+', '-']).unwrap_or(text)))
}

pub(super) fn wrong_type(field: &str, expected: &str, raw: &str) -> Invalid {
    let mut shown: String = raw.chars().take(40).collect();
    if shown.len() < raw.len() {
        shown.push_str("...");
    }
    Invalid::undecodable(format!("json: {field} must be {expected}, found {shown}"))
}

/// The text of a number or of a string that should hold one.
fn numeral<'a>(field: &str, raw: &'a str) -> Result<Cow<'a, str>, Invalid> {
    match raw.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => Ok(Cow::Borrowed(raw)),
        Some(b'"') => text(field, raw),
        Some(_) | None => Err(wrong_type(field, "a number", raw)),
    }
}

fn decimal(field: &str, raw: &str) -> Result<Decimal, Invalid> {
    let text = numeral(field, raw)?;
    Decimal::parse(&text).ok_or_else(|| wrong_type(field, "a number", raw))
}

/// Significant digits that are kept: with the largest unit their product stays below 2^127.
const DIGITS: u32 = 24;

/// An exact decimal number: `digits` x 10^`exponent`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decimal {
    negative: bool,
    digits: u128,
    exponent: i64,
    /// Non-zero digits beyond the limit were cut off.
    cut: bool,
}

/// A product, to the nearest integer (half up), at most `u64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Product {
    whole: u64,
    exact: bool,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        if !is_numeral(text) {
            return None;
        }
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
        // an exponent beyond this makes any record's number 0 or out of range
        let limit = if exponent.starts_with('-') { -1_000_000_000 } else { 1_000_000_000 };
        let exponent =
            exponent.parse::<i64>().unwrap_or(limit).clamp(-1_000_000_000, 1_000_000_000);
        let negative = unsigned.len() < text.len();
        let mut decimal = Self { negative, digits: 0, exponent, cut: false };
        let mut in_fraction = false;
        for byte in mantissa.bytes() {
            if byte == b'.' {
                in_fraction = true;
                continue;
            }
            let has_room = decimal.digits < 10_u128.pow(DIGITS - 1);
            if has_room {
                decimal.digits = decimal.digits * 10 + u128::from(byte - b'0');
            } else {
                decimal.cut |= byte != b'0';
            }
            decimal.exponent += i64::from(!has_room) - i64::from(in_fraction);
        }
        Some(decimal)
    }

    /// The magnitude times `unit`, at most an hour in nanoseconds.
    fn times(self, unit: u64) -> Product {
        let product = self.digits * u128::from(unit);
        let power = u32::try_from(self.exponent.unsigned_abs()).ok().and_then(|exponent| {
            // u128 holds 38 powers of ten
            10_u128.checked_pow(exponent)
        });
        let (whole, rest) = match power {
            _ if product == 0 => (0, 0),
            Some(power) if self.exponent >= 0 => (product.saturating_mul(power), 0),
            Some(power) => {
                let (whole, rest) = (product / power, product % power);
                (whole + u128::from(rest >= power - rest), rest)
            }
            None if self.exponent >= 0 => (u128::MAX, 0),
            None => (0, 1),
        };
        let exact = rest == 0 && !self.cut;
        Product { whole: u64::try_from(whole).unwrap_or(u64::MAX), exact }
    }

    /// Instants before 1970 become 1970, which validation refuses like them.
    fn instant(self, magnitude: Product) -> Timestamp {
        Timestamp(if self.negative { 0 } else { magnitude.whole })
    }
}

/// Parses RFC 3339 (`T` may be a space, letters may be small). Digits beyond the nanosecond are
/// cut off; a leap second is the first of the next minute; what lies before 1970 or after what 64
/// bits hold becomes the nearest instant that they do, which validation refuses.
pub(super) fn rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let (head, mut rest) = bytes.split_at_checked(19)?;
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separators.iter().any(|&(at, separator)| head[at] != separator)
        || !matches!(head[10], b'T' | b't' | b' ')
    {
        return None;
    }
    let year = digits(&head[..4])?;
    let (month, day) = (digits(&head[5..7])?, digits(&head[8..10])?);
    let (hour, minute, second) =
        (digits(&head[11..13])?, digits(&head[14..16])?, digits(&head[17..])?);
    if day == 0 || day > days_in_month(year, month)? || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut nanoseconds = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let kept = length.min(9);
        nanoseconds = digits(&fraction[..kept])?;
        for _ in kept..9 {
            nanoseconds *= 10;
        }
        rest = &fraction[length..];
    }
    let seconds = (days_since_1970(year, month, day) * 24 + hour) * 3600 + minute * 60 + second
        - zone_offset(rest)?;
    let since_1970 = i128::from(seconds) * i128::from(SECOND_NS) + i128::from(nanoseconds);
    Some(Timestamp(u64::try_from(since_1970.max(0)).unwrap_or(u64::MAX)))
}

/// Seconds east of Greenwich.
fn zone_offset(zone: &[u8]) -> Option<i64> {
    let (sign, hour, minute) = match zone {
        [b'Z' | b'z'] => return Some(0),
        [b'+', h1, h2, b':', m1, m2] => (1, digits(&[*h1, *h2])?, digits(&[*m1, *m2])?),
        [b'-', h1, h2, b':', m1, m2] => (-1, digits(&[*h1, *h2])?, digits(&[*m1, *m2])?),
        _ => return None,
    };
    (hour < 24 && minute < 60).then_some(sign * (hour * 3600 + minute * 60))
}

/// One to nine digits.
fn digits(bytes: &[u8]) -> Option<i64> {
    let mut value = 0;
    for byte in bytes {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i64::from(byte - b'0');
    }
    (!bytes.is_empty()).then_some(value)
}

fn days_in_month(year: i64, month: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => Some(if is_leap { 29 } else { 28 }),
        4 | 6 | 9 | 11 => Some(30),
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        _ => None,
    }
}

/// Days of the proleptic Gregorian calendar, counted in years that begin in March, so that the
/// leap day is a year's last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let months_since_march = (month + 9) % 12;
    let day_of_year = (153 * months_since_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 0000-03-01 lies 719468 days before 1970-01-01
    365 * year + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimal_seconds_convert_exactly() {
        let instant = |raw| scaled_instant("time", raw, SECOND_NS).map(|instant| instant.0);
        assert_eq!(instant("\"1700000000.123456789\""), Ok(1_700_000_000_123_456_789));
        assert_eq!(instant("1700000000"), Ok(1_700_000_000_000_000_000));
        assert_eq!(instant("1.7e9"), Ok(1_700_000_000_000_000_000));
        assert_eq!(instant("0.0000000017"), Ok(2));
        assert_eq!(instant("-5"), Ok(0));
        assert_eq!(instant("1e999999999999999999999"), Ok(u64::MAX));
        assert_eq!(instant("1e-999999999999999999999"), Ok(0));
        assert!(instant("\"NaN\"").is_err());
        assert!(instant("true").is_err());
    }

    #[test]
    fn a_third_of_an_hour_is_twenty_minutes() {
        assert_eq!(
            scaled_span("duration", "0.3333333333333333", 3600 * SECOND_NS),
            Ok(1200 * SECOND_NS)
        );
        assert_eq!(scaled_span("duration", "-1", SECOND_NS), Ok(0));
    }

    #[test]
    fn nanoseconds_must_be_whole_and_zero_is_not_given() {
        let nano = |raw| unix_nano("time_unix_nano", raw);
        assert_eq!(nano("1700000000123456789"), Ok(Some(Timestamp(1_700_000_000_123_456_789))));
        assert_eq!(nano("\"1700000000123456789\""), nano("1700000000123456789"));
        assert_eq!(nano("1.7e18"), Ok(Some(Timestamp(1_700_000_000_000_000_000))));
        assert_eq!(nano("0"), Ok(None));
        assert_eq!(nano("-1"), Ok(Some(Timestamp(0))));
        assert_eq!(nano("18446744073709551616"), Ok(Some(Timestamp(u64::MAX))));
        for wrong in ["1.5", "\"\"", "\"+5\"", "\"05\"", "\" 5\"", "\"1h\"", "false", "{}"] {
            assert!(nano(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_may_be_strings_but_nothing_else() {
        assert_eq!(number("quantity", "\"1.50\""), Ok(1.5));
        assert!(number("quantity", "\"NaN\"").is_ok_and(f64::is_nan));
        for wrong in ["\"nan\"", "\"inf\"", "\"1.\"", "\".5\"", "\"\"", "true", "[1]", "null"] {
            assert!(number("quantity", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dates_before_1970_or_beyond_64_bits_become_the_nearest_instant() {
        assert_eq!(rfc3339("1969-12-31T23:59:59Z"), Some(Timestamp(0)));
        assert_eq!(rfc3339("9999-12-31T23:59:59Z"), Some(Timestamp(u64::MAX)));
        assert_eq!(rfc3339("1970-01-01T01:00:00.5+01:00"), Some(Timestamp(500_000_000)));
        assert_eq!(rfc3339("2016-12-31T23:59:60Z"), rfc3339("2017-01-01T00:00:00Z"));
        assert_eq!(rfc3339("1970-01-01T00:00:00.1234567899z"), Some(Timestamp(123_456_789)));
        for wrong in [
            "",
            "2024-02-30T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:61Z",
            "2024-01-01T00:00:00",
            "2024-01-01",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+0100",
            "2024-01-01T00:00:00+1:00",
            "2024-01-01T00:00:00+24:00",
            "2024-01-01T00:00:00Z ",
            "+024-01-01T00:00:00Z",
            "2024-01-01T00:00:00é",
        ] {
            assert_eq!(rfc3339(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn instants_read_back_what_jiff_prints(nanoseconds: u64, minutes in -1439..1440_i32) {
            let instant = jiff::Timestamp::from_nanosecond(i128::from(nanoseconds))
                .expect("64 bits of nanoseconds end in 2554");
            prop_assert_eq!(rfc3339(&instant.to_string()), Some(Timestamp(nanoseconds)));
            let offset = jiff::tz::Offset::from_seconds(minutes * 60).expect("less than a day");
            let zoned = instant.display_with_offset(offset).to_string();
            prop_assert_eq!(rfc3339(&zoned), Some(Timestamp(nanoseconds)), "{}", zoned);
        }

        #[test]
        fn numerals_are_what_serde_json_takes_for_numbers(text in "[-+0-9.eE]{1,8}") {
            let taken = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(is_numeral(&text), taken);
        }

        #[test]
        fn decimals_agree_with_integers(value: u64, shift in 0..9_u32) {
            let text = format!("{value}e-{shift}");
            let decimal = Decimal::parse(&text).expect("a number");
            let expected = u128::from(value) * u128::from(SECOND_NS) / 10_u128.pow(shift);
            let expected = u64::try_from(expected).unwrap_or(u64::MAX);
            prop_assert_eq!(decimal.times(SECOND_NS), Product { whole: expected, exact: true });
        }
    }
}
