//! Moments as people and log files write them.

use adit_api::Time;
use jiff::civil::DateTime;
use jiff::fmt::temporal::DateTimeParser;
use jiff::fmt::{rfc2822, strtime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// Date and time in the forms of log files that say how far from UTC they are.
const WITH_OFFSET: [&str; 3] = ["%d/%b/%Y:%H:%M:%S %z", "%Y/%m/%d %H:%M:%S %z", "%Y-%m-%d %H:%M:%S %z"];
/// And of those that do not.
const WITHOUT: [&str; 3] = ["%Y/%m/%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%d/%b/%Y:%H:%M:%S%.f"];

/// Reads a moment: Unix seconds, RFC 3339, RFC 2822, the form of web servers' logs, or date and time with the name
/// of a zone behind it. Date and time alone are of `zone`.
///
/// # Errors
/// What is wrong with it and what would be right, in words.
pub(crate) fn parse(text: &str, zone: Option<&TimeZone>) -> Result<Time, String> {
    let text = text.trim();
    if let Some(millis) = unix_millis(text) {
        return Ok(Time::from_millis(millis));
    }
    let at = |timestamp: Timestamp| Time::from_millis(timestamp.as_millisecond());
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(at(timestamp));
    }
    if let Ok(zoned) = text.parse::<Zoned>() {
        return Ok(at(zoned.timestamp()));
    }
    if let Ok(zoned) = rfc2822::parse(text) {
        return Ok(at(zoned.timestamp()));
    }
    let tm = |format: &str, text: &str| strtime::parse(format, text).ok();
    if let Some(timestamp) = WITH_OFFSET.iter().find_map(|format| tm(format, text)?.to_timestamp().ok()) {
        return Ok(at(timestamp));
    }
    let civil = |text: &str| -> Option<DateTime> {
        let known = WITHOUT.iter().find_map(|format| tm(format, text)?.to_datetime().ok());
        known.or_else(|| text.parse().ok())
    };
    let (local, named) = match civil(text) {
        Some(local) => (local, None),
        None => {
            let (before, name) = text.rsplit_once(' ').ok_or_else(|| unreadable(text))?;
            let local = civil(before.trim_end()).ok_or_else(|| unreadable(text))?;
            (local, Some(self::zone(name)?))
        }
    };
    let Some(zone) = named.as_ref().or(zone) else {
        return Err(format!(
            "\"{text}\" is a different moment in each time zone: add one, as in \"{local}Z\" or \"{text} Europe/Oslo\""
        ));
    };
    // An hour that comes twice when summer time ends is the one thing about which it would be a guess.
    let zoned = zone.to_ambiguous_zoned(local).unambiguous();
    let zoned = zoned.map_err(|_| {
        format!("\"{text}\" is no single moment there, because the clock was set then: say how far it is from UTC, as in +01:00")
    })?;
    Ok(at(zoned.timestamp()))
}

/// A time zone by its name or its offset from UTC.
///
/// # Errors
/// What would be right, in words.
pub(crate) fn zone(name: &str) -> Result<TimeZone, String> {
    // The parser takes POSIX's form as well, in which UTC+1 is west.
    let zone = match name.starts_with(['+', '-']) {
        true => DateTimeParser::new().parse_time_zone(name),
        false => TimeZone::get(name),
    };
    zone.map_err(|_| {
        format!("\"{name}\" is no time zone: a name such as UTC or Europe/Oslo, or an offset such as +01:00")
    })
}

fn unreadable(text: &str) -> String {
    format!(
        "\"{text}\" is no time: for instance 2026-11-20T13:37:42Z, 1795181862, or \"2026-11-20 14:37:42 Europe/Oslo\""
    )
}

/// Seconds since 1970, with a fraction or without.
fn unix_millis(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !digits(seconds) || !digits(fraction) {
        return None;
    }
    let millis: String = fraction.chars().chain("000".chars()).take(3).collect();
    seconds.parse::<i64>().ok()?.checked_mul(1000)?.checked_add(millis.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2020-12-26T12:37:42Z
    const MOMENT: i64 = 1_608_986_262_000;

    #[test]
    fn a_moment_is_the_same_however_it_is_written() {
        for text in [
            "1608986262",
            "1608986262.000",
            "2020-12-26T12:37:42Z",
            "2020-12-26 13:37:42+01:00",
            "2020-12-26T13:37:42[Europe/Oslo]",
            "2020-12-26 13:37:42 Europe/Oslo",
            "2020/12/26 13:37:42 Europe/Berlin",
            "2020/12/26 12:37:42 UTC",
            "2020-12-26 13:37:42 +0100",
            "26/Dec/2020:13:37:42 +0100",
            "Sat, 26 Dec 2020 13:37:42 +0100",
        ] {
            assert_eq!(parse(text, None).map(Time::as_millis), Ok(MOMENT), "{text}");
        }
        assert_eq!(parse("1608986262.2567", None).map(Time::as_millis), Ok(MOMENT + 256));
    }

    #[test]
    fn a_time_without_a_zone_is_of_the_zone_that_was_named_and_else_refused() {
        let oslo = zone("Europe/Oslo").unwrap();
        for text in ["2020-12-26 13:37:42", "2020/12/26 13:37:42", "2020-12-26T13:37:42.000"] {
            assert_eq!(parse(text, Some(&oslo)).map(Time::as_millis), Ok(MOMENT), "{text}");
            assert!(parse(text, None).unwrap_err().contains("add one"), "{text}");
        }
        let offset = zone("+01:00").unwrap();
        assert_eq!(parse("2020-12-26 13:37:42", Some(&offset)).map(Time::as_millis), Ok(MOMENT));
        for wrong in ["Europe/Olso", "UTC+1", "+26", ""] {
            assert!(zone(wrong).unwrap_err().contains("is no time zone"), "{wrong}");
        }
    }

    #[test]
    fn an_hour_that_comes_twice_is_not_guessed() {
        let oslo = zone("Europe/Oslo").unwrap();
        assert!(parse("2020-10-25 02:30:00", Some(&oslo)).unwrap_err().contains("no single moment"));
    }

    #[test]
    fn what_is_no_time_is_refused_with_an_example() {
        for text in ["", "yesterday", "12:30", "2020-13-45T00:00:00Z", "99999999999999999999", "1608986262x"]
        {
            assert!(parse(text, None).unwrap_err().contains("2026-11-20T13:37:42Z"), "{text}");
        }
    }
}
