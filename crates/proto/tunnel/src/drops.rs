//! Every reason a packet is dropped for, and the counters behind them.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// Why a packet was dropped. Names follow OpenVPN's log where it has one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(usize)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// All reasons, in order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in metrics, logs and `adit status`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// Not a packet of any protocol spoken here.
    Malformed = "malformed";
    /// A data packet that belongs to no session.
    UnknownPeer = "unknown_peer";
    /// A first packet that no key verified.
    NoKeyVerified = "no_key_verified";
    /// A source that sent more first packets than its budget.
    SourceBudget = "source_budget";
    /// The answer to an unproven source was suppressed by the rate limit.
    ReplyBudget = "reply_budget";
    /// A second packet whose cookie is not ours, is from another address, or is stale.
    BadCookie = "bad_cookie";
    /// No room for another handshake that has not finished.
    HalfOpenFull = "half_open_full";
    /// A first datagram of a foreign back end: too many wait to be relayed.
    RelayQueueFull = "relay_queue_full";
    /// The control plane is behind.
    ControlQueueFull = "control_queue_full";
    /// A control packet whose wrapping does not verify ("TLS Error: … authentication failed").
    ControlAuthentication = "control_authentication";
    /// A control packet seen before.
    ControlReplay = "control_replay";
    /// A reliable message beyond the receive window.
    ControlWindow = "control_window";
    /// A data packet for a key that is not there ("TLS keys are out of sync").
    NoKey = "keys_out_of_sync";
    /// A data packet that does not authenticate ("Authenticate/Decrypt packet error").
    Authentication = "decrypt_error";
    /// A packet number seen before ("bad packet ID (may be a replay)").
    Replay = "replay";
    /// A packet number behind the replay window.
    ReplayTooOld = "replay_window_too_old";
    /// A packet that is really compressed; it is never decompressed here.
    Compressed = "compressed";
    /// A fragment that fits no packet, or whose rest never came.
    Fragment = "fragment";
    /// An inner packet from an address the session does not own ("MULTI: bad source address from client").
    BadSource = "bad_source_address";
    /// An inner packet to an address no session owns.
    NoRoute = "no_route";
    /// The session has ended.
    SessionClosed = "session_closed";
    /// The packet number space or the usage limit of the key is used up.
    KeyExhausted = "key_exhausted";
    /// Larger than the tunnel's MTU.
    TooBig = "too_big";
    /// The carrier is full ("packet dropped due to output saturation").
    OutputSaturation = "output_saturation";
    /// The kernel refused an outgoing datagram (unreachable, message too long, filtered).
    SendError = "send_error";
    /// The kernel refused a packet for the tun interface.
    TunError = "tun_error";
    /// A datagram that was cut off on reception.
    Truncated = "truncated";
}

/// A counter per reason; shared by threads.
#[derive(Debug)]
pub struct Drops {
    counters: [AtomicU64; DropReason::ALL.len()],
}

impl Default for Drops {
    fn default() -> Self {
        Self { counters: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Drops {
    /// Counts one drop.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts `n` drops.
    pub fn add(&self, reason: DropReason, n: u64) {
        if let Some(counter) = self.counters.get(reason as usize) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// The present figure for one reason.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.counters.get(reason as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// All reasons that occurred, with their figures.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.get(reason))).filter(|&(_, n)| n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_and_a_name_of_its_own() {
        let drops = Drops::default();
        for &reason in DropReason::ALL {
            drops.count(reason);
        }
        assert!(drops.iter().all(|(_, n)| n == 1));
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
