//! Wall-clock time as certificates have it.

use std::fmt;
use std::time::Duration;

use der::DateTime;
use x509_cert::time::Time;

/// Seconds since 1970-01-01T00:00:00Z, at most [`UnixTime::MAX`]. The one time type of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(u64);

impl UnixTime {
    /// 9999-12-31T23:59:59Z: the last moment a certificate can name, and its way to say "never" (RFC 5280
    /// §4.1.2.5).
    pub const MAX: Self = Self(253_402_300_799);

    /// The moment `secs` seconds after the epoch, held at [`UnixTime::MAX`].
    pub const fn from_secs(secs: u64) -> Self {
        if secs > Self::MAX.0 { Self::MAX } else { Self(secs) }
    }

    /// Seconds since the epoch.
    pub const fn as_secs(self) -> u64 {
        self.0
    }

    /// This moment `by` later, held at [`UnixTime::MAX`]. Fractions of a second are dropped.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self::from_secs(self.0.saturating_add(by.as_secs()))
    }

    /// This moment `by` earlier, held at the epoch. Fractions of a second are dropped.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by.as_secs()))
    }

    /// As X.509 writes it: UTCTime up to 2049, GeneralizedTime after (RFC 5280 §4.1.2.5).
    pub(crate) fn to_x509(self) -> Time {
        Time::from(self.date_time())
    }

    /// From either X.509 form.
    pub(crate) fn from_x509(time: Time) -> Self {
        Self::from_secs(time.to_unix_duration().as_secs())
    }

    fn date_time(self) -> DateTime {
        DateTime::from_unix_duration(Duration::from_secs(self.0)).expect("UnixTime never exceeds year 9999")
    }
}

/// RFC 3339 in UTC, for instance `2026-03-01T12:00:00Z`.
impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.date_time().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_prints_as_rfc_3339() {
        assert_eq!(UnixTime::from_secs(1_772_366_400).to_string(), "2026-03-01T12:00:00Z");
        assert_eq!(UnixTime::MAX.to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn arithmetic_stays_in_the_range_a_certificate_can_name() {
        assert_eq!(UnixTime::from_secs(u64::MAX), UnixTime::MAX);
        assert_eq!(UnixTime::MAX.plus(Duration::MAX), UnixTime::MAX);
        assert_eq!(UnixTime::from_secs(5).minus(Duration::from_secs(6)).as_secs(), 0);
    }

    #[test]
    fn x509_times_survive_the_round_trip_on_both_sides_of_2050() {
        for secs in [0, 2_524_607_999, 2_524_608_000, UnixTime::MAX.as_secs()] {
            let time = UnixTime::from_secs(secs);
            assert_eq!(UnixTime::from_x509(time.to_x509()), time);
        }
        assert!(matches!(UnixTime::from_secs(2_524_607_999).to_x509(), Time::UtcTime(_)));
        assert!(matches!(UnixTime::from_secs(2_524_608_000).to_x509(), Time::GeneralTime(_)));
    }
}
