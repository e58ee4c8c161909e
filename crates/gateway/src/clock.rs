//! The wall clock, in the forms that the layers below want it.

use std::time::{SystemTime, UNIX_EPOCH};

use adit_pki::UnixTime;
use adit_store::Timestamp;

/// Now, for the store.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_millis(since_epoch().as_millis() as i64)
}

/// Now, for certificates.
pub(crate) fn unix() -> UnixTime {
    UnixTime::from_secs(since_epoch().as_secs())
}

fn since_epoch() -> std::time::Duration {
    // A clock before 1970 is as wrong as one that stands at 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
