//! Numbers and times as they are written, read without losing anything of them.

use arrow::datatypes::{TimeUnit, i256};
use chrono::NaiveDate;

/// Why a text has no value in a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is something else.
    Wrong(String),
    /// It is what is wanted, but the column's type cannot hold it.
    Beyond(String),
}

impl Unfit {
    /// In words.
    pub fn why(self) -> String {
        match self {
            Self::Wrong(why) | Self::Beyond(why) => why,
        }
    }
}

/// What of a text an error repeats, in bytes.
const SHOWN_MAX: usize = 60;

/// A text for errors.
pub fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("'{}…'", text.get(..end).unwrap_or_default().escape_debug()),
        None => format!("'{}'", text.escape_debug()),
    }
}

/// A decimal number: its digits without zeros around them, and the power of ten they are to be multiplied with.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Reads a number as JSON writes it; `None` if it is none.
    fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, Some(exponent)),
            None => (text, None),
        };
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) => (whole, fraction),
            None => (mantissa, "0"),
        };
        if !is_number(whole) || !is_number(fraction) {
            return None;
        }
        let mut power = match exponent {
            None => 0,
            Some(text) => {
                let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
                if !is_number(digits) {
                    return None;
                }
                // Far beyond what any type holds, whatever the digits are.
                let size: i64 = digits.parse().unwrap_or(i64::from(i32::MAX)).min(i32::MAX.into());
                if text.starts_with('-') { -size } else { size }
            }
        };
        power -= i64::try_from(fraction.len()).unwrap_or(i64::MAX / 2);
        let all = format!("{whole}{fraction}");
        let digits = all.trim_end_matches('0');
        power += i64::try_from(all.len() - digits.len()).unwrap_or(0);
        let digits = digits.trim_start_matches('0').to_owned();
        Some(Self { negative, exponent: if digits.is_empty() { 0 } else { power }, digits })
    }

    /// The number as a count of 10 to the power of `-scale`, in digits; `None` where that is no whole number, or has
    /// more than `digits_max` digits.
    fn scaled(&self, scale: i8, digits_max: usize) -> Option<String> {
        if self.digits.is_empty() {
            return Some("0".to_owned());
        }
        let zeros = usize::try_from(self.exponent + i64::from(scale)).ok()?;
        if zeros.checked_add(self.digits.len())? > digits_max {
            return None;
        }
        let sign = if self.negative { "-" } else { "" };
        Some(format!("{sign}{}{}", self.digits, "0".repeat(zeros)))
    }
}

/// The integer that a number is, `1.0` and `1e3` among them.
///
/// # Errors
/// It is no integer, or one beyond 128 bits.
pub fn integer(text: &[u8]) -> Result<i128, Unfit> {
    let number = std::str::from_utf8(text).ok().and_then(Decimal::parse);
    let number = number.ok_or_else(|| Unfit::Wrong(format!("{} is no number", shown(text))))?;
    if number.exponent < 0 {
        return Err(Unfit::Wrong(format!("{} is no integer", shown(text))));
    }
    number
        .scaled(0, 39)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| Unfit::Beyond(format!("{} is too large an integer", shown(text))))
}

/// A number with `scale` decimals as that many times its last digit.
///
/// # Errors
/// It is no number, has more decimals, or more than `precision` digits.
pub fn decimal(text: &[u8], precision: u8, scale: i8) -> Result<i256, Unfit> {
    let number = std::str::from_utf8(text).ok().and_then(Decimal::parse);
    let number = number.ok_or_else(|| Unfit::Wrong(format!("{} is no number", shown(text))))?;
    let scaled = number.scaled(scale, usize::from(precision));
    scaled.and_then(|digits| i256::from_string(&digits)).ok_or_else(|| {
        Unfit::Beyond(format!(
            "{} has more than {precision} digits, {scale} of them decimals",
            shown(text)
        ))
    })
}

/// Days since 1970-01-01 of a date such as `2024-02-29`.
///
/// # Errors
/// It is no date.
pub fn date(text: &[u8]) -> Result<i32, Unfit> {
    let mut rest = text;
    match days(&mut rest) {
        Some(days) if rest.is_empty() => i32::try_from(days).map_err(|_| beyond(text)),
        _ => Err(Unfit::Wrong(format!("{} is no date", shown(text)))),
    }
}

/// A time of day such as `08:30:00.5`, in units since midnight.
///
/// # Errors
/// It is none, or has more decimals than the unit.
pub fn time_of_day(text: &[u8], unit: TimeUnit) -> Result<i64, Unfit> {
    let mut rest = text;
    match clock(&mut rest) {
        Some(clock) if rest.is_empty() => in_units(i128::from(clock.seconds), &clock, unit, text),
        _ => Err(Unfit::Wrong(format!("{} is no time of day", shown(text)))),
    }
}

/// A date and time (RFC 3339) in units since the epoch; with an offset from UTC if it `is_zoned`, without one if not.
///
/// # Errors
/// It is none, or beyond what the unit can count.
pub fn timestamp(text: &[u8], unit: TimeUnit, is_zoned: bool) -> Result<i64, Unfit> {
    let wrong = |why: &str| Unfit::Wrong(format!("{} is no time{why}", shown(text)));
    let mut rest = text;
    let days = days(&mut rest).ok_or_else(|| wrong(""))?;
    match rest.split_first() {
        Some((b'T' | b't' | b' ', after)) => rest = after,
        _ => return Err(wrong(": no time of day follows the date")),
    }
    let clock = clock(&mut rest).ok_or_else(|| wrong(""))?;
    let offset = match (rest, is_zoned) {
        (b"", false) => 0,
        (b"", true) => return Err(wrong(" with an offset from UTC, as Z or +02:00")),
        (_, false) => return Err(wrong(" without an offset from UTC")),
        (b"Z" | b"z", true) => 0,
        (&[sign @ (b'+' | b'-'), ref offset @ ..], true) => {
            let mut offset = offset;
            let seconds = hours_minutes(&mut offset).filter(|_| offset.is_empty());
            let seconds = seconds.ok_or_else(|| wrong(": the offset is none"))?;
            if sign == b'+' { seconds } else { -seconds }
        }
        _ => return Err(wrong("")),
    };
    let seconds = i128::from(days) * 86_400 + i128::from(clock.seconds) - i128::from(offset);
    in_units(seconds, &clock, unit, text)
}

struct Clock {
    seconds: i64,
    nanos: i64,
    /// There are decimals beyond nanoseconds.
    is_finer: bool,
    is_leap: bool,
}

fn beyond(text: &[u8]) -> Unfit {
    Unfit::Beyond(format!("{} is out of range", shown(text)))
}

fn in_units(seconds: i128, clock: &Clock, unit: TimeUnit, text: &[u8]) -> Result<i64, Unfit> {
    let (per_second, name) = match unit {
        TimeUnit::Second => (1, "seconds"),
        TimeUnit::Millisecond => (1_000, "milliseconds"),
        TimeUnit::Microsecond => (1_000_000, "microseconds"),
        TimeUnit::Nanosecond => (1_000_000_000, "nanoseconds"),
    };
    let size = 1_000_000_000 / per_second;
    if clock.is_leap {
        return Err(Unfit::Beyond(format!("{} is a leap second", shown(text))));
    }
    if clock.is_finer || clock.nanos % size != 0 {
        return Err(Unfit::Beyond(format!("{} is finer than {name}", shown(text))));
    }
    let units = seconds * i128::from(per_second) + i128::from(clock.nanos / size);
    i64::try_from(units).map_err(|_| beyond(text))
}

/// Takes `count` digits from the front.
fn number(rest: &mut &[u8], count: usize) -> Option<i64> {
    let (digits, after) = rest.split_at_checked(count)?;
    let mut value = 0;
    for digit in digits {
        value = value * 10 + i64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    *rest = after;
    Some(value)
}

fn byte(rest: &mut &[u8], wanted: u8) -> Option<()> {
    let after = rest.strip_prefix(&[wanted])?;
    *rest = after;
    Some(())
}

/// Takes a date from the front, as days since 1970-01-01.
fn days(rest: &mut &[u8]) -> Option<i64> {
    let year = number(rest, 4)?;
    byte(rest, b'-')?;
    let month = number(rest, 2)?;
    byte(rest, b'-')?;
    let day = number(rest, 2)?;
    let date = NaiveDate::from_ymd_opt(
        i32::try_from(year).ok()?,
        u32::try_from(month).ok()?,
        u32::try_from(day).ok()?,
    )?;
    Some(date.signed_duration_since(NaiveDate::default()).num_days())
}

fn hours_minutes(rest: &mut &[u8]) -> Option<i64> {
    let hours = number(rest, 2).filter(|hours| *hours < 24)?;
    byte(rest, b':')?;
    let minutes = number(rest, 2).filter(|minutes| *minutes < 60)?;
    Some((hours * 60 + minutes) * 60)
}

/// Takes a time of day from the front.
fn clock(rest: &mut &[u8]) -> Option<Clock> {
    let minutes = hours_minutes(rest)?;
    byte(rest, b':')?;
    let seconds = number(rest, 2).filter(|seconds| *seconds <= 60)?;
    let (mut nanos, mut is_finer) = (0, false);
    if byte(rest, b'.').is_some() {
        let end = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        let (fraction, after) =
            rest.split_at_checked(end).filter(|(digits, _)| !digits.is_empty())?;
        *rest = after;
        let mut size = 100_000_000;
        for digit in fraction {
            nanos += i64::from(digit - b'0') * size;
            is_finer |= size == 0 && *digit != b'0';
            size /= 10;
        }
    }
    Some(Clock { seconds: minutes + seconds, nanos, is_finer, is_leap: seconds == 60 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wrong<T>(result: Result<T, Unfit>) -> bool {
        matches!(result, Err(Unfit::Wrong(_)))
    }

    fn out<T>(result: Result<T, Unfit>) -> bool {
        matches!(result, Err(Unfit::Beyond(_)))
    }

    #[test]
    fn integers_are_exact() {
        for (text, value) in [
            ("0", 0),
            ("-0.00", 0),
            ("1.0", 1),
            ("12e2", 1_200),
            ("1.5e1", 15),
            ("-9223372036854775809", -9_223_372_036_854_775_809),
            ("0e999999999999999999999", 0),
        ] {
            assert_eq!(integer(text.as_bytes()), Ok(value), "{text}");
        }
        for text in ["1.5", "1e-1", "15e-2", "", "x", "1.", ".5", "1e", "0x1", "+1"] {
            assert!(wrong(integer(text.as_bytes())), "{text}");
        }
        for text in ["1e39", "1e999999999999999999999", "9".repeat(40).as_str()] {
            assert!(out(integer(text.as_bytes())), "{text}");
        }
    }

    #[test]
    fn decimals_lose_no_digit() {
        for (text, value) in [
            ("12.34", 1_234),
            ("12.340000", 1_234),
            ("-0.01", -1),
            ("1e3", 100_000),
            ("99999999.99", 9_999_999_999),
            ("0", 0),
        ] {
            assert_eq!(decimal(text.as_bytes(), 10, 2), Ok(i256::from_i128(value)), "{text}");
        }
        for text in ["12.345", "100000000", "1e-3", "1e400"] {
            assert!(out(decimal(text.as_bytes(), 10, 2)), "{text}");
        }
        assert_eq!(decimal(b"1200", 2, -2), Ok(i256::from_i128(12)));
        assert!(wrong(decimal(b"abc", 10, 2)) && wrong(decimal(b"NaN", 10, 2)));
        let widest = "9".repeat(76);
        assert_eq!(
            decimal(widest.as_bytes(), 76, 0),
            Ok(i256::from_string(&widest).expect("it fits"))
        );
    }

    #[test]
    fn times_are_exact() {
        let micros = |text: &str| timestamp(text.as_bytes(), TimeUnit::Microsecond, true);
        for (text, value) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-21T15:00:00.000001+01:00", 1_795_269_600_000_001),
            ("1969-12-31 23:59:59.9999990z", -1),
            ("2024-02-29t00:00:00-23:59", 1_709_251_140_000_000),
        ] {
            assert_eq!(micros(text), Ok(value), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "2024-02-29",
            "2023-02-29T00:00:00Z",
            "2024-02-29T24:00:00Z",
            "2024-02-29T00:00:00",
            "2024-02-29T00:00:00.Z",
            "2024-02-29T00:00:00+0100",
            "2024-02-29T00:00:00Zx",
            "24-02-29T00:00:00Z",
        ] {
            assert!(wrong(micros(text)), "{text}");
        }
        for text in [
            "2024-02-29T00:00:00.0000001Z",
            "2016-12-31T23:59:60Z",
            "2024-02-29T00:00:00.0000000001Z",
        ] {
            assert!(out(micros(text)), "{text}");
        }
        assert!(out(timestamp(b"9999-01-01T00:00:00Z", TimeUnit::Nanosecond, true)));
        assert_eq!(timestamp(b"1970-01-02T00:00:01", TimeUnit::Second, false), Ok(86_401));
        assert!(wrong(timestamp(b"1970-01-02T00:00:01Z", TimeUnit::Second, false)));
        assert_eq!(date(b"1969-12-31"), Ok(-1));
        assert!(wrong(date(b"1969-12-31T00:00:00Z")) && wrong(date(b"1969-13-01")));
        assert_eq!(time_of_day(b"23:59:59.999", TimeUnit::Millisecond), Ok(86_399_999));
        assert!(out(time_of_day(b"00:00:00.5", TimeUnit::Second)));
        assert!(wrong(time_of_day(b"00:00:00Z", TimeUnit::Second)));
    }

    proptest! {
        #[test]
        fn texts_do_no_harm(text: Vec<u8>) {
            let _ = (integer(&text), decimal(&text, 38, 4), date(&text));
            let _ = (timestamp(&text, TimeUnit::Nanosecond, true), time_of_day(&text, TimeUnit::Second));
        }

        #[test]
        fn times_are_those_of_another_reader(seconds in -60_000_000_000i64..200_000_000_000, micros in 0i64..1_000_000) {
            let time = chrono::DateTime::from_timestamp_micros(seconds * 1_000_000 + micros).expect("in range");
            let text = time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
            prop_assert_eq!(timestamp(text.as_bytes(), TimeUnit::Microsecond, true), Ok(time.timestamp_micros()));
        }

        #[test]
        fn decimals_are_what_they_were(value: i64, scale in 0i8..19) {
            let text = i256::from_i128(value.into()).to_string();
            let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
            let digits = format!("{digits:0>20}");
            let (whole, fraction) = digits.split_at(20 - usize::try_from(scale).expect("small"));
            let whole = match whole.trim_start_matches('0') { "" => "0", whole => whole };
            let point = if fraction.is_empty() { "" } else { "." };
            let text = format!("{sign}{whole}{point}{fraction}");
            prop_assert_eq!(decimal(text.as_bytes(), 38, scale), Ok(i256::from_i128(value.into())), "{}", text);
        }
    }
}
