//! What the gateway's API takes and gives, shared by gateway and command line.
//!
//! The API is HTTP over a Unix socket. Each command of the command line is one call; with `--json` it prints the
//! call's answer as it came. Ids are strings; ports, bytes and milliseconds integers; times RFC 3339 in UTC;
//! what is absent is `null`, never left out.
#![forbid(unsafe_code)]

mod check;
mod devices;
mod entrances;
mod forwards;
mod identities;
mod nat;
mod problem;
mod sessions;
mod status;
mod users;

pub use check::{CheckReport, PlanEntry, PlanUse, Problem as PlanProblem, Protocol};
pub use devices::{AddDevice, Device, DeviceList, DeviceRevoked, KeyInForce};
pub use entrances::PortReleased;
pub use forwards::{AddForward, Forward, ForwardList, ForwardProtocol};
pub use identities::{AddIdentity, CaStatus, Identity, IdentityList};
pub use nat::{
    Block, BlockInUse, BlockList, Epoch, PortRange, Trace, TraceKind, TraceMatch, TraceProtocol, TraceQuery,
    TraceRequest, Traces, TrailReport,
};
pub use problem::{PROBLEM_TYPE, Problem};
pub use sessions::{Session, SessionClosed, SessionList, Transport};
pub use status::{NatStatus, ReloadReport, ServiceStatus, Status, TrackedStatus};
pub use users::{AddUser, User, UserCut, UserList, UserState};

/// A moment, to the millisecond, written as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(jiff::Timestamp);

impl Time {
    /// From Unix milliseconds; moments outside the years 0 to 9999 become the nearest one inside.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        let (first, last) = (jiff::Timestamp::MIN, jiff::Timestamp::MAX);
        Self(jiff::Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 { first } else { last }))
    }

    /// As Unix milliseconds.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0.as_millisecond()
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// Where the API lives; a client sends requests to these paths.
pub mod path {
    /// Users: list (GET), add (POST).
    pub const USERS: &str = "/api/v1/users";
    /// Devices: list (GET, `?user=`), add (POST).
    pub const DEVICES: &str = "/api/v1/devices";
    /// Profiles: `/USER/DEVICE` (GET).
    pub const PROFILES: &str = "/api/v1/profiles";
    /// Sessions: list (GET), close `/ID` (DELETE).
    pub const SESSIONS: &str = "/api/v1/sessions";
    /// Captured ports: give back `/PORT/release` (POST).
    pub const ENTRANCES: &str = "/api/v1/entrances";
    /// Forwarded ports: list (GET, `?user=`), add (POST), remove `/ID` (DELETE).
    pub const FORWARDS: &str = "/api/v1/forwards";
    /// Blocks of source ports in use (GET, `?user=`).
    pub const NAT: &str = "/api/v1/nat";
    /// Who had which address and port (POST).
    pub const TRACE: &str = "/api/v1/trace";
    /// Whether the record of it is unchanged (GET).
    pub const TRAIL: &str = "/api/v1/trace/verify";
    /// Identities: list (GET), add (POST), remove `/NAME` (DELETE), rotate `/NAME/rotate` (POST).
    pub const IDENTITIES: &str = "/api/v1/identities";
    /// State of the CA (GET).
    pub const CA: &str = "/api/v1/ca";
    /// Totals (GET).
    pub const STATUS: &str = "/api/v1/status";
    /// Reload (POST, `?dry_run=true`).
    pub const RELOAD: &str = "/api/v1/reload";
    /// Prometheus text (GET).
    pub const METRICS: &str = "/metrics";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let time = Time::from_millis(1_700_000_000_250);
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(json, "\"2023-11-14T22:13:20.25Z\"");
        assert_eq!(serde_json::from_str::<Time>(&json).unwrap(), time);
        assert_eq!(serde_json::from_str::<Time>("\"2023-11-14T23:13:20.25+01:00\"").unwrap(), time);
        assert!(serde_json::from_str::<Time>("\"yesterday\"").is_err());
    }
}
