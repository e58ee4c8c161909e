//! Whether this process may arrange the network.

use std::io;

use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};
use thiserror::Error;

/// Why this process cannot do its work.
#[derive(Debug, Error)]
pub enum PrivilegeFault {
    /// `CAP_NET_ADMIN` is missing.
    #[error(
        "{who} may not change the network: run adit as root or with CAP_NET_ADMIN \
         (a container needs --cap-add NET_ADMIN, a systemd unit AmbientCapabilities=CAP_NET_ADMIN)"
    )]
    NoNetAdmin {
        /// "user 1000", or root without the capability.
        who: String,
    },
    /// The kernel did not say.
    #[error("reading this process's capabilities: {0}")]
    Unknown(io::Error),
}

/// Checks for `CAP_NET_ADMIN`, which root normally has.
///
/// # Errors
/// [`PrivilegeFault::NoNetAdmin`], worded for the operator.
pub fn check() -> Result<(), PrivilegeFault> {
    let sets = capabilities(None).map_err(|errno| PrivilegeFault::Unknown(errno.into()))?;
    judge(sets.effective, geteuid().as_raw())
}

fn judge(effective: CapabilitySet, uid: u32) -> Result<(), PrivilegeFault> {
    if effective.contains(CapabilitySet::NET_ADMIN) {
        return Ok(());
    }
    let who = if uid == 0 { "root without CAP_NET_ADMIN".to_owned() } else { format!("user {uid}") };
    Err(PrivilegeFault::NoNetAdmin { who })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_decides_and_not_the_user() {
        assert!(judge(CapabilitySet::NET_ADMIN | CapabilitySet::CHOWN, 1000).is_ok());

        let root = judge(CapabilitySet::CHOWN, 0).unwrap_err().to_string();
        assert!(root.starts_with("root without CAP_NET_ADMIN may not"), "{root}");
        let user = judge(CapabilitySet::empty(), 1000).unwrap_err().to_string();
        assert!(user.starts_with("user 1000 may not change the network: run adit as root"), "{user}");
    }

    #[test]
    fn root_passes() {
        check().expect("these tests need root");
    }
}
