//! What both roles are configured with, and what they agree on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::data::{Cipher, ReplayOptions};
use crate::kex::Credentials;
use crate::peer_info::PeerInfo;
use crate::tls::TlsSource;
use crate::wrap::Digest;

/// What carries the packets; it decides how much room is left in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carrier {
    /// TCP rather than UDP.
    pub tcp: bool,
    /// IPv6 rather than IPv4.
    pub ipv6: bool,
}

impl Carrier {
    /// Bytes of outer headers around a packet.
    #[must_use]
    pub fn overhead(self) -> u16 {
        let ip = if self.ipv6 { 40 } else { 20 };
        // TCP needs a length prefix too.
        ip + if self.tcp { 20 + 2 } else { 8 }
    }
}

/// What a machine is configured with; shared by all sessions of one identity.
#[derive(Clone)]
pub struct Settings {
    /// Makes the TLS connections.
    pub tls: Arc<dyn TlsSource>,
    /// Data ciphers that may be negotiated, best first (`data-ciphers`).
    pub ciphers: Vec<Cipher>,
    /// The cipher for peers that do not negotiate (`data-ciphers-fallback`).
    pub fallback: Option<Cipher>,
    /// Digest of CBC ciphers (`auth`).
    pub auth: Digest,
    /// `replay-window`.
    pub replay: ReplayOptions,
    /// MTU of the tun interface.
    pub tun_mtu: u16,
    /// `mssfix n mtu`.
    pub mssfix: Option<u16>,
    /// `fragment`, both sides alike; not over TCP.
    pub fragment: Option<u16>,
    /// Sends a keepalive after this long without a data packet. A client takes the pushed value.
    pub ping: Option<Duration>,
    /// Gives up after this long without a packet. A client takes the pushed value.
    pub ping_restart: Option<Duration>,
    /// Renegotiates this often (`reneg-sec`); a server somewhat earlier, at random.
    pub renegotiate: Option<Duration>,
    /// A negotiation takes at most this long.
    pub hand_window: Duration,
    /// Old keys live this long after a renegotiation began.
    pub tran_window: Duration,
    /// tls-auth is in use, with this `key-direction` (for the options string).
    pub tls_auth: Option<Option<u8>>,
    /// Client: user name and password.
    pub credentials: Option<Credentials>,
    /// Client: further lines for the peer info.
    pub peer_info: PeerInfo,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("ciphers", &self.ciphers).finish_non_exhaustive()
    }
}

impl Settings {
    /// OpenVPN's defaults over `tls`.
    #[must_use]
    pub fn new(tls: Arc<dyn TlsSource>) -> Self {
        Self {
            tls,
            ciphers: vec![Cipher::Aes256Gcm, Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305],
            fallback: None,
            auth: Digest::Sha1,
            replay: ReplayOptions::default(),
            tun_mtu: 1500,
            mssfix: Some(1492),
            fragment: None,
            ping: None,
            ping_restart: None,
            renegotiate: Some(Duration::from_secs(3600)),
            hand_window: Duration::from_secs(60),
            tran_window: Duration::from_secs(3600),
            tls_auth: None,
            credentials: None,
            peer_info: PeerInfo::default(),
        }
    }
}

/// What the two sides settled on in the first negotiation; it holds for the whole session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The data cipher.
    pub cipher: Cipher,
    /// The digest that goes with a CBC cipher.
    pub auth: Digest,
    /// Data keys come from the TLS exporter, else from the key exchange.
    pub exporter: bool,
    /// EXIT is a control message, else a data packet.
    pub cc_exit: bool,
    /// Renegotiations are protected by a fresh key.
    pub dynamic_tls_crypt: bool,
    /// The peer-id of DATA_V2, else DATA_V1 is used.
    pub peer_id: Option<u32>,
    /// Packets are framed for compression, which is never done: the peer is set up for it.
    pub framed: bool,
}
