//! The wall clock that certificates are held against.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use adit_pki::UnixTime;
use rustls::pki_types;
use rustls::time_provider::TimeProvider;

/// Tells the present time. Tests have clocks that stand still.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The present time.
    fn now(&self) -> UnixTime;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixTime {
        // A clock before 1970 was never set; every certificate is then not valid yet, which is what is said.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        UnixTime::from_secs(since.as_secs())
    }
}

/// Our clock as the TLS library asks for it.
#[derive(Debug)]
pub(crate) struct LibraryClock(pub(crate) Arc<dyn Clock>);

impl TimeProvider for LibraryClock {
    fn current_time(&self) -> Option<pki_types::UnixTime> {
        Some(library_time(self.0.now()))
    }
}

pub(crate) fn library_time(time: UnixTime) -> pki_types::UnixTime {
    pki_types::UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs()))
}
