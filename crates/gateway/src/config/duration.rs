//! Durations as people write them: `90s`, `30d`, `1h30m`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Clocks and certificates count this far, and arithmetic with it never overflows.
const LONGEST: Duration = Duration::from_secs(1000 * 365 * 86_400);

/// Reads a duration; a bare number counts seconds.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let number: u32 = number.parse().ok()?;
        let unit = match unit.trim() {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" | "min" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(86_400),
            "w" => Duration::from_secs(7 * 86_400),
            "y" => Duration::from_secs(365 * 86_400),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Seconds(u64),
    Text(String),
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration = match Written::deserialize(deserializer)? {
        Written::Seconds(seconds) => Duration::from_secs(seconds),
        Written::Text(text) => parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "\"{text}\" is not a duration; write for instance \"90s\" or \"30d\""
            ))
        })?,
    };
    if duration > LONGEST {
        return Err(serde::de::Error::custom("a duration of more than 1000 years"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse("90s"), Some(Duration::from_secs(90)));
        assert_eq!(parse("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse("30d"), Some(Duration::from_secs(30 * 86_400)));
        assert_eq!(parse("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse("15"), Some(Duration::from_secs(15)));
        for text in ["", "s", "5 parsecs", "-3s", "99999999999999999999d"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
