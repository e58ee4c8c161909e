//! Captured ports.

use serde::{Deserialize, Serialize};

/// A captured port that the machine's own programs have again, until the gateway starts anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReleased {
    /// The port, UDP and TCP.
    pub port: u16,
    /// Ids of sessions that came in by it: over UDP they hear nothing more, and connect anew.
    pub sessions_touched: Vec<String>,
}
